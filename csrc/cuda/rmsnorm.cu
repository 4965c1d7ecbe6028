// RMSNorm with residual add, forward and backward: the formulas of csrc/cpu/rmsnorm.cpp.
//
// One block a row, 16 bytes a thread and step where alignment allows; the second pass over the row hits L1.
// Bound by memory: 2 numbers moved a number forward (4 with residual), 3 backward. In backward a block owns 64
// rows and one row of partial sums; each column of it belongs to one thread, so no atomics, and a second small
// kernel adds the partials in order: the same bits every time.
#include "common.cuh"
#include "ops.h"

namespace {

template <class T, class X, int N>
__global__ void rmsnorm_fwd_kernel(const X* x, const float* residual, const T* weight, T* y, float* summed,
                                   float* rstd, int64_t channels, float eps) {
  __shared__ float scratch[kWarp];
  int64_t start = (int64_t)blockIdx.x * channels;
  float squares = 0.0f;
  for (int64_t c = threadIdx.x * N; c < channels; c += blockDim.x * N) {
    Pack<X, N> in = load_pack<X, N>(x + start + c);
    Pack<float, N> s;
    for (int i = 0; i < N; ++i) s.value[i] = to_float(in.value[i]);
    if (residual) {
      Pack<float, N> r = load_pack<float, N>(residual + start + c);
      for (int i = 0; i < N; ++i) s.value[i] += r.value[i];
      store_pack<float, N>(summed + start + c, s);
    }
    for (int i = 0; i < N; ++i) squares += s.value[i] * s.value[i];
  }
  float scale = 1.0f / sqrtf(block_sum(squares, scratch) / channels + eps);
  if (threadIdx.x == 0) rstd[blockIdx.x] = scale;
  for (int64_t c = threadIdx.x * N; c < channels; c += blockDim.x * N) {
    Pack<float, N> s;
    if (residual) {
      s = load_pack<float, N>(summed + start + c);  // each thread reads back only what it wrote itself
    } else {
      Pack<X, N> in = load_pack<X, N>(x + start + c);
      for (int i = 0; i < N; ++i) s.value[i] = to_float(in.value[i]);
    }
    Pack<T, N> w = load_pack<T, N>(weight + c), out;
    for (int i = 0; i < N; ++i) out.value[i] = from_float<T>(s.value[i] * scale * to_float(w.value[i]));
    store_pack<T, N>(y + start + c, out);
  }
}

template <class T, class S, class X, int N>
__global__ void rmsnorm_bwd_kernel(const T* dy, const float* dsummed, const S* s, const T* weight,
                                   const float* rstd, X* dx, float* dresidual, float* partial, int64_t rows,
                                   int64_t channels) {
  __shared__ float scratch[kWarp];
  float* dw = partial + (int64_t)blockIdx.x * channels;
  for (int64_t c = threadIdx.x * N; c < channels; c += blockDim.x * N)
    for (int i = 0; i < N; ++i) dw[c + i] = 0.0f;
  int64_t first = blockIdx.x * kNormBlock, last = first + kNormBlock < rows ? first + kNormBlock : rows;
  for (int64_t row = first; row < last; ++row) {
    int64_t start = row * channels;
    float dot = 0.0f;
    for (int64_t c = threadIdx.x * N; c < channels; c += blockDim.x * N) {
      Pack<T, N> g = load_pack<T, N>(dy + start + c), w = load_pack<T, N>(weight + c);
      Pack<S, N> v = load_pack<S, N>(s + start + c);
      for (int i = 0; i < N; ++i) dot += to_float(g.value[i]) * to_float(w.value[i]) * to_float(v.value[i]);
    }
    float scale = rstd[row];
    float pull = scale * scale * block_sum(dot, scratch) / channels;
    for (int64_t c = threadIdx.x * N; c < channels; c += blockDim.x * N) {
      Pack<T, N> g = load_pack<T, N>(dy + start + c), w = load_pack<T, N>(weight + c);
      Pack<S, N> v = load_pack<S, N>(s + start + c);
      Pack<float, N> extra{}, wide;
      Pack<X, N> out;
      if (dsummed) extra = load_pack<float, N>(dsummed + start + c);
      for (int i = 0; i < N; ++i) {
        float d = scale * (to_float(g.value[i]) * to_float(w.value[i]) - to_float(v.value[i]) * pull);
        if (dsummed) d += extra.value[i];
        wide.value[i] = d;
        out.value[i] = from_float<X>(d);
        dw[c + i] += to_float(g.value[i]) * to_float(v.value[i]) * scale;
      }
      if (dresidual) store_pack<float, N>(dresidual + start + c, wide);
      store_pack<X, N>(dx + start + c, out);
    }
  }
}

template <class T>
__global__ void rmsnorm_dweight_kernel(const float* partial, T* dweight, int64_t blocks, int64_t channels) {
  int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= channels) return;
  float total = 0.0f;
  for (int64_t b = 0; b < blocks; ++b) total += partial[b * channels + c];
  dweight[c] = from_float<T>(total);
}

// Whole warps, enough for one step over the row, at most 1,024 threads.
int block_size(int64_t channels, int numbers) {
  int64_t wanted = (channels + numbers - 1) / numbers;
  int64_t warps = (wanted + kWarp - 1) / kWarp;
  return (int)(warps < 32 ? warps : 32) * kWarp;
}

// Can every row be moved in packs of N numbers?
template <int N, class... P>
bool packs(int64_t channels, const P*... pointers) {
  return channels % N == 0 && (... && ((uintptr_t)pointers % (N * sizeof(P)) == 0));
}

}  // namespace

template <class T, class X>
int rmsnorm_forward(const X* x, const float* residual, const T* weight, T* y, float* summed, float* rstd,
                    int64_t rows, int64_t channels, float eps, void* stream) {
  constexpr int N = 4;  // 16 bytes of float, the stream; 8 of what is narrower
  if (packs<N>(channels, x, residual, weight, y, summed))
    return launch(rmsnorm_fwd_kernel<T, X, N>, rows, block_size(channels, N), 0, stream, x, residual, weight, y,
                  summed, rstd, channels, eps);
  return launch(rmsnorm_fwd_kernel<T, X, 1>, rows, block_size(channels, 1), 0, stream, x, residual, weight, y,
                summed, rstd, channels, eps);
}

template <class T, class S, class X>
int rmsnorm_backward(const T* dy, const float* dsummed, const S* s, const T* weight, const float* rstd, X* dx,
                     float* dresidual, T* dweight, float* partial, int64_t rows, int64_t channels,
                     void* stream) {
  constexpr int N = 4;
  int64_t blocks = (rows + kNormBlock - 1) / kNormBlock;
  int error = packs<N>(channels, dy, dsummed, s, weight, dx, dresidual)
                  ? launch(rmsnorm_bwd_kernel<T, S, X, N>, blocks, block_size(channels, N), 0, stream, dy,
                           dsummed, s, weight, rstd, dx, dresidual, partial, rows, channels)
                  : launch(rmsnorm_bwd_kernel<T, S, X, 1>, blocks, block_size(channels, 1), 0, stream, dy,
                           dsummed, s, weight, rstd, dx, dresidual, partial, rows, channels);
  if (error) return error;
  return launch(rmsnorm_dweight_kernel<T>, (channels + 127) / 128, 128, 0, stream, partial, dweight, blocks,
                channels);
}

#define FORWARD(T, X)                                                                                         \
  template int rmsnorm_forward(const X*, const float*, const T*, T*, float*, float*, int64_t, int64_t, float, \
                               void*);
#define BACKWARD(T, S, X)                                                                                 \
  template int rmsnorm_backward(const T*, const float*, const S*, const T*, const float*, X*, float*, T*, \
                                float*, int64_t, int64_t, void*);
FORWARD(float, float)
FORWARD(bf16, bf16)
FORWARD(bf16, float)
BACKWARD(float, float, float)
BACKWARD(bf16, bf16, bf16)
BACKWARD(bf16, float, bf16)
BACKWARD(bf16, float, float)
