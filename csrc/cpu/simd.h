// Vectors of the instruction set this file is compiled for: AVX-512 (with bf16 and VNNI), AVX2 with FMA,
// or a portable base of four lanes. This is the only file with intrinsics; kernels are written on its verbs
// and compiled once per instruction set (setup.py), so a kernel exists in the source once.
//
// Rounding is part of every op's contract, so nothing is contracted behind our back (-ffp-contract=off):
// fma() is one rounding where the hardware has it, two on the base build; exp() has one only where its product
// is exact, and is therefore the same function, bit for bit, in every build.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace simd {

// A bf16 number: the upper half of a float.
struct bf16 {
  uint16_t bits;
};

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

// GCC/Clang vector types: + - * / and comparisons are lane-wise.
typedef float f32 __attribute__((vector_size(kLanes * 4)));
typedef int32_t i32 __attribute__((vector_size(kLanes * 4)));
typedef uint32_t u32 __attribute__((vector_size(kLanes * 4)));

inline f32 load(const float* p) {
  f32 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, f32 v) { std::memcpy(p, &v, sizeof v); }
inline i32 load(const int32_t* p) {
  i32 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(int32_t* p, i32 v) { std::memcpy(p, &v, sizeof v); }
inline f32 set(float a) { return a - f32{}; }
// v, which the compiler then keeps: GCC would load again for each use what it could hold in a register.
template <class V>
inline V in_register(V v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__SSE__)
  asm("" : "+x"(v));
#endif
  return v;
}
inline f32 zero() { return f32{}; }

inline f32 fma(f32 a, f32 b, f32 c) {
#if defined(__AVX512F__)
  return (f32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (f32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
// The scalar twin of fma(), with the same rounding in each build.
inline float fma1(float a, float b, float c) {
#if defined(__FMA__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

inline f32 sqrt(f32 a) {
#if defined(__AVX512F__)
  return (f32)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__)
  return (f32)_mm256_sqrt_ps((__m256)a);
#else
  for (int i = 0; i < kLanes; ++i) a[i] = std::sqrt(a[i]);
  return a;
#endif
}

// Lane-wise larger/smaller; where a is NaN the result is b.
inline f32 max(f32 a, f32 b) {
#if defined(__AVX512F__)
  return (f32)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (f32)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}
inline f32 min(f32 a, f32 b) {
#if defined(__AVX512F__)
  return (f32)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (f32)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

// Lane-wise the nearest whole number, ties to even, where |a| < 2^22.
inline f32 nearest(f32 a) {
#if defined(__AVX512F__)
  return (f32)_mm512_roundscale_ps((__m512)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (f32)_mm256_round_ps((__m256)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const f32 magic = set(12582912.0f);  // 1.5 * 2^23, from where on floats are whole
  return (a + magic) - magic;
#endif
}

// The first n lanes from p (0 <= n <= kLanes), the others `fill`; never touches memory past p + n.
inline f32 load_n(const float* p, int n, float fill = 0.0f) {
#if defined(__AVX512F__)
  return (f32)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), (__mmask16)((1u << n) - 1), p);
#else
  if (n == kLanes) return load(p);
  float buffer[kLanes];
  for (int i = 0; i < kLanes; ++i) buffer[i] = i < n ? p[i] : fill;
  return load(buffer);
#endif
}
inline void store_n(float* p, f32 v, int n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
  if (n == kLanes) return store(p, v);
  for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

// v in the first n lanes, `fill` in the others: a choice, not arithmetic, so that no NaN passes.
inline f32 keep_n(f32 v, int n, float fill) {
  i32 lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return lane < n - i32{} ? v : set(fill);
}

inline bool any_nan(f32 v) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q) != 0;
#else
  bool found = false;
  for (int i = 0; i < kLanes; ++i) found |= v[i] != v[i];
  return found;
#endif
}

// One bit a lane of a comparison's result.
inline uint32_t lanes_of(i32 mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
  return (uint32_t)_mm256_movemask_ps((__m256)mask);
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= (uint32_t)(mask[i] & 1) << i;
  return bits;
#endif
}

// Combines the upper half of the lanes with the lower until one is left: one fixed order per build.
template <class F>
inline float halve(f32 v, F&& combine) {
  typedef float quarter __attribute__((vector_size(16)));
#if defined(__AVX512F__)
  typedef float eight __attribute__((vector_size(32)));
  eight half = combine((eight)_mm512_castps512_ps256((__m512)v),
                       (eight)_mm512_maskz_extractf32x8_ps(0xff, (__m512)v, 1));
#elif defined(__AVX2__)
  f32 half = v;
#endif
#if defined(__AVX2__)
  quarter four =
      combine((quarter)_mm256_castps256_ps128((__m256)half), (quarter)_mm256_extractf128_ps((__m256)half, 1));
#else
  quarter four = v;
#endif
  return combine(combine(four[0], four[2]), combine(four[1], four[3]));
}
inline float sum(f32 v) {
  return halve(v, [](auto a, auto b) { return a + b; });
}
inline float max_lane(f32 v) {
  return halve(v, [](auto a, auto b) { return a > b ? a : b; });
}

// ---- bf16 ----------------------------------------------------------------------------------------------

inline float to_float(bf16 x) {
  uint32_t bits = (uint32_t)x.bits << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline float to_float(float x) { return x; }

// Round to nearest, ties to even, as torch does; a NaN stays a (quiet) NaN.
inline bf16 to_bf16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if (f != f) return {(uint16_t)((bits >> 16) | 0x40)};
  return {(uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
template <class T>
inline T from_float(float f);
template <>
inline float from_float<float>(float f) {
  return f;
}
template <>
inline bf16 from_float<bf16>(float f) {
  return to_bf16(f);
}

inline f32 load(const bf16* p) {
#if defined(__AVX512F__)
  return (f32)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#elif defined(__AVX2__)
  return (f32)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
  f32 v;
  for (int i = 0; i < kLanes; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}
// The 16 bits of each lane's bf16.
inline u32 round_to_bf16(f32 v) {
  u32 bits = (u32)v;
  u32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  u32 quiet = (bits >> 16) | 0x40;
  return v != v ? quiet : rounded;
}
inline void store(bf16* p, f32 v) {
#if defined(__AVX512BF16__)
  // The hardware's rounding takes numbers under 2^-126 for 0.
  constexpr int kDenormal = 0x20;
  if (__builtin_expect(_mm512_fpclass_ps_mask((__m512)v, kDenormal) == 0, 1)) {
    _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
    return;
  }
#endif
  u32 rounded = round_to_bf16(v);
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)rounded));
#else
  for (int i = 0; i < kLanes; ++i) p[i].bits = (uint16_t)rounded[i];
#endif
}
// Factors for dot_pairs below: numbers rounded as store() does, but for those under 2^-126, which may become 0,
// as dot_pairs may take them. store_pairs puts each lane's two numbers side by side, store_twice two vectors.
inline void store_pairs(uint32_t* p, f32 low, f32 high) {
#if defined(__AVX512BF16__)
  typedef uint16_t halves __attribute__((vector_size(kLanes * 4)));
  halves from;
  for (int i = 0; i < kLanes; ++i) from[2 * i] = i, from[2 * i + 1] = kLanes + i;
  __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi16((__m512i)from, both));
#else
  u32 words = round_to_bf16(low) | round_to_bf16(high) << 16;
  std::memcpy(p, &words, sizeof words);
#endif
}
inline void store_twice(bf16* p, f32 first, f32 second) {
#if defined(__AVX512BF16__)
  _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
#else
  store(p, first), store(p + kLanes, second);
#endif
}
inline void store_twice(float* p, f32 first, f32 second) { store(p, first), store(p + kLanes, second); }
inline f32 load_n(const bf16* p, int n, float fill = 0.0f) {
#if defined(__AVX512F__)
  __mmask16 used = (__mmask16)((1u << n) - 1);
  __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(used, p)), 16);
  return (f32)_mm512_mask_mov_ps(_mm512_set1_ps(fill), used, _mm512_castsi512_ps(wide));
#else
  if (n == kLanes) return load(p);
  float buffer[kLanes];
  for (int i = 0; i < kLanes; ++i) buffer[i] = i < n ? to_float(p[i]) : fill;
  return load(buffer);
#endif
}
inline void store_n(bf16* p, f32 v, int n) {
#if defined(__AVX512F__)
  _mm512_mask_cvtepi32_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m512i)round_to_bf16(v));
#else
  if (n == kLanes) return store(p, v);
  bf16 buffer[kLanes];
  store(buffer, v);
  std::memcpy(p, buffer, n * sizeof(bf16));
#endif
}

// Lanes of two bf16 each. dot_pairs(acc, a, b) = acc + a.low * b.low + a.high * b.high, per lane: the
// hardware's own rounding on AVX-512 (vdpbf16ps), two fused steps, low half first, elsewhere.
typedef u32 pairs;
inline pairs load_pairs(const bf16* p) {
  pairs v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline pairs set_pair(uint32_t two) { return two - pairs{}; }
inline uint32_t pair_of(bf16 low, bf16 high) { return (uint32_t)low.bits | (uint32_t)high.bits << 16; }
inline f32 dot_pairs(f32 acc, pairs a, pairs b) {
#if defined(__AVX512BF16__)
  return (f32)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
  acc = fma((f32)(a << 16), (f32)(b << 16), acc);
  return fma((f32)(a & 0xffff0000u), (f32)(b & 0xffff0000u), acc);
#endif
}

// The pairs (low[i], high[i]) of two rows of n <= kLanes numbers; lanes from n on are zero.
inline pairs zip_pairs(const bf16* low, const bf16* high, int n) {
#if defined(__AVX512F__)
  __mmask16 used = (__mmask16)((1u << n) - 1);
  __m512i lower = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(used, low));
  __m512i upper = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(used, high));
  return (pairs)_mm512_or_si512(lower, _mm512_slli_epi32(upper, 16));
#else
  return (pairs)load_n(low, n) >> 16 | (pairs)load_n(high, n);
#endif
}

// ---- bytes ---------------------------------------------------------------------------------------------

// Four unsigned bytes a lane.
typedef u32 bytes;
inline bytes load_bytes(const uint8_t* p) {
  bytes v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline bytes low_nibbles(bytes v) { return v & 0x0f0f0f0fu; }
inline bytes high_nibbles(bytes v) { return v >> 4 & 0x0f0f0f0fu; }
inline bytes standing_nibbles(bytes v) { return v & 0xf0f0f0f0u; }  // the high ones, times 16
inline i32 set(int32_t a) { return a - i32{}; }
inline f32 to_float(i32 v) { return __builtin_convertvector(v, f32); }

// Whether products of bytes above 127 cost no more than those of smaller ones.
#if defined(__AVX512VNNI__)
constexpr bool kWholeBytes = true;
#else
constexpr bool kWholeBytes = false;
#endif
// acc + the dot product of each lane's four bytes with `four` signed ones (not -128); exact.
inline i32 dot_bytes(i32 acc, bytes a, uint32_t four) {
#if defined(__AVX512VNNI__)
  return (i32)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, _mm512_set1_epi32((int32_t)four));
#elif defined(__AVX2__)
  // Pairs are summed in 16 bits, which hold 2 * 128 * 127: so the top bits go apart.
  const __m256i b = _mm256_set1_epi32((int32_t)four), ones = _mm256_set1_epi16(1);
  __m256i low = _mm256_maddubs_epi16((__m256i)(a & 0x7f7f7f7fu), b);
  __m256i high = _mm256_maddubs_epi16((__m256i)(a & 0x80808080u), b);
  return acc + (i32)_mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones));
#else
  for (int i = 0; i < 32; i += 8) acc += (i32)(a >> i & 0xffu) * (int32_t)(int8_t)(four >> i);
  return acc;
#endif
}
// The same where no byte of `a` is above 127.
inline i32 dot_small_bytes(i32 acc, bytes a, uint32_t four) {
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
  __m256i pairs16 = _mm256_maddubs_epi16((__m256i)a, _mm256_set1_epi32((int32_t)four));
  return acc + (i32)_mm256_madd_epi16(pairs16, _mm256_set1_epi16(1));
#else
  return dot_bytes(acc, a, four);
#endif
}

// A number of IEEE half precision.
struct f16 {
  uint16_t bits;
};
inline float to_float(f16 x) {
  const uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, exponent = x.bits >> 10 & 31, part = x.bits & 1023;
  if (exponent == 0) {  // zero and the numbers below 2^-14, in steps of 2^-24
    float f = (float)part * 0x1p-24f;
    return sign ? -f : f;
  }
  uint32_t bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | part << 13;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline f32 load(const f16* p) {
#if defined(__AVX512F__)
  return (f32)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
  return (f32)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  f32 v;
  for (int i = 0; i < kLanes; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

// Each lane as the nearest whole number, ties to even; |a| must be below 2^22.
inline i32 to_whole(f32 a) {
#if defined(__AVX512F__)
  return (i32)_mm512_cvtps_epi32((__m512)a);
#else
  return __builtin_convertvector(nearest(a), i32);
#endif
}
inline void store(int8_t* p, i32 v) {
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)v));
#else
  for (int i = 0; i < kLanes; ++i) p[i] = (int8_t)v[i];
#endif
}
inline int32_t sum(i32 v) {
#if defined(__AVX512F__)
  __m256i half = _mm256_add_epi32(_mm512_castsi512_si256((__m512i)v),
                                  _mm512_maskz_extracti32x8_epi32(0xff, (__m512i)v, 1));
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
#else
  int32_t total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
#endif
}

// ---- transpose -----------------------------------------------------------------------------------------

// Transposes a square of kLanes vectors: lane j of row i becomes lane i of row j. log2(kLanes) rounds; each
// exchanges blocks of `Half` lanes between rows i and i + Half.
template <int Half = kLanes / 2>
inline void transpose(u32 (&rows)[kLanes]) {
  if constexpr (Half > 0) {
    u32 lower, upper;
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
      lower[lane] = lane & Half ? kLanes + lane - Half : lane;
      upper[lane] = lane & Half ? kLanes + lane : lane + Half;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & Half) continue;
      u32 a = rows[i], b = rows[i + Half];
      rows[i] = __builtin_shuffle(a, b, lower);
      rows[i + Half] = __builtin_shuffle(a, b, upper);
    }
    transpose<Half / 2>(rows);
  }
}

// Combines the lanes of each of the first R rows, all rows in one go: lane r of the result is that of row r, in
// halve()'s order, further lanes are anything. As in transpose(), without the rows that nobody asks for.
template <int R, int Half = kLanes / 2, class F>
[[gnu::always_inline]] inline f32 halve_rows(f32 (&rows)[kLanes], F&& combine) {
  static_assert(R <= kLanes);
  if constexpr (Half == 0) {
    return rows[0];
  } else {
    u32 lower, upper;
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
      lower[lane] = lane & Half ? kLanes + lane - Half : lane;
      upper[lane] = lane & Half ? kLanes + lane : lane + Half;
    }
    constexpr int kLeft = R < Half ? R : Half;
#pragma GCC unroll 16
    for (int i = 0; i < kLeft; ++i) {
      f32 a = rows[i], b = rows[i + Half < R ? i + Half : i];
      rows[i] = combine(__builtin_shuffle(a, b, lower), __builtin_shuffle(a, b, upper));
    }
    return halve_rows<kLeft, Half / 2>(rows, combine);
  }
}

// ---- exp -----------------------------------------------------------------------------------------------

// e^x with a relative error below 2e-7: x = n ln2 + r, a polynomial of degree 6 in r, then 2^n through the
// exponent's bits. Below -87.33 the result is 0, above 88.72 +inf; NaN gives NaN.
inline f32 exp(f32 x) {
  f32 n = nearest(x * set(1.44269504f));
  f32 r = fma(n, set(-0.693145752f), x) - n * set(1.42860677e-6f);  // the first product is exact
  f32 p = set(1.0f / 720);
  p = p * r + set(1.0f / 120);
  p = p * r + set(1.0f / 24);
  p = p * r + set(1.0f / 6);
  p = p * r + set(0.5f);
  p = p * r + set(1.0f);
  p = p * r + set(1.0f);
#if defined(__AVX512F__)
  f32 scaled = (f32)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  // 2^n in two factors, for n reaches 128, one past the largest exponent; what is beyond is replaced below
  i32 whole = __builtin_convertvector(min(set(128.0f), max(set(-126.0f), n)), i32);
  i32 half = whole >> 1;
  f32 scaled = p * (f32)((half + 127) << 23) * (f32)((whole - half + 127) << 23);
#endif
  scaled = x < set(-87.33f) ? zero() : scaled;
  return x > set(88.72f) ? set(std::numeric_limits<float>::infinity()) : scaled;
}

// 2^x for x <= 0, fused where the hardware fuses, so its bits differ between builds: for softmax, where a fifth
// of the work is this function. The relative error is below 2e-7, and below 3.1e-6 for what becomes a bf16,
// which rounds by up to 2e-3. Below -126.5 the result is 0. The polynomials are those of degree 5 and 4 that
// err least in proportion, with p(0) = 1.
template <class T = float>
inline f32 exp2_nonpositive(f32 x) {
  const f32 magic = set(12582912.0f);  // as in nearest()
  f32 clamped = max(set(-127.0f), x);  // the scale of -127 is 0; NaN stays
  f32 shifted = clamped + magic;       // the integer part is in the low bits
  f32 r = clamped - (shifted - magic);
  f32 p;
  if constexpr (std::is_same_v<T, bf16>) {
    p = set(9.58285294e-3f);
    p = fma(p, r, set(5.59064262e-2f));
    p = fma(p, r, set(2.40240991e-1f));
    p = fma(p, r, set(6.93124175e-1f));
  } else {
    p = set(1.32647273e-3f);
    p = fma(p, r, set(9.67151299e-3f));
    p = fma(p, r, set(5.55073358e-2f));
    p = fma(p, r, set(2.40222424e-1f));
    p = fma(p, r, set(6.93147004e-1f));
  }
  p = fma(p, r, set(1.0f));
  return p * (f32)(((i32)shifted + 127) << 23);
}

// ---- rows ----------------------------------------------------------------------------------------------

// Calls body(i, n) for each vector of a row of `numbers`, n lanes in use (kLanes except for the last); get()
// and put() move them.
template <class F>
inline void each_vector(int64_t numbers, F&& body) {
  int64_t i = 0;
  for (; i + kLanes <= numbers; i += kLanes) body(i, kLanes);
  if (i < numbers) body(i, (int)(numbers - i));
}
template <class T>
inline f32 get(const T* p, int n) {
  return n == kLanes ? load(p) : load_n(p, n);
}
template <class T>
inline void put(T* p, f32 v, int n) {
  n == kLanes ? store(p, v) : store_n(p, v, n);
}

}  // namespace simd
