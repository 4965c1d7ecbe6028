// Moving rows without computing: what a captured step does in place of torch's indexing and contiguous().
#include <cstring>

#include "ops.h"

void gather_rows(const char* source, const int64_t* index, char* out, int64_t rows, int64_t row_bytes) {
  for (int64_t r = 0; r < rows; ++r) std::memcpy(out + r * row_bytes, source + index[r] * row_bytes, row_bytes);
}

void copy_blocks(const char* source, char* out, int64_t blocks, int64_t block_bytes, int64_t stride_bytes) {
  for (int64_t b = 0; b < blocks; ++b) {
    std::memcpy(out + b * block_bytes, source + b * stride_bytes, block_bytes);
  }
}
