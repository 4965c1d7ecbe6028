// The linear layer for Hopper (sm_90a) in bf16: y = x W^T (+ bias), dx = dy W, dW = dy^T x.
//
// All three are out (M, N) = sum over K of left and right, whose tiles the copy engine brings as they lie: K
// along the rows of both (y), across those of the right one (dx), across both (dW). Products read them either
// way, so nothing is transposed.
//
// A block stays on its SM and takes tiles of 128 x 256, one after the other. One warp asks for factors, 64 of K
// at a time, four stages ahead and on into the next tile; two warpgroups multiply, 64 rows each, the products
// of one stage under way while those of the next start. Results go through shared memory, a panel of 16 rows a
// warp, and the copy engine leaves out what lies beyond M and N, as it fills K up with zeros.
//
// A stage is 4 MFLOP, 1,024 clocks of the SM's tensor cores, and 48 KiB. Products of 64 x 256 read 80 bytes a
// clock of the 128 that shared memory gives. Tiles are taken down bands of 16, so that
// the 132 of a turn share 2,048 rows and columns in L2. K is one chain in every tile, so a row's bits do not
// depend on the rows beside it. Proven on the host shim and by counts of its machine code alone; see
// hopper.cuh.
#include "hopper.cuh"
#include "ops.h"

namespace {

constexpr int kRows = 128, kColumns = 256;  // of a tile
constexpr int kDepth = 64;                  // of K in a stage
constexpr int kStages = 4;
constexpr int kBand = 16;        // tiles that lie above each other and are taken in turn
constexpr int kResultRows = 16;  // of a warp
constexpr int kResults = 2;      // panels of a warp, one written while the other is read

struct Shared {
  unsigned char left[kStages][kRows * kDepth * 2], right[kStages][kColumns * kDepth * 2];
  unsigned char results[kReaders][kResults][kResultRows * kRowOfPanel];
  Barrier in[kStages], free[kStages];
};
constexpr size_t kBytes = sizeof(Shared) + kAligned;  // dynamic shared memory starts at a multiple of 16
static_assert(kBytes <= kMostBytes, "an SM's shared memory");

struct Maps {
  TensorMap left, right, out;
};
struct Work {
  const bf16* bias;      // null: none
  int64_t down, across;  // tiles
  int columns, depth;
};

#if HAS_HOPPER

// The first row and column of a tile.
struct Corner {
  int row, column;
  __device__ Corner(const Work& work, int64_t index) {
    int64_t band = index / (kBand * work.across), within = index % (kBand * work.across);
    int64_t height = work.down - band * kBand < kBand ? work.down - band * kBand : kBand;
    row = (int)((band * kBand + within % height) * kRows);
    column = (int)(within / height * kColumns);
  }
};

// LENGTH rows of a factor over kDepth of K; ACROSS: rows of memory, and so of panels, are K.
template <bool ACROSS, int LENGTH>
__device__ inline void copy_factor(unsigned char* to, const TensorMap* map, int first, int k, Barrier* in) {
  if constexpr (ACROSS)
    for (int panel = 0; panel < LENGTH / kPanel; ++panel)
      copy_panel(to + panel * kDepth * kRowOfPanel, map, first + panel * kPanel, 0, k, in);
  else
    copy_panel(to, map, k, 0, first, in);
}
// What a product takes of it: 16 of K from 16 `step` on, rows from `first` (a multiple of 64) on.
template <bool ACROSS>
__device__ inline uint64_t factor(const unsigned char* from, int first, int step) {
  if constexpr (ACROSS)
    return factor_in_columns<kDepth>(from + (first / kPanel * kDepth + step * kStep) * kRowOfPanel);
  else
    return factor_in_rows(from + first * kRowOfPanel + step * kStep * 2);
}

template <bool LEFT_ACROSS, bool RIGHT_ACROSS>
__device__ inline void copy_factors(Shared& shared, const Maps& maps, const Work& work) {
  Turn<kStages> turn;
  for (int64_t tile = blockIdx.x; tile < work.down * work.across; tile += gridDim.x) {
    const Corner corner(work, tile);
#pragma unroll 1
    for (int k = 0; k < work.depth; k += kDepth, turn.next()) {
      const int stage = turn.stage();
      wait(&shared.free[stage], turn.parity() ^ 1);
      arrive_expecting(&shared.in[stage], sizeof shared.left[0] + sizeof shared.right[0]);
      copy_factor<LEFT_ACROSS, kRows>(shared.left[stage], &maps.left, corner.row, k, &shared.in[stage]);
      copy_factor<RIGHT_ACROSS, kColumns>(shared.right[stage], &maps.right, corner.column, k,
                                          &shared.in[stage]);
    }
  }
}

// A warp's 16 rows of results, from corner (row, column) on.
template <class O>
__device__ inline void store_results(unsigned char (&panels)[kResults][kResultRows * kRowOfPanel],
                                     const TensorMap* map, float (&sums)[kColumns / 8][4], const Work& work,
                                     int row, int column) {
  constexpr int kWide = kRowOfPanel / sizeof(O), kEights = kWide / 8;  // columns of a panel
  const float one[2] = {1.0f, 1.0f};
#pragma unroll
  for (int panel = 0; panel < kColumns / kWide; ++panel, column += kWide) {
    float part[kEights][4];
#pragma unroll
    for (int n = 0; n < kEights; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) part[n][i] = sums[panel * kEights + n][i];
    if (work.bias)
#pragma unroll
      for (int n = 0; n < kEights; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int c = column + 8 * n + lane() % 4 * 2 + i;
          const float added = c < work.columns ? to_float(work.bias[c]) : 0.0f;
          part[n][i] += added, part[n][i + 2] += added;
        }
    unsigned char* place = panels[panel % kResults];
    if (lane() == 0) wait_for_stores<kResults - 1>();
    __syncwarp();
    put(Tile<O, kWide>{reinterpret_cast<O*>(place)}, 0, part, one);
    publish_to_engines();
    __syncwarp();
    if (lane() == 0) {
      store_panel(place, map, column, 0, row);
      end_stores();
    }
  }
}

template <class O, bool LEFT_ACROSS, bool RIGHT_ACROSS>
__device__ inline void multiply_tiles(Shared& shared, const Maps& maps, const Work& work, int group) {
  const int top = group * (kRows / kGroups), warp = threadIdx.x / kWarp;
  Turn<kStages> turn;
  for (int64_t tile = blockIdx.x; tile < work.down * work.across; tile += gridDim.x) {
    float sums[kColumns / 8][4];
    int before = 0;  // the stage whose products may still be running
#pragma unroll 1
    for (int k = 0; k < work.depth; k += kDepth, turn.next()) {
      const int stage = turn.stage();
      wait(&shared.in[stage], turn.parity());
      begin_products();
#pragma unroll
      for (int step = 0; step < kDepth / kStep; ++step)
        multiply_panels<LEFT_ACROSS, RIGHT_ACROSS>(sums, factor<LEFT_ACROSS>(shared.left[stage], top, step),
                                                   factor<RIGHT_ACROSS>(shared.right[stage], 0, step),
                                                   k > 0 || step > 0);
      end_batch();
      if (k > 0) {
        wait_for_products<1>();
        arrive_as_warp(&shared.free[before]);
      }
      before = stage;
    }
    wait_for_products<0>();
    arrive_as_warp(&shared.free[before]);
    const Corner corner(work, tile);
    const int row = corner.row + top + warp % (kWarpgroup / kWarp) * kResultRows;
    store_results<O>(shared.results[warp], &maps.out, sums, work, row, corner.column);
  }
  if (lane() == 0) wait_for_stores<0>();
}

#endif  // HAS_HOPPER

template <class O, bool LEFT_ACROSS, bool RIGHT_ACROSS>
__global__ void __launch_bounds__(kBlock, 1)
    product_hopper_kernel(const __grid_constant__ Maps maps, const Work work) {
#if HAS_HOPPER
  SHARED_MEMORY(unsigned char, memory);
  auto& shared = at_round_address<Shared>(memory);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      init_barrier(&shared.in[stage], 1);
      init_barrier(&shared.free[stage], kReaders);
    }
    publish_barriers();
  }
  __syncthreads();
  const int group = threadIdx.x / kWarpgroup;
  if (group == kGroups) {
    lower_registers<kCopying>();
    if (threadIdx.x == kGroups * kWarpgroup) copy_factors<LEFT_ACROSS, RIGHT_ACROSS>(shared, maps, work);
  } else {
    raise_registers<kMultiplying>();
    multiply_tiles<O, LEFT_ACROSS, RIGHT_ACROSS>(shared, maps, work, group);
  }
#endif
}

// The width of rows that hold `columns` numbers: whole eights, see ops.h.
int64_t wide(int64_t columns) { return (columns + 7) / 8 * 8; }

// left and right hold K along their rows, or, ACROSS, in their columns.
template <bool LEFT_ACROSS, bool RIGHT_ACROSS, class O>
int product(const bf16* left, const bf16* right, const bf16* bias, O* out, int64_t rows, int64_t columns,
            int64_t depth, void* stream) {
  int64_t blocks = 0;
  if (int error = hopper_blocks(&blocks)) return error;
  auto describe_factor = [&](TensorMap* map, const bf16* data, int64_t length, bool across, int panel_rows) {
    return across ? describe(map, data, depth, 1, wide(length), kDepth)
                  : describe(map, data, length, 1, wide(depth), panel_rows);
  };
  Maps maps;
  if (int error = describe_factor(&maps.left, left, rows, LEFT_ACROSS, kRows)) return error;
  if (int error = describe_factor(&maps.right, right, columns, RIGHT_ACROSS, kColumns)) return error;
  if (int error = describe(&maps.out, out, rows, 1, wide(columns), kResultRows)) return error;
  const Work work{bias, (rows + kRows - 1) / kRows, (columns + kColumns - 1) / kColumns, (int)columns,
                  (int)depth};
  blocks = blocks < work.down * work.across ? blocks : work.down * work.across;
  return launch(product_hopper_kernel<O, LEFT_ACROSS, RIGHT_ACROSS>, blocks, kBlock, kBytes, stream, maps,
                work);
}

}  // namespace

template <class O>
int linear_forward_hopper(const bf16* x, const bf16* weight, const bf16* bias, O* y, int64_t m, int64_t n,
                          int64_t k, void* stream) {
  return product<false, false>(x, weight, bias, y, m, n, k, stream);
}
template int linear_forward_hopper(const bf16*, const bf16*, const bf16*, float*, int64_t, int64_t, int64_t,
                                   void*);
template int linear_forward_hopper(const bf16*, const bf16*, const bf16*, bf16*, int64_t, int64_t, int64_t,
                                   void*);

int linear_dx_hopper(const bf16* dy, const bf16* weight, bf16* dx, int64_t m, int64_t n, int64_t k,
                     void* stream) {
  return product<false, true>(dy, weight, nullptr, dx, m, k, n, stream);
}

int linear_dweight_hopper(const bf16* dy, const bf16* x, bf16* dweight, int64_t m, int64_t n, int64_t k,
                          void* stream) {
  return product<true, true>(dy, x, nullptr, dweight, n, k, m, stream);
}
