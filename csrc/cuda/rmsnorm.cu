// RMSNorm with residual add, forward and backward: the formulas of csrc/cpu/rmsnorm.cpp.
//
// One block a row, 16 bytes a thread and step where alignment allows; the second pass over the row hits L1.
// Bound by memory: 2 numbers moved a number forward (4 with residual), 3 backward. In backward a block owns 64
// rows and one row of partial sums; each column of it belongs to one thread, so no atomics, and a second small
// kernel adds the partials in order: the same bits every time.
#include "common.cuh"
#include "ops.h"

namespace {

constexpr int64_t kRows = 64;

template <class T, int N>
__global__ void rmsnorm_fwd_kernel(const T* x, const T* residual, const T* weight, T* y, T* summed, float* rstd,
                                   int64_t channels, float eps) {
  __shared__ float scratch[kWarp];
  int64_t start = (int64_t)blockIdx.x * channels;
  float squares = 0.0f;
  for (int64_t c = threadIdx.x * N; c < channels; c += blockDim.x * N) {
    Pack<T, N> s = load_pack<T, N>(x + start + c);
    if (residual) {
      Pack<T, N> r = load_pack<T, N>(residual + start + c);
      for (int i = 0; i < N; ++i) s.value[i] = from_float<T>(to_float(s.value[i]) + to_float(r.value[i]));
      store_pack<T, N>(summed + start + c, s);
    }
    for (int i = 0; i < N; ++i) squares += to_float(s.value[i]) * to_float(s.value[i]);
  }
  float scale = 1.0f / sqrtf(block_sum(squares, scratch) / channels + eps);
  if (threadIdx.x == 0) rstd[blockIdx.x] = scale;
  const T* in = residual ? summed : x;  // each thread reads back only what it wrote itself
  for (int64_t c = threadIdx.x * N; c < channels; c += blockDim.x * N) {
    Pack<T, N> s = load_pack<T, N>(in + start + c), w = load_pack<T, N>(weight + c);
    for (int i = 0; i < N; ++i) s.value[i] = from_float<T>(to_float(s.value[i]) * scale * to_float(w.value[i]));
    store_pack<T, N>(y + start + c, s);
  }
}

template <class T, int N>
__global__ void rmsnorm_bwd_kernel(const T* dy, const T* dsummed, const T* x, const T* weight,
                                   const float* rstd, T* dx, float* partial, int64_t rows, int64_t channels) {
  __shared__ float scratch[kWarp];
  float* dw = partial + (int64_t)blockIdx.x * channels;
  for (int64_t c = threadIdx.x * N; c < channels; c += blockDim.x * N)
    for (int i = 0; i < N; ++i) dw[c + i] = 0.0f;
  int64_t first = blockIdx.x * kRows, last = first + kRows < rows ? first + kRows : rows;
  for (int64_t row = first; row < last; ++row) {
    int64_t start = row * channels;
    float dot = 0.0f;
    for (int64_t c = threadIdx.x * N; c < channels; c += blockDim.x * N) {
      Pack<T, N> g = load_pack<T, N>(dy + start + c), s = load_pack<T, N>(x + start + c);
      Pack<T, N> w = load_pack<T, N>(weight + c);
      for (int i = 0; i < N; ++i) dot += to_float(g.value[i]) * to_float(w.value[i]) * to_float(s.value[i]);
    }
    float scale = rstd[row];
    float pull = scale * scale * block_sum(dot, scratch) / channels;
    for (int64_t c = threadIdx.x * N; c < channels; c += blockDim.x * N) {
      Pack<T, N> g = load_pack<T, N>(dy + start + c), s = load_pack<T, N>(x + start + c);
      Pack<T, N> w = load_pack<T, N>(weight + c), extra{}, out;
      if (dsummed) extra = load_pack<T, N>(dsummed + start + c);
      for (int i = 0; i < N; ++i) {
        float d = scale * (to_float(g.value[i]) * to_float(w.value[i]) - to_float(s.value[i]) * pull);
        if (dsummed) d += to_float(extra.value[i]);
        out.value[i] = from_float<T>(d);
        dw[c + i] += to_float(g.value[i]) * to_float(s.value[i]) * scale;
      }
      store_pack<T, N>(dx + start + c, out);
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

// Can every row be moved in packs of 16 bytes?
template <class T, class... P>
bool packs(int64_t channels, const P*... pointers) {
  return channels % (16 / sizeof(T)) == 0 && (... && ((uintptr_t)pointers % 16 == 0));
}

}  // namespace

template <class T>
int rmsnorm_forward(const T* x, const T* residual, const T* weight, T* y, T* summed, float* rstd, int64_t rows,
                    int64_t channels, float eps, void* stream) {
  constexpr int N = 16 / sizeof(T);
  if (packs<T>(channels, x, residual, weight, y, summed))
    return launch(rmsnorm_fwd_kernel<T, N>, rows, block_size(channels, N), 0, stream, x, residual, weight, y,
                  summed, rstd, channels, eps);
  return launch(rmsnorm_fwd_kernel<T, 1>, rows, block_size(channels, 1), 0, stream, x, residual, weight, y,
                summed, rstd, channels, eps);
}

template <class T>
int rmsnorm_backward(const T* dy, const T* dsummed, const T* x, const T* weight, const float* rstd, T* dx,
                     T* dweight, float* partial, int64_t rows, int64_t channels, void* stream) {
  constexpr int N = 16 / sizeof(T);
  int64_t blocks = (rows + kRows - 1) / kRows;
  int error = packs<T>(channels, dy, dsummed, x, weight, dx)
                  ? launch(rmsnorm_bwd_kernel<T, N>, blocks, block_size(channels, N), 0, stream, dy, dsummed, x,
                           weight, rstd, dx, partial, rows, channels)
                  : launch(rmsnorm_bwd_kernel<T, 1>, blocks, block_size(channels, 1), 0, stream, dy, dsummed, x,
                           weight, rstd, dx, partial, rows, channels);
  if (error) return error;
  return launch(rmsnorm_dweight_kernel<T>, (channels + 127) / 128, 128, 0, stream, partial, dweight, blocks,
                channels);
}

#define INSTANTIATE(T)                                                                                   \
  template int rmsnorm_forward<T>(const T*, const T*, const T*, T*, T*, float*, int64_t, int64_t, float, \
                                  void*);                                                                \
  template int rmsnorm_backward<T>(const T*, const T*, const T*, const T*, const float*, T*, T*, float*, \
                                   int64_t, int64_t, void*);
INSTANTIATE(float)
INSTANTIATE(bf16)
