// log(sum(e^z)) of a row of logits in one stated order, so that every caller gets the same bits: cross_entropy,
// which sees a row in pieces and never whole, and sample, which is handed the row.
//
// The statement. A row is cut into tiles of kTile logits from index 0; the last may be shorter. In a tile with
// maximum m, element i goes to strand i mod 16; a strand sums e^(z - m) in order of i, starting from 0; the 16
// strands are added by halves (i and i + 8, then i and i + 4, ...). Tiles are merged from the first to the
// last: the sum belonging to the smaller maximum is multiplied by e^(smaller - larger), then the two are added.
// The result is max + log(sum) in double, rounded once. e^x is simd::exp, the same bits in every
// build; so the result depends on the logits alone: not on instruction set, threads, or how the row was cut
// into calls.
//
// -inf logits count as zero (a row of nothing else gives -inf); a NaN or +inf anywhere gives NaN.
#pragma once

#include <algorithm>

#include "simd.h"

namespace logsumexp {

constexpr int64_t kTile = 1024;
constexpr int kStrands = 16;
constexpr float kNone = -std::numeric_limits<float>::infinity();

inline float exp1(float x) { return simd::exp(simd::set(x))[0]; }

// The sum of a tile's strands; they are used up.
inline float add_strands(float* strand) {
  for (int half = kStrands / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) strand[i] += strand[i + half];
  return strand[0];
}

// The running state of one row.
struct Row {
  float max = kNone;
  float sum = 0.0f;  // of e^(z - max)

  // Takes the next tile: n == kTile except for the last of a row.
  void add_tile(const float* z, int64_t n) {
    constexpr int vectors = kStrands / simd::kLanes;
    simd::f32 top[vectors], part[vectors];
    for (int v = 0; v < vectors; ++v) top[v] = simd::set(kNone), part[v] = simd::zero();
    for_each(z, n, [&](int v, simd::f32 x) { top[v] = simd::max(x, top[v]); });
    for (int v = 1; v < vectors; ++v) top[0] = simd::max(top[v], top[0]);
    float tile_max = simd::max_lane(top[0]);
    simd::f32 shift = simd::set(tile_max == kNone ? 0.0f : tile_max);
    for_each(z, n, [&](int v, simd::f32 x) { part[v] += simd::exp(x - shift); });
    float strand[kStrands];
    for (int v = 0; v < vectors; ++v) simd::store(strand + v * simd::kLanes, part[v]);
    merge(tile_max, add_strands(strand));
  }

  // Takes a tile of which the maximum and the sum of e^(z - maximum) are known.
  void merge(float tile_max, float tile_sum) {
    if (tile_max == kNone) {
      sum += tile_sum;  // 0, or NaN where a logit is
    } else if (tile_max > max) {
      sum = sum * exp1(max - tile_max) + tile_sum;
      max = tile_max;
    } else {
      sum = sum + tile_sum * exp1(tile_max - max);
    }
  }

  double value() const { return max + std::log((double)sum); }

 private:
  template <class F>
  static void for_each(const float* z, int64_t n, F&& body) {
    constexpr int vectors = kStrands / simd::kLanes;
    int64_t i = 0;
    for (; i + kStrands <= n; i += kStrands)
      for (int v = 0; v < vectors; ++v) body(v, simd::load(z + i + v * simd::kLanes));
    for (int v = 0; i < n; ++v, i += simd::kLanes)
      body(v, simd::load_n(z + i, (int)std::min<int64_t>(simd::kLanes, n - i), kNone));
  }
};

// The log-sum-exp of a whole stored row.
inline float of_row(const float* z, int64_t n) {
  Row row;
  for (int64_t i = 0; i < n; i += kTile) row.add_tile(z + i, std::min(kTile, n - i));
  return (float)row.value();
}

}  // namespace logsumexp
