// The few wide operations of the text kernels, for the instruction set that this file is compiled for. This is
// the only file of csrc/text with intrinsics.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace text::wide {

#if defined(__AVX512BITALG__)
#define TEXT_AVX512 1
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

// Which of the 8 entries of a cache line has `key` in its upper 42 bits; 8 or more: none.
inline uint32_t find_key(const uint64_t* entries, uint64_t key) {
#ifdef TEXT_AVX512
  const __m512i line = _mm512_srli_epi64(_mm512_load_si512(entries), 22);
  const __mmask8 found = _mm512_cmpeq_epi64_mask(line, _mm512_set1_epi64(int64_t(key)));
  return uint32_t(__builtin_ctz(uint32_t(found) | 1 << 8));
#else
  uint32_t i = 0;
  while (i < 8 && entries[i] >> 22 != key) i++;
  return i;
#endif
}

// The first `size` <= 15 bytes at p, then zeros, then the size in the last byte. No byte at or after `end` is
// read.
struct Key {
  uint64_t low, high;
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

}  // namespace text::wide
