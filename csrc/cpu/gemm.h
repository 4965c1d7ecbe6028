// Matrix product C (m, n) = A (m, k) B (n, k)^T with one order of summation, for linear, cross_entropy and
// muon.
//
// The contract, for each element of C: the dimension k is cut into blocks of kSteps steps. A step is one
// number, or in bf16 a pair of them (an odd last one is paired with zero). A block is summed by one chain of
// multiply-adds (in bf16 simd::dot_pairs) that begins at 0 and goes from its first step to its last. The
// blocks' sums are then added in order, onto what C holds if the caller asks for that. All of it is in float32.
// So the bits of an element depend on its row of A and its row of B alone: not on m, n, tiles or threads. (One
// chain over all of k would be as well defined, but its error grows with the square root of k: three times
// torch's at k = 2500.)
//
// B is packed first, into panels of kPanel columns: for each step of k (one float, or one pair of bf16) the
// kPanel values lie side by side, so that a kernel reads memory strictly forwards. The layout is the same in
// every build. A is packed by the tasks that need it, into tiles as high as the registers allow.
#pragma once

#include <cstddef>
#include <cstdint>

#include "integers.h"
#include "simd.h"

namespace gemm {

constexpr int64_t kSteps = 256;
constexpr int kPanel = 32;

// A matrix whose element (i, k) is data[i * row + k * column]; one of the strides is 1. `row` counts outputs
// and `column` the dimension summed over, so a transposed operand is the same memory with the strides
// exchanged.
template <class T>
struct Matrix {
  const T* data;
  int64_t row, column;
};

inline int64_t padded(int64_t n) { return round_up(n, kPanel); }
// Numbers in a packed B of n rows: whole panels, whole pairs.
template <class T>
int64_t packed_size(int64_t n, int64_t k) {
  return padded(n) * (sizeof(T) == 2 ? round_up(k, 2) : k);
}

template <class T>
void pack(Matrix<T> b, int64_t n, int64_t k, T* packed, int threads);  // packed: packed_size<T>(n, k) numbers

// Which elements of C are wanted; kLower: those on and below the diagonal at least, others may be left
// unwritten.
enum Part { kWhole, kLower };

// C = A B^T + bias (bias may be null), or C += A B^T where `accumulate` (then Out is float). B is packed.
template <class T, class Out>
void multiply(Matrix<T> a, const T* packed, int64_t m, int64_t n, int64_t k, Out* c, int64_t row_stride,
              const T* bias, bool accumulate, int threads, Part part = kWhole);

// At least `bytes` of memory that belongs to the calling thread and is reused from call to call (fresh memory
// costs page faults). It is aligned to a page; its contents are whatever they were. A pointer is valid until
// the thread asks for the same slot again, so each purpose has a slot of its own.
enum Slot {
  kPackedB,
  kPackedA,
  kPartial,
  kLogits,
  kGradient,
  kPackedX,
  kCounted,
  kSum,
  kUpdate,
  kGram,
  kPolynomial,
  kProduct,
  kQuantized,
  kNormed,
  kSummed,
  kGated,
  kSlots
};
void* scratch(Slot slot, size_t bytes);

}  // namespace gemm
