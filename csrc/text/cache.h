// The memory of pieces: what their bytes were encoded to. Two tables, each doubled once when many different
// pieces have come; from then on a new piece takes the place of an older one, so that memory has a cap however
// much text goes by. One for each thread, hence without a lock.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <array>
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

// Pieces of up to 15 bytes that are up to 6 ids: two in each cache line, first both keys, which are compared at
// once, then the ids, of which five and six are packed. A piece that finds its line full goes to another.
class ShortPieces {
 public:
  struct Line;
  static constexpr size_t plain = 4, most = 6;   // ids as they are; ids in all
  static constexpr size_t many = 7, absent = 8;  // in place of a number of ids

  explicit ShortPieces(int line_bits = 18) : bits_(line_bits) {}

  // Where a piece is looked for; so until the table is doubled.
  Line* line_of(wide::Key key) { return &lines_[number_of(key)]; }
  // Keys and lines of `count` pieces, which are asked for: piece i is p + ends[i - 1] to p + ends[i], from
  // ends[-1], which is 0. Behind the last there is room for 16 more in each array. Longer pieces have keys of
  // none; which they are is written to `longer`, and how many returned.
  size_t ask(const uint8_t* p, const uint8_t* text_end, uint32_t* ends, size_t count, wide::Key* keys,
             Line** lines, uint32_t* longer) {
    size_t i = 0, found = 0;
#ifdef TEXT_AVX512
    std::fill_n(ends + count, 16, ends[count - 1]);
    for (; i < count && ends[i + 14] + 16 <= size_t(text_end - p); i += 16) {
      uint32_t longs = wide::sixteen_keys(p, ends + i, bits_, &lines_[0], keys + i, lines + i);
      for (size_t j = i; j < i + 16; j++) __builtin_prefetch(lines[j]);
      for (; longs; longs &= longs - 1) longer[found++] = uint32_t(i) + uint32_t(wide::lowest_bit(longs));
    }
#endif
    for (; i < count; i++) {
      const size_t size = ends[i] - ends[i - 1];
      if (size > 15) longer[found++] = uint32_t(i);
      keys[i] = size > 15 ? wide::Key{0, uint64_t(16) << 56} : wide::key_of(p + ends[i - 1], size, text_end);
      lines[i] = line_of(keys[i]);
      __builtin_prefetch(lines[i]);
    }
    return found;
  }
  // Writes 4 ids to out, of which the first so many count; more than `plain`: they are yet to be unpacked;
  // `absent`: not in this line, and nothing is written; `many`: more than fit, then the first says how many and
  // the second what LongPieces calls the piece.
  static size_t find(const wide::Key& key, const Line* line, uint32_t* out) {
    const uint32_t place = wide::which_of_two(line->keys, key);
    if (__builtin_expect(place == wide::neither, 0)) return absent;
    const uint32_t* ids = line->ids[0] + place;
    wide::copy_four(ids, id_bits, out);
    return ids[0] >> id_size;
  }
  // Makes of the 4 numbers that find() wrote where it found five or six ids the first of `most` ids.
  static void unpack(uint32_t* out) {
    uint64_t halves[2] = {out[0] | uint64_t(out[1]) << id_size, out[2] | uint64_t(out[3]) << 32};
    for (size_t i = 0; i < most; i++) {
      out[i] = uint32_t(halves[i / 3]) & packed_bits;
      halves[i / 3] >>= packed_size;
    }
  }
  // Whether a slot has room for these ids, of which there is one at least. No branch depends on how many.
  static bool fits(const uint32_t* ids, size_t count) {
    if (count > most) return false;
    uint32_t any = 0;
    for (size_t i = 0; i < most; i++) any |= ids[std::min(i, count - 1)];
    return any <= (count <= plain ? id_bits : packed_bits);
  }
  // The same for a piece not found in its line: in the other where it may be. Now and then the found one
  // changes places with one of its line, so that those that are met often come to lie where they are looked for
  // first.
  size_t find_moved(wide::Key key, Line* line, uint32_t* out) {
    if (!line->has_moved()) return absent;
    Line* const elsewhere = other(key, line);
    const size_t known = find(key, elsewhere, out);
    if (known != absent && ++found_moved_ % 8 == 0) bring_home(key, *line, *elsewhere);
    return known;
  }
  // Asks for a piece's other line, if the one is full.
  void prefetch_full(wide::Key key, Line* line) {
    if (line->taken(1)) __builtin_prefetch(other(key, line));
  }
  // Of a piece that is in neither line, with ids for which a slot has room, or `many`. It takes an empty slot
  // of the one, else of the other, else the place of the older in the one. `plain` ids can be read.
  void add(wide::Key key, Line* line, const uint32_t* ids, size_t count) {
    Slot fresh;
    fresh.key = key;
    const size_t plainly = count == many ? 2 : count;
    if (plainly <= plain) {
      for (size_t i = 0; i < plain; i++) fresh.ids[i] = i < plainly ? ids[i] : 0;
    } else {
      uint64_t halves[2] = {};
      for (size_t i = count; i-- > 0;) halves[i / 3] = halves[i / 3] << packed_size | ids[i];
      fresh.ids[0] = uint32_t(halves[0]) & id_bits;
      fresh.ids[1] = uint32_t(halves[0] >> id_size);
      fresh.ids[2] = uint32_t(halves[1]);
      fresh.ids[3] = uint32_t(halves[1] >> 32);
    }
    fresh.ids[0] |= uint32_t(count) << id_size;
    add(fresh, *line);
  }
  // Whether three eighths of the table are taken, so that it is time to double it. Pieces have other lines
  // then.
  bool crowded() const { return bits_ < most_bits && added_ >= size_t(3) << (bits_ - 2); }
  __attribute__((noinline)) void grow() {
    bits_++;
    added_ = 0;
    std::vector<Slot> elsewhere;
    for (size_t i = size_t(1) << (bits_ - 1); i-- > 0;) {  // to lines 2 i and 2 i + 1, whose pieces have gone
      const Slot old[2] = {lines_[i].get(1), lines_[i].get(0)};
      std::memset(&lines_[2 * i], 0, 2 * sizeof(Line));
      for (const Slot& slot : old) {
        if (!slot.ids[0]) continue;
        if (number_of(slot.key) >> 1 == i)
          add(slot, *line_of(slot.key));
        else
          elsewhere.push_back(slot);
      }
    }
    for (const Slot& slot : elsewhere) add(slot, *line_of(slot.key));
  }

 private:
  // An id has 28 bits, or 20 where five or six share the 28 + 32 + 32 + 28. In the upper four of a piece's
  // first stands how many it has; in those of its line's last, whether some pieces of the line are elsewhere.
  static constexpr int id_size = 28, packed_size = 20;
  static constexpr uint32_t id_bits = (1u << id_size) - 1, moved = 1u << id_size;
  static constexpr uint32_t packed_bits = (1u << packed_size) - 1;
  struct Slot {
    wide::Key key;
    uint32_t ids[4];  // without `moved`
  };

 public:
  struct Line {
    wide::Key keys[2];
    uint32_t ids[2][4];

   private:
    friend ShortPieces;
    bool taken(int i) const { return ids[i][0] != 0; }
    bool has_moved() const { return ids[1][3] > id_bits; }
    void set_moved() { ids[1][3] |= moved; }
    Slot get(int i) const {
      Slot slot{keys[i], {ids[i][0], ids[i][1], ids[i][2], ids[i][3] & id_bits}};
      return slot;
    }
    void put(int i, const Slot& slot) {
      const uint32_t flag = ids[i][3] & moved;
      keys[i] = slot.key;
      std::memcpy(ids[i], slot.ids, sizeof slot.ids);
      ids[i][3] |= flag;
    }
  };

 private:
  size_t number_of(wide::Key key) const { return key.hash() >> (64 - bits_); }
  Line* other(wide::Key key, const Line* line) {
    return &lines_[size_t(line - &lines_[0]) ^ (key.hash() << bits_ >> (64 - bits_) | 1)];
  }
  // The piece goes from its other line to its line, if the older there has room in its own other line.
  void bring_home(wide::Key key, Line& home, Line& from) {
    if (home.taken(1)) {
      const Slot leaving = home.get(1);
      if (line_of(leaving.key) != &home) return;
      Line& to = *other(leaving.key, &home);
      if (to.taken(1)) return;
      to.put(to.taken(0), leaving);
    }
    const bool second = wide::which_of_two(from.keys, key) > 0;
    home.put(1, from.get(second));
    if (!second) from.put(0, from.get(1));
    from.put(1, Slot{});
  }
  void add(const Slot& fresh, Line& home) {
    added_++;
    if (home.taken(1)) {
      home.set_moved();
      Line& elsewhere = *other(fresh.key, &home);
      for (int i : {0, 1}) {
        if (!elsewhere.taken(i)) return elsewhere.put(i, fresh);
      }
    }
    home.put(1, home.get(0));
    home.put(0, fresh);
  }
  static constexpr int most_bits = 19;  // 32 MiB
  int bits_;                            // of the number of lines: first 16 MiB
  size_t added_ = 0;                    // since the table was doubled
  uint32_t found_moved_ = 0;
  Zeroed<Line> lines_{size_t(1) << most_bits};
};

// Pieces that are too long or too many ids for the above, where their bytes and ids fit in two cache lines: 122
// bytes at most, and three less for each id beyond the first. Each hash has a bucket of two cache lines: two
// pieces, one to a line, the newer in the first, or one that needs both. A piece that finds no room in its
// bucket goes to another. Behind size and number of ids stand the bytes, then the ids in three bytes each. A
// piece is called by the upper bits of its hash.
class LongPieces {
 public:
  static constexpr int name_bits = 28;  // as ShortPieces has room for
  static constexpr size_t line = 64, head = 2, most_bytes = 2 * line - head - 4;
  static uint32_t name_of(uint64_t hash) { return uint32_t(hash >> (64 - name_bits)); }
  void prefetch(uint32_t name) const {
    const uint8_t* slot = buckets_[number_of(name)];
    __builtin_prefetch(slot);
    __builtin_prefetch(slot + line);
  }
  // Writes the ids to out and returns how many; 0: not here. Not inlined: such pieces are rare, and the loop
  // over the others is to stay tight.
  __attribute__((noinline)) size_t find(uint32_t name, std::string_view piece, uint32_t* out) const {
    const uint8_t* const bucket = buckets_[number_of(name)];
    const uint8_t* slot = slot_of(bucket, piece);
    if (!slot && (bucket[1] & moved)) slot = slot_of(buckets_[other(name)], piece);
    if (!slot) return 0;
    const uint8_t* from = slot + head + piece.size();
    const size_t count = count_of(slot);
    for (size_t i = 0; i < count; i++) {
      uint32_t id;
      std::memcpy(&id, from + 3 * i, 4);
      out[i] = id & 0xFFFFFF;
    }
    return count;
  }
  void add(uint32_t name, std::string_view piece, const uint32_t* ids, size_t count) {
    const size_t size = needed(piece.size(), count);
    uint32_t any = 0;
    for (size_t i = 0; i < count; i++) any |= ids[i];
    if (size > sizeof(Bucket) || count == 0 || any >> 24) return;
    uint8_t entry[sizeof(Bucket)] = {uint8_t(piece.size()), uint8_t(count)};
    std::memcpy(entry + head, piece.data(), piece.size());
    for (size_t i = 0; i < count; i++) std::memcpy(entry + head + piece.size() + 3 * i, &ids[i], 3);
    add(name, entry);
  }
  // Whether so many pieces were added as three eighths of the table have room for.
  bool crowded() const { return bits_ < most_bits && added_ >= size_t(3) << (bits_ - 2); }
  __attribute__((noinline)) void grow() {
    bits_++;
    added_ = 0;
    std::vector<std::array<uint8_t, sizeof(Bucket)>> elsewhere;
    for (size_t i = size_t(1) << (bits_ - 1); i-- > 0;) {  // to buckets 2 i and 2 i + 1, whose pieces have gone
      Bucket old;
      std::memcpy(old, buckets_[i], sizeof old);
      std::memset(&buckets_[2 * i], 0, 2 * sizeof old);
      const bool two = !spans_both(old);
      for (const uint8_t* slot : {old + line, old + 0}) {
        if ((slot != old && !two) || !slot[0]) continue;
        std::array<uint8_t, sizeof(Bucket)> entry{};
        std::memcpy(entry.data(), slot, two ? line : sizeof(Bucket));
        entry[1] = uint8_t(count_of(slot));
        if (number_of(name_of(entry)) >> 1 == i)
          add(name_of(entry), entry.data());
        else
          elsewhere.push_back(entry);
      }
    }
    for (const auto& entry : elsewhere) add(name_of(entry), entry.data());
  }

 private:
  using Bucket = uint8_t[2 * line];
  // In the number of ids of a bucket's first line: whether some pieces of the bucket are elsewhere.
  static constexpr uint8_t moved = 0x80;
  static size_t count_of(const uint8_t* slot) { return slot[1] & (moved - 1); }
  static size_t needed(size_t size, size_t count) {
    return head + size + 3 * count + 1;
  }  // ids are read by fours
  static bool spans_both(const uint8_t* slot) { return needed(slot[0], count_of(slot)) > line; }
  static bool holds(const uint8_t* slot, std::string_view piece) {
    return slot[0] == piece.size() && !std::memcmp(slot + head, piece.data(), piece.size());
  }
  static const uint8_t* slot_of(const uint8_t* bucket, std::string_view piece) {
    if (holds(bucket, piece)) return bucket;
    return !spans_both(bucket) && holds(bucket + line, piece) ? bucket + line : nullptr;
  }
  template <class Entry>
  static uint32_t name_of(const Entry& entry) {
    return name_of(hash_of(entry.data() + head, entry[0]));
  }
  size_t number_of(uint32_t name) const { return name >> (name_bits - bits_); }
  size_t other(uint32_t name) const {
    return number_of(name) ^ ((name & ((1u << (name_bits - bits_)) - 1)) | 1);
  }
  // Whether a bucket has room for an entry without a loss.
  static bool has_room(const uint8_t* bucket, const uint8_t* entry) {
    return !bucket[0] || !(spans_both(entry) || spans_both(bucket) || bucket[line]);
  }
  void add(uint32_t name, const uint8_t* entry) {
    added_++;
    uint8_t* bucket = buckets_[number_of(name)];
    if (!has_room(bucket, entry)) {
      bucket[1] |= moved;
      uint8_t* const elsewhere = buckets_[other(name)];
      if (has_room(elsewhere, entry)) bucket = elsewhere;
    }
    const uint8_t flag = bucket[1] & moved;
    const bool both = spans_both(entry);
    if (!both) {
      if (spans_both(bucket)) bucket[0] = 0;  // it goes
      std::memcpy(bucket + line, bucket, line);
      bucket[line + 1] = uint8_t(count_of(bucket));
    }
    std::memcpy(bucket, entry, both ? sizeof(Bucket) : line);
    bucket[1] |= flag;
  }
  static constexpr int most_bits = 17;  // 16 MiB
  int bits_ = 16;                       // of the number of buckets: first 8 MiB
  size_t added_ = 0;                    // since the table was doubled
  Zeroed<Bucket> buckets_{size_t(1) << most_bits};
};

}  // namespace text
