// Causal attention over pages of keys and values, forward: packed documents and paged requests are one kernel.
//
// A task is one kv head and the queries that lie in one page's worth of positions, with all query heads of the
// group as its rows, so a page of keys and values is read once for them all. Of short packed documents a task
// is one kv head with all queries, which packs its pages itself, so that they never leave the cache of its
// core. Rows meet the pages in order:
//
//   s = scale log2(e) q k^T     m' = max(m, max s)     p = 2^(s - m')     l' = l 2^(m - m') + sum p
//   o' = o 2^(m - m') + p v     and at the end o / l
//
// The sum over D is one chain, p v one chain over keys; keys of a page lie in lanes, and lanes are added in one
// order. So a row's bits depend on its own document up to its own position only: not on the rows beside it, on
// chunks, pages' places or threads. Later keys are left out by choosing, never by multiplying with zero, so
// nothing in them reaches a row, not even NaN. Work: 4 D flops and one exponential a pair of query and key;
// scores of 6 rows x 64 keys live in L1, a page of keys and values too.
//
// Pages of bytes hold keys k = scale_k (code - 128) and so values, a scale for each token and head. Nothing is
// widened: a query becomes whole numbers of 15 bits, the weights of a page times the values' scales become such
// of 14, and each is multiplied in two parts of 7 bits by four codes a lane, exactly; so it costs what bf16
// costs and reads half as much. What is exact has no order: the bits of a row are as independent as above.
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <type_traits>

#include "ops.h"
#include "parallel.h"
#include "rope.h"

namespace attention {
namespace {

// Queries of one document: rows first ... first + count - 1, the last of them at position context - 1.
struct Span {
  int64_t first, count, context;
  const int32_t* pages;
};

// The pages of a span for one kv head, P's: from one to the next in memory are `k_step` and `v_step` words.
template <class P>
struct Kept {
  const Word<P>*k, *v;
  const int32_t* pages;
  int64_t k_step, v_step;

  const Word<P>* keys(int64_t page) const { return k + pages[page] * k_step; }
  const Word<P>* values(int64_t page) const { return v + pages[page] * v_step; }
};

// One call's tensors; P is what pages hold: T, or uint8_t for codes with scales.
template <class T, class P>
struct Pass {
  const T* q;
  const Word<P>*k_pages, *v_pages;
  int64_t heads, kv_heads, dim;
  float scale;
  T* out;
  float* lse;  // or null

  int64_t group() const { return heads / kv_heads; }
  Kept<P> kept(const Span& span, int64_t kv_head) const {
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
  Tile(const Pass<T, P>& pass, const Span& span, int64_t tile, int64_t kv_head)
      : begin(std::max(span.context - span.count, tile * kPage)),
        end(std::min(span.context, (tile + 1) * kPage)),
        rows((end - begin) * pass.group()),
        first(span.first + begin - (span.context - span.count)),
        heads(pass.heads),
        head(kv_head * pass.group()),
        group(pass.group()) {}

  // The rows as they are read and written.
  template <class T, class P>
  void add_rows(Ahead& later, const Pass<T, P>& pass) const {
    const int64_t at = (first * heads + head) * pass.dim, numbers = group * pass.dim;
    later.add(pass.q + at, numbers, heads * pass.dim, end - begin);
    later.add(pass.out + at, numbers, heads * pass.dim, end - begin);
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

// The rows' maxima or sums: lane r of to is all lanes of row r.
template <int R, class F>
[[gnu::always_inline]] inline void combine_rows(const f32* rows, float* to, F&& combine) {
  f32 some[kLanes];
  constexpr int kSome = R < kLanes ? R : kLanes;
#pragma GCC unroll 16
  for (int r = 0; r < kSome; ++r) some[r] = rows[r];
  store(to, halve_rows<kSome>(some, combine));
  if constexpr (R > kLanes) combine_rows<R - kLanes>(rows + kLanes, to + kLanes, combine);
}

// What a strip's rows go by on one page, in units of log 2: the score that weights are relative to, and what
// weights of the pages before shrink by.
struct alignas(64) Shift {
  float from[kRoom], shrink[kRoom];
};

// Finds R rows' largest score with those of a page. Of row r the first valid[r] keys count (null: all 64), of
// none those from `columns` on. Rows go through each step together: alone, each would wait for its own maximum.
template <int R>
inline void meet_rows(float* s, const int* valid, int64_t columns, float scale, Running& state, Shift& shift) {
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

// Turns the scores of R rows, as meet_rows() left them, into weights, a left factor, and adds these up.
template <class T, int R>
inline void weigh_rows(const float* s, float unit, int64_t columns, Running& state, const Shift& shift,
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

// body(R) with the number of rows of a strip as a constant.
template <class F>
inline void with_rows(int64_t rows, F&& body) {
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

// Adds the last keys of a strip's rows, from word `from` on, each row as far as its own position: the staircase
// on the diagonal. Where a row ends inside a word, the half that is a later key's is cut off.
template <class T, int V>
void staircase(Left<T> p, const Word<T>* v, int64_t width, int64_t from, const int* valid, int rows, float* o) {
  constexpr int kSteps = Words<T>::kSteps;
  f32 sum[kRows][V];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < V; ++c)
      if (r < rows) sum[r][c] = load(o + r * width + c * kLanes);
  for (int64_t step = from; step * kSteps < valid[rows - 1]; ++step) {
    decltype(Words<T>::load(v)) right[V];
#pragma GCC unroll 4
    for (int c = 0; c < V; ++c) right[c] = Words<T>::load(v + step * width + c * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      if (r < rows && step * kSteps < valid[r]) {
        auto left = Words<T>::set(p.words[r * p.row + step]);
        const bool whole = (step + 1) * kSteps <= valid[r];
#pragma GCC unroll 4
        for (int c = 0; c < V; ++c)
          sum[r][c] = Words<T>::step(sum[r][c], left, whole ? right[c] : Words<T>::first(right[c]));
      }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < V; ++c)
      if (r < rows) store(o + r * width + c * kLanes, sum[r][c]);
}

// From one address to another, for product() to ask there; a decoding row has none to go to where `to` is null.
template <bool Decoding, class W>
int64_t ahead(const W* from, const W* to) {
  return Decoding && to ? (const char*)to - (const char*)from : 0;
}

// Of strips that have met no key yet.
inline void begin_rows(Running* state, int64_t strips) {
  for (int64_t i = 0; i < strips; ++i)
    for (int r = 0; r < kRoom; r += kLanes)
      store(state[i].most + r, set(kNone)), store(state[i].sum + r, zero());
}

// Writes what a task's rows, in strips of so many, have come to.
template <int Strip, class T, class P>
void finish(const Pass<T, P>& pass, const Tile& here, int64_t tile, const Running* state, const float* o) {
  const int64_t dim = pass.dim, width = padded(dim);
  here.each_row(tile, [&](int64_t row, int64_t source, int) {
    T* to = pass.out + source * dim;
    const float most = state[row / Strip].most[row % Strip], sum = state[row / Strip].sum[row % Strip];
    const float inverse = 1.0f / sum;
    each_vector(dim, [&](int64_t d, int n) { put(to + d, load(o + row * width + d) * set(inverse), n); });
    if (pass.lse) pass.lse[source] = most * 0.693147181f + std::log(sum);
  });
}

// The queries of `span` at the positions of page `tile`, for one kv head, whose pages are `kept`. A strip of
// rows has the scores of its next page computed before those of this one become weights, so that the processor
// has products to do while it waits for maxima and sums. Decoding, whose pages lie all over memory and are read
// once, asks for each page before it is needed: for the values with the keys, for the keys that come next, at
// last those of the next task (`then`, or null), with the values before them. Else what is read `later` is
// asked for.
template <bool Decoding, class T>
void attend(const Pass<T, T>& pass, const Span& span, const Kept<T>& kept, int64_t tile, int64_t kv_head,
            const Word<T>* then, Ahead& later) {
  constexpr int kSteps = Words<T>::kSteps;
  const int64_t dim = pass.dim, width = padded(dim), q_words = across_rows<T>(dim);
  const Tile here(pass, span, tile, kv_head);
  const int64_t rows = here.rows;

  auto* q = room<Word<T>, kQueries>(rows * q_words);
  float* o = room<float, kOut>(rows * width);
  Running* state = room<Running, kRunning>((rows + kRows - 1) / kRows);
  int* valid = room<int, kValid>(rows);  // keys on the tile's own page
  here.each_row(tile, [&](int64_t row, int64_t source, int seen) {
    write_rows(pass.q + source * dim, 0, dim, 1, q + row * q_words);
    valid[row] = seen;
  });
  begin_rows(state, (rows + kRows - 1) / kRows);

  alignas(64) float scores[2][kRows * kPage];
  alignas(64) T weights[kRows * kPage];
  Shift shift;
  struct Unit {  // a strip of rows on a page
    int64_t page, r, strip, longest, common;
    const int* valid;
    int64_t columns() const { return (longest + 2 * kLanes - 1) / (2 * kLanes) * (2 * kLanes); }
  };
  auto place = [&](Unit& at, int64_t page, int64_t r) {
    const bool own = page == tile;
    at.page = page, at.r = r, at.strip = std::min<int64_t>(kRows, rows - r);
    at.longest = own ? valid[r + at.strip - 1] : kPage;
    at.common = (own ? valid[r] : kPage) / kSteps;
    at.valid = own ? valid + r : nullptr;
  };
  auto score = [&](const Unit& at, float* s) {
    const Word<T>* k = kept.keys(at.page);
    product<T, Decoding>({q + at.r * q_words, q_words, 1}, k, kPage, q_words, s, kPage, at.strip,
                         (at.longest + kLanes - 1) / kLanes * kLanes, {true},
                         ahead<Decoding>(k, kept.values(at.page)));
  };
  auto meet = [&](const Unit& at, float* s) {
    with_rows(at.strip, [&](auto strip) {
      meet_rows<strip>(s, at.valid, at.columns(), pass.scale, state[at.r / kRows], shift);
    });
  };
  Unit units[2], *at = &units[0], *next = &units[1];  // never copied: product_tile() tells why
  float *s = scores[0], *next_s = scores[1];
  later.share(2 * (tile + 1) * ((rows + kRows - 1) / kRows));
  place(*at, 0, 0), score(*at, s), meet(*at, s);
  for (bool last = false; !last;) {
    const bool turn = at->r + kRows >= rows;
    last = turn && at->page == tile;
    if (!Decoding) later.more();
    if (!last) place(*next, at->page + turn, turn ? 0 : at->r + kRows), score(*next, next_s);
    if (!Decoding) later.more();
    with_rows(at->strip, [&](auto strip) {
      weigh_rows<T, strip>(s, at->valid ? 1.0f : pass.scale, at->columns(), state[at->r / kRows], shift,
                           weights);
    });
    const Word<T>* v = kept.values(at->page);
    const Word<T>* after = at->page + 2 <= tile ? kept.keys(at->page + 2) : then;
    const Left<T> p{reinterpret_cast<const Word<T>*>(weights), kPage / kSteps, 1};
    float* sums = o + at->r * width;
    product<T, Decoding>(p, v, width, at->common, sums, width, at->strip, width, {at->page == 0, shift.shrink},
                         ahead<Decoding>(v, after));
    if (at->longest > at->common * kSteps)
      for (int64_t d = 0; d < width; d += 16)
        staircase<T, 16 / kLanes>(p, v + d, width, at->common, at->valid, (int)at->strip, sums + d);
    if (!last) meet(*next, next_s);
    std::swap(at, next), std::swap(s, next_s);
  }
  finish<kRows>(pass, here, tile, state, o);
}

// A row of numbers as whole ones of at most `most` in size; returns their unit, NaN where a number is none.
template <class T>
float to_codes(const T* row, int64_t dim, float most, int32_t* codes) {
  f32 top = zero();
  bool sound = true;
  each_vector(dim, [&](int64_t d, int n) {
    f32 v = get(row + d, n);
    top = max(top, max(v, -v));
    sound &= !any_nan(v);
  });
  const float largest = max_lane(top), limit = std::numeric_limits<float>::max();
  const f32 inverse = set(largest > 0 ? std::min(most / largest, limit) : 0.0f);
  each_vector(dim, [&](int64_t d, int n) {
    i32 whole = to_whole(min(max(get(row + d, n) * inverse, set(-most)), set(most)));
    std::memcpy(codes + d, &whole, n * sizeof(int32_t));
  });
  return sound && largest <= limit ? largest * (1.0f / most) : std::numeric_limits<float>::quiet_NaN();
}

constexpr float kMostCode = 127.0f;
constexpr float kMostParted = 127.0f * 128.0f;  // in two parts of 7 bits, each a signed byte

// Weights of a page times its values' scales, as whole numbers in units of what is returned: high * 128 + low.
inline float part_weights(const float* p, const float* scales, int64_t valid, int8_t* high, int8_t* low,
                          int32_t& total) {
  constexpr int kParts = kPage / kLanes;
  f32 w[kParts], top = zero();
#pragma GCC unroll 16
  for (int i = 0; i < kParts; ++i) {
    w[i] = load(p + i * kLanes) * load(scales + i * kLanes);
    if (valid < kPage) w[i] = keep_n(w[i], (int)(valid - i * kLanes), 0.0f);
    top = max(w[i], top);
  }
  const float largest = max_lane(top);
  const f32 inverse =
      set(largest > 0 ? std::min(kMostParted / largest, std::numeric_limits<float>::max()) : 0.0f);
  i32 all = {};
#pragma GCC unroll 16
  for (int i = 0; i < kParts; ++i) {
    i32 whole = to_whole(max(w[i] * inverse, zero()));  // a NaN, whose row is lost anyway, becomes zero
    store(high + i * kLanes, whole >> 7), store(low + i * kLanes, whole & 127);
    all += whole;
  }
  total = sum(all);
  return largest * (1.0f / kMostParted);
}

// The same over codes.
template <bool Decoding, class T>
void attend(const Pass<T, uint8_t>& pass, const Span& span, const Kept<uint8_t>& kept, int64_t tile,
            int64_t kv_head, const uint32_t* then, Ahead& later) {
  constexpr int kSteps = Words<uint8_t>::kSteps, kStrip = kRows / 2;  // a row is two rows of a product
  const int64_t dim = pass.dim, width = padded(dim), q_words = across_rows<uint8_t>(dim);
  const Tile here(pass, span, tile, kv_head);
  const int64_t rows = here.rows;

  struct Query {
    float unit;
    int32_t offset;  // of a score: what the codes' 128 add, taken away
  };
  auto* q = room<uint32_t, kQueries>(rows * 2 * q_words);
  float* o = room<float, kOut>(rows * width);
  Running* state = room<Running, kRunning>((rows + kStrip - 1) / kStrip);
  int* valid = room<int, kValid>(rows);  // keys on the tile's own page
  Query* query = room<Query, kQuery>(rows);
  int32_t *codes = room<int32_t, kCodes>(width), *sums = room<int32_t, kSums>(kRows * width);
  here.each_row(tile, [&](int64_t row, int64_t source, int seen) {
    query[row].unit = to_codes(pass.q + source * dim, dim, kMostParted, codes) * pass.scale;
    auto* parts = reinterpret_cast<int8_t*>(q + row * 2 * q_words);
    std::memset(parts, 0, 2 * q_words * sizeof(uint32_t));
    int32_t total = 0;
    for (int64_t d = 0; d < dim; ++d) {
      const int32_t high = (codes[d] + 64) >> 7;
      parts[d] = (int8_t)high, parts[q_words * kSteps + d] = (int8_t)(codes[d] - high * 128);
      total += codes[d];
    }
    query[row].offset = -128 * total;
    valid[row] = seen;
  });
  begin_rows(state, (rows + kStrip - 1) / kStrip);

  alignas(64) int32_t scores[2][kRows * kPage];
  alignas(64) float x[kStrip * kPage], p[kStrip * kPage];
  alignas(64) int8_t parts[kRows * kPage];
  Shift shift;
  auto score = [&](int64_t page, int64_t r, int32_t* s) {
    const uint32_t* k = kept.keys(page);
    const int64_t strip = std::min<int64_t>(kStrip, rows - r);
    const int64_t longest = page == tile ? valid[r + strip - 1] : kPage;
    product<uint8_t, Decoding>({q + r * 2 * q_words, q_words, 1}, k, kPage, q_words, s, kPage, 2 * strip,
                               (longest + kLanes - 1) / kLanes * kLanes, {true},
                               ahead<Decoding>(k, kept.values(page)));
  };
  score(0, 0, scores[0]);
  int32_t *s = scores[0], *next = scores[1];
  later.share((tile + 1) * ((rows + kStrip - 1) / kStrip));
  for (int64_t page = 0; page <= tile; ++page) {
    const uint32_t *k = kept.keys(page), *v = kept.values(page);
    const uint32_t* after = page + 2 <= tile ? kept.keys(page + 2) : then;
    const auto* k_scales = reinterpret_cast<const float*>(k + across_size<uint8_t>(dim));
    const auto* v_scales = reinterpret_cast<const float*>(v + along_size<uint8_t>(dim));
    const bool own = page == tile;
    for (int64_t r = 0; r < rows; r += kStrip, std::swap(s, next)) {
      if (r + kStrip < rows) {
        score(page, r + kStrip, next);
      } else if (!own) {
        score(page + 1, 0, next);
      }
      if (!Decoding) later.more();
      const int64_t strip = std::min<int64_t>(kStrip, rows - r);
      float unit[kStrip];
      int32_t offset[kStrip];
      const int64_t longest = own ? valid[r + strip - 1] : kPage;
      const int64_t columns = (longest + 2 * kLanes - 1) / (2 * kLanes) * (2 * kLanes);
      for (int64_t i = 0; i < strip; ++i)
        for (int64_t j = 0; j < columns; j += kLanes) {
          const int32_t* high = s + 2 * i * kPage + j;
          i32 whole = (load(high) << 7) + load(high + kPage) + set(query[r + i].offset);
          store(x + i * kPage + j, to_float(whole) * set(query[r + i].unit) * load(k_scales + j));
        }
      with_rows(strip, [&](auto all) {
        Running& running = state[r / kStrip];
        const int* until = own ? valid + r : nullptr;
        meet_rows<all>(x, until, columns, 1.0f, running, shift);
        weigh_rows<float, all>(x, 1.0f, columns, running, shift, p);
      });
      for (int64_t i = 0; i < strip; ++i) {
        int8_t* high = parts + 2 * i * kPage;
        unit[i] =
            part_weights(p + i * kPage, v_scales, own ? valid[r + i] : kPage, high, high + kPage, offset[i]);
      }
      product<uint8_t, Decoding>({reinterpret_cast<const uint32_t*>(parts), kPage / kSteps, 1}, v, width,
                                 (longest + kSteps - 1) / kSteps, sums, width, 2 * strip, width, {true},
                                 ahead<Decoding>(v, after));
      for (int64_t i = 0; i < strip; ++i)
        for (int64_t d = 0; d < width; d += kLanes) {
          const int32_t *high = sums + 2 * i * width + d, *low = high + width;
          float* to = o + (r + i) * width + d;
          i32 whole = (load(high) << 7) + load(low) + set(-128 * offset[i]);
          const f32 before = page == 0 ? zero() : load(to) * set(shift.shrink[i]);
          store(to, fma(to_float(whole), set(unit[i]), before));
        }
    }
  }
  finish<kStrip>(pass, here, tile, state, o);
}

// Stores a token's keys and values of one head at a place of a page, as codes. A key that is no number takes
// the scale of its value with it, and the other way: then every row that sees the token shows it.
template <class T>
void write_codes(const T* k, const T* v, int64_t dim, int64_t place, uint32_t* k_page, uint32_t* v_page) {
  int32_t* codes = room<int32_t, kCodes>(2 * dim);
  const float k_scale = to_codes(k, dim, kMostCode, codes), v_scale = to_codes(v, dim, kMostCode, codes + dim);
  const float lost = k_scale + v_scale != k_scale + v_scale ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
  auto *k_bytes = reinterpret_cast<uint8_t*>(k_page), *v_bytes = reinterpret_cast<uint8_t*>(v_page);
  for (int64_t d = 0; d < (dim + 3) / 4 * 4; ++d)
    k_bytes[(d / 4 * kPage + place) * 4 + d % 4] = (uint8_t)(d < dim ? codes[d] + 128 : 128);
  for (int64_t d = 0; d < dim; ++d)
    v_bytes[(place / 4 * padded(dim) + d) * 4 + place % 4] = (uint8_t)(codes[dim + d] + 128);
  reinterpret_cast<float*>(k_page + across_size<uint8_t>(dim))[place] = k_scale + lost;
  reinterpret_cast<float*>(v_page + along_size<uint8_t>(dim))[place] = v_scale + lost;
}

// Keys and values of new tokens, rows of kv_heads * dim that lie `stride` apart, and where they go.
template <class T, class P>
struct Fresh {
  const T *k, *v;
  int64_t k_stride, v_stride;
  const int32_t* slots;
  P *k_pages, *v_pages;
  const rope::Tokens<T>* turned = nullptr;  // what makes queries and keys, if they are not there yet

  // One head of `count` tokens from `token` on, whose places are neighbours in a page.
  void write(int64_t token, int64_t count, int64_t head, int64_t kv_heads, int64_t dim) const {
    const int64_t at = slots[token] / kPage * kv_heads + head, place = slots[token] % kPage;
    const T *key = k + token * k_stride + head * dim, *value = v + token * v_stride + head * dim;
    Word<P>* k_page = reinterpret_cast<Word<P>*>(k_pages) + at * key_words<P>(dim);
    Word<P>* v_page = reinterpret_cast<Word<P>*>(v_pages) + at * value_words<P>(dim);
    if constexpr (std::is_same_v<P, uint8_t>) {
      for (int64_t t = 0; t < count; ++t)
        write_codes(key + t * k_stride, value + t * v_stride, dim, place + t, k_page, v_page);
    } else {
      write_across(key, k_stride, dim, place, count, k_page);
      write_along(value, v_stride, dim, place, count, v_page);
    }
  }

  // How many tokens from `token` on have places that are neighbours in a page.
  int64_t run(int64_t token, int64_t tokens) const {
    const int64_t first = slots[token], most = std::min(kPage - first % kPage, tokens - token);
    int64_t count = 1;
    while (count < most && slots[token + count] == first + count) ++count;
    return count;
  }
};

constexpr int64_t kTurned = 16;  // tokens a task, where they are turned before attention

// All queries of all spans. Where each span is one query, `fresh` (or null) is written on the way: a token's
// keys and values go to the page that its query reads next.
template <class T, class P>
void attend_all(const Pass<T, P>& pass, const std::vector<Span>& spans, const Fresh<T, P>* fresh, int threads) {
  struct Task {
    const Span* span;
    int64_t tile;
  };
  std::vector<Task> tasks;  // the longest rows first, so that threads end together
  bool decoding = true;
  for (const Span& span : spans) {
    decoding &= span.count == 1;
    for (int64_t tile = (span.context - span.count) / kPage; span.count && tile * kPage < span.context; ++tile)
      tasks.push_back({&span, tile});
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.tile > b.tile; });
  const int64_t total = (int64_t)tasks.size() * pass.kv_heads;
  // A task of decoding is some neighbours in memory, each of which asks for the next: of one request as many as
  // there are for a thread, since all are equally long.
  const int64_t equal = tasks.size() == 1 ? (total + threads - 1) / threads : total / (8 * threads);
  const int64_t each = decoding ? std::max<int64_t>(1, equal) : 1;
  parallel::parallel_for((total + each - 1) / each, threads, [&](int64_t chunk) {
    const int64_t end = std::min(total, (chunk + 1) * each);
    for (int64_t i = chunk * each; i < end; ++i) {
      const Task& task = tasks[i / pass.kv_heads];
      const int64_t head = i % pass.kv_heads;
      if (fresh && fresh->turned) fresh->turned->turn_heads(task.span->first, head, 1);
      if (fresh) fresh->write(task.span->first, 1, head, pass.kv_heads, pass.dim);
      auto kept = [&](int64_t at) { return pass.kept(*tasks[at / pass.kv_heads].span, at % pass.kv_heads); };
      const Word<P>* then = i + 1 < end ? kept(i + 1).keys(0) : nullptr;
      Ahead later;
      if (task.span->count == 1) {
        attend<true>(pass, *task.span, kept(i), task.tile, head, then, later);
      } else {
        if (const int64_t at = i + threads; at < total) {
          const Task& next = tasks[at / pass.kv_heads];
          Tile(pass, *next.span, next.tile, at % pass.kv_heads).add_rows(later, pass);
        }
        attend<false>(pass, *task.span, kept(i), task.tile, head, then, later);
      }
    }
  });
}

template <class T, class P>
Pass<T, P> make_pass(const T* q, const P* k_pages, const P* v_pages, int64_t heads, int64_t kv_heads,
                     int64_t dim, float scale, T* out, float* lse) {
  auto words = [](const P* p) { return reinterpret_cast<const Word<P>*>(p); };
  return {q, words(k_pages), words(v_pages), heads, kv_heads, dim, scale * 1.44269504f, out, lse};
}

// The requests of a paged call; returns -1, or the first whose numbers do not fit.
int64_t read_spans(int64_t page_count, const int32_t* block_table, int64_t table_width, const int32_t* q_start,
                   const int32_t* context_lens, int64_t requests, int64_t tokens, std::vector<Span>& spans) {
  if (q_start[0] != 0 || q_start[requests] != tokens) return 0;
  for (int64_t r = 0; r < requests; ++r) {
    int64_t count = (int64_t)q_start[r + 1] - q_start[r], context = context_lens[r];
    const int32_t* pages = block_table + r * table_width;
    if (count < 0 || context < count || context > table_width * kPage) return r;
    for (int64_t i = 0; i * kPage < context; ++i)
      if (pages[i] < 0 || pages[i] >= page_count) return r;
    spans.push_back({q_start[r], count, context, pages});
  }
  return -1;
}

// The first token whose slot does not exist, or -1.
int64_t outside(const int32_t* slots, int64_t tokens, int64_t page_count) {
  for (int64_t t = 0; t < tokens; ++t)
    if (slots[t] < 0 || slots[t] >= page_count * kPage) return t;
  return -1;
}

}  // namespace
}  // namespace attention

using namespace attention;

template <class T>
void attention_forward(const T* q, const T* k, const T* v, const int32_t* cu_seqlens, int64_t documents,
                       int64_t heads, int64_t kv_heads, int64_t dim, float scale, T* k_pages, T* v_pages,
                       T* out, float* lse, int threads) {
  const int64_t k_words = key_words<T>(dim), v_words = value_words<T>(dim);
  const int64_t most =
      most_owned(cu_seqlens, documents, kv_heads, (k_words + v_words) * sizeof(Word<T>), threads);
  struct Part {  // the tokens of a page
    int64_t first, count;
  };
  std::vector<Part> parts;  // of documents that threads share, every page in order: a document's are neighbours
  std::vector<Span> shared, owned;
  std::vector<int32_t> numbers(cu_seqlens[documents] / kPage + documents);  // of pages
  std::iota(numbers.begin(), numbers.end(), 0);
  for (int64_t b : longest_first(cu_seqlens, documents)) {
    const int64_t first = cu_seqlens[b], length = cu_seqlens[b + 1] - first;
    if (length <= most) {
      owned.push_back({first, length, length, numbers.data()});
    } else {
      shared.push_back({first, length, length, numbers.data() + parts.size()});
      for (int64_t t = 0; t < length; t += kPage)
        parts.push_back({first + t, std::min<int64_t>(kPage, length - t)});
    }
  }
  auto pack = [&](const Part& part, int64_t head, Word<T>* keys, Word<T>* values) {
    const int64_t at = (part.first * kv_heads + head) * dim;
    write_across(k + at, kv_heads * dim, dim, 0, part.count, keys);
    write_along(v + at, kv_heads * dim, dim, 0, part.count, values);
  };
  const auto pass = make_pass<T, T>(q, k_pages, v_pages, heads, kv_heads, dim, scale, out, lse);
  parallel::parallel_for((int64_t)parts.size() * kv_heads, threads, [&](int64_t i) {
    pack(parts[i / kv_heads], i % kv_heads, reinterpret_cast<Word<T>*>(k_pages) + i * k_words,
         reinterpret_cast<Word<T>*>(v_pages) + i * v_words);
  });
  attend_all(pass, shared, (const Fresh<T, T>*)nullptr, threads);
  auto add_tile = [&](Ahead& later, const Span& span, int64_t tile, int64_t head) {
    const Tile next(pass, span, tile, head);
    next.add_rows(later, pass);
    for (const T* rows : {k, v})
      later.add(rows + (next.first * kv_heads + head) * dim, dim, kv_heads * dim, next.end - next.begin);
  };
  const int64_t tasks = (int64_t)owned.size() * kv_heads;
  parallel::parallel_for(tasks, threads, [&](int64_t i) {
    const Span& span = owned[i / kv_heads];
    const int64_t head = i % kv_heads, pages = (span.count + kPage - 1) / kPage;
    auto *keys = room<Word<T>, kKeys>(pages * k_words), *values = room<Word<T>, kValues>(pages * v_words);
    const Kept<T> kept{keys, values, span.pages, k_words, v_words};
    for (int64_t tile = 0; tile < pages; ++tile) {
      pack({span.first + tile * kPage, std::min<int64_t>(kPage, span.count - tile * kPage)}, head,
           keys + tile * k_words, values + tile * v_words);
      Ahead later;
      if (tile + 1 < pages) {
        add_tile(later, span, tile + 1, head);
      } else if (i + threads < tasks) {
        add_tile(later, owned[(i + threads) / kv_heads], 0, (i + threads) % kv_heads);
      }
      attend<false>(pass, span, kept, tile, head, nullptr, later);
    }
  });
}

template <class T, class P>
int64_t attention_paged(const T* q, const P* k_pages, const P* v_pages, int64_t page_count,
                        const int32_t* block_table, int64_t table_width, const int32_t* q_start,
                        const int32_t* context_lens, int64_t requests, int64_t tokens, int64_t heads,
                        int64_t kv_heads, int64_t dim, float scale, T* out, int threads) {
  std::vector<Span> spans;
  int64_t wrong =
      read_spans(page_count, block_table, table_width, q_start, context_lens, requests, tokens, spans);
  if (wrong < 0)
    attend_all(make_pass(q, k_pages, v_pages, heads, kv_heads, dim, scale, out, nullptr), spans,
               (const Fresh<T, P>*)nullptr, threads);
  return wrong;
}

template <class T, class P>
int64_t write_pages(const T* k, int64_t k_stride, const T* v, int64_t v_stride, P* k_pages, P* v_pages,
                    int64_t page_count, const int32_t* slots, int64_t tokens, int64_t kv_heads, int64_t dim,
                    int threads) {
  if (int64_t wrong = outside(slots, tokens, page_count); wrong >= 0) return wrong;
  const Fresh<T, P> fresh{k, v, k_stride, v_stride, slots, k_pages, v_pages};
  // A head is one task: tokens that share a word of a page never meet in two threads.
  parallel::parallel_for(kv_heads, tokens * kv_heads * dim < 16384 ? 1 : threads, [&](int64_t head) {
    for (int64_t t = 0, count; t < tokens; t += count)
      fresh.write(t, count = fresh.run(t, tokens), head, kv_heads, dim);
  });
  return -1;
}

namespace {

// attention_append() and rope_append(), whose `turned` makes queries and keys.
template <class T, class P>
int64_t append(const T* q, const T* k, int64_t k_stride, const T* v, int64_t v_stride, P* k_pages, P* v_pages,
               int64_t page_count, const int32_t* slots, const int32_t* block_table, int64_t table_width,
               const int32_t* q_start, const int32_t* context_lens, int64_t requests, int64_t tokens,
               int64_t heads, int64_t kv_heads, int64_t dim, float scale, T* out, int threads,
               const rope::Tokens<T>* turned) {
  std::vector<Span> spans;
  int64_t wrong =
      read_spans(page_count, block_table, table_width, q_start, context_lens, requests, tokens, spans);
  if (wrong >= 0) return wrong;
  wrong = outside(slots, tokens, page_count);
  if (wrong >= 0) return requests + wrong;
  const Fresh<T, P> fresh{k, v, k_stride, v_stride, slots, k_pages, v_pages, turned};
  const bool decoding =
      std::all_of(spans.begin(), spans.end(), [](const Span& span) { return span.count == 1; });
  if (!decoding) {
    if (turned)
      parallel::parallel_for((tokens + kTurned - 1) / kTurned, threads, [&](int64_t block) {
        for (int64_t t = block * kTurned; t < std::min(tokens, (block + 1) * kTurned); ++t)
          turned->turn_heads(t, 0, kv_heads);
      });
    write_pages(k, k_stride, v, v_stride, k_pages, v_pages, page_count, slots, tokens, kv_heads, dim, threads);
  }
  attend_all(make_pass(q, k_pages, v_pages, heads, kv_heads, dim, scale, out, nullptr), spans,
             decoding ? &fresh : nullptr, threads);
  return -1;
}

}  // namespace

template <class T, class P>
int64_t attention_append(const T* q, const T* k, int64_t k_stride, const T* v, int64_t v_stride, P* k_pages,
                         P* v_pages, int64_t page_count, const int32_t* slots, const int32_t* block_table,
                         int64_t table_width, const int32_t* q_start, const int32_t* context_lens,
                         int64_t requests, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim,
                         float scale, T* out, int threads) {
  return append(q, k, k_stride, v, v_stride, k_pages, v_pages, page_count, slots, block_table, table_width,
                q_start, context_lens, requests, tokens, heads, kv_heads, dim, scale, out, threads,
                (const rope::Tokens<T>*)nullptr);
}

template <class T, class P>
int64_t rope_append(const T* qkv, const int32_t* positions, const T* q_weight, const T* k_weight,
                    const float* table, int64_t length, float eps, T* q, T* k, P* k_pages, P* v_pages,
                    int64_t page_count, const int32_t* slots, const int32_t* block_table, int64_t table_width,
                    const int32_t* q_start, const int32_t* context_lens, int64_t requests, int64_t tokens,
                    int64_t heads, int64_t kv_heads, int64_t dim, float scale, T* out, int threads) {
  if (int64_t wrong = rope::outside(positions, tokens, length); wrong >= 0) return requests + tokens + wrong;
  const rope::Tokens<T> turned{qkv, positions, q_weight, k_weight, table,    length,
                               eps, q,         k,        heads,    kv_heads, dim};
  return append(q, k, kv_heads * dim, turned.values(), turned.stride(), k_pages, v_pages, page_count, slots,
                block_table, table_width, q_start, context_lens, requests, tokens, heads, kv_heads, dim, scale,
                out, threads, &turned);
}

template void attention_forward(const float*, const float*, const float*, const int32_t*, int64_t, int64_t,
                                int64_t, int64_t, float, float*, float*, float*, float*, int);
template void attention_forward(const bf16*, const bf16*, const bf16*, const int32_t*, int64_t, int64_t,
                                int64_t, int64_t, float, bf16*, bf16*, bf16*, float*, int);

#define INSTANTIATE(T, P)                                                                                      \
  template int64_t attention_paged(const T*, const P*, const P*, int64_t, const int32_t*, int64_t,             \
                                   const int32_t*, const int32_t*, int64_t, int64_t, int64_t, int64_t,         \
                                   int64_t, float, T*, int);                                                   \
  template int64_t attention_append(const T*, const T*, int64_t, const T*, int64_t, P*, P*, int64_t,           \
                                    const int32_t*, const int32_t*, int64_t, const int32_t*, const int32_t*,   \
                                    int64_t, int64_t, int64_t, int64_t, int64_t, float, T*, int);              \
  template int64_t rope_append(const T*, const int32_t*, const T*, const T*, const float*, int64_t, float, T*, \
                               T*, P*, P*, int64_t, const int32_t*, const int32_t*, int64_t, const int32_t*,   \
                               const int32_t*, int64_t, int64_t, int64_t, int64_t, int64_t, float, T*, int);   \
  template int64_t write_pages(const T*, int64_t, const T*, int64_t, P*, P*, int64_t, const int32_t*, int64_t, \
                               int64_t, int64_t, int);
INSTANTIATE(float, float)
INSTANTIATE(bf16, bf16)
INSTANTIATE(float, uint8_t)
INSTANTIATE(bf16, uint8_t)
