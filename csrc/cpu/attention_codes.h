// Attention over pages of codes: keys and values as bytes, with a scale for each token and head.
//
// A code c stands for scale (c - 128). Nothing is widened: a query becomes whole numbers of 15 bits, the
// weights of a page times the values' scales become whole numbers of 14 bits, and each is multiplied in two
// parts of 7 bits by four codes a lane, exactly. So it costs what bf16 costs and reads half as much; and since
// exact sums have no order, a row's bits are as independent of what lies beside it as in attention.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "attention_rows.h"

namespace attention {

// A row of numbers in whole units of at most `most`, rounded; returns the unit, or NaN where a number is not
// finite.
template <class T>
float to_codes(const T* row, int64_t dim, float most, int32_t* codes) {
  f32 top = zero();
  bool sound = true;
  each_vector(dim, [&](int64_t d, int n) {
    f32 v = get(row + d, n);
    top = max(top, max(v, -v));
    sound &= !any_nan(v);
  });
  const float largest = max_lane(top), limit = std::numeric_limits<float>::max();
  const f32 inverse = set(largest > 0 ? std::min(most / largest, limit) : 0.0f);
  each_vector(dim, [&](int64_t d, int n) {
    i32 whole = to_whole(min(max(get(row + d, n) * inverse, set(-most)), set(most)));
    std::memcpy(codes + d, &whole, n * sizeof(int32_t));
  });
  return sound && largest <= limit ? largest * (1.0f / most) : std::numeric_limits<float>::quiet_NaN();
}

constexpr float kMostCode = 127.0f;
constexpr float kMostParted = 127.0f * 128.0f;  // in two parts of 7 bits, each a signed byte

// The weights of a page times its values' scales, as whole numbers high * 128 + low of the unit that is
// returned. Keys from `valid` on count nothing; `total` is the sum of the whole numbers.
inline float part_weights(const float* p, const float* scales, int64_t valid, int8_t* high, int8_t* low,
                          int32_t& total) {
  constexpr int kParts = kPage / kLanes;
  f32 w[kParts], top = zero();
#pragma GCC unroll 16
  for (int i = 0; i < kParts; ++i) {
    w[i] = load(p + i * kLanes) * load(scales + i * kLanes);
    if (valid < kPage) w[i] = keep_n(w[i], (int)(valid - i * kLanes), 0.0f);
    top = max(w[i], top);
  }
  const float largest = max_lane(top);
  const f32 inverse =
      set(largest > 0 ? std::min(kMostParted / largest, std::numeric_limits<float>::max()) : 0.0f);
  i32 all = {};
#pragma GCC unroll 16
  for (int i = 0; i < kParts; ++i) {
    i32 whole = to_whole(max(w[i] * inverse, zero()));  // a NaN, whose row is lost anyway, becomes zero
    store(high + i * kLanes, whole >> 7), store(low + i * kLanes, whole & 127);
    all += whole;
  }
  total = sum(all);
  return largest * (1.0f / kMostParted);
}

// attend() of attention.cpp over pages of codes.
template <bool Decoding, class T>
void attend(const Call<T, uint8_t>& call, const Span& span, const HeadPages<uint8_t>& kept, int64_t tile,
            int64_t kv_head, const uint32_t* then, Prefetcher& soon) {
  constexpr int kSteps = Words<uint8_t>::kSteps, kStrip = kRows / 2;  // a row is two rows of a product
  const int64_t dim = call.dim, width = padded(dim), q_words = across_rows<uint8_t>(dim);
  const Tile here(call, span, tile, kv_head);
  const int64_t rows = here.rows;

  struct Query {
    float unit;
    int32_t offset;  // of a score: what the codes' 128 add, taken away
  };
  auto* q = room<uint32_t, kQueries>(rows * 2 * q_words);
  float* o = room<float, kOut>(rows * width);
  Running* state = room<Running, kRunning>(ceil_div(rows, kStrip));
  int* valid = room<int, kValid>(rows);  // keys on the tile's own page
  Query* query = room<Query, kQuery>(rows);
  int32_t *codes = room<int32_t, kCodes>(width), *sums = room<int32_t, kSums>(kRows * width);
  here.each_row(tile, [&](int64_t row, int64_t source, int seen) {
    query[row].unit = to_codes(call.q + source * dim, dim, kMostParted, codes) * call.scale;
    auto* parts = reinterpret_cast<int8_t*>(q + row * 2 * q_words);
    std::memset(parts, 0, 2 * q_words * sizeof(uint32_t));
    int32_t total = 0;
    for (int64_t d = 0; d < dim; ++d) {
      const int32_t high = (codes[d] + 64) >> 7;
      parts[d] = (int8_t)high, parts[q_words * kSteps + d] = (int8_t)(codes[d] - high * 128);
      total += codes[d];
    }
    query[row].offset = -128 * total;
    valid[row] = seen;
  });
  begin_rows(state, ceil_div(rows, kStrip));

  alignas(64) int32_t scores[2][kRows * kPage];
  alignas(64) float x[kStrip * kPage], p[kStrip * kPage];
  alignas(64) int8_t parts[kRows * kPage];
  Shift shift;
  auto score = [&](int64_t page, int64_t r, int32_t* s) {
    const uint32_t* k = kept.keys(page);
    const int64_t strip = std::min<int64_t>(kStrip, rows - r);
    const int64_t longest = page == tile ? valid[r + strip - 1] : kPage;
    product<uint8_t, Decoding>({q + r * 2 * q_words, q_words, 1}, k, kPage, q_words, s, kPage, 2 * strip,
                               round_up(longest, kLanes), {true}, ahead<Decoding>(k, kept.values(page)));
  };
  score(0, 0, scores[0]);
  int32_t *s = scores[0], *next = scores[1];
  soon.spread((tile + 1) * ceil_div(rows, kStrip));
  for (int64_t page = 0; page <= tile; ++page) {
    const uint32_t *k = kept.keys(page), *v = kept.values(page);
    const uint32_t* after = page + 2 <= tile ? kept.keys(page + 2) : then;
    const auto* k_scales = reinterpret_cast<const float*>(k + across_size<uint8_t>(dim));
    const auto* v_scales = reinterpret_cast<const float*>(v + along_size<uint8_t>(dim));
    const bool own = page == tile;
    for (int64_t r = 0; r < rows; r += kStrip, std::swap(s, next)) {
      if (r + kStrip < rows) {
        score(page, r + kStrip, next);
      } else if (!own) {
        score(page + 1, 0, next);
      }
      if (!Decoding) soon.step();
      const int64_t strip = std::min<int64_t>(kStrip, rows - r);
      float unit[kStrip];
      int32_t offset[kStrip];
      const int64_t longest = own ? valid[r + strip - 1] : kPage;
      const int64_t columns = round_up(longest, 2 * kLanes);
      for (int64_t i = 0; i < strip; ++i)
        for (int64_t j = 0; j < columns; j += kLanes) {
          const int32_t* high = s + 2 * i * kPage + j;
          i32 whole = (load(high) << 7) + load(high + kPage) + set(query[r + i].offset);
          store(x + i * kPage + j, to_float(whole) * set(query[r + i].unit) * load(k_scales + j));
        }
      with_rows(strip, [&](auto all) {
        Running& running = state[r / kStrip];
        const int* until = own ? valid + r : nullptr;
        update_maxima<all>(x, until, columns, 1.0f, running, shift);
        make_weights<float, all>(x, 1.0f, columns, running, shift, p);
      });
      for (int64_t i = 0; i < strip; ++i) {
        int8_t* high = parts + 2 * i * kPage;
        unit[i] =
            part_weights(p + i * kPage, v_scales, own ? valid[r + i] : kPage, high, high + kPage, offset[i]);
      }
      product<uint8_t, Decoding>({reinterpret_cast<const uint32_t*>(parts), kPage / kSteps, 1}, v, width,
                                 ceil_div(longest, kSteps), sums, width, 2 * strip, width, {true},
                                 ahead<Decoding>(v, after));
      for (int64_t i = 0; i < strip; ++i)
        for (int64_t d = 0; d < width; d += kLanes) {
          const int32_t *high = sums + 2 * i * width + d, *low = high + width;
          float* to = o + (r + i) * width + d;
          i32 whole = (load(high) << 7) + load(low) + set(-128 * offset[i]);
          const f32 before = page == 0 ? zero() : load(to) * set(shift.shrink[i]);
          store(to, fma(to_float(whole), set(unit[i]), before));
        }
    }
  }
  finish<kStrip>(call, here, tile, state, o);
}

// Stores one head's key and value of a token at a place of a page, as codes. Where either is not finite, both
// scales become NaN, so that every row that sees the token shows it.
template <class T>
void write_codes(const T* k, const T* v, int64_t dim, int64_t place, uint32_t* k_page, uint32_t* v_page) {
  int32_t* codes = room<int32_t, kCodes>(2 * dim);
  const float k_scale = to_codes(k, dim, kMostCode, codes), v_scale = to_codes(v, dim, kMostCode, codes + dim);
  const float lost = k_scale + v_scale != k_scale + v_scale ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
  auto *k_bytes = reinterpret_cast<uint8_t*>(k_page), *v_bytes = reinterpret_cast<uint8_t*>(v_page);
  for (int64_t d = 0; d < round_up(dim, 4); ++d)
    k_bytes[(d / 4 * kPage + place) * 4 + d % 4] = (uint8_t)(d < dim ? codes[d] + 128 : 128);
  for (int64_t d = 0; d < dim; ++d)
    v_bytes[(place / 4 * padded(dim) + d) * 4 + place % 4] = (uint8_t)(codes[dim + d] + 128);
  reinterpret_cast<float*>(k_page + across_size<uint8_t>(dim))[place] = k_scale + lost;
  reinterpret_cast<float*>(v_page + along_size<uint8_t>(dim))[place] = v_scale + lost;
}

}  // namespace attention
