// BPE encoding of text on the device: the ids of csrc/text, which it shares lexers and tables with.
//
// - starts: a block a tile. Where a piece begins for certain (lexers.h, mostly everywhere) is seen by one
//   thread a byte and listed; then a thread for each place listed cuts from there to the next such place, and
//   cuts long pieces further where that is certain to change nothing. So a text is cut by all at once, without
//   carries, and no lane waits for a piece while its neighbours stand inside of one. A thread walks kBpeWalk
//   bytes at most; a longer stretch is left whole, for the host. What is kept is a bit for each byte.
// - look_up: one thread a piece: its hash, one entry, and the bytes of the token found there, all from L2. Nine
//   of ten pieces of English are one token, and done; of the others short ones are sought in the memory. A
//   piece becomes a word of 32 bits: its id, or where its ids are. The words of a tile lie together.
// - merge: of pieces that nobody knew, those of up to 15 bytes by 16 lanes each, in registers, those of up to
//   kBpeLongest by a warp each, in shared memory. A round finds the leftmost pair of the lowest rank, and two
//   lanes look up what its neighbours now merge to. Warps take pieces in turns: only the device knows how many.
// - count: the ids of each tile, added up over all tiles in the same pass, as each looks back at what 32 tiles
//   before it at a time have written down.
// - gather: the ids of each tile side by side, and where those of its documents begin.
//
// The host waits once, between count and gather, for how much room to make; once more where it has ids to make.
// Bound by instructions issued, half of them in `starts`; docs/text.md has the prediction.
#include <algorithm>
#include <type_traits>

#include "../text/image.h"
#include "common.cuh"
#include "ops.h"

namespace {

using text::Image;
using text::none;

constexpr int kThreads = 256;
constexpr int kTile = 8 * kThreads;  // bytes that a block cuts, so that it looks up its documents once
constexpr int kMergers = 4;          // warps that merge in one block
constexpr int kHalf = kWarp / 2;
constexpr unsigned kAll = 0xffffffffu;
constexpr int64_t kShort = 15;                              // bytes of the pieces that the memory takes
constexpr int64_t kMargin = 64, kFar = kBpeWalk + kMargin;  // bytes that one thread walks at most

// Of a call, written by the device. The host reads ids, handed and bad.
struct Status {
  uint32_t ids;            // without those of pieces handed over
  uint32_t bad;            // the offsets do not rise from 0 to the number of bytes
  uint64_t handed;         // pieces for the host << 32 | bytes of these and of what they are packed with
  uint32_t shorts, longs;  // pieces to be merged
  uint32_t ticket;         // tiles that have been taken to be counted
};
static_assert(sizeof(Status) <= kBpeStatus, "Python reads it");

// A piece that is too long, or a stretch of the text that was not cut: where its bytes are, where they are
// packed, and how many of kBpeContext bytes behind it are of the same document.
struct Handed {
  uint32_t start, place, behind;
};
static_assert(sizeof(Handed) == kBpeHanded, "Python reads it");

// What has been written down of a tile when its ids are counted.
enum : uint32_t { kNothing, kItself, kUpToIt };

// The memory of one call for so many bytes of text; `zeros` is what must be zeros at first.
struct Work {
  Status* status;
  uint32_t* states;       // [tile] one of the above
  uint32_t* starts;       // [byte] a bit: a piece begins
  uint32_t *own, *up_to;  // [tile] how many ids: its own, with those of all before
  uint32_t* pieces;       // [tile]
  uint32_t* words;        // [tile * kTile + piece]
  int32_t* lists;         // [byte] ids of a piece that the memory has no place for, from its first byte on
  uint32_t* missed;  // [pieces to be merged] where they begin: short ones from the front, long from the end
  Handed* handed;
  int64_t tiles, rooms;  // rooms: for missed pieces, of two bytes or more
  int64_t zeros, size;   // bytes

  Work(uint8_t* workspace, int64_t bytes) : tiles(bytes / kTile + 1), rooms(bytes / 2 + 1) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(workspace);
    uintptr_t next = begin;
    auto take = [&](auto*& part, int64_t count) {
      part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(next);
      next += (count * sizeof(*part) + 63) / 64 * 64;
    };
    take(status, 1), take(states, tiles), take(starts, tiles * kTile / 32);
    zeros = next - begin;
    take(own, tiles), take(up_to, tiles), take(pieces, tiles), take(words, tiles * kTile);
    take(lists, bytes), take(missed, rooms), take(handed, bytes / kBpeLongest + 1);
    size = next - begin;
  }
};

// A word: its kind above; below an id, a list (its first byte's place in the tile, how many ids), a slot of the
// memory, or the first byte's place of a piece handed over.
enum : uint32_t { kId, kList, kSlot, kHanded };
constexpr int kKindShift = 30, kCountBits = 9;
constexpr uint32_t kValue = (1u << kKindShift) - 1;
static_assert(kBpeLongest < 1 << kCountBits && kTile << kCountBits <= 1 << kKindShift, "a list fits a word");
__device__ uint32_t word_of(uint32_t kind, uint32_t value) { return kind << kKindShift | value; }
__device__ uint32_t list_of(int64_t start, int count) {
  return word_of(kList, uint32_t(start % kTile) << kCountBits | uint32_t(count));
}

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

// The sum of `value` over the threads before this one, and over all in `total`. All threads of the block take
// part; scratch holds one number for each warp.
__device__ uint32_t sum_before(uint32_t value, uint32_t* scratch, uint32_t& total) {
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  uint32_t sum = value;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const uint32_t before = __shfl_up_sync(kAll, sum, offset);
    if (lane >= (unsigned)offset) sum += before;
  }
  __syncthreads();  // scratch may still be read from the sum before
  if (lane == kWarp - 1) scratch[warp] = sum;
  __syncthreads();
  total = 0;
  uint32_t before = 0;
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) {
    if (w == warp) before = total;
    total += scratch[w];
  }
  return before + sum - value;
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

// The slot of a piece of up to 15 bytes, or null; fresh: this thread has taken it, and must see that the piece
// is merged. Of another slot the ids are there when this call's merges are done.
__device__ Slot* recall(const uint8_t* p, int64_t size, uint64_t hash, Slot* memory, uint32_t slots,
                        uint32_t call, bool& fresh) {
  const uint64_t low = text::number_of(p, size < 8 ? size : 8),
                 high = (uint64_t)size << 56 | (size > 8 ? text::number_of(p + 8, size - 8) : 0);
  fresh = false;
  for (uint32_t probe = 0; probe < kProbes; ++probe) {
    Slot& slot = memory[((uint32_t)(hash >> 32) + probe) & (slots - 1)];
    const uint32_t state = atomicCAS(&slot.state, kEmpty, kTaken);
    if (state == kEmpty) {
      slot.low = low, slot.high = high;
      __threadfence();
      atomicExch(&slot.state, call);
      fresh = true;
      return &slot;
    }
    if (state == kTaken) break;  // just now, perhaps for this very piece
    __threadfence();
    if (slot.low != low || slot.high != high) continue;
    return (state & kDone) || state == call ? &slot : nullptr;  // another call may never come to it
  }
  return nullptr;
}

__global__ void check_kernel(Work work, const int64_t* offsets, int64_t bytes, int64_t documents) {
  const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (i > documents) return;
  const bool right =
      (i == 0 ? offsets[0] == 0 : offsets[i - 1] <= offsets[i]) && (i < documents || offsets[i] == bytes);
  if (!right) atomicExch(&work.status->bad, 1u);
}

// What a block notes of where pieces begin: in its own tile, and in those behind it.
struct Notes {
  const Work& work;
  uint32_t* own;  // a bit for each byte of the tile
  int64_t first;
  __device__ uint32_t* at(int64_t place) const {
    return place - first < kTile ? &own[(place - first) / 32] : &work.starts[place / 32];
  }
  __device__ void add(int64_t place) const { atomicOr(at(place), 1u << place % 32); }
  // All in [from, to).
  __device__ void remove(int64_t from, int64_t to) const {
    for (int64_t end; from < to; from = end) {
      end = from / 32 * 32 + 32 < to ? from / 32 * 32 + 32 : to;
      atomicAnd(at(from), ~(kAll >> (32 - (end - from)) << from % 32));
    }
  }
};

__global__ void starts_kernel(Work work, const Image* image, const uint8_t* text, const int64_t* offsets,
                              int64_t bytes, int64_t documents) {
  __shared__ int64_t ends[2];  // the documents of the first and the last byte
  __shared__ uint16_t certain[kTile];
  __shared__ uint32_t own[kTile / 32];
  __shared__ unsigned listed;
  if (work.status->bad) return;
  int64_t first = (int64_t)blockIdx.x * kTile, last = first + kTile < bytes ? first + kTile : bytes;
  if (threadIdx.x < 2)
    ends[threadIdx.x] = document_of(offsets, 0, documents - 1, threadIdx.x == 0 ? first : last - 1);
  if (threadIdx.x < kTile / 32) own[threadIdx.x] = 0;
  if (threadIdx.x == 0) listed = 0;
  __syncthreads();
  for (int64_t i = first + threadIdx.x; i < last; i += kThreads) {
    int64_t document = document_of(offsets, ends[0], ends[1], i);
    auto lexer = image->lexer(text + offsets[document + 1]);
    if (lexer.begins(text + offsets[document], text + i))
      certain[atomicAdd(&listed, 1u)] = (uint16_t)(i - first);
  }
  __syncthreads();
  const Notes notes{work, own, first};
  for (unsigned k = threadIdx.x; k < listed; k += kThreads) {
    int64_t document = document_of(offsets, ends[0], ends[1], first + certain[k]);
    const uint8_t *begin = text + offsets[document], *end = text + offsets[document + 1];
    const uint8_t *const from = text + first + certain[k], *p = from;
    // What ends up to kBpeWalk bytes behind `from` does so whatever lies more than kMargin further on.
    const auto lexer = image->lexer(end), walker = image->lexer(end - from > kFar ? from + kFar : end);
    notes.add(from - text);
    do {
      const uint8_t* next = walker.piece_end(p);
      if (next - from > kBpeWalk) {  // left whole, up to the next certain place
        notes.remove(from + 1 - text, p + 1 - text);
        break;
      }
      const bool lacking = image->lacks_a_byte_of(p, next - p);
      while (!lacking && next - p > kShort) {  // short parts of a long piece may be known where it is not
        const size_t size = next - p, cut = image->junctions().cut(p, size, 6);
        if (cut == size) break;
        p += cut;
        notes.add(p - text);
      }
      p = next;
      if (p == end || lexer.begins(begin, p)) break;
      notes.add(p - text);
    } while (true);
  }
  __syncthreads();
  if (threadIdx.x < kTile / 32 && own[threadIdx.x])
    atomicOr(&work.starts[first / 32 + threadIdx.x], own[threadIdx.x]);
}

// The starts of the block's tile: those of eight bytes a thread, and how many there are before each of them.
struct Starts {
  uint32_t mine;    // a bit for each of the thread's eight bytes
  uint32_t before;  // pieces of the tile that begin before these
  uint32_t pieces;  // of the tile
};
__device__ Starts starts_of(const Work& work, int64_t tile, uint32_t* scratch) {
  const int64_t place = tile * kTile + threadIdx.x * 8;
  Starts starts;
  starts.mine = work.starts[place / 32] >> place % 32 & 0xff;
  starts.before = sum_before(__popc(starts.mine), scratch, starts.pieces);
  return starts;
}

// Where the first piece behind a tile begins, by all lanes of a warp: the last piece of the tile may be long.
__device__ int64_t start_behind(const Work& work, int64_t tile, int64_t bytes) {
  const int64_t words = work.tiles * (kTile / 32);
  for (int64_t base = (tile + 1) * (kTile / 32); base < words; base += kWarp) {
    const int64_t word = base + threadIdx.x % kWarp;
    const uint32_t starts = word < words ? work.starts[word] : 0;
    const unsigned found = __ballot_sync(kAll, starts != 0);
    if (!found) continue;
    const int lane = text::lowest_bit(found);
    return (base + lane) * 32 + text::lowest_bit(__shfl_sync(kAll, starts, lane));
  }
  return bytes;
}

__global__ void look_up_kernel(Work work, const Image* image, const uint8_t* text, Slot* memory, int64_t slots,
                               int64_t call, int64_t bytes) {
  __shared__ uint32_t scratch[kThreads / kWarp];
  __shared__ uint16_t places[kTile], missed[2][kTile / 2 + 1];
  __shared__ uint32_t listed[2], room[2];
  __shared__ int64_t behind;
  if (work.status->bad) return;
  const int64_t tile = blockIdx.x, first = tile * kTile;
  if (threadIdx.x < 2) listed[threadIdx.x] = 0;
  const Starts starts = starts_of(work, tile, scratch);
  uint32_t piece = starts.before;
  for (uint32_t left = starts.mine; left; left &= left - 1)
    places[piece++] = uint16_t(threadIdx.x * 8 + text::lowest_bit(left));
  if (starts.pieces && threadIdx.x < kWarp) {
    const int64_t found = start_behind(work, tile, bytes);
    if (threadIdx.x == 0) behind = found;
  }
  if (threadIdx.x == 0) work.pieces[tile] = starts.pieces;
  __syncthreads();
  for (uint32_t k = threadIdx.x; k < starts.pieces; k += kThreads) {
    const int64_t start = first + places[k], end = k + 1 < starts.pieces ? first + places[k + 1] : behind,
                  size = end - start;
    const uint8_t* p = text + start;
    const bool is_short = size <= kShort, may_be_token = size <= image->longest && size <= kBpeWalk;
    const uint64_t hash = is_short || may_be_token ? text::hash_of(p, size) : 0;
    const uint32_t id = may_be_token ? image->whole_of(p, size, hash) : none;
    uint32_t word = list_of(start, 0);
    bool unknown = true;
    if (id != none) {
      word = word_of(kId, id), unknown = false;
    } else if (size > kBpeLongest) {
      const uint64_t i = atomicAdd((unsigned long long*)&work.status->handed,
                                   1ull << 32 | (unsigned long long)(size + kBpeContext));
      work.handed[i >> 32] = {(uint32_t)start, (uint32_t)i, 0};
      word = word_of(kHanded, places[k]), unknown = false;
    } else if (size == 1) {
      unknown = false;  // a byte without a token is dropped
    } else if (is_short) {
      if (const Slot* slot = recall(p, size, hash, memory, (uint32_t)slots, (uint32_t)call, unknown))
        word = word_of(kSlot, (uint32_t)(slot - memory));
      else
        unknown = true;
    }
    work.words[first + k] = word;
    if (!unknown) continue;
    work.lists[start] = (int32_t)(k << kCountBits | (uint32_t)size);  // where its ids will be, for the merger
    missed[!is_short][atomicAdd(&listed[!is_short], 1u)] = places[k];
  }
  __syncthreads();
  if (threadIdx.x < 2)
    room[threadIdx.x] =
        atomicAdd(threadIdx.x == 0 ? &work.status->shorts : &work.status->longs, listed[threadIdx.x]);
  __syncthreads();
  for (uint32_t k = threadIdx.x; k < listed[0]; k += kThreads)
    work.missed[room[0] + k] = (uint32_t)first + missed[0][k];
  for (uint32_t k = threadIdx.x; k < listed[1]; k += kThreads)
    work.missed[work.rooms - 1 - (room[1] + k)] = (uint32_t)first + missed[1][k];
}

// A piece that is to be merged, as the look-up left it, and where its ids go.
struct Missed {
  int64_t start = 0;
  int size = 0;
  uint32_t* word = nullptr;
  Slot* slot = nullptr;
  int32_t* out = nullptr;
  Missed() = default;
  __device__ Missed(const Work& work, uint32_t place, Slot* memory) : start(place) {
    const uint32_t left = (uint32_t)work.lists[start];
    size = (int)(left & ((1u << kCountBits) - 1));
    word = &work.words[start / kTile * kTile + (left >> kCountBits)];
    if (*word >> kKindShift == kSlot) slot = memory + (*word & kValue);
    out = slot ? slot->ids : &work.lists[start];
  }
  // By one thread, when all ids are written.
  __device__ void done(int count) {
    if (!slot) {
      *word = list_of(start, count);
      return;
    }
    __threadfence();
    atomicExch(&slot->state, kDone | (uint32_t)count);
  }
};

// Writes the ids of two pieces of up to 16 bytes, one by each half of a warp; returns how many its own has.
// A lane holds the token that begins at its byte, and what that merges to with the next one.
__device__ int merge_short(const Image& image, const uint8_t* p, int size, int32_t* out) {
  const int lane = threadIdx.x % kHalf, half = threadIdx.x % kWarp / kHalf;
  uint32_t byte = lane < size ? p[lane] : 0;
  if (image.lacks_bytes) {  // bytes that are tokens move together
    const unsigned tokens = __ballot_sync(kAll, lane < size && image.is_token((uint8_t)byte));
    uint32_t mine = tokens >> half * kHalf & 0xffff;
    size = __popc(mine);
    for (int i = 0; i < lane && mine; i++) mine &= mine - 1;
    byte = __shfl_sync(kAll, byte, half * kHalf + (mine ? text::lowest_bit(mine) : 0));
  }
  const uint32_t next = __shfl_sync(kAll, byte, half * kHalf + (lane + 1) % kHalf);
  uint32_t symbol = lane < size ? image.at<uint32_t>(image.byte_symbols)[byte] : none, rank = none;
  if (lane + 1 < size) rank = image.at<uint32_t>(image.byte_pairs)[byte << 8 | next];
  uint32_t begins = (1u << size) - 1;  // a bit: a token begins at this byte
  for (;;) {
    uint32_t lowest = rank == none ? none : rank << 4 | (uint32_t)lane;  // ranks have 22 bits
    for (int offset = kHalf / 2; offset > 0; offset /= 2) {
      const uint32_t other = __shfl_xor_sync(kAll, lowest, offset);
      if (other < lowest) lowest = other;
    }
    if (!__ballot_sync(kAll, lowest != none)) break;
    const int left = (int)(lowest & 15);
    const uint32_t merged = lowest >> 4, after = begins >> left >> 1;  // of tokens behind the left one
    const uint32_t beyond = after & (after - 1);
    const int behind = beyond ? left + 1 + text::lowest_bit(beyond) : kHalf;
    const uint32_t next = __shfl_sync(kAll, symbol, half * kHalf + behind % kHalf);
    if (lowest == none) continue;  // this half is done, the other is not
    const uint32_t earlier = begins & ((1u << left) - 1);
    if (lane == left) {
      symbol = merged;
      rank = behind < kHalf ? image.merged(merged, next) : none;
    } else if (earlier >> lane == 1) {
      rank = image.merged(symbol, merged);
    } else if (after && lane == left + 1 + text::lowest_bit(after)) {
      rank = none;
    }
    begins &= ~((after & (0u - after)) << left << 1);
  }
  if (begins >> lane & 1)
    out[__popc(begins & ((1u << lane) - 1))] = (int32_t)image.at<uint32_t>(image.ids)[symbol];
  return __popc(begins);
}

// The tokens of a piece while it is merged. Of a place that has become part of the one before, symbol and rank
// are none; rank is what a token merges to with the next.
struct Piece {
  uint32_t symbol[kBpeLongest], rank[kBpeLongest];
  uint16_t next[kBpeLongest], previous[kBpeLongest];
  uint8_t bytes[kBpeLongest];  // that are tokens, where some are not
};

// Writes the ids of a piece, by all lanes of a warp; returns how many.
__device__ int merge_long(const Image& image, const uint8_t* p, int size, Piece& s, int32_t* out) {
  const uint32_t *byte_symbols = image.at<uint32_t>(image.byte_symbols),
                 *byte_pairs = image.at<uint32_t>(image.byte_pairs), *ids = image.at<uint32_t>(image.ids);
  const int lane = threadIdx.x % kWarp;
  if (image.lacks_bytes) {
    int kept = 0;
    for (int base = 0; base < size; base += kWarp) {
      const bool keep = base + lane < size && image.is_token(p[base + lane]);
      const unsigned tokens = __ballot_sync(kAll, keep);
      if (keep) s.bytes[kept + __popc(tokens & ((1u << lane) - 1))] = p[base + lane];
      kept += __popc(tokens);
    }
    size = kept, p = s.bytes;
    __syncwarp();
  }
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
    const uint32_t id = i < size && s.symbol[i] != none ? ids[s.symbol[i]] : none;
    const unsigned kept = __ballot_sync(kAll, id != none);
    if (id != none) out[count + __popc(kept & ((1u << lane) - 1))] = (int32_t)id;
    count += __popc(kept);
  }
  return count;
}

// Warps take pieces in turns, long ones first.
__global__ void merge_kernel(Work work, const Image* image, const uint8_t* text, Slot* memory) {
  __shared__ Piece scratch[kMergers];
  const uint32_t warp = blockIdx.x * kMergers + threadIdx.x / kWarp, warps = gridDim.x * kMergers;
  const uint32_t lane = threadIdx.x % kWarp, shorts = work.status->shorts, longs = work.status->longs;
  for (uint32_t m = warp; m < longs; m += warps) {
    Missed piece(work, work.missed[work.rooms - 1 - m], memory);
    __syncwarp();  // all lanes have read what the ids will be written over
    const int count =
        merge_long(*image, text + piece.start, piece.size, scratch[threadIdx.x / kWarp], piece.out);
    __syncwarp();
    if (lane == 0) piece.done(count);
  }
  for (uint32_t m = 2 * warp; m < shorts; m += 2 * warps) {
    const uint32_t mine = m + lane / kHalf;
    Missed piece;
    if (mine < shorts) piece = Missed(work, work.missed[mine], memory);
    __syncwarp();
    const int count = merge_short(*image, text + piece.start, piece.size, piece.out);
    __syncwarp();
    if (lane % kHalf == 0 && piece.word) piece.done(count);
  }
}

// How many ids a word stands for, without those of a piece handed over.
__device__ uint32_t count_of(uint32_t word, const Slot* memory) {
  const uint32_t kind = word >> kKindShift, value = word & kValue;
  if (kind == kId) return 1;
  if (kind == kList) return value & ((1u << kCountBits) - 1);
  return kind == kSlot ? memory[value].state & ~kDone : 0;
}

// How many ids the tiles before this one have, by all lanes of a warp.
__device__ uint32_t ids_before(const Work& work, int64_t tile) {
  const int lane = threadIdx.x % kWarp;
  uint32_t sum = 0;
  for (int64_t end = tile; end > 0; end -= kWarp) {
    const int64_t other = end - 1 - lane;
    uint32_t state = kUpToIt, count = 0;  // before the first tile there is nothing
    if (other >= 0) {
      wait_while(&work.states[other], kNothing);
      state = load_acquire(&work.states[other]);
      count = state == kUpToIt ? work.up_to[other] : work.own[other];
    }
    const unsigned whole = __ballot_sync(kAll, state == kUpToIt);
    if (whole && lane > text::lowest_bit(whole)) count = 0;
    for (int offset = kHalf; offset > 0; offset /= 2) count += __shfl_xor_sync(kAll, count, offset);
    sum += count;
    if (whole) break;
  }
  return sum;
}

// Blocks take tiles in turns, in order, so that a tile waits for none that nobody has taken.
__global__ void count_kernel(Work work, const Slot* memory) {
  SHARED_MEMORY(uint32_t, shared);  // one number for each warp, and the tile
  uint32_t* const taken = shared + kThreads / kWarp;
  if (work.status->bad) return;
  for (;;) {
    if (threadIdx.x == 0) *taken = atomicAdd(&work.status->ticket, 1u);
    __syncthreads();
    const int64_t tile = *taken;
    if (tile >= work.tiles) return;
    uint32_t mine = 0, total;
    for (uint32_t k = threadIdx.x; k < work.pieces[tile]; k += kThreads)
      mine += count_of(work.words[tile * kTile + k], memory);
    sum_before(mine, shared, total);
    if (threadIdx.x < kWarp) {
      if (threadIdx.x == 0) {
        work.own[tile] = total;
        store_release(&work.states[tile], kItself);
      }
      const uint32_t up_to = ids_before(work, tile) + total;
      if (threadIdx.x == 0) {
        work.up_to[tile] = up_to;
        store_release(&work.states[tile], kUpToIt);
        if (tile == work.tiles - 1) work.status->ids = up_to;
      }
    }
    __syncthreads();  // all have read which tile it was
  }
}

// The first of `count` numbers in order that is not below `value`.
template <class T, class Value>
__device__ int64_t first_from(const T* numbers, int64_t count, Value value) {
  int64_t low = 0;
  for (int64_t high = count; low < high;) {
    const int64_t middle = (low + high) / 2;
    if (numbers[middle] < value)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// Pieces handed over, in the text's order, as the host gives them back: where they begin, where the ids of each
// begin, and the end of these; then the ids.
struct Given {
  const int32_t* starts;
  int64_t pieces;
  __device__ const int32_t* begins() const { return starts + pieces; }
  __device__ const int32_t* ids() const { return starts + 2 * pieces + 1; }
};

constexpr uint32_t kManyIds = 16;  // more of one piece are copied by all threads of a block

// places: [piece given] where its ids belong.
__global__ void gather_kernel(Work work, const int64_t* offsets, const Slot* memory, Given given,
                              int32_t* places, int32_t* ids, int64_t* ends, int64_t documents) {
  __shared__ uint32_t scratch[kThreads / kWarp];
  __shared__ uint32_t at[kTile + 1];    // [piece] where its ids are among the tile's
  __shared__ uint32_t marks[kThreads];  // pieces that begin before eight bytes << 8 | those that begin there
  __shared__ uint32_t many[kTile / kManyIds], listed;
  __shared__ int64_t edges[2];  // the documents that begin here, and which of the given pieces is the first
  const int64_t tile = blockIdx.x, first = tile * kTile;
  const Starts starts = starts_of(work, tile, scratch);
  marks[threadIdx.x] = starts.before << 8 | starts.mine;
  if (threadIdx.x < 2) edges[threadIdx.x] = first_from(offsets, documents + 1, first + threadIdx.x * kTile);
  if (threadIdx.x == 0) listed = 0;
  const int64_t earlier = given.pieces ? first_from(given.starts, given.pieces, first) : 0;
  int32_t* out = ids + (work.up_to[tile] - work.own[tile]) + (given.pieces ? given.begins()[earlier] : 0);
  uint32_t filled = 0;
  for (uint32_t base = 0; base < starts.pieces; base += kThreads) {
    const uint32_t k = base + threadIdx.x;
    const uint32_t word = k < starts.pieces ? work.words[first + k] : list_of(0, 0);
    const uint32_t kind = word >> kKindShift, value = word & kValue;
    uint32_t count = count_of(word, memory), total;
    int64_t number = 0;
    if (kind == kHanded) {
      number = first_from(given.starts, given.pieces, first + value);
      count = uint32_t(given.begins()[number + 1] - given.begins()[number]);
    }
    const uint32_t place = filled + sum_before(count, scratch, total);
    filled += total;
    if (k < starts.pieces) at[k] = place;
    if (kind == kId) {
      out[place] = (int32_t)value;
    } else if (kind == kHanded) {
      places[number] = (int32_t)(out + place - ids);
    } else if (count > kManyIds) {
      many[atomicAdd(&listed, 1u)] = k;
    } else if (count) {
      const int32_t* from = kind == kSlot ? memory[value].ids : work.lists + first + (value >> kCountBits);
      for (uint32_t i = 0; i < count; ++i) out[place + i] = from[i];
    }
  }
  if (threadIdx.x == 0) at[starts.pieces] = filled;
  __syncthreads();
  for (uint32_t m = 0; m < listed; ++m) {  // lists, as a slot holds no more than 15
    const uint32_t word = work.words[first + many[m]];
    const int32_t* from = work.lists + first + ((word & kValue) >> kCountBits);
    for (uint32_t i = threadIdx.x; i < count_of(word, memory); i += kThreads) out[at[many[m]] + i] = from[i];
  }
  for (int64_t d = edges[0] + threadIdx.x; d < edges[1]; d += kThreads) {
    const int64_t place = offsets[d] - first;
    const uint32_t mark = marks[place / 8];
    ends[d] = out - ids + at[(mark >> 8) + __popc(mark & ((1u << place % 8) - 1))];
  }
}

// The bytes of the pieces handed over and kBpeContext behind each, behind what says where each begins.
__global__ void pack_kernel(Work work, const uint8_t* text, const int64_t* offsets, uint8_t* packed,
                            int64_t bytes, int64_t documents, int64_t pieces, int64_t packed_bytes) {
  const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (i < pieces) {
    Handed one = work.handed[i];
    const int64_t next = i + 1 < pieces ? work.handed[i + 1].place : packed_bytes,
                  end = one.start + next - one.place - kBpeContext,
                  left = offsets[document_of(offsets, 0, documents - 1, one.start) + 1] - end;
    one.behind = uint32_t(left < kBpeContext ? left : kBpeContext);
    reinterpret_cast<Handed*>(packed)[i] = one;
  }
  if (i >= packed_bytes) return;
  int64_t low = 0;  // the last piece packed at or before this byte
  for (int64_t high = pieces - 1; low < high;) {
    const int64_t middle = (low + high + 1) / 2;
    if (work.handed[middle].place <= i)
      low = middle;
    else
      high = middle - 1;
  }
  const int64_t from = work.handed[low].start + (i - work.handed[low].place);
  packed[pieces * sizeof(Handed) + i] = from < bytes ? text[from] : 0;
}

// What the host gave back, to its places.
__global__ void place_kernel(Given given, const int32_t* places, int32_t* ids) {
  const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (i >= given.begins()[given.pieces]) return;
  const int64_t piece = first_from(given.begins(), given.pieces, i + 1) - 1;  // the last that begins by i
  ids[places[piece] + (i - given.begins()[piece])] = given.ids()[i];
}

int64_t blocks_of(int64_t count, int64_t each) { return (count + each - 1) / each; }

}  // namespace

int64_t bpe_work(int64_t bytes) { return Work(nullptr, bytes).size; }
int64_t bpe_zeros(int64_t bytes) { return Work(nullptr, bytes).zeros; }

int bpe_count(const uint8_t* image, const uint8_t* text, const int64_t* offsets, uint8_t* memory,
              uint8_t* workspace, int64_t slots, int64_t call, int64_t bytes, int64_t documents,
              int64_t multiprocessors, void* stream) {
  const Work work(workspace, bytes);
  const auto* tables = (const Image*)image;
  auto* pieces = (Slot*)memory;
  if (int error = launch(check_kernel, blocks_of(documents + 1, kThreads), kThreads, 0, stream, work, offsets,
                         bytes, documents))
    return error;
  if (int error = launch(starts_kernel, blocks_of(bytes, kTile), kThreads, 0, stream, work, tables, text,
                         offsets, bytes, documents))
    return error;
  if (int error = launch(look_up_kernel, work.tiles, kThreads, 0, stream, work, tables, text, pieces, slots,
                         call, bytes))
    return error;
  if (int error = launch(merge_kernel, std::min(multiprocessors * 16, blocks_of(work.rooms, 2 * kMergers)),
                         kMergers * kWarp, 0, stream, work, tables, text, pieces))
    return error;
  return launch_together(count_kernel, std::min(work.tiles, multiprocessors * 4), kThreads,
                         (kThreads / kWarp + 1) * sizeof(uint32_t), stream, work, pieces);
}

int bpe_hand_over(const uint8_t* text, const int64_t* offsets, uint8_t* workspace, uint8_t* packed,
                  int64_t bytes, int64_t documents, int64_t pieces, int64_t packed_bytes, void* stream) {
  return launch(pack_kernel, blocks_of(packed_bytes, kThreads), kThreads, 0, stream, Work(workspace, bytes),
                text, offsets, packed, bytes, documents, pieces, packed_bytes);
}

int bpe_gather(const int64_t* offsets, uint8_t* memory, uint8_t* workspace, const int32_t* given,
               int32_t* places, int32_t* ids, int64_t* ends, int64_t bytes, int64_t documents, int64_t pieces,
               int64_t piece_ids, void* stream) {
  const Work work(workspace, bytes);
  const Given pieces_given{given, pieces};
  int error = launch(gather_kernel, work.tiles, kThreads, 0, stream, work, offsets, (const Slot*)memory,
                     pieces_given, places, ids, ends, documents);
  if (error) return error;
  return launch(place_kernel, blocks_of(piece_ids, kThreads), kThreads, 0, stream, pieces_given, places, ids);
}
