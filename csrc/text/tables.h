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
TEXT_BOTH inline uint64_t pair_key(uint32_t left, uint32_t right) { return uint64_t(left) << 21 | right; }
TEXT_BOTH inline size_t pair_bucket(uint64_t key, int shift) { return key * 0x9E3779B97F4A7C15u >> shift; }

// Where a piece of CJK (or other characters of three and more bytes) can be cut for certain: between characters
// that no token holds side by side, nothing ever merges, so both sides are encoded as if alone.
struct JunctionTable {
  const uint16_t* kinds;  // [byte before << 8 | byte behind]: which numbers of bytes to look for
  const uint64_t* seen;   // a set of 2^18 bits; what it holds by accident is only not cut

  // The first certain place in [from, size) of a piece, or size.
  TEXT_BOTH size_t cut(const uint8_t* piece, size_t size, size_t from) const {
    for (size_t k = from; k < size; k++) {
      if (piece[k] >= 0xE0 && (piece[k - 1] & 0xC0) == 0x80 && !crossed(piece, size, k)) return k;
    }
    return size;
  }
  // Whether some token may hold piece[k - 1] and piece[k]: whether one has the up to 3 bytes before and behind
  // k that it has itself.
  TEXT_BOTH bool crossed(const uint8_t* piece, size_t size, size_t k) const {
    for (uint32_t left = kinds[piece[k - 1] << 8 | piece[k]]; left; left &= left - 1) {
      const size_t kind = size_t(lowest_bit(left)), before = kind / 3 + 1, behind = kind % 3 + 1;
      if (before > k || behind > size - k) continue;
      const uint32_t bit = place(piece + k - before, before, behind);
      if (seen[bit >> 6] >> (bit & 63) & 1) return true;
    }
    return false;
  }
  TEXT_BOTH static uint32_t place(const uint8_t* p, size_t before, size_t behind) {
    uint64_t key = before * 4 + behind;
    for (size_t i = 0; i < before + behind; i++) key = key << 8 | p[i];
    return uint32_t(key * 0x9E3779B97F4A7C15u >> 46);
  }
};

}  // namespace text
