// SwiGLU of a row, for the op and for the product that ends with it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "gemm.h"
#include "integers.h"
#include "parallel.h"
#include "simd.h"

namespace swiglu {

using namespace simd;

inline f32 sigmoid(f32 g) { return set(1.0f) / (set(1.0f) + exp(-g)); }

template <class T>
inline void forward_row(const T* gate, const T* up, T* out, int64_t features) {
  each_vector(features, [&](int64_t i, int n) {
    f32 g = get(gate + i, n), u = get(up + i, n);
    put(out + i, g * sigmoid(g) * u, n);
  });
}

// y (rows, outputs) = swiglu of a product of 2 * outputs, of which product(first, count, to, stride) writes
// columns [first, first + count). Whoever has some gates computes what they let through too. outputs is a
// multiple of `panel`, whose columns the product has side by side; `least`: panels worth a task. Tasks are few:
// each has the product pack all rows anew.
template <class T, class F>
void of_product(int64_t rows, int64_t outputs, int64_t panel, int64_t least, T* y, int threads, F&& product) {
  const int64_t panels = outputs / panel, members = parallel::members();
  const int64_t tasks = members > 1 ? members : std::clamp<int64_t>(panels / least, 2 * threads, 4 * threads);
  const int64_t width = ceil_div(panels, tasks);
  parallel::parallel_for(ceil_div(panels, width), threads, [&](int64_t task) {
    const int64_t first = task * width * panel, count = std::min(outputs - first, width * panel);
    T* both = static_cast<T*>(gemm::scratch(gemm::kGated, rows * 2 * count * sizeof(T)));
    product(first, count, both, 2 * count);
    product(outputs + first, count, both + count, 2 * count);
    for (int64_t row = 0; row < rows; ++row)
      forward_row(both + row * 2 * count, both + (2 * row + 1) * count, y + row * outputs + first, count);
  });
}

}  // namespace swiglu
