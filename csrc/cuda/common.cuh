// What every CUDA kernel here is written on: launches, packs of numbers that one instruction moves, sums over a
// block. Kernels use nothing else of CUDA. So tests/cuda_shim can run the same source on a CPU, where
// sanitizers see every access; there `launch` itself walks over the blocks.
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

// The same as a cooperative launch: all blocks are on the card at once, so they may wait for each other.
// Returns an error where they do not fit.
template <class... P, class... A>
int launch_together(void (*kernel)(P...), int64_t blocks, int threads, size_t shared_bytes, void* stream,
                    A... arguments) {
  if (cudaError_t error = cudaFuncSetAttribute((const void*)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               (int)shared_bytes))
    return (int)error;
  cudaLaunchAttribute together{};
  together.id = cudaLaunchAttributeCooperative;
  together.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3((unsigned)blocks), config.blockDim = dim3((unsigned)threads);
  config.dynamicSmemBytes = shared_bytes, config.stream = (cudaStream_t)stream;
  config.attrs = &together, config.numAttrs = 1;
  return (int)cudaLaunchKernelEx(&config, kernel, P(arguments)...);
}

// Prefetches a line of memory into the L2 cache.
__device__ inline void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

__device__ inline uint32_t load_acquire(const uint32_t* p) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}
__device__ inline void store_release(uint32_t* p, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}
__device__ inline uint32_t add_acquire_release(uint32_t* p, uint32_t value) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(p), "r"(value) : "memory");
  return before;
}
// Waits until *p is no longer `value`. A wait of seconds can only be a mistake: it traps, rather than hang the
// card.
__device__ inline void wait_while(const uint32_t* p, uint32_t value) {
  constexpr long long kGiveUp = 1ll << 34;  // clocks
  for (long long start = clock64(); load_acquire(p) == value;)
    if (clock64() - start > kGiveUp) __trap();
}
#endif

constexpr int kWarp = 32;

// Where all blocks of a launch_together() meet. Zeros at first; after a launch it is ready for the next one.
struct GridBarrier {
  uint32_t arrived, round;
};

// A barrier of all threads of all blocks: what any of them wrote before it, all of them can read after it.
__device__ inline void wait_for_all(GridBarrier* barrier) {
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t round = load_acquire(&barrier->round);  // cannot move before this block has arrived
    if (add_acquire_release(&barrier->arrived, 1) == gridDim.x - 1) {
      barrier->arrived = 0;
      store_release(&barrier->round, round + 1);
    } else {
      wait_while(&barrier->round, round);
    }
  }
  __syncthreads();
}

// One rounding each, never contracted into a fused multiply-add: for results whose bits must be those of other
// backends.
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
