// What rows of queries go through page by page, whether pages hold numbers or codes: which rows a task has, and
// their running maxima and sums of weights (online softmax).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "attention.h"
#include "prefetch.h"

namespace attention {

// Queries of one document or request: rows first to first + count - 1 of the call, the last of them at position
// context - 1. `pages` are the numbers of the pages that hold its keys and values, in order.
struct Span {
  int64_t first, count, context;
  const int32_t* pages;
};

// The pages of a span for one kv head: page i of the document lies k_step (v_step) words times pages[i] from k
// (v).
template <class P>
struct HeadPages {
  const Word<P>*k, *v;
  const int32_t* pages;
  int64_t k_step, v_step;

  const Word<P>* keys(int64_t page) const { return k + pages[page] * k_step; }
  const Word<P>* values(int64_t page) const { return v + pages[page] * v_step; }
};

// One call's tensors; P is what pages hold: T, or uint8_t for codes with scales.
template <class T, class P>
struct Call {
  const T* q;
  const Word<P>*k_pages, *v_pages;
  int64_t heads, kv_heads, dim;
  float scale;
  T* out;
  float* lse;  // or null

  int64_t group() const { return heads / kv_heads; }
  HeadPages<P> kept(const Span& span, int64_t kv_head) const {
    const int64_t k_words = key_words<P>(dim), v_words = value_words<P>(dim);
    return {k_pages + kv_head * k_words, v_pages + kv_head * v_words, span.pages, kv_heads * k_words,
            kv_heads * v_words};
  }
};

// The rows of one task: the queries of a span at the positions of page `tile`, all of a kv head's query heads.
struct Tile {
  int64_t begin, end, rows;  // positions, and query heads at them
  int64_t first, heads, head, group;

  template <class T, class P>
  Tile(const Call<T, P>& call, const Span& span, int64_t tile, int64_t kv_head)
      : begin(std::max(span.context - span.count, tile * kPage)),
        end(std::min(span.context, (tile + 1) * kPage)),
        rows((end - begin) * call.group()),
        first(span.first + begin - (span.context - span.count)),
        heads(call.heads),
        head(kv_head * call.group()),
        group(call.group()) {}

  // The rows as they are read and written.
  template <class T, class P>
  void add_rows(Prefetcher& soon, const Call<T, P>& call) const {
    const int64_t at = (first * heads + head) * call.dim, numbers = group * call.dim;
    soon.add(call.q + at, numbers, heads * call.dim, end - begin);
    soon.add(call.out + at, numbers, heads * call.dim, end - begin);
  }

  // body(row, its place among the call's rows, how many keys of page `tile` it sees), row by row: no divisions.
  template <class F>
  void each_row(int64_t tile, F&& body) const {
    int64_t row = 0, source = first * heads + head;
    for (int64_t position = begin; position < end; ++position, source += heads)
      for (int64_t g = 0; g < group; ++g) body(row++, source + g, (int)(position + 1 - tile * kPage));
  }
};

// The state of a strip's rows: the largest score so far (in units of log 2) and the sum of 2^(score - largest).
constexpr int kRoom = kLanes > 8 ? kLanes : 8;  // kRows in whole vectors
struct alignas(64) Running {
  float most[kRoom], sum[kRoom];
};

// to[r] = all lanes of rows[r] combined, for R rows: their maxima, or their sums.
template <int R, class F>
[[gnu::always_inline]] inline void combine_rows(const f32* rows, float* to, F&& combine) {
  f32 some[kLanes];
  constexpr int kSome = R < kLanes ? R : kLanes;
#pragma GCC unroll 16
  for (int r = 0; r < kSome; ++r) some[r] = rows[r];
  store(to, halve_rows<kSome>(some, combine));
  if constexpr (R > kLanes) combine_rows<R - kLanes>(rows + kLanes, to + kLanes, combine);
}

// What a strip's rows use on one page: `from`, the largest score so far, which weights are relative to (in
// units of log 2), and `shrink`, the factor by which the sums of the pages before shrink since that score has
// grown.
struct alignas(64) Shift {
  float from[kRoom], shrink[kRoom];
};

// Finds R rows' largest score with those of a page. Of row r the first valid[r] keys count (null: all 64), of
// none those from `columns` on. Rows go through each step together: alone, each would wait for its own maximum.
template <int R>
inline void update_maxima(float* s, const int* valid, int64_t columns, float scale, Running& state,
                          Shift& shift) {
  f32 tops[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) tops[r] = set(kNone);
  for (int64_t j = 0; j < columns; j += kLanes)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      f32 x = load(s + r * kPage + j) * set(scale);
      if (valid) store(s + r * kPage + j, x = keep_n(x, (int)(valid[r] - j), kNone));
      tops[r] = max(x, tops[r]);
    }
  alignas(64) float found[kRoom];
  combine_rows<R>(tops, found, [](f32 a, f32 b) { return max(a, b); });
  for (int r = 0; r < R; r += kLanes) {
    const f32 before = load(state.most + r), most = max(load(found + r), before);
    const f32 from = most == set(kNone) ? zero() : most;  // -inf - -inf would be NaN
    store(state.most + r, most), store(shift.from + r, from);
    store(shift.shrink + r, exp2_nonpositive(before - from));
  }
}

// Turns the scores of R rows, as update_maxima() left them, into weights, a left factor, and adds these up.
template <class T, int R>
inline void make_weights(const float* s, float unit, int64_t columns, Running& state, const Shift& shift,
                         T* weights) {
  f32 totals[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const f32 down = -set(shift.from[r]);
    f32 total = zero();
    for (int64_t j = 0; j < columns; j += 2 * kLanes) {
      f32 a = exp2_nonpositive<T>(fma(load(s + r * kPage + j), set(unit), down));
      f32 b = exp2_nonpositive<T>(fma(load(s + r * kPage + j + kLanes), set(unit), down));
      total += a;
      total += b;
      store_twice(weights + r * kPage + j, a, b);
    }
    totals[r] = total;
  }
  alignas(64) float found[kRoom];
  combine_rows<R>(totals, found, [](f32 a, f32 b) { return a + b; });
  for (int r = 0; r < R; r += kLanes)
    store(state.sum + r, load(state.sum + r) * load(shift.shrink + r) + load(found + r));
}

// The distance in bytes from one address to another, for product() to prefetch at. 0 where there is nothing to
// prefetch: when not decoding, or where `to` is null.
template <bool Decoding, class W>
int64_t ahead(const W* from, const W* to) {
  return Decoding && to ? (const char*)to - (const char*)from : 0;
}

// The state of strips that have met no key yet.
inline void begin_rows(Running* state, int64_t strips) {
  for (int64_t i = 0; i < strips; ++i)
    for (int r = 0; r < kRoom; r += kLanes)
      store(state[i].most + r, set(kNone)), store(state[i].sum + r, zero());
}

// Writes a task's results: its rows' outputs o / sum and, where wanted, their log-sum-exp. Strip: rows in a
// strip.
template <int Strip, class T, class P>
void finish(const Call<T, P>& call, const Tile& here, int64_t tile, const Running* state, const float* o) {
  const int64_t dim = call.dim, width = padded(dim);
  here.each_row(tile, [&](int64_t row, int64_t source, int) {
    T* to = call.out + source * dim;
    const float most = state[row / Strip].most[row % Strip], sum = state[row / Strip].sum[row % Strip];
    const float inverse = 1.0f / sum;
    each_vector(dim, [&](int64_t d, int n) { put(to + d, load(o + row * width + d) * set(inverse), n); });
    if (call.lse) call.lse[source] = most * 0.693147181f + std::log(sum);
  });
}

}  // namespace attention
