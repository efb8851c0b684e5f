// The vision tower and the projection into the decoder's width: patches of one image to soft tokens.
//
// Attention is over all patches of the image, in both directions, for a block of queries and one head at a
// time. In kBF16 the inputs of products with weights are rounded to bf16, and so are probabilities and V
// before their product; scores, norms, rotations and sums are float32. Not thread-safe: one image at a time.
#pragma once

#include <vector>

#include "backend/backend.h"
#include "backend/cpu/ops.h"
#include "base/result.h"

namespace jewel {

class VisionTower {
 public:
  // `config.vision` and `weights.vision` are present.
  VisionTower(const ModelConfig& config, const ModelWeights& weights, const Compute& compute);

  // [soft tokens, text hidden], row-major over the pooled grid. Error when the image is larger than the table
  // of positions.
  Result<std::vector<float>> encode(const ImagePatches& patches);
  void observe_stages(StageObserver observer) { observer_ = std::move(observer); }

 private:
  void embed_patches(const ImagePatches& patches);
  void run_layer(int layer);
  void attend(const VisionLayerWeights& w);
  void add_mlp(const VisionLayerWeights& w);
  void rotate(const Matrix& x, const std::vector<float>& cos, const std::vector<float>& sin) const;
  void clipped_linear(const Matrix& x, const ClippedLinearWeight& w, const Matrix& y);
  Matrix pool(const ImagePatches& patches);
  void observe(Stage stage, int layer, const Matrix& values) const {
    if (observer_) {
      observer_(stage, layer, values.values(), static_cast<int>(values.rows),
                static_cast<int>(values.columns));
    }
  }

  const VisionConfig& config_;
  const VisionWeights& weights_;
  const Compute& compute_;
  StageObserver observer_;

  Matrix h_;  // [patches, hidden]
  int grid_w_ = 0;
  RopeTable rope_x_, rope_y_;  // by column and by row of the grid
  ProductInput input_, v_input_;
  Buffer<float> h_buffer_, a_buffer_, q_buffer_, k_buffer_, v_buffer_, kt_buffer_, vt_buffer_, gate_buffer_,
      up_buffer_;
  Buffer<float> pooled_buffer_;
};

}  // namespace jewel
