// What every CUDA kernel here is written on: launches, packs of numbers moved in one instruction, sums over a
// block. Kernels use nothing else of CUDA, so that tests/cuda_shim can run them on a CPU, where sanitizers see
// every access; there `launch` walks over the blocks itself.
#pragma once

#include <cstdint>

#ifdef PYENGINE_HOST_SHIM
#include "host_shim.h"
#else
#include <cuda_runtime.h>

// Kernels name dynamic shared memory through this, since the host shim has to provide it.
#define SHARED_MEMORY(type, name) extern __shared__ __align__(16) type name[]

// Starts `kernel` on a stream; returns cudaError_t as an integer (0: started).
template <class... P, class... A>
int launch(void (*kernel)(P...), int64_t blocks, int threads, size_t shared_bytes, void* stream,
           A... arguments) {
  constexpr size_t kUnasked = 48 << 10;  // bytes of shared memory; more must be asked for
  if (shared_bytes > kUnasked)
    if (cudaError_t error = cudaFuncSetAttribute(
            (const void*)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes))
      return (int)error;
  // clang-format off
  if (blocks > 0)
    kernel<<<dim3((unsigned)blocks), threads, shared_bytes, (cudaStream_t)stream>>>(P(arguments)...);
  // clang-format on
  return (int)cudaGetLastError();
}
#endif

constexpr int kWarp = 32;

// One rounding each, never contracted into a fused multiply-add: for results that must match other backends'
// bits.
#ifdef PYENGINE_HOST_SHIM
inline float mul(float a, float b) { return a * b; }
inline float add(float a, float b) { return a + b; }
#else
__device__ inline float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ inline float add(float a, float b) { return __fadd_rn(a, b); }
#endif

// A bf16 number: the upper half of a float.
struct bf16 {
  uint16_t bits;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) {
  union {
    uint32_t bits;
    float value;
  } u{(uint32_t)x.bits << 16};
  return u.value;
}
template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
// Round to nearest, ties to even; a NaN stays a quiet NaN.
template <>
__device__ inline bf16 from_float<bf16>(float x) {
  union {
    float value;
    uint32_t bits;
  } u{x};
  if (x != x) return {(uint16_t)((u.bits >> 16) | 0x40)};
  return {(uint16_t)((u.bits + 0x7fff + ((u.bits >> 16) & 1)) >> 16)};
}

// N numbers read or written by one instruction; p is aligned to their size.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T value[N];
};
template <class T, int N>
__device__ inline Pack<T, N> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}
template <class T, int N>
__device__ inline void store_pack(T* p, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

// Sum over the block, the same in every thread, in a fixed order; scratch holds kWarp floats. All threads of
// the block take part, and blockDim.x is a multiple of a warp.
__device__ inline float block_sum(float value, float* scratch) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  int warps = blockDim.x / kWarp;
  __syncthreads();  // scratch may still be read from the sum before
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  float total = 0.0f;
  for (int w = 0; w < warps; ++w) total += scratch[w];
  return total;
}
