// ReleasableBackend: a backend that can be given up and made again, for servers that wait.
//
// It owns the real backend and a factory for another one like it. release() destroys the real one, then calls
// `give_back`, which returns the device to the machine (a CUDA context that does nothing still holds the
// card's clocks up). restore() makes a new one and allocates the same KV pages. Between the two info() is the
// only call. Everything else is handed on.
//
// The engine's thread calls it, as any backend; info() never changes, so any thread may read it. What the
// factory and `give_back` use must outlive it.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "backend/backend.h"

namespace jewel {

class ReleasableBackend final : public Backend {
 public:
  using Factory = std::function<Result<std::unique_ptr<Backend>>()>;

  // `give_back` may be empty.
  ReleasableBackend(std::unique_ptr<Backend> backend, Factory make_again, std::function<void()> give_back);
  ~ReleasableBackend() override;

  bool can_release() const override { return true; }
  void release() override;
  // Errors: the factory's, or that what it made is not like the first. The device is given back again then.
  Result<void> restore() override;

  const BackendInfo& info() const override { return info_; }
  Result<void> allocate_kv(const KvSizes& sizes) override;
  Result<FeatureId> encode_image(const ImagePatches& patches) override;
  void release_feature(FeatureId feature) override;
  void begin_sequence(SlotId slot, const SamplingParams& params, std::span<const TokenId> prompt,
                      std::span<const TokenId> output) override;
  void end_sequence(SlotId slot) override;
  void submit(std::span<const StepChunk> chunks) override;
  Result<StepResult> collect() override;
  Result<void> read_pages(LayerType pool, std::span<const PageId> pages, std::span<std::byte> out) override;
  Result<void> write_pages(LayerType pool, std::span<const PageId> pages,
                           std::span<const std::byte> in) override;
  void observe_stages(StageObserver observer) override;

 private:
  Backend& real() const;
  Result<std::unique_ptr<Backend>> make_ready() const;

  std::unique_ptr<Backend> backend_;  // null: released
  const Factory make_again_;
  const std::function<void()> give_back_;
  const BackendInfo info_;
  std::optional<KvSizes> kv_;
  StageObserver observer_;
};

}  // namespace jewel
