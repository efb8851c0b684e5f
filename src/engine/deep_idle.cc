// The device given back while nobody asks for anything, and had again: what the prefix cache has goes to host
// memory and returns to the same pages.
#include <fmt/format.h>

#include <algorithm>
#include <new>

#include "base/log.h"
#include "engine/scheduler_impl.h"

namespace jewel {
namespace {

// Of one call to the backend, so that it need not stage gigabytes.
constexpr size_t kCopyBytes = size_t{64} << 20;

size_t page_bytes(const BackendInfo& info, LayerType type) {
  return type == LayerType::kFull ? info.full_page_bytes : info.sliding_page_bytes;
}

}  // namespace

size_t Scheduler::Impl::cached_bytes() const {
  const BackendInfo& info = backend_.info();
  return static_cast<size_t>(full_.n_cached()) * info.full_page_bytes +
         static_cast<size_t>(sliding_.n_cached()) * info.sliding_page_bytes;
}

Result<Scheduler::Impl::SavedPool> Scheduler::Impl::save_pool(LayerType type) const {
  const PagePool& pool = type == LayerType::kFull ? full_ : sliding_;
  const size_t bytes = page_bytes(backend_.info(), type);
  SavedPool saved;
  for (PageId page = 0; page < pool.n_pages(); ++page) {
    if (pool.kept(page)) saved.pages.push_back(page);
  }
  if (saved.pages.empty()) return saved;
  saved.bytes.reset(new (std::nothrow) std::byte[saved.pages.size() * bytes]);  // not filled: read into
  if (saved.bytes == nullptr) {
    return unavailable(fmt::format("no host memory for {} bytes", saved.pages.size() * bytes));
  }
  const size_t most = std::max<size_t>(1, kCopyBytes / bytes);
  for (size_t first = 0; first < saved.pages.size(); first += most) {
    const size_t n = std::min(most, saved.pages.size() - first);
    JEWEL_TRY(backend_.read_pages(type, std::span(saved.pages).subspan(first, n),
                                  std::span(saved.bytes.get() + first * bytes, n * bytes)));
  }
  return saved;
}

Result<void> Scheduler::Impl::load_pool(LayerType type, const SavedPool& saved) {
  const size_t bytes = page_bytes(backend_.info(), type);
  const size_t most = std::max<size_t>(1, kCopyBytes / bytes);
  for (size_t first = 0; first < saved.pages.size(); first += most) {
    const size_t n = std::min(most, saved.pages.size() - first);
    JEWEL_TRY(backend_.write_pages(type, std::span(saved.pages).subspan(first, n),
                                   std::span<const std::byte>(saved.bytes.get() + first * bytes, n * bytes)));
  }
  return {};
}

ReleaseReport Scheduler::Impl::release_device() {
  JEWEL_CHECK(backend_.can_release(), "this backend cannot be released");
  JEWEL_CHECK(live_.empty() && in_flight() == 0 && !saved_, "{} live sequences, {} steps in flight, {}",
              live_.size(), in_flight(), saved_ ? "released already" : "not released");
  ReleaseReport report;
  features_.clear();
  const int checkpoints = cache_.n_checkpoints();
  // Every evicted checkpoint that frees a full page takes its window along; nobody holds any of it.
  while (cached_bytes() > options_.swap_bytes && cache_.evict(LayerType::kFull)) {
  }
  SavedPages saved;
  auto full = save_pool(LayerType::kFull);
  auto sliding = save_pool(LayerType::kSliding);
  if (full.ok() && sliding.ok()) {
    saved = {.full = std::move(full).value(), .sliding = std::move(sliding).value()};
  } else {
    const Error& error = full.ok() ? sliding.error() : full.error();
    log().warn("deep idle: the prefix cache cannot be kept and is dropped: {}", error.message);
    cache_.clear();
  }
  report.checkpoints_dropped = checkpoints - cache_.n_checkpoints();
  report.pages_kept = static_cast<int>(saved.full.pages.size() + saved.sliding.pages.size());
  report.bytes_kept = cached_bytes();
  saved_ = std::move(saved);
  backend_.release();
  return report;
}

Result<void> Scheduler::Impl::restore_device() {
  JEWEL_CHECK(saved_, "the device is not given back");
  JEWEL_TRY(backend_.restore());
  for (const auto& result :
       {load_pool(LayerType::kFull, saved_->full), load_pool(LayerType::kSliding, saved_->sliding)}) {
    if (result.ok()) continue;
    log().warn("deep idle: the prefix cache cannot be brought back and is dropped: {}",
               result.error().message);
    cache_.clear();
  }
  saved_.reset();
  return {};
}

}  // namespace jewel
