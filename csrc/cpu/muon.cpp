// Muon over a list of matrices in one call: momentum, five Newton-Schulz iterations, update.
//
// An iteration is three products on a matrix of r rows and c >= r columns, 4 r^2 c + 2 r^3 flops; all run on
// gemm.h. Where there are enough matrices each is one task on one thread (a small model's weights are too small
// to share out, and stay in L2); else they come one by one, each on all threads. The bits are the same.
//
//   m += (1 - mu) (g - m)        u = g + mu (m - g)        x = u / |u|
//   five times: s = x x^T, x = a x + (b s + c s s) x
//   p = p (1 - lr wd) - lr sqrt(max(1, rows / columns)) x
#include <algorithm>
#include <cmath>

#include "gemm.h"
#include "ops.h"
#include "parallel.h"

using namespace simd;

namespace {

constexpr int kIterations = 5;
constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;

// out (m, n) = a (m, k) b^T, or += where `accumulate`; both row-major or transposed, as their strides say.
void product(gemm::Matrix<float> a, gemm::Matrix<float> b, int64_t m, int64_t n, int64_t k, float* out,
             bool accumulate, int threads) {
  auto* packed = (float*)gemm::scratch(gemm::kPackedB, gemm::packed_size<float>(n, k) * sizeof(float));
  gemm::pack(b, n, k, packed, threads);
  if (accumulate)
    each_vector(m * n, [&](int64_t i, int l) { store_n(out + i, load_n(out + i, l) * set(kA), l); });
  gemm::multiply<float, float>(a, packed, m, n, k, out, n, nullptr, accumulate, threads);
}

// x (r, c) becomes nearly orthogonal: its singular values come out between 0.7 and 1.2.
void orthogonalise(float* x, int64_t r, int64_t c, int threads) {
  auto* gram = (float*)gemm::scratch(gemm::kGram, r * r * sizeof(float));
  auto* square = (float*)gemm::scratch(gemm::kSquare, r * r * sizeof(float));
  for (int i = 0; i < kIterations; ++i) {
    product({x, c, 1}, {x, c, 1}, r, r, c, gram, false, threads);
    product({gram, r, 1}, {gram, 1, r}, r, r, r, square, false, threads);
    each_vector(r * r, [&](int64_t j, int n) {
      store_n(gram + j, set(kB) * load_n(gram + j, n) + set(kC) * load_n(square + j, n), n);
    });
    product({gram, r, 1}, {x, 1, c}, r, c, r, x, true, threads);  // x is packed before it is scaled
  }
}

void update(float* p, const float* grad, float* momentum, int64_t rows, int64_t columns, float lr, float mu,
            float weight_decay, float grad_scale, int threads) {
  const int64_t count = rows * columns, r = std::min(rows, columns), c = std::max(rows, columns);
  const bool tall = rows > columns;
  auto* u = (float*)gemm::scratch(gemm::kUpdate, 2 * count * sizeof(float));
  float* x = tall ? u + count : u;
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
  if (tall)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) x[j * rows + i] = u[i * columns + j];
  orthogonalise(x, r, c, threads);
  if (tall)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) u[i * columns + j] = x[j * rows + i];
  const f32 rate = set(lr * std::sqrt(std::max(1.0f, (float)rows / columns))),
            keep = set(1 - lr * weight_decay);
  each_vector(count,
              [&](int64_t i, int n) { store_n(p + i, load_n(p + i, n) * keep - rate * load_n(u + i, n), n); });
}

}  // namespace

void muon_step(const int64_t* params, const int64_t* grads, const int64_t* momenta, const int64_t* rows,
               const int64_t* columns, int64_t tensors, double lr, double momentum, double weight_decay,
               double grad_scale, int threads) {
  const bool shared = tensors >= 2 * threads;
  parallel::parallel_for(tensors, shared ? threads : 1, [&](int64_t t) {
    if (rows[t] * columns[t])
      update(reinterpret_cast<float*>(params[t]), reinterpret_cast<const float*>(grads[t]),
             reinterpret_cast<float*>(momenta[t]), rows[t], columns[t], (float)lr, (float)momentum,
             (float)weight_decay, (float)grad_scale, shared ? 1 : threads);
  });
}
