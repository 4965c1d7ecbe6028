// Causal attention over pages of keys and values, forward: packed documents and paged requests are one kernel.
//
// A task is one kv head and the queries at the positions of one page (64 of them), with all query heads of the
// group as its rows, so that a page of keys and values is read once for them all. A short packed document is
// one task for each kv head, with all queries: the task packs its pages itself, and they never leave its core's
// cache. Rows meet the pages in order, as online softmax does:
//
//   s = scale log2(e) q k^T     m' = max(m, max s)     p = 2^(s - m')     l' = l 2^(m - m') + sum p
//   o' = o 2^(m - m') + p v     and at the end o / l
//
// The sum over D is one chain of multiply-adds, and p v is one chain over the keys. The keys of a page lie in
// lanes, and lanes are added in one order. So a row's bits depend only on its own document up to its own
// position: not on the rows beside it, on how a prompt was cut into chunks, on where pages lie, or on threads.
// Later keys are masked by selection, never by multiplying with zero, so nothing in them reaches a row, not
// even NaN. The work is 4 D flops and one exponential for each pair of query and key; the scores of 6 rows x 64
// keys live in L1, and so does a page of keys and values.
//
// Pages of bytes (the int8 KV cache) are in attention_codes.h.
#include "attention.h"

#include <algorithm>
#include <numeric>
#include <type_traits>
#include <vector>

#include "attention_codes.h"
#include "attention_rows.h"
#include "integers.h"
#include "ops.h"
#include "parallel.h"
#include "rope.h"

namespace attention {
namespace {

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

// The queries of `span` at the positions of page `tile`, for one kv head, whose pages are `kept`.
//
// The loop is pipelined by one step: the scores of the next strip of rows (or of the next page) are computed
// before those at hand become weights, so that the processor has products to do while it waits for maxima and
// sums.
//
// Prefetching: when decoding, pages lie all over memory and are read once, so the product with a page's keys
// prefetches its values, and the product with the values prefetches the keys after the next, in the end those
// of the next task (`then`, or null). Otherwise `soon` is stepped through.
template <bool Decoding, class T>
void attend(const Call<T, T>& call, const Span& span, const HeadPages<T>& kept, int64_t tile, int64_t kv_head,
            const Word<T>* then, Prefetcher& soon) {
  constexpr int kSteps = Words<T>::kSteps;
  const int64_t dim = call.dim, width = padded(dim), q_words = across_rows<T>(dim);
  const Tile here(call, span, tile, kv_head);
  const int64_t rows = here.rows;

  auto* q = room<Word<T>, kQueries>(rows * q_words);
  float* o = room<float, kOut>(rows * width);
  Running* state = room<Running, kRunning>(ceil_div(rows, kRows));
  int* valid = room<int, kValid>(rows);  // keys on the tile's own page
  here.each_row(tile, [&](int64_t row, int64_t source, int seen) {
    write_rows(call.q + source * dim, 0, dim, 1, q + row * q_words);
    valid[row] = seen;
  });
  begin_rows(state, ceil_div(rows, kRows));

  alignas(64) float scores[2][kRows * kPage];
  alignas(64) T weights[kRows * kPage];
  Shift shift;
  struct Unit {  // a strip of rows on a page
    int64_t page, r, strip, longest, common;
    const int* valid;
    int64_t columns() const { return round_up(longest, 2 * kLanes); }
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
                         round_up(at.longest, kLanes), {true}, ahead<Decoding>(k, kept.values(at.page)));
  };
  auto meet = [&](const Unit& at, float* s) {
    with_rows(at.strip, [&](auto strip) {
      update_maxima<strip>(s, at.valid, at.columns(), call.scale, state[at.r / kRows], shift);
    });
  };
  Unit units[2], *at = &units[0], *next = &units[1];  // never copied: product_tile() tells why
  float *s = scores[0], *next_s = scores[1];
  soon.spread(2 * (tile + 1) * ceil_div(rows, kRows));
  place(*at, 0, 0), score(*at, s), meet(*at, s);
  for (bool last = false; !last;) {
    const bool turn = at->r + kRows >= rows;
    last = turn && at->page == tile;
    if (!Decoding) soon.step();
    if (!last) place(*next, at->page + turn, turn ? 0 : at->r + kRows), score(*next, next_s);
    if (!Decoding) soon.step();
    with_rows(at->strip, [&](auto strip) {
      make_weights<T, strip>(s, at->valid ? 1.0f : call.scale, at->columns(), state[at->r / kRows], shift,
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
  finish<kRows>(call, here, tile, state, o);
}

// Keys and values of new tokens, rows of kv_heads * dim that lie `stride` apart, and where they go.
template <class T, class P>
struct Fresh {
  const T *k, *v;
  int64_t k_stride, v_stride;
  const int32_t* slots;
  P *k_pages, *v_pages;
  const rope::Tokens<T>* rotated = nullptr;  // what makes queries and keys, if they are not there yet

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

constexpr int64_t kRotated = 16;  // tokens a task, where they are rotated before attention

// All queries of all spans. Where each span is one query, `fresh` (or null) is written on the way: a token's
// keys and values go to the page that its query reads next.
template <class T, class P>
void attend_all(const Call<T, P>& call, const std::vector<Span>& spans, const Fresh<T, P>* fresh, int threads) {
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
  const int64_t total = (int64_t)tasks.size() * call.kv_heads;
  // A task of decoding is some neighbours in memory, each of which asks for the next: of one request as many as
  // there are for a thread, since all are equally long.
  const int64_t equal = tasks.size() == 1 ? ceil_div(total, threads) : total / (8 * threads);
  const int64_t each = decoding ? std::max<int64_t>(1, equal) : 1;
  parallel::parallel_for(ceil_div(total, each), threads, [&](int64_t chunk) {
    const int64_t end = std::min(total, (chunk + 1) * each);
    for (int64_t i = chunk * each; i < end; ++i) {
      const Task& task = tasks[i / call.kv_heads];
      const int64_t head = i % call.kv_heads;
      if (fresh && fresh->rotated) fresh->rotated->rotate_heads(task.span->first, head, 1);
      if (fresh) fresh->write(task.span->first, 1, head, call.kv_heads, call.dim);
      auto kept = [&](int64_t at) { return call.kept(*tasks[at / call.kv_heads].span, at % call.kv_heads); };
      const Word<P>* then = i + 1 < end ? kept(i + 1).keys(0) : nullptr;
      Prefetcher soon;
      if (task.span->count == 1) {
        attend<true>(call, *task.span, kept(i), task.tile, head, then, soon);
      } else {
        if (const int64_t at = i + threads; at < total) {
          const Task& next = tasks[at / call.kv_heads];
          Tile(call, *next.span, next.tile, at % call.kv_heads).add_rows(soon, call);
        }
        attend<false>(call, *task.span, kept(i), task.tile, head, then, soon);
      }
    }
  });
}

template <class T, class P>
Call<T, P> make_call(const T* q, const P* k_pages, const P* v_pages, int64_t heads, int64_t kv_heads,
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
  const auto call = make_call<T, T>(q, k_pages, v_pages, heads, kv_heads, dim, scale, out, lse);
  parallel::parallel_for((int64_t)parts.size() * kv_heads, threads, [&](int64_t i) {
    pack(parts[i / kv_heads], i % kv_heads, reinterpret_cast<Word<T>*>(k_pages) + i * k_words,
         reinterpret_cast<Word<T>*>(v_pages) + i * v_words);
  });
  attend_all(call, shared, (const Fresh<T, T>*)nullptr, threads);
  auto add_tile = [&](Prefetcher& soon, const Span& span, int64_t tile, int64_t head) {
    const Tile next(call, span, tile, head);
    next.add_rows(soon, call);
    for (const T* rows : {k, v})
      soon.add(rows + (next.first * kv_heads + head) * dim, dim, kv_heads * dim, next.end - next.begin);
  };
  const int64_t tasks = (int64_t)owned.size() * kv_heads;
  parallel::parallel_for(tasks, threads, [&](int64_t i) {
    const Span& span = owned[i / kv_heads];
    const int64_t head = i % kv_heads, pages = ceil_div(span.count, kPage);
    auto *keys = room<Word<T>, kKeys>(pages * k_words), *values = room<Word<T>, kValues>(pages * v_words);
    const HeadPages<T> kept{keys, values, span.pages, k_words, v_words};
    for (int64_t tile = 0; tile < pages; ++tile) {
      pack({span.first + tile * kPage, std::min<int64_t>(kPage, span.count - tile * kPage)}, head,
           keys + tile * k_words, values + tile * v_words);
      Prefetcher soon;
      if (tile + 1 < pages) {
        add_tile(soon, span, tile + 1, head);
      } else if (i + threads < tasks) {
        add_tile(soon, owned[(i + threads) / kv_heads], 0, (i + threads) % kv_heads);
      }
      attend<false>(call, span, kept, tile, head, nullptr, soon);
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
    attend_all(make_call(q, k_pages, v_pages, heads, kv_heads, dim, scale, out, nullptr), spans,
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

// attention_append() and rope_append(), whose `rotated` makes queries and keys.
template <class T, class P>
int64_t append(const T* q, const T* k, int64_t k_stride, const T* v, int64_t v_stride, P* k_pages, P* v_pages,
               int64_t page_count, const int32_t* slots, const int32_t* block_table, int64_t table_width,
               const int32_t* q_start, const int32_t* context_lens, int64_t requests, int64_t tokens,
               int64_t heads, int64_t kv_heads, int64_t dim, float scale, T* out, int threads,
               const rope::Tokens<T>* rotated) {
  std::vector<Span> spans;
  int64_t wrong =
      read_spans(page_count, block_table, table_width, q_start, context_lens, requests, tokens, spans);
  if (wrong >= 0) return wrong;
  wrong = outside(slots, tokens, page_count);
  if (wrong >= 0) return requests + wrong;
  const Fresh<T, P> fresh{k, v, k_stride, v_stride, slots, k_pages, v_pages, rotated};
  const bool decoding =
      std::all_of(spans.begin(), spans.end(), [](const Span& span) { return span.count == 1; });
  if (!decoding) {
    if (rotated)
      parallel::parallel_for(ceil_div(tokens, kRotated), threads, [&](int64_t block) {
        for (int64_t t = block * kRotated; t < std::min(tokens, (block + 1) * kRotated); ++t)
          rotated->rotate_heads(t, 0, kv_heads);
      });
    write_pages(k, k_stride, v, v_stride, k_pages, v_pages, page_count, slots, tokens, kv_heads, dim, threads);
  }
  attend_all(make_call(q, k_pages, v_pages, heads, kv_heads, dim, scale, out, nullptr), spans,
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
  const rope::Tokens<T> rotated{qkv, positions, q_weight, k_weight, table,    length,
                                eps, q,         k,        heads,    kv_heads, dim};
  return append(q, k, kv_heads * dim, rotated.values(), rotated.stride(), k_pages, v_pages, page_count, slots,
                block_table, table_width, q_start, context_lens, requests, tokens, heads, kv_heads, dim, scale,
                out, threads, &rotated);
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
