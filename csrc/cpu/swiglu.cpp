// SwiGLU, forward and backward: one pass each over rows of (gate, up).
//
// Reads 2 and writes 1 number for some 25 flops forward, reads 3 and writes 2 backward: near the balance of
// bandwidth and the exponential. The sigmoid is 1 / (1 + e^-g): for g -> -inf the exponential is inf and the
// sigmoid 0, and g s is -0 rather than NaN.
//
//   y = g s u          dg = dy u s (1 + g (1 - s))          du = dy g s
#include "swiglu.h"

#include <algorithm>

#include "integers.h"
#include "ops.h"
#include "parallel.h"

using namespace simd;

namespace {

constexpr int64_t kBlock = 1 << 12;  // numbers of output a task: some 2 us

// Calls body(row) for each row.
template <class F>
void each_row(int64_t rows, int64_t features, int threads, F&& body) {
  const int64_t step = std::max<int64_t>(1, kBlock / std::max<int64_t>(features, 1));
  parallel::parallel_shares(ceil_div(rows, step), threads, [&](int64_t task) {
    for (int64_t row = task * step; row < std::min(rows, (task + 1) * step); ++row) body(row);
  });
}

}  // namespace

template <class T>
void swiglu_forward(const T* gate_up, T* y, int64_t rows, int64_t features, int threads) {
  each_row(rows, features, threads, [&](int64_t row) {
    const T* gate = gate_up + row * 2 * features;
    swiglu::forward_row(gate, gate + features, y + row * features, features);
  });
}

template <class T>
void swiglu_backward(const T* dy, const T* gate_up, T* dgate_up, int64_t rows, int64_t features, int threads) {
  each_row(rows, features, threads, [&](int64_t row) {
    const T *gate = gate_up + row * 2 * features, *up = gate + features, *grad = dy + row * features;
    T *dgate = dgate_up + row * 2 * features, *dup = dgate + features;
    each_vector(features, [&](int64_t i, int n) {
      f32 g = get(gate + i, n), u = get(up + i, n), d = get(grad + i, n);
      f32 s = swiglu::sigmoid(g), gs = g * s;
      put(dgate + i, d * u * (s + gs * (set(1.0f) - s)), n);
      put(dup + i, d * gs, n);
    });
  });
}

#define INSTANTIATE(T)                                                  \
  template void swiglu_forward<T>(const T*, T*, int64_t, int64_t, int); \
  template void swiglu_backward<T>(const T*, const T*, T*, int64_t, int64_t, int);
INSTANTIATE(float)
INSTANTIATE(bf16)
