// Attention: packed causal forward and backward, and paged rows for the engine, on the products of tile.cuh.
//
// Forward. A block is 4 warps of 16 or 32 queries each. Keys and values pass by 64 at a time from the
// document's start, with a running maximum and sum (online softmax). Keys are loaded while probabilities are
// multiplied with values, and values while queries are multiplied with keys; so one buffer of each suffices,
// and two blocks share an SM. Pages are read as they lie, in the steps of packed rows, so the bits are the same
// too. Codes stay bytes in shared memory: when decoding few warps have rows, and it is the bytes that are
// waited for.
//
// Backward. Probabilities are computed again from the log-sum-exp. One kernel has two instances: a block owns
// queries and walks over keys (dq), or owns keys and walks over queries (dk, dv). So nothing is added with
// atomics, and the bits are the same every time. What a block owns are the rows of its products, what passes by
// are the columns; then both gradients are products of probabilities that stay in registers. What passes by is
// loaded one tile ahead.
//
// The work for each pair of query and key is 4 D flops and one exponential forward, 14 D and one backward in
// each of the two instances, on tensor cores in bf16. A warp that would see only masked pairs skips the tile.
#include <cfloat>
#include <type_traits>

#include "ops.h"
#include "tile.cuh"

namespace {

constexpr int kPage = 64;
constexpr int kScaleBytes = kPage * sizeof(float);  // of a head in a page of codes, behind these
constexpr size_t kShared = 99 << 10;                // bytes a block may have on every card

// Sides of tiles: what registers hold unspilled, and kShared.
template <class T, int DIM>
struct Sides;
template <int DIM>
struct Sides<bf16, DIM> {
  static constexpr int kForward = 2;                   // times 16 rows a warp
  static constexpr int kBackward = DIM <= 64 ? 2 : 1;  // the same
  static constexpr int kPassing = 32;                  // rows that pass by at once, backward
};
template <int DIM>
struct Sides<float, DIM> {
  static constexpr int kForward = 1, kBackward = 1, kPassing = DIM <= 64 ? 32 : 16;
};

// Steps of K that the compiler may mix, where factors come from tiles; one where it would run out of registers.
template <class T, int DIM>
constexpr int kUnrolled = sizeof(T) == 4 ? 1
                          : DIM == 128   ? 2
                                         : 4;

// Blocks that an SM must hold at least. Of float32 two do in any case, and the compiler, not told so, spills to
// hold four.
template <class T>
constexpr int kBlocks = sizeof(T) == 4 ? 2 : 1;

// sums[r] += 16 rows of `rows`, from top + 16 r on, times `right`.
template <int UNROLLED, int R, int N, class T, int DIM, class Right>
__device__ inline void multiply_rows_of(float (&sums)[R][N][4], Tile<T, DIM> rows, int top, Right right) {
#pragma unroll(UNROLLED)
  for (int step = 0; step < DIM / kStep; ++step) {
    Left<T> left[R];
#pragma unroll
    for (int r = 0; r < R; ++r) load_left(left[r], rows, top + 16 * r, step);
    multiply(sums, left, right, step);
  }
}

// ---- forward

// Rows that are one head's queries in a stretch of a document; keys and values lie beside them.
template <class T, int DIM>
struct Packed {
  const T *q, *k, *v;
  T* out;
  float* lse;
  const int32_t* tiles;  // (first row, document's first row, document's end)
  int heads, kv_heads, dim;
  int first, begin, end, head;  // of this block

  static constexpr bool kScaled = false;
  using Keys = ByColumn<T, DIM>;
  using Values = ByRow<T, DIM>;
  static constexpr int kKeysBytes = kPage * DIM * sizeof(T), kValuesBytes = kKeysBytes;
  __device__ static Keys keys_in(void* memory) { return {{static_cast<T*>(memory)}}; }
  __device__ static Values values_in(void* memory) { return {{static_cast<T*>(memory)}}; }

  __device__ bool find(int) {
    const int32_t* tile = tiles + (int64_t)(blockIdx.x / heads) * 3;
    first = tile[0], begin = tile[1], end = tile[2], head = blockIdx.x % heads;
    return true;
  }
  __device__ int rows() const { return end - first; }
  __device__ int position(int row) const { return first - begin + row; }
  __device__ int length() const { return end - begin; }
  __device__ int64_t place(int row) const { return (int64_t)(first + row) * heads + head; }
  __device__ void save(int row, float value) const { lse[place(row)] = value; }

  __device__ void load(Tile<T, DIM> tile, const T* from, int start) const {
    int64_t stride = (int64_t)kv_heads * dim;
    from += (begin + start) * stride + head / (heads / kv_heads) * dim;
    load_tile<kPage>(tile, length() - start, dim, [=](int row) { return from + row * stride; });
  }
  __device__ void load_keys(Keys keys, int start) const { load(keys.tile, k, start); }
  __device__ void load_values(Values values, int start) const { load(values.tile, v, start); }
  __device__ void mend_values(Values, int) const {}
};

// Bytes of a head's keys and of its values in a page of codes.
__device__ inline int64_t key_bytes(int dim) { return (dim + 3) / 4 * 4 * kPage + kScaleBytes; }
__device__ inline int64_t value_bytes(int dim) { return (dim + 15) / 16 * 16 * kPage + kScaleBytes; }

// What the layouts of pages share: rows are the newest queries of one request, one after the other, each with
// all heads of the group of one kv head. P is what pages hold: T, or bytes of codes.
template <class T, class P>
struct Request {
  const T* q;
  const P *k_pages, *v_pages;
  T* out;
  const int32_t *table, *q_start, *contexts;
  int requests, width, heads, kv_heads, dim;
  int page_dim;                                         // dim without what was added to fill 16 bytes
  int first, count, start_token, request, kv, context;  // of this block

  // Request r's tiles are numbered from floor(q_start[r] group / height) + r: room enough for each, in order,
  // and found by bisection. Numbers that are left over have no rows.
  __device__ bool find(int height) {
    int group = heads / kv_heads, number = blockIdx.x / kv_heads, low = 0, high = requests;
    kv = blockIdx.x % kv_heads;
    auto base = [&](int r) { return (int64_t)q_start[r] * group / height + r; };
    while (high - low > 1) {
      int middle = (low + high) / 2;
      (base(middle) <= number ? low : high) = middle;
    }
    request = low, start_token = q_start[low], context = contexts[low];
    count = (q_start[low + 1] - start_token) * group;
    first = (int)(number - base(low)) * height;
    return first < count;
  }
  __device__ int rows() const { return count - first; }
  __device__ int position(int row) const {
    int group = heads / kv_heads;
    return context - count / group + (first + row) / group;
  }
  __device__ int length() const { return context; }
  __device__ int64_t place(int row) const {
    int group = heads / kv_heads, token = (first + row) / group;
    return (int64_t)(start_token + token) * heads + kv * group + (first + row) % group;
  }
  __device__ void save(int, float) const {}
  __device__ int64_t page(int start) const {
    return (int64_t)table[(int64_t)request * width + start / kPage] * kv_heads + kv;
  }
  __device__ int padded() const { return (page_dim + 15) / 16 * 16; }
};

template <class T, class P, int DIM>
struct Paged;
template <int DIM>
struct Paged<bf16, bf16, DIM> : Request<bf16, bf16> {
  static constexpr bool kScaled = false;
  using Keys = Paired<kPage>;
  using Values = Paired<DIM>;
  static constexpr int kKeysBytes = DIM / 2 * Keys::kStride * 4, kValuesBytes = kPage / 2 * Values::kStride * 4;
  __device__ static Keys keys_in(void* memory) { return {static_cast<uint32_t*>(memory)}; }
  __device__ static Values values_in(void* memory) { return {static_cast<uint32_t*>(memory)}; }
  __device__ void load_keys(Keys keys, int start) const {
    int pairs = (page_dim + 1) / 2;
    load_words<DIM / 2>(keys, pairs, kPage, k_pages + page(start) * pairs * kPage * 2, kPage);
  }
  __device__ void load_values(Values values, int start) const {
    load_words<kPage / 2>(values, (context - start + 1) / 2, padded(), v_pages + page(start) * kPage * padded(),
                          padded());
  }
  __device__ void mend_values(Values values, int start) const {
    int left = context - start;
    if (left < kPage && left % 2) drop_second(values, left / 2);
  }
};
template <int DIM>
struct Paged<float, float, DIM> : Request<float, float> {
  static constexpr bool kScaled = false;
  using Keys = ByRow<float, kPage>;
  using Values = ByRow<float, DIM>;
  static constexpr int kKeysBytes = kPage * DIM * sizeof(float), kValuesBytes = kKeysBytes;
  __device__ static Keys keys_in(void* memory) { return {{static_cast<float*>(memory)}}; }
  __device__ static Values values_in(void* memory) { return {{static_cast<float*>(memory)}}; }
  __device__ void load_keys(Keys keys, int start) const {
    const float* from = k_pages + page(start) * page_dim * kPage;
    load_tile<DIM>(keys.tile, page_dim, kPage, [=](int row) { return from + row * kPage; });
  }
  __device__ void load_values(Values values, int start) const {
    const float* from = v_pages + page(start) * kPage * padded();
    int stride = padded();
    load_tile<kPage>(values.tile, context - start, stride, [=](int row) { return from + row * stride; });
  }
  __device__ void mend_values(Values, int) const {}
};
// Codes, and each token's scales behind those of its page and head: the keys' meet scores, the values' weights.
template <class T, int DIM>
struct Paged<T, uint8_t, DIM> : Request<T, uint8_t> {
  static constexpr bool kScaled = true;
  using Keys = Coded<kPage>;
  using Values = Coded<DIM>;
  static constexpr int kKeysBytes = DIM / 4 * Keys::kStride * 4, kValuesBytes = kPage / 4 * Values::kStride * 4;
  __device__ static Keys keys_in(void* memory) { return {static_cast<uint32_t*>(memory)}; }
  __device__ static Values values_in(void* memory) { return {static_cast<uint32_t*>(memory)}; }
  __device__ int words() const { return (this->page_dim + 3) / 4; }  // of a key
  __device__ const uint8_t* keys_at(int start) const {
    return this->k_pages + this->page(start) * key_bytes(this->page_dim);
  }
  __device__ const uint8_t* values_at(int start) const {
    return this->v_pages + this->page(start) * value_bytes(this->page_dim);
  }
  __device__ void load_keys(Keys keys, int start) const {
    load_words<DIM / 4>(keys, words(), kPage, keys_at(start), kPage);
  }
  __device__ void load_values(Values values, int start) const {
    load_words<kPage / 4>(values, (this->context - start + 3) / 4, this->padded(), values_at(start),
                          this->padded());
  }
  // 2 kPage scales, with their keys, zeros where nobody wrote.
  __device__ void load_scales(float* scales, int start) const {
    static_assert(kThreads == 2 * kPage, "one a thread");
    int token = threadIdx.x % kPage;
    const uint8_t* behind = (int)threadIdx.x < kPage ? keys_at(start) + words() * kPage * 4
                                                     : values_at(start) + this->padded() * kPage;
    copy_async<4>(scales + threadIdx.x, behind + token * sizeof(float), token < this->context - start);
  }
  __device__ void mend_values(Values, int) const {}
};

template <class T, int DIM, int R, class Source>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) attention_fwd_kernel(Source source, float scale_log2) {
  constexpr int kRows = kWarps * R * 16, kColumns = kPage / 8;
  SHARED_MEMORY(unsigned char, memory);
  Tile<T, DIM> queries{reinterpret_cast<T*>(memory)};
  auto keys = Source::keys_in(memory + kRows * DIM * sizeof(T));
  auto values = Source::values_in(memory + kRows * DIM * sizeof(T) + Source::kKeysBytes);
  auto scales =
      reinterpret_cast<float*>(memory + kRows * DIM * sizeof(T) + Source::kKeysBytes +
                               Source::kValuesBytes);  // kScaled: of a page's keys, then of its values
  if (!source.find(kRows)) return;
  auto load_keys = [&](int start) {
    source.load_keys(keys, start);
    if constexpr (Source::kScaled) source.load_scales(scales, start);
  };

  int rows = source.rows() < kRows ? source.rows() : kRows, dim = source.dim;
  int seen = source.position(rows - 1) + 1;  // keys that any of them sees
  load_tile<kRows>(queries, rows, dim, [&](int row) { return source.q + source.place(row) * dim; });
  load_keys(0);

  const int top = threadIdx.x / kWarp * R * 16;  // of this warp's rows
  const int first_position = source.position(top);
  const int last_position = top < rows ? source.position(top + R * 16 - 1) : -1;
  float peak[R][2], total[R][2], acc[R][DIM / 8][4] = {};
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) peak[r][half] = -INFINITY, total[r][half] = 0.0f;

  for (int start = 0; start < seen; start += kPage) {
    wait_for_copies();  // of keys; and the values of the tile before are read
    __syncthreads();
    source.load_values(values, start);
    bool mine = start <= last_position;
    Kept<T, kColumns> p[R];
    if (mine) {
      float scores[R][kColumns][4] = {};
      multiply_rows_of<kUnrolled<T, DIM>>(scores, queries, top, keys);
      bool whole = start + kPage - 1 <= first_position;
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float higher = -INFINITY, sum = 0.0f;
          int hidden = kPage;  // from this column on
          if (!whole) hidden = source.position(top + 16 * r + 8 * half + lane() / 4) + 1 - start;
#pragma unroll
          for (int n = 0; n < kColumns; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              float& score = scores[r][n][2 * half + i];
              int column = 8 * n + lane() % 4 * 2 + i;
              if constexpr (Source::kScaled) score *= scales[column];
              score = column < hidden ? score * scale_log2 : -INFINITY;
              higher = fmaxf(higher, score);
            }
          higher = fmaxf(peak[r][half], row_max(higher));
          float fade = exp2_fast(peak[r][half] - higher);
#pragma unroll
          for (int n = 0; n < kColumns; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              float& score = scores[r][n][2 * half + i];
              score = exp2_fast(score - higher);
              sum += score;
              if constexpr (Source::kScaled) {
                int column = 8 * n + lane() % 4 * 2 + i;
                score =
                    column < hidden ? score * scales[kPage + column] : 0.0f;  // a later one may be no number
              }
            }
          total[r][half] = total[r][half] * fade + sum;
          peak[r][half] = higher;
#pragma unroll
          for (int n = 0; n < DIM / 8; ++n) {
            acc[r][n][2 * half] *= fade;
            acc[r][n][2 * half + 1] *= fade;
          }
        }
#pragma unroll
      for (int r = 0; r < R; ++r) p[r].keep(scores[r]);
    }
    wait_for_copies();  // of values; and the keys are read
    source.mend_values(values, start);
    __syncthreads();
    if (start + kPage < seen) load_keys(start + kPage);
    if (mine) {
#pragma unroll
      for (int step = 0; step < kPage / kStep; ++step) {
        Left<T> left[R];
#pragma unroll
        for (int r = 0; r < R; ++r) load_left(left[r], p[r], step);
        multiply(acc, left, values, step);
      }
    }
  }

  if (top >= rows) return;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    float scale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float all = row_sum(total[r][half]);
      int row = top + 16 * r + 8 * half + lane() / 4;
      scale[half] = 1.0f / all;
      if (lane() % 4 == 0 && row < rows) source.save(row, (peak[r][half] + log2f(all)) * kLn2);
    }
    put(queries, top + 16 * r, acc[r], scale);  // this warp alone reads these rows, and has read them
    write_rows(queries, top + 16 * r, rows, dim, [&](int row) { return source.out + source.place(row) * dim; });
  }
}

// Numbers of keys and values to their places in pages; one thread a number. Tokens lie k_row and v_row apart.
template <class T>
__global__ void write_pages_kernel(const T* k, const T* v, T* k_pages, T* v_pages, const int32_t* slots,
                                   int64_t k_row, int64_t v_row, int64_t numbers, int kv_heads, int dim) {
  constexpr int kPair = 4 / sizeof(T);
  int columns = (dim + kPair - 1) / kPair * kPair, padded = (dim + 15) / 16 * 16;
  int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= numbers * columns) return;
  int d = (int)(i % columns), head = (int)(i / columns % kv_heads);
  int64_t token = i / columns / kv_heads, page = (int64_t)(slots[token] / kPage) * kv_heads + head;
  int place = slots[token] % kPage;
  bool inside = d < dim;  // an odd one out has a zero beside it
  int at = head * dim + d;
  k_pages[((page * (columns / kPair) + d / kPair) * kPage + place) * kPair + d % kPair] =
      inside ? k[token * k_row + at] : from_float<T>(0.0f);
  if (inside)
    v_pages[((page * (kPage / kPair) + place / kPair) * padded + d) * kPair + place % kPair] =
        v[token * v_row + at];
}

// The largest |x| of a row, the same in all lanes of a warp; infinity where one is no number.
template <class T>
__device__ inline float largest(const T* row, int dim) {
  float most = 0.0f;
  for (int d = lane(); d < dim; d += kWarp) {
    float x = to_float(row[d]);
    most = fmaxf(most, x == x ? fabsf(x) : INFINITY);
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, offset));
  return most;
}

// What a row's numbers become codes by, as the reference has it: bytes, and the scale of what they stand for.
struct Coding {
  float inverse, scale;
  __device__ explicit Coding(float most) : inverse(0.0f), scale(NAN) {
    if (!(most < INFINITY)) return;
    if (most > 0.0f) inverse = fminf(127.0f / most, FLT_MAX);
    scale = most * (float)(1.0 / 127);
  }
  __device__ uint8_t code(float x) const {
    float whole = scale == scale ? rintf(fminf(fmaxf(x * inverse, -127.0f), 127.0f)) : 0.0f;
    return (uint8_t)((int)whole + 128);
  }
};

// The same as codes; one warp a token and head. A key that is no number takes the scale of its value with it,
// and the other way.
template <class T>
__global__ void write_codes_kernel(const T* k, const T* v, uint8_t* k_pages, uint8_t* v_pages,
                                   const int32_t* slots, int64_t k_row, int64_t v_row, int64_t rows,
                                   int kv_heads, int dim) {
  int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / kWarp;
  if (i >= rows) return;
  int64_t token = i / kv_heads, page = (int64_t)(slots[token] / kPage) * kv_heads + i % kv_heads;
  int head = (int)(i % kv_heads), place = slots[token] % kPage;
  int columns = (dim + 3) / 4 * 4, padded = (dim + 15) / 16 * 16;
  const T *key = k + token * k_row + head * dim, *value = v + token * v_row + head * dim;
  uint8_t *keys = k_pages + page * key_bytes(dim), *values = v_pages + page * value_bytes(dim);
  Coding of_key(largest(key, dim)), of_value(largest(value, dim));
  for (int d = lane(); d < columns; d += kWarp) {
    bool inside = d < dim;  // those that are left of a word stand for zero
    keys[(d / 4 * kPage + place) * 4 + d % 4] = inside ? of_key.code(to_float(key[d])) : 128;
    if (inside) values[(place / 4 * padded + d) * 4 + place % 4] = of_value.code(to_float(value[d]));
  }
  if (lane() == 0) {
    float lost = (of_key.scale + of_value.scale) * 0.0f;  // NaN where either is
    reinterpret_cast<float*>(keys + columns * kPage)[place] = of_key.scale + lost;
    reinterpret_cast<float*>(values + padded * kPage)[place] = of_value.scale + lost;
  }
}

// ---- backward

template <class T>
struct Gradients {
  const T *q, *k, *v, *dout, *out;
  const float* lse;
  float* delta;  // (T, H): written with dq, read for dk and dv
  T *dq, *dk, *dv;
  const int32_t* tiles;
  int heads, kv_heads, dim;
  float scale;
};

// KEYS: the rows that a block owns are keys, and queries of all heads of their group pass by; else the reverse.
template <class T, int DIM, bool KEYS>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) attention_bwd_kernel(Gradients<T> g) {
  constexpr int R = Sides<T, DIM>::kBackward, kRows = kWarps * R * 16, kPassing = Sides<T, DIM>::kPassing;
  constexpr int kOwned = kRows * DIM, kStage = kPassing * DIM, kColumns = kPassing / 8;
  SHARED_MEMORY(unsigned char, memory);
  T* numbers = reinterpret_cast<T*>(memory);
  float* floats = reinterpret_cast<float*>(numbers + 2 * kOwned + 4 * kStage);
  // Owned and passing: keys and values, queries and gradients of outputs, or the reverse.
  Tile<T, DIM> own{numbers}, own_other{numbers + kOwned};
  auto passing = [&](int stage) { return Tile<T, DIM>{numbers + 2 * kOwned + 2 * stage * kStage}; };
  auto passing_other = [&](int stage) { return Tile<T, DIM>{numbers + 2 * kOwned + (2 * stage + 1) * kStage}; };
  auto passing_lse = [&](int stage) { return floats + 2 * stage * kPassing; };
  auto passing_delta = [&](int stage) { return floats + (2 * stage + 1) * kPassing; };

  const int heads = g.heads, group = heads / g.kv_heads, dim = g.dim, blocks = KEYS ? g.kv_heads : heads;
  const int32_t* tile = g.tiles + (int64_t)(blockIdx.x / blocks) * 3;
  const int first = tile[0], begin = tile[1], end = tile[2], head = blockIdx.x % blocks;
  const int rows = end - first < kRows ? end - first : kRows;
  const int kv_head = KEYS ? head : head / group;
  auto query = [&](int row, int h) { return ((int64_t)row * heads + h) * dim; };
  auto key = [&](int row) { return ((int64_t)row * g.kv_heads + kv_head) * dim; };

  load_tile<kRows>(own, rows, dim,
                   [&](int row) { return KEYS ? g.k + key(first + row) : g.q + query(first + row, head); });
  load_tile<kRows>(own_other, rows, dim,
                   [&](int row) { return KEYS ? g.v + key(first + row) : g.dout + query(first + row, head); });

  // Queries pass from the first key on, keys from the document's start to the last query.
  const int from = KEYS ? first : begin, to = KEYS ? end : first + rows;
  const int turns = (to - from + kPassing - 1) / kPassing, steps = KEYS ? turns * group : turns;
  auto load_passing = [&](int step) {
    int start = from + step % turns * kPassing, h = KEYS ? kv_head * group + step / turns : head;
    int stage = step % 2;
    load_tile<kPassing>(passing(stage), end - start, dim,
                        [&](int row) { return KEYS ? g.q + query(start + row, h) : g.k + key(start + row); });
    load_tile<kPassing>(passing_other(stage), end - start, dim, [&](int row) {
      return KEYS ? g.dout + query(start + row, h) : g.v + key(start + row);
    });
    if (KEYS && threadIdx.x < 2 * kPassing) {
      int row = threadIdx.x % kPassing;
      bool inside = start + row < end, second = threadIdx.x >= kPassing;
      copy_async<4>((second ? passing_delta(stage) : passing_lse(stage)) + row,
                    (second ? g.delta : g.lse) + (inside ? (int64_t)(start + row) * heads + h : 0), inside);
    }
  };
  load_passing(0);

  const int top = threadIdx.x / kWarp * R * 16;
  const float scale_log2 = g.scale * kLog2e;
  float lse_log2[R][2], delta[R][2];
  if (!KEYS) {
    wait_for_copies();
    __syncthreads();
    row_products<R, T, DIM>(
        top, rows, dim, floats, [&](int row, int c) { return own_other.chunk(row, c); },
        [&](int row, int c) { return g.out + query(first + row, head) + c * own.kNumbers; });
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int row = top + 16 * r + 8 * half + lane() / 4;
        int64_t place = (int64_t)(first + row) * heads + head;
        delta[r][half] = floats[row];
        lse_log2[r][half] = row < rows ? g.lse[place] * kLog2e : 0.0f;
        if (lane() % 4 == 0 && row < rows) g.delta[place] = delta[r][half];
      }
  }

  float sums[R][DIM / 8][4] = {}, sums_other[KEYS ? R : 1][KEYS ? DIM / 8 : 1][4] = {};
  for (int step = 0; step < steps; ++step) {
    wait_for_copies();  // and the stage that is loaded next has been read
    __syncthreads();
    if (step + 1 < steps) load_passing(step + 1);
    const int stage = step % 2, start = from + step % turns * kPassing, own_first = first + top;
    const int own_last = own_first + 16 * R - 1, last = start + kPassing - 1;
    if (top >= rows || (KEYS ? own_first > last : start > own_last)) continue;  // nothing is seen

    float p[R][kColumns][4] = {}, ds[R][kColumns][4] = {};
    multiply_rows_of<kUnrolled<T, DIM>>(p, own, top, ByColumn<T, DIM>{passing(stage)});
    multiply_rows_of<kUnrolled<T, DIM>>(ds, own_other, top, ByColumn<T, DIM>{passing_other(stage)});
    const bool whole = KEYS ? own_last <= start : last <= own_first;
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        int column = 8 * n + lane() % 4 * 2 + i;
        float column_lse = 0.0f, column_delta = 0.0f;
        if (KEYS) column_lse = passing_lse(stage)[column] * kLog2e, column_delta = passing_delta(stage)[column];
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            int row = own_first + 16 * r + 8 * half + lane() / 4;
            float &prob = p[r][n][2 * half + i], &gradient = ds[r][n][2 * half + i];
            prob = exp2_fast(fmaf(prob, scale_log2, -(KEYS ? column_lse : lse_log2[r][half])));
            if (!whole && (KEYS ? row > start + column : start + column > row)) prob = 0.0f;
            gradient = prob * (gradient - (KEYS ? column_delta : delta[r][half]));
          }
      }
    Kept<T, kColumns> kept_p[R], kept_ds[R];
#pragma unroll
    for (int r = 0; r < R; ++r) kept_p[r].keep(p[r]), kept_ds[r].keep(ds[r]);
#pragma unroll
    for (int k = 0; k < kPassing / kStep; ++k) {
      Left<T> left[R];
      if constexpr (KEYS) {
#pragma unroll
        for (int r = 0; r < R; ++r) load_left(left[r], kept_p[r], k);
        multiply(sums_other, left, ByRow<T, DIM>{passing_other(stage)}, k);
      }
#pragma unroll
      for (int r = 0; r < R; ++r) load_left(left[r], kept_ds[r], k);
      multiply(sums, left, ByRow<T, DIM>{passing(stage)}, k);
    }
  }

  if (top >= rows) return;
  const float scale[2] = {g.scale, g.scale}, one[2] = {1.0f, 1.0f};
#pragma unroll
  for (int r = 0; r < R; ++r) {  // into rows that this warp alone reads, and has read
    put(own, top + 16 * r, sums[r], scale);
    write_rows(own, top + 16 * r, rows, dim,
               [&](int row) { return KEYS ? g.dk + key(first + row) : g.dq + query(first + row, head); });
    if constexpr (KEYS) {
      put(own_other, top + 16 * r, sums_other[r], one);
      write_rows(own_other, top + 16 * r, rows, dim, [&](int row) { return g.dv + key(first + row); });
    }
  }
}

// Calls f with the head's width as the tiles have it.
template <class F>
int with_width(int64_t dim, F f) {
  if (dim <= 32) return f(std::integral_constant<int, 32>());
  if (dim <= 64) return f(std::integral_constant<int, 64>());
  return f(std::integral_constant<int, 128>());
}

template <int R, class T, int DIM, class Source>
int launch_forward(int64_t blocks, Source source, float scale, void* stream) {
  constexpr size_t kBytes = kWarps * R * 16 * DIM * sizeof(T) + Source::kKeysBytes + Source::kValuesBytes +
                            (Source::kScaled ? 2 * kScaleBytes : 0);
  static_assert(kBytes <= kShared, "queries and a page beside them");
  return launch(attention_fwd_kernel<T, DIM, R, Source>, blocks, kThreads, kBytes, stream, source,
                scale * kLog2e);
}

template <class T, int DIM, bool KEYS>
int launch_backward(int64_t blocks, Gradients<T> g, void* stream) {
  constexpr int kRows = kWarps * Sides<T, DIM>::kBackward * 16, kPassing = Sides<T, DIM>::kPassing;
  constexpr size_t kFloats = KEYS ? 4 * kPassing : kRows;
  constexpr size_t kBytes = (2 * kRows + 4 * kPassing) * DIM * sizeof(T) + kFloats * sizeof(float);
  static_assert(kBytes <= kShared, "two owned tiles and two stages of two that pass by");
  return launch(attention_bwd_kernel<T, DIM, KEYS>, blocks, kThreads, kBytes, stream, g);
}

}  // namespace

template <class T>
int64_t attention_rows(int64_t dim, bool backward) {
  return with_width(dim, [&](auto width) {
    using S = Sides<T, decltype(width)::value>;
    return kWarps * 16 * (backward ? S::kBackward : S::kForward);
  });
}

template <class T>
int attention_forward(const T* q, const T* k, const T* v, T* out, float* lse, const int32_t* tiles,
                      int64_t tile_count, int64_t heads, int64_t kv_heads, int64_t dim, float scale,
                      void* stream) {
  return with_width(dim, [&](auto width) {
    constexpr int DIM = decltype(width)::value;
    Packed<T, DIM> source{q, k, v, out, lse, tiles, (int)heads, (int)kv_heads, (int)dim, 0, 0, 0, 0};
    return launch_forward<Sides<T, DIM>::kForward, T, DIM>(tile_count * heads, source, scale, stream);
  });
}

template <class T>
int attention_backward(const T* dout, const T* q, const T* k, const T* v, const T* out, const float* lse,
                       float* delta, T* dq, T* dk, T* dv, const int32_t* by_query, const int32_t* by_key,
                       int64_t tile_count, int64_t heads, int64_t kv_heads, int64_t dim, float scale,
                       void* stream) {
  Gradients<T> g{q,  k,  v,        dout,       out,           lse,      delta, dq,
                 dk, dv, by_query, (int)heads, (int)kv_heads, (int)dim, scale};
  return with_width(dim, [&](auto width) {
    constexpr int DIM = decltype(width)::value;
    if (int error = launch_backward<T, DIM, false>(tile_count * heads, g, stream)) return error;
    g.tiles = by_key;
    return launch_backward<T, DIM, true>(tile_count * kv_heads, g, stream);
  });
}

template <class T, class P>
int attention_paged(const T* q, const P* k_pages, const P* v_pages, T* out, const int32_t* table,
                    const int32_t* q_start, const int32_t* contexts, int64_t tokens, int64_t requests,
                    int64_t table_width, int64_t heads, int64_t kv_heads, int64_t dim, int64_t page_dim,
                    float scale, void* stream) {
  constexpr int R = 1, kRows = kWarps * R * 16;
  int64_t tiles = requests ? tokens * (heads / kv_heads) / kRows + requests : 0;
  return with_width(dim, [&](auto width) {
    constexpr int DIM = decltype(width)::value;
    Paged<T, P, DIM> source;
    static_cast<Request<T, P>&>(source) = {q,
                                           k_pages,
                                           v_pages,
                                           out,
                                           table,
                                           q_start,
                                           contexts,
                                           (int)requests,
                                           (int)table_width,
                                           (int)heads,
                                           (int)kv_heads,
                                           (int)dim,
                                           (int)page_dim,
                                           0,
                                           0,
                                           0,
                                           0,
                                           0,
                                           0};
    return launch_forward<R, T, DIM>(tiles * kv_heads, source, scale, stream);
  });
}

template <class T, class P>
int write_pages(const T* k, const T* v, P* k_pages, P* v_pages, const int32_t* slots, int64_t k_row,
                int64_t v_row, int64_t tokens, int64_t kv_heads, int64_t dim, void* stream) {
  int64_t rows = tokens * kv_heads;
  if constexpr (std::is_same<P, uint8_t>::value) {
    return launch(write_codes_kernel<T>, (rows * kWarp + 255) / 256, 256, 0, stream, k, v, k_pages, v_pages,
                  slots, k_row, v_row, rows, kv_heads, dim);
  } else {
    constexpr int kPair = 4 / sizeof(T);
    int64_t numbers = rows * ((dim + kPair - 1) / kPair * kPair);
    return launch(write_pages_kernel<T>, (numbers + 255) / 256, 256, 0, stream, k, v, k_pages, v_pages, slots,
                  k_row, v_row, rows, kv_heads, dim);
  }
}

#define ATTENTION(T)                                                                                          \
  template int64_t attention_rows<T>(int64_t, bool);                                                          \
  template int attention_forward(const T*, const T*, const T*, T*, float*, const int32_t*, int64_t, int64_t,  \
                                 int64_t, int64_t, float, void*);                                             \
  template int attention_backward(const T*, const T*, const T*, const T*, const T*, const float*, float*, T*, \
                                  T*, T*, const int32_t*, const int32_t*, int64_t, int64_t, int64_t, int64_t, \
                                  float, void*);                                                              \
  PAGES(T, T) PAGES(T, uint8_t)
#define PAGES(T, P)                                                                                           \
  template int attention_paged(const T*, const P*, const P*, T*, const int32_t*, const int32_t*,              \
                               const int32_t*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, \
                               float, void*);                                                                 \
  template int write_pages(const T*, const T*, P*, P*, const int32_t*, int64_t, int64_t, int64_t, int64_t,    \
                           int64_t, void*);
ATTENTION(float)
ATTENTION(bf16)
