// Causal attention over pages of keys and values, forward: packed documents and paged requests are one kernel.
//
// A task is one kv head and the queries that lie in one page's worth of positions, with all query heads of the
// group as its rows, so a page of keys and values is read once for them all. Rows meet the pages in order:
//
//   s = scale log2(e) q k^T     m' = max(m, max s)     p = 2^(s - m')     l' = l 2^(m - m') + sum p
//   o' = o 2^(m - m') + p v     and at the end o / l
//
// The sum over D is one chain, p v one chain over keys; keys of a page lie in lanes, and lanes are added in one
// order. So a row's bits depend on its own document up to its own position only: not on the rows beside it, on
// chunks, pages' places or threads. Later keys are left out by choosing, never by multiplying with zero, so
// nothing in them reaches a row, not even NaN. Work: 4 D flops and one exponential a pair of query and key;
// scores of 6 rows x 64 keys live in L1, a page of keys and values too.
#include "attention.h"

#include <algorithm>
#include <cmath>

#include "ops.h"
#include "parallel.h"

namespace attention {
namespace {

// Queries of one document: rows first ... first + count - 1, the last of them at position context - 1.
struct Span {
  int64_t first, count, context;
  const int32_t* pages;
};

template <class T>
struct Pass {
  const T* q;
  const Word<T>*k_pages, *v_pages;
  int64_t heads, kv_heads, dim;
  float scale;
  T* out;
  float* lse;  // or null

  int64_t group() const { return heads / kv_heads; }
  const Word<T>* keys(const Span& span, int64_t page, int64_t kv_head) const {
    return k_pages + (span.pages[page] * kv_heads + kv_head) * across_size<T>(dim);
  }
  const Word<T>* values(const Span& span, int64_t page, int64_t kv_head) const {
    return v_pages + (span.pages[page] * kv_heads + kv_head) * along_size<T>(dim);
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

// Turns the scores of R rows into weights, a left factor, and rescales what the rows have so far. Of row r the
// first valid[r] keys count (null: all 64), of none those from `columns` on. Rows go through each step
// together: alone, each would wait for its own maximum and sum.
template <class T, int R>
inline void soften_rows(float* s, const int* valid, int64_t columns, float scale, bool first, Running& state,
                        float* o, int64_t width, T* weights) {
  f32 tops[R], totals[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) tops[r] = set(kNone);
  for (int64_t j = 0; j < columns; j += kLanes)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      f32 x = load(s + r * kPage + j) * set(scale);
      if (valid) store(s + r * kPage + j, x = keep_n(x, (int)(valid[r] - j), kNone));
      tops[r] = max(x, tops[r]);
    }
  alignas(64) float found[kRoom], shift[kRoom], shrink[kRoom];
  combine_rows<R>(tops, found, [](f32 a, f32 b) { return a > b ? a : b; });
  bool grown = false;
  for (int r = 0; r < R; r += kLanes) {
    const f32 before = load(state.most + r), most = max(load(found + r), before);
    const f32 from = most == set(kNone) ? zero() : most;  // -inf - -inf would be NaN
    grown |= lanes_of(most > before) != 0;
    store(state.most + r, most), store(shift + r, from), store(shrink + r, exp2_nonpositive(before - from));
  }
  if (grown && !first)  // at first all is 0
    for (int r = 0; r < R; ++r)
      for (int64_t d = 0; d < width; d += kLanes)
        store(o + r * width + d, load(o + r * width + d) * set(shrink[r]));
  const f32 unit = set(valid ? 1.0f : scale);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const f32 from = set(shift[r]);
    f32 total = zero();
    for (int64_t j = 0; j < columns; j += 2 * kLanes) {
      f32 a = exp2_nonpositive(load(s + r * kPage + j) * unit - from);
      f32 b = exp2_nonpositive(load(s + r * kPage + j + kLanes) * unit - from);
      total += a;
      total += b;
      store_twice(weights + r * kPage + j, a, b);
    }
    totals[r] = total;
  }
  combine_rows<R>(totals, found, [](f32 a, f32 b) { return a + b; });
  for (int r = 0; r < R; r += kLanes)
    store(state.sum + r, load(state.sum + r) * load(shrink + r) + load(found + r));
}

template <class T, class... More>
inline void soften(int64_t rows, More&&... more) {
  switch (rows) {
    case 6:
      return soften_rows<T, 6>(more...);
    case 5:
      return soften_rows<T, 5>(more...);
    case 4:
      return soften_rows<T, 4>(more...);
    case 3:
      return soften_rows<T, 3>(more...);
    case 2:
      return soften_rows<T, 2>(more...);
    case 1:
      return soften_rows<T, 1>(more...);
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

// Asks for `rows` rows of bytes, `stride` apart, to be brought near.
inline void fetch(const void* from, int64_t rows, int64_t bytes, int64_t stride) {
  const char* p = (const char*)from;
  for (int64_t r = 0; r < rows; ++r, p += stride)
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

// The queries of `span` at the positions of page `tile`, for one kv head. Decoding, whose pages lie all over
// memory and are read once, asks for each page before it is needed: the values while scores are computed, the
// keys of the next page, at last of the next task's (`then`, or null), while they become weights.
template <class T>
void attend(const Pass<T>& pass, const Span& span, int64_t tile, int64_t kv_head, const Word<T>* then) {
  constexpr int kSteps = Words<T>::kSteps;
  const int64_t group = pass.group(), dim = pass.dim, width = padded(dim), q_words = across_rows<T>(dim);
  const int64_t begin = std::max(span.context - span.count, tile * kPage);
  const int64_t end = std::min(span.context, (tile + 1) * kPage);
  const int64_t rows = (end - begin) * group;
  const int64_t first = span.first + begin - (span.context - span.count);
  auto source = [&](int64_t row) {
    return ((first + row / group) * pass.heads + kv_head * group + row % group);
  };

  auto* q = room<Word<T>, 0>(rows * q_words);
  float* o = room<float, 1>(rows * width);
  Running* state = room<Running, 2>((rows + kRows - 1) / kRows);
  int* valid = room<int, 7>(rows);  // keys on the tile's own page
  for (int64_t row = 0; row < rows; ++row) {
    write_rows(pass.q + source(row) * dim, 0, dim, 1, q + row * q_words);
    state[row / kRows].most[row % kRows] = kNone;
    state[row / kRows].sum[row % kRows] = 0.0f;
    valid[row] = (int)(begin + row / group + 1 - tile * kPage);
  }
  std::fill(o, o + rows * width, 0.0f);

  alignas(64) float s[kRows * kPage];
  alignas(64) T weights[kRows * kPage];
  for (int64_t page = 0; page <= tile; ++page) {
    const Word<T>*k = pass.keys(span, page, kv_head), *v = pass.values(span, page, kv_head);
    const bool decoding = span.count == 1;
    if (decoding) fetch(v, 1, (page == tile ? valid[0] : kPage) * width * (int64_t)sizeof(T), 0);
    for (int64_t r = 0; r < rows; r += kRows) {
      const int64_t strip = std::min<int64_t>(kRows, rows - r);
      const bool own = page == tile;
      const int64_t longest = own ? valid[r + strip - 1] : kPage, common = (own ? valid[r] : kPage) / kSteps;
      product<T>({q + r * q_words, q_words, 1}, k, kPage, q_words, s, kPage, strip,
                 (longest + kLanes - 1) / kLanes * kLanes, true);
      if (decoding && r == 0) {
        const Word<T>* next = page == tile ? then : pass.keys(span, page + 1, kv_head);
        if (next) fetch(next, q_words, (page + 1 == tile ? valid[0] : kPage) * 4, kPage * 4);
      }
      constexpr int64_t kTwice = 2 * kLanes;
      soften<T>(strip, s, own ? valid + r : nullptr, (longest + kTwice - 1) / kTwice * kTwice, pass.scale,
                page == 0, state[r / kRows], o + r * width, width, weights);
      const Left<T> p{reinterpret_cast<const Word<T>*>(weights), kPage / kSteps, 1};
      product<T>(p, v, width, common, o + r * width, width, strip, width, false);
      if (longest > common * kSteps)
        for (int64_t d = 0; d < width; d += 16)
          staircase<T, 16 / kLanes>(p, v + d, width, common, valid + r, (int)strip, o + r * width + d);
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    T* to = pass.out + source(row) * dim;
    const float most = state[row / kRows].most[row % kRows], sum = state[row / kRows].sum[row % kRows];
    const float inverse = 1.0f / sum;
    for (int64_t d = 0; d < dim; d += kLanes) {
      f32 value = load(o + row * width + d) * set(inverse);
      d + kLanes <= dim ? store(to + d, value) : store_n(to + d, value, (int)(dim - d));
    }
    if (pass.lse) pass.lse[source(row)] = most * 0.693147181f + std::log(sum);
  }
}

// Keys and values of new tokens, rows of kv_heads * dim that lie `stride` apart, and where they go.
template <class T>
struct Fresh {
  const T *k, *v;
  int64_t k_stride, v_stride;
  const int32_t* slots;
  T *k_pages, *v_pages;

  void write(int64_t token, int64_t head, int64_t kv_heads, int64_t dim) const {
    const int64_t at = slots[token] / kPage * kv_heads + head, place = slots[token] % kPage;
    write_across(k + token * k_stride + head * dim, 0, dim, place, 1,
                 reinterpret_cast<Word<T>*>(k_pages) + at * across_size<T>(dim));
    write_along(v + token * v_stride + head * dim, 0, dim, place, 1,
                reinterpret_cast<Word<T>*>(v_pages) + at * along_size<T>(dim));
  }
};

// All queries of all spans. Where each span is one query, `fresh` (or null) is written on the way: a token's
// keys and values go to the page that its query reads next.
template <class T>
void attend_all(const Pass<T>& pass, const std::vector<Span>& spans, const Fresh<T>* fresh, int threads) {
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
  const int64_t each = decoding ? std::max<int64_t>(1, total / (8 * threads)) : 1;  // neighbours in memory
  parallel::parallel_for((total + each - 1) / each, threads, [&](int64_t chunk) {
    const int64_t end = std::min(total, (chunk + 1) * each);
    for (int64_t i = chunk * each; i < end; ++i) {
      const Task& task = tasks[i / pass.kv_heads];
      const int64_t head = i % pass.kv_heads;
      if (fresh) fresh->write(task.span->first, head, pass.kv_heads, pass.dim);
      const Word<T>* then =
          i + 1 < end ? pass.keys(*tasks[(i + 1) / pass.kv_heads].span, 0, (i + 1) % pass.kv_heads) : nullptr;
      attend(pass, *task.span, task.tile, head, then);
    }
  });
}

template <class T>
Pass<T> make_pass(const T* q, const T* k_pages, const T* v_pages, int64_t heads, int64_t kv_heads, int64_t dim,
                  float scale, T* out, float* lse) {
  auto words = [](const T* p) { return reinterpret_cast<const Word<T>*>(p); };
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
  std::vector<int32_t> pages;         // every page in order: a document's are neighbours
  std::vector<int64_t> first, count;  // of each page's tokens
  for (int64_t b = 0; b < documents; ++b)
    for (int64_t t = cu_seqlens[b]; t < cu_seqlens[b + 1]; t += kPage) {
      pages.push_back((int32_t)pages.size());
      first.push_back(t);
      count.push_back(std::min<int64_t>(kPage, cu_seqlens[b + 1] - t));
    }
  parallel::parallel_for((int64_t)pages.size() * kv_heads, threads, [&](int64_t i) {
    int64_t page = i / kv_heads, row = first[page] * kv_heads + i % kv_heads;
    write_across(k + row * dim, kv_heads * dim, dim, 0, count[page],
                 reinterpret_cast<Word<T>*>(k_pages) + i * across_size<T>(dim));
    write_along(v + row * dim, kv_heads * dim, dim, 0, count[page],
                reinterpret_cast<Word<T>*>(v_pages) + i * along_size<T>(dim));
  });
  std::vector<Span> spans;
  int64_t page = 0;
  for (int64_t b = 0; b < documents; ++b) {
    int64_t length = cu_seqlens[b + 1] - cu_seqlens[b];
    spans.push_back({cu_seqlens[b], length, length, pages.data() + page});
    page += (length + kPage - 1) / kPage;
  }
  attend_all(make_pass(q, k_pages, v_pages, heads, kv_heads, dim, scale, out, lse), spans,
             (const Fresh<T>*)nullptr, threads);
}

template <class T>
int64_t attention_paged(const T* q, const T* k_pages, const T* v_pages, int64_t page_count,
                        const int32_t* block_table, int64_t table_width, const int32_t* q_start,
                        const int32_t* context_lens, int64_t requests, int64_t tokens, int64_t heads,
                        int64_t kv_heads, int64_t dim, float scale, T* out, int threads) {
  std::vector<Span> spans;
  int64_t wrong =
      read_spans(page_count, block_table, table_width, q_start, context_lens, requests, tokens, spans);
  if (wrong < 0)
    attend_all(make_pass(q, k_pages, v_pages, heads, kv_heads, dim, scale, out, nullptr), spans,
               (const Fresh<T>*)nullptr, threads);
  return wrong;
}

template <class T>
int64_t write_pages(const T* k, int64_t k_stride, const T* v, int64_t v_stride, T* k_pages, T* v_pages,
                    int64_t page_count, const int32_t* slots, int64_t tokens, int64_t kv_heads, int64_t dim,
                    int threads) {
  if (int64_t wrong = outside(slots, tokens, page_count); wrong >= 0) return wrong;
  const Fresh<T> fresh{k, v, k_stride, v_stride, slots, k_pages, v_pages};
  // A head is one task: tokens that share a word of a page never meet in two threads.
  parallel::parallel_for(kv_heads, tokens * kv_heads * dim < 16384 ? 1 : threads, [&](int64_t head) {
    for (int64_t t = 0; t < tokens; ++t) fresh.write(t, head, kv_heads, dim);
  });
  return -1;
}

template <class T>
int64_t attention_append(const T* q, const T* k, int64_t k_stride, const T* v, int64_t v_stride, T* k_pages,
                         T* v_pages, int64_t page_count, const int32_t* slots, const int32_t* block_table,
                         int64_t table_width, const int32_t* q_start, const int32_t* context_lens,
                         int64_t requests, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim,
                         float scale, T* out, int threads) {
  std::vector<Span> spans;
  int64_t wrong =
      read_spans(page_count, block_table, table_width, q_start, context_lens, requests, tokens, spans);
  if (wrong >= 0) return wrong;
  wrong = outside(slots, tokens, page_count);
  if (wrong >= 0) return requests + wrong;
  const Fresh<T> fresh{k, v, k_stride, v_stride, slots, k_pages, v_pages};
  const bool decoding =
      std::all_of(spans.begin(), spans.end(), [](const Span& span) { return span.count == 1; });
  if (!decoding)
    write_pages(k, k_stride, v, v_stride, k_pages, v_pages, page_count, slots, tokens, kv_heads, dim, threads);
  attend_all(make_pass(q, k_pages, v_pages, heads, kv_heads, dim, scale, out, nullptr), spans,
             decoding ? &fresh : nullptr, threads);
  return -1;
}

#define INSTANTIATE(T)                                                                                        \
  template void attention_forward<T>(const T*, const T*, const T*, const int32_t*, int64_t, int64_t, int64_t, \
                                     int64_t, float, T*, T*, T*, float*, int);                                \
  template int64_t attention_paged<T>(const T*, const T*, const T*, int64_t, const int32_t*, int64_t,         \
                                      const int32_t*, const int32_t*, int64_t, int64_t, int64_t, int64_t,     \
                                      int64_t, float, T*, int);                                               \
  template int64_t attention_append<T>(                                                                       \
      const T*, const T*, int64_t, const T*, int64_t, T*, T*, int64_t, const int32_t*, const int32_t*,        \
      int64_t, const int32_t*, const int32_t*, int64_t, int64_t, int64_t, int64_t, int64_t, float, T*, int);  \
  template int64_t write_pages<T>(const T*, int64_t, const T*, int64_t, T*, T*, int64_t, const int32_t*,      \
                                  int64_t, int64_t, int64_t, int);
INSTANTIATE(float)
INSTANTIATE(bf16)
