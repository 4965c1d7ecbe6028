// BPE encoding of text on the device: the ids of csrc/text, which it shares lexers and tables with.
//
// - starts: a block a tile. Where a piece begins for certain (lexers.h, mostly everywhere) is seen by one
// thread
//   for each byte and listed; then one thread for each place listed cuts from there to the next such place, and
//   cuts long pieces further where that is certain to change nothing. So a text is cut by all at once, without
//   carries, and no lane waits for a piece while its neighbours stand inside of one.
// - look_up: one thread a piece: its hash, one entry, and the bytes of the token found there, all from L2. Nine
//   of ten pieces of English are one token, and done; of the others short ones are sought in the memory.
// - merge: one warp a piece that nobody knew, up to kBpeLongest bytes in shared memory. A round finds the
//   leftmost pair of the lowest rank; two lanes look up what its two neighbours now merge to.
// - settle: pieces that another one of this call stood for.
// - gather: ids lie where their piece's bytes lie (no piece has more ids than bytes) until counts are known.
//
// Bound by instructions issued, more than half of them in `starts`; docs/text.md has the prediction.
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

// The memory of short pieces that are no token. A slot belongs to the first piece that takes it, for good, so
// what is done never changes: there is nothing to lock, and a call may read what another one writes. Where all
// kProbes slots are others', a piece is merged whenever it is met.
constexpr int kProbes = 4;
constexpr uint32_t kEmpty = 0, kTaken = 1u << 30, kDone = 1u << 31;
struct alignas(16) Slot {
  uint64_t low, high;  // up to 15 bytes, then their number
  uint32_t state;      // kEmpty; kTaken: the key is being written; the call that will merge it; kDone + ids
  int32_t ids[15];
};
static_assert(sizeof(Slot) == kBpeSlot, "Python allocates the memory");
constexpr int64_t kShort = 15;

// Counts that are not known yet: a piece to be merged, one whose slot another piece will fill, one for the
// host.
constexpr int32_t kMerge = -1, kWait = -2, kHandOver = -3;

// The ids of a piece stand behind its place in `staged`, or, where that holds a negative number, in a slot.
__device__ int32_t reference_to(uint32_t place) { return -1 - (int32_t)place; }
__device__ Slot* slot_of(int32_t staged, Slot* memory) { return staged < 0 ? memory + (-1 - staged) : nullptr; }

// What the memory knows of a piece of up to 15 bytes: how many ids it has, or kWait, or kMerge; sets its
// `staged`.
__device__ int32_t recall(const uint8_t* p, int64_t size, uint64_t hash, Slot* memory, uint32_t slots,
                          uint32_t call, int32_t& staged) {
  const uint64_t low = text::number_of(p, size < 8 ? size : 8),
                 high = (uint64_t)size << 56 | (size > 8 ? text::number_of(p + 8, size - 8) : 0);
  for (uint32_t probe = 0; probe < kProbes; ++probe) {
    const uint32_t place = ((uint32_t)(hash >> 32) + probe) & (slots - 1);
    Slot& slot = memory[place];
    const uint32_t state = atomicCAS(&slot.state, kEmpty, kTaken);
    if (state == kEmpty) {
      slot.low = low, slot.high = high;
      __threadfence();
      atomicExch(&slot.state, call);
      staged = reference_to(place);
      return kMerge;
    }
    if (state == kTaken) break;  // just now, perhaps for this very piece
    __threadfence();
    if (slot.low != low || slot.high != high) continue;
    if (!(state & kDone) && state != call) break;  // another call's, which may never come to it
    staged = reference_to(place);
    return state & kDone ? (int32_t)(state & ~kDone) : kWait;
  }
  staged = 0;
  return kMerge;
}

__global__ void starts_kernel(const Image* image, const uint8_t* text, const int64_t* offsets, uint8_t* starts,
                              int64_t bytes, int64_t documents) {
  __shared__ int64_t ends[2];  // the documents of the first and the last byte
  __shared__ uint16_t certain[kTile];
  __shared__ unsigned listed;
  int64_t first = (int64_t)blockIdx.x * kTile, last = first + kTile < bytes ? first + kTile : bytes;
  if (threadIdx.x < 2)
    ends[threadIdx.x] = document_of(offsets, 0, documents - 1, threadIdx.x == 0 ? first : last - 1);
  if (threadIdx.x == 0) listed = 0;
  __syncthreads();
  for (int64_t i = first + threadIdx.x; i < last; i += kThreads) {
    int64_t document = document_of(offsets, ends[0], ends[1], i);
    auto lexer = image->lexer(text + offsets[document + 1]);
    if (lexer.begins(text + offsets[document], text + i))
      certain[atomicAdd(&listed, 1u)] = (uint16_t)(i - first);
  }
  __syncthreads();
  for (unsigned k = threadIdx.x; k < listed; k += kThreads) {
    int64_t document = document_of(offsets, ends[0], ends[1], first + certain[k]);
    const uint8_t *begin = text + offsets[document], *end = text + offsets[document + 1];
    auto lexer = image->lexer(end);
    const uint8_t* p = text + first + certain[k];
    do {
      const uint8_t* next = lexer.piece_end(p);
      starts[p - text] = 1;
      while (next - p > kShort) {  // short parts of a long piece may be known where it is not
        const size_t size = next - p, cut = image->junctions().cut(p, size, 6);
        if (cut == size) break;
        p += cut;
        starts[p - text] = 1;
      }
      p = next;
    } while (p < end && !lexer.begins(begin, p));
  }
}

__global__ void look_up_kernel(const Image* image, const uint8_t* text, const int64_t* starts, Slot* memory,
                               int32_t* staged, int32_t* counts, int64_t slots, int64_t call, int64_t pieces) {
  int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (i >= pieces) return;
  const int64_t start = starts[i], size = starts[i + 1] - start;
  const uint8_t* p = text + start;
  const bool is_short = size <= kShort, may_be_token = size <= image->longest;
  const uint64_t hash = is_short || may_be_token ? text::hash_of(p, size) : 0;
  const uint32_t id = may_be_token ? image->whole_of(p, size, hash) : none;
  if (id != none) {
    staged[start] = (int32_t)id;
    counts[i] = 1;
  } else if (is_short) {
    counts[i] = recall(p, size, hash, memory, (uint32_t)slots, (uint32_t)call, staged[start]);
  } else {
    staged[start] = 0;
    counts[i] = size <= kBpeLongest ? kMerge : kHandOver;
  }
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
                             const int64_t* missed, Slot* memory, int32_t* staged, int32_t* counts,
                             int64_t pieces) {
  __shared__ Piece scratch[kWarps];
  int64_t m = (int64_t)blockIdx.x * kWarps + threadIdx.x / kWarp;
  if (m >= pieces) return;
  const int64_t i = missed[m], start = starts[i], size = starts[i + 1] - start;
  if (counts[i] != kMerge) return;
  Slot* slot = slot_of(staged[start], memory);
  __syncwarp();  // all lanes have read what the first will change
  int count =
      merge(*image, text + start, (int)size, scratch[threadIdx.x / kWarp], slot ? slot->ids : staged + start);
  __syncwarp();
  if (threadIdx.x % kWarp > 0) return;
  counts[i] = count;
  if (!slot) return;
  __threadfence();
  atomicExch(&slot->state, kDone | (uint32_t)count);
}

__global__ void settle_kernel(const int64_t* starts, const int64_t* missed, Slot* memory, const int32_t* staged,
                              int32_t* counts, int64_t pieces) {
  int64_t m = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (m >= pieces || counts[missed[m]] != kWait) return;
  counts[missed[m]] = (int32_t)(slot_of(staged[starts[missed[m]]], memory)->state & ~kDone);
}

__global__ void gather_kernel(const int64_t* starts, Slot* memory, const int32_t* staged, const int32_t* counts,
                              const int64_t* ends, int32_t* ids, int64_t pieces) {
  int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (i >= pieces) return;
  const int32_t* from = staged + starts[i];
  const int count = counts[i];
  if (count > kBpeLongest) return;  // of a piece handed over; the host writes them over what is here
  if (const Slot* slot = slot_of(*from, memory)) from = slot->ids;
  for (int k = 0; k < count; ++k) ids[ends[i] - count + k] = from[k];
}

int64_t blocks_of(int64_t count, int64_t each) { return (count + each - 1) / each; }

}  // namespace

int bpe_starts(const uint8_t* image, const uint8_t* text, const int64_t* offsets, uint8_t* starts,
               int64_t bytes, int64_t documents, void* stream) {
  return launch(starts_kernel, blocks_of(bytes, kTile), kThreads, 0, stream, (const Image*)image, text, offsets,
                starts, bytes, documents);
}

int bpe_look_up(const uint8_t* image, const uint8_t* text, const int64_t* starts, uint8_t* memory,
                int32_t* staged, int32_t* counts, int64_t slots, int64_t call, int64_t pieces, void* stream) {
  return launch(look_up_kernel, blocks_of(pieces, kThreads), kThreads, 0, stream, (const Image*)image, text,
                starts, (Slot*)memory, staged, counts, slots, call, pieces);
}

int bpe_merge(const uint8_t* image, const uint8_t* text, const int64_t* starts, const int64_t* missed,
              uint8_t* memory, int32_t* staged, int32_t* counts, int64_t pieces, void* stream) {
  int error = launch(merge_kernel, blocks_of(pieces, kWarps), kWarps * kWarp, 0, stream, (const Image*)image,
                     text, starts, missed, (Slot*)memory, staged, counts, pieces);
  if (error) return error;
  return launch(settle_kernel, blocks_of(pieces, kThreads), kThreads, 0, stream, starts, missed, (Slot*)memory,
                staged, counts, pieces);
}

int bpe_gather(const int64_t* starts, uint8_t* memory, const int32_t* staged, const int32_t* counts,
               const int64_t* ends, int32_t* ids, int64_t pieces, void* stream) {
  return launch(gather_kernel, blocks_of(pieces, kThreads), kThreads, 0, stream, starts, (Slot*)memory, staged,
                counts, ends, ids, pieces);
}
