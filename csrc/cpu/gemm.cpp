// The matrix product of gemm.h: register tiles over packed panels.
//
// A kernel keeps a tile of C in registers (AVX-512: 14 rows of 32 columns, 28 accumulators, where 4 would cover
// the latency of a multiply-add), and for each step of k loads the columns of B once and broadcasts one value
// of A for each row: 2 + 14 loads for 28 multiply-adds, so the multipliers are the bound. A block of k of a
// panel of B, 32 KiB, serves all tiles of a block of rows from L1; then comes the panel's next block, so that
// sums between blocks are near too. With few rows (decoding) the same chains are run on more columns at a time,
// and the time is that of reading B once.
#include "gemm.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <type_traits>
#include <utility>

#include "ahead.h"
#include "parallel.h"

using namespace simd;

namespace gemm {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t multiple_of(int64_t unit, int64_t least) { return divide_up(least, unit) * unit; }

// What one step of k reads: a float, or a pair of bf16.
template <class T>
struct Step;
template <>
struct Step<float> {
  using Unit = float;
  using Vector = f32;
  static constexpr int kNumbers = 1;
  static Vector load(const Unit* p) { return simd::load(p); }
  static Vector broadcast(Unit value) { return set(value); }
  static f32 add(f32 sum, Vector a, Vector b) { return fma(a, b, sum); }
};
template <>
struct Step<bf16> {
  using Unit = uint32_t;
  using Vector = pairs;
  static constexpr int kNumbers = 2;
  static Vector load(const Unit* p) { return load_pairs(reinterpret_cast<const bf16*>(p)); }
  static Vector broadcast(Unit value) { return set_pair(value); }
  static f32 add(f32 sum, Vector a, Vector b) { return dot_pairs(sum, a, b); }
};
template <class T>
using Unit = typename Step<T>::Unit;
template <class T>
int64_t steps_of(int64_t k) {
  return divide_up(k, Step<T>::kNumbers);
}

constexpr int kVectors = kPanel / kLanes;                       // vectors in a row of a panel
constexpr int kRows = kLanes == 16 ? 14 : kLanes == 8 ? 6 : 4;  // rows of the highest tile
constexpr int64_t kBlockBytes = 1 << 19;                        // half of L2
constexpr int64_t kTiles = 8;                                   // tiles a task at most
constexpr int64_t kSweep = 4 * kSteps;  // steps of k for which A is packed at once, at most
constexpr int64_t kStrip = 32;          // steps that columns of A or B are packed for before their neighbours

// Vectors of columns in a tile of `rows` rows. Few rows take more columns, so that there are always enough
// independent chains; a multiple or a divisor of kVectors. One row only waits for B, which comes fastest as one
// piece: a panel, whose chains still run ahead of memory.
constexpr int columns_of(int rows) {
  if (rows == 1) return kVectors;
  if (kLanes == 16) return rows <= 3 ? 8 : rows <= 7 ? 4 : 2;
  if (kLanes == 8) return rows <= 3 ? 4 : 2;
  return rows <= 2 ? 4 : 2;
}

// Where a tile's results go.
template <class T, class Out>
struct Target {
  Out* c;
  int64_t row_stride;
  int64_t columns;      // that exist, from c on
  const T* bias;        // or null
  const float* before;  // sums of the earlier blocks of k, or null
  int64_t before_stride;
};

// One tile: Rows rows of A (packed: Rows units a step) times Columns vectors of B. What lies `ahead` of these
// in B is asked for meanwhile, or the multipliers would wait for memory and memory for them. Few rows only
// wait, and the processor by itself asks early enough.
template <class T, class Out, int Rows, int Columns>
void kernel(int64_t steps, const Unit<T>* a, const Unit<T>* b, int64_t panel, int64_t ahead,
            const Target<T, Out>& to) {
  using S = Step<T>;
  f32 sum[Rows][Columns];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Columns; ++v) sum[r][v] = zero();
  if constexpr (Rows > 3) {  // where the results will go, in time
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < Columns; v += 64 / (kLanes * (int)sizeof(Out)))
        __builtin_prefetch(to.c + r * to.row_stride + v * kLanes, 1, 3);
  }
  for (int64_t step = 0; step < steps; ++step) {
    typename S::Vector columns_of_b[Columns];
#pragma GCC unroll 8
    for (int v = 0; v < Columns; ++v) {
      const Unit<T>* from = b + v / kVectors * panel + v % kVectors * kLanes;
      columns_of_b[v] = S::load(from);
      if constexpr (Rows > 3) __builtin_prefetch(from + ahead, 0, 2);
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      typename S::Vector value = S::broadcast(a[r]);
#pragma GCC unroll 8
      for (int v = 0; v < Columns; ++v) sum[r][v] = S::add(sum[r][v], value, columns_of_b[v]);
    }
    a += Rows;
    b += kPanel;
  }
  if (Rows > 3 && !to.bias && to.columns >= Columns * kLanes) {  // most tiles: nothing to ask for each vector
    if (to.before)
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < Columns; ++v)
          sum[r][v] = simd::load(to.before + r * to.before_stride + v * kLanes) + sum[r][v];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < Columns; ++v) store(to.c + r * to.row_stride + v * kLanes, sum[r][v]);
    return;
  }
#pragma GCC unroll 8
  for (int v = 0; v < Columns; ++v) {
    const int n = (int)std::min<int64_t>(kLanes, to.columns - v * kLanes);
    if (n <= 0) continue;
    f32 bias = to.bias ? load_n(to.bias + v * kLanes, n) : zero();
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      Out* out = to.c + r * to.row_stride + v * kLanes;
      f32 value = sum[r][v];
      if (to.before) value = load_n(to.before + r * to.before_stride + v * kLanes, n) + value;
      if (to.bias) value += bias;
      n == kLanes ? store(out, value) : store_n(out, value, n);
    }
  }
}

template <class T, class Out>
using Kernel = void (*)(int64_t, const Unit<T>*, const Unit<T>*, int64_t, int64_t, const Target<T, Out>&);

// wide[rows - 1] computes columns_of(rows) vectors at a time, narrow the vectors of one panel at most, single
// one.
template <class T, class Out>
struct Kernels {
  Kernel<T, Out> wide[kRows], narrow[kRows], single[kRows];
};
template <class T, class Out, int... R>
constexpr Kernels<T, Out> make_kernels(std::integer_sequence<int, R...>) {
  return {{kernel<T, Out, R + 1, columns_of(R + 1)>...},
          {kernel<T, Out, R + 1, std::min(columns_of(R + 1), kVectors)>...},
          {kernel<T, Out, R + 1, 1>...}};
}
template <class T, class Out>
constexpr Kernels<T, Out> kKernels = make_kernels<T, Out>(std::make_integer_sequence<int, kRows>());

// Rows of A or B, `rows` <= kLanes of them, as columns: out[step * stride + i] for row i. Whole vectors are
// written (rows not there as zeros), in order of step, so a stride below kLanes works: the next step
// overwrites.
template <class T>
void pack_rows(Matrix<T> in, int64_t rows, int64_t k, Unit<T>* out, int64_t stride) {
  constexpr int numbers = Step<T>::kNumbers;
  const int64_t whole = k / numbers, steps = steps_of<T>(k);
  int64_t step = 0;
  if (in.column == 1) {
    for (; step + kLanes <= whole; step += kLanes) {
      u32 square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        square[i] = u32{};
        if (i < rows) std::memcpy(&square[i], in.data + i * in.row + step * numbers, sizeof(u32));
      }
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) std::memcpy(out + (step + i) * stride, &square[i], sizeof(u32));
    }
  } else {
    for (; step < whole; ++step) {
      const T* p = in.data + step * numbers * in.column;
      if constexpr (numbers == 1) {
        store(out + step * stride, load_n(p, (int)rows));
      } else {
        pairs v = zip_pairs(p, p + in.column, (int)rows);
        std::memcpy(out + step * stride, &v, sizeof v);
      }
    }
  }
  for (; step < steps; ++step) {
    for (int i = 0; i < kLanes; ++i) {
      T value[numbers] = {};
      for (int j = 0; j < numbers && i < rows && step * numbers + j < k; ++j)
        value[j] = in.data[i * in.row + (step * numbers + j) * in.column];
      std::memcpy(out + step * stride + i, value, sizeof value);
    }
  }
}

template <class T>
Matrix<T> from(Matrix<T> m, int64_t row, int64_t step) {
  return {m.data + row * m.row + step * Step<T>::kNumbers * m.column, m.row, m.column};
}

// Calls body(step, numbers) for the strips in which `k` numbers of rows are packed: whole rows where they are
// contiguous, else some steps for all rows that a task packs, which are neighbours then, in lines and in pages.
template <class T, class F>
void each_strip(Matrix<T> in, int64_t k, F&& body) {
  const int64_t strip = in.column == 1 ? std::max<int64_t>(k, 1) : kStrip * Step<T>::kNumbers;
  for (int64_t done = 0; done < k; done += strip) body(done / Step<T>::kNumbers, std::min(strip, k - done));
}

// What each_strip() will read of `numbers` of each of `rows` rows: a dozen rows or more at once, which is more
// than the processor looks ahead in, so that packing would wait for each line.
template <class T>
void add_rows(Ahead& ahead, Matrix<T> in, int64_t rows, int64_t numbers) {
  in.column == 1 ? ahead.add(in.data, numbers, in.row, rows) : ahead.add(in.data, rows, in.column, numbers);
}

}  // namespace

void* scratch(Slot slot, size_t bytes) {
  struct Buffers {
    void* data[kSlots] = {};
    size_t size[kSlots] = {};
    ~Buffers() {
      for (void* p : data) std::free(p);
    }
  };
  thread_local Buffers buffers;
  if (buffers.size[slot] < bytes) {
    std::free(buffers.data[slot]);
    buffers.size[slot] = (bytes + bytes / 4 + 4095) / 4096 * 4096;
    buffers.data[slot] = std::aligned_alloc(4096, buffers.size[slot]);
    if (!buffers.data[slot]) throw std::bad_alloc();
  }
  return buffers.data[slot];
}

template <class T>
void pack(Matrix<T> b, int64_t n, int64_t k, T* packed, int threads) {
  constexpr int64_t kStripNumbers = kStrip * Step<T>::kNumbers;
  const int64_t steps = steps_of<T>(k), panels = padded(n) / kPanel;
  auto* units = reinterpret_cast<Unit<T>*>(packed);
  // Panels from `first` to `end`: `numbers` of each row, from `step` on.
  auto pack_part = [&](int64_t first, int64_t end, int64_t step, int64_t numbers) {
    for (int64_t i = first * kPanel; i < end * kPanel; i += kLanes) {
      int64_t rows = std::clamp<int64_t>(n - i, 0, kLanes);
      Unit<T>* to = units + i / kPanel * kPanel * steps + step * kPanel + i % kPanel;
      pack_rows(rows ? from(b, i, step) : b, rows, numbers, to, kPanel);
    }
  };
  if (n * k < 1 << 18) threads = 1;
  if (b.column == 1) {
    const int64_t group = std::clamp<int64_t>(panels / (2 * threads), 1, 4);  // panels a task
    parallel::parallel_shares(divide_up(panels, group), threads, [&](int64_t task) {
      pack_part(task * group, std::min(panels, (task + 1) * group), 0, k);
    });
  } else {  // a strip of columns is one piece of memory, which the processor reads ahead
    parallel::parallel_shares(divide_up(k, kStripNumbers), threads, [&](int64_t strip) {
      pack_part(0, panels, strip * kStrip, std::min(kStripNumbers, k - strip * kStripNumbers));
    });
  }
}

template <class T, class Out>
void multiply(Matrix<T> a, const T* packed, int64_t m, int64_t n, int64_t k, Out* c, int64_t row_stride,
              const T* bias, bool accumulate, int threads, Part part) {
  if (m == 0 || n == 0) return;
  const int64_t steps = steps_of<T>(k), panels = padded(n) / kPanel;
  const auto* b = reinterpret_cast<const Unit<T>*>(packed);
  if (m * n * k < 1 << 17 && parallel::members() == 1) threads = 1;
  // Rows in tiles of almost equal height, as many for each thread, tiles in blocks that fit L2, as many and as
  // high for each thread: the last to end is waited for. Where there are too few rows for that, a block takes
  // all it can, and several threads divide columns (A is packed again for each share of them).
  const int64_t highest = divide_up(m, kRows), tasks = 8 * threads;
  const bool few = highest < tasks;
  const int64_t tiles = few ? highest : multiple_of(threads, highest);
  // A is packed for a sweep over k at a time: a block of k where such a block of all of B stays in L2 between
  // two blocks of rows, else several, so that a panel's sums between them are near. Beside the rows at hand L2
  // holds those that are packed next.
  const bool narrow = panels * kPanel * kSteps * (int64_t)sizeof(Unit<T>) <= kBlockBytes;
  const int64_t sweep_steps = narrow && !few ? kSteps : kSweep;
  const int64_t tile_bytes = kRows * std::clamp<int64_t>(steps, 1, sweep_steps) * (int64_t)sizeof(Unit<T>);
  const int64_t fit = (few ? kBlockBytes : kBlockBytes / 2) / tile_bytes;
  const int64_t height = std::clamp<int64_t>(few ? fit : std::min(fit, tiles / tasks), 1, kTiles);
  const int64_t row_blocks = multiple_of(few ? 1 : threads, divide_up(tiles, height));
  // A group of panels meets all tiles of a block while it is in cache: one, or more where tiles are low.
  const int64_t group = std::max(1, columns_of((int)divide_up(m, tiles)) / kVectors);
  // Rows that only wait for memory have smaller shares, of whole groups, so that threads end together.
  const bool waits = few && (m == 1 || group > 1);
  const int64_t shares = few && threads > 1 ? divide_up(waits ? 2 * tasks : tasks / 2, row_blocks) : 1;
  const int64_t least = std::min(std::max<int64_t>(group, 2), panels), wide = divide_up(panels, shares);
  // Members of a team, who never take each other's tasks, have one each.
  const bool fixed = few && parallel::members() > 1;
  const int64_t width = fixed ? divide_up(panels, divide_up(parallel::members(), row_blocks))
                              : std::max(waits ? wide / group * group : wide, least);
  const int64_t column_blocks = divide_up(panels, width);
  auto first_row = [&](int64_t tile) { return tile * m / tiles; };
  auto first_tile = [&](int64_t block) { return block * tiles / row_blocks; };

  parallel::parallel_shares(row_blocks * column_blocks, threads, [&](int64_t task) {
    const int64_t row_block = task / column_blocks;
    const int64_t tile0 = first_tile(row_block), tile1 = first_tile(row_block + 1);
    const int64_t panel0 = task % column_blocks * width, panel1 = std::min(panels, panel0 + width);
    const int64_t row0 = first_row(tile0), rows = first_row(tile1) - row0;
    // Sums between two blocks of k: of the panels at hand, or of all where k takes several sweeps. Of all they
    // are in C itself if it is float; of the panels at hand never, as C's rows may lie a multiple of 4 KiB
    // apart, and of such lines L1 keeps eight.
    const bool of_all = accumulate || steps > sweep_steps;
    float* partial = nullptr;
    int64_t partial_stride = row_stride;
    if (std::is_same_v<Out, float> && of_all) {
      partial = (float*)c + row0 * row_stride;
    } else if (steps > kSteps) {
      partial_stride = (of_all ? panels : group) * kPanel;
      partial = (float*)scratch(kPartial, rows * partial_stride * sizeof(float));
    }
    const int64_t most = std::min(steps, sweep_steps);
    auto* packed_a = (Unit<T>*)scratch(kPackedA, (rows * most + (tile1 - tile0) * kLanes) * sizeof(Unit<T>));
    // The rows that this thread will most likely meet next.
    const int64_t next0 = tile1, next1 = first_tile(std::min(row_block + 2, row_blocks));

    for (int64_t sweep = 0; sweep == 0 || sweep < steps; sweep += sweep_steps) {
      const int64_t swept = std::min(sweep_steps, steps - sweep);
      // A tile's last step may be written as a whole vector, so tiles lie one apart.
      auto packed_tile = [&](int64_t tile) {
        return packed_a + (first_row(tile) - row0) * swept + (tile - tile0) * kLanes;
      };
      const int64_t numbers = std::min(k - sweep * Step<T>::kNumbers, swept * Step<T>::kNumbers);
      each_strip(a, numbers, [&](int64_t step, int64_t some) {
        for (int64_t tile = tile0; tile < tile1; ++tile) {
          const int64_t row = first_row(tile), high = first_row(tile + 1) - row;
          pack_rows(from(a, row, sweep + step), high, some, packed_tile(tile) + step * high, high);
        }
      });
      const bool more = sweep + sweep_steps < steps;  // of these rows
      const int64_t then = more ? sweep + sweep_steps : 0, then_row = more ? row0 : first_row(next0);
      const int64_t then_rows = column_blocks > 1 ? 0 : more ? rows : first_row(next1) - then_row;
      Ahead later;
      add_rows(later, from(a, then_row, then), then_rows,
               std::min(k - then * Step<T>::kNumbers, sweep_steps * Step<T>::kNumbers));
      later.share(divide_up(panels, group) * divide_up(swept, kSteps) * (tile1 - tile0));
      for (int64_t panel = panel0; panel < panel1; panel += group) {
        const int64_t vectors = std::min(group, panel1 - panel) * kVectors;
        const int64_t origin = of_all ? 0 : panel * kPanel;  // of partial
        for (int64_t block = 0; block == 0 || block < swept; block += kSteps) {
          const int64_t step0 = sweep + block, count = std::min(kSteps, swept - block);
          const bool last = step0 + kSteps >= steps, continued = accumulate || step0 > 0;
          // What is read after this. Single panels lie one behind the other, so that one distance meets all of
          // B, where what follows a short last block would be met in part.
          const int64_t next = (last && group > 1 ? group * steps - step0 : kSteps) * kPanel;
          for (int64_t tile = tile0; tile < tile1; ++tile) {
            later.more();
            const int64_t row = first_row(tile), high = first_row(tile + 1) - row;
            const Unit<T>* rows_of_a = packed_tile(tile) + block * high;
            const int full = columns_of((int)high), low = std::min(full, kVectors);
            for (int64_t v = 0; v < vectors;) {
              const bool wide = v + full <= vectors;
              const int64_t column = panel * kPanel + v * kLanes;
              if (part == kLower && column >= row + high) break;
              const bool single = part == kLower && column + kLanes >= row + high;  // reaches the diagonal
              const auto* columns = b + column / kPanel * kPanel * steps + step0 * kPanel + column % kPanel;
              float* sums = partial ? partial + (row - row0) * partial_stride + column - origin : nullptr;
              auto run = [&](auto* out, int64_t stride, const T* added, const auto& kernels) {
                using Result = std::remove_pointer_t<decltype(out)>;
                Target<T, Result> to{out,           stride, n - column, added, continued ? sums : nullptr,
                                     partial_stride};
                const int64_t ahead = tile == tile0 ? next : 0;
                (single ? kernels.single
                 : wide ? kernels.wide
                        : kernels.narrow)[high - 1](count, rows_of_a, columns, kPanel * steps, ahead, to);
              };
              if (last)
                run(c + row * row_stride + column, row_stride, bias ? bias + column : nullptr,
                    kKernels<T, Out>);
              else
                run(sums, partial_stride, (const T*)nullptr, kKernels<T, float>);
              v += single ? 1 : wide ? full : low;
            }
          }
        }
      }
    }
  });
}

#define INSTANTIATE(T, Out)                                                                               \
  template void multiply<T, Out>(Matrix<T>, const T*, int64_t, int64_t, int64_t, Out*, int64_t, const T*, \
                                 bool, int, Part);
INSTANTIATE(float, float)
INSTANTIATE(bf16, float)
INSTANTIATE(bf16, bf16)
template void pack<float>(Matrix<float>, int64_t, int64_t, float*, int);
template void pack<bf16>(Matrix<bf16>, int64_t, int64_t, bf16*, int);

}  // namespace gemm
