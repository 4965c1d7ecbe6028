// The hash tables of a vocabulary, as the host and the GPU look them up.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "unicode.h"

namespace text {

constexpr uint32_t none = 0xFFFFFFFF;

TEXT_BOTH inline int lowest_bit(uint32_t mask) {
#ifdef __CUDA_ARCH__
  return __ffs(int(mask)) - 1;
#else
  return __builtin_ctz(mask);
#endif
}

// The first `size` <= 8 bytes as a number, the first byte lowest.
TEXT_BOTH inline uint64_t number_of(const uint8_t* p, size_t size) {
  uint64_t number = 0;
#ifdef __CUDA_ARCH__  // in registers, where memcpy would go through memory
  for (size_t i = 0; i < size; i++) number |= uint64_t(p[i]) << (8 * i);
#else
  memcpy(&number, p, size);
#endif
  return number;
}

// Bytes -> id, open addressing: an entry's place is the upper bits of its hash, its tag the lower ones.
struct WholeEntry {
  uint32_t tag = 0, id = none;
};
TEXT_BOTH inline uint64_t hash_of(const void* bytes, size_t size) {
  uint64_t h = size * 0x9E3779B97F4A7C15u;
  const uint8_t* p = static_cast<const uint8_t*>(bytes);
  for (; size > 8; size -= 8, p += 8) {
    h = (h ^ number_of(p, 8)) * 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
  }
  h = (h ^ number_of(p, size)) * 0xD6E8FEB86659FD93u;
  return (h ^ h >> 32) * 0x9E3779B97F4A7C15u;
}
// The id for which same(id), among those with this hash; or none.
template <class Same>
TEXT_BOTH inline uint32_t find_whole(const WholeEntry* entries, int shift, uint64_t hash, Same same) {
  const size_t mask = (size_t(1) << (64 - shift)) - 1;
  for (size_t i = hash >> shift;; i = (i + 1) & mask) {
    const WholeEntry entry = entries[i];
    if (entry.id == none || (entry.tag == uint32_t(hash) && same(entry.id))) return entry.id;
  }
}

// (left, right) -> the symbol of the merged token: buckets of 8 entries, each left << 43 | right << 22 |
// merged. Of a bucket that is not full the last entry is empty.
constexpr uint64_t no_pair = ~uint64_t(0);
constexpr uint32_t most_merged = (1 << 22) - 1;
constexpr int symbol_bits = 21;
constexpr uint64_t pair_factor = 0x9E3779B97F4A7C15u;
TEXT_BOTH inline uint64_t pair_key(uint32_t left, uint32_t right) {
  return uint64_t(left) << symbol_bits | right;
}
TEXT_BOTH inline size_t pair_bucket(uint64_t key, int shift) { return key * pair_factor >> shift; }

// Where a piece of CJK (or other characters of three and more bytes) can be cut for certain: between characters
// that no token holds side by side, nothing ever merges, so both sides are encoded as if alone.
struct JunctionTable {
  // Two sets of bits; what they hold by accident is only not cut. What tokens have of one byte before such a
  // place and of up to two behind it, or of one behind it; and the rest, by hash.
  const uint64_t *narrow, *broad;

  static constexpr size_t narrow_bits = 1 << 16, broad_bits = 1 << 18;

  // The first certain place in [from, size) of a piece, or size; from >= 2.
  TEXT_BOTH size_t cut(const uint8_t* piece, size_t size, size_t from) const {
    for (size_t k = from; k + 3 <= size; k++) {
      if (piece[k] >= 0xE0 && (piece[k - 1] & 0xC0) == 0x80 && !crossed(key(piece + k))) return k;
    }
    return size;
  }
  // Whether some token may hold both p[-1] and p[0], by key(p).
  TEXT_BOTH bool crossed(uint32_t key) const {
    return (in(narrow, narrow_place(key)) | in(broad, broad_place(key))) != 0;
  }
  // What tells the two bytes before p and the three from p on: six bits of each, of p[0], a first byte of three
  // or more, four.
  TEXT_BOTH static uint32_t key(const uint8_t* p) {
    return (p[-2] & 63u) | (p[-1] & 63u) << 6 | (p[0] & 15u) << 12 | (p[1] & 63u) << 16 | (p[2] & 63u) << 22;
  }
  TEXT_BOTH static uint32_t narrow_place(uint32_t key) { return key >> 6 & (narrow_bits - 1); }
  TEXT_BOTH static uint32_t broad_place(uint32_t key) { return key * 0x9E3779B1u >> 14; }
  TEXT_BOTH static uint64_t in(const uint64_t* set, uint32_t place) {
    return set[place >> 6] >> (place & 63) & 1;
  }
};

}  // namespace text
