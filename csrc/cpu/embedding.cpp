// Embedding, forward and backward: rows of a table by number, and the sums of the rows' gradients.
//
// Forward is a copy that widens. Backward first sorts the tokens by the row they name (a counting sort), then
// adds each row's gradients in registers, in the tokens' order, and writes the row once: no scratch as large as
// the table, and the same bits with any number of threads.
#include <algorithm>
#include <vector>

#include "integers.h"
#include "ops.h"
#include "parallel.h"

using namespace simd;

template <class T>
int64_t embedding_forward(const T* table, const int64_t* ids, float* y, int64_t tokens, int64_t channels,
                          int64_t vocabulary, int threads) {
  constexpr int64_t kRows = 16;  // a task
  for (int64_t t = 0; t < tokens; ++t)
    if (ids[t] < 0 || ids[t] >= vocabulary) return t;
  if (tokens * channels < 1 << 16) threads = 1;
  parallel::parallel_for(ceil_div(tokens, kRows), threads, [&](int64_t task) {
    for (int64_t t = task * kRows; t < std::min(tokens, (task + 1) * kRows); ++t) {
      const T* row = table + ids[t] * channels;
      float* out = y + t * channels;
      each_vector(channels, [&](int64_t i, int n) { put(out + i, get(row + i, n), n); });
    }
  });
  return -1;
}

template <class T>
void embedding_backward(const float* dy, const int64_t* ids, T* dtable, int64_t tokens, int64_t channels,
                        int64_t vocabulary, int threads) {
  constexpr int64_t kRows = 64;
  std::vector<int64_t> first(vocabulary + 1),
      order(tokens);  // the tokens of row v: order[first[v], first[v + 1])
  for (int64_t t = 0; t < tokens; ++t) ++first[ids[t] + 1];
  for (int64_t v = 0; v < vocabulary; ++v) first[v + 1] += first[v];
  std::vector<int64_t> next(first.begin(), first.end() - 1);
  for (int64_t t = 0; t < tokens; ++t) order[next[ids[t]]++] = t;
  parallel::parallel_for(ceil_div(vocabulary, kRows), threads, [&](int64_t block) {
    for (int64_t v = block * kRows; v < std::min(vocabulary, (block + 1) * kRows); ++v) {
      T* out = dtable + v * channels;
      each_vector(channels, [&](int64_t i, int n) {
        f32 total = zero();
        for (int64_t j = first[v]; j < first[v + 1]; ++j) total += get(dy + order[j] * channels + i, n);
        put(out + i, total, n);
      });
    }
  });
}

#define INSTANTIATE(T)                                                                                     \
  template int64_t embedding_forward<T>(const T*, const int64_t*, float*, int64_t, int64_t, int64_t, int); \
  template void embedding_backward<T>(const float*, const int64_t*, T*, int64_t, int64_t, int64_t, int);
INSTANTIATE(float)
INSTANTIATE(bf16)
