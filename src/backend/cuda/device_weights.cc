#include "backend/cuda/device_weights.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <thread>

#include "backend/cuda/per_layer_table.h"
#include "backend/cuda/tiles.h"

namespace jewel::cuda {
namespace {

constexpr float kLargestF16 = 65'504;
constexpr size_t kStagingBytes = size_t{32} << 20;

// Rows of a checkpoint tensor on their way: to tiles, or, with tiles.tiles null, to `plain` as they are.
struct Move {
  const std::byte* source = nullptr;
  size_t row_bytes = 0;
  int64_t n_rows = 0;
  TileRows tiles;
  std::byte* plain = nullptr;
};

// A part of a move that fits a staging buffer.
struct Piece {
  size_t move = 0;
  int64_t first_row = 0;
  int64_t n_rows = 0;
};

std::string shape_text(const LinearWeight& linear) {
  return fmt::format("{} x {}", linear.out(), linear.in());
}

}  // namespace

DeviceLinear DeviceLinear::rows(int first, int count) const {
  JEWEL_CHECK(first % 16 == 0 && count % 16 == 0 && first + count <= n, "rows {} + {} of {}", first, count,
              n);
  DeviceLinear part = *this;
  part.n = count;
  part.tiles = static_cast<const std::byte*>(tiles) +
               static_cast<size_t>(first) * static_cast<size_t>(k) * (fp8 ? 1 : 2);
  if (row_scale) part.row_scale += first;
  if (row_clamp) part.row_clamp += first;
  return part;
}

// Two passes over the same walk: the first counts bytes, the second, with memory, lists the moves.
class DeviceWeights::Loader {
 public:
  Loader(const ModelConfig& config, const ModelWeights& weights, const LoadOptions& options,
         bool ple_on_device, std::byte* memory)
      : config_(config),
        weights_(weights),
        options_(options),
        ple_on_device_(ple_on_device),
        carver_(memory),
        placing_(memory != nullptr) {}

  Result<void> walk(DeviceWeights& out) {
    const TextConfig& text = config_.text;
    out.embed_tokens = plain<__nv_bfloat16>(weights_.embed_tokens, "embed_tokens");
    if (text.hidden_size_per_layer_input > 0) {
      if (ple_on_device_) {
        out.per_layer_table = plain<__half>(weights_.embed_tokens_per_layer, "embed_tokens_per_layer");
      }
      out.pad_per_layer = carver_.take<__nv_bfloat16>(static_cast<size_t>(per_layer_columns(text)));
      out.per_layer_model_projection = tile({{&weights_.per_layer_model_projection, RowOrder::kPlain}});
      out.per_layer_projection_norm = vector(weights_.per_layer_projection_norm);
    }
    out.layers.clear();
    for (const DecoderLayerWeights& layer : weights_.layers) out.layers.push_back(decoder_layer(layer));
    out.norm = vector(weights_.norm);
    out.lm_head = tile({{&weights_.lm_head, RowOrder::kPlain}}, options_.head_fp8);
    out.lm_head.f16_scale = f16_scale_of(weights_.norm);
    out.vision.reset();
    if (weights_.vision) out.vision = vision(*weights_.vision);
    for (const LayerType type : {LayerType::kFull, LayerType::kSliding}) {
      const auto layer = std::ranges::find(text.layers, type, &LayerConfig::type);
      if (layer == text.layers.end()) continue;
      std::vector<float> frequencies = text.rope(type).frequencies(layer->head_dim);
      while (!frequencies.empty() && frequencies.back() == 0) frequencies.pop_back();
      (type == LayerType::kFull ? out.n_rope_full : out.n_rope_sliding) =
          static_cast<int>(frequencies.size());
      (type == LayerType::kFull ? out.rope_full : out.rope_sliding) = vector(frequencies);
    }
    if (error_) return *error_;
    return {};
  }

  size_t bytes() const { return carver_.used(); }

  // Moves everything; returns when it is there.
  Result<void> run() {
    JEWEL_TRY(copy_vectors());
    std::vector<Piece> pieces;
    size_t total = 0;
    for (size_t i = 0; i < moves_.size(); ++i) {
      const auto rows = std::max<int64_t>(1, static_cast<int64_t>(kStagingBytes / moves_[i].row_bytes));
      for (int64_t first = 0; first < moves_[i].n_rows; first += rows) {
        pieces.push_back({i, first, std::min(rows, moves_[i].n_rows - first)});
      }
      total += moves_[i].row_bytes * static_cast<size_t>(moves_[i].n_rows);
    }

    std::atomic<size_t> next{0}, done{0};
    std::mutex mutex;
    std::optional<Error> failed;
    int device = 0;
    JEWEL_CUDA_TRY(cudaGetDevice(&device), "asking for the device");
    const auto work = [&] {
      cudaSetDevice(device);
      auto result = move_pieces(pieces, next, [&](size_t bytes) {
        const size_t so_far = done += bytes;
        if (options_.progress) {
          const std::scoped_lock lock(mutex);
          options_.progress(so_far, total);
        }
      });
      if (!result.ok()) {
        const std::scoped_lock lock(mutex);
        if (!failed) failed = std::move(result).error();
        next = pieces.size();
      }
    };
    std::vector<std::thread> threads;
    for (int i = 1; i < options_.n_threads; ++i) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
    if (failed) return *std::move(failed);
    return {};
  }

 private:
  struct Part {
    const LinearWeight* linear;
    RowOrder order;
  };

  void fail(Error error) {
    if (!error_) error_ = std::move(error);
  }

  template <typename T>
  T* plain(const TensorView& view, std::string_view name) {
    if (view.dtype != DType::kBF16) {
      fail(unsupported(fmt::format("{}: found {}, the CUDA backend expects BF16; use --device cpu", name,
                                   dtype_name(view.dtype))));
      return nullptr;
    }
    T* at = carver_.take<T>(view.bytes / sizeof(T));
    if (placing_) {
      moves_.push_back({.source = view.data,
                        .row_bytes = view.bytes / static_cast<size_t>(view.shape[0]),
                        .n_rows = view.shape[0],
                        .tiles = {},
                        .plain = reinterpret_cast<std::byte*>(at)});
    }
    return at;
  }

  // One matrix of tiles from the rows of its parts.
  DeviceLinear tile(std::vector<Part> parts, bool to_fp8 = false) {
    std::erase_if(parts, [](const Part& part) { return !part.linear->present(); });
    DeviceLinear out;
    if (parts.empty()) return out;
    const LinearWeight& first = *parts.front().linear;
    const bool fp8_source = first.weight.dtype == DType::kF8E4M3;
    bool scaled = to_fp8;
    int64_t n = 0;
    for (const Part& part : parts) {
      const LinearWeight& linear = *part.linear;
      if (linear.weight.dtype != first.weight.dtype ||
          (linear.weight.dtype != DType::kBF16 && linear.weight.dtype != DType::kF8E4M3)) {
        fail(unsupported(
            fmt::format("weights of {}: found {}, the CUDA backend expects BF16 or F8_E4M3, one for all of "
                        "q, k, v and of gate, up; use --device cpu",
                        shape_text(linear), dtype_name(linear.weight.dtype))));
        return out;
      }
      if (linear.in() != first.in() || linear.in() % 64 != 0 || linear.out() % 16 != 0) {
        fail(unsupported(
            fmt::format("weights of {}: the CUDA backend expects columns in multiples of 64 and rows in "
                        "multiples of 16; use --device cpu",
                        shape_text(linear))));
        return out;
      }
      scaled = scaled || !linear.scale.empty();
      n += linear.out();
    }
    out.n = static_cast<int>(n);
    out.k = static_cast<int>(first.in());
    out.fp8 = fp8_source || to_fp8;
    auto* tiles = carver_.take<std::byte>(out.bytes());
    float* scales = scaled ? carver_.take<float>(static_cast<size_t>(n)) : nullptr;
    out.tiles = tiles;
    out.row_scale = scales;
    std::vector<float> host_scales(static_cast<size_t>(n), 1.0f);
    int64_t base = 0;
    for (const Part& part : parts) {
      const LinearWeight& linear = *part.linear;
      if (placing_) {
        moves_.push_back({.source = linear.weight.data,
                          .row_bytes = linear.weight.bytes / static_cast<size_t>(linear.out()),
                          .n_rows = linear.out(),
                          .tiles = {.k = out.k,
                                    .fp8 = fp8_source,
                                    .order = part.order,
                                    .base = base,
                                    .tiles = tiles,
                                    .to_fp8 = to_fp8 && !fp8_source,
                                    .row_scale = scales},
                          .plain = nullptr});
      }
      for (int64_t r = 0; r < linear.out() && !linear.scale.empty(); ++r) {
        host_scales[static_cast<size_t>(tile_row(part.order, base, r))] =
            linear.scale[linear.scale.size() == 1 ? 0 : static_cast<size_t>(r)];
      }
      base += linear.out();
    }
    if (placing_ && scales && !(to_fp8 && !fp8_source)) vectors_.push_back({scales, std::move(host_scales)});
    return out;
  }

  static int64_t tile_row(RowOrder order, int64_t base, int64_t row) {
    return order == RowOrder::kPlain ? base + row : row / 8 * 16 + row % 8 + (order == RowOrder::kUp ? 8 : 0);
  }

  const float* vector(const std::vector<float>& values) {
    if (values.empty()) return nullptr;
    float* at = carver_.take<float>(values.size());
    if (placing_) vectors_.push_back({at, values});
    return at;
  }

  // 1 where FP16 has room for every RMS(x) * norm: |RMS(x)| <= sqrt(its length).
  static float f16_scale_of(const std::vector<float>& norm) {
    const float most = kLargestF16 / std::sqrt(static_cast<float>(norm.size()));
    return std::ranges::all_of(norm, [&](float w) { return std::abs(w) <= most; }) ? 1.0f : 0.0f;
  }

  DeviceLayer decoder_layer(const DecoderLayerWeights& w) {
    DeviceLayer out;
    out.qkv =
        tile({{&w.q_proj, RowOrder::kPlain}, {&w.k_proj, RowOrder::kPlain}, {&w.v_proj, RowOrder::kPlain}});
    out.o = tile({{&w.o_proj, RowOrder::kPlain}});
    out.gate_up = tile({{&w.gate_proj, RowOrder::kGate}, {&w.up_proj, RowOrder::kUp}});
    out.down = tile({{&w.down_proj, RowOrder::kPlain}});
    out.qkv.f16_scale = f16_scale_of(w.input_layernorm);
    out.o.f16_scale = 1;  // means of V, whose heads have an RMS of 1
    out.gate_up.f16_scale = f16_scale_of(w.pre_feedforward_layernorm);
    out.ple_gate = tile({{&w.per_layer_input_gate, RowOrder::kPlain}});
    out.ple_up = tile({{&w.per_layer_projection, RowOrder::kPlain}});
    out.input_norm = vector(w.input_layernorm);
    out.post_attention_norm = vector(w.post_attention_layernorm);
    out.pre_feedforward_norm = vector(w.pre_feedforward_layernorm);
    out.post_feedforward_norm = vector(w.post_feedforward_layernorm);
    out.post_ple_norm = vector(w.post_per_layer_input_norm);
    out.q_norm = vector(w.q_norm);
    out.k_norm = vector(w.k_norm);
    out.layer_scalar = w.layer_scalar;
    out.k_scale = w.k_scale;
    out.v_scale = w.v_scale;
    return out;
  }

  struct ClippedPart {
    const ClippedLinearWeight* linear;
    RowOrder order;
  };

  // Inputs of fused parts must be clipped alike: they are one input.
  DeviceLinear clipped(const std::vector<ClippedPart>& parts, DeviceBounds& input) {
    std::vector<Part> plain_parts;
    for (const ClippedPart& part : parts) {
      plain_parts.push_back({&part.linear->linear, part.order});
      if (part.linear->input_min != parts.front().linear->input_min ||
          part.linear->input_max != parts.front().linear->input_max) {
        fail(unsupported(
            "vision tower: linears that share an input are clipped differently, which the CUDA backend does "
            "not do; use --device cpu"));
      }
    }
    input = {parts.front().linear->input_min, parts.front().linear->input_max};
    DeviceLinear out = tile(plain_parts);
    float* clamps = carver_.take<float>(static_cast<size_t>(out.n) * 2);
    out.row_clamp = reinterpret_cast<const float2*>(clamps);
    if (!placing_) return out;
    std::vector<float> values(static_cast<size_t>(out.n) * 2);
    int64_t base = 0;
    for (const ClippedPart& part : parts) {
      for (int64_t r = 0; r < part.linear->linear.out(); ++r) {
        const int64_t at = tile_row(part.order, base, r);
        values[static_cast<size_t>(at) * 2] = part.linear->output_min;
        values[static_cast<size_t>(at) * 2 + 1] = part.linear->output_max;
      }
      base += part.linear->linear.out();
    }
    vectors_.push_back({clamps, std::move(values)});
    return out;
  }

  DeviceVision vision(const VisionWeights& w) {
    DeviceVision out;
    out.patch_projection = tile({{&w.patch_embedder_input_proj, RowOrder::kPlain}});
    out.positions = plain<__nv_bfloat16>(w.position_embedding_table, "position_embedding_table");
    for (const VisionLayerWeights& layer : w.layers) {
      DeviceVisionLayer l;
      l.qkv = clipped({{&layer.q_proj, RowOrder::kPlain},
                       {&layer.k_proj, RowOrder::kPlain},
                       {&layer.v_proj, RowOrder::kPlain}},
                      l.qkv_input);
      l.o = clipped({{&layer.o_proj, RowOrder::kPlain}}, l.o_input);
      l.gate_up =
          clipped({{&layer.gate_proj, RowOrder::kGate}, {&layer.up_proj, RowOrder::kUp}}, l.gate_up_input);
      l.down = clipped({{&layer.down_proj, RowOrder::kPlain}}, l.down_input);
      l.input_norm = vector(layer.input_layernorm);
      l.post_attention_norm = vector(layer.post_attention_layernorm);
      l.pre_feedforward_norm = vector(layer.pre_feedforward_layernorm);
      l.post_feedforward_norm = vector(layer.post_feedforward_layernorm);
      l.q_norm = vector(layer.q_norm);
      l.k_norm = vector(layer.k_norm);
      out.layers.push_back(l);
    }
    out.embedding_projection = tile({{&w.embedding_projection, RowOrder::kPlain}});
    return out;
  }

  Result<void> copy_vectors() {
    for (const auto& [at, values] : vectors_) {
      JEWEL_CUDA_TRY(cudaMemcpy(at, values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice),
                     "copying norms and scales");
    }
    return {};
  }

  template <typename Moved>
  Result<void> move_pieces(const std::vector<Piece>& pieces, std::atomic<size_t>& next, Moved moved) {
    size_t largest = 0;
    for (const Piece& piece : pieces) {
      largest = std::max(largest, moves_[piece.move].row_bytes * static_cast<size_t>(piece.n_rows));
    }
    JEWEL_ASSIGN(const PinnedBuffer host, PinnedBuffer::make(largest));
    JEWEL_ASSIGN(const DeviceBuffer staging, DeviceBuffer::make(largest, "loading"));
    JEWEL_ASSIGN(const Stream stream, Stream::make());
    for (size_t i = next++; i < pieces.size(); i = next++) {
      const Move& move = moves_[pieces[i].move];
      const size_t bytes = move.row_bytes * static_cast<size_t>(pieces[i].n_rows);
      const size_t offset = move.row_bytes * static_cast<size_t>(pieces[i].first_row);
      JEWEL_CUDA_TRY(cudaStreamSynchronize(stream.get()), "loading weights");
      std::memcpy(host.data(), move.source + offset, bytes);
      std::byte* to = move.plain ? move.plain + offset : staging.data();
      JEWEL_CUDA_TRY(cudaMemcpyAsync(to, host.data(), bytes, cudaMemcpyHostToDevice, stream.get()),
                     "loading weights");
      if (!move.plain) {
        TileRows tiles = move.tiles;
        tiles.rows = staging.data();
        tiles.first_row = pieces[i].first_row;
        tiles.n = static_cast<int>(pieces[i].n_rows);
        JEWEL_CUDA_TRY(launch_tile_rows(tiles, stream.get()), "laying weights out");
      }
      moved(bytes);
    }
    JEWEL_CUDA_TRY(cudaStreamSynchronize(stream.get()), "loading weights");
    return {};
  }

  const ModelConfig& config_;
  const ModelWeights& weights_;
  const LoadOptions& options_;
  const bool ple_on_device_;
  Carver carver_;
  const bool placing_;
  std::optional<Error> error_;
  std::vector<Move> moves_;
  std::vector<std::pair<float*, std::vector<float>>> vectors_;
};

Result<std::unique_ptr<DeviceWeights>> DeviceWeights::load(const ModelConfig& config,
                                                           const ModelWeights& weights,
                                                           const LoadOptions& options) {
  std::unique_ptr<DeviceWeights> out(new DeviceWeights());
  const bool has_ple = config.text.hidden_size_per_layer_input > 0;
  const size_t ple_bytes = has_ple ? weights.embed_tokens_per_layer.bytes : 0;

  Loader with_table(config, weights, options, true, nullptr);
  JEWEL_TRY(with_table.walk(*out));
  bool on_device = options.ple != PlePlace::kHost;
  if (options.ple == PlePlace::kAuto) {
    size_t free = 0, total = 0;
    JEWEL_CUDA_TRY(cudaMemGetInfo(&free, &total), "reading the device's memory");
    on_device = with_table.bytes() + options.wanted_free_bytes <= free;
  }
  out->ple_on_device = on_device || !has_ple;
  const size_t bytes = with_table.bytes() - (out->ple_on_device ? 0 : ple_bytes);
  JEWEL_ASSIGN(out->memory_, DeviceBuffer::make(bytes + 256, "weights"));
  Loader loader(config, weights, options, out->ple_on_device, out->memory_.data());
  JEWEL_TRY(loader.walk(*out));

  JEWEL_TRY(loader.run());
  JEWEL_TRY(out->scale_down_inputs(config.text.hidden_size));
  if (!out->ple_on_device) {
    JEWEL_TRY(out->put_ple_on_host(weights.embed_tokens_per_layer, options.n_threads));
  }
  if (has_ple) {
    const int64_t columns = per_layer_columns(config.text);
    JEWEL_CUDA_TRY(cudaMemcpy(out->pad_per_layer, out->per_layer_table + columns * config.text.pad_token_id,
                              sizeof(__nv_bfloat16) * static_cast<size_t>(columns), cudaMemcpyDefault),
                   "the per-layer table");
    JEWEL_TRY(make_per_layer_table(config.text, options.portable, *out));
  }
  return out;
}

// A bound for gelu(g) * u, g = sum of W_gate w RMS(x) over the columns and u likewise: |RMS(x)| <=
// sqrt(hidden), so |g| <= sqrt(hidden) |W_gate w|, and gelu adds nothing.
Result<void> DeviceWeights::scale_down_inputs(int hidden_size) {
  constexpr float kMostScale = 4096;     // beyond, what is small would lose more than BF16 does
  constexpr float kRoundingOfX = 1.02f;  // the products' inputs are rounded, which may enlarge them
  size_t most_rows = 0;
  for (const DeviceLayer& layer : layers)
    most_rows = std::max(most_rows, static_cast<size_t>(layer.gate_up.n));
  JEWEL_ASSIGN(const DeviceBuffer buffer, DeviceBuffer::make(most_rows * sizeof(float), "norms of rows"));
  auto* device_squares = reinterpret_cast<float*>(buffer.data());
  std::vector<float> squares;
  for (DeviceLayer& layer : layers) {
    const DeviceLinear& w = layer.gate_up;
    if (!w.fp8 || !layer.down.fp8) continue;
    JEWEL_CUDA_TRY(launch_row_squares({.tiles = w.tiles,
                                       .row_scale = w.row_scale,
                                       .column_weight = layer.pre_feedforward_norm,
                                       .n = w.n,
                                       .k = w.k,
                                       .squares = device_squares},
                                      nullptr),
                   "norms of rows");
    squares.resize(static_cast<size_t>(w.n));
    JEWEL_CUDA_TRY(
        cudaMemcpy(squares.data(), device_squares, squares.size() * sizeof(float), cudaMemcpyDeviceToHost),
        "norms of rows");
    bool known = true;
    float most = 0;
    for (size_t tile = 0; tile < squares.size(); tile += 16) {
      for (size_t i = tile; i < tile + 8; ++i) {  // of gate, and the same of up
        const float both = squares[i] * squares[i + 8];
        known = known && std::isfinite(both);
        most = std::max(most, both);
      }
    }
    const float bound = static_cast<float>(hidden_size) * std::sqrt(most) * kRoundingOfX * kRoundingOfX;
    float scale = 1;
    while (scale <= kMostScale && bound > kLargestF16 * scale) scale *= 2;
    layer.down.f16_scale = known && scale <= kMostScale ? scale : 0;
  }
  return {};
}

// Huge pages: locking millions of small ones takes seconds.
Result<void> DeviceWeights::put_ple_on_host(const TensorView& table, int n_threads) {
  if (table.dtype != DType::kBF16)
    return unsupported("embed_tokens_per_layer: the CUDA backend expects BF16");
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t bytes = (table.bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return unavailable(
        fmt::format("the per-layer embedding table needs {:.2f} GB of host memory; use --ple device",
                    static_cast<double>(bytes) / 1e9));
  }
  host_table_ = memory;
  host_table_bytes_ = bytes;
  ::madvise(memory, bytes, MADV_HUGEPAGE);
  std::vector<std::thread> threads;
  const size_t part = (table.bytes / static_cast<size_t>(n_threads) + kHugePage) / kHugePage * kHugePage;
  for (size_t begin = 0; begin < table.bytes; begin += part) {
    threads.emplace_back([=, &table] {
      std::memcpy(static_cast<std::byte*>(memory) + begin, table.data + begin,
                  std::min(part, table.bytes - begin));
    });
  }
  for (std::thread& thread : threads) thread.join();
  JEWEL_CUDA_TRY(cudaHostRegister(memory, bytes, cudaHostRegisterMapped),
                 "locking the per-layer embedding table in host memory");
  void* device = nullptr;
  JEWEL_CUDA_TRY(cudaHostGetDevicePointer(&device, memory, 0), "mapping the per-layer embedding table");
  per_layer_table = static_cast<__half*>(device);
  return {};
}

DeviceWeights::~DeviceWeights() {
  if (!host_table_) return;
  cudaHostUnregister(host_table_);
  ::munmap(host_table_, host_table_bytes_);
}

}  // namespace jewel::cuda
