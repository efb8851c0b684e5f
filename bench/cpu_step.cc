// How fast whole steps of the CPU backend are, for a model of E4B's widths with fewer layers and random FP8
// weights. Prints prefill and decode rates of the model that ran, its weights' bytes, and the rate at which
// they were read.
//
//   cpu_step [THREADS [LAYERS [PROMPT_TOKENS]]]
// With THREADS 1 processor time is counted, so that other programs on the machine disturb less.
#include <fmt/core.h>
#include <time.h>

#include <cstdlib>

#include "driver.h"
#include "random_model.h"

namespace jewel {
namespace {

double now_seconds(bool one_thread) {
  timespec time{};
  clock_gettime(one_thread ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

size_t bytes_per_token(const ModelWeights& w) {
  size_t bytes = w.lm_head.weight.bytes + w.per_layer_model_projection.weight.bytes;
  for (const DecoderLayerWeights& layer : w.layers) {
    for (const LinearWeight* linear :
         {&layer.q_proj, &layer.k_proj, &layer.v_proj, &layer.o_proj, &layer.gate_proj, &layer.up_proj,
          &layer.down_proj, &layer.per_layer_input_gate, &layer.per_layer_projection}) {
      bytes += linear->weight.bytes;
    }
  }
  return bytes;
}

void measure(int n_threads, int n_layers, int prompt_tokens) {
  const auto model = random_model({.hidden_size = 2560,
                                   .intermediate_size = 10240,
                                   .n_layers = n_layers,
                                   .full_every = 6,
                                   .n_kv_shared_layers = n_layers * 18 / 42,
                                   .n_heads = 8,
                                   .head_dim = 256,
                                   .global_head_dim = 512,
                                   .sliding_window = 512,
                                   .vocab_size = 32768,
                                   .per_layer_input = 256,
                                   .vision = true,
                                   .vision_hidden = 768,
                                   .vision_intermediate = 3072,
                                   .vision_layers = 4,
                                   .vision_heads = 12,
                                   .weight_dtype = DType::kF8E4M3,
                                   .scale = RandomModelOptions::Scale::kTensor,
                                   .repeat_values = true});
  CpuOptions options;
  options.n_threads = n_threads;
  const int n_pages = prompt_tokens / kPageTokens + 8;
  Driver driver(*model, options, n_pages, n_pages);
  const bool one_thread = n_threads == 1;
  const auto tokens = random_tokens(model->config, prompt_tokens, 1);
  SamplingParams params;
  params.temperature = 0;
  const int sequence = driver.begin(params);
  Part part;
  part.sequence = sequence;
  part.tokens = tokens;
  part.sample = true;
  const double start = now_seconds(one_thread);
  driver.step(part);
  const double prefill = now_seconds(one_thread) - start;
  part.tokens = {};
  double decode = 1e9;
  for (int i = 0; i < 20; ++i) {
    const double begin = now_seconds(one_thread);
    driver.step(part);
    decode = std::min(decode, now_seconds(one_thread) - begin);
  }
  // An image of 280 soft tokens; E4B's tower has four times the layers.
  const ImagePatches image = random_image(model->config, 42, 60, 1);
  const double image_start = now_seconds(one_thread);
  if (!driver.backend().encode_image(image).ok()) std::abort();
  const double image_s = now_seconds(one_thread) - image_start;
  const double n = 42 * 60, hidden = 768, layers = model->config.vision->n_layers;
  const double image_gflop = 2e-9 * layers * n * (4 * hidden * hidden + 3 * hidden * 3072 + 2 * n * hidden);
  const double gb = static_cast<double>(bytes_per_token(model->weights)) * 1e-9;
  fmt::print(
      "{}: {} layers, {} tokens\n  prefill {:.1f} tok/s ({:.2f} s)\n  decode {:.2f} tok/s ({:.1f} ms), "
      "{:.2f} GB a token, {:.1f} GB/s\n",
      driver.backend().info().name, n_layers, prompt_tokens, prompt_tokens / prefill, prefill, 1 / decode,
      decode * 1e3, gb, gb / decode);
  fmt::print("  image of 2520 patches, {:.0f} vision layers: {:.2f} s, {:.1f} GFLOP/s\n", layers, image_s,
             image_gflop / image_s);
}

}  // namespace
}  // namespace jewel

int main(int argc, char** argv) {
  const int n_threads = argc > 1 ? std::atoi(argv[1]) : 0;
  const int n_layers = argc > 2 ? std::atoi(argv[2]) : 14;
  const int prompt_tokens = argc > 3 ? std::atoi(argv[3]) : 256;
  jewel::measure(n_threads, n_layers, prompt_tokens);
}
