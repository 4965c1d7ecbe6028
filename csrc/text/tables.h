// The hash tables of a vocabulary, as the host and the GPU look them up.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "unicode.h"

namespace text {

constexpr uint32_t none = 0xFFFFFFFF;

// Bytes -> id, open addressing: an entry's place is the upper bits of its hash, its tag the lower ones.
struct WholeEntry {
  uint32_t tag = 0, id = none;
};
TEXT_BOTH inline uint64_t hash_of(const void* bytes, size_t size) {
  uint64_t h = size * 0x9E3779B97F4A7C15u;
  const char* p = static_cast<const char*>(bytes);
  for (; size > 8; size -= 8, p += 8) {
    uint64_t block;
    memcpy(&block, p, 8);
    h = (h ^ block) * 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
  }
  uint64_t block = 0;
  memcpy(&block, p, size);
  h = (h ^ block) * 0xD6E8FEB86659FD93u;
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

}  // namespace text
