// The memory of pieces: what their bytes were encoded to. Two tables of fixed size; a new piece takes the place
// of an older one, so that memory has a cap however much text goes by. One for each thread, hence without a
// lock.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <string_view>

#include "wide.h"

namespace text {

// Zeroed memory in large pages where the system gives them (a look-up then misses no page table). Pages that
// are never touched cost nothing, so a short text does not pay for a large cache.
template <class T>
class Zeroed {
 public:
  explicit Zeroed(size_t n) : bytes_(n * sizeof(T) + large) {
    start_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start_ == MAP_FAILED) throw std::bad_alloc();
    madvise(start_, bytes_, MADV_HUGEPAGE);
    data_ = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(start_) + large - 1) / large * large);
  }
  ~Zeroed() { munmap(start_, bytes_); }
  Zeroed(const Zeroed&) = delete;
  Zeroed& operator=(const Zeroed&) = delete;
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }

 private:
  static constexpr size_t large = 2 << 20;
  size_t bytes_;
  void* start_;
  T* data_;
};

// Pieces of up to 15 bytes that are up to 4 ids: two slots of 32 bytes in each cache line. A piece that finds
// its line full goes to another.
class ShortPieces {
 public:
  static constexpr int line_bits = 18;  // 16 MiB
  struct Slot {
    uint64_t low, high;  // a wide::Key; in the last byte's upper half the number of ids, and `moved`
    uint32_t ids[4];
    size_t count() const { return high >> 60 & 7; }
  };
  using Line = Slot[2];
  static constexpr size_t many = 7;

  static size_t line_of(wide::Key key) { return key.hash() >> (64 - line_bits); }
  void prefetch(size_t line) const { __builtin_prefetch(&lines_[line]); }
  // Keys and lines of `count` pieces, which are asked for: piece i is p + ends[i - 1] to p + ends[i], from
  // ends[-1], which is 0. Behind the last there is room for 16 more in each array. Longer pieces have keys of
  // none; which they are is written to `longer`, and how many returned.
  template <int bits = line_bits>  // of the lines used
  size_t ask(const uint8_t* p, const uint8_t* text_end, uint32_t* ends, size_t count, wide::Key* keys,
             uint64_t* lines, uint32_t* longer) const {
    size_t i = 0, found = 0;
#ifdef TEXT_AVX512
    std::fill_n(ends + count, 16, ends[count - 1]);
    for (; i < count && ends[i + 14] + 16 <= size_t(text_end - p); i += 16) {
      uint32_t longs = wide::sixteen_keys<bits>(p, ends + i, keys + i, lines + i);
      for (size_t j = i; j < i + 16; j++) prefetch(lines[j]);
      for (; longs; longs &= longs - 1) longer[found++] = uint32_t(i) + uint32_t(wide::lowest_bit(longs));
    }
#endif
    for (; i < count; i++) {
      const size_t size = ends[i] - ends[i - 1];
      if (size > 15) longer[found++] = uint32_t(i);
      keys[i] = size > 15 ? wide::Key{0, uint64_t(16) << 56} : wide::key_of(p + ends[i - 1], size, text_end);
      lines[i] = line_of(keys[i]) >> (line_bits - bits);
      prefetch(lines[i]);
    }
    return found;
  }
  // Writes 4 ids to out, of which the first so many count; 0: not in this line; `many`: more than fit, then the
  // first says how many and the second in which of LongPieces' buckets they are.
  size_t find(wide::Key key, size_t line, uint32_t* out) {
    const Slot* slot = &lines_[line][0];
    const uint32_t found = wide::which_of_two(slot, key);
    slot += found >> 4;
    std::memcpy(out, slot->ids, sizeof slot->ids);
    return found ? slot->count() : 0;
  }
  // The same for a piece not found in its line: in the other where it may be.
  size_t find_moved(wide::Key key, size_t line, uint32_t* out) {
    return lines_[line][1].high & moved ? find(key, other(key, line), out) : 0;
  }
  // Asks for a piece's other line, if the one is full.
  void prefetch_full(wide::Key key, size_t line) const {
    if (lines_[line][1].count()) prefetch(other(key, line));
  }
  // Of a piece that is in neither line, and not `many` ids or more unless it is `many`. It takes an empty slot
  // of the one, else of the other, else the place of the older in the one.
  void add(wide::Key key, size_t line, const uint32_t* ids, size_t count) {
    Slot *slots = lines_[line], fresh{key.low, key.high | uint64_t(count) << 60, {}};
    std::copy_n(ids, count == many ? 2 : count, fresh.ids);
    if (slots[1].count()) {
      slots[1].high |= moved;
      for (Slot& slot : lines_[other(key, line)]) {
        if (!slot.count()) return put(slot, fresh);
      }
    }
    put(slots[1], slots[0]);
    put(slots[0], fresh);
  }

 private:
  static constexpr uint64_t moved = uint64_t(1)
                                    << 63;  // in a line's second slot: some of its pieces are elsewhere
  static size_t other(wide::Key key, size_t line) {
    return line ^ ((key.hash() >> (64 - 2 * line_bits) & ((size_t(1) << line_bits) - 1)) | 1);
  }
  static void put(Slot& slot, const Slot& value) {
    const uint64_t flag = slot.high & moved;
    slot = value;
    slot.high = (slot.high & ~moved) | flag;
  }
  Zeroed<Line> lines_{size_t(1) << line_bits};
};

// Pieces of up to 62 bytes, where they are too long or too many ids for the above. Each hash has a bucket of
// two cache lines: two pieces, one to a line, the newer in the first, or one that needs both. Behind size and
// number of ids stand the bytes, then the ids in three bytes each.
class LongPieces {
 public:
  static constexpr size_t most_bytes = 62;
  static uint32_t bucket_of(uint64_t hash) { return uint32_t(hash >> (64 - bits)); }
  void prefetch(uint32_t bucket) const {
    __builtin_prefetch(buckets_[bucket]);
    __builtin_prefetch(buckets_[bucket] + line);
  }
  // Writes the ids to out and returns how many; 0: not here.
  size_t find(uint32_t bucket, std::string_view piece, uint32_t* out) const {
    const uint8_t* slot = buckets_[bucket];
    if (!holds(slot, piece)) {
      if (needed(slot[0], slot[1]) > line) return 0;
      slot += line;
      if (!holds(slot, piece)) return 0;
    }
    const uint8_t* from = slot + head + piece.size();
    for (size_t i = 0; i < slot[1]; i++) {
      uint32_t id;
      std::memcpy(&id, from + 3 * i, 4);
      out[i] = id & 0xFFFFFF;
    }
    return slot[1];
  }
  void add(uint32_t bucket, std::string_view piece, const uint32_t* ids, size_t count) {
    const size_t size = needed(piece.size(), count);
    uint32_t any = 0;
    for (size_t i = 0; i < count; i++) any |= ids[i];
    if (size > sizeof(Bucket) || count == 0 || any >> 24) return;
    uint8_t* slot = buckets_[bucket];
    if (size <= line) {
      if (needed(slot[0], slot[1]) <= line)
        std::memcpy(slot + line, slot, line);
      else
        slot[line] = 0;
    }
    slot[0] = uint8_t(piece.size());
    slot[1] = uint8_t(count);
    std::memcpy(slot + head, piece.data(), piece.size());
    for (size_t i = 0; i < count; i++) std::memcpy(slot + head + piece.size() + 3 * i, &ids[i], 3);
  }

 private:
  static constexpr int bits = 16;  // 8 MiB
  static constexpr size_t line = 64, head = 2;
  using Bucket = uint8_t[2 * line];
  static size_t needed(size_t size, size_t count) {
    return head + size + 3 * count + 1;
  }  // ids are read by fours
  static bool holds(const uint8_t* slot, std::string_view piece) {
    return slot[0] == piece.size() && !std::memcmp(slot + head, piece.data(), piece.size());
  }
  Zeroed<Bucket> buckets_{size_t(1) << bits};
};

}  // namespace text
