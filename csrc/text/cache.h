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
// its line full moves the older one there to the line's neighbour.
class ShortPieces {
 public:
  static constexpr int line_bits = 18;  // 16 MiB
  struct Slot {
    uint64_t low, high;  // a wide::Key; in the last byte's upper half the number of ids, and `moved`
    uint32_t ids[4];
    bool holds(wide::Key key) const { return (low == key.low) & ((high & key_bits) == key.high); }
    size_t count() const { return high >> 60 & 7; }
  };
  using Line = Slot[2];
  static constexpr size_t many = 7;

  static uint32_t line_of(wide::Key key) {
    const unsigned __int128 product =
        (unsigned __int128)(key.low ^ 0x9E3779B97F4A7C15u) * (key.high ^ 0xD6E8FEB86659FD93u);
    return uint32_t((uint64_t(product >> 64) ^ uint64_t(product)) >> (64 - line_bits));
  }
  void prefetch(uint32_t line) { __builtin_prefetch(&lines_[line]); }
  // Writes 4 ids to out, of which the first so many count; 0: not in this line; `many`: more than fit, see
  // LongPieces.
  size_t find(wide::Key key, uint32_t line, uint32_t* out) {
    const Slot* slot = &lines_[line][0];
    slot += slot[1].holds(key);
    std::memcpy(out, slot->ids, sizeof slot->ids);
    return slot->holds(key) ? slot->count() : 0;
  }
  // The same for a piece not found in its line: where it was moved. It comes back.
  size_t find_moved(wide::Key key, uint32_t line, uint32_t* out) {
    Slot& last = lines_[line][1];
    if (!(last.high & moved)) return 0;
    for (Slot& slot : lines_[line ^ 1]) {
      if (!slot.holds(key)) continue;
      std::memcpy(out, slot.ids, sizeof slot.ids);
      const Slot found = slot;
      put(slot, last);
      put(last, found);
      return found.count();
    }
    return 0;
  }
  void add(wide::Key key, uint32_t line, const uint32_t* ids, size_t count) {
    Slot *slots = lines_[line], fresh{key.low, key.high | uint64_t(count <= 4 ? count : many) << 60, {}};
    std::copy_n(ids, std::min<size_t>(count, 4), fresh.ids);
    if (slots[1].count()) {
      put(lines_[line ^ 1][1], slots[1]);
      slots[1].high |= moved;
    }
    put(slots[1], slots[0]);
    put(slots[0], fresh);
  }

 private:
  static constexpr uint64_t moved = uint64_t(1) << 63;  // in a line's second slot, of the line
  static constexpr uint64_t key_bits = ~(uint64_t(0xF0) << 56);
  static void put(Slot& slot, const Slot& value) {
    const uint64_t flag = slot.high & moved;
    slot = value;
    slot.high = (slot.high & ~moved) | flag;
  }
  Zeroed<Line> lines_{size_t(1) << line_bits};
};

// Pieces of up to 62 bytes that are up to 16 ids, where they are too long or too many ids for the above.
// Each hash has two slots; the newer piece is in the first.
class LongPieces {
 public:
  struct alignas(64) Slot {
    uint8_t size, count;
    char bytes[62];
    uint32_t ids[16];
    bool holds(std::string_view piece) const {
      return size == piece.size() && !std::memcmp(bytes, piece.data(), piece.size());
    }
  };
  const Slot* find(uint64_t hash, std::string_view piece) const {
    const Pair& slots = pairs_[hash >> (64 - bits)];
    return slots[0].holds(piece) ? &slots[0] : slots[1].holds(piece) ? &slots[1] : nullptr;
  }
  void add(uint64_t hash, std::string_view piece, const uint32_t* ids, size_t count) {
    if (count > 16) return;
    Pair& slots = pairs_[hash >> (64 - bits)];
    if (slots[0].size > 0) slots[1] = slots[0];
    slots[0].size = uint8_t(piece.size());
    slots[0].count = uint8_t(count);
    std::memcpy(slots[0].bytes, piece.data(), piece.size());
    std::copy_n(ids, count, slots[0].ids);
  }

 private:
  static constexpr int bits = 15;  // 8 MiB
  using Pair = Slot[2];
  Zeroed<Pair> pairs_{size_t(1) << bits};
};

}  // namespace text
