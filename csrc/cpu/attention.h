// What attention's forward and backward share: pages, and one product of small matrices.
//
// A page holds the keys or the values of 64 tokens of one kv head; tokens are counted from the document's
// start. There are two layouts:
//
// - across, (D, 64): one load brings the d-th number of many tokens. Keys lie so, for scores.
// - along, (64, D rounded up to 16): one load brings many numbers of one token. Values lie so.
//
// Both are stored in words that hold what one step of a dot product takes: one float, two bf16 of neighbouring
// rows, or four bytes of neighbouring rows (where the last row lacks neighbours, the word is filled up). Bytes
// are codes of -127 to 127, stored plus 128; behind a page's codes follow the scales of its 64 tokens, as
// floats.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <vector>

#include "integers.h"
#include "prefetch.h"
#include "simd.h"

namespace attention {

using namespace simd;

constexpr int kPage = 64;                       // tokens
constexpr int kRows = 6;                        // rows of a product whose sums are in registers together:
constexpr int kVectors = kLanes == 16 ? 4 : 2;  // 6 x 4 of 32 registers, or 6 x 2 of 16
const float kNone = -std::numeric_limits<float>::infinity();

template <class T>
struct Words;
template <>
struct Words<float> {
  using Word = float;
  using Total = float;  // what a product's sums are
  using Sum = f32;
  static constexpr int kSteps = 1;           // numbers in a word
  static constexpr int64_t kScaleWords = 0;  // after a page's numbers
  static f32 step(f32 sum, f32 a, f32 b) { return fma(a, b, sum); }
  static f32 load(const float* p) { return simd::load(p); }
  static f32 set(float a) { return simd::set(a); }
  static f32 first(f32 a) { return a; }  // the first number of each word alone
  static float pair(float low, float) { return low; }
  static void zip(const float*, const float*, int, float*) {}  // a word holds one number
};
template <>
struct Words<bf16> {
  using Word = uint32_t;
  using Total = float;
  using Sum = f32;
  static constexpr int kSteps = 2;
  static constexpr int64_t kScaleWords = 0;
  static f32 step(f32 sum, pairs a, pairs b) { return dot_pairs(sum, a, b); }
  static pairs load(const uint32_t* p) {
    pairs v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static pairs set(uint32_t a) { return set_pair(a); }
  static pairs first(pairs a) { return a & 0xffffu; }
  static uint32_t pair(bf16 low, bf16 high) { return pair_of(low, high); }
  static void zip(const bf16* low, const bf16* high, int n, uint32_t* to) {
    pairs v = zip_pairs(low, high, n);
    std::memcpy(to, &v, sizeof v);
  }
};
template <>
struct Words<uint8_t> {
  using Word = uint32_t;
  using Total = int32_t;
  using Sum = i32;
  static constexpr int kSteps = 4;
  static constexpr int64_t kScaleWords = kPage;
  static i32 step(i32 sum, uint32_t a, bytes b) { return dot_bytes(sum, b, a); }  // a: signed, none -128
  static bytes load(const uint32_t* p) { return load_bytes((const uint8_t*)p); }
  static uint32_t set(uint32_t a) { return a; }
};
template <class T>
using Word = typename Words<T>::Word;
template <class T>
using Total = typename Words<T>::Total;

// Words of a page across and of a page along, scales left out.
template <class T>
inline int64_t across_rows(int64_t dim) {
  return ceil_div(dim, Words<T>::kSteps);
}
inline int64_t padded(int64_t dim) { return round_up(dim, 16); }
template <class T>
inline int64_t across_size(int64_t dim) {
  return across_rows<T>(dim) * kPage;
}
template <class T>
inline int64_t along_size(int64_t dim) {
  return kPage / Words<T>::kSteps * padded(dim);
}

// Words of one head's keys and values in a page, with their scales.
template <class P>
inline int64_t key_words(int64_t dim) {
  return across_size<P>(dim) + Words<P>::kScaleWords;
}
template <class P>
inline int64_t value_words(int64_t dim) {
  return along_size<P>(dim) + Words<P>::kScaleWords;
}

// Stores `count` rows of dim numbers, `stride` apart, as the tokens place, place + 1, ... of a page.
template <class T>
inline void write_across(const T* rows, int64_t stride, int64_t dim, int64_t place, int64_t count,
                         Word<T>* page) {
  constexpr int kSteps = Words<T>::kSteps;
  const int64_t whole = dim / kSteps / kLanes * kLanes;  // words of a row that move in squares
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes)
    for (int64_t w = 0; w < whole; w += kLanes) {
      u32 square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        std::memcpy(&square[i], rows + (j + i) * stride + w * kSteps, sizeof square[i]);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        std::memcpy(page + (w + i) * kPage + place + j, &square[i], sizeof square[i]);
    }
  for (int64_t done = j, w = 0; w * kSteps < dim; ++w)
    for (j = w < whole ? done : 0; j < count; ++j) {
      const T* row = rows + j * stride + w * kSteps;
      page[w * kPage + place + j] = Words<T>::pair(row[0], (w + 1) * kSteps <= dim ? row[kSteps - 1] : T{});
    }
}
template <class T>
inline void write_along(const T* rows, int64_t stride, int64_t dim, int64_t place, int64_t count,
                        Word<T>* page) {
  constexpr int kSteps = Words<T>::kSteps;
  const int64_t width = padded(dim);
  for (int64_t j = 0; j < count;) {
    const T* row = rows + j * stride;
    if (kSteps == 2 && (place + j) % kSteps == 0 && j + 1 < count) {  // both numbers of each word
      for (int64_t d = 0; d < dim; d += kLanes)
        Words<T>::zip(row + d, row + stride + d, (int)std::min<int64_t>(kLanes, dim - d),
                      page + (place + j) / kSteps * width + d);
      j += 2;
    } else {
      T* to = reinterpret_cast<T*>(page) + (place + j) / kSteps * width * kSteps + (place + j) % kSteps;
      for (int64_t d = 0; d < dim; ++d) to[d * kSteps] = row[d];
      ++j;
    }
  }
}
// Stores `count` rows of dim numbers, `stride` apart, as the rows of a left factor.
template <class T>
inline void write_rows(const T* rows, int64_t stride, int64_t dim, int64_t count, Word<T>* to) {
  constexpr int kSteps = Words<T>::kSteps;
  const int64_t words = across_rows<T>(dim);
  constexpr int64_t kChunk = kLanes * sizeof(float);  // short enough to be moved without a call
  const int64_t bytes = dim * sizeof(T);
  for (int64_t i = 0; i < count; ++i, rows += stride, to += words) {
    int64_t done = 0;
    for (; done + kChunk <= bytes; done += kChunk)
      std::memcpy((char*)to + done, (const char*)rows + done, kChunk);
    if (done < bytes) std::memcpy((char*)to + done, (const char*)rows + done, bytes - done);
    if (dim % kSteps) to[words - 1] = Words<T>::pair(rows[dim - 1], T{});
  }
}

// The left factor of a product: a word for each (row, step), read one at a time.
template <class T>
struct Left {
  const Word<T>* words;
  int64_t row, step;  // distances
};

// Prefetches the line of memory `ahead` bytes after p, once a line of the vectors p + v kLanes.
template <class W>
inline void prefetch(const W* p, int v, int64_t ahead) {
  if (v * kLanes * 4 % 64 == 0) __builtin_prefetch((const char*)(p + v * kLanes) + ahead, 0, 2);
}

// What the sums of a product begin with: 0 where they are `fresh`, else what is in memory. Of up to kRows rows
// that is multiplied by each row's `shrink`, if it is not null.
struct Begin {
  bool fresh;
  const float* shrink = nullptr;
};

// R rows by V vectors of a product. It takes plain numbers rather than structures, and its callers are inlined:
// a structure that is written to the stack number by number and then copied as vectors has to wait for its own
// stores (store forwarding fails), 60 cycles of a tile's 450.
template <class T, int R, int V, bool Prefetch>
[[gnu::noinline]] void product_tile(const Word<T>* words, int64_t row, int64_t step, const Word<T>* b,
                                    int64_t b_step, int64_t steps, Total<T>* out, int64_t out_row, bool fresh,
                                    const float* shrink, int64_t ahead) {
  typename Words<T>::Sum sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      sum[r][v] = fresh ? typename Words<T>::Sum{} : load(out + r * out_row + v * kLanes);
      if constexpr (std::is_same_v<Total<T>, float>)
        if (shrink) sum[r][v] *= simd::set(shrink[r]);
    }
  for (int64_t k = 0; k < steps; ++k, b += b_step, words += step) {
    decltype(Words<T>::load(b)) right[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      right[v] = in_register(Words<T>::load(b + v * kLanes));
      if (Prefetch) prefetch(b, v, ahead);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      auto left = Words<T>::set(words[r * row]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = Words<T>::step(sum[r][v], left, right[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(out + r * out_row + v * kLanes, sum[r][v]);
}

template <class T, int R, bool Prefetch>
[[gnu::always_inline]] inline void product_rows(Left<T> a, const Word<T>* b, int64_t b_step, int64_t steps,
                                                Total<T>* out, int64_t out_row, int64_t columns, Begin begin,
                                                int64_t ahead) {
  int64_t c = 0;
  auto tile = [&](auto vectors) {
    product_tile<T, R, vectors, Prefetch>(a.words, a.row, a.step, b + c, b_step, steps, out + c, out_row,
                                          begin.fresh, begin.shrink, ahead);
  };
  for (; c + kVectors * kLanes <= columns; c += kVectors * kLanes)
    tile(std::integral_constant<int, kVectors>());
  switch ((columns - c) / kLanes) {
    case 3:
      return tile(std::integral_constant<int, 3>());
    case 2:
      return tile(std::integral_constant<int, 2>());
    case 1:
      return tile(std::integral_constant<int, 1>());
  }
}

// body(R) with the number of rows, 0 to kRows, as a constant; not called for 0.
template <class F>
[[gnu::always_inline]] inline void with_rows(int64_t rows, F&& body) {
  switch (rows) {
    case 6:
      return body(std::integral_constant<int, 6>());
    case 5:
      return body(std::integral_constant<int, 5>());
    case 4:
      return body(std::integral_constant<int, 4>());
    case 3:
      return body(std::integral_constant<int, 3>());
    case 2:
      return body(std::integral_constant<int, 2>());
    case 1:
      return body(std::integral_constant<int, 1>());
  }
}

// out (rows x columns) = what it begins with + a (rows x steps) b (steps x columns); columns is a multiple of
// kLanes. Every output is one chain over the steps in order, whatever the other sizes. Where Prefetch is set,
// the lines `ahead` bytes after those of b are prefetched on the way, in the load slots that products leave
// free.
template <class T, bool Prefetch = false>
[[gnu::always_inline]] inline void product(Left<T> a, const Word<T>* b, int64_t b_step, int64_t steps,
                                           Total<T>* out, int64_t out_row, int64_t rows, int64_t columns,
                                           Begin begin, int64_t ahead = 0) {
  for (; rows >= kRows; rows -= kRows, a.words += kRows * a.row, out += kRows * out_row)
    product_rows<T, kRows, Prefetch>(a, b, b_step, steps, out, out_row, columns, begin, ahead);
  with_rows(rows, [&](auto left) __attribute__((always_inline)) {
    product_rows<T, left, Prefetch>(a, b, b_step, steps, out, out_row, columns, begin, ahead);
  });
}

// Up to how many tokens a packed document is done by one thread, a kv head at a time, so that what the thread
// makes of it (`bytes` for each page) stays in its cache. Longer documents are shared by the threads. No
// document that is done by one thread is more than a 16th of a thread's work, so that all threads end at about
// the same time.
inline int64_t most_owned(const int32_t* cu_seqlens, int64_t documents, int64_t kv_heads, int64_t bytes,
                          int threads) {
  constexpr int64_t kNear = 1 << 19;  // half of a core's L2
  double pairs = 0.0;
  for (int64_t b = 0; b < documents; ++b) {
    const double length = cu_seqlens[b + 1] - cu_seqlens[b];
    pairs += length * length;
  }
  return std::min(kNear / bytes * kPage, (int64_t)std::sqrt(pairs * (double)kv_heads / (16.0 * threads)));
}

// The packed documents' indices, longest first: the order in which threads take them, so that they end
// together.
inline std::vector<int64_t> longest_first(const int32_t* cu_seqlens, int64_t documents) {
  std::vector<int64_t> order(documents);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return cu_seqlens[a + 1] - cu_seqlens[a] > cu_seqlens[b + 1] - cu_seqlens[b];
  });
  return order;
}

// What rooms are for; a task may use all of them at once.
enum Room {
  kQueries,
  kOut,
  kRunning,
  kValid,
  kQuery,
  kCodes,
  kSums,
  kKeys,
  kValues,
  kRowsOfTile,
  kBlocks,
  kQueryGradients,
  kPacked,
  kKeyGradients
};

// Room for n elements of E that belongs to the calling thread and is reused by its next task; its contents are
// whatever they were. It begins at a cache line, so that no vector lies across two.
template <class E, Room>
inline E* room(int64_t n) {
  struct alignas(64) Line {
    unsigned char bytes[64];
  };
  thread_local std::vector<Line> memory;
  const size_t lines = ceil_div(n * (int64_t)sizeof(E), sizeof(Line));
  if (memory.size() < lines) memory.resize(lines);
  return reinterpret_cast<E*>(memory.data());
}

}  // namespace attention
