// The matrix product of gemm.h: register tiles over packed panels.
//
// From the inside out:
//
// - A kernel keeps a tile of C in registers: on AVX-512 14 rows of 32 columns, which are 28 accumulators (4
//   would be enough to hide the latency of a multiply-add). For each step of k it loads the columns of B once
//   and broadcasts one value of A for each row: 2 + 14 loads for 28 multiply-adds, so the multipliers are the
//   bound.
// - One block of k of a panel of B is 32 KiB. It stays in L1 while it meets all tiles of a block of rows.
//   Then comes the panel's next block of k, so the sums that are carried from one block to the next stay near
//   too.
// - A block of rows of A is packed by the task that multiplies it, and stays in L2.
//
// With few rows (decoding) the same chains of multiply-adds run on more columns at a time, and the product
// takes as long as reading B once.
#include "gemm.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <type_traits>
#include <utility>

#include "integers.h"
#include "parallel.h"
#include "prefetch.h"

using namespace simd;

namespace gemm {
namespace {

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
  return ceil_div(k, Step<T>::kNumbers);
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

// One tile: Rows rows of A (packed: Rows units a step) times Columns vectors of B, whose panels are `panel`
// units apart. Meanwhile what lies `ahead` units further on in B is prefetched, so that arithmetic and memory
// do not wait for each other in turns. Tiles of up to 3 rows wait for memory anyway, and the hardware's
// prefetcher is enough.
template <class T, class Out, int Rows, int Columns>
void kernel(int64_t steps, const Unit<T>* a, const Unit<T>* b, int64_t panel, int64_t ahead,
            const Target<T, Out>& to) {
  using S = Step<T>;
  f32 sum[Rows][Columns];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Columns; ++v) sum[r][v] = zero();
  if constexpr (Rows > 3) {  // the lines that results will be written to
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
  if (Rows > 3 && !to.bias && to.columns >= Columns * kLanes) {  // most tiles: whole vectors, no bias
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

// Prefetches what each_strip() will read: `numbers` of each of `rows` rows. Packing reads a dozen rows or more
// at once, more streams than the hardware's prefetcher follows, so without this it would wait for every line.
template <class T>
void add_rows(Prefetcher& soon, Matrix<T> in, int64_t rows, int64_t numbers) {
  in.column == 1 ? soon.add(in.data, numbers, in.row, rows) : soon.add(in.data, rows, in.column, numbers);
}

// One call of multiply(); b is packed.
template <class T, class Out>
struct Product {
  Matrix<T> a;
  const Unit<T>* b;
  int64_t n, k;
  Out* c;
  int64_t row_stride;
  const T* bias;
  bool accumulate;
  Part part;
};

// How a product is divided among threads and caches. Rows of A are divided into tiles of almost equal height,
// tiles into row blocks, and the panels of B into column blocks. A task is one row block times one column
// block.
struct Plan {
  int64_t m, tiles, row_blocks;
  int64_t panels, width, column_blocks;  // width: panels in a column block, but for the last
  int64_t group;                         // panels that meet all tiles of a task while they are in the cache
  int64_t steps, sweep;                  // steps of k in all, and those for which a task packs A at once

  int64_t first_row(int64_t tile) const { return tile * m / tiles; }
  int64_t first_tile(int64_t row_block) const { return row_block * tiles / row_blocks; }
};

template <class T>
Plan make_plan(int64_t m, int64_t n, int64_t k, int threads) {
  Plan plan;
  plan.m = m, plan.panels = padded(n) / kPanel, plan.steps = steps_of<T>(k);

  // With enough rows, every thread gets as many tiles as the others, of the same height: the last thread to end
  // is waited for. With few rows, threads divide the columns instead, and A is packed again for each column
  // block.
  const int64_t fewest_tiles = ceil_div(m, kRows), tasks = 8 * threads;
  const bool few = fewest_tiles < tasks;
  plan.tiles = few ? fewest_tiles : round_up(fewest_tiles, threads);

  // A is packed for one block of k at a time where such a block of all of B stays in L2 from one row block to
  // the next. Otherwise it is packed for several, so that the sums that a panel carries from one block of k to
  // the next stay near.
  const bool narrow = plan.panels * kPanel * kSteps * (int64_t)sizeof(Unit<T>) <= kBlockBytes;
  plan.sweep = narrow && !few ? kSteps : kSweep;

  // A row block is what fits into L2, beside the rows that are packed next.
  const int64_t tile_bytes = kRows * std::clamp<int64_t>(plan.steps, 1, plan.sweep) * (int64_t)sizeof(Unit<T>);
  const int64_t fit = (few ? kBlockBytes : kBlockBytes / 2) / tile_bytes;
  const int64_t height = std::clamp<int64_t>(few ? fit : std::min(fit, plan.tiles / tasks), 1, kTiles);
  plan.row_blocks = round_up(ceil_div(plan.tiles, height), few ? 1 : threads);

  // Low tiles take more columns at a time, so several panels make a group.
  plan.group = std::max(1, columns_of((int)ceil_div(m, plan.tiles)) / kVectors);

  if (few && parallel::members() > 1) {  // members of a team never take each other's tasks: one for each
    plan.width = ceil_div(plan.panels, ceil_div(parallel::members(), plan.row_blocks));
  } else {
    // Tasks that only wait for memory are made smaller, of whole groups, so that threads end together.
    const bool waits = few && (m == 1 || plan.group > 1);
    const int64_t shares = few && threads > 1 ? ceil_div(waits ? 2 * tasks : tasks / 2, plan.row_blocks) : 1;
    const int64_t least = std::min(std::max<int64_t>(plan.group, 2), plan.panels);
    const int64_t wide = ceil_div(plan.panels, shares);
    plan.width = std::max(waits ? wide / plan.group * plan.group : wide, least);
  }
  plan.column_blocks = ceil_div(plan.panels, plan.width);
  return plan;
}

// A task: packs its rows of A for a sweep over some blocks of k, then has each group of panels meet all tiles,
// one block of k after the other.
template <class T, class Out>
class Task {
 public:
  Task(const Product<T, Out>& product, const Plan& plan, int64_t number)
      : of_(product),
        plan_(plan),
        row_block_(number / plan.column_blocks),
        tile0_(plan.first_tile(row_block_)),
        tile1_(plan.first_tile(row_block_ + 1)),
        row0_(plan.first_row(tile0_)),
        rows_(plan.first_row(tile1_) - row0_),
        panel0_(number % plan.column_blocks * plan.width),
        panel1_(std::min(plan.panels, panel0_ + plan.width)) {
    sums_of_all_ = of_.accumulate || plan.steps > plan.sweep;
    sums_stride_ = of_.row_stride;
    if (std::is_same_v<Out, float> && sums_of_all_) {
      sums_ = (float*)of_.c + row0_ * of_.row_stride;
    } else if (plan.steps > kSteps) {
      sums_stride_ = (sums_of_all_ ? plan.panels : plan.group) * kPanel;
      sums_ = (float*)scratch(kPartial, rows_ * sums_stride_ * sizeof(float));
    }
    const int64_t most = std::min(plan.steps, plan.sweep);
    packed_ = (Unit<T>*)scratch(kPackedA, (rows_ * most + (tile1_ - tile0_) * kLanes) * sizeof(Unit<T>));
  }

  void run() {
    for (int64_t sweep0 = 0; sweep0 == 0 || sweep0 < plan_.steps; sweep0 += plan_.sweep) {
      const int64_t swept = std::min(plan_.sweep, plan_.steps - sweep0);
      pack_tiles(sweep0, swept);
      Prefetcher soon = read_next(sweep0, swept);
      for (int64_t panel = panel0_; panel < panel1_; panel += plan_.group)
        for (int64_t block = 0; block == 0 || block < swept; block += kSteps) {
          const int64_t steps = std::min(kSteps, swept - block);
          for (int64_t tile = tile0_; tile < tile1_; ++tile) {
            soon.step();
            multiply_tile(tile, packed_tile(tile, swept) + block * height(tile), panel, sweep0 + block, steps);
          }
        }
    }
  }

 private:
  int64_t height(int64_t tile) const { return plan_.first_row(tile + 1) - plan_.first_row(tile); }

  // Where a tile's rows are packed, for a sweep of so many steps. Its last step may be written as a whole
  // vector, so tiles lie one apart.
  Unit<T>* packed_tile(int64_t tile, int64_t swept) const {
    return packed_ + (plan_.first_row(tile) - row0_) * swept + (tile - tile0_) * kLanes;
  }

  void pack_tiles(int64_t sweep0, int64_t swept) const {
    constexpr int64_t kNumbers = Step<T>::kNumbers;
    const int64_t numbers = std::min(of_.k - sweep0 * kNumbers, swept * kNumbers);
    each_strip(of_.a, numbers, [&](int64_t step, int64_t some) {
      for (int64_t tile = tile0_; tile < tile1_; ++tile) {
        const int64_t high = height(tile);
        pack_rows(from(of_.a, plan_.first_row(tile), sweep0 + step), high, some,
                  packed_tile(tile, swept) + step * high, high);
      }
    });
  }

  // The part of A that this thread packs next: more of these rows, or those of the task that it most likely
  // takes next. Each tile of the sweep at hand asks for its share.
  Prefetcher read_next(int64_t sweep0, int64_t swept) const {
    constexpr int64_t kNumbers = Step<T>::kNumbers;
    const bool more = sweep0 + plan_.sweep < plan_.steps;  // of these rows
    const int64_t next0 = tile1_, next1 = plan_.first_tile(std::min(row_block_ + 2, plan_.row_blocks));
    const int64_t step = more ? sweep0 + plan_.sweep : 0, row = more ? row0_ : plan_.first_row(next0);
    const int64_t rows = plan_.column_blocks > 1 ? 0 : more ? rows_ : plan_.first_row(next1) - row;
    Prefetcher soon;
    add_rows(soon, from(of_.a, row, step), rows, std::min(of_.k - step * kNumbers, plan_.sweep * kNumbers));
    soon.spread(ceil_div(panel1_ - panel0_, plan_.group) * ceil_div(swept, kSteps) * (tile1_ - tile0_));
    return soon;
  }

  // One tile, whose rows are packed in `a`, times a group of panels, in `steps` steps of k from step0 on.
  void multiply_tile(int64_t tile, const Unit<T>* a, int64_t panel, int64_t step0, int64_t steps) const {
    const int64_t row = plan_.first_row(tile), high = height(tile), total = plan_.steps;
    const int64_t vectors = std::min(plan_.group, panel1_ - panel) * kVectors;
    const int64_t origin = sums_of_all_ ? 0 : panel * kPanel;  // the column of C that is sums_[0]'s
    const bool last = step0 + kSteps >= total, continued = of_.accumulate || step0 > 0;
    // The first tile asks for what is read of B after this. Single panels lie one behind the other, so that one
    // distance meets all of B, where what follows a short last block would be met in part.
    const int64_t next = (last && plan_.group > 1 ? plan_.group * total - step0 : kSteps) * kPanel;
    const int64_t ahead = tile == tile0_ ? next : 0;
    const int full = columns_of((int)high), low = std::min(full, kVectors);
    for (int64_t v = 0; v < vectors;) {
      const bool wide = v + full <= vectors;
      const int64_t column = panel * kPanel + v * kLanes;
      if (of_.part == kLower && column >= row + high) break;
      const bool single = of_.part == kLower && column + kLanes >= row + high;  // reaches the diagonal
      const Unit<T>* b = of_.b + column / kPanel * kPanel * total + step0 * kPanel + column % kPanel;
      float* sums = sums_ ? sums_ + (row - row0_) * sums_stride_ + column - origin : nullptr;
      auto run = [&](auto* out, int64_t stride, const T* bias, const auto& kernels) {
        using Result = std::remove_pointer_t<decltype(out)>;
        const Target<T, Result> to{out, stride, of_.n - column, bias, continued ? sums : nullptr, sums_stride_};
        const auto& sized = single ? kernels.single : wide ? kernels.wide : kernels.narrow;
        sized[high - 1](steps, a, b, kPanel * total, ahead, to);
      };
      if (last)
        run(of_.c + row * of_.row_stride + column, of_.row_stride, of_.bias ? of_.bias + column : nullptr,
            kKernels<T, Out>);
      else
        run(sums, sums_stride_, (const T*)nullptr, kKernels<T, float>);
      v += single ? 1 : wide ? full : low;
    }
  }

  const Product<T, Out>& of_;
  const Plan& plan_;
  const int64_t row_block_, tile0_, tile1_, row0_, rows_, panel0_, panel1_;
  Unit<T>* packed_;
  // Sums between two blocks of k, or null where there is one block: of the panels at hand, or of all panels
  // where k takes several sweeps. Of all they are in C itself if it is float. Of the panels at hand never, as
  // C's rows may lie a multiple of 4 KiB apart, and of such lines L1 keeps eight.
  float* sums_ = nullptr;
  int64_t sums_stride_;
  bool sums_of_all_;
};

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
    parallel::parallel_shares(ceil_div(panels, group), threads, [&](int64_t task) {
      pack_part(task * group, std::min(panels, (task + 1) * group), 0, k);
    });
  } else {  // a strip of columns is one piece of memory, which the processor reads ahead
    parallel::parallel_shares(ceil_div(k, kStripNumbers), threads, [&](int64_t strip) {
      pack_part(0, panels, strip * kStrip, std::min(kStripNumbers, k - strip * kStripNumbers));
    });
  }
}

template <class T, class Out>
void multiply(Matrix<T> a, const T* packed, int64_t m, int64_t n, int64_t k, Out* c, int64_t row_stride,
              const T* bias, bool accumulate, int threads, Part part) {
  if (m == 0 || n == 0) return;
  if (m * n * k < 1 << 17 && parallel::members() == 1) threads = 1;
  const Product<T, Out> product{
      a, reinterpret_cast<const Unit<T>*>(packed), n, k, c, row_stride, bias, accumulate, part};
  const Plan plan = make_plan<T>(m, n, k, threads);
  parallel::parallel_shares(plan.row_blocks * plan.column_blocks, threads,
                            [&](int64_t task) { Task<T, Out>(product, plan, task).run(); });
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
