// Rotary position embedding of one token's heads, for the op itself and for attention, which can rotate a head
// just before it reads it (rope_append).
#pragma once

#include <cstdint>

#include "norm.h"
#include "simd.h"

namespace rope {

using namespace simd;

constexpr int64_t kMostDim = 1024;  // of a head: its row is on the stack

// y = x rotated by the angles (by their negatives where `sign` is -1); x and y may be the same.
template <class From, class To>
inline void rotate(const From* x, const float* cosine, const float* sine, float sign, int64_t half, To* y) {
  each_vector(half, [&](int64_t i, int n) {
    f32 a = get(x + i, n), b = get(x + half + i, n), c = get(cosine + i, n), s = get(sine + i, n) * set(sign);
    put(y + i, a * c - b * s, n);
    put(y + half + i, b * c + a * s, n);
  });
}

// y = `heads` rows of dim numbers of one token, each normalised with `weight` (or not, where it is null), then
// rotated.
template <class T>
void forward_heads(const T* x, const T* weight, const float* cosine, const float* sine, int64_t heads,
                   int64_t dim, float eps, T* y) {
  float normed[kMostDim];
  for (int64_t h = 0; h < heads; ++h, x += dim, y += dim) {
    if (!weight) {
      rotate(x, cosine, sine, 1.0f, dim / 2, y);
      continue;
    }
    norm::normalise(x, weight, normed, dim, eps);
    rotate(normed, cosine, sine, 1.0f, dim / 2, y);
  }
}

// The first position that is negative or not in the table, or -1.
inline int64_t outside(const int32_t* positions, int64_t tokens, int64_t length) {
  for (int64_t t = 0; t < tokens; ++t)
    if (positions[t] < 0 || positions[t] >= length) return t;
  return -1;
}

// Tokens whose heads are rotated one by one, as attention comes to them: qkv (tokens, heads + 2 kv_heads, dim)
// becomes q (tokens, heads, dim) and k (tokens, kv_heads, dim); all positions are in the table.
template <class T>
struct Tokens {
  const T* qkv;
  const int32_t* positions;
  const T *q_weight, *k_weight;
  const float* table;
  int64_t length;
  float eps;
  T *q, *k;
  int64_t heads, kv_heads, dim;

  int64_t stride() const { return (heads + 2 * kv_heads) * dim; }
  const T* values() const { return qkv + (heads + kv_heads) * dim; }

  // `count` key heads of a token from `head` on, and the query heads that read them.
  void rotate_heads(int64_t token, int64_t head, int64_t count) const {
    const int64_t group = heads / kv_heads;
    const float *cosine = table + positions[token] * (dim / 2), *sine = cosine + length * (dim / 2);
    const T* in = qkv + token * stride();
    forward_heads(in + head * group * dim, q_weight, cosine, sine, count * group, dim, eps,
                  q + (token * heads + head * group) * dim);
    forward_heads(in + (heads + head) * dim, k_weight, cosine, sine, count, dim, eps,
                  k + (token * kv_heads + head) * dim);
  }
};

}  // namespace rope
