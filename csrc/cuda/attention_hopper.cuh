// What attention's forward and backward on Hopper share: pieces of work, their tiles, and these tiles' last
// rows.
#pragma once

#include "hopper.cuh"

constexpr int kSide = 128;  // rows of a piece of work
constexpr int kGroupRows = kSide / kGroups;

// Bytes of a tile of ROWS rows of heads of DIM, and of one of its panels.
template <int ROWS>
constexpr int kPanelOf = ROWS * kRowOfPanel;
template <int DIM, int ROWS>
constexpr int kTileOf = DIM / kPanel * kPanelOf<ROWS>;

// One piece of work: rows of a document from `first` on, and a head. tiles: (first row, document's first row,
// document's end).
struct Piece {
  int first, begin, end, head;
  __device__ Piece(const int32_t* tiles, int heads, int64_t index) {
    const int32_t* tile = tiles + index / heads * 3;
    first = tile[0], begin = tile[1], end = tile[2], head = (int)(index % heads);
  }
};
// The pieces lie longest first, and blocks take them in turns that run to and fro, so that all end about
// together. Which is a block's n-th, or one beyond them all.
__device__ inline int64_t piece_of(int n, int64_t pieces) {
  int64_t blocks = gridDim.x, place = n % 2 ? blocks - 1 - blockIdx.x : blockIdx.x;
  return n * blocks + place < pieces ? n * blocks + place : pieces;
}

// Starts the copies of a tile, of which the barrier has been told (kTileOf bytes).
template <int DIM, int ROWS>
__device__ inline void copy_tile(unsigned char* tile, const TensorMap* map, int head, int row, Barrier* in) {
  for (int panel = 0; panel < DIM / kPanel; ++panel)
    copy_panel(tile + panel * kPanelOf<ROWS>, map, panel * kPanel, head, row, in);
}
// Zeros from row `rows` on, by a warp: these are another document's, and zero times its NaN is NaN.
template <int DIM, int ROWS>
__device__ inline void clear_rows(unsigned char* tile, int rows) {
  for (int panel = 0; panel < DIM / kPanel; ++panel)
    for (int at = rows * kRowOfPanel + 16 * lane(); at < kPanelOf<ROWS>; at += 16 * kWarp)
      store_pack<uint32_t, 4>(reinterpret_cast<uint32_t*>(tile + panel * kPanelOf<ROWS> + at), {});
}

// Factors of a product over 16 of K from 16 `step` on: a head's numbers, from row `first` of a tile on; or a
// tile's rows, for all of the head.
template <int ROWS>
__device__ inline uint64_t along_head(const unsigned char* tile, int first, int step) {
  const int at = step * kStep;
  return factor_in_rows(tile + at / kPanel * kPanelOf<ROWS> + first * kRowOfPanel + at % kPanel * 2);
}
template <int ROWS>
__device__ inline uint64_t along_rows(const unsigned char* tile, int step) {
  return factor_in_columns<ROWS>(tile + step * kStep * kRowOfPanel);
}
