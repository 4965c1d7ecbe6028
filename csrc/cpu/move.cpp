// Moving rows, and adding up two gradients of one tensor: what a captured step does in place of torch's
// indexing, contiguous() and add.
#include <algorithm>
#include <cstring>

#include "integers.h"
#include "ops.h"
#include "parallel.h"

using namespace simd;

void gather_rows(const char* source, const int64_t* index, char* out, int64_t rows, int64_t row_bytes) {
  for (int64_t r = 0; r < rows; ++r) std::memcpy(out + r * row_bytes, source + index[r] * row_bytes, row_bytes);
}

void copy_blocks(const char* source, char* out, int64_t blocks, int64_t block_bytes, int64_t stride_bytes) {
  for (int64_t b = 0; b < blocks; ++b) {
    std::memcpy(out + b * block_bytes, source + b * stride_bytes, block_bytes);
  }
}

template <class T>
void add(const T* a, const T* b, T* out, int64_t count, int threads) {
  constexpr int64_t kBlock = 1 << 14;  // numbers a task
  parallel::parallel_shares(ceil_div(count, kBlock), threads, [&](int64_t task) {
    const int64_t first = task * kBlock;
    each_vector(std::min(kBlock, count - first), [&](int64_t i, int n) {
      put(out + first + i, get(a + first + i, n) + get(b + first + i, n), n);
    });
  });
}

template void add<float>(const float*, const float*, float*, int64_t, int);
template void add<bf16>(const bf16*, const bf16*, bf16*, int64_t, int);
