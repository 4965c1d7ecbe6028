// CUDA on the CPU, for tests: just enough of it to run the kernels of csrc/cuda where no GPU is. Test-only.
//
// Blocks run one after the other. Within a block every CUDA thread is a fibre of its own (fast, one order of
// execution; for AddressSanitizer), or, with PYENGINE_SHIM_THREADS, a real thread (slow, any order; for
// ThreadSanitizer, which then sees races). Shuffles and barriers wait for the others as on a GPU; a barrier
// that not all threads reach aborts with a message instead of hanging.
#pragma once

#include <math.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#ifdef PYENGINE_SHIM_THREADS
#include <condition_variable>
#include <mutex>
#include <thread>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define SHARED_MEMORY(type, name) type* name = reinterpret_cast<type*>(shim::block->shared.data())

struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};

namespace shim {

constexpr unsigned kWarp = 32;

struct Thread {
  Index3 thread_index;
  unsigned shuffles = 0;  // how many shuffles this thread has done
#ifndef PYENGINE_SHIM_THREADS
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
#endif
};

// Where the threads of a block (or of a warp) wait for each other.
struct Barrier {
  unsigned size = 0, arrived = 0, round = 0;
};

struct Block {
  Index3 block_index, block_dim, grid_dim;
  std::vector<char> shared;
  std::vector<Thread> threads;
  Barrier all;
  std::vector<Barrier> warps;
  std::vector<uint32_t> exchange;  // a slot a thread, for shuffles
#ifdef PYENGINE_SHIM_THREADS
  std::mutex mutex;
  std::condition_variable changed;
#else
  ucontext_t scheduler;
  unsigned current = 0;
#endif
};

inline Block* block = nullptr;

#ifdef PYENGINE_SHIM_THREADS
inline thread_local Thread* self = nullptr;
inline Thread& me() { return *self; }

inline void wait(Barrier& barrier) {
  std::unique_lock<std::mutex> lock(block->mutex);
  unsigned round = barrier.round;
  if (++barrier.arrived == barrier.size) {
    barrier.arrived = 0;
    ++barrier.round;
    block->changed.notify_all();
    return;
  }
  block->changed.wait(lock, [&] { return barrier.round != round; });
}
#else
inline Thread& me() { return block->threads[block->current]; }

inline void wait(Barrier& barrier) {
  unsigned round = barrier.round;
  if (++barrier.arrived == barrier.size) {
    barrier.arrived = 0;
    ++barrier.round;
    return;
  }
  while (barrier.round == round) swapcontext(&me().context, &block->scheduler);
}
#endif

inline Barrier& my_warp() { return block->warps[me().thread_index.x / kWarp]; }

// The value that the thread `source` (an index in the block) passes to this same shuffle.
template <class T>
T exchange(T value, unsigned source) {
  static_assert(sizeof(T) == 4, "shuffles move 32 bits");
  std::memcpy(&block->exchange[me().thread_index.x], &value, 4);
  wait(my_warp());
  T other;
  std::memcpy(&other, &block->exchange[source], 4);
  wait(my_warp());
  return other;
}

// fold(so far, the value of a lane, the lane) over the lanes of the warp, in order.
template <class T, class R, class Fold>
R over_warp(T value, R result, Fold fold) {
  static_assert(sizeof(T) == 4, "a slot has 32 bits");
  std::memcpy(&block->exchange[me().thread_index.x], &value, 4);
  wait(my_warp());
  for (unsigned lane = 0, first = me().thread_index.x / kWarp * kWarp; lane < kWarp; ++lane) {
    T other;
    std::memcpy(&other, &block->exchange[first + lane], 4);
    result = fold(result, other, lane);
  }
  wait(my_warp());
  return result;
}

inline std::function<void()>* body = nullptr;

#ifndef PYENGINE_SHIM_THREADS
inline void fibre() {
  (*body)();
  me().done = true;
  swapcontext(&me().context, &block->scheduler);
}
#endif

inline void run_block(unsigned threads) {
#ifdef PYENGINE_SHIM_THREADS
  std::vector<std::thread> running;
  for (unsigned t = 0; t < threads; ++t)
    running.emplace_back([t] {
      self = &block->threads[t];
      (*body)();
    });
  for (auto& thread : running) thread.join();
#else
  for (unsigned t = 0; t < threads; ++t) {
    Thread& thread = block->threads[t];
    constexpr size_t size = 64 << 10;
    thread.stack.reset(new char[size]);
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = size;
    thread.context.uc_link = &block->scheduler;
    makecontext(&thread.context, fibre, 0);
  }
  for (unsigned left = threads, idle = 0; left > 0;) {
    unsigned before = left;
    unsigned rounds = block->all.round;
    for (auto& warp : block->warps) rounds += warp.round;
    for (unsigned t = 0; t < threads; ++t) {
      if (block->threads[t].done) continue;
      block->current = t;
      swapcontext(&block->scheduler, &block->threads[t].context);
      left -= block->threads[t].done;
    }
    unsigned now = block->all.round;
    for (auto& warp : block->warps) now += warp.round;
    idle = left == before && now == rounds ? idle + 1 : 0;
    if (idle > 2) {
      std::fprintf(stderr, "host shim: a barrier or shuffle was not reached by all threads of block %u\n",
                   block->block_index.x);
      std::abort();
    }
  }
#endif
}

}  // namespace shim

#define threadIdx (shim::me().thread_index)
#define blockIdx (shim::block->block_index)
#define blockDim (shim::block->block_dim)
#define gridDim (shim::block->grid_dim)

inline void __syncthreads() { shim::wait(shim::block->all); }
inline void __syncwarp(unsigned = 0xffffffffu) { shim::wait(shim::my_warp()); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int offset) {
  return shim::exchange(value, threadIdx.x ^ (unsigned)offset);
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return shim::exchange(value, threadIdx.x / shim::kWarp * shim::kWarp + (unsigned)lane);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int offset) {
  bool inside = threadIdx.x % shim::kWarp >= (unsigned)offset;
  return shim::exchange(value, inside ? threadIdx.x - offset : threadIdx.x);
}
template <class T>
T __shfl_down_sync(unsigned, T value, int offset) {
  bool inside = threadIdx.x % shim::kWarp + offset < shim::kWarp;
  return shim::exchange(value, inside ? threadIdx.x + offset : threadIdx.x);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  return shim::over_warp((unsigned)(predicate != 0), 0u,
                         [](unsigned bits, unsigned bit, unsigned lane) { return bits | bit << lane; });
}
template <class T>
T __reduce_min_sync(unsigned, T value) {
  return shim::over_warp(value, value, [](T a, T b, unsigned) { return b < a ? b : a; });
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
// *address becomes what `change` makes of it, undisturbed; returns what it was.
template <class T, class Change>
T atomically(T* address, Change change) {
#ifdef PYENGINE_SHIM_THREADS
  std::lock_guard<std::mutex> lock(shim::block->mutex);
#endif
  T before = *address;
  *address = change(before);
  return before;
}
template <class T>
T atomicAdd(T* address, T value) {
  return atomically(address, [&](T before) { return T(before + value); });
}
template <class T>
T atomicExch(T* address, T value) {
  return atomically(address, [&](T) { return value; });
}
template <class T>
T atomicCAS(T* address, T expected, T value) {
  return atomically(address, [&](T before) { return before == expected ? value : before; });
}
inline void __threadfence() {}

// Runs the blocks one after the other; shared memory starts out as noise, as on a GPU.
template <class... P, class... A>
int launch(void (*kernel)(P...), int64_t blocks, int threads, size_t shared_bytes, void*, A... arguments) {
  std::function<void()> body = [&] { kernel(P(arguments)...); };
  shim::body = &body;
  for (int64_t b = 0; b < blocks; ++b) {
    shim::Block block;
    block.block_index.x = (unsigned)b;
    block.block_dim = {(unsigned)threads, 1, 1};
    block.grid_dim = {(unsigned)blocks, 1, 1};
    block.shared.assign(shared_bytes, (char)0xff);
    block.threads = std::vector<shim::Thread>(threads);
    block.all.size = threads;
    block.warps.resize((threads + shim::kWarp - 1) / shim::kWarp);
    block.exchange.resize(threads);
    for (int t = 0; t < threads; ++t) {
      block.threads[t].thread_index.x = t;
      ++block.warps[t / shim::kWarp].size;
    }
    shim::block = &block;
    shim::run_block(threads);
  }
  shim::block = nullptr;
  return 0;
}
