// Causal attention of packed documents, backward.
//
// A task is one query head of one document. Where the document is short or no head shares its keys, it is one
// kv head with all its query heads, which packs its keys and values itself and keeps them and its sums near its
// core. It goes through the queries in tiles of 64 and, for each, through the pages of keys up to the tile's
// own, computing the scores again (five products of 64 x 64 x D instead of storing T x T):
//
//   p = 2^(s - lse)   dp = dout v^T   ds = p (dp - sum(dout out))   dv += p^T dout   dk += ds^T q   dq += ds k
//
// and at last dq and dk are multiplied by the scale. dk and dv of a query head are summed in float in rows of
// its own; heads of a group are added afterwards, in order. Every sum has one order, so results do not depend
// on threads. 10 D flops a pair of query and key.
#include <algorithm>
#include <cmath>
#include <limits>

#include "attention.h"
#include "integers.h"
#include "ops.h"
#include "parallel.h"

namespace attention {
namespace {

// 64 x 64 numbers, a row a query, as left factors: of ds k by rows, of p^T dout and ds^T q by columns. In float
// one block is both; in bf16 a word of `by_rows` holds two keys, one of `by_columns` two queries.
template <class T>
struct Block {
  Word<T>*by_rows, *by_columns;
};

// One query head of one document: pages of its keys (both ways) and values, and its rows.
template <class T>
struct Head {
  const T *q, *out, *dout;  // `row` apart
  const float* lse;         // `lse_row` apart, in nats
  int64_t row, lse_row, length, dim;
  const Word<T>*k_across, *k_along, *v_across;
  int64_t across, along;  // from a page to the next
  float scale;
  T* dq;           // `row` apart
  float *dk, *dv;  // length rounded up to pages, rows of padded(dim)

  // What the tile reads and writes that begins at a row.
  void add_rows(Prefetcher& soon, int64_t begin) const {
    const int64_t count = std::min<int64_t>(kPage, length - begin);
    for (const T* rows : {q, dout, out, (const T*)dq}) soon.add(rows + begin * row, dim, row, count);
  }
};

template <class T>
void zero_and_write(const T* rows, int64_t stride, int64_t dim, int64_t count, Word<T>* across,
                    Word<T>* along) {
  if (across) {
    if (count < kPage) std::fill(across, across + across_size<T>(dim), Word<T>{});
    write_across(rows, stride, dim, 0, count, across);
  }
  if (along) {
    if (count < kPage) std::fill(along, along + along_size<T>(dim), Word<T>{});
    write_along(rows, stride, dim, 0, count, along);
  }
}

template <class T>
float dot(const T* a, const T* b, int64_t n) {
  f32 total = zero();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) total = fma(load(a + i), load(b + i), total);
  if (i < n) total = fma(load_n(a + i, (int)(n - i)), load_n(b + i, (int)(n - i)), total);
  return sum(total);
}

// What a strip's rows need besides their scores.
struct Rows {
  const float *lse, *pull;  // lse in units of log 2
  float scale;
};

// One vector of a row's weights, from its scores, and of the gradients of its scores but for their scale, from
// those of its weights. The first n lanes count, the others become 0; n may be anything.
template <class T>
inline void slope(const float* s, const float* dp, int n, float lse, float pull, float scale, f32& weight,
                  f32& gradient) {
  weight = exp2_nonpositive<T>(fma(load(s), set(scale * 1.44269504f), -set(lse)));
  gradient = weight * (load(dp) - set(pull));
  if (n < kLanes) {
    weight = keep_n(weight, n, 0.0f);
    gradient = keep_n(gradient, n, 0.0f);
  }
}

// The weights of a strip's rows, from row `first` of the tile on, into `p` by columns, and the gradients of
// their scores into `ds` both ways, for the first `columns` keys. Row i counts keys up to valid + i, and rows
// from `rows` on none: they fill up the last pair.
inline void slopes(const float* s, const float* dp, const Rows& of, int64_t first, int64_t rows,
                   int64_t columns, int64_t valid, const Block<float>& p, const Block<float>& ds) {
  for (int64_t i = 0; i < rows; ++i, s += kPage, dp += kPage)
    for (int64_t j = 0; j < columns; j += kLanes) {
      f32 weight, gradient;
      const int64_t row = first + i;
      slope<float>(s + j, dp + j, (int)(valid + i - j), of.lse[row], of.pull[row], of.scale, weight, gradient);
      store(p.by_columns + row * kPage + j, weight), store(ds.by_columns + row * kPage + j, gradient);
    }
}
inline void slopes(const float* s, const float* dp, const Rows& of, int64_t first, int64_t rows,
                   int64_t columns, int64_t valid, const Block<bf16>& p, const Block<bf16>& ds) {
  for (int64_t i = 0; i < rows; i += 2, s += 2 * kPage, dp += 2 * kPage)
    for (int64_t j = 0; j < columns; j += 2 * kLanes) {
      f32 weight[2][2], gradient[2][2];  // (row, vector)
#pragma GCC unroll 2
      for (int r = 0; r < 2; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
          const int64_t row = first + i + r, at = r * kPage + j + v * kLanes;
          const int64_t n = i + r < rows ? valid + i + r - j - v * kLanes : 0;
          slope<bf16>(s + at, dp + at, (int)n, of.lse[row], of.pull[row], of.scale, weight[r][v],
                      gradient[r][v]);
        }
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const int64_t at = (first + i) / 2 * kPage + j + v * kLanes;
        store_pairs(p.by_columns + at, weight[0][v], weight[1][v]);
        store_pairs(ds.by_columns + at, gradient[0][v], gradient[1][v]);
      }
#pragma GCC unroll 2
      for (int r = 0; r < 2; ++r)
        store_twice(reinterpret_cast<bf16*>(ds.by_rows) + (first + i + r) * kPage + j, gradient[r][0],
                    gradient[r][1]);
    }
}

// What comes after the head is added to its argument by `then`: its last tile brings that near.
template <class T, class F>
void backward_head(const Head<T>& head, F&& then) {
  constexpr int kSteps = Words<T>::kSteps;
  constexpr int64_t kBlock = kPage * kPage / kSteps;  // words
  const int64_t dim = head.dim, width = padded(dim), words = across_rows<T>(dim);
  Word<T>* memory = room<Word<T>, kRowsOfTile>(2 * kPage * words + 2 * along_size<T>(dim));
  Word<T>*q_rows = memory, *dout_rows = q_rows + kPage * words, *q_along = dout_rows + kPage * words;
  Word<T>*dout_along = q_along + along_size<T>(dim), *blocks = room<Word<T>, kBlocks>(3 * kBlock);
  const Block<T> p{nullptr, blocks}, ds{kSteps == 1 ? blocks + kBlock : blocks + 2 * kBlock, blocks + kBlock};
  float* dq = room<float, kQueryGradients>(kPage * width);
  alignas(64) float s[kRows * kPage] = {}, dp[kRows * kPage] = {};
  float lse[kPage] = {}, pull[kPage] = {};
  const int64_t pages = ceil_div(head.length, kPage);

  for (int64_t tile = 0; tile < pages; ++tile) {
    const int64_t begin = tile * kPage, count = std::min<int64_t>(kPage, head.length - begin);
    const int64_t steps = ceil_div(count, kSteps);
    const T *q = head.q + begin * head.row, *dout = head.dout + begin * head.row;
    write_rows(q, head.row, dim, count, q_rows);
    write_rows(dout, head.row, dim, count, dout_rows);
    zero_and_write<T>(q, head.row, dim, count, nullptr, q_along);
    zero_and_write<T>(dout, head.row, dim, count, nullptr, dout_along);
    for (int64_t i = 0; i < count; ++i) {
      lse[i] = head.lse[(begin + i) * head.lse_row] * 1.44269504f;
      pull[i] = dot(dout + i * head.row, head.out + (begin + i) * head.row, dim);
    }
    Prefetcher soon;
    if (tile + 1 < pages) {
      head.add_rows(soon, begin + kPage);
    } else {
      then(soon);
    }
    soon.spread(2 * (tile + 1) * ceil_div(count, kRows));
    for (int64_t page = 0; page <= tile; ++page) {
      const bool own = page == tile;
      const Word<T>* k = head.k_across + page * head.across;
      const Word<T>* v = head.v_across + page * head.across;
      for (int64_t r = 0; r < count; r += kRows) {
        const int64_t strip = std::min<int64_t>(kRows, count - r);
        auto columns = [&](int64_t unit) { return own ? round_up(r + strip, unit) : kPage; };
        product<T>({q_rows + r * words, words, 1}, k, kPage, words, s, kPage, strip, columns(kLanes), {true});
        soon.step();
        product<T>({dout_rows + r * words, words, 1}, v, kPage, words, dp, kPage, strip, columns(kLanes),
                   {true});
        soon.step();
        slopes(s, dp, {lse, pull, head.scale}, r, strip, columns(kSteps * kLanes), own ? r + 1 : kPage, p, ds);
      }
      float *dk = head.dk + page * kPage * width, *dv = head.dv + page * kPage * width;
      const int64_t keys = own ? count : kPage;
      // On the diagonal, queries before a strip's first key give it nothing. The diagonal is also where a
      // page's sums begin.
      auto add_transposed = [&](const Block<T>& left, const Word<T>* right, float* sums) {
        for (int64_t j = 0; j < keys; j += own ? kRows : kPage) {
          const int64_t from = own ? j / kSteps : 0, n = own ? std::min<int64_t>(kRows, keys - j) : kPage;
          product<T>({left.by_columns + j + from * kPage, 1, kPage}, right + from * width, width, steps - from,
                     sums + j * width, width, n, width, {own});
        }
      };
      add_transposed(p, dout_along, dv);
      add_transposed(ds, q_along, dk);
      const Word<T>* k_along = head.k_along + page * head.along;
      for (int64_t r = 0; r < count; r += own ? kRows : kPage) {
        const int64_t n = std::min<int64_t>(own ? kRows : kPage, count - r);
        const int64_t seen = own ? ceil_div(r + n, kSteps) : kPage / kSteps;
        product<T>({ds.by_rows + r * kPage / kSteps, kPage / kSteps, 1}, k_along, width, seen, dq + r * width,
                   width, n, width, {page == 0});
      }
    }
    for (int64_t i = 0; i < count; ++i)
      each_vector(dim, [&](int64_t d, int n) {
        put(head.dq + (begin + i) * head.row + d, load(dq + i * width + d) * set(head.scale), n);
      });
  }
}

}  // namespace
}  // namespace attention

using namespace attention;

template <class T>
void attention_backward(const T* dout, const T* q, const T* k, const T* v, const T* out, const float* lse,
                        const int32_t* cu_seqlens, int64_t documents, int64_t heads, int64_t kv_heads,
                        int64_t dim, float scale, T* pages, float* partial, T* dq, T* dk, T* dv, int threads) {
  const int64_t group = heads / kv_heads, width = padded(dim), across = across_size<T>(dim),
                along = along_size<T>(dim), rows = kPage * width;
  // What is made of a page of a kv head: its keys both ways and its values, and the sums of the query heads.
  const int64_t words = 2 * across + along, sums = 2 * group * rows;
  const int64_t most = group == 1 ? std::numeric_limits<int64_t>::max()
                                  : most_owned(cu_seqlens, documents, kv_heads,
                                               words * sizeof(Word<T>) + sums * sizeof(float), threads);
  struct Document {
    int64_t first, length, pages;  // its first token; how many
    int64_t page;                  // its first one among those of all documents that threads share
  };
  std::vector<Document> owned, shared;
  int64_t total = 0;  // pages that are shared
  for (int64_t b : longest_first(cu_seqlens, documents)) {
    const int64_t first = cu_seqlens[b], length = cu_seqlens[b + 1] - first, pages = ceil_div(length, kPage);
    if (length <= most) {
      owned.push_back({first, length, pages, 0});
    } else {
      shared.push_back({first, length, pages, total});
      total += pages;
    }
  }

  // Where all that is, for one kv head of a document: dk and dv of its query heads are `next` apart.
  struct Place {
    Word<T>*k_across, *v_across, *k_along;
    float *dk, *dv;
    int64_t next;
  };
  auto pack = [&](const Document& of, int64_t kv_head, const Place& to) {
    for (int64_t page = 0; page < of.pages; ++page) {
      const int64_t t = page * kPage, count = std::min<int64_t>(kPage, of.length - t);
      const int64_t row = ((of.first + t) * kv_heads + kv_head) * dim;
      zero_and_write(k + row, kv_heads * dim, dim, count, to.k_across + page * across,
                     to.k_along + page * along);
      zero_and_write<T>(v + row, kv_heads * dim, dim, count, to.v_across + page * across, nullptr);
    }
  };
  auto query_head = [&](const Document& of, int64_t head, const Place& at) -> Head<T> {
    const int64_t row = (of.first * heads + head) * dim, skip = head % group * at.next;
    return {q + row,     out + row,  dout + row,  lse + of.first * heads + head,
            heads * dim, heads,      of.length,   dim,
            at.k_across, at.k_along, at.v_across, across,
            along,       scale,      dq + row,    at.dk + skip,
            at.dv + skip};
  };
  auto add_group = [&](const Document& of, int64_t kv_head, const Place& at) {
    const int64_t row = (of.first * kv_heads + kv_head) * dim;
    auto add = [&](const float* from, float unit, T* to) {
      for (int64_t t = 0; t < of.length; ++t, from += width, to += kv_heads * dim)
        each_vector(dim, [&](int64_t d, int n) {
          f32 value = zero();
          for (int64_t g = 0; g < group; ++g) value += load(from + g * at.next + d);
          put(to + d, value * set(unit), n);
        });
    };
    add(at.dk, scale, dk + row), add(at.dv, 1.0f, dv + row);
  };

  // Of what is shared, pages of a kv head are neighbours: all its keys across, its values across, its keys
  // along.
  auto place = [&](const Document& of, int64_t kv_head) -> Place {
    auto* k_across = reinterpret_cast<Word<T>*>(pages);
    Word<T>*v_across = k_across + kv_heads * total * across, *k_along = v_across + kv_heads * total * across;
    const int64_t at = kv_head * total + of.page;
    float* dk_sums = partial + (kv_head * group * total + of.page) * rows;
    return {k_across + at * across,         v_across + at * across,
            k_along + at * along,           dk_sums,
            dk_sums + heads * total * rows, total * rows};
  };
  const int64_t units = (int64_t)shared.size() * kv_heads;
  parallel::parallel_for(units, threads, [&](int64_t i) {
    const Document& of = shared[i / kv_heads];
    pack(of, i % kv_heads, place(of, i % kv_heads));
  });
  parallel::parallel_for(units * group, threads, [&](int64_t i) {
    const Document& of = shared[i / heads];
    const int64_t head = i % heads, kv_head = head / group;
    backward_head(query_head(of, head, place(of, kv_head)), [&](Prefetcher& soon) {
      if (i + threads < units * group)
        query_head(shared[(i + threads) / heads], (i + threads) % heads, {}).add_rows(soon, 0);
    });
  });
  parallel::parallel_for(units, threads, [&](int64_t i) {
    const Document& of = shared[i / kv_heads];
    add_group(of, i % kv_heads, place(of, i % kv_heads));
  });
  const int64_t tasks = (int64_t)owned.size() * kv_heads;
  parallel::parallel_for(tasks, threads, [&](int64_t i) {
    const Document& of = owned[i / kv_heads];
    const int64_t kv_head = i % kv_heads;
    auto* packed = room<Word<T>, kPacked>(of.pages * words);
    auto* dk_sums = room<float, kKeyGradients>(of.pages * sums);
    const Place at{packed,  packed + of.pages * across,        packed + 2 * of.pages * across,
                   dk_sums, dk_sums + group * of.pages * rows, of.pages * rows};
    pack(of, kv_head, at);
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
      backward_head(query_head(of, head, at), [&](Prefetcher& soon) {
        if ((head + 1) % group) return query_head(of, head + 1, at).add_rows(soon, 0);
        auto add_keys = [&](const T* rows, const Document& from, int64_t of_head) {
          soon.add(rows + (from.first * kv_heads + of_head) * dim, dim, kv_heads * dim, from.length);
        };
        add_keys(dk, of, kv_head), add_keys(dv, of, kv_head);
        if (i + threads >= tasks) return;
        const Document& next = owned[(i + threads) / kv_heads];
        const int64_t next_head = (i + threads) % kv_heads;
        add_keys(k, next, next_head), add_keys(v, next, next_head);
        query_head(next, next_head * group, {}).add_rows(soon, 0);
      });
    add_group(of, kv_head, at);
  });
}

#define INSTANTIATE(T)                                                                                       \
  template void attention_backward<T>(const T*, const T*, const T*, const T*, const T*, const float*,        \
                                      const int32_t*, int64_t, int64_t, int64_t, int64_t, float, T*, float*, \
                                      T*, T*, T*, int);
INSTANTIATE(float)
INSTANTIATE(bf16)
