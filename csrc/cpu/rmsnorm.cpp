// RMSNorm with residual add, forward and backward.
//
// Forward reads x (and residual) once and writes y (and the sum): 2-4 passes of memory for 4 flops a number,
// so the bound is bandwidth; a row stays in L1 between its two passes. Backward needs the row's
// sum(dy * w * x) before it can write dx, again two passes over a row in L1, and adds dy * x * rstd into the
// weight's gradient: each block of 64 rows into a partial of its own, partials summed in order afterwards, so
// the result does not depend on the number of threads.
//
//   r = 1 / sqrt(mean(x^2) + eps)          y = x r w
//   dx = r (dy w - x r^2 mean(dy w x)) + dsummed        dw = sum over rows of dy x r
#include <algorithm>

#include "ops.h"
#include "parallel.h"

using namespace simd;

namespace {

constexpr int64_t kBlock = 64;  // rows a task; also the unit of the weight gradient's partial sums

}  // namespace

template <class T>
void rmsnorm_forward(const T* x, const T* residual, const T* weight, T* y, T* summed, float* rstd, int64_t rows,
                     int64_t channels, float eps, int threads) {
  parallel::parallel_for((rows + kBlock - 1) / kBlock, threads, [&](int64_t block) {
    for (int64_t row = block * kBlock; row < std::min(rows, (block + 1) * kBlock); ++row) {
      const T* in = x + row * channels;
      if (residual) {
        const T* other = residual + row * channels;
        T* out = summed + row * channels;
        each_vector(channels, [&](int64_t i, int n) { put(out + i, get(in + i, n) + get(other + i, n), n); });
        in = out;  // the sum as stored: what the next layer adds to, and what backward will see
      }
      f32 squares = zero();
      each_vector(channels, [&](int64_t i, int n) {
        f32 v = get(in + i, n);
        squares = fma(v, v, squares);
      });
      float scale = 1.0f / std::sqrt(sum(squares) / channels + eps);
      rstd[row] = scale;
      T* out = y + row * channels;
      each_vector(channels,
                  [&](int64_t i, int n) { put(out + i, get(in + i, n) * set(scale) * get(weight + i, n), n); });
    }
  });
}

template <class T>
void rmsnorm_backward(const T* dy, const T* dsummed, const T* x, const T* weight, const float* rstd, T* dx,
                      T* dweight, float* partial, int64_t rows, int64_t channels, int threads) {
  int64_t blocks = (rows + kBlock - 1) / kBlock;
  parallel::parallel_for(blocks, threads, [&](int64_t block) {
    float* dw = partial + block * channels;
    std::fill(dw, dw + channels, 0.0f);
    for (int64_t row = block * kBlock; row < std::min(rows, (block + 1) * kBlock); ++row) {
      const T *in = x + row * channels, *grad = dy + row * channels;
      f32 dot = zero();
      each_vector(channels, [&](int64_t i, int n) {
        dot = fma(get(grad + i, n) * get(weight + i, n), get(in + i, n), dot);
      });
      float scale = rstd[row];
      float pull = scale * scale * (sum(dot) / channels);
      T* out = dx + row * channels;
      const T* extra = dsummed ? dsummed + row * channels : nullptr;
      each_vector(channels, [&](int64_t i, int n) {
        f32 v = get(in + i, n), g = get(grad + i, n);
        f32 d = set(scale) * (g * get(weight + i, n) - v * set(pull));
        if (extra) d += get(extra + i, n);
        put(out + i, d, n);
        put(dw + i, fma(g, v * set(scale), get(dw + i, n)), n);
      });
    }
  });
  int64_t strips = (channels + kLanes - 1) / kLanes;
  parallel::parallel_for(strips, channels * blocks < 65536 ? 1 : threads, [&](int64_t strip) {
    int64_t i = strip * kLanes;
    int n = (int)std::min<int64_t>(kLanes, channels - i);
    f32 total = zero();
    for (int64_t block = 0; block < blocks; ++block) total += get(partial + block * channels + i, n);
    put(dweight + i, total, n);
  });
}

#define INSTANTIATE(T)                                                                                    \
  template void rmsnorm_forward<T>(const T*, const T*, const T*, T*, T*, float*, int64_t, int64_t, float, \
                                   int);                                                                  \
  template void rmsnorm_backward<T>(const T*, const T*, const T*, const T*, const float*, T*, T*, float*, \
                                    int64_t, int64_t, int);
INSTANTIATE(float)
INSTANTIATE(bf16)
