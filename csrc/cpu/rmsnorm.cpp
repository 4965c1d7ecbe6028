// RMSNorm with residual add, forward and backward.
//
// Forward reads x (and residual) once and writes y (and the sum): 2-4 passes of memory for 4 flops a number,
// so the bound is bandwidth; a row stays in L1 between its two passes. Backward needs the row's
// sum(dy * w * x) before it can write dx, again two passes over a row in L1, and adds dy * x * rstd into the
// weight's gradient: each block of rows into a partial of its own, partials summed in order afterwards, so
// the result does not depend on the number of threads.
//
//   r = 1 / sqrt(mean(x^2) + eps)          y = x r w
//   dx = r (dy w - x r^2 mean(dy w x)) + dsummed        dw = sum over rows of dy x r
//
// T is the type of weight and y, X that of x, S of what is normalised: the sum with a residual is always float.
#include <algorithm>

#include "integers.h"
#include "norm.h"
#include "ops.h"
#include "parallel.h"

using namespace simd;

template <class T, class X>
void rmsnorm_forward(const X* x, const float* residual, const T* weight, T* y, float* summed, float* rstd,
                     int64_t rows, int64_t channels, float eps, int threads) {
  auto normalise = [&](const auto* in, int64_t row) {
    rstd[row] = norm::normalise(in, weight, y + row * channels, channels, eps);
  };
  parallel::parallel_shares(ceil_div(rows, kNormBlock), threads, [&](int64_t block) {
    for (int64_t row = block * kNormBlock; row < std::min(rows, (block + 1) * kNormBlock); ++row) {
      const X* in = x + row * channels;
      if (!residual) {
        normalise(in, row);
        continue;
      }
      float* out = summed + row * channels;
      norm::add(in, residual + row * channels, out, channels);
      normalise(out, row);
    }
  });
}

template <class T, class S, class X>
void rmsnorm_backward(const T* dy, const float* dsummed, const S* s, const T* weight, const float* rstd, X* dx,
                      float* dresidual, T* dweight, float* partial, int64_t rows, int64_t channels,
                      int threads) {
  int64_t blocks = ceil_div(rows, kNormBlock);
  parallel::parallel_shares(blocks, threads, [&](int64_t block) {
    float* dw = partial + block * channels;
    std::fill(dw, dw + channels, 0.0f);
    for (int64_t row = block * kNormBlock; row < std::min(rows, (block + 1) * kNormBlock); ++row) {
      const S* in = s + row * channels;
      const T* grad = dy + row * channels;
      f32 dot = zero();
      each_vector(channels, [&](int64_t i, int n) {
        dot = fma(get(grad + i, n) * get(weight + i, n), get(in + i, n), dot);
      });
      float scale = rstd[row];
      float pull = scale * scale * (sum(dot) / channels);
      X* out = dx + row * channels;
      float* stream = dresidual ? dresidual + row * channels : nullptr;
      const float* extra = dsummed ? dsummed + row * channels : nullptr;
      each_vector(channels, [&](int64_t i, int n) {
        f32 v = get(in + i, n), g = get(grad + i, n);
        f32 d = set(scale) * (g * get(weight + i, n) - v * set(pull));
        if (extra) d += get(extra + i, n);
        if (stream) put(stream + i, d, n);
        put(out + i, d, n);
        put(dw + i, fma(g, v * set(scale), get(dw + i, n)), n);
      });
    }
  });
  int64_t strips = ceil_div(channels, kLanes);
  parallel::parallel_shares(strips, channels * blocks < 65536 ? 1 : threads, [&](int64_t strip) {
    int64_t i = strip * kLanes;
    int n = (int)std::min<int64_t>(kLanes, channels - i);
    f32 total = zero();
    for (int64_t block = 0; block < blocks; ++block) total += get(partial + block * channels + i, n);
    put(dweight + i, total, n);
  });
}

#define FORWARD(T, X)                                                                                          \
  template void rmsnorm_forward(const X*, const float*, const T*, T*, float*, float*, int64_t, int64_t, float, \
                                int);
#define BACKWARD(T, S, X)                                                                                  \
  template void rmsnorm_backward(const T*, const float*, const S*, const T*, const float*, X*, float*, T*, \
                                 float*, int64_t, int64_t, int);
FORWARD(float, float)
FORWARD(bf16, bf16)
FORWARD(bf16, float)
BACKWARD(float, float, float)
BACKWARD(bf16, bf16, bf16)
BACKWARD(bf16, float, bf16)
BACKWARD(bf16, float, float)
