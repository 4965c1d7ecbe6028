// The linear layer on quantised weights: y = x W^T + bias, the weights 4 or 8 bits, the rows of x rounded to 8.
//
// Each 32 numbers of a row of x become whole numbers of -127 to 127 and a scale (their largest magnitude /
// 127). A block of 32 products is then summed exactly, in integers, and added to the output's float:
//
//   y += float(sum of x (code - zero)) w_scale * x_scale        y += minimum * (x_scale sum of x)
//
// blocks in order, each a product and a fused multiply-add. What is exact has no order, so the bits of an
// output depend on its row of x and its row of W alone: not on the rows beside it, on tiles or on threads.
//
// Layout of W, the same in every build: panels of 32 outputs; in a panel for each 32 of k a record of the
// scales (two for each output where they count for 16 numbers), the minima if there are any, and the codes: for
// each four of k, the 32 outputs' four bytes side by side; of 4-bit codes, byte i holds k in its low half and k
// + 16 in its high half. So a row alone reads W strictly forwards, at the speed of memory, and many rows share
// each load.
#include <algorithm>

#include "gemm.h"
#include "integers.h"
#include "norm.h"
#include "ops.h"
#include "parallel.h"
#include "swiglu.h"

using namespace simd;

namespace {

constexpr int kBlock = 32;                   // numbers of k with one scale of x
constexpr int kPanel = 32;                   // outputs side by side
constexpr int kTile = kLanes == 16 ? 2 : 1;  // vectors of outputs in a tile
constexpr int kRows = kLanes == 16 ? 6 : 4;  // rows of x in a tile
constexpr int64_t kLittle = 512;             // bytes of W that one row asks for in advance
constexpr int64_t kRowBytes = 1 << 18;       // of quantised x a task: a quarter of L2
constexpr int64_t kMostTiles = 64;           // of rows a task
constexpr int64_t kTaskBytes = 1 << 15;  // of W times rows of x, at least: a task costs a line of cache its way
constexpr int64_t kSweepBytes = 1 << 14;  // of a panel that meets all tiles of a task: half of L1
// Panels one after the other that the one tile of a task meets before their sums become outputs: to begin and
// end each by itself takes one row as long as two records.
constexpr int64_t kRun = 8;

// One way to store codes. Groups: scales an output has in a block.
template <int Bits_, int Groups_, class Scale_, bool Minimum_>
struct Format {
  static constexpr int Bits = Bits_, Groups = Groups_;
  static constexpr bool Minimum = Minimum_;
  using Scale = Scale_;
  static constexpr int64_t kMinima = Groups * kPanel * sizeof(Scale);  // where they begin in a record
  static constexpr int64_t kCodes = kMinima * (Minimum ? 2 : 1);
  static constexpr int64_t kRecord = kCodes + kBlock * kPanel * Bits / 8;
};

// Calls body with the format that the arguments name; false if it is none of those that files have.
template <class F>
bool with_format(int64_t bits, int64_t groups, bool wide, bool minimum, F&& body) {
  if (bits == 8 && groups == 1 && !wide && !minimum) return body(Format<8, 1, f16, false>{}), true;   // Q8_0
  if (bits == 4 && groups == 1 && !wide && !minimum) return body(Format<4, 1, f16, false>{}), true;   // Q4_0
  if (bits == 4 && groups == 1 && !wide && minimum) return body(Format<4, 1, f16, true>{}), true;     // Q4_1
  if (bits == 4 && groups == 1 && wide && minimum) return body(Format<4, 1, float, true>{}), true;    // Q4_K
  if (bits == 8 && groups == 2 && wide && !minimum) return body(Format<8, 2, float, false>{}), true;  // Q6_K
  return false;
}

// Rows of a tile: `high` of them from `first` on.
struct Span {
  int64_t first;
  int high;
};

// Rows of x, quantised, a tile after the other, so that a tile is read strictly forwards: with rows a power of
// two apart, blocks of one tile would push each other out of the caches.
struct Rows {
  int64_t rows, blocks;
  int8_t* codes;   // of each tile (blocks, high, 32)
  float* scale;    // (blocks, high)
  int32_t* start;  // (blocks, groups, high): what an integer sum begins with, -zero times the sum of codes
  float* sum;      // (blocks, groups, high): scale times the sum of codes, for the minima

  int64_t tiles() const { return ceil_div(rows, kRows); }
  // Tiles of almost equal height.
  Span tile(int64_t t) const {
    const int64_t first = t * rows / tiles();
    return {first, (int)((t + 1) * rows / tiles() - first)};
  }
  // The numbers of block b of a tile: where they begin, in units of a row's.
  int64_t place(Span tile, int64_t b) const { return tile.first * blocks + b * tile.high; }
};

// `count` blocks of a row of x, at most kLanes; `at` is the place of the first, and `high` from one to the
// next. They find their largest numbers and their sums together, a block a lane; alone, each would wait for its
// own.
template <int Groups, class T>
void quantize_blocks(const T* x, int count, int64_t at, int high, int r, int32_t zero, const Rows& to) {
  constexpr int kParts = kBlock / kLanes;
  f32 rows[kLanes], sums[Groups][kLanes];
  for (int i = 0; i < kLanes; ++i) {
    i32 top = {};  // as whole numbers sizes have the same order, and a NaN is the largest
#pragma GCC unroll 8
    for (int p = 0; p < kParts && i < count; ++p) {
      const i32 size = (i32)load(x + i * kBlock + p * kLanes) & 0x7fffffff;
      top = size > top ? size : top;
    }
    rows[i] = (f32)top;
  }
  const f32 most = halve_rows<kLanes>(rows, [](f32 a, f32 b) {
    const i32 first = (i32)a, second = (i32)b;
    return (f32)(first > second ? first : second);
  });
  const f32 limit = set(std::numeric_limits<float>::max());
  const f32 scale = most <= limit ? most * set(1.0f / 127) : set(std::numeric_limits<float>::quiet_NaN());
  const f32 inverse = most > simd::zero() ? min(set(127.0f) / most, limit) : simd::zero();
  alignas(64) float times[kLanes], scales[kLanes], sum[Groups][kLanes];
  alignas(64) int32_t start[Groups][kLanes];
  store(times, inverse), store(scales, scale);
  int8_t* codes = to.codes + (at + r) * kBlock;
  for (int i = 0; i < kLanes; ++i, codes += high * kBlock) {
    i32 total[Groups] = {};
#pragma GCC unroll 8
    for (int p = 0; p < kParts && i < count; ++p) {
      const f32 scaled = load(x + i * kBlock + p * kLanes) * set(times[i]);
      const i32 whole = to_whole(max(scaled, set(-127.0f)));  // a NaN becomes -127, none is above 127
      store(codes + p * kLanes, whole);
      total[p * Groups / kParts] += whole;
    }
    for (int g = 0; g < Groups; ++g) sums[g][i] = (f32)total[g];
  }
  for (int g = 0; g < Groups; ++g) {
    const i32 total = (i32)halve_rows<kLanes>(sums[g], [](f32 a, f32 b) { return (f32)((i32)a + (i32)b); });
    store(start[g], total * -zero), store(sum[g], scale * to_float(total));
  }
  for (int i = 0; i < count; ++i, at += high) {
    to.scale[at + r] = scales[i];
    for (int g = 0; g < Groups; ++g) {
      to.start[at * Groups + g * high + r] = start[g][i];
      to.sum[at * Groups + g * high + r] = sum[g][i];
    }
  }
}

// Row r of a tile.
template <int Groups, class T>
void quantize_row(const T* x, Span tile, int r, int32_t zero, const Rows& to) {
  for (int64_t b = 0; b < to.blocks; b += kLanes)
    quantize_blocks<Groups>(x + b * kBlock, (int)std::min<int64_t>(kLanes, to.blocks - b), to.place(tile, b),
                            tile.high, r, zero, to);
}

inline uint32_t four(const int8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
  return word;
}

// What many rows ask of memory while they multiply; they would else multiply while memory waits, and then wait
// for it. Each pass over a record asks for an equal share of the record a panel further, `step` bytes with each
// load.
struct Ask {
  const uint8_t* next;
  int64_t step;
};

// Codes for R rows, of vector v of a tile. Few rows only wait for memory, and one row of 8 bits asks a little
// ahead, where the processor by itself is late: for every other line, with which the one beside it comes.
template <class F, int R>
inline bytes take(const uint8_t* w, int v, Ask& ask) {
  if constexpr (R > 3) __builtin_prefetch(ask.next, 0, 2), ask.next += ask.step;
  if (R == 1 && F::Bits == 8 && v == 0) __builtin_prefetch(w + kLittle, 0, 2);
  return load_bytes(w);
}

// Blocks [from, to) of a tile of R rows of x times kTile vectors of outputs of each of a run of panels, added
// to what earlier blocks left in sums (R, stride), where a panel's lie beside those of the one before.
template <class F, int R>
void tile(const Rows& x, Span rows, int64_t from, int64_t to, const uint8_t* panel, int64_t run, int64_t vector,
          Ask ask, float* sums, int64_t stride) {
  using Scale = typename F::Scale;
  constexpr int kSteps = kBlock / 4 / F::Groups;  // of four k in a group
  const int64_t whole = x.blocks * F::kRecord;
  for (; run > 0; --run, panel += whole, ask.next += whole, sums += kPanel) {
    f32 y[R][kTile];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kTile; ++v) y[r][v] = from ? load(sums + r * stride + v * kLanes) : simd::zero();
    const uint8_t* record = panel + from * F::kRecord;
    for (int64_t b = from; b < to; ++b, record += F::kRecord) {
      Ask asked{ask.next + (b - from) * F::kRecord, ask.step};
      const int64_t place = x.place(rows, b);
      const int8_t* codes = x.codes + place * kBlock;
      const float* x_scale = x.scale + place;
      const uint8_t* w = record + F::kCodes + vector * kLanes * 4;
#pragma GCC unroll 2
      for (int g = 0; g < F::Groups; ++g) {
        const int64_t at = place * F::Groups + g * R;
        i32 sum[R][kTile];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
          for (int v = 0; v < kTile; ++v) sum[r][v] = F::Minimum ? i32{} : set(x.start[at + r]);
        if constexpr (F::Bits == 4) {
          // One row leaves room to add up upper halves where they stand, which saves a shift for each load.
          constexpr bool kStanding = kWholeBytes && R == 1;
          i32 upper[R][kTile] = {};
#pragma GCC unroll 4
          for (int s = 0; s < kSteps / 2; ++s) {
            bytes both[kTile];
#pragma GCC unroll 2
            for (int v = 0; v < kTile; ++v)
              both[v] = in_register(take<F, R>(w + s * kPanel * 4 + v * kLanes * 4, v, asked));
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
              const uint32_t low = four(codes + r * kBlock + s * 4),
                             high = four(codes + r * kBlock + 16 + s * 4);
#pragma GCC unroll 2
              for (int v = 0; v < kTile; ++v) {
                sum[r][v] = dot_small_bytes(sum[r][v], low_nibbles(both[v]), low);
                if constexpr (kStanding)
                  upper[r][v] = dot_bytes(upper[r][v], standing_nibbles(both[v]), high);
                else
                  sum[r][v] = dot_small_bytes(sum[r][v], high_nibbles(both[v]), high);
              }
            }
          }
          if constexpr (kStanding)
#pragma GCC unroll 2
            for (int v = 0; v < kTile; ++v) sum[0][v] += upper[0][v] >> 4;
        } else {
#pragma GCC unroll 8
          for (int s = 0; s < kSteps; ++s) {
            bytes whole[kTile];
#pragma GCC unroll 2
            for (int v = 0; v < kTile; ++v)
              whole[v] = take<F, R>(w + (g * kSteps + s) * kPanel * 4 + v * kLanes * 4, v, asked);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
              const uint32_t values = four(codes + r * kBlock + (g * kSteps + s) * 4);
#pragma GCC unroll 2
              for (int v = 0; v < kTile; ++v) sum[r][v] = dot_bytes(sum[r][v], whole[v], values);
            }
          }
        }
        const auto* scales = reinterpret_cast<const Scale*>(record) + g * kPanel + vector * kLanes;
#pragma GCC unroll 2
        for (int v = 0; v < kTile; ++v) {
          const f32 scale = load(scales + v * kLanes);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) y[r][v] = fma(to_float(sum[r][v]) * scale, set(x_scale[r]), y[r][v]);
          if constexpr (F::Minimum) {
            const f32 minimum = load(scales + F::kMinima / sizeof(Scale) + v * kLanes);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) y[r][v] = fma(minimum, set(x.sum[at + r]), y[r][v]);
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kTile; ++v) store(sums + r * stride + v * kLanes, y[r][v]);
  }
}

template <class F>
void any_tile(const Rows& x, Span rows, int64_t from, int64_t to, const uint8_t* panel, int64_t run,
              int64_t vector, Ask ask, float* sums, int64_t stride) {
  switch (rows.high) {
    case 1:
      return tile<F, 1>(x, rows, from, to, panel, run, vector, ask, sums, stride);
    case 2:
      return tile<F, 2>(x, rows, from, to, panel, run, vector, ask, sums, stride);
    case 3:
      return tile<F, 3>(x, rows, from, to, panel, run, vector, ask, sums, stride);
    case 4:
      return tile<F, 4>(x, rows, from, to, panel, run, vector, ask, sums, stride);
    case 5:
      return tile<F, std::min(5, kRows)>(x, rows, from, to, panel, run, vector, ask, sums, stride);
    case 6:
      return tile<F, std::min(6, kRows)>(x, rows, from, to, panel, run, vector, ask, sums, stride);
  }
}

// The finished sums (rows, pitch) of some panels, of which `columns` exist, to `out`.
template <class T, class Out>
void finish(const float* sums, int64_t pitch, int rows, int64_t columns, const T* bias, Out* out,
            int64_t stride) {
  for (int r = 0; r < rows; ++r, sums += pitch, out += stride)
    if (bias)
      each_vector(columns, [&](int64_t i, int n) { put(out + i, load(sums + i) + get(bias + i, n), n); });
    else
      each_vector(columns, [&](int64_t i, int n) { put(out + i, load(sums + i), n); });
}

// An output's 32 weights in a record, as the numbers they stand for: codes together first, which are then
// converted side by side.
template <class F>
void decode_block(const uint8_t* record, int64_t column, int zero, float* out) {
  constexpr int kEach = kBlock / F::Groups, kBytes = kBlock * F::Bits / 8;
  const auto* scales = reinterpret_cast<const typename F::Scale*>(record) + column;
  const uint8_t* from = record + F::kCodes + column * 4;
  uint8_t codes[kBlock];
  for (int j = 0; j < kBytes; j += 4) std::memcpy(codes + j, from + j * kPanel, 4);
  if constexpr (F::Bits == 4)
    for (int j = 0; j < kBytes; ++j) codes[j + kBytes] = codes[j] >> 4, codes[j] &= 15;
  for (int g = 0; g < F::Groups; ++g) {
    const float scale = to_float(scales[g * kPanel]);
    const float minimum = F::Minimum ? to_float(scales[kPanel * F::Groups + g * kPanel]) : 0.0f;
    for (int j = g * kEach; j < (g + 1) * kEach; ++j) {
      const float value = scale * (float)(codes[j] - zero);
      out[j] = F::Minimum ? value + minimum : value;
    }
  }
}

// out (x.rows, n) = x W^T + bias; where gated W has 2 n rows, and out is swiglu of that product, rounded to T:
// gates and what they let through belong to one task, and are never written.
template <class F, bool Gated, class T, class Out>
void multiply(const Rows& x, const uint8_t* weight, const T* bias, Out* out, int64_t stride, int64_t n,
              int threads) {
  constexpr int kParts = Gated ? 2 : 1;
  constexpr int64_t kPasses = kPanel / kLanes / kTile;  // of a tile over a panel
  constexpr int64_t kLoads =
      (F::kRecord - F::kCodes) * kTile * kLanes / kPanel / (int64_t)sizeof(bytes);  // of a pass over a record
  const int64_t blocks = x.blocks, panels = ceil_div(n, kPanel), tiles = x.tiles();
  if (x.rows * n * kParts * blocks * kBlock < 1 << 18 && parallel::members() == 1) threads = 1;
  // Rows in blocks whose numbers stay in L2 while all panels of a task pass, as many for each thread, which
  // meets those that it has quantised; a task is some neighbouring panels.
  const int64_t fit = std::clamp<int64_t>(kRowBytes / (kRows * blocks * kBlock), 1, kMostTiles);
  const int64_t least = ceil_div(tiles, fit);
  const int64_t row_blocks = least > threads ? std::min(tiles, round_up(least, threads)) : least;
  const int64_t work = x.rows * panels * kParts * blocks * F::kRecord / kTaskBytes;
  // Members of a team, who never take each other's tasks, have one each.
  const int64_t tasks =
      parallel::members() > 1 ? parallel::members() : std::clamp<int64_t>(work, 2 * threads, 16 * threads);
  const int64_t width = ceil_div(panels * row_blocks, tasks);
  const int64_t shares = ceil_div(panels, width);
  const bool once = row_blocks == tiles && kPasses == 1;  // a panel meets nothing but one tile
  const int64_t sweep = once ? blocks : ceil_div(blocks, ceil_div(blocks * F::kRecord, kSweepBytes));
  const int64_t run = once ? kRun : 1, pitch = run * kPanel;  // of panels, and of their sums
  parallel::parallel_shares(row_blocks * shares, threads, [&](int64_t task) {
    const int64_t tile0 = task / shares * tiles / row_blocks, tile1 = (task / shares + 1) * tiles / row_blocks;
    const int64_t panel1 = std::min(panels, (task % shares + 1) * width), passes = (tile1 - tile0) * kPasses;
    alignas(64) float sums[kParts][kMostTiles * kRows * kPanel];  // of the tiles, or of a run of panels
    // No division below: one row computes a panel in the time of a few.
    Span spans[kMostTiles];
    for (int64_t t = tile0; t < tile1; ++t) spans[t - tile0] = x.tile(t);
    // What is asked for lies a panel further: whole records, but for the scales of each where there is but
    // one pass. The processor's own look ahead, which is wider, only goes on while it meets with something.
    const int64_t left = passes == 1 ? F::kCodes : 0, asked = F::kRecord - left, share = asked / passes;
    const int64_t step = ceil_div(asked, kLoads * passes);
    const bool many = passes > kPasses;
    for (int64_t panel = task % shares * width; panel < panel1; panel += run) {
      const int64_t count = std::min(run, panel1 - panel);
      auto record = [&](int64_t part) { return weight + (part * panels + panel) * blocks * F::kRecord; };
      for (int part = 0; part < kParts; ++part) {
        const bool other = run == 1 && part + 1 < kParts;
        const uint8_t* next = other ? record(part + 1) : record(run == 1 ? 0 : part) + blocks * F::kRecord;
        for (int64_t from = 0; from < blocks; from += sweep) {
          const int64_t to = std::min(blocks, from + sweep);
          Ask ask{next + from * F::kRecord + left, step};
          for (int64_t t = 0; t < tile1 - tile0; ++t) {
            if (many && part + 1 == kParts && to == blocks) {  // lines to write soon, from wherever they are
              const Out* soon = out + spans[t].first * stride + panel * kPanel;
              for (int r = 0; r < spans[t].high; ++r)
                for (int64_t i = 0; i < kPanel; i += 64 / sizeof(Out))
                  __builtin_prefetch(soon + r * stride + i, 1);
            }
            for (int64_t pass = 0; pass < kPasses; ++pass, ask.next += share) {
              const int64_t vector = pass * kTile;
              any_tile<F>(x, spans[t], from, to, record(part), count, vector, ask,
                          sums[part] + t * kRows * kPanel + vector * kLanes, pitch);
            }
          }
        }
      }
      const int64_t column = panel * kPanel, columns = std::min(count * kPanel, n - column);
      for (int64_t t = 0; t < tile1 - tile0; ++t) {
        Out* to = out + spans[t].first * stride + column;
        auto finished = [&](int part, auto* results, int64_t results_stride) {
          finish(sums[part] + t * kRows * kPanel, pitch, spans[t].high, columns,
                 bias ? bias + part * n + column : nullptr, results, results_stride);
        };
        if constexpr (Gated) {
          T both[kParts][kRows * kRun * kPanel];
          for (int part = 0; part < kParts; ++part) finished(part, both[part], pitch);
          for (int r = 0; r < spans[t].high; ++r)
            swiglu::forward_row(both[0] + r * pitch, both[1] + r * pitch, to + r * stride, columns);
        } else {
          finished(0, to, stride);
        }
      }
    }
  });
}

// Rows of x (m, k), quantised in memory of this thread.
template <class T>
Rows quantize_rows(const T* x, int64_t groups, int64_t zero, int64_t m, int64_t k, int threads) {
  const int64_t blocks = k / kBlock, each = m * blocks;
  auto* memory = (char*)gemm::scratch(gemm::kQuantized, each * (kBlock + 4 + 8 * groups) + 256);
  Rows rows{m, blocks, (int8_t*)memory, (float*)(memory + each * kBlock), nullptr, nullptr};
  rows.start = (int32_t*)(rows.scale + each);
  rows.sum = (float*)(rows.start + each * groups);
  parallel::privately([&] {
    parallel::parallel_shares(rows.tiles(), m * k < 1 << 14 ? 1 : threads, [&](int64_t t) {
      const Span tile = rows.tile(t);
      for (int r = 0; r < tile.high; ++r)
        groups == 2 ? quantize_row<2>(x + (tile.first + r) * k, tile, r, (int32_t)zero, rows)
                    : quantize_row<1>(x + (tile.first + r) * k, tile, r, (int32_t)zero, rows);
    });
  });
  return rows;
}

}  // namespace

template <class T, class X>
int64_t norm_linear_quantized(const X* x, const float* residual, const T* norm, float eps, float* summed,
                              const uint8_t* weight, int64_t bits, int64_t groups, bool wide, bool minimum,
                              int64_t zero, const T* bias, T* y, bool gated, int64_t m, int64_t n, int64_t k,
                              int threads) {
  if (m == 0 || n == 0) return -1;
  const T* h = norm::normalise_privately(x, residual, norm, summed, m, k, eps, threads);
  const Rows rows = quantize_rows(h, groups, zero, m, k, threads);
  const bool known = with_format(bits, groups, wide, minimum, [&](auto format) {
    using F = decltype(format);
    if (gated)
      multiply<F, true>(rows, weight, bias, y, n / 2, n / 2, threads);
    else
      multiply<F, false>(rows, weight, bias, y, n, n, threads);
  });
  return known ? -1 : 0;
}

template <class T>
int64_t linear_quantized(const T* x, const uint8_t* weight, int64_t bits, int64_t groups, bool wide,
                         bool minimum, int64_t zero, const T* bias, void* y, bool y_is_float, int64_t stride,
                         int64_t m, int64_t n, int64_t k, int threads) {
  if (m == 0 || n == 0) return -1;
  const Rows rows = quantize_rows(x, groups, zero, m, k, threads);
  const bool known = with_format(bits, groups, wide, minimum, [&](auto format) {
    using F = decltype(format);
    if (y_is_float)
      multiply<F, false>(rows, weight, bias, (float*)y, stride, n, threads);
    else
      multiply<F, false>(rows, weight, bias, (T*)y, stride, n, threads);
  });
  return known ? -1 : 0;
}

int64_t quantized_rows(const uint8_t* weight, int64_t bits, int64_t groups, bool wide, bool minimum,
                       int64_t zero, const int64_t* ids, float* out, int64_t rows, int64_t n, int64_t k,
                       int threads) {
  for (int64_t i = 0; i < rows; ++i)
    if (ids[i] < 0 || ids[i] >= n) return i;
  with_format(bits, groups, wide, minimum, [&](auto format) {
    using F = decltype(format);
    const int64_t blocks = k / kBlock;
    parallel::parallel_for(rows, rows * k < 1 << 15 ? 1 : threads, [&](int64_t i) {
      const uint8_t* record = weight + ids[i] / kPanel * blocks * F::kRecord;
      for (int64_t b = 0; b < blocks; ++b, record += F::kRecord)
        decode_block<F>(record, ids[i] % kPanel, (int)zero, out + i * k + b * kBlock);
    });
  });
  return -1;
}

template int64_t linear_quantized<float>(const float*, const uint8_t*, int64_t, int64_t, bool, bool, int64_t,
                                         const float*, void*, bool, int64_t, int64_t, int64_t, int64_t, int);
template int64_t linear_quantized<bf16>(const bf16*, const uint8_t*, int64_t, int64_t, bool, bool, int64_t,
                                        const bf16*, void*, bool, int64_t, int64_t, int64_t, int64_t, int);

#define NORMED(T, X)                                                                                  \
  template int64_t norm_linear_quantized<T, X>(const X*, const float*, const T*, float, float*,       \
                                               const uint8_t*, int64_t, int64_t, bool, bool, int64_t, \
                                               const T*, T*, bool, int64_t, int64_t, int64_t, int);
NORMED(float, float)
NORMED(bf16, bf16)
NORMED(bf16, float)
