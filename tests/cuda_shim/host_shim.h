// CUDA on the CPU, for tests: just enough of it to run the kernels of csrc/cuda where no GPU is. Test-only.
//
// Blocks run one after the other, or all at once where they may wait for each other (launch_together; their
// kernels have dynamic shared memory only, since what is __shared__ by itself is one place for all). Within a
// block every CUDA thread is a fibre of its own (fast, one order of execution; for AddressSanitizer), or, with
// PYENGINE_SHIM_THREADS, a real thread (slow, any order; for ThreadSanitizer, which then sees races). Shuffles
// and barriers wait for the others as on a GPU; a barrier that not all threads reach aborts with a message
// instead of hanging. What a warp does together (shuffles, loads of matrices, products) hands each thread's
// part to the others and takes from theirs what the instruction is documented to give this thread, so that the
// layout of fragments is the card's.
#pragma once

#include <math.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
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
#define __grid_constant__
#define __shared__ static
#define SHARED_MEMORY(type, name) type* name = reinterpret_cast<type*>(shim::block->shared.data())

struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};

namespace shim {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 64 << 10;  // bytes a fibre

// What a thread hands to the others of its warp at once.
struct Part {
  alignas(8) char bytes[24];
};

// A copy that a thread has started and not waited for.
struct Copy {
  void* to;
  const void* from;
  size_t bytes, inside;  // zeros from `inside` on
};

// What a thread has asked of its warpgroup's tensor cores and not waited for (wgmma), see hopper_shim.h.
struct Sums {
  float* place;               // the thread's registers, which hold NaN meanwhile
  std::vector<float> values;  // what they will hold
  unsigned batch;
};
struct Factor {
  std::function<uint64_t()> read;  // what it is now, as one number
  uint64_t was;
  unsigned batch;
};

struct PanelCopy;  // see hopper_shim.h
void check_end();

struct Thread {
  Index3 thread_index;
  unsigned exchanges = 0;  // how many this thread has taken part in
  Part parts[2];           // of this exchange and the one before, which slower threads may still read
  std::vector<Copy> copies;
  std::vector<Sums> sums;
  std::vector<Factor> factors;
  unsigned batch = 0;             // of products, that the next belong to
  bool begun = false;             // begin_products was called for it
  std::vector<PanelCopy> stores;  // copies to memory under way
  unsigned store_batch = 0;       // that the next belong to
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
  Barrier named[16];
  std::vector<PanelCopy> panels;  // copies under way
  unsigned progress = 0;          // grows whenever somebody may go on
#ifdef PYENGINE_SHIM_THREADS
  std::mutex mutex;
  std::condition_variable changed;
#else
  ucontext_t scheduler;
  unsigned current = 0;
#endif
};

#ifdef PYENGINE_SHIM_THREADS
inline thread_local Block* block = nullptr;
inline std::mutex atomics;
#else
inline Block* block = nullptr;
#endif

#ifdef PYENGINE_SHIM_THREADS
inline thread_local Thread* self = nullptr;
inline Thread& me() { return *self; }

// `change` undisturbed by others, true where these may go on; then waits for `ready`, which they may bring
// about.
template <class Change, class Ready>
void change_and_wait(Change change, Ready ready) {
  std::unique_lock<std::mutex> lock(block->mutex);
  if (change()) block->changed.notify_all();
  block->changed.wait(lock, ready);
}
inline void wake_others() { block->changed.notify_all(); }
inline void let_others_run() { std::this_thread::yield(); }
#else
inline Thread& me() { return block->threads[block->current]; }

template <class Change, class Ready>
void change_and_wait(Change change, Ready ready) {
  change();
  while (!ready()) swapcontext(&me().context, &block->scheduler);
}
inline void wake_others() {}
inline void let_others_run() { swapcontext(&me().context, &block->scheduler); }
#endif

inline bool at_once() { return true; }  // what a thread is ready for that waits for nobody

// One more has come; whether it was the last.
inline bool join(Barrier& barrier) {
  ++block->progress;
  if (++barrier.arrived < barrier.size) return false;
  barrier.arrived = 0;
  ++barrier.round;
  return true;
}
inline void wait(Barrier& barrier) {
  unsigned round = 0;
  change_and_wait([&] { return round = barrier.round, join(barrier); }, [&] { return barrier.round != round; });
}

inline Barrier& my_warp() { return block->warps[me().thread_index.x / kWarp]; }

// What each thread of this one's warp passed to this same call, by lane, until the call after the next.
template <class T>
struct Warp {
  unsigned first, which;
  const T& operator[](unsigned lane) const {
    return *reinterpret_cast<const T*>(block->threads[first + lane].parts[which].bytes);
  }
};
template <class T>
Warp<T> exchange(const T& mine) {
  static_assert(sizeof(T) <= sizeof(Part) && std::is_trivially_copyable<T>::value, "a part holds 24 bytes");
  unsigned which = me().exchanges++ % 2;
  std::memcpy(me().parts[which].bytes, &mine, sizeof(T));
  wait(my_warp());
  return {me().thread_index.x / kWarp * kWarp, which};
}

inline std::function<void()>* body = nullptr;

#ifndef PYENGINE_SHIM_THREADS
inline void fibre() {
  (*body)();
  check_end();
  me().done = true;
  swapcontext(&me().context, &block->scheduler);
}
#endif

// Runs blocks of `threads` threads each, all at once.
inline void run(std::vector<Block>& blocks, unsigned threads) {
#ifdef PYENGINE_SHIM_THREADS
  std::vector<std::thread> running;
  for (Block& one : blocks)
    for (unsigned t = 0; t < threads; ++t)
      running.emplace_back([&one, t] {
        block = &one;
        self = &one.threads[t];
        (*body)();
        check_end();
      });
  for (auto& thread : running) thread.join();
#else
  for (Block& one : blocks)
    for (Thread& thread : one.threads) {
      thread.stack.reset(new char[kStack]);
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.get();
      thread.context.uc_stack.ss_size = kStack;
      thread.context.uc_link = &one.scheduler;
      makecontext(&thread.context, fibre, 0);
    }
  // Each block goes as far as it can before the next one's turn: none finds by luck what another has just
  // written.
  for (size_t left = blocks.size() * threads, idle = 0; left > 0;) {
    ++idle;
    for (Block& one : blocks)
      for (bool moved = true; moved; idle = moved ? 0 : idle) {
        size_t before = left;
        unsigned progress = one.progress;
        block = &one;
        for (unsigned t = 0; t < threads; ++t) {
          if (one.threads[t].done) continue;
          one.current = t;
          swapcontext(&one.scheduler, &one.threads[t].context);
          left -= one.threads[t].done;
        }
        moved = left != before || one.progress != progress;
      }
    if (idle > 2) {
      std::fprintf(stderr, "host shim: a barrier or shuffle was not reached by all that block %u waits for\n",
                   blocks[0].block_index.x);
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
T __shfl_sync(unsigned, T value, int lane) {
  return shim::exchange(value)[(unsigned)lane];
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int offset) {
  return shim::exchange(value)[threadIdx.x % shim::kWarp ^ (unsigned)offset];
}
template <class T>
T __shfl_up_sync(unsigned, T value, int offset) {
  unsigned lane = threadIdx.x % shim::kWarp;
  return shim::exchange(value)[lane >= (unsigned)offset ? lane - offset : lane];
}
template <class T>
T __shfl_down_sync(unsigned, T value, int offset) {
  unsigned lane = threadIdx.x % shim::kWarp;
  return shim::exchange(value)[lane + offset < shim::kWarp ? lane + offset : lane];
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  auto all = shim::exchange(predicate);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < shim::kWarp; ++lane) bits |= (unsigned)(all[lane] != 0) << lane;
  return bits;
}
template <class T>
T __reduce_min_sync(unsigned, T value) {
  auto all = shim::exchange(value);
  for (unsigned lane = 0; lane < shim::kWarp; ++lane) value = all[lane] < value ? all[lane] : value;
  return value;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
// *address becomes what `change` makes of it, undisturbed; returns what it was.
template <class T, class Change>
T atomically(T* address, Change change) {
#ifdef PYENGINE_SHIM_THREADS
  std::lock_guard<std::mutex> lock(shim::atomics);
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
T atomicOr(T* address, T value) {
  return atomically(address, [&](T before) { return T(before | value); });
}
template <class T>
T atomicAnd(T* address, T value) {
  return atomically(address, [&](T before) { return T(before & value); });
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

namespace shim {

// cp.async: the copy may happen at any time until it is waited for. So the place is spoilt now, under whoever
// still reads what was there, and filled only then, too late for whoever reads early.
inline void copy_async(void* to, const void* from, size_t bytes, bool inside) {
  std::memset(to, 0xff, bytes);
  me().copies.push_back({to, from, bytes, inside ? bytes : 0});
}
inline void wait_for_copies() {
  for (const Copy& copy : me().copies) {
    if (copy.inside) std::memcpy(copy.to, copy.from, copy.inside);
    std::memset((char*)copy.to + copy.inside, 0, copy.bytes - copy.inside);
  }
  me().copies.clear();
}

// ldmatrix .x4: lane l names row l % 8 of matrix l / 8, eight 16-bit numbers, and gets of each matrix two.
inline void load_matrices(uint32_t (&out)[4], const void* row, bool transposed) {
  auto rows = exchange(row);
  unsigned lane = me().thread_index.x % kWarp;
  for (unsigned m = 0; m < 4; ++m) {
    uint16_t two[2];
    for (unsigned i = 0; i < 2; ++i) {
      unsigned r = transposed ? 2 * (lane % 4) + i : lane / 4, c = transposed ? lane / 4 : 2 * (lane % 4) + i;
      two[i] = static_cast<const uint16_t*>(rows[8 * m + r])[c];
    }
    std::memcpy(&out[m], two, 4);
  }
}

// mma.sync m16n8k16 of bf16 onto float32: d += a b, the fragments as PTX documents them.
inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Given {
    uint32_t a[4], b[2];
  };
  auto all = exchange(Given{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  unsigned lane = me().thread_index.x % kWarp;
  auto number = [](const uint32_t& word, unsigned which) {
    uint32_t bits = (word >> 16 * which & 0xffff) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  };
  for (unsigned i = 0; i < 4; ++i) {
    unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (unsigned k = 0; k < 16; ++k) {
      const Given& left = all[row % 8 * 4 + k % 8 / 2];
      const Given& right = all[column * 4 + k % 8 / 2];
      d[i] += number(left.a[row / 8 + k / 8 * 2], k % 2) * number(right.b[k / 8], k % 2);
    }
  }
}

}  // namespace shim

#include "hopper_shim.h"

inline void prefetch(const void*) {}
inline uint32_t load_acquire(const uint32_t* p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
inline void store_release(uint32_t* p, uint32_t value) { __atomic_store_n(p, value, __ATOMIC_RELEASE); }
inline uint32_t add_acquire_release(uint32_t* p, uint32_t value) {
  return __atomic_fetch_add(p, value, __ATOMIC_ACQ_REL);
}
inline void wait_while(const uint32_t* p, uint32_t value) {
  while (load_acquire(p) == value) shim::let_others_run();
}

// Runs blocks first to first + count at once; shared memory starts out as noise, as on a GPU.
template <class... P, class... A>
void run_blocks(void (*kernel)(P...), int64_t first, int64_t count, int64_t blocks, int threads,
                size_t shared_bytes, A... arguments) {
  std::function<void()> body = [&] { kernel(P(arguments)...); };
  shim::body = &body;
  std::vector<shim::Block> running(count);
  for (int64_t b = 0; b < count; ++b) {
    shim::Block& block = running[b];
    block.block_index.x = (unsigned)(first + b);
    block.block_dim = {(unsigned)threads, 1, 1};
    block.grid_dim = {(unsigned)blocks, 1, 1};
    block.shared.assign(shared_bytes, (char)0xff);
    block.threads = std::vector<shim::Thread>(threads);
    block.all.size = threads;
    block.warps.resize((threads + shim::kWarp - 1) / shim::kWarp);
    for (int t = 0; t < threads; ++t) {
      block.threads[t].thread_index.x = t;
      ++block.warps[t / shim::kWarp].size;
    }
  }
  shim::run(running, threads);
  shim::block = nullptr;
}

template <class... P, class... A>
int launch(void (*kernel)(P...), int64_t blocks, int threads, size_t shared_bytes, void*, A... arguments) {
  for (int64_t b = 0; b < blocks; ++b) run_blocks(kernel, b, 1, blocks, threads, shared_bytes, arguments...);
  return 0;
}

template <class... P, class... A>
int launch_together(void (*kernel)(P...), int64_t blocks, int threads, size_t shared_bytes, void*,
                    A... arguments) {
  run_blocks(kernel, 0, blocks, blocks, threads, shared_bytes, arguments...);
  return 0;
}
