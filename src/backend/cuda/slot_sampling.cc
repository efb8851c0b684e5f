#include "backend/cuda/slot_sampling.h"

#include <algorithm>
#include <cstring>

namespace jewel::cuda {
namespace {

// Copies from memory that goes away: the runtime has staged it when this returns.
void send(void* device, const void* host, size_t bytes, cudaStream_t stream) {
  const cudaError_t code = cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream);
  JEWEL_CHECK(code == cudaSuccess, "sending sampling parameters: {}", cudaGetErrorString(code));
}

void grow(DeviceBuffer& buffer, size_t bytes, std::string_view what) {
  if (buffer.bytes() >= bytes) return;
  auto made = DeviceBuffer::make(bytes, what);
  JEWEL_CHECK(made.ok(), "{}", made.error().message);  // kilobytes; a megabyte for penalties
  buffer = std::move(made).value();
}

}  // namespace

Result<std::unique_ptr<SlotSamplings>> SlotSamplings::make(int max_slots, int vocab) {
  std::unique_ptr<SlotSamplings> out(new SlotSamplings());
  const auto n = static_cast<size_t>(max_slots);
  out->vocab_ = vocab;
  JEWEL_ASSIGN(out->slots_, DeviceBuffer::make(n * sizeof(SlotSampling), "sampling parameters"));
  JEWEL_ASSIGN(out->last_tokens_, DeviceBuffer::make(n * sizeof(int32_t), "last tokens"));
  JEWEL_CUDA_TRY(cudaMemset(out->slots_.data(), 0, out->slots_.bytes()), "sampling parameters");
  JEWEL_CUDA_TRY(cudaMemset(out->last_tokens_.data(), 0, out->last_tokens_.bytes()), "last tokens");
  out->lists_.resize(n);
  out->seen_.resize(n);
  out->n_logprobs_.assign(n, -1);
  out->by_tiles_.assign(n, false);
  return out;
}

void SlotSamplings::begin(SlotId slot, const SamplingParams& params, std::span<const TokenId> prompt,
                          std::span<const TokenId> output, cudaStream_t stream) {
  const auto at = static_cast<size_t>(slot);
  n_logprobs_[at] = params.n_logprobs;
  SlotSampling s{.temperature = static_cast<float>(params.temperature),
                 .top_k = params.top_k,
                 .top_p = static_cast<float>(params.top_p),
                 .min_p = static_cast<float>(params.min_p),
                 .repetition_penalty = static_cast<float>(params.repetition_penalty),
                 .presence_penalty = static_cast<float>(params.presence_penalty),
                 .frequency_penalty = static_cast<float>(params.frequency_penalty),
                 .not_before_position = params.not_before_position,
                 .seed = params.seed,
                 .n_biases = static_cast<int>(params.logit_bias.size()),
                 .n_never = static_cast<int>(params.never.size()),
                 .n_not_before = static_cast<int>(params.not_before.size())};
  const size_t biases = params.logit_bias.size() * sizeof(BiasedToken);
  const size_t never = params.never.size() * sizeof(int32_t),
               later = params.not_before.size() * sizeof(int32_t);
  if (const size_t bytes = biases + never + later; bytes > 0) {
    std::vector<std::byte> lists(bytes);
    for (size_t i = 0; i < params.logit_bias.size(); ++i) {
      const BiasedToken biased{params.logit_bias[i].first, params.logit_bias[i].second};
      std::memcpy(lists.data() + i * sizeof biased, &biased, sizeof biased);
    }
    std::copy_n(reinterpret_cast<const std::byte*>(params.never.data()), never, lists.data() + biases);
    std::copy_n(reinterpret_cast<const std::byte*>(params.not_before.data()), later,
                lists.data() + biases + never);
    grow(lists_[at], bytes, "sampling lists");
    send(lists_[at].data(), lists.data(), bytes, stream);
    s.biases = reinterpret_cast<const BiasedToken*>(lists_[at].data());
    s.never = reinterpret_cast<const int32_t*>(lists_[at].data() + biases);
    s.not_before = reinterpret_cast<const int32_t*>(lists_[at].data() + biases + never);
  }
  const bool penalties =
      params.repetition_penalty != 1 || params.presence_penalty != 0 || params.frequency_penalty != 0;
  if (penalties) {
    grow(seen_[at], static_cast<size_t>(vocab_) * sizeof(uint32_t), "penalties");
    s.seen = seen_[at].as<uint32_t>();
    cudaMemsetAsync(seen_[at].data(), 0, seen_[at].bytes(), stream);
    const auto note = [&](std::span<const TokenId> ids, bool is_output) {
      if (ids.empty()) return;
      void* copy = nullptr;
      const cudaError_t code = cudaMallocAsync(&copy, ids.size_bytes(), stream);
      JEWEL_CHECK(code == cudaSuccess, "memory for {} ids: {}", ids.size(), cudaGetErrorString(code));
      send(copy, ids.data(), ids.size_bytes(), stream);
      launch_note_seen(s.seen, vocab_, static_cast<int32_t*>(copy), static_cast<int>(ids.size()), is_output,
                       stream);
      cudaFreeAsync(copy, stream);
    };
    if (params.repetition_penalty != 1) note(prompt, false);
    note(output, true);
  }
  by_tiles_[at] = jewel::cuda::by_tiles(s);
  send(slots_.as<SlotSampling>() + slot, &s, sizeof s, stream);
  if (!output.empty()) send(last_tokens_.as<int32_t>() + slot, &output.back(), sizeof(int32_t), stream);
}

}  // namespace jewel::cuda
