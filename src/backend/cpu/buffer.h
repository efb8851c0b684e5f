// Buffer: working memory of the forward pass. Grows, never shrinks, does not keep its contents when it grows,
// aligned to cache lines. Contents are undefined until written. Throws std::bad_alloc (the backend turns it
// into an Error).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>

namespace jewel {

template <typename T>
class Buffer {
 public:
  T* resize(int64_t count) {
    if (count > capacity_) {
      data_.reset();
      capacity_ = 0;
      data_.reset(static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T), kAlignment)));
      capacity_ = count;
    }
    return data_.get();
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(T* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t capacity_ = 0;
};

// Rows of float32 values in one block of memory.
struct Matrix {
  float* data = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;

  float* row(int64_t i) const { return data + i * columns; }
  std::span<float> values() const { return {data, static_cast<size_t>(rows * columns)}; }
};

}  // namespace jewel
