// How fast whole steps of the CUDA backend are: a model of E4B's shapes with random weights, FP8 in the
// decoder's layers and BF16 elsewhere, as published FP8 checkpoints have it; attention, sampling and the
// readback included. Prints one line a figure beside its ceiling.
//
//   cuda_step [--head-bf16] [--kv-bf16] [--bf16] [--prefill-fp8] [--portable] [--ple-host] [--no-graphs]
//   [--quick] [--no-prefill] [--batches N,…] [--joules WINDOWS] [--json FILE]
//
// --batches: decoding at these alone.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <fmt/chrono.h>
#include <fmt/core.h>

#include <algorithm>
#include <atomic>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "model/json_text.h"
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
  bool no_graphs = false, quick = false, no_prefill = false;
  std::vector<int> batches;
  int joules = 0;
  std::string json;
};

// One line on stdout and one object in the file.
class Figures {
 public:
  struct Ceiling {
    double value;
    std::string what;
  };
  void add(const std::string& name, double value, const std::string& unit, const Ceiling& ceiling = {},
           int n = 1, double spread = 0) {
    fmt::print("{:<52} {:>10.4g} {}", name, value, unit);
    if (ceiling.value > 0) fmt::print("   ({}: {:.4g})", ceiling.what, ceiling.value);
    if (n > 1) fmt::print("   n = {}", n);
    if (spread > 0) fmt::print(", spread {:.2g}", spread);
    fmt::print("\n");
    boost::json::object figure{{"name", name}, {"value", value}, {"unit", unit}, {"n", n}};
    if (ceiling.value > 0) {
      figure["ceiling"] = ceiling.value;
      figure["ceiling_is"] = ceiling.what;
    }
    if (spread > 0) figure["spread"] = spread;
    figures_.push_back(std::move(figure));
  }
  const boost::json::array& all() const { return figures_; }

 private:
  boost::json::array figures_;
};

// NVML's counter of the card's energy, in millijoules; it advances in ticks of about 100 ms.
class EnergyCounter {
 public:
  EnergyCounter() {
    void* library = ::dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (!library) return;
    const auto init = reinterpret_cast<int (*)()>(::dlsym(library, "nvmlInit_v2"));
    const auto handle =
        reinterpret_cast<int (*)(unsigned, void**)>(::dlsym(library, "nvmlDeviceGetHandleByIndex_v2"));
    total_ = reinterpret_cast<int (*)(void*, unsigned long long*)>(
        ::dlsym(library, "nvmlDeviceGetTotalEnergyConsumption"));
    if (!init || !handle || !total_ || init() != 0 || handle(0, &device_) != 0) total_ = nullptr;
  }
  bool good() const { return total_ != nullptr; }
  unsigned long long millijoules() const {
    unsigned long long value = 0;
    return total_ && total_(device_, &value) == 0 ? value : 0;
  }

 private:
  int (*total_)(void*, unsigned long long*) = nullptr;
  void* device_ = nullptr;
};

// GB/s of reading device memory: a large copy on the device, bytes read and written counted.
double copy_rate() {
  constexpr size_t kBytes = size_t{4} << 30;
  void *from = nullptr, *to = nullptr;
  if (cudaMalloc(&from, kBytes) != cudaSuccess || cudaMalloc(&to, kBytes) != cudaSuccess) return 0;
  cudaMemset(from, 0x5a, kBytes);
  double best = 1e9;
  for (int i = 0; i < 6; ++i) {
    cudaDeviceSynchronize();
    const Clock::time_point start = Clock::now();
    cudaMemcpyAsync(to, from, kBytes, cudaMemcpyDeviceToDevice, nullptr);
    cudaDeviceSynchronize();
    best = std::min(best, seconds_since(start));
  }
  cudaFree(from);
  cudaFree(to);
  return 2.0 * static_cast<double>(kBytes) / best;
}

template <typename T>
T must(Result<T> result) {
  if (!result.ok()) {
    fmt::print(stderr, "cuda_step: {}\n", result.error().message);
    std::exit(1);
  }
  if constexpr (!std::is_void_v<T>) return std::move(result).value();
}

// Bytes of weights that a decoded token reads. The per-layer projection is not among them
// (per_layer_table.h).
double bytes_per_token(const ModelWeights& w, bool head_fp8) {
  size_t bytes = w.lm_head.weight.bytes / (head_fp8 ? 2 : 1);
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

  // What decoding took for at least some seconds, from tick to tick of the counter.
  struct Spent {
    double millijoules, tokens, seconds;
  };
  // Positions go round in [position, position + 512). A thread of its own reads the counter, so that steps do
  // not wait for readings.
  Spent energy(const EnergyCounter& counter, int n_sequences, int position, double seconds) {
    struct Tick {
      unsigned long long millijoules;
      double tokens;
      Clock::time_point at;
    };
    std::atomic<int64_t> tokens = 0;
    std::atomic<bool> done = false;
    std::vector<Tick> ticks;
    std::thread reader([&] {
      for (unsigned long long last = counter.millijoules(); !done;) {
        const unsigned long long now = counter.millijoules();
        if (now == last) continue;
        last = now;
        ticks.push_back({now, static_cast<double>(tokens), Clock::now()});
        if (std::chrono::duration<double>(ticks.back().at - ticks.front().at).count() >= seconds) done = true;
      }
    });
    for (int t = 0; !done; ++t) {
      std::vector<StepChunk> step;
      for (int s = 0; s < n_sequences; ++s) step.push_back(chunk(s, position + t % 512, {}, true));
      backend_.submit(step);
      if (t > 0) {
        must(backend_.collect());
        tokens += n_sequences;
      }
    }
    must(backend_.collect());
    reader.join();
    const Tick &first = ticks.front(), &last = ticks.back();
    return {static_cast<double>(last.millijoules - first.millijoules), last.tokens - first.tokens,
            std::chrono::duration<double>(last.at - first.at).count()};
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
  const double opened_s = seconds_since(opening);
  fmt::print("{}\n", backend->info().name);
  Figures out;
  const double read_rate = copy_rate();
  const double bytes = bytes_per_token(model->weights, options.head_fp8);
  const Figures::Ceiling floor{bytes / read_rate * 1e3, "ms that the weights' bytes take at the copy rate"};
  out.add("device memory, a large copy", read_rate / 1e12, "TB/s");
  out.add("weights that a token reads", bytes / 1e9, "GB");
  out.add("opening, from mapped weights to the first step", opened_s, "s");
  out.add("weights on the device", static_cast<double>(memory.weights_bytes) / 1e9, "GB");

  const auto tokens = random_tokens(model->config, 20'000, 1);
  {
    Bench bench(*backend, 128, 2048);
    const SamplingParams sampled{.temperature = 1, .top_k = 64, .top_p = 0.95};
    for (int s = 0; s < 128; ++s) bench.begin(s, sampled);
    bench.prefill(128, std::span(tokens).first(512));
    for (const int n : flags.batches.empty() ? std::vector{1, 2, 4, 8, 16, 32, 64, 100} : flags.batches) {
      bench.decode(n, 512, 20);
      const int n_steps = flags.quick ? 60 : 200;
      const double step = bench.decode(n, 532, n_steps);
      out.add(fmt::format("decode, batch {}, 512 context, a step", n), step * 1e3, "ms", floor, n_steps);
      out.add(fmt::format("decode, batch {}, 512 context", n), n / step, "tok/s");
    }
    const EnergyCounter counter;
    for (const int n : {1, 32}) {
      if (flags.joules == 0) break;
      if (!flags.batches.empty() && std::ranges::find(flags.batches, n) == flags.batches.end()) continue;
      if (!counter.good()) {
        fmt::print("joules: no NVML on this machine\n");
        break;
      }
      std::vector<double> joules;
      double watts = 0, steps_ms = 0;
      for (int i = 0; i < flags.joules; ++i) {
        const Bench::Spent spent = bench.energy(counter, n, 512, 10);
        joules.push_back(spent.millijoules / 1e3 / spent.tokens);
        watts += spent.millijoules / 1e3 / spent.seconds / flags.joules;
        steps_ms += spent.seconds * 1e3 * n / spent.tokens / flags.joules;
      }
      std::ranges::sort(joules);
      const double median = joules[joules.size() / 2];
      const std::string what = fmt::format("decode, batch {}, 512 to 1,024 context, ", n);
      out.add(what + "energy", median, "J/token",
              {bytes * 146e-12 / n, "J that reading the weights takes at 146 pJ a byte"}, flags.joules,
              (joules.back() - joules.front()) / median);
      out.add(what + "a step", steps_ms, "ms", floor, flags.joules);
      out.add(what + "the card", watts, "W", {}, flags.joules);
    }
    for (int s = 0; s < 128; ++s) bench.end(s);
  }
  if (flags.batches.empty()) {
    Bench bench(*backend, 1, 20'000);
    bench.begin(0, {.temperature = 0});
    double base = 0;
    for (const int context : {512, 3500, 16384}) {
      bench.prefill(1, std::span(tokens).first(static_cast<size_t>(context)));
      bench.decode(1, context, 20);
      const double step = bench.decode(1, context + 20, 100);
      if (base == 0) base = step;
      out.add(fmt::format("decode, batch 1, greedy, {} context, a step", context), step * 1e3, "ms", floor,
              100);
      if (context > 512) out.add(fmt::format("the same, over 512 context"), 100 * (step / base - 1), "%");
    }
    bench.end(0);
  }
  if (!flags.no_prefill && flags.batches.empty()) {
    Bench bench(*backend, 64, 2048);
    for (int s = 0; s < 64; ++s) bench.begin(s, {.temperature = 0});
    bench.prefill(8, std::span(tokens).first(2048));
    const double s = bench.prefill(64, std::span(tokens).first(2048));
    out.add("prefill, 64 x 2,048", 64 * 2048 / s, "tok/s");
    std::vector<double> first, image_first;
    for (int i = 0; i < 11; ++i) first.push_back(bench.prefill(1, std::span(tokens).first(350)));
    const auto median = [](std::vector<double> values) {
      std::ranges::sort(values);
      return values[values.size() / 2];
    };
    out.add("350-token prompt to first token, in process", median(first) * 1e3, "ms", {0, {}}, 11);
    const ImagePatches image = random_image(model->config, 42, 60, 1);
    // Each before the 280 tokens of a prompt of its own, all in one step: seconds to its end.
    const auto images_to_first_token = [&](int n) {
      const Clock::time_point start = Clock::now();
      const std::vector<TokenId> ids(280, RandomModel::kImageToken);
      std::vector<SoftTokenRun> runs;
      for (int s = 0; s < n; ++s) {
        runs.push_back({.feature = must(backend->encode_image(image)), .row = 0, .offset = 0, .count = 280});
      }
      std::vector<StepChunk> step;
      for (int s = 0; s < n; ++s) {
        step.push_back(bench.chunk(s, 0, ids, true));
        step.back().soft_tokens = {&runs[static_cast<size_t>(s)], 1};
      }
      backend->submit(step);
      must(backend->collect());
      const double seconds = seconds_since(start);
      for (const SoftTokenRun& run : runs) backend->release_feature(run.feature);
      return seconds;
    };
    std::vector<double> images_first;
    for (int i = 0; i < 11; ++i) image_first.push_back(images_to_first_token(1));
    for (int i = 0; i < 11; ++i) images_first.push_back(images_to_first_token(8) / 8);
    out.add("2,520 patches and their 280 tokens to first token", median(image_first) * 1e3, "ms", {0, {}},
            11);
    out.add("the same, 8 images at once, an image", median(images_first) * 1e3, "ms", {0, {}}, 11);
  }
  if (flags.json.empty()) return;
  const std::time_t now = std::time(nullptr);
  const boost::json::object file{
      {"what", "steps of the CUDA backend, a model of E4B's shapes with random weights"},
      {"date", fmt::format("{:%Y-%m-%d}", fmt::gmtime(now))},
      {"version", JEWEL_VERSION},
      {"machine", backend->info().name},
      {"settings",
       boost::json::object{{"weights", flags.bf16 ? "BF16" : "FP8 in the decoder's layers, BF16 elsewhere"},
                           {"head", options.head_fp8 ? "FP8" : "BF16"},
                           {"kv", flags.kv_bf16 ? "BF16" : "FP8"},
                           {"prefill_activations", flags.prefill_fp8 ? "FP8" : "BF16"},
                           {"ple", flags.ple_host ? "host" : "device"},
                           {"kernels", flags.portable ? "portable" : "sm_90a"},
                           {"sampling", "temperature 1, top_k 64, top_p 0.95, unless greedy is said"}}},
      {"figures", out.all()}};
  std::ofstream(flags.json) << pretty_json(file);
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
    else if (flag == "--no-prefill")
      flags.no_prefill = true;
    else if (flag == "--batches" && i + 1 < argc)
      for (const char* p = argv[++i]; *p != 0; p += *p == ',') {
        char* end = nullptr;
        const long n = std::strtol(p, &end, 10);
        if (end == p || n < 1 || n > 128) {
          fmt::print(stderr, "cuda_step: --batches wants numbers from 1 to 128, as in 1,32\n");
          return 2;
        }
        flags.batches.push_back(static_cast<int>(n));
        p = end;
      }
    else if (flag == "--joules" && i + 1 < argc)
      flags.joules = std::atoi(argv[++i]);
    else if (flag == "--json" && i + 1 < argc)
      flags.json = argv[++i];
    else {
      fmt::print(stderr, "cuda_step: unknown flag {}\n", flag);
      return 2;
    }
  }
  jewel::measure(flags);
}
