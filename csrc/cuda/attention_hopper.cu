// Attention forward for Hopper (sm_90a): packed, causal, grouped queries, bf16, heads of 64 or 128.
//
// Three warpgroups share an SM and stay there, each block taking one piece of work (128 queries of a document
// and head) after the other. One copies: a warp of it asks for tiles of queries, keys and values, 128 rows
// each, as barriers say that room is free. Two multiply, 64 queries each, with the registers that the first
// gave up; what each does while its tensor cores run is laid out so that they always have work (Shah et al.,
// FlashAttention-3, 2024):
//
//   the two take turns to start products, so that one's softmax runs while the other's products do;
//   within one, products of queries and the next keys are started before those of probabilities and values, and
//   the softmax of the next scores runs while the latter do.
//
// Keys pass from the document's first to the last. Tiles of queries and of keys both start at the document's
// first row, so that the last tile alone has later keys, and rows beyond the document only there: its values
// are zeroed by the warp that copies, for zero times another document's NaN is NaN.
//
// 4 D flops and one exponential a pair: at D = 128, 2,048 clocks of an SM's tensor cores and 1,024 of its
// exponentials a tile of 128 x 128. Proven on the host shim and by counts of its machine code alone; see
// hopper.cuh.
#include <type_traits>

#include "attention_hopper.cuh"
#include "ops.h"

namespace {

constexpr int kStages = 2;  // tiles of keys, and of values, that room is for; of as many rows as a piece has

template <int DIM>
struct Shared {
  static constexpr int kTile = kTileOf<DIM, kSide>;
  unsigned char queries[kTile], keys[kStages][kTile], values[kStages][kTile];
  bf16 results[kSide * DIM];
  Barrier queries_in, queries_free, keys_in[kStages], keys_free[kStages], values_in[kStages],
      values_free[kStages];
  Barrier last_in;  // values of which the document has fewer than the tile
};
template <int DIM>
constexpr size_t kBytes = sizeof(Shared<DIM>) + kAligned;  // dynamic shared memory starts at a multiple of 16

struct Maps {
  TensorMap q, k, v;
};
struct Work {
  bf16* out;
  float* lse;
  const int32_t* tiles;  // (first row, document's first row, document's end)
  int64_t pieces;
  int heads, kv_heads;
  float scale_log2;
};

#if HAS_HOPPER

// Tiles of keys that pass by: as far as the queries themselves.
__device__ inline int steps_of(const Piece& piece) { return (piece.first - piece.begin) / kSide + 1; }

// ---- the warp that copies

template <int DIM>
__device__ inline void copy_expected(unsigned char* tile, const TensorMap* map, int head, int row,
                                     Barrier* in) {
  arrive_expecting(in, Shared<DIM>::kTile);
  copy_tile<DIM, kSide>(tile, map, head, row, in);
}

template <int DIM>
__device__ inline void copy_pieces(Shared<DIM>& shared, const Maps& maps, const Work& work) {
  const bool asks = lane() == 0;
  Turn<kStages> turn;
  int last_parity = 0;
  for (int n = 0; piece_of(n, work.pieces) < work.pieces; ++n) {
    const Piece piece(work.tiles, work.heads, piece_of(n, work.pieces));
    const int kv_head = piece.head / (work.heads / work.kv_heads);
    wait(&shared.queries_free, (n + 1) % 2);
    if (asks) copy_expected<DIM>(shared.queries, &maps.q, piece.head, piece.first, &shared.queries_in);
    for (int step = 0; step < steps_of(piece); ++step, turn.next()) {
      const int stage = turn.stage(), row = piece.begin + step * kSide, rows = piece.end - row;
      unsigned char* values = shared.values[stage];
      wait(&shared.keys_free[stage], turn.parity() ^ 1);
      if (asks) copy_expected<DIM>(shared.keys[stage], &maps.k, kv_head, row, &shared.keys_in[stage]);
      wait(&shared.values_free[stage], turn.parity() ^ 1);
      const bool whole = rows >= kSide;
      if (asks)
        copy_expected<DIM>(values, &maps.v, kv_head, row, whole ? &shared.values_in[stage] : &shared.last_in);
      if (whole) continue;
      wait(&shared.last_in, last_parity);
      last_parity ^= 1;
      clear_rows<DIM, kSide>(values, rows);
      publish_to_engines();
      __syncwarp();
      if (asks) arrive(&shared.values_in[stage]);
    }
  }
}

// ---- a warpgroup that multiplies

// Scores to probabilities, and the running maximum and sum of the rows with them; fade: what a row's earlier
// sums are to be multiplied by. diagonal: the tile has keys that are later than its queries, of which this
// thread has `row` and the eighth below.
__device__ inline void soften(float (&scores)[kSide / 8][4], float (&peak)[2], float (&total)[2],
                              float (&fade)[2], float scale_log2, bool diagonal, int row) {
  if (diagonal)
#pragma unroll
    for (int n = 0; n < kSide / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (8 * n + lane() % 4 * 2 + i % 2 > row + i / 2 * 8) scores[n][i] = -INFINITY;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float higher = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int n = 0; n < kSide / 8; ++n)
      higher = fmaxf(higher, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    higher = fmaxf(peak[half], row_max(higher) * scale_log2);
    fade[half] = exp2_fast(peak[half] - higher);
#pragma unroll
    for (int n = 0; n < kSide / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = scores[n][2 * half + i];
        score = exp2_fast(fmaf(score, scale_log2, -higher));
        sum += score;
      }
    total[half] = total[half] * fade[half] + sum;
    peak[half] = higher;
  }
}

template <int DIM>
__device__ inline void multiply_pieces(Shared<DIM>& shared, const Work& work, int group) {
  constexpr int kColumns = kSide / 8, kTurnThreads = kGroups * kWarpgroup;
  const int top = group * kGroupRows + threadIdx.x % kWarpgroup / kWarp * 16;  // of this warp's rows
  const int my_turn = 1 + group, their_turn = 2 - group;
  Tile<bf16, DIM> results{shared.results};
  Turn<kStages> turn;

  auto start_scores = [&](float (&scores)[kColumns][4], int stage) {
    begin_products();
#pragma unroll
    for (int step = 0; step < DIM / kStep; ++step)
      multiply_panels<false, false>(scores, along_head<kSide>(shared.queries, group * kGroupRows, step),
                                    along_head<kSide>(shared.keys[stage], 0, step), step > 0);
    end_batch();
  };
  auto start_outputs = [&](float (&acc)[DIM / 8][4], const Kept<bf16, kColumns>& p, int stage, bool onto) {
    begin_products();
#pragma unroll
    for (int step = 0; step < kSide / kStep; ++step)
      multiply_columns(acc, p.steps[step].word, along_rows<kSide>(shared.values[stage], step),
                       onto || step > 0);
    end_batch();
  };

  if (group == 1) tell_others(their_turn, kTurnThreads);
  for (int n = 0; piece_of(n, work.pieces) < work.pieces; ++n) {
    const Piece piece(work.tiles, work.heads, piece_of(n, work.pieces));
    const int steps = steps_of(piece), row = top + lane() / 4;
    float peak[2] = {-INFINITY, -INFINITY}, total[2] = {}, fade[2];
    float scores[kColumns][4], acc[DIM / 8][4];
    Kept<bf16, kColumns> p;

    wait(&shared.queries_in, n % 2);
    wait(&shared.keys_in[turn.stage()], turn.parity());
    start_scores(scores, turn.stage());
    wait_for_products<0>();
    arrive_as_warp(&shared.keys_free[turn.stage()]);
    soften(scores, peak, total, fade, work.scale_log2, steps == 1, row);
    p.keep(scores);
    for (int step = 1; step < steps; ++step) {
      const Turn<kStages> before = turn;
      turn.next();
      wait(&shared.keys_in[turn.stage()], turn.parity());
      wait_for_others(my_turn, kTurnThreads);
      start_scores(scores, turn.stage());
      wait(&shared.values_in[before.stage()], before.parity());
      start_outputs(acc, p, before.stage(), step > 1);
      tell_others(their_turn, kTurnThreads);
      wait_for_products<1>();
      arrive_as_warp(&shared.keys_free[turn.stage()]);
      soften(scores, peak, total, fade, work.scale_log2, step == steps - 1, row);
      wait_for_products<0>();
      arrive_as_warp(&shared.values_free[before.stage()]);
      p.keep(scores);
#pragma unroll
      for (int c = 0; c < DIM / 8; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[c][i] *= fade[i / 2];
    }
    arrive_as_warp(&shared.queries_free);
    wait(&shared.values_in[turn.stage()], turn.parity());
    start_outputs(acc, p, turn.stage(), steps > 1);
    wait_for_products<0>();
    arrive_as_warp(&shared.values_free[turn.stage()]);
    turn.next();

    const int rows = piece.end - piece.first;
    auto place = [&](int r) { return (int64_t)(piece.first + r) * work.heads + piece.head; };
    float scale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float all = row_sum(total[half]);
      scale[half] = 1.0f / all;
      if (lane() % 4 == 0 && row + 8 * half < rows)
        work.lse[place(row + 8 * half)] = (peak[half] + log2f(all)) * kLn2;
    }
    put(results, top, acc, scale);  // rows of this warp alone
    write_rows(results, top, rows, DIM, [&](int r) { return work.out + place(r) * DIM; });
    __syncwarp();
  }
  if (group == 0) wait_for_others(my_turn, kTurnThreads);  // the turn that nobody took
}

#endif  // HAS_HOPPER

template <int DIM>
__global__ void __launch_bounds__(kBlock, 1)
    attention_fwd_hopper_kernel(const __grid_constant__ Maps maps, const Work work) {
#if HAS_HOPPER
  SHARED_MEMORY(unsigned char, memory);
  auto& shared = at_round_address<Shared<DIM>>(memory);
  auto make_barriers = [&] {
    for (Barrier* in : {&shared.queries_in, &shared.last_in}) init_barrier(in, 1);
    init_barrier(&shared.queries_free, kReaders);
    for (int stage = 0; stage < kStages; ++stage) {
      for (Barrier* in : {&shared.keys_in[stage], &shared.values_in[stage]}) init_barrier(in, 1);
      for (Barrier* free : {&shared.keys_free[stage], &shared.values_free[stage]}) init_barrier(free, kReaders);
    }
  };
  share_roles(
      make_barriers, [&] { copy_pieces<DIM>(shared, maps, work); },
      [&](int group) { multiply_pieces<DIM>(shared, work, group); });
#endif
}

template <int DIM>
int launch_forward(const Maps& maps, const Work& work, int64_t blocks, void* stream) {
  static_assert(kBytes<DIM> <= kMostBytes, "an SM's shared memory");
  return launch(attention_fwd_hopper_kernel<DIM>, blocks, kBlock, kBytes<DIM>, stream, maps, work);
}

}  // namespace

int64_t attention_hopper_rows() { return kSide; }

int attention_forward_hopper(const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse,
                             const int32_t* tiles, int64_t tokens, int64_t tile_count, int64_t heads,
                             int64_t kv_heads, int64_t dim, float scale, void* stream) {
  if (!tile_count) return 0;
  int64_t blocks = 0;
  if (int error = hopper_blocks(&blocks)) return error;
  Maps maps;
  if (int error = describe(&maps.q, q, tokens, heads, dim, kSide)) return error;
  if (int error = describe(&maps.k, k, tokens, kv_heads, dim, kSide)) return error;
  if (int error = describe(&maps.v, v, tokens, kv_heads, dim, kSide)) return error;
  Work work{out, lse, tiles, tile_count * heads, (int)heads, (int)kv_heads, scale * kLog2e};
  blocks = blocks < work.pieces ? blocks : work.pieces;
  return dim == 64 ? launch_forward<64>(maps, work, blocks, stream)
                   : launch_forward<128>(maps, work, blocks, stream);
}
