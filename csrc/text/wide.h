// The few wide operations of the text kernels, for the instruction set that this file is compiled for. This is
// the only file of csrc/text with intrinsics.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "tables.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace text::wide {

#if defined(__AVX512BITALG__)
#define TEXT_AVX512 1
#endif
#if defined(__AVX2__) && defined(__BMI2__)
#define TEXT_BLOCKS 1  // 64 bytes at once
#endif

// A std::allocator of whole cache lines.
template <class T>
struct Aligned {
  using value_type = T;
  Aligned() = default;
  template <class U>
  Aligned(const Aligned<U>&) {}
  T* allocate(size_t n) {
    void* p = std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64);
    if (!p) throw std::bad_alloc();
    return static_cast<T*>(p);
  }
  void deallocate(T* p, size_t) { std::free(p); }
  bool operator==(const Aligned&) const { return true; }
  bool operator!=(const Aligned&) const { return false; }
};

inline int lowest_bit(uint64_t mask) { return __builtin_ctzll(mask); }
inline int highest_bit(uint64_t mask) { return 63 - __builtin_clzll(mask); }

// Which of the 8 entries of a cache line differs from `key` in its lowest `bits` at most; 8 or more: none.
template <int bits>
inline uint32_t find_entry(const uint64_t* entries, uint64_t key) {
  constexpr uint64_t limit = uint64_t(1) << bits;
#ifdef TEXT_AVX512
  const __m512i differ = _mm512_xor_si512(_mm512_load_si512(entries), _mm512_set1_epi64(int64_t(key)));
  const __mmask8 found = _mm512_cmplt_epu64_mask(differ, _mm512_set1_epi64(int64_t(limit)));
  return uint32_t(__builtin_ctz(uint32_t(found) | 1 << 8));
#else
  uint32_t i = 0;
  while (i < 8 && (entries[i] ^ key) >= limit) i++;
  return i;
#endif
}

// The first `size` <= 15 bytes at p, then zeros, then the size in the last byte. No byte at or after `end` is
// read.
struct Key {
  uint64_t low, high;
  // 64 bits of which the upper ones depend on all of the key.
  uint64_t hash() const { return low * low_factor + high * high_factor; }
  // Whether none of up to 15 bytes is above 127.
  bool is_ascii() const { return !((low | high) & 0x8080808080808080u); }
  static constexpr uint64_t low_factor = 0x9E3779B97F4A7C15u, high_factor = 0xD6E8FEB86659FD93u;
};
inline Key key_of(const uint8_t* p, size_t size, const uint8_t* end) {
  Key key;
#ifdef TEXT_AVX512
  (void)end;  // a masked load touches no byte that its mask leaves out
  const __m128i bytes = _mm_maskz_loadu_epi8(__mmask16((1u << size) - 1), p);
  key.low = uint64_t(_mm_cvtsi128_si64(bytes));
  key.high = uint64_t(_mm_extract_epi64(bytes, 1));
#else
  if (end - p >= 16) {
    std::memcpy(&key, p, 16);
    const int unused = 8 * (16 - int(size));  // bits; 8 at least, so that the top byte is free
    key.low &= unused > 64 ? ~uint64_t(0) >> (unused - 64) : ~uint64_t(0);
    key.high &= unused < 64 ? ~uint64_t(0) >> unused : 0;
  } else {
    key = {0, 0};
    std::memcpy(&key, p, size);
  }
#endif
  key.high |= uint64_t(size) << 56;
  return key;
}

// Which of two keys is this one: 0 the first, 4 the second, or `neither`.
constexpr uint32_t neither = 8;
inline uint32_t which_of_two(const Key keys[2], const Key& key) {
#if defined(TEXT_BLOCKS)
  // By which of the four halves are equal; a look-up here waits for less than the arithmetic would.
  alignas(16) static constexpr uint8_t places[16] = {8, 8, 8, 0, 8, 8, 8, 0, 8, 8, 8, 0, 4, 4, 4, 0};
  const __m256i wanted = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(&key)));
  const __m256i there = _mm256_load_si256(reinterpret_cast<const __m256i*>(keys));
#ifdef TEXT_AVX512
  return places[_mm256_cmpeq_epi64_mask(wanted, there)];
#else
  return places[_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(wanted, there)))];
#endif
#else
  const bool first = (keys[0].low == key.low) & (keys[0].high == key.high);
  const bool second = (keys[1].low == key.low) & (keys[1].high == key.high);
  return first ? 0 : second ? 4 : neither;
#endif
}

// Copies four numbers, of the first and the last only the bits of `mask`.
inline void copy_four(const uint32_t* from, uint32_t mask, uint32_t* to) {
#ifdef __SSE2__
  const __m128i four = _mm_load_si128(reinterpret_cast<const __m128i*>(from));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm_and_si128(four, _mm_setr_epi32(int(mask), -1, -1, int(mask))));
#else
  for (int i = 0; i < 4; i++) to[i] = i % 3 ? from[i] : from[i] & mask;
#endif
}

// Which of 16 pieces, of which piece i ends at ends[i] and begins at ends[i - 1], have more than 15 bytes.
inline uint32_t longer_than_15(const uint32_t* ends) {
#ifdef TEXT_AVX512
  const __m512i sizes = _mm512_sub_epi32(_mm512_loadu_si512(ends), _mm512_loadu_si512(ends - 1));
  return _mm512_cmpgt_epu32_mask(sizes, _mm512_set1_epi32(15));
#else
  uint32_t found = 0;
  for (int i = 0; i < 16; i++) found |= uint32_t(ends[i] - ends[i - 1] > 15) << i;
  return found;
#endif
}

#ifdef TEXT_AVX512
// Keys of 16 pieces, one behind the other, and of a table of 2^bits cache lines those that the upper bits of
// their hashes name: piece i is p + ends[i - 1] to p + ends[i], of which the first 16 bytes at each begin can
// be read. Those of more than 15 bytes get keys that no piece has; returns which they are.
template <class Line>
inline uint32_t sixteen_keys(const uint8_t* p, const uint32_t* ends, int bits, Line* table, Key* keys,
                             Line** lines) {
  static_assert(sizeof(Line) == 64 && sizeof(Line*) == 8);
  const __m512i begins = _mm512_loadu_si512(ends - 1);
  const __m512i sizes =
      _mm512_min_epu32(_mm512_sub_epi32(_mm512_loadu_si512(ends), begins), _mm512_set1_epi32(16));
  const __m512i places =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  const __m512i factors =
      _mm512_broadcast_i32x4(_mm_set_epi64x(int64_t(Key::high_factor), int64_t(Key::low_factor)));
  // In each 16 bytes the size of one of four pieces.
  __m512i spread =
      _mm512_set_epi32(0x0C0C0C0C, 0x0C0C0C0C, 0x0C0C0C0C, 0x0C0C0C0C, 0x08080808, 0x08080808, 0x08080808,
                       0x08080808, 0x04040404, 0x04040404, 0x04040404, 0x04040404, 0, 0, 0, 0);
  const __m512i in_order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  const __m512i inside = _mm512_set1_epi64(~int64_t(63));  // of a line
  const __m128i unused = _mm_cvtsi32_si128(58 - bits);
  for (int i = 0; i < 16; i += 8) {
    __m512i products[2];  // of the halves of four keys each
    for (int j = 0; j < 2; j++) {
      const uint32_t* const four = ends - 1 + i + 4 * j;
      auto load = [&](int k) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + four[k])); };
      const __m512i bytes = _mm512_inserti64x4(
          _mm512_castsi256_si512(_mm256_inserti128_si256(_mm256_castsi128_si256(load(0)), load(1), 1)),
          _mm256_inserti128_si256(_mm256_castsi128_si256(load(2)), load(3), 1), 1);
      const __m512i size = _mm512_permutexvar_epi8(spread, sizes);
      spread = _mm512_add_epi8(spread, _mm512_set1_epi8(16));
      const __m512i low = _mm512_maskz_mov_epi8(_mm512_cmplt_epu8_mask(places, size), bytes);
      const __m512i key = _mm512_mask_mov_epi8(low, 0x8000800080008000u, size);
      _mm512_storeu_si512(keys + i + 4 * j, key);
      products[j] = _mm512_mullo_epi64(key, factors);
    }
    const __m512i sums = _mm512_add_epi64(_mm512_unpacklo_epi64(products[0], products[1]),
                                          _mm512_unpackhi_epi64(products[0], products[1]));
    const __m512i offsets = _mm512_and_si512(_mm512_srl_epi64(sums, unused), inside);
    _mm512_storeu_si512(lines + i, _mm512_add_epi64(_mm512_set1_epi64(reinterpret_cast<intptr_t>(table)),
                                                    _mm512_permutexvar_epi64(in_order, offsets)));
  }
  return _mm512_cmpeq_epu32_mask(sizes, _mm512_set1_epi32(16));
}
#endif

// The lowest bits go to the places of the mask's.
inline uint64_t deposit(uint64_t bits, uint64_t mask) {
#ifdef TEXT_BLOCKS
  return _pdep_u64(bits, mask);
#else
  uint64_t placed = 0;
  for (; mask; mask &= mask - 1, bits >>= 1) placed |= (bits & 1) * (mask & -mask);
  return placed;
#endif
}
// The first, third, fifth ... of each run of bits.
inline uint64_t every_second(uint64_t bits) {
  constexpr uint64_t even = 0x5555555555555555u;
  const uint64_t from_even = bits & ~(bits + (bits & ~(bits << 1) & even));  // runs that begin at an even bit
  return (from_even & even) | (bits & ~from_even & ~even);
}
// Those below bit n, any number.
inline uint64_t below(ptrdiff_t n) { return n <= 0 ? 0 : n >= 64 ? ~uint64_t(0) : (uint64_t(1) << n) - 1; }

#ifdef TEXT_BLOCKS
inline uint64_t extract(uint64_t bits, uint64_t mask) { return _pext_u64(bits, mask); }

// Up to 64 bytes of text, as masks of the bytes that are so and so. Bytes behind the end are zero.
class Block {
 public:
  Block(const uint8_t* p, const uint8_t* end) : p_(p), end_(end) {
    size_ = end - p < 64 ? int(end - p) : 64;
#ifdef TEXT_AVX512
    bytes_ = _mm512_maskz_loadu_epi8(_bzhi_u64(~uint64_t(0), unsigned(size_)), p);
#else
    uint8_t copy[64];
    if (size_ < 64) {
      std::memset(copy, 0, 64);
      std::memcpy(copy, p, size_t(size_));
      p = copy;
    }
    low_ = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    high_ = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32));
#endif
  }
  const uint8_t* begin() const { return p_; }
  const uint8_t* end() const { return end_; }
  int size() const { return size_; }
  bool ends_text() const { return size_ < 64; }
#ifdef TEXT_AVX512
  uint64_t equal(uint8_t a) const {
    return in_register(_mm512_cmpeq_epi8_mask(bytes_, _mm512_set1_epi8(char(a))));
  }
  uint64_t from_to(uint8_t a, uint8_t b) const {
    return in_register(_mm512_cmple_epu8_mask(_mm512_sub_epi8(bytes_, _mm512_set1_epi8(char(a))),
                                              _mm512_set1_epi8(char(b - a))));
  }
  uint64_t letters() const {
    const __m512i low = _mm512_or_si512(bytes_, _mm512_set1_epi8(0x20));
    return in_register(
        _mm512_cmplt_epu8_mask(_mm512_sub_epi8(low, _mm512_set1_epi8('a')), _mm512_set1_epi8(26)));
  }
  uint64_t high() const { return in_register(_mm512_movepi8_mask(bytes_)); }
  // For first bytes of three, the bit of 1024 that four bits of this byte and six of the next name.
  uint64_t pages(const uint8_t table[128]) const {
    const __m512i next = second();
    const __m512i place = select(0x78, _mm512_slli_epi16(bytes_, 3), _mm512_srli_epi16(next, 3));
    return bits_of(_mm512_permutex2var_epi8(_mm512_load_si512(table), place, _mm512_load_si512(table + 64)),
                   next);
  }
  // For first bytes of three, the bit of 512 that bit 3 of this byte, two bits of the next and six of the one
  // behind name.
  uint64_t characters(const uint8_t table[64]) const {
    const __m512i last = third();
    const __m512i upper = select(0x20, _mm512_slli_epi16(bytes_, 2), _mm512_slli_epi16(second(), 3));
    const __m512i place = select(0x38, upper, _mm512_srli_epi16(last, 3));
    return bits_of(_mm512_permutexvar_epi8(place, _mm512_load_si512(table)), last);
  }
  // For each byte the bit of 2048 that five bits of one and six of another name: of this byte and the next, or
  // of the next and the one behind it.
  uint64_t of_two(const uint8_t table[256]) const { return pairs(table, bytes_, second()); }
  uint64_t behind(const uint8_t table[256]) const { return pairs(table, second(), third()); }
  // The bytes behind each byte.
  __m512i second() const { return _mm512_maskz_loadu_epi8(valid() >> 1, p_ + 1); }
  __m512i third() const { return _mm512_maskz_loadu_epi8(valid() >> 2, p_ + 2); }
  uint64_t equal(uint8_t a, uint8_t b) const {
    return _mm512_mask_cmpeq_epi8_mask(equal(a), second(), _mm512_set1_epi8(char(b)));
  }

 private:
  // A mask in a general register at once: what is done with masks is arithmetic, and a compiler that is free to
  // choose keeps them among the vectors' masks, stores them from there, and waits for what it reads back.
  static uint64_t in_register(__mmask64 mask) {
    uint64_t number = mask;
    asm("" : "+r"(number));
    return number;
  }
  uint64_t valid() const { return _bzhi_u64(~uint64_t(0), unsigned(size_)); }
  static uint64_t pairs(const uint8_t table[256], __m512i first, __m512i last) {
    const __m512i place = select(0xF8, _mm512_slli_epi16(first, 3), _mm512_srli_epi16(last, 3));
    auto half = [&](const uint8_t* t) {
      return _mm512_permutex2var_epi8(_mm512_load_si512(t), place, _mm512_load_si512(t + 64));
    };
    return bits_of(_mm512_mask_mov_epi8(half(table), _mm512_movepi8_mask(place), half(table + 128)), last);
  }
  // Of each byte of a the bits of `mask`, of b the others.
  static __m512i select(uint8_t mask, __m512i a, __m512i b) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(char(mask)), a, b, 0xCA);
  }
  // Of each byte the bit that the lower three bits of `number` name.
  static uint64_t bits_of(__m512i bytes, __m512i number) {
    const __m512i bits = _mm512_set1_epi64(int64_t(0x8040201008040201u));
    return _mm512_test_epi8_mask(bytes,
                                 _mm512_shuffle_epi8(bits, _mm512_and_si512(number, _mm512_set1_epi8(7))));
  }
  __m512i bytes_;
#else
  uint64_t equal(uint8_t a) const {
    const __m256i wanted = _mm256_set1_epi8(char(a));
    return mask(_mm256_cmpeq_epi8(low_, wanted), _mm256_cmpeq_epi8(high_, wanted));
  }
  uint64_t from_to(uint8_t a, uint8_t b) const {
    const __m256i first = _mm256_set1_epi8(char(a)), most = _mm256_set1_epi8(char(b - a));
    auto within = [&](__m256i v) {
      v = _mm256_sub_epi8(v, first);
      return _mm256_cmpeq_epi8(_mm256_min_epu8(v, most), v);
    };
    return mask(within(low_), within(high_));
  }
  uint64_t letters() const { return from_to('a', 'z') | from_to('A', 'Z'); }
  uint64_t high() const { return mask(low_, high_); }

 private:
  static uint64_t mask(__m256i low, __m256i high) {
    return uint32_t(_mm256_movemask_epi8(low)) | uint64_t(uint32_t(_mm256_movemask_epi8(high))) << 32;
  }
  __m256i low_, high_;
#endif
  const uint8_t *p_, *end_;
  int size_;
};

#endif

// Whether some of `size` bytes are 0xE0 or more.
inline bool any_lead(const uint8_t* p, size_t size) {
#ifdef TEXT_AVX512
  __m512i most = _mm512_setzero_si512();
  for (size_t i = 0; i < size; i += 64) {
    const size_t left = size - i;
    const __mmask64 there = left < 64 ? _bzhi_u64(~uint64_t(0), unsigned(left)) : ~uint64_t(0);
    most = _mm512_max_epu8(most, _mm512_maskz_loadu_epi8(there, p + i));
  }
  return _mm512_cmpge_epu8_mask(most, _mm512_set1_epi8(char(0xE0))) != 0;
#else
  uint8_t most = 0;
  for (size_t i = 0; i < size; i++) most = p[i] > most ? p[i] : most;
  return most >= 0xE0;
#endif
}

// Of up to 64 bytes at p, those of 0xE0 and more behind one of 0x80 to 0xBF.
inline uint64_t leads_behind_tails(const uint8_t* p, const uint8_t* end) {
#ifdef TEXT_BLOCKS
  const Block block(p, end);
  return block.from_to(0xE0, 0xFF) & block.from_to(0x80, 0xBF) << 1;
#else
  uint64_t found = 0;
  for (int i = 1; i < 64 && i < end - p; i++) found |= uint64_t(p[i] >= 0xE0 && (p[i - 1] & 0xC0) == 0x80) << i;
  return found;
#endif
}

#ifdef TEXT_AVX512
// Of each byte's lower six bits, the bit of `table` that they name.
inline uint64_t pick(uint64_t table, __m512i bytes) {
  return _mm512_bitshuffle_epi64_mask(_mm512_set1_epi64(int64_t(table)), bytes);
}
#endif

// Writes the place of each bit of the mask, plus `base`; returns how many. Up to 31 more are overwritten, since
// a branch at 16, the usual number, could not be foreseen.
inline size_t write_places(uint64_t mask, uint32_t base, uint32_t* out) {
  const size_t count = size_t(__builtin_popcountll(mask));
#ifdef TEXT_AVX512
  alignas(64) static constexpr uint8_t places[64] = {
      0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
      22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
      44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
  const __m512i packed = _mm512_maskz_compress_epi8(mask, _mm512_load_si512(places));
  const __m512i bases = _mm512_set1_epi32(int(base));
  auto write = [&](size_t at, __m128i sixteen) {
    _mm512_storeu_si512(out + at, _mm512_add_epi32(bases, _mm512_cvtepu8_epi32(sixteen)));
  };
  write(0, _mm512_castsi512_si128(packed));
  write(16, _mm512_extracti32x4_epi32(packed, 1));
  if (__builtin_expect(count > 32, 0)) {
    write(32, _mm512_extracti32x4_epi32(packed, 2));
    write(48, _mm512_extracti32x4_epi32(packed, 3));
  }
#else
  for (; mask; mask &= mask - 1) *out++ = base + uint32_t(lowest_bit(mask));
#endif
  return count;
}

// Each of `count` numbers less `less`. Up to 15 more are overwritten.
inline void copy_less(const uint32_t* from, size_t count, uint32_t less, uint32_t* out) {
#ifdef TEXT_AVX512
  const __m512i all = _mm512_set1_epi32(int(less));
  for (size_t i = 0; i < count; i += 16)
    _mm512_storeu_si512(out + i, _mm512_sub_epi32(_mm512_loadu_si512(from + i), all));
#else
  for (size_t i = 0; i < count; i++) out[i] = from[i] - less;
#endif
}

// The ranks of up to 64 places, of which the lowest is asked for again and again.
#ifdef TEXT_AVX512
template <int Vectors>
class Ranks {  // in registers
 public:
  explicit Ranks(const uint32_t* ranks) {
    for (int v = 0; v < Vectors; v++) ranks_[v] = _mm512_loadu_si512(ranks + 16 * v);
  }
  uint32_t lowest() const {
    __m512i low = ranks_[0];
    for (int v = 1; v < Vectors; v++) low = _mm512_min_epu32(low, ranks_[v]);
    return _mm512_reduce_min_epu32(low);
  }
  uint64_t where(uint32_t rank) const {
    const __m512i wanted = _mm512_set1_epi32(int(rank));
    uint64_t places = 0;
    for (int v = 0; v < Vectors; v++)
      places |= uint64_t(_mm512_cmpeq_epi32_mask(ranks_[v], wanted)) << (16 * v);
    return places;
  }
  void set(int place, uint32_t rank) {
    const uint64_t bit = uint64_t(1) << place;
    for (int v = 0; v < Vectors; v++)
      ranks_[v] = _mm512_mask_set1_epi32(ranks_[v], __mmask16(bit >> (16 * v)), int(rank));
  }

 private:
  __m512i ranks_[Vectors];
};
#else
template <int Vectors>
class Ranks {  // in memory
 public:
  explicit Ranks(const uint32_t* ranks) { std::memcpy(ranks_, ranks, sizeof ranks_); }
  uint32_t lowest() const {
    uint32_t low = ranks_[0];
    for (int i = 1; i < 16 * Vectors; i++) low = ranks_[i] < low ? ranks_[i] : low;
    return low;
  }
  uint64_t where(uint32_t rank) const {
    uint64_t places = 0;
    for (int i = 0; i < 16 * Vectors; i++) places |= uint64_t(ranks_[i] == rank) << i;
    return places;
  }
  void set(int place, uint32_t rank) { ranks_[place] = rank; }

 private:
  uint32_t ranks_[16 * Vectors];
};
#endif

#ifdef TEXT_AVX512
// Pieces that are merged in step, one in each of 16 columns, as in Lanes (merge.h), of up to 30 places. A round
// is merge_lowest(), then the caller's look-ups, then set_ranks().
class Columns {
 public:
  // The new pairs of a round: pair i is column i's new token and the one before it, pair 16 + i the new token
  // and the one behind it.
  alignas(64) uint64_t keys[32];
  alignas(64) uint32_t buckets[32];
  alignas(64) uint32_t ranks[32];  // `none`, where the caller writes no other

  // `longest`: the most places that a column uses.
  Columns(uint32_t (*symbols)[16], uint32_t (*rank_rows)[16], const uint64_t alive[16], size_t count,
          int longest)
      : symbols_(symbols), rows_(rank_rows), last_(longest), filled_(__mmask16((1u << count) - 1)) {
    alive_ = narrow(_mm512_loadu_si512(alive), _mm512_loadu_si512(alive + 8));
    previous_ = left_ = right_ = merged_ = all_ones();
    _mm512_store_si512(ranks, all_ones());
    _mm512_store_si512(ranks + 16, all_ones());
    if (count) set_ranks();
  }
  // Whether any column has a pair to merge.
  bool merging() const { return merging_; }
  // Merges in each column the leftmost pair of the lowest rank. Returns which of the new pairs are in `set`,
  // where pair_bucket(key, shift) names a bit; the upper of its bits, but for five, are the bucket of the
  // table. `outer`: the symbol of the places before and behind a piece, which is in no pair.
  uint32_t merge_lowest(const uint64_t* set, int shift, uint32_t outer) {
    const __m512i one = _mm512_set1_epi32(1), top = _mm512_set1_epi32(31),
                  nothing = _mm512_set1_epi32(int(outer));
    left_ = _mm512_mask_and_epi32(all_ones(), merging_, lowest_, _mm512_set1_epi32(63));
    merged_ = _mm512_srli_epi32(lowest_, 6);
    const __m512i bit = _mm512_sllv_epi32(one, left_);
    const __m512i before = _mm512_and_si512(alive_, _mm512_sub_epi32(bit, one));
    const __m512i after = _mm512_andnot_si512(_mm512_or_si512(bit, before), alive_);
    const __m512i behind = _mm512_and_si512(after, _mm512_sub_epi32(after, one));  // without the lowest bit
    const __m512i right = _mm512_xor_si512(after, behind);
    const __m512i next = _mm512_andnot_si512(_mm512_sub_epi32(behind, one), behind);  // the lowest bit
    previous_ = _mm512_mask_sub_epi32(all_ones(), merging_, top, _mm512_lzcnt_epi32(before));
    right_ = _mm512_mask_sub_epi32(all_ones(), merging_, top, _mm512_lzcnt_epi32(right));
    alive_ = _mm512_mask_xor_epi32(alive_, merging_, alive_, right);
    auto symbols = [&](__m512i row) {
      const __m512i columns = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      const __m512i place = _mm512_add_epi32(_mm512_slli_epi32(row, 4), columns);
      return _mm512_mask_i32gather_epi32(nothing, merging_, place, symbols_, 4);
    };
    const __m512i first = symbols(previous_), last = symbols(_mm512_sub_epi32(top, _mm512_lzcnt_epi32(next)));
    const uint32_t found = ask(first, merged_, _mm512_cmpneq_epi32_mask(first, nothing), set, shift, 0);
    return found | ask(merged_, last, _mm512_cmpneq_epi32_mask(last, nothing), set, shift, 16) << 16;
  }
  // Takes over the new pairs' ranks, and what was merged.
  void set_ranks() {
    auto with_row = [&](const uint32_t* from, __m512i row) {
      return _mm512_or_si512(_mm512_slli_epi32(_mm512_load_si512(from), 6), row);
    };
    const __m512i before = with_row(ranks, previous_), behind = with_row(ranks + 16, left_);
    lowest_ = all_ones();
    for (int i = 1; i <= last_; i++) {
      const __m512i row = _mm512_set1_epi32(i), was = _mm512_load_si512(symbols_[i]);
      const __mmask16 here = _mm512_cmpeq_epi32_mask(left_, row);
      __m512i rank = _mm512_load_si512(rows_[i]);
      rank = _mm512_mask_mov_epi32(rank, _mm512_cmpeq_epi32_mask(previous_, row), before);
      rank = _mm512_mask_mov_epi32(rank, here, behind);
      rank = _mm512_mask_mov_epi32(rank, _mm512_cmpeq_epi32_mask(right_, row), all_ones());
      lowest_ = _mm512_min_epu32(lowest_, rank);
      _mm512_store_si512(rows_[i], rank);
      _mm512_store_si512(symbols_[i], _mm512_mask_mov_epi32(was, here, merged_));
    }
    merging_ = _mm512_mask_cmplt_epu32_mask(filled_, lowest_, _mm512_set1_epi32(1 << 28));
  }
  void get_alive(uint64_t alive[16]) const {
    _mm512_storeu_si512(alive, half(alive_, 0));
    _mm512_storeu_si512(alive + 8, half(alive_, 1));
  }

 private:
  static __m512i all_ones() { return _mm512_set1_epi32(-1); }
  static __m512i narrow(__m512i a, __m512i b) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi64_epi32(a)), _mm512_cvtepi64_epi32(b), 1);
  }
  static __m512i half(__m512i v, int i) {
    return _mm512_cvtepu32_epi64(i ? _mm512_extracti64x4_epi64(v, 1) : _mm512_castsi512_si256(v));
  }
  // Keys and buckets of 16 pairs. Returns which of those in `asked` are in the set.
  uint32_t ask(__m512i first, __m512i last, __mmask16 asked, const uint64_t* set, int shift, size_t at) {
    __m512i hashes[2];
    for (int i = 0; i < 2; i++) {
      const __m512i key = _mm512_or_si512(_mm512_slli_epi64(half(first, i), symbol_bits), half(last, i));
      _mm512_store_si512(keys + at + 8 * i, key);
      hashes[i] = _mm512_srl_epi64(_mm512_mullo_epi64(key, _mm512_set1_epi64(int64_t(pair_factor))),
                                   _mm_cvtsi32_si128(shift));
    }
    const __m512i bit = narrow(hashes[0], hashes[1]), word = _mm512_srli_epi32(bit, 5);
    _mm512_store_si512(buckets + at, word);
    _mm512_store_si512(ranks + at, all_ones());
    const __m512i words = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), asked, word, set, 4);
    return _mm512_test_epi32_mask(words, _mm512_rolv_epi32(_mm512_set1_epi32(1), bit));
  }
  uint32_t (*symbols_)[16], (*rows_)[16];
  int last_;
  __mmask16 filled_, merging_ = 0;
  __m512i alive_, lowest_;                    // of each column
  __m512i previous_, left_, right_, merged_;  // of this round: three places, and the new token
};
#endif

// The lowest number of each of 16 columns in rows 1 to `last`, and in row 1 if that is 0; returns which columns
// have one below 2^28.
inline uint32_t lowest_of_columns(const uint32_t (*rows)[16], int last, uint32_t lowest[16]) {
  [[maybe_unused]] constexpr uint32_t limit = 1 << 28;
  int i = 2;
#if defined(TEXT_AVX512)
  auto load = [&](int row) { return _mm512_load_si512(rows[row]); };
  __m512i low = load(1), other = low;  // two, so that one need not wait for the other
  for (; i < last; i += 2) low = _mm512_min_epu32(low, load(i)), other = _mm512_min_epu32(other, load(i + 1));
  if (i == last) low = _mm512_min_epu32(low, load(i));
  low = _mm512_min_epu32(low, other);
  _mm512_store_si512(lowest, low);
  return _mm512_cmplt_epu32_mask(low, _mm512_set1_epi32(int(limit)));
#elif defined(__AVX2__)
  auto load = [&](int row, int half) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(rows[row] + 8 * half));
  };
  __m256i low = load(1, 0), high = load(1, 1);
  for (; i <= last; i++) low = _mm256_min_epu32(low, load(i, 0)), high = _mm256_min_epu32(high, load(i, 1));
  _mm256_store_si256(reinterpret_cast<__m256i*>(lowest), low);
  _mm256_store_si256(reinterpret_cast<__m256i*>(lowest + 8), high);
  auto below = [&](__m256i v) {
    const __m256i lower = _mm256_cmpeq_epi32(_mm256_srli_epi32(v, 28), _mm256_setzero_si256());
    return uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(lower)));
  };
  return below(low) | below(high) << 8;
#else
  std::memcpy(lowest, rows[1], sizeof rows[1]);
  for (; i <= last; i++) {
    for (int l = 0; l < 16; l++) lowest[l] = rows[i][l] < lowest[l] ? rows[i][l] : lowest[l];
  }
  uint32_t found = 0;
  for (int l = 0; l < 16; l++) found |= uint32_t(lowest[l] < limit) << l;
  return found;
#endif
}

}  // namespace text::wide
