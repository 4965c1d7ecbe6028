// What kernels for Hopper (sm_90a) alone are written on: whole tiles copied by the copy engine (TMA), barriers
// in shared memory that count its bytes (mbarrier), products by four warps at once from shared memory (wgmma),
// and registers handed from the warps that copy to the warps that multiply.
//
// Every primitive is one instruction or a loop around one. The host shim implements each as PTX documents it:
// the swizzle, the descriptors, the fragments; and it is as late as the instruction may be, so that an
// algorithm which waits too little computes NaN there, or stops with a message. What the shim cannot show is
// whether this inline assembly means what it says; the machine code is counted in
// tests/kernels/test_cuda_compiles.py.
//
// A tile in shared memory is made of panels: 64 columns of bf16 or 32 of float (128 bytes) by as many rows as
// it has, chunks of 16 bytes swizzled by the row modulo 8 (as in a Tile of that width), each panel at a
// multiple of 1,024 bytes. A copy writes one panel, or reads one; products read it as rows (K along them) or as
// columns (K across them) without moving anything.
#pragma once

#include "tile.cuh"

#ifndef PYENGINE_HOST_SHIM
#include <cuda.h>
#endif

// Kernels have a body in the code for Hopper and in the host shim's, and none elsewhere.
#if defined(PYENGINE_HOST_SHIM) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAS_HOPPER 1
#else
#define HAS_HOPPER 0
#endif

constexpr int kWarpgroup = 4 * kWarp;
constexpr int kPanel = 64;                // columns of bf16 in a panel
constexpr int kAligned = 1024;            // bytes that a panel's address divides by
constexpr int kRowOfPanel = 2 * kPanel;   // bytes
constexpr size_t kMostBytes = 227 << 10;  // of shared memory that a block may have

#ifdef PYENGINE_HOST_SHIM
using TensorMap = shim::TensorMap;
using Barrier = shim::PhaseBarrier;
#else
using TensorMap = CUtensorMap;
using Barrier = uint64_t;
#endif

__device__ inline unsigned shared_address(const void* p) {
#ifdef PYENGINE_HOST_SHIM
  return shim::shared_address(p);
#else
  return (unsigned)__cvta_generic_to_shared(p);
#endif
}

// ---- barriers: a phase ends when all arrivals and all bytes announced are in; phases alternate in parity

__device__ inline void init_barrier(Barrier* barrier, int arrivals) {
#ifdef PYENGINE_HOST_SHIM
  shim::init_phases(barrier, arrivals);
#else
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
#endif
}
// After init_barrier and before __syncthreads: the copy engine sees the barriers too.
__device__ inline void publish_barriers() {
#ifndef PYENGINE_HOST_SHIM
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
__device__ inline void arrive(Barrier* barrier) {
#ifdef PYENGINE_HOST_SHIM
  shim::arrive_with(barrier, 0);
#else
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}
// Arrives, and announces bytes that copies will bring in this phase.
__device__ inline void arrive_expecting(Barrier* barrier, int bytes) {
#ifdef PYENGINE_HOST_SHIM
  shim::arrive_with(barrier, bytes);
#else
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#endif
}
// Waits until the phase of this parity has ended; the one before the first counts as ended, of parity 1.
__device__ inline void wait(Barrier* barrier, int parity) {
#ifdef PYENGINE_HOST_SHIM
  shim::wait_for_phase(barrier, parity);
#else
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@done bra ended;\n"
      "bra again;\n"
      "ended:\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#endif
}

// Barriers of the hardware for `threads` threads in all, those that wait and those that only arrive; 0 is
// __syncthreads.
__device__ inline void wait_for_others(int id, int threads) {
#ifdef PYENGINE_HOST_SHIM
  shim::wait_for_others(id, threads);
#else
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}
__device__ inline void tell_others(int id, int threads) {
#ifdef PYENGINE_HOST_SHIM
  shim::tell_others(id, threads);
#else
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

// ---- copies

// Starts the copy of one panel from corner (column, head, row) of a tensor; what lies outside of it becomes
// zeros. Its bytes, all of the panel's, count for the barrier's phase.
__device__ inline void copy_panel(void* panel, const TensorMap* map, int column, int head, int row,
                                  Barrier* barrier) {
#ifdef PYENGINE_HOST_SHIM
  shim::copy_panel(panel, *map, column, head, row, barrier);
#else
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(shared_address(panel)),
      "l"(map), "r"(column), "r"(head), "r"(row), "r"(shared_address(barrier))
      : "memory");
#endif
}
// Starts the copy of one panel to corner (column, head, row) of a tensor; what lies outside of it is left out.
__device__ inline void store_panel(const void* panel, const TensorMap* map, int column, int head, int row) {
#ifdef PYENGINE_HOST_SHIM
  shim::store_panel(panel, *map, column, head, row);
#else
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(map),
      "r"(column), "r"(head), "r"(row), "r"(shared_address(panel))
      : "memory");
#endif
}
// The same, float added to what is there, each number by itself and undisturbed.
__device__ inline void add_panel(const void* panel, const TensorMap* map, int column, int head, int row) {
#ifdef PYENGINE_HOST_SHIM
  shim::store_panel(panel, *map, column, head, row, true);
#else
  asm volatile(
      "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(
          map),
      "r"(column), "r"(head), "r"(row), "r"(shared_address(panel))
      : "memory");
#endif
}
// Ends a batch of the copies that this thread has started with store_panel and add_panel.
__device__ inline void end_stores() {
#ifdef PYENGINE_HOST_SHIM
  shim::end_stores();
#else
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}
// Waits until at most LEFT of this thread's last batches still read their panels. A thread must not end before.
template <int LEFT>
__device__ inline void wait_for_stores() {
#ifdef PYENGINE_HOST_SHIM
  shim::wait_for_stores(LEFT);
#else
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(LEFT) : "memory");
#endif
}
// What this thread wrote to shared memory is seen by copies and products that start after a barrier from here.
__device__ inline void publish_to_engines() {
#ifndef PYENGINE_HOST_SHIM
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// ---- registers: a warpgroup as a whole raises or lowers how many each of its threads may use

template <int COUNT>
__device__ inline void raise_registers() {
  static_assert(COUNT % 8 == 0 && COUNT <= 240, "what the instruction takes");
#ifndef PYENGINE_HOST_SHIM
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}
template <int COUNT>
__device__ inline void lower_registers() {
  static_assert(COUNT % 8 == 0 && COUNT >= 24, "what the instruction takes");
#ifndef PYENGINE_HOST_SHIM
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

// ---- products: a warpgroup multiplies 64 rows by 8 N columns over 16 of K, asynchronously
//
// Sums d[n][i] lie as those of tile.cuh: warp w of the four has rows 16 w to 16 w + 15.

// A factor in panels whose rows hold K: 16 of K from `first`, which lies 1,024 bytes, plus 32 a step, behind a
// panel's beginning.
__device__ inline uint64_t factor_in_rows(const void* first) {
  constexpr uint64_t kSwizzled = 1ull << 62, kEightRows = (uint64_t)(8 * kRowOfPanel / 16) << 32;
  return kSwizzled | kEightRows | (uint64_t)1 << 16 | (shared_address(first) & 0x3ffff) >> 4;
}
// A factor in panels whose columns hold K, ROWS rows each: 16 of K from row `first` (a multiple of 16) on.
template <int ROWS>
__device__ inline uint64_t factor_in_columns(const void* first) {
  constexpr uint64_t kNextPanel = (uint64_t)(ROWS * kRowOfPanel / 16) << 16;
  return (factor_in_rows(first) & ~((uint64_t)0x3fff << 16)) | kNextPanel;
}

// Before the first product of a batch: registers written so far are seen by it.
__device__ inline void begin_products() {
#ifdef PYENGINE_HOST_SHIM
  shim::begin_products();
#else
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ inline void end_batch() {
#ifdef PYENGINE_HOST_SHIM
  shim::end_batch();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Waits until at most LEFT of the last batches are still running. Until then nobody may touch their sums and
// left factors in registers, nor write what they read in shared memory.
template <int LEFT>
__device__ inline void wait_for_products() {
#ifdef PYENGINE_HOST_SHIM
  shim::wait_for_products(LEFT);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
#endif
}

// Operands of inline assembly: the sums, and their numbers.
#define SUMS_4(d, n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define SUMS_16(d, n) SUMS_4(d, n), SUMS_4(d, n + 1), SUMS_4(d, n + 2), SUMS_4(d, n + 3)
#define SUMS_32(d) SUMS_16(d, 0), SUMS_16(d, 4)
#define SUMS_64(d) SUMS_16(d, 0), SUMS_16(d, 4), SUMS_16(d, 8), SUMS_16(d, 12)
#define SUMS_128(d) SUMS_64(d), SUMS_16(d, 16), SUMS_16(d, 20), SUMS_16(d, 24), SUMS_16(d, 28)
#define NUMBERS_32                                                                                       \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NUMBERS_64                                                                                         \
  NUMBERS_32                                                                                               \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
  "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NUMBERS_128                                                                                        \
  NUMBERS_64                                                                                               \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, " \
  "%84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, "     \
  "%103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, " \
  "%120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA(columns, numbers, left, right, onto, transposed)                                     \
  "{\n.reg .pred onto;\nsetp.ne.b32 onto, " onto ", 0;\nwgmma.mma_async.sync.aligned.m64n" columns \
  "k16.f32.bf16.bf16 {" numbers "}, " left ", " right ", onto, 1, 1" transposed ";\n}\n"

// d = a b^T, or d += a b^T `onto` what is there: both from panels, A_ACROSS and B_ACROSS say whose columns hold
// K.
template <bool A_ACROSS, bool B_ACROSS, int N>
__device__ inline void multiply_panels(float (&d)[N][4], uint64_t a, uint64_t b, bool onto) {
#ifdef PYENGINE_HOST_SHIM
  shim::multiply_panels(d, a, b, onto, A_ACROSS, B_ACROSS);
#else
  static_assert(N == 8 || N == 16 || N == 32, "64, 128 or 256 columns");
  if constexpr (N == 8)
    asm volatile(WGMMA("64", NUMBERS_32, "%32", "%33", "%34", ", %35, %36")
                 : SUMS_32(d)
                 : "l"(a), "l"(b), "r"((int)onto), "n"((int)A_ACROSS), "n"((int)B_ACROSS));
  else if constexpr (N == 16)
    asm volatile(WGMMA("128", NUMBERS_64, "%64", "%65", "%66", ", %67, %68")
                 : SUMS_64(d)
                 : "l"(a), "l"(b), "r"((int)onto), "n"((int)A_ACROSS), "n"((int)B_ACROSS));
  else
    asm volatile(WGMMA("256", NUMBERS_128, "%128", "%129", "%130", ", %131, %132")
                 : SUMS_128(d)
                 : "l"(a), "l"(b), "r"((int)onto), "n"((int)A_ACROSS), "n"((int)B_ACROSS));
#endif
}
// The same for a in registers, as Left of tile.cuh has it, and b in columns of panels: d (+)= a b.
template <int N>
__device__ inline void multiply_columns(float (&d)[N][4], const uint32_t (&a)[4], uint64_t b, bool onto) {
#ifdef PYENGINE_HOST_SHIM
  shim::multiply_columns(d, a, b, onto);
#else
  static_assert(N == 8 || N == 16, "64 or 128 columns");
  if constexpr (N == 8)
    asm volatile(WGMMA("64", NUMBERS_32, "{%32, %33, %34, %35}", "%36", "%37", ", 1")
                 : SUMS_32(d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)onto));
  else
    asm volatile(WGMMA("128", NUMBERS_64, "{%64, %65, %66, %67}", "%68", "%69", ", 1")
                 : SUMS_64(d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)onto));
#endif
}

// ---- blocks: two warpgroups that multiply and one that copies, with what is left of the registers; rings of
// stages between them

constexpr int kGroups = 2;  // that multiply
constexpr int kBlock = (kGroups + 1) * kWarpgroup;
constexpr int kReaders = kGroups * kWarpgroup / kWarp;  // warps that multiply
constexpr int kMultiplying = 240, kCopying = 24;        // registers of a thread
static_assert((kGroups * kMultiplying + kCopying) * kWarpgroup <= 65536, "an SM's registers");

// A place in a ring of stages, and the parity of the phase in which it is filled.
template <int STAGES>
struct Turn {
  unsigned count = 0;
  __device__ int stage() const { return count % STAGES; }
  __device__ int parity() const { return count / STAGES % 2; }
  __device__ void next() { ++count; }
};

// A warp has read what the barrier guards.
__device__ inline void arrive_as_warp(Barrier* barrier) {
  if (lane() == 0) arrive(barrier);
}

// A block's roles. make_barriers() is one thread's and makes what the others wait on; then copy() is one
// warp's, whose group gives up registers, and multiply(group) the other groups', which take these.
template <class MakeBarriers, class Copy, class Multiply>
__device__ inline void share_roles(MakeBarriers&& make_barriers, Copy&& copy, Multiply&& multiply) {
  if (threadIdx.x == 0) {
    make_barriers();
    publish_barriers();
  }
  __syncthreads();
  const int group = threadIdx.x / kWarpgroup;
  if (group == kGroups) {
    lower_registers<kCopying>();
    if (threadIdx.x % kWarpgroup < kWarp) copy();
  } else {
    raise_registers<kMultiplying>();
    multiply(group);
  }
}

// The beginning of dynamic shared memory that a kernel with kAligned bytes to spare may use for panels.
template <class T>
__device__ inline T& at_round_address(unsigned char* memory) {
  return *reinterpret_cast<T*>(memory + (-shared_address(memory) & (kAligned - 1)));
}

// ---- on the host

// What copy_panel and store_panel need to know of a tensor (rows, heads, columns) of bf16 or float, contiguous,
// at a multiple of 16 bytes, whose rows of a head are such a multiple too: panels have `panel_rows` rows of one
// head. Returns cudaError_t as an integer.
template <class T>
int describe(TensorMap* map, const T* data, int64_t rows, int64_t heads, int64_t columns, int panel_rows);

// How many blocks the device at hand runs at once, one on each SM; an error where it is no Hopper.
int hopper_blocks(int64_t* blocks);
