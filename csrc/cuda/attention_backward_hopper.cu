// Attention backward for Hopper (sm_90a): packed, causal, grouped queries, bf16, heads of 64 or 128.
//
// As in attention.cu one kernel in two instances: a block owns 128 queries and keys pass by (dq), or owns 128
// keys and all queries of its group's heads pass by (dk, dv), 64 rows at a time. So nothing is added with
// atomics and the bits are the same every time, for 14 D flops a pair instead of 10. What is owned are rows of
// products: probabilities and their gradients become left factors in the registers that they are computed in,
// and nothing is turned round in shared memory.
//
// One warp copies; two warpgroups multiply, 64 owned rows each. A group's products of a step are under way in
// two ways: those of both scores together, so that exponentials run under the second, and those of gradients
// under the scores of the next step.
//
// The first instance also computes delta, the products of rows of dout and out, which the second reads.
//
// Tiles start at the document's first row, so that owned and passing rows are on the diagonal where a passing
// tile begins with a group's rows. Rows beyond the document are zeroed by the warp that copies. At D = 128 a
// step is 2,048 clocks of an SM's tensor cores for keys, 1,536 for queries. Proven on the host shim and by
// counts of its machine code alone; see hopper.cuh.
#include <type_traits>

#include "attention_hopper.cuh"
#include "ops.h"

namespace {

constexpr int kPassing = kGroupRows;  // rows that pass by at once
constexpr int kStages = 3;

template <int DIM>
struct Shared {
  unsigned char own[2][kTileOf<DIM, kSide>], passing[kStages][2][kTileOf<DIM, kPassing>];
  bf16 results[kSide * DIM];
  float own_delta[kSide];
  float lse[kStages][kPassing], delta[kStages][kPassing];  // of queries that pass by, lse in powers of two
  Barrier own_in, own_free, in[kStages], free[kStages];
  Barrier last_in;  // rows of which the document has fewer than the tile
};
template <int DIM>
constexpr size_t kBytes = sizeof(Shared<DIM>) + kAligned;  // dynamic shared memory starts at a multiple of 16

// own: queries and dout, or keys and values; passing: the others.
struct Maps {
  TensorMap own[2], passing[2];
};
struct Work {
  const bf16 *dout, *out;
  const float* lse;
  float* delta;        // (T, H)
  bf16* gradients[2];  // of own: dq; or dk and dv
  const int32_t* tiles;
  int64_t pieces;
  int heads, group;  // query heads, and how many share one of keys
  float scale;
};

#if HAS_HOPPER

// What passes by a piece. KEYS: the piece's own rows are keys, and so queries of all heads of the group pass.
template <bool KEYS>
struct Passage {
  int from, turns, heads, head;
  __device__ Passage(const Piece& piece, const Work& work) {
    const int last = piece.first + kSide < piece.end ? piece.first + kSide : piece.end;
    from = KEYS ? piece.first : piece.begin;
    turns = ((KEYS ? piece.end : last) - from + kPassing - 1) / kPassing;
    heads = KEYS ? work.group : 1, head = KEYS ? piece.head * work.group : piece.head / work.group;
  }
  __device__ int steps() const { return turns * heads; }
  __device__ int row(int step) const { return from + step % turns * kPassing; }
  __device__ int head_of(int step) const { return head + step / turns; }
};

// ---- the warp that copies

template <int DIM, bool KEYS>
__device__ inline void copy_pieces(Shared<DIM>& shared, const Maps& maps, const Work& work) {
  const bool asks = lane() == 0;
  const int piece_heads = KEYS ? work.heads / work.group : work.heads;
  Turn<kStages> turn;
  int last_parity = 0;
  for (int n = 0; piece_of(n, work.pieces) < work.pieces; ++n) {
    const Piece piece(work.tiles, piece_heads, piece_of(n, work.pieces));
    const Passage<KEYS> passage(piece, work);
    wait(&shared.own_free, (n + 1) % 2);
    if (asks) {
      arrive_expecting(&shared.own_in, sizeof shared.own);
      for (int i = 0; i < 2; ++i)
        copy_tile<DIM, kSide>(shared.own[i], &maps.own[i], piece.head, piece.first, &shared.own_in);
    }
    for (int step = 0; step < passage.steps(); ++step, turn.next()) {
      const int stage = turn.stage(), row = passage.row(step), head = passage.head_of(step);
      const bool whole = piece.end - row >= kPassing;
      Barrier* in = whole ? &shared.in[stage] : &shared.last_in;
      wait(&shared.free[stage], turn.parity() ^ 1);
      if (asks) {
        arrive_expecting(in, sizeof shared.passing[0]);
        for (int i = 0; i < 2; ++i)
          copy_tile<DIM, kPassing>(shared.passing[stage][i], &maps.passing[i], head, row, in);
      }
      if (KEYS) {
        for (int r = lane(); r < kPassing; r += kWarp) {
          const int64_t place = (int64_t)(row + r) * work.heads + head;
          const bool inside = row + r < piece.end;
          shared.lse[stage][r] = inside ? work.lse[place] * kLog2e : 0.0f;
          shared.delta[stage][r] = inside ? work.delta[place] : 0.0f;
        }
        __syncwarp();
        if (asks) arrive(&shared.in[stage]);
      }
      if (whole) continue;
      wait(&shared.last_in, last_parity);
      last_parity ^= 1;
      for (int i = 0; i < 2; ++i) clear_rows<DIM, kPassing>(shared.passing[stage][i], piece.end - row);
      publish_to_engines();
      __syncwarp();
      if (asks) arrive(&shared.in[stage]);
    }
  }
}

// ---- a warpgroup that multiplies

template <int DIM, bool KEYS>
__device__ inline void multiply_pieces(Shared<DIM>& shared, const Work& work, int group) {
  constexpr int kColumns = kPassing / 8;
  constexpr bool kOverlaps = DIM == 64 || !KEYS;
  const int in_group = threadIdx.x % kWarpgroup / kWarp * 16;  // the first of this warp's rows, of its group's
  const int top = group * kGroupRows + in_group;
  const int piece_heads = KEYS ? work.heads / work.group : work.heads;
  const float scale_log2 = work.scale * kLog2e;
  Tile<bf16, DIM> results{shared.results};
  Turn<kStages> turn;

  auto start_scores = [&](float (&scores)[kColumns][4], int which, int stage) {
    begin_products();
#pragma unroll
    for (int step = 0; step < DIM / kStep; ++step)
      multiply_panels<false, false>(scores, along_head<kSide>(shared.own[which], group * kGroupRows, step),
                                    along_head<kPassing>(shared.passing[stage][which], 0, step), step > 0);
    end_batch();
  };
  auto start_gradients = [&](float (&acc)[DIM / 8][4], const Kept<bf16, kColumns>& left, int which, int stage,
                             bool onto) {
    begin_products();
#pragma unroll
    for (int step = 0; step < kPassing / kStep; ++step)
      multiply_columns(acc, left.steps[step].word, along_rows<kPassing>(shared.passing[stage][which], step),
                       onto || step > 0);
    end_batch();
  };

  for (int n = 0; piece_of(n, work.pieces) < work.pieces; ++n) {
    const Piece piece(work.tiles, piece_heads, piece_of(n, work.pieces));
    const Passage<KEYS> passage(piece, work);
    const int own_first = piece.first + group * kGroupRows, rows = piece.end - piece.first;
    auto place = [&](int r) { return (int64_t)(piece.first + r) * piece_heads + piece.head; };
    float lse[2] = {}, delta[2] = {};  // of own queries
    if (!KEYS) {
      constexpr int kNumbers = 16 / sizeof(bf16);
      auto chunk = [&](const bf16* rows_of, int r, int c) { return rows_of + place(r) * DIM + c * kNumbers; };
      row_products<1, bf16, DIM>(
          top, rows, DIM, shared.own_delta, [&](int r, int c) { return chunk(work.dout, r, c); },
          [&](int r, int c) { return chunk(work.out, r, c); });
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = top + lane() / 4 + 8 * half;
        delta[half] = shared.own_delta[r];
        if (r >= rows) continue;
        lse[half] = work.lse[place(r)] * kLog2e;
        if (lane() % 4 == 0) work.delta[place(r)] = delta[half];
      }
      __syncwarp();
    }

    float first_acc[DIM / 8][4], second_acc[KEYS ? DIM / 8 : 1][4];  // dq or dk; dv
    Kept<bf16, kColumns> p, ds;
    int before = -1;  // the stage that products of gradients may still be reading
    bool begun = false;
    wait(&shared.own_in, n % 2);
    for (int step = 0; step < passage.steps(); ++step, turn.next()) {
      const int stage = turn.stage(), start = passage.row(step);
      wait(&shared.in[stage], turn.parity());
      if (own_first >= piece.end || (KEYS ? start < own_first : start > own_first)) {  // nothing is seen
        arrive_as_warp(&shared.free[stage]);
        continue;
      }
      float scores[kColumns][4], gradients[kColumns][4];
      start_scores(scores, 0, stage);
      start_scores(gradients, 1, stage);
      if (kOverlaps && begun) {
        wait_for_products<2>();
        arrive_as_warp(&shared.free[before]);
      }
      wait_for_products<1>();
      const bool diagonal = start == own_first;
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = 8 * c + lane() % 4 * 2 + i % 2, row = in_group + lane() / 4 + i / 2 * 8;
          const float peak = KEYS ? shared.lse[stage][column] : lse[i / 2];
          float& prob = scores[c][i];
          prob = exp2_fast(fmaf(prob, scale_log2, -peak));
          if (diagonal && (KEYS ? row > column : column > row)) prob = 0.0f;
        }
      if constexpr (KEYS) {
        p.keep(scores);
        start_gradients(second_acc, p, 1, stage, begun);
      }
      wait_for_products<KEYS ? 1 : 0>();
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = 8 * c + lane() % 4 * 2 + i % 2;
          gradients[c][i] =
              scores[c][i] * (gradients[c][i] - (KEYS ? shared.delta[stage][column] : delta[i / 2]));
        }
      ds.keep(gradients);
      start_gradients(first_acc, ds, 0, stage, begun);
      before = stage, begun = true;
      if constexpr (!kOverlaps) {
        wait_for_products<0>();
        arrive_as_warp(&shared.free[before]);
      }
    }
    if constexpr (kOverlaps) {
      wait_for_products<0>();
      if (begun) arrive_as_warp(&shared.free[before]);
    }
    arrive_as_warp(&shared.own_free);

    if (own_first >= piece.end) continue;
    const float scale[2] = {work.scale, work.scale}, one[2] = {1.0f, 1.0f};
    put(results, top, first_acc, scale);  // rows of this warp alone
    write_rows(results, top, rows, DIM, [&](int r) { return work.gradients[0] + place(r) * DIM; });
    __syncwarp();
    if constexpr (KEYS) {
      put(results, top, second_acc, one);
      write_rows(results, top, rows, DIM, [&](int r) { return work.gradients[1] + place(r) * DIM; });
      __syncwarp();
    }
  }
}

#endif  // HAS_HOPPER

template <int DIM, bool KEYS>
__global__ void __launch_bounds__(kBlock, 1)
    attention_bwd_hopper_kernel(const __grid_constant__ Maps maps, const Work work) {
#if HAS_HOPPER
  SHARED_MEMORY(unsigned char, memory);
  auto& shared = at_round_address<Shared<DIM>>(memory);
  auto make_barriers = [&] {
    for (Barrier* in : {&shared.own_in, &shared.last_in}) init_barrier(in, 1);
    init_barrier(&shared.own_free, kReaders);
    for (int stage = 0; stage < kStages; ++stage) {
      init_barrier(&shared.in[stage], KEYS ? 2 : 1);  // rows, and what is known of them
      init_barrier(&shared.free[stage], kReaders);
    }
  };
  share_roles(
      make_barriers, [&] { copy_pieces<DIM, KEYS>(shared, maps, work); },
      [&](int group) { multiply_pieces<DIM, KEYS>(shared, work, group); });
#endif
}

template <int DIM, bool KEYS>
int launch_backward(const Maps& maps, const Work& work, int64_t blocks, void* stream) {
  static_assert(kBytes<DIM> <= kMostBytes, "an SM's shared memory");
  blocks = blocks < work.pieces ? blocks : work.pieces;
  return launch(attention_bwd_hopper_kernel<DIM, KEYS>, blocks, kBlock, kBytes<DIM>, stream, maps, work);
}

}  // namespace

int attention_backward_hopper(const bf16* dout, const bf16* q, const bf16* k, const bf16* v, const bf16* out,
                              const float* lse, float* delta, bf16* dq, bf16* dk, bf16* dv,
                              const int32_t* by_query, const int32_t* by_key, int64_t tokens,
                              int64_t tile_count, int64_t heads, int64_t kv_heads, int64_t dim, float scale,
                              void* stream) {
  if (!tile_count) return 0;
  int64_t blocks = 0;
  if (int error = hopper_blocks(&blocks)) return error;
  auto run = [&](auto keys) {
    constexpr bool KEYS = decltype(keys)::value;
    const bf16 *of_queries[2] = {q, dout}, *of_keys[2] = {k, v};
    Maps maps;
    for (int i = 0; i < 2; ++i) {
      const bf16 *own = (KEYS ? of_keys : of_queries)[i], *other = (KEYS ? of_queries : of_keys)[i];
      const int64_t own_heads = KEYS ? kv_heads : heads, other_heads = KEYS ? heads : kv_heads;
      if (int error = describe(&maps.own[i], own, tokens, own_heads, dim, kSide)) return error;
      if (int error = describe(&maps.passing[i], other, tokens, other_heads, dim, kPassing)) return error;
    }
    const Work work{dout,
                    out,
                    lse,
                    delta,
                    {KEYS ? dk : dq, KEYS ? dv : nullptr},
                    KEYS ? by_key : by_query,
                    tile_count * (KEYS ? kv_heads : heads),
                    (int)heads,
                    (int)(heads / kv_heads),
                    scale};
    return dim == 64 ? launch_backward<64, KEYS>(maps, work, blocks, stream)
                     : launch_backward<128, KEYS>(maps, work, blocks, stream);
  };
  if (int error = run(std::false_type())) return error;
  return run(std::true_type());
}
