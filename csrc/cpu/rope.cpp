// Rotary position embedding of queries and keys after an optional RMS norm of each head, forward and backward.
//
// The input is what one projection makes, a token's query heads, key heads and value heads side by side;
// queries, keys and values come out apart, as attention reads them, and backward joins their gradients: no
// copies before or after. A row (one head of one token) of D numbers is read, normalised, rotated and written
// while it is in L1; the table of cosines and sines is shared by all heads and layers. So the bound is one read
// and one write.
//
//   n = x r w, r = 1 / sqrt(mean(x^2) + eps)        (a, b) halves of n:  y = (a cos - b sin, b cos + a sin)
//
// Backward rotates the gradient the other way, then goes through the norm as in rmsnorm.cpp; the weights'
// gradients are summed over blocks of 16 tokens, blocks in order.
#include "rope.h"

#include <algorithm>
#include <cmath>

#include "integers.h"
#include "ops.h"
#include "parallel.h"

using namespace simd;
using namespace rope;

namespace {

constexpr int64_t kBlock = 16;  // tokens a task; also the unit of the weight gradients' partial sums

template <class T>
void backward_heads(const T* dy, const T* x, const T* weight, const float* cosine, const float* sine,
                    int64_t heads, int64_t dim, float eps, T* dx, float* dweight) {
  float g[kMostDim];
  for (int64_t h = 0; h < heads; ++h, dy += dim, dx += dim) {
    if (!weight) {
      rotate(dy, cosine, sine, -1.0f, dim / 2, dx);
      continue;
    }
    const T* row = x + h * dim;
    rotate(dy, cosine, sine, -1.0f, dim / 2, g);
    float r = norm::inverse_rms(row, dim, eps);
    f32 dot = zero();
    each_vector(dim,
                [&](int64_t i, int n) { dot = fma(get(g + i, n) * get(weight + i, n), get(row + i, n), dot); });
    float pull = r * r * (sum(dot) / dim);
    each_vector(dim, [&](int64_t i, int n) {
      f32 v = get(row + i, n), up = get(g + i, n);
      put(dx + i, set(r) * (up * get(weight + i, n) - v * set(pull)), n);
      put(dweight + i, fma(up, v * set(r), get(dweight + i, n)), n);
    });
  }
}

}  // namespace

template <class T>
int64_t rope_forward(const T* qkv, const int32_t* positions, const T* q_weight, const T* k_weight,
                     const float* table, int64_t length, T* q, T* k, T* v, int64_t tokens, int64_t heads,
                     int64_t kv_heads, int64_t dim, float eps, int threads) {
  const int64_t half = dim / 2, q_row = heads * dim, k_row = kv_heads * dim;
  if (tokens * (heads + kv_heads) * dim < 4096) threads = 1;
  parallel::parallel_shares(ceil_div(tokens, kBlock), threads, [&](int64_t block) {
    for (int64_t t = block * kBlock; t < std::min(tokens, (block + 1) * kBlock); ++t) {
      const float *cosine = table + positions[t] * half, *sine = cosine + length * half;
      const T* in = qkv + t * (q_row + 2 * k_row);
      std::copy_n(in + q_row + k_row, k_row, v + t * k_row);
      if (positions[t] < 0 || positions[t] >= length) {  // a replayed step cannot ask for a longer table
        std::fill_n(q + t * q_row, q_row, from_float<T>(NAN));
        std::fill_n(k + t * k_row, k_row, from_float<T>(NAN));
        continue;
      }
      forward_heads(in, q_weight, cosine, sine, heads, dim, eps, q + t * q_row);
      forward_heads(in + q_row, k_weight, cosine, sine, kv_heads, dim, eps, k + t * k_row);
    }
  });
  return outside(positions, tokens, length);
}

template <class T>
int64_t rope_backward(const T* dq, const T* dk, const T* dv, const int32_t* positions, const T* qkv,
                      const T* q_weight, const T* k_weight, const float* table, int64_t length, T* dqkv,
                      float* partial, T* dq_weight, T* dk_weight, int64_t tokens, int64_t heads,
                      int64_t kv_heads, int64_t dim, float eps, int threads) {
  const int64_t wrong = outside(positions, tokens, length), blocks = ceil_div(tokens, kBlock);
  const int64_t half = dim / 2, q_row = heads * dim, k_row = kv_heads * dim, row = q_row + 2 * k_row;
  if (wrong >= 0) return wrong;
  parallel::parallel_shares(blocks, threads, [&](int64_t block) {
    float *sums = partial + block * 2 * dim, *kv_sums = sums + dim;
    if (q_weight) std::fill(sums, sums + 2 * dim, 0.0f);
    for (int64_t t = block * kBlock; t < std::min(tokens, (block + 1) * kBlock); ++t) {
      const float *cosine = table + positions[t] * half, *sine = cosine + length * half;
      const T* in = qkv + t * row;
      T* out = dqkv + t * row;
      backward_heads(dq + t * q_row, in, q_weight, cosine, sine, heads, dim, eps, out, sums);
      backward_heads(dk + t * k_row, in + q_row, k_weight, cosine, sine, kv_heads, dim, eps, out + q_row,
                     kv_sums);
      std::copy_n(dv + t * k_row, k_row, out + q_row + k_row);
    }
  });
  if (q_weight)
    for (int64_t d = 0; d < 2 * dim; ++d) {
      float total = 0.0f;
      for (int64_t block = 0; block < blocks; ++block) total += partial[block * 2 * dim + d];
      (d < dim ? dq_weight[d] : dk_weight[d - dim]) = from_float<T>(total);
    }
  return -1;
}

#define INSTANTIATE(T)                                                                                      \
  template int64_t rope_forward<T>(const T*, const int32_t*, const T*, const T*, const float*, int64_t, T*, \
                                   T*, T*, int64_t, int64_t, int64_t, int64_t, float, int);                 \
  template int64_t rope_backward<T>(const T*, const T*, const T*, const int32_t*, const T*, const T*,       \
                                    const T*, const float*, int64_t, T*, float*, T*, T*, int64_t, int64_t,  \
                                    int64_t, int64_t, float, int);
INSTANTIATE(float)
INSTANTIATE(bf16)
