#include "backend/releasable_backend.h"

#include <fmt/format.h>

namespace jewel {

ReleasableBackend::ReleasableBackend(std::unique_ptr<Backend> backend, Factory make_again,
                                     std::function<void()> give_back)
    : backend_(std::move(backend)),
      make_again_(std::move(make_again)),
      give_back_(std::move(give_back)),
      info_(backend_->info()) {}

ReleasableBackend::~ReleasableBackend() = default;

Backend& ReleasableBackend::real() const {
  JEWEL_CHECK(backend_ != nullptr, "the backend is released; restore() comes first");
  return *backend_;
}

void ReleasableBackend::release() {
  JEWEL_CHECK(backend_ != nullptr, "release() of a backend that is released");
  backend_.reset();
  if (give_back_) give_back_();
}

Result<void> ReleasableBackend::restore() {
  JEWEL_CHECK(backend_ == nullptr, "restore() of a backend that is not released");
  auto made = make_ready();
  if (!made.ok()) {
    if (give_back_) give_back_();  // what an attempt left of the device
    return std::move(made).error();
  }
  backend_ = std::move(made).value();
  return {};
}

Result<std::unique_ptr<Backend>> ReleasableBackend::make_ready() const {
  JEWEL_ASSIGN(std::unique_ptr<Backend> made, make_again_());
  const BackendInfo& now = made->info();
  if (now.full_page_bytes != info_.full_page_bytes || now.sliding_page_bytes != info_.sliding_page_bytes ||
      now.kv_dtype != info_.kv_dtype || now.max_slots != info_.max_slots ||
      now.max_step_tokens != info_.max_step_tokens) {
    return internal(fmt::format("{} was made again as {}, with other pages or slots", info_.name, now.name));
  }
  if (kv_) JEWEL_TRY(made->allocate_kv(*kv_));
  if (observer_) made->observe_stages(observer_);
  return made;
}

Result<void> ReleasableBackend::allocate_kv(const KvSizes& sizes) {
  JEWEL_TRY(real().allocate_kv(sizes));
  kv_ = sizes;
  return {};
}

Result<FeatureId> ReleasableBackend::encode_image(const ImagePatches& patches) {
  return real().encode_image(patches);
}

void ReleasableBackend::release_feature(FeatureId feature) {
  real().release_feature(feature);
}

void ReleasableBackend::begin_sequence(SlotId slot, const SamplingParams& params,
                                       std::span<const TokenId> prompt, std::span<const TokenId> output) {
  real().begin_sequence(slot, params, prompt, output);
}

void ReleasableBackend::end_sequence(SlotId slot) {
  real().end_sequence(slot);
}

void ReleasableBackend::submit(std::span<const StepChunk> chunks) {
  real().submit(chunks);
}

Result<StepResult> ReleasableBackend::collect() {
  return real().collect();
}

Result<void> ReleasableBackend::read_pages(LayerType pool, std::span<const PageId> pages,
                                           std::span<std::byte> out) {
  return real().read_pages(pool, pages, out);
}

Result<void> ReleasableBackend::write_pages(LayerType pool, std::span<const PageId> pages,
                                            std::span<const std::byte> in) {
  return real().write_pages(pool, pages, in);
}

void ReleasableBackend::observe_stages(StageObserver observer) {
  observer_ = observer;
  real().observe_stages(std::move(observer));
}

}  // namespace jewel
