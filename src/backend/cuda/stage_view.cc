#include "backend/cuda/stage_view.h"

#include <cstring>
#include <vector>

#include "backend/cuda/device.h"
#include "model/dtype.h"

namespace jewel::cuda {
namespace {

// Column of slot s in each 16 of product order.
constexpr int kColumnOfSlot[16] = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};

size_t place(size_t i, StageForm form) {
  return form == StageForm::kBF16ProductOrder ? i / 16 * 16 + static_cast<size_t>(kColumnOfSlot[i % 16]) : i;
}

}  // namespace

Result<void> StageView::show(Stage stage, int layer, void* values, StageForm form, int rows, int columns,
                             cudaStream_t stream) const {
  if (rows == 0) return {};
  const size_t count = static_cast<size_t>(rows) * static_cast<size_t>(columns);
  const size_t bytes = count * (form == StageForm::kF32 ? sizeof(float) : sizeof(uint16_t));
  std::vector<std::byte> stored(bytes);
  JEWEL_CUDA_TRY(cudaMemcpyAsync(stored.data(), values, bytes, cudaMemcpyDeviceToHost, stream),
                 "showing a stage");
  JEWEL_CUDA_TRY(cudaStreamSynchronize(stream), "showing a stage");
  std::vector<float> shown(count);
  if (form == StageForm::kF32) {
    std::memcpy(shown.data(), stored.data(), bytes);
  } else {
    const auto* bits = reinterpret_cast<const uint16_t*>(stored.data());
    for (size_t i = 0; i < count; ++i) shown[place(i, form)] = bf16_to_f32(bits[i]);
  }
  const std::vector<float> before = shown;
  observer_(stage, layer, shown, rows, columns);
  if (std::memcmp(before.data(), shown.data(), count * sizeof(float)) == 0) return {};
  if (form == StageForm::kF32) {
    std::memcpy(stored.data(), shown.data(), bytes);
  } else {
    auto* bits = reinterpret_cast<uint16_t*>(stored.data());
    for (size_t i = 0; i < count; ++i) bits[i] = f32_to_bf16(shown[place(i, form)]);
  }
  JEWEL_CUDA_TRY(cudaMemcpyAsync(values, stored.data(), bytes, cudaMemcpyHostToDevice, stream),
                 "putting a stage back");
  JEWEL_CUDA_TRY(cudaStreamSynchronize(stream), "putting a stage back");
  return {};
}

}  // namespace jewel::cuda
