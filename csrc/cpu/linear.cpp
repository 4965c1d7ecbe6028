// The linear layer: y = x W^T + bias, dx = dy W, dW = dy^T x, db = sum of dy. All three products are the one of
// gemm.h, whose operands may be transposed, so forward and backward keep its promise: every result is one chain
// over the dimension summed, in order.
#include <algorithm>

#include "gemm.h"
#include "integers.h"
#include "norm.h"
#include "ops.h"
#include "parallel.h"
#include "swiglu.h"

using namespace simd;

namespace {
constexpr int64_t kTaskNumbers = 1 << 14;  // of a gated weight, at least
}

template <class T>
void linear_pack(const T* weight, T* packed, int64_t n, int64_t k, int threads) {
  gemm::pack({weight, k, 1}, n, k, packed, threads);
}

template <class T>
void linear_forward(const T* x, const T* weight, bool is_packed, const T* bias, void* y, bool y_is_float,
                    int64_t m, int64_t n, int64_t k, int threads) {
  if (!is_packed) {
    T* packed = (T*)gemm::scratch(gemm::kPackedB, gemm::packed_size<T>(n, k) * sizeof(T));
    parallel::privately([&] { gemm::pack({weight, k, 1}, n, k, packed, threads); });
    weight = packed;
  }
  if (y_is_float)
    gemm::multiply({x, k, 1}, weight, m, n, k, (float*)y, n, bias, false, threads);
  else
    gemm::multiply({x, k, 1}, weight, m, n, k, (T*)y, n, bias, false, threads);
}

template <class T, class X>
void norm_linear(const X* x, const float* residual, const T* norm, float eps, float* summed, const T* packed,
                 const T* bias, T* y, bool gated, int64_t m, int64_t n, int64_t k, int threads) {
  const T* h = norm::normalise_privately(x, residual, norm, summed, m, k, eps, threads);
  if (!gated) return gemm::multiply({h, k, 1}, packed, m, n, k, y, n, bias, false, threads);
  const int64_t column = gemm::packed_size<T>(gemm::kPanel, k) / gemm::kPanel;
  const int64_t least = std::max<int64_t>(1, kTaskNumbers / (2 * column * gemm::kPanel));
  swiglu::of_product(m, n / 2, gemm::kPanel, least, y, threads,
                     [&](int64_t first, int64_t count, T* to, int64_t stride) {
                       gemm::multiply({h, k, 1}, packed + first * column, m, count, k, to, stride,
                                      bias ? bias + first : nullptr, false, 1);
                     });
}

template <class T>
void linear_backward(const T* dy, const T* x, const T* weight, T* dx, T* dweight, T* dbias, int64_t m,
                     int64_t n, int64_t k, int threads) {
  auto packed = [&](gemm::Matrix<T> b, int64_t rows, int64_t summed) {
    T* to = (T*)gemm::scratch(gemm::kPackedB, gemm::packed_size<T>(rows, summed) * sizeof(T));
    gemm::pack(b, rows, summed, to, threads);
    return to;
  };
  const T* none = nullptr;
  if (dx) gemm::multiply({dy, n, 1}, packed({weight, 1, k}, k, n), m, k, n, dx, k, none, false, threads);
  if (dweight) gemm::multiply({dy, 1, n}, packed({x, 1, k}, k, m), n, k, m, dweight, k, none, false, threads);
  if (dbias) {
    parallel::parallel_shares(ceil_div(n, kLanes), m * n < 1 << 16 ? 1 : threads, [&](int64_t strip) {
      int64_t i = strip * kLanes;
      int lanes = (int)std::min<int64_t>(kLanes, n - i);
      f32 total = zero();
      for (int64_t row = 0; row < m; ++row) total += load_n(dy + row * n + i, lanes);
      store_n(dbias + i, total, lanes);
    });
  }
}

#define INSTANTIATE(T)                                                                                        \
  template void linear_pack<T>(const T*, T*, int64_t, int64_t, int);                                          \
  template void linear_forward<T>(const T*, const T*, bool, const T*, void*, bool, int64_t, int64_t, int64_t, \
                                  int);                                                                       \
  template void linear_backward<T>(const T*, const T*, const T*, T*, T*, T*, int64_t, int64_t, int64_t, int);
INSTANTIATE(float)
INSTANTIATE(bf16)
#define NORMED(T, X)                                                                                       \
  template void norm_linear<T, X>(const X*, const float*, const T*, float, float*, const T*, const T*, T*, \
                                  bool, int64_t, int64_t, int64_t, int);
NORMED(float, float)
NORMED(bf16, bf16)
NORMED(bf16, float)
