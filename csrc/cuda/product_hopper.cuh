// Products of matrices on Hopper (sm_90a) in bf16: what the linear layer and the output layer's loss are made
// of.
//
// out (M, N) = sum over K of left and right, whose tiles the copy engine brings as they lie, K along their rows
// or across them. Products read them either way, so nothing is transposed.
//
// A block stays on its SM and takes tiles of 128 x 256, one after the other. One warp asks for factors, 64 of K
// at a time, four stages ahead and on into the next tile; two warpgroups multiply, 64 rows each, the products
// of one stage under way while those of the next start. What becomes of a tile's sums is the epilogue's affair:
//
//   epilogue(panels, sums, row, column): called by a warp with the sums of 16 rows and 256 columns from there
//   on; panels: shared memory of this warp alone, for what the copy engine takes to memory.
//
// The copy engine leaves out what lies beyond M and N, as it fills K up with zeros.
//
// A stage is 4 MFLOP, 1,024 clocks of the SM's tensor cores, and 48 KiB. Products of 64 x 256 read 80 bytes a
// clock of the 128 that shared memory gives. Tiles are taken down bands of 16, so that the 132 of a turn share
// 2,048 rows and columns in L2. K is one chain in every tile, so a row's bits do not depend on the rows beside
// it. Proven on the host shim and by counts of its machine code alone; see hopper.cuh.
#pragma once

#include "hopper.cuh"

constexpr int kRows = 128, kColumns = 256;  // of a tile
constexpr int kDepth = 64;                  // of K in a stage
constexpr int kStages = 4;
constexpr int kBand = 16;        // tiles that lie above each other and are taken in turn
constexpr int kResultRows = 16;  // of a warp
constexpr int kResults = 2;      // panels of a warp, one written while the other is read

using Sums = float[kColumns / 8][4];
using Panels = unsigned char[kResults][kResultRows * kRowOfPanel];

struct Shared {
  unsigned char left[kStages][kRows * kDepth * 2], right[kStages][kColumns * kDepth * 2];
  Panels results[kReaders];
  Barrier in[kStages], free[kStages];
};
constexpr size_t kBytes = sizeof(Shared) + kAligned;  // dynamic shared memory starts at a multiple of 16
static_assert(kBytes <= kMostBytes, "an SM's shared memory");

struct Work {
  TensorMap left, right;
  int64_t down, across;  // tiles
  int depth;
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
__device__ inline void copy_factors(Shared& shared, const Work& work) {
  Turn<kStages> turn;
  for (int64_t tile = blockIdx.x; tile < work.down * work.across; tile += gridDim.x) {
    const Corner corner(work, tile);
#pragma unroll 1
    for (int k = 0; k < work.depth; k += kDepth, turn.next()) {
      const int stage = turn.stage();
      wait(&shared.free[stage], turn.parity() ^ 1);
      arrive_expecting(&shared.in[stage], sizeof shared.left[0] + sizeof shared.right[0]);
      copy_factor<LEFT_ACROSS, kRows>(shared.left[stage], &work.left, corner.row, k, &shared.in[stage]);
      copy_factor<RIGHT_ACROSS, kColumns>(shared.right[stage], &work.right, corner.column, k,
                                          &shared.in[stage]);
    }
  }
}

// What `change` makes of a warp's sums, through panels of O to a tensor, or ADD: added to what is there.
// change(upper, lower, column): two sums of a column, of rows lane / 4 and 8 below, changed in place.
template <class O, bool ADD, class Change>
__device__ inline void store_sums(Panels& panels, const TensorMap* map, const Sums& sums, int row, int column,
                                  Change change) {
  constexpr int kWide = kRowOfPanel / sizeof(O), kEights = kWide / 8;  // columns of a panel
  const float one[2] = {1.0f, 1.0f};
#pragma unroll
  for (int panel = 0; panel < kColumns / kWide; ++panel, column += kWide) {
    float part[kEights][4];
#pragma unroll
    for (int n = 0; n < kEights; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float (&from)[4] = sums[panel * kEights + n];
        part[n][i] = from[i], part[n][i + 2] = from[i + 2];
        change(part[n][i], part[n][i + 2], column + 8 * n + lane() % 4 * 2 + i);
      }
    unsigned char* place = panels[panel % kResults];
    if (lane() == 0) wait_for_stores<kResults - 1>();
    __syncwarp();
    put(Tile<O, kWide>{reinterpret_cast<O*>(place)}, 0, part, one);
    publish_to_engines();
    __syncwarp();
    if (lane() == 0) {
      ADD ? add_panel(place, map, column, 0, row) : store_panel(place, map, column, 0, row);
      end_stores();
    }
  }
}

template <bool LEFT_ACROSS, bool RIGHT_ACROSS, class Epilogue>
__device__ inline void multiply_tiles(Shared& shared, const Work& work, const Epilogue& epilogue, int group) {
  const int top = group * (kRows / kGroups), warp = threadIdx.x / kWarp;
  Turn<kStages> turn;
  for (int64_t tile = blockIdx.x; tile < work.down * work.across; tile += gridDim.x) {
    Sums sums;
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
    epilogue(shared.results[warp], sums, row, corner.column);
  }
  if (lane() == 0) wait_for_stores<0>();
}

#endif  // HAS_HOPPER

template <bool LEFT_ACROSS, bool RIGHT_ACROSS, class Epilogue>
__global__ void __launch_bounds__(kBlock, 1)
    product_hopper_kernel(const __grid_constant__ Work work, const __grid_constant__ Epilogue epilogue) {
#if HAS_HOPPER
  SHARED_MEMORY(unsigned char, memory);
  auto& shared = at_round_address<Shared>(memory);
  auto make_barriers = [&] {
    for (int stage = 0; stage < kStages; ++stage) {
      init_barrier(&shared.in[stage], 1);
      init_barrier(&shared.free[stage], kReaders);
    }
  };
  share_roles(
      make_barriers,
      [&] {
        if (lane() == 0) copy_factors<LEFT_ACROSS, RIGHT_ACROSS>(shared, work);
      },
      [&](int group) { multiply_tiles<LEFT_ACROSS, RIGHT_ACROSS>(shared, work, epilogue, group); });
#endif
}

// The width of rows that hold `columns` numbers: whole eights, see ops.h.
inline int64_t wide(int64_t columns) { return (columns + 7) / 8 * 8; }

// Calls the epilogue on all sums of left and right, which hold K along their rows, or, ACROSS, in their
// columns.
template <bool LEFT_ACROSS, bool RIGHT_ACROSS, class Epilogue>
int product(const bf16* left, const bf16* right, const Epilogue& epilogue, int64_t rows, int64_t columns,
            int64_t depth, void* stream) {
  int64_t blocks = 0;
  if (int error = hopper_blocks(&blocks)) return error;
  auto describe_factor = [&](TensorMap* map, const bf16* data, int64_t length, bool across, int panel_rows) {
    return across ? describe(map, data, depth, 1, wide(length), kDepth)
                  : describe(map, data, length, 1, wide(depth), panel_rows);
  };
  Work work{{}, {}, (rows + kRows - 1) / kRows, (columns + kColumns - 1) / kColumns, (int)depth};
  if (int error = describe_factor(&work.left, left, rows, LEFT_ACROSS, kRows)) return error;
  if (int error = describe_factor(&work.right, right, columns, RIGHT_ACROSS, kColumns)) return error;
  blocks = blocks < work.down * work.across ? blocks : work.down * work.across;
  return launch(product_hopper_kernel<LEFT_ACROSS, RIGHT_ACROSS, Epilogue>, blocks, kBlock, kBytes, stream,
                work, epilogue);
}
// What store_sums needs to know of a matrix.
template <class O>
int describe_results(TensorMap* map, const O* out, int64_t rows, int64_t columns) {
  return describe(map, out, rows, 1, wide(columns), kResultRows);
}
