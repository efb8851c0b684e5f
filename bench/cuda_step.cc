// How fast whole steps of the CUDA backend are: a model of E4B's shapes with random weights, FP8 in the
// decoder's layers and BF16 elsewhere, as published FP8 checkpoints have it; attention, sampling and the
// readback included. Prints one line a figure beside its ceiling.
//
//   cuda_step [--head-bf16] [--kv-bf16] [--bf16] [--prefill-fp8] [--portable] [--ple-host] [--no-graphs]
//   [--quick]
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "random_model.h"

namespace jewel {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Flags {
  bool head_bf16 = false, kv_bf16 = false, bf16 = false, prefill_fp8 = false, portable = false,
       ple_host = false;
  bool no_graphs = false, quick = false;
};

template <typename T>
T must(Result<T> result) {
  if (!result.ok()) {
    fmt::print(stderr, "cuda_step: {}\n", result.error().message);
    std::exit(1);
  }
  if constexpr (!std::is_void_v<T>) return std::move(result).value();
}

// Bytes of weights that a decoded token reads.
double bytes_per_token(const ModelWeights& w, bool head_fp8) {
  size_t bytes = w.per_layer_model_projection.weight.bytes + w.lm_head.weight.bytes / (head_fp8 ? 2 : 1);
  for (const DecoderLayerWeights& layer : w.layers) {
    for (const LinearWeight* linear :
         {&layer.q_proj, &layer.k_proj, &layer.v_proj, &layer.o_proj, &layer.gate_proj, &layer.up_proj,
          &layer.down_proj, &layer.per_layer_input_gate, &layer.per_layer_projection}) {
      bytes += linear->weight.bytes;
    }
  }
  return static_cast<double>(bytes);
}

// The engine's books, as small as they can be: every sequence has pages of its own.
class Bench {
 public:
  Bench(Backend& backend, int max_sequences, int max_tokens) : backend_(backend) {
    const int pages = (max_tokens + kPageTokens - 1) / kPageTokens;
    must(backend.allocate_kv(
        {.n_full_pages = max_sequences * pages, .n_sliding_pages = max_sequences * pages}));
    for (int s = 0; s < max_sequences; ++s) {
      std::vector<PageId>& mine = pages_.emplace_back();
      for (int i = 0; i < pages; ++i) mine.push_back(i * max_sequences + s);  // scattered
    }
  }

  void begin(int s, const SamplingParams& params) { backend_.begin_sequence(s, params, {}, {}); }
  void end(int s) { backend_.end_sequence(s); }

  StepChunk chunk(int s, int position, std::span<const TokenId> tokens, bool sample) const {
    StepChunk c;
    c.slot = s;
    c.phase = tokens.empty() ? Phase::kDecode : Phase::kPrefill;
    c.position = position;
    c.tokens = tokens;
    const size_t n = static_cast<size_t>(position + c.n_tokens() + kPageTokens - 1) / kPageTokens;
    c.full_pages = std::span(pages_[static_cast<size_t>(s)]).first(n);
    c.sliding_pages = c.full_pages;
    c.sample = sample;
    return c;
  }

  // Prompts of `n_tokens`, chunked by the backend's step; the last token of each samples. Seconds.
  double prefill(int n_sequences, std::span<const TokenId> tokens) {
    const Clock::time_point start = Clock::now();
    const int max = backend_.info().max_step_tokens;
    int in_flight = 0;
    std::vector<StepChunk> step;
    int used = 0;
    const auto flush = [&] {
      if (step.empty()) return;
      backend_.submit(step);
      if (++in_flight == 2) {
        must(backend_.collect());
        --in_flight;
      }
      step.clear();
      used = 0;
    };
    for (int s = 0; s < n_sequences; ++s) {
      for (size_t at = 0; at < tokens.size();) {
        const size_t n = std::min(tokens.size() - at, static_cast<size_t>(max - used));
        step.push_back(chunk(s, static_cast<int>(at), tokens.subspan(at, n), at + n == tokens.size()));
        at += n;
        used += static_cast<int>(n);
        // A slot is in a step once.
        if (used == max || at < tokens.size()) flush();
      }
    }
    flush();
    while (in_flight-- > 0) must(backend_.collect());
    return seconds_since(start);
  }

  // Seconds a step, the median, one step ahead.
  double decode(int n_sequences, int position, int n_steps) {
    std::vector<double> times;
    Clock::time_point last = Clock::now();
    for (int t = 0; t <= n_steps; ++t) {
      if (t < n_steps) {
        std::vector<StepChunk> step;
        for (int s = 0; s < n_sequences; ++s) step.push_back(chunk(s, position + t, {}, true));
        backend_.submit(step);
      }
      if (t == 0) continue;
      must(backend_.collect());
      times.push_back(seconds_since(last));
      last = Clock::now();
    }
    std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2),
                     times.end());
    return times[times.size() / 2];
  }

 private:
  Backend& backend_;
  std::vector<std::vector<PageId>> pages_;
};

void measure(const Flags& flags) {
  const Clock::time_point made = Clock::now();
  const auto model = random_model(
      {.hidden_size = 2560,
       .intermediate_size = 10240,
       .n_layers = 42,
       .full_every = 6,
       .n_kv_shared_layers = 18,
       .n_heads = 8,
       .n_kv_heads = 2,
       .head_dim = 256,
       .global_head_dim = 512,
       .sliding_window = 512,
       .vocab_size = 262144,
       .per_layer_input = 256,
       .vision = true,
       .vision_hidden = 768,
       .vision_intermediate = 3072,
       .vision_layers = 16,
       .vision_heads = 12,
       .position_embedding_size = 10240,
       .patch_size = 16,
       .max_position_embeddings = 131072,
       .weight_dtype = flags.bf16 ? DType::kBF16 : DType::kF8E4M3,
       .scale = flags.bf16 ? RandomModelOptions::Scale::kNone : RandomModelOptions::Scale::kTensor,
       .fp8_as_published = true,
       .repeat_values = true});
  fmt::print("model made in {:.1f} s\n", seconds_since(made));
  CudaOptions options{.kv_dtype = flags.kv_bf16 ? DType::kBF16 : DType::kF8E4M3,
                      .head_fp8 = !flags.head_bf16,
                      .ple = flags.ple_host ? PleTable::kHost : PleTable::kDevice,
                      .prefill_fp8 = flags.prefill_fp8,
                      .max_slots = 128,
                      .max_step_tokens = 8192,
                      .portable = flags.portable,
                      .graphs = !flags.no_graphs};
  const Clock::time_point opening = Clock::now();
  auto backend = must(make_cuda_backend(model->config, model->weights, options));
  const CudaMemory memory = backend->memory();
  fmt::print("{}: opened in {:.2f} s; weights {:.2f} GB on the device, {:.2f} GB on the host\n",
             backend->info().name, seconds_since(opening), static_cast<double>(memory.weights_bytes) / 1e9,
             static_cast<double>(memory.host_bytes) / 1e9);
  const double read_rate = 4.6e12;
  const double bytes = bytes_per_token(model->weights, options.head_fp8);
  fmt::print("a token reads {:.3f} GB; at 4.6 TB/s {:.3f} ms\n", bytes / 1e9, bytes / read_rate * 1e3);

  const auto tokens = random_tokens(model->config, 20'000, 1);
  {
    Bench bench(*backend, 128, 2048);
    SamplingParams sampled{.temperature = 1, .top_k = 64, .top_p = 0.95};
    for (int s = 0; s < 128; ++s) bench.begin(s, sampled);
    bench.prefill(128, std::span(tokens).first(512));
    for (const int n : {1, 2, 4, 8, 16, 32, 64, 100}) {
      bench.decode(n, 512, 20);
      const double step = bench.decode(n, 532, flags.quick ? 60 : 200);
      fmt::print("decode {:3} x 512 context: {:.3f} ms a step, {:.0f} tok/s\n", n, step * 1e3, n / step);
    }
    for (int s = 0; s < 128; ++s) bench.end(s);
  }
  {
    Bench bench(*backend, 1, 20'000);
    bench.begin(0, {.temperature = 0});
    double base = 0;
    for (const int context : {512, 3500, 16384}) {
      bench.prefill(1, std::span(tokens).first(static_cast<size_t>(context)));
      bench.decode(1, context, 20);
      const double step = bench.decode(1, context + 20, 100);
      if (base == 0) base = step;
      fmt::print("decode 1 x {:5} context, greedy: {:.3f} ms a step, {:+.1f} %\n", context, step * 1e3,
                 100 * (step / base - 1));
    }
    bench.end(0);
  }
  {
    Bench bench(*backend, 64, 2048);
    for (int s = 0; s < 64; ++s) bench.begin(s, {.temperature = 0});
    bench.prefill(8, std::span(tokens).first(2048));
    const double s = bench.prefill(64, std::span(tokens).first(2048));
    fmt::print("prefill 64 x 2048: {:.0f} tok/s\n", 64 * 2048 / s);
    double first = 1e9;
    for (int i = 0; i < 10; ++i) first = std::min(first, bench.prefill(1, std::span(tokens).first(350)));
    fmt::print("350-token prompt to first token: {:.2f} ms (best of 10)\n", first * 1e3);
    const ImagePatches image = random_image(model->config, 42, 60, 1);
    double image_s = 1e9;
    for (int i = 0; i < 10; ++i) {
      const Clock::time_point start = Clock::now();
      const FeatureId feature = must(backend->encode_image(image));
      const std::vector<TokenId> ids(280, RandomModel::kImageToken);
      const SoftTokenRun run{.feature = feature, .row = 0, .offset = 0, .count = 280};
      StepChunk chunk = bench.chunk(0, 0, ids, true);
      chunk.soft_tokens = {&run, 1};
      backend->submit({&chunk, 1});
      must(backend->collect());
      image_s = std::min(image_s, seconds_since(start));
      backend->release_feature(feature);
    }
    fmt::print("image of 2,520 patches and its 280 tokens to first token: {:.2f} ms (best of 10)\n",
               image_s * 1e3);
  }
}

}  // namespace
}  // namespace jewel

int main(int argc, char** argv) {
  jewel::Flags flags;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--head-bf16")
      flags.head_bf16 = true;
    else if (flag == "--kv-bf16")
      flags.kv_bf16 = true;
    else if (flag == "--bf16")
      flags.bf16 = true;
    else if (flag == "--prefill-fp8")
      flags.prefill_fp8 = true;
    else if (flag == "--portable")
      flags.portable = true;
    else if (flag == "--ple-host")
      flags.ple_host = true;
    else if (flag == "--no-graphs")
      flags.no_graphs = true;
    else if (flag == "--quick")
      flags.quick = true;
    else {
      fmt::print(stderr, "cuda_step: unknown flag {}\n", flag);
      return 2;
    }
  }
  jewel::measure(flags);
}
