// StageView: shows what lies in device memory to a StageObserver, and puts back what the observer left.
//
// The passes ask on() first: with an observer they launch their kernels piece by piece, wait after each shown
// stage, and capture no graph. The kernels are the ones that always run; only what is fused across a stage's
// end (a residual sum and the norm behind it) is launched as two. The engine's thread.
#pragma once

#include <cuda_runtime_api.h>

#include "backend/backend.h"
#include "base/result.h"

namespace jewel::cuda {

// How a stage's values lie on the device. Product order: prefill_product.h.
enum class StageForm : uint8_t { kF32, kBF16, kBF16ProductOrder };

class StageView {
 public:
  void set(StageObserver observer) { observer_ = std::move(observer); }
  bool on() const { return static_cast<bool>(observer_); }

  // `values` are [rows, columns] without gaps. Waits for the stream.
  Result<void> show(Stage stage, int layer, void* values, StageForm form, int rows, int columns,
                    cudaStream_t stream) const;

 private:
  StageObserver observer_;
};

}  // namespace jewel::cuda
