// BPE encoding of text on the device: the ids of csrc/text, which it shares lexers and tables with.
//
// starts: one thread a byte. Where a piece begins for certain (lexers.h, mostly everywhere) its thread cuts
// from
//   there to the next such place, so text is cut by all at once, without carries.
// look_up: one thread a piece: its hash, one entry, and the bytes of the token that is found, all from L2. Nine
//   of ten pieces of English are one token, and done.
// merge: one warp a piece that is not, up to kBpeLongest bytes in shared memory. A round finds the leftmost
// pair
//   of the lowest rank over all lanes; two lanes look up what its two neighbours now merge to.
// gather: ids lie where their piece's bytes lie (no piece has more ids than bytes) until all counts are known.
//
// Bound by the latency of L2 in `merge`, hidden by the warps of other pieces; docs/text.md has the prediction.
#include "../text/image.h"
#include "common.cuh"
#include "ops.h"

namespace {

using text::Image;
using text::none;

constexpr int kThreads = 256;
constexpr int kTile = 2048;  // bytes that a block cuts, so that it looks up its documents once
constexpr int kWarps = 4;    // pieces that a block merges at once
constexpr unsigned kAll = 0xffffffffu;

// The last document in [low, high] that begins at or before byte i.
__device__ int64_t document_of(const int64_t* offsets, int64_t low, int64_t high, int64_t i) {
  while (low < high) {
    int64_t middle = (low + high + 1) / 2;
    if (offsets[middle] <= i)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

__global__ void starts_kernel(const Image* image, const uint8_t* text, const int64_t* offsets, uint8_t* starts,
                              int64_t bytes, int64_t documents) {
  __shared__ int64_t ends[2];  // the documents of the first and the last byte
  int64_t first = (int64_t)blockIdx.x * kTile, last = first + kTile < bytes ? first + kTile : bytes;
  if (threadIdx.x < 2)
    ends[threadIdx.x] = document_of(offsets, 0, documents - 1, threadIdx.x == 0 ? first : last - 1);
  __syncthreads();
  for (int64_t i = first + threadIdx.x; i < last; i += kThreads) {
    int64_t document = document_of(offsets, ends[0], ends[1], i);
    const uint8_t *begin = text + offsets[document], *end = text + offsets[document + 1];
    auto lexer = image->lexer(end);
    const uint8_t* p = text + i;
    if (!lexer.begins(begin, p)) continue;
    do {
      starts[p - text] = 1;
      p = lexer.piece_end(p);
    } while (p < end && !lexer.begins(begin, p));
  }
}

__global__ void look_up_kernel(const Image* image, const uint8_t* text, const int64_t* starts, int32_t* staged,
                               int32_t* counts, int64_t pieces) {
  int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (i >= pieces) return;
  int64_t size = starts[i + 1] - starts[i];
  uint32_t id = size <= image->longest ? image->whole_of(text + starts[i], size) : none;
  if (id != none) staged[starts[i]] = (int32_t)id;
  counts[i] = id != none ? 1 : size <= kBpeLongest ? 0 : -1;
}

// The tokens of a piece while it is merged. Of a place that has become part of the one before, symbol and rank
// are none; rank is what a token merges to with the next.
struct Piece {
  uint32_t symbol[kBpeLongest], rank[kBpeLongest];
  uint16_t next[kBpeLongest], previous[kBpeLongest];
};

// Writes the ids of a piece, by all lanes of a warp; returns how many.
__device__ int merge(const Image& image, const uint8_t* p, int size, Piece& s, int32_t* out) {
  const uint32_t *byte_symbols = image.at<uint32_t>(image.byte_symbols),
                 *byte_pairs = image.at<uint32_t>(image.byte_pairs), *ids = image.at<uint32_t>(image.ids);
  const int lane = threadIdx.x % kWarp;
  for (int i = lane; i < size; i += kWarp) {
    s.symbol[i] = byte_symbols[p[i]];
    s.rank[i] = i + 1 < size ? byte_pairs[p[i] << 8 | p[i + 1]] : none;
    s.next[i] = (uint16_t)(i + 1);
    s.previous[i] = (uint16_t)(i - 1);
  }
  __syncwarp();
  for (;;) {
    uint32_t rank = none;
    int place = size;
    for (int i = lane; i < size; i += kWarp)
      if (s.rank[i] < rank) rank = s.rank[i], place = i;
    const uint32_t lowest = __reduce_min_sync(kAll, rank);
    if (lowest == none) break;
    const int left = __reduce_min_sync(kAll, rank == lowest ? place : size);
    const int right = s.next[left], behind = s.next[right], before = s.previous[left];
    const bool with_next = lane == 0 && behind < size, with_previous = lane == 1 && left > 0;
    uint32_t merged = none;
    if (with_next || with_previous)
      merged = image.merged(with_next ? lowest : s.symbol[before], with_next ? s.symbol[behind] : lowest);
    __syncwarp();
    if (lane == 0) {
      s.symbol[left] = lowest;
      s.rank[left] = merged;
      s.symbol[right] = s.rank[right] = none;
      s.next[left] = (uint16_t)behind;
      if (behind < size) s.previous[behind] = (uint16_t)left;
    }
    if (with_previous) s.rank[before] = merged;
    __syncwarp();
  }
  int count = 0;
  for (int base = 0; base < size; base += kWarp) {
    const int i = base + lane;
    const uint32_t id = i < size && s.symbol[i] != none ? ids[s.symbol[i]] : none;  // none: no token, dropped
    const unsigned kept = __ballot_sync(kAll, id != none);
    if (id != none) out[count + __popc(kept & ((1u << lane) - 1))] = (int32_t)id;
    count += __popc(kept);
  }
  return count;
}

__global__ void merge_kernel(const Image* image, const uint8_t* text, const int64_t* starts,
                             const int64_t* missed, int32_t* staged, int32_t* counts, int64_t pieces) {
  __shared__ Piece scratch[kWarps];
  int64_t m = (int64_t)blockIdx.x * kWarps + threadIdx.x / kWarp;
  if (m >= pieces) return;
  int64_t i = missed[m], start = starts[i], size = starts[i + 1] - start;
  if (size > kBpeLongest) return;
  int count = merge(*image, text + start, (int)size, scratch[threadIdx.x / kWarp], staged + start);
  if (threadIdx.x % kWarp == 0) counts[i] = count;
}

__global__ void gather_kernel(const int64_t* starts, const int32_t* staged, const int32_t* counts,
                              const int64_t* ends, int32_t* ids, int64_t pieces) {
  int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (i >= pieces) return;
  int count = counts[i];
  if (count > kBpeLongest) return;  // its ids come from the host
  for (int k = 0; k < count; ++k) ids[ends[i] - count + k] = staged[starts[i] + k];
}

int64_t blocks_of(int64_t count, int64_t each) { return (count + each - 1) / each; }

}  // namespace

int bpe_starts(const uint8_t* image, const uint8_t* text, const int64_t* offsets, uint8_t* starts,
               int64_t bytes, int64_t documents, void* stream) {
  return launch(starts_kernel, blocks_of(bytes, kTile), kThreads, 0, stream, (const Image*)image, text, offsets,
                starts, bytes, documents);
}

int bpe_look_up(const uint8_t* image, const uint8_t* text, const int64_t* starts, int32_t* staged,
                int32_t* counts, int64_t pieces, void* stream) {
  return launch(look_up_kernel, blocks_of(pieces, kThreads), kThreads, 0, stream, (const Image*)image, text,
                starts, staged, counts, pieces);
}

int bpe_merge(const uint8_t* image, const uint8_t* text, const int64_t* starts, const int64_t* missed,
              int32_t* staged, int32_t* counts, int64_t pieces, void* stream) {
  return launch(merge_kernel, blocks_of(pieces, kWarps), kWarps * kWarp, 0, stream, (const Image*)image, text,
                starts, missed, staged, counts, pieces);
}

int bpe_gather(const int64_t* starts, const int32_t* staged, const int32_t* counts, const int64_t* ends,
               int32_t* ids, int64_t pieces, void* stream) {
  return launch(gather_kernel, blocks_of(pieces, kThreads), kThreads, 0, stream, starts, staged, counts, ends,
                ids, pieces);
}
