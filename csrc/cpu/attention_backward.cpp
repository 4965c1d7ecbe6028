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
#include <vector>

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
  const float *lse,
      *pull;  // lse in units of log 2; pull: sum(dout out), which every gradient of a score is less
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

// The way of one query head through its document: tile by tile of 64 queries, and for each page by page of
// keys. What a thread needs on the way is made once for all its heads (room()), or lies here, on its stack.
template <class T>
class Walk {
 public:
  explicit Walk(const Head<T>& head) : head_(head), words_(across_rows<T>(head.dim)), width_(padded(head.dim)) {
    q_rows_ = room<Word<T>, kRowsOfTile>(2 * kPage * words_ + 2 * along_size<T>(head.dim));
    dout_rows_ = q_rows_ + kPage * words_;
    q_along_ = dout_rows_ + kPage * words_;
    dout_along_ = q_along_ + along_size<T>(head.dim);
    constexpr int64_t kBlock = kPage * kPage / kSteps;  // words
    Word<T>* blocks = room<Word<T>, kBlocks>(3 * kBlock);
    p_ = {nullptr, blocks};
    ds_ = {kSteps == 1 ? blocks + kBlock : blocks + 2 * kBlock, blocks + kBlock};
    dq_ = room<float, kQueryGradients>(kPage * width_);
  }

  // While the last tile is computed, what add_next(Prefetcher&) adds is prefetched: the rows that come after
  // this head.
  template <class F>
  void run(F&& add_next) {
    const int64_t tiles = ceil_div(head_.length, kPage);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      load_tile(tile);
      Prefetcher soon;
      if (tile + 1 < tiles) {
        head_.add_rows(soon, (tile + 1) * kPage);
      } else {
        add_next(soon);
      }
      soon.spread(2 * (tile + 1) * ceil_div(count_, kRows));
      for (int64_t page = 0; page <= tile; ++page) {
        find_slopes(page, page == tile, soon);
        add_key_gradients(page, page == tile);
        add_query_gradients(page, page == tile);
      }
      write_query_gradients();
    }
  }

 private:
  static constexpr int kSteps = Words<T>::kSteps;

  // The tile's queries and the gradients of their outputs, as left factors and as right ones; and for each row
  // its log-sum-exp and sum(dout out).
  void load_tile(int64_t tile) {
    begin_ = tile * kPage, count_ = std::min<int64_t>(kPage, head_.length - begin_);
    const T *q = head_.q + begin_ * head_.row, *dout = head_.dout + begin_ * head_.row;
    write_rows(q, head_.row, head_.dim, count_, q_rows_);
    write_rows(dout, head_.row, head_.dim, count_, dout_rows_);
    zero_and_write<T>(q, head_.row, head_.dim, count_, nullptr, q_along_);
    zero_and_write<T>(dout, head_.row, head_.dim, count_, nullptr, dout_along_);
    for (int64_t i = 0; i < count_; ++i) {
      lse_[i] = head_.lse[(begin_ + i) * head_.lse_row] * 1.44269504f;
      pull_[i] = dot(dout + i * head_.row, head_.out + (begin_ + i) * head_.row, head_.dim);
    }
  }

  // p and ds of the tile's queries and a page's keys, a strip of rows at a time. `own`: the page lies on the
  // diagonal.
  void find_slopes(int64_t page, bool own, Prefetcher& soon) {
    const Word<T>* k = head_.k_across + page * head_.across;
    const Word<T>* v = head_.v_across + page * head_.across;
    for (int64_t r = 0; r < count_; r += kRows) {
      const int64_t strip = std::min<int64_t>(kRows, count_ - r);
      auto columns = [&](int64_t unit) { return own ? round_up(r + strip, unit) : kPage; };
      product<T>({q_rows_ + r * words_, words_, 1}, k, kPage, words_, s_, kPage, strip, columns(kLanes),
                 {true});
      soon.step();
      product<T>({dout_rows_ + r * words_, words_, 1}, v, kPage, words_, dp_, kPage, strip, columns(kLanes),
                 {true});
      soon.step();
      slopes(s_, dp_, {lse_, pull_, head_.scale}, r, strip, columns(kSteps * kLanes), own ? r + 1 : kPage, p_,
             ds_);
    }
  }

  // dv += p^T dout and dk += ds^T q of a page's keys. The diagonal is where their sums begin, and there queries
  // before a strip's first key give it nothing.
  void add_key_gradients(int64_t page, bool own) {
    const int64_t keys = own ? count_ : kPage, steps = ceil_div(count_, kSteps);
    auto add = [&](const Block<T>& left, const Word<T>* right, float* sums) {
      for (int64_t j = 0; j < keys; j += own ? kRows : kPage) {
        const int64_t from = own ? j / kSteps : 0, n = own ? std::min<int64_t>(kRows, keys - j) : kPage;
        product<T>({left.by_columns + j + from * kPage, 1, kPage}, right + from * width_, width_, steps - from,
                   sums + j * width_, width_, n, width_, {own});
      }
    };
    add(p_, dout_along_, head_.dv + page * kPage * width_);
    add(ds_, q_along_, head_.dk + page * kPage * width_);
  }

  // dq += ds k of the tile's queries.
  void add_query_gradients(int64_t page, bool own) {
    const Word<T>* k = head_.k_along + page * head_.along;
    for (int64_t r = 0; r < count_; r += own ? kRows : kPage) {
      const int64_t n = std::min<int64_t>(own ? kRows : kPage, count_ - r);
      const int64_t seen = own ? ceil_div(r + n, kSteps) : kPage / kSteps;
      product<T>({ds_.by_rows + r * kPage / kSteps, kPage / kSteps, 1}, k, width_, seen, dq_ + r * width_,
                 width_, n, width_, {page == 0});
    }
  }

  void write_query_gradients() {
    for (int64_t i = 0; i < count_; ++i)
      each_vector(head_.dim, [&](int64_t d, int n) {
        put(head_.dq + (begin_ + i) * head_.row + d, load(dq_ + i * width_ + d) * set(head_.scale), n);
      });
  }

  const Head<T>& head_;
  const int64_t words_, width_;  // of a row, as a left factor and as a right one
  Word<T>*q_rows_, *dout_rows_, *q_along_, *dout_along_;
  Block<T> p_, ds_;
  float* dq_;
  int64_t begin_ = 0, count_ = 0;  // the tile's first row, and how many
  alignas(64) float s_[kRows * kPage] = {};
  alignas(64) float dp_[kRows * kPage] = {};
  float lse_[kPage] = {}, pull_[kPage] = {};  // of the tile's rows, lse in units of log 2
};

// Some tokens of the call: a packed document.
struct Document {
  int64_t first, length, pages;  // its first token; how many tokens and pages
  int64_t page;                  // its first page among those of all documents that threads share
};

// Where what is made of one kv head of a document lies: its pages, and the sums of its query heads, which are
// `next` apart.
template <class T>
struct Place {
  Word<T>*k_across, *v_across, *k_along;
  float *dk, *dv;
  int64_t next;
};

// The tensors of one call of attention_backward().
template <class T>
struct Call {
  const T *dout, *q, *k, *v, *out;
  const float* lse;
  int64_t heads, kv_heads, dim;
  float scale;
  T *dq, *dk, *dv;

  int64_t group() const { return heads / kv_heads; }
  int64_t across() const { return across_size<T>(dim); }
  int64_t along() const { return along_size<T>(dim); }
  int64_t page_words() const { return 2 * across() + along(); }  // keys both ways, and values
  int64_t page_sums() const { return kPage * padded(dim); }      // dk or dv of one query head

  // Packs the keys and values of a kv head.
  void pack(const Document& of, int64_t kv_head, const Place<T>& to) const {
    for (int64_t page = 0; page < of.pages; ++page) {
      const int64_t t = page * kPage, count = std::min<int64_t>(kPage, of.length - t);
      const int64_t row = ((of.first + t) * kv_heads + kv_head) * dim;
      zero_and_write(k + row, kv_heads * dim, dim, count, to.k_across + page * across(),
                     to.k_along + page * along());
      zero_and_write<T>(v + row, kv_heads * dim, dim, count, to.v_across + page * across(), nullptr);
    }
  }

  Head<T> query_head(const Document& of, int64_t head, const Place<T>& at) const {
    const int64_t row = (of.first * heads + head) * dim, skip = head % group() * at.next;
    return {q + row,     out + row,  dout + row,  lse + of.first * heads + head,
            heads * dim, heads,      of.length,   dim,
            at.k_across, at.k_along, at.v_across, across(),
            along(),     scale,      dq + row,    at.dk + skip,
            at.dv + skip};
  }

  // dk and dv of a kv head: the sums of its query heads, in order.
  void add_group(const Document& of, int64_t kv_head, const Place<T>& at) const {
    const int64_t row = (of.first * kv_heads + kv_head) * dim, width = padded(dim);
    auto add = [&](const float* from, float unit, T* to) {
      for (int64_t t = 0; t < of.length; ++t, from += width, to += kv_heads * dim)
        each_vector(dim, [&](int64_t d, int n) {
          f32 value = zero();
          for (int64_t g = 0; g < group(); ++g) value += load(from + g * at.next + d);
          put(to + d, value * set(unit), n);
        });
    };
    add(at.dk, scale, dk + row), add(at.dv, 1.0f, dv + row);
  }
};

// Documents that are too long for one thread's cache: packing, query heads and the sums of groups are loops
// over all of them, with memory for everything that the caller gives. There pages of a kv head are neighbours:
// all its keys across, its values across, its keys along.
template <class T>
void backward_shared(const Call<T>& call, const std::vector<Document>& documents, int64_t total, T* pages,
                     float* partial, int threads) {
  const int64_t heads = call.heads, kv_heads = call.kv_heads, group = call.group(), sums = call.page_sums();
  auto place = [&](const Document& of, int64_t kv_head) -> Place<T> {
    auto* k_across = reinterpret_cast<Word<T>*>(pages);
    auto* v_across = k_across + kv_heads * total * call.across();
    auto* k_along = v_across + kv_heads * total * call.across();
    const int64_t at = kv_head * total + of.page;
    float* dk = partial + (kv_head * group * total + of.page) * sums;
    return {k_across + at * call.across(), v_across + at * call.across(),
            k_along + at * call.along(),   dk,
            dk + heads * total * sums,     total * sums};
  };
  const int64_t units = (int64_t)documents.size() * kv_heads;
  parallel::parallel_for(units, threads, [&](int64_t i) {
    const Document& of = documents[i / kv_heads];
    call.pack(of, i % kv_heads, place(of, i % kv_heads));
  });
  parallel::parallel_for(units * group, threads, [&](int64_t i) {
    const Document& of = documents[i / heads];
    const int64_t head = i % heads;
    const Head<T> here = call.query_head(of, head, place(of, head / group));
    Walk<T>(here).run([&](Prefetcher& soon) {
      const int64_t next = i + threads;
      if (next < units * group) call.query_head(documents[next / heads], next % heads, {}).add_rows(soon, 0);
    });
  });
  parallel::parallel_for(units, threads, [&](int64_t i) {
    const Document& of = documents[i / kv_heads];
    call.add_group(of, i % kv_heads, place(of, i % kv_heads));
  });
}

// Documents short enough that a task does a kv head with all its query heads, and keeps what it makes near.
template <class T>
void backward_owned(const Call<T>& call, const std::vector<Document>& documents, int threads) {
  const int64_t kv_heads = call.kv_heads, group = call.group(), dim = call.dim;
  const int64_t tasks = (int64_t)documents.size() * kv_heads;
  parallel::parallel_for(tasks, threads, [&](int64_t i) {
    const Document& of = documents[i / kv_heads];
    const int64_t kv_head = i % kv_heads, sums = of.pages * call.page_sums();
    auto* packed = room<Word<T>, kPacked>(of.pages * call.page_words());
    auto* dk = room<float, kKeyGradients>(2 * group * sums);
    const Place<T> at{
        packed, packed + of.pages * call.across(), packed + 2 * of.pages * call.across(), dk, dk + group * sums,
        sums};
    call.pack(of, kv_head, at);
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      const Head<T> here = call.query_head(of, head, at);
      Walk<T>(here).run([&](Prefetcher& soon) {
        if ((head + 1) % group) return call.query_head(of, head + 1, at).add_rows(soon, 0);
        auto add_keys = [&](const T* rows, const Document& from, int64_t of_head) {
          soon.add(rows + (from.first * kv_heads + of_head) * dim, dim, kv_heads * dim, from.length);
        };
        add_keys(call.dk, of, kv_head), add_keys(call.dv, of, kv_head);
        if (i + threads >= tasks) return;
        const Document& next = documents[(i + threads) / kv_heads];
        const int64_t next_head = (i + threads) % kv_heads;
        add_keys(call.k, next, next_head), add_keys(call.v, next, next_head);
        call.query_head(next, next_head * group, {}).add_rows(soon, 0);
      });
    }
    call.add_group(of, kv_head, at);
  });
}

}  // namespace
}  // namespace attention

using namespace attention;

template <class T>
void attention_backward(const T* dout, const T* q, const T* k, const T* v, const T* out, const float* lse,
                        const int32_t* cu_seqlens, int64_t documents, int64_t heads, int64_t kv_heads,
                        int64_t dim, float scale, T* pages, float* partial, T* dq, T* dk, T* dv, int threads) {
  const Call<T> call{dout, q, k, v, out, lse, heads, kv_heads, dim, scale, dq, dk, dv};
  const int64_t bytes =
      call.page_words() * sizeof(Word<T>) + 2 * call.group() * call.page_sums() * sizeof(float);
  const int64_t most = call.group() == 1 ? std::numeric_limits<int64_t>::max()
                                         : most_owned(cu_seqlens, documents, kv_heads, bytes, threads);
  std::vector<Document> owned, shared;
  int64_t total = 0;  // pages of documents that are shared
  for (int64_t b : longest_first(cu_seqlens, documents)) {
    const int64_t first = cu_seqlens[b], length = cu_seqlens[b + 1] - first, count = ceil_div(length, kPage);
    if (length <= most) {
      owned.push_back({first, length, count, 0});
    } else {
      shared.push_back({first, length, count, total});
      total += count;
    }
  }
  backward_shared(call, shared, total, pages, partial, threads);
  backward_owned(call, owned, threads);
}

#define INSTANTIATE(T)                                                                                       \
  template void attention_backward<T>(const T*, const T*, const T*, const T*, const T*, const float*,        \
                                      const int32_t*, int64_t, int64_t, int64_t, int64_t, float, T*, float*, \
                                      T*, T*, T*, int);
INSTANTIATE(float)
INSTANTIATE(bf16)
