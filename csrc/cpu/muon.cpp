// Muon over a list of matrices in one call: momentum, five Newton-Schulz iterations, update.
//
// An iteration x <- (a + b s + c s^2) x, with s = x x^T, only ever multiplies x from the left by a polynomial
// of s; so all five are run on r x r matrices, and x, r rows by c >= r columns, is touched by the first product
// and the last alone. Polynomials of one symmetric matrix are symmetric and commute: half of each is computed
// and mirrored. That is 17 r^3 + 3 r^2 c flops in place of 10 r^3 + 20 r^2 c, on gemm.h. Where there are enough
// matrices each is one task on one thread (a small model's weights are too small to share out, and stay in L2);
// else they come one by one, each on all threads. The bits are the same.
//
//   m += (1 - mu) (g - m)        u = g + mu (m - g)        x = u / |u|        s = x x^T        q = 1
//   five times: t = a + b s + c s s, q = t q, s = t s t
//   p = p (1 - lr wd) - lr sqrt(max(1, rows / columns)) q x
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "gemm.h"
#include "ops.h"
#include "parallel.h"

using namespace simd;

namespace {

constexpr int kIterations = 5;
constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;

// out (m, n) = a (m, k) b (n, k)^T; of a square one, if `part` says so, the lower half.
void product(gemm::Matrix<float> a, gemm::Matrix<float> b, int64_t m, int64_t n, int64_t k, float* out,
             gemm::Part part, int threads) {
  auto* packed = (float*)gemm::scratch(gemm::kPackedB, gemm::packed_size<float>(n, k) * sizeof(float));
  gemm::pack(b, n, k, packed, threads);
  gemm::multiply<float, float>(a, packed, m, n, k, out, n, nullptr, false, threads, part);
}

// Copies what is below the diagonal of a (n, n) to above it.
void mirror(float* a, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int rows = (int)std::min<int64_t>(kLanes, n - i);
    for (int64_t j = 0; j < i; j += kLanes) {  // whole columns: j + kLanes <= i
      u32 square[kLanes] = {};
      for (int r = 0; r < rows; ++r) std::memcpy(&square[r], a + (i + r) * n + j, sizeof(u32));
      transpose(square);
      for (int c = 0; c < kLanes; ++c) std::memcpy(a + (j + c) * n + i, &square[c], rows * sizeof(float));
    }
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < r; ++c) a[(i + c) * n + i + r] = a[(i + r) * n + i + c];
  }
}

// q (r, r) such that q x has singular values between 0.7 and 1.2, from s = x x^T; s and room are overwritten,
// and what is returned is in one of the two or in scratch.
const float* orthogonalise(float* s, float* room, int64_t r, int threads) {
  auto square = [&](gemm::Slot slot) { return (float*)gemm::scratch(slot, r * r * sizeof(float)); };
  float *t = room, *q = square(gemm::kPolynomial), *next = square(gemm::kProduct);
  auto times = [&](const float* a, const float* b, float* out) {  // of polynomials of one symmetric matrix
    product({a, r, 1}, {b, r, 1}, r, r, r, out, gemm::kLower, threads);
    mirror(out, r);
  };
  for (int i = 0; i < kIterations; ++i) {
    times(s, s, t);
    each_vector(r * r, [&](int64_t j, int n) {
      store_n(t + j, set(kB) * load_n(s + j, n) + set(kC) * load_n(t + j, n), n);
    });
    for (int64_t j = 0; j < r; ++j) t[j * r + j] += kA;
    if (i + 1 < kIterations) {
      times(t, s, next);
      times(next, t, s);
    }
    if (i == 0) {
      std::swap(t, q);
    } else {
      times(t, q, next);
      std::swap(q, next);
    }
  }
  return q;
}

template <class T>
void update(float* p, const T* grad, float* momentum, T* copy, int64_t rows, int64_t columns, float lr,
            float mu, float weight_decay, float grad_scale, int threads) {
  const int64_t count = rows * columns, r = std::min(rows, columns), c = std::max(rows, columns);
  auto* u = (float*)gemm::scratch(gemm::kUpdate, 2 * count * sizeof(float));
  float* x = u + count;
  auto* s = (float*)gemm::scratch(gemm::kGram, 2 * r * r * sizeof(float));
  double squares = 0;
  each_vector(count, [&](int64_t i, int n) {
    f32 g = load_n(grad + i, n) * set(grad_scale), m = load_n(momentum + i, n);
    m = m + set(1 - mu) * (g - m);
    g = g + set(mu) * (m - g);
    store_n(momentum + i, m, n);
    store_n(u + i, g, n);
    squares += sum(g * g);
  });
  const f32 scale = set((float)(1 / (std::sqrt(squares) + 1e-7)));
  each_vector(count, [&](int64_t i, int n) { store_n(u + i, load_n(u + i, n) * scale, n); });
  const gemm::Matrix<float> across{u, columns, 1}, down{u, 1, columns};
  const auto& x0 = rows <= columns ? across : down;
  product(x0, x0, r, r, c, s, gemm::kLower, threads);
  mirror(s, r);
  const gemm::Matrix<float> factor{orthogonalise(s, s + r * r, r, threads), r, 1};
  if (rows <= columns)
    product(factor, down, rows, columns, r, x, gemm::kWhole, threads);
  else
    product(across, factor, rows, columns, r, x, gemm::kWhole, threads);
  const f32 rate = set(lr * std::sqrt(std::max(1.0f, (float)rows / columns))),
            keep = set(1 - lr * weight_decay);
  each_vector(count, [&](int64_t i, int n) {
    const f32 moved = load_n(p + i, n) * keep - rate * load_n(x + i, n);
    store_n(p + i, moved, n);
    if (copy) store_n(copy + i, moved, n);
  });
}

}  // namespace

template <class T>
void muon_step(const int64_t* params, const int64_t* grads, const int64_t* momenta, const int64_t* copies,
               const int64_t* rows, const int64_t* columns, int64_t tensors, double lr, double momentum,
               double weight_decay, double grad_scale, int threads) {
  const bool shared = tensors >= 2 * threads;
  parallel::parallel_for(tensors, shared ? threads : 1, [&](int64_t t) {
    if (rows[t] && columns[t])
      update(reinterpret_cast<float*>(params[t]), reinterpret_cast<const T*>(grads[t]),
             reinterpret_cast<float*>(momenta[t]), reinterpret_cast<T*>(copies ? copies[t] : 0), rows[t],
             columns[t], (float)lr, (float)momentum, (float)weight_decay, (float)grad_scale,
             shared ? 1 : threads);
  });
}

#define INSTANTIATE(T)                                                                                       \
  template void muon_step<T>(const int64_t*, const int64_t*, const int64_t*, const int64_t*, const int64_t*, \
                             const int64_t*, int64_t, double, double, double, double, int);
INSTANTIATE(float)
INSTANTIATE(bf16)
