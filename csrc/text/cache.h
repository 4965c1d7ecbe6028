// The memory of pieces: what their bytes were encoded to. Two tables, each doubled once when many different
// pieces have come; from then on a new piece takes the place of an older one, so that memory has a cap however
// much text goes by. One for each thread, hence without a lock.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <string_view>
#include <vector>

#include "tables.h"
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
  struct Slot {
    uint64_t low, high;  // a wide::Key; in the last byte's upper half the number of ids, and `moved`
    uint32_t ids[4];
    size_t count() const { return high >> 60 & 7; }
  };
  using Line = Slot[2];
  static constexpr size_t many = 7;

  explicit ShortPieces(int line_bits = 18) : bits_(line_bits) {}

  size_t line_of(wide::Key key) const { return key.hash() >> (64 - bits_); }
  void prefetch(size_t line) const { __builtin_prefetch(&lines_[line]); }
  // Keys and lines of `count` pieces, which are asked for: piece i is p + ends[i - 1] to p + ends[i], from
  // ends[-1], which is 0. Behind the last there is room for 16 more in each array. Longer pieces have keys of
  // none; which they are is written to `longer`, and how many returned.
  size_t ask(const uint8_t* p, const uint8_t* text_end, uint32_t* ends, size_t count, wide::Key* keys,
             uint64_t* lines, uint32_t* longer) const {
    size_t i = 0, found = 0;
#ifdef TEXT_AVX512
    std::fill_n(ends + count, 16, ends[count - 1]);
    for (; i < count && ends[i + 14] + 16 <= size_t(text_end - p); i += 16) {
      uint32_t longs = wide::sixteen_keys(p, ends + i, bits_, keys + i, lines + i);
      for (size_t j = i; j < i + 16; j++) prefetch(lines[j]);
      for (; longs; longs &= longs - 1) longer[found++] = uint32_t(i) + uint32_t(wide::lowest_bit(longs));
    }
#endif
    for (; i < count; i++) {
      const size_t size = ends[i] - ends[i - 1];
      if (size > 15) longer[found++] = uint32_t(i);
      keys[i] = size > 15 ? wide::Key{0, uint64_t(16) << 56} : wide::key_of(p + ends[i - 1], size, text_end);
      lines[i] = line_of(keys[i]);
      prefetch(lines[i]);
    }
    return found;
  }
  // Writes 4 ids to out, of which the first so many count; 0: not in this line; `many`: more than fit, then the
  // first says how many and the second what LongPieces calls the piece.
  size_t find(wide::Key key, size_t line, uint32_t* out) {
    const Slot* slot = &lines_[line][0];
    const uint32_t found = wide::which_of_two(slot, key);
    slot += found >> 4;
    std::memcpy(out, slot->ids, sizeof slot->ids);
    return found ? slot->count() : 0;
  }
  // The same for a piece not found in its line: in the other where it may be. Now and then the found one
  // changes places with one of its line, so that those that are met often come to lie where they are looked for
  // first.
  size_t find_moved(wide::Key key, size_t line, uint32_t* out) {
    if (!(lines_[line][1].high & moved)) return 0;
    const size_t elsewhere = other(key, line), known = find(key, elsewhere, out);
    if (known && ++found_moved_ % 8 == 0) bring_home(key, line, elsewhere);
    return known;
  }
  // Asks for a piece's other line, if the one is full.
  void prefetch_full(wide::Key key, size_t line) const {
    if (lines_[line][1].count()) prefetch(other(key, line));
  }
  // Of a piece that is in neither line, and not `many` ids or more unless it is `many`. It takes an empty slot
  // of the one, else of the other, else the place of the older in the one.
  void add(wide::Key key, size_t line, const uint32_t* ids, size_t count) {
    Slot fresh{key.low, key.high | uint64_t(count) << 60, {}};
    std::copy_n(ids, count == many ? 2 : count, fresh.ids);
    add(fresh, key, line);
  }
  // Whether three eighths of the table are taken, so that it is time to double it. Pieces have other lines
  // then.
  bool crowded() const { return bits_ < most_bits && added_ >= size_t(3) << (bits_ - 2); }
  __attribute__((noinline)) void grow() {
    bits_++;
    added_ = 0;
    std::vector<Slot> elsewhere;
    for (size_t i = size_t(1) << (bits_ - 1); i-- > 0;) {  // to lines 2 i and 2 i + 1, whose pieces have gone
      const Slot old[2] = {lines_[i][1], lines_[i][0]};
      std::memset(&lines_[2 * i], 0, 2 * sizeof(Line));
      for (Slot slot : old) {
        slot.high &= ~moved;
        if (!slot.count()) continue;
        const size_t line = line_of(key_of(slot));
        if (line >> 1 == i)
          add(slot, key_of(slot), line);
        else
          elsewhere.push_back(slot);
      }
    }
    for (const Slot& slot : elsewhere) add(slot, key_of(slot), line_of(key_of(slot)));
  }

 private:
  static constexpr uint64_t moved = uint64_t(1)
                                    << 63;  // in a line's second slot: some of its pieces are elsewhere
  static wide::Key key_of(const Slot& slot) { return {slot.low, slot.high & ~(uint64_t(0xF) << 60)}; }
  size_t other(wide::Key key, size_t line) const { return line ^ (key.hash() << bits_ >> (64 - bits_) | 1); }
  // The piece goes from its other line to its line, if the older there has room in its own other line.
  void bring_home(wide::Key key, size_t line, size_t elsewhere) {
    Slot &older = lines_[line][1], *from = lines_[elsewhere];
    if (older.count()) {
      const wide::Key leaving = key_of(older);
      if (line_of(leaving) != line) return;
      Slot* to = lines_[other(leaving, line)];
      if (to[1].count()) return;
      put(to[to[0].count() != 0], older);
    }
    const bool second = !(wide::which_of_two(from, key) & 1);
    put(older, from[second]);
    if (!second) put(from[0], from[1]);
    put(from[1], Slot{});
  }
  static void put(Slot& slot, const Slot& value) {
    const uint64_t flag = slot.high & moved;
    slot = value;
    slot.high = (slot.high & ~moved) | flag;
  }
  void add(const Slot& fresh, wide::Key key, size_t line) {
    added_++;
    Slot* slots = lines_[line];
    if (slots[1].count()) {
      slots[1].high |= moved;
      for (Slot& slot : lines_[other(key, line)]) {
        if (!slot.count()) return put(slot, fresh);
      }
    }
    put(slots[1], slots[0]);
    put(slots[0], fresh);
  }
  static constexpr int most_bits = 19;  // 32 MiB
  int bits_;                            // of the number of lines: first 16 MiB
  size_t added_ = 0;                    // since the table was doubled
  uint32_t found_moved_ = 0;
  Zeroed<Line> lines_{size_t(1) << most_bits};
};

// Pieces of up to 62 bytes, where they are too long or too many ids for the above. Each hash has a bucket of
// two cache lines: two pieces, one to a line, the newer in the first, or one that needs both. Behind size and
// number of ids stand the bytes, then the ids in three bytes each. A piece is called by the upper half of its
// hash.
class LongPieces {
 public:
  static constexpr size_t most_bytes = 62;
  static uint32_t name_of(uint64_t hash) { return uint32_t(hash >> 32); }
  void prefetch(uint32_t name) const {
    const uint8_t* slot = buckets_[name >> (32 - bits_)];
    __builtin_prefetch(slot);
    __builtin_prefetch(slot + line);
  }
  // Writes the ids to out and returns how many; 0: not here.
  size_t find(uint32_t name, std::string_view piece, uint32_t* out) const {
    const uint8_t* slot = buckets_[name >> (32 - bits_)];
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
  void add(uint32_t name, std::string_view piece, const uint32_t* ids, size_t count) {
    const size_t size = needed(piece.size(), count);
    uint32_t any = 0;
    for (size_t i = 0; i < count; i++) any |= ids[i];
    if (size > sizeof(Bucket) || count == 0 || any >> 24) return;
    uint8_t entry[sizeof(Bucket)] = {uint8_t(piece.size()), uint8_t(count)};
    std::memcpy(entry + head, piece.data(), piece.size());
    for (size_t i = 0; i < count; i++) std::memcpy(entry + head + piece.size() + 3 * i, &ids[i], 3);
    add(name, entry, size);
  }
  // Whether so many pieces were added as three eighths of the table have room for.
  bool crowded() const { return bits_ < most_bits && added_ >= size_t(3) << (bits_ - 2); }
  __attribute__((noinline)) void grow() {
    bits_++;
    added_ = 0;
    for (size_t i = size_t(1) << (bits_ - 1); i-- > 0;) {  // to buckets 2 i and 2 i + 1, whose pieces have gone
      Bucket old;
      std::memcpy(old, buckets_[i], sizeof old);
      std::memset(&buckets_[2 * i], 0, 2 * sizeof old);
      const bool two = needed(old[0], old[1]) <= line;
      for (const uint8_t* entry : {old + line, old + 0}) {
        if ((entry == old || two) && entry[0])
          add(name_of(hash_of(entry + head, entry[0])), entry, needed(entry[0], entry[1]));
      }
    }
  }

 private:
  static constexpr size_t line = 64, head = 2;
  using Bucket = uint8_t[2 * line];
  static size_t needed(size_t size, size_t count) {
    return head + size + 3 * count + 1;
  }  // ids are read by fours
  static bool holds(const uint8_t* slot, std::string_view piece) {
    return slot[0] == piece.size() && !std::memcmp(slot + head, piece.data(), piece.size());
  }
  void add(uint32_t name, const uint8_t* entry, size_t size) {
    added_++;
    uint8_t* slot = buckets_[name >> (32 - bits_)];
    if (size <= line) {
      if (needed(slot[0], slot[1]) <= line)
        std::memcpy(slot + line, slot, line);
      else
        slot[line] = 0;
    }
    std::memcpy(slot, entry, size <= line ? line : sizeof(Bucket));
  }
  static constexpr int most_bits = 17;  // 16 MiB
  int bits_ = 16;                       // of the number of buckets: first 8 MiB
  size_t added_ = 0;                    // since the table was doubled
  Zeroed<Bucket> buckets_{size_t(1) << most_bits};
};

}  // namespace text
