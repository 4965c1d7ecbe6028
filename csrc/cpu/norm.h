// RMSNorm of a row, and of the rows that a product begins with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "gemm.h"
#include "parallel.h"
#include "simd.h"

namespace norm {

using namespace simd;

// 1 / sqrt(mean(x^2) + eps) of a row of `channels`.
template <class X>
inline float inverse_rms(const X* x, int64_t channels, float eps) {
  f32 squares = zero();
  each_vector(channels, [&](int64_t i, int n) {
    f32 v = get(x + i, n);
    squares = fma(v, v, squares);
  });
  return 1.0f / std::sqrt(sum(squares) / channels + eps);
}

// out = in rstd weight; returns rstd, which is the row's inverse_rms().
template <class T, class X, class Y>
inline float normalise(const X* in, const T* weight, Y* out, int64_t channels, float eps) {
  const float rstd = inverse_rms(in, channels, eps);
  each_vector(channels,
              [&](int64_t i, int n) { put(out + i, get(in + i, n) * set(rstd) * get(weight + i, n), n); });
  return rstd;
}

template <class X>
inline void add(const X* x, const float* residual, float* out, int64_t channels) {
  each_vector(channels, [&](int64_t i, int n) { put(out + i, get(x + i, n) + get(residual + i, n), n); });
}

constexpr int64_t kThreadNumbers = 1 << 14;  // that are worth another thread

// Rows of x, or where there is a residual of x + residual, which is written to `summed`, normalised into memory
// of this thread (rows, channels). Every member of a team does so: of few rows that is less than waiting for
// one who does, and fetching his.
template <class T, class X>
const T* normalise_privately(const X* x, const float* residual, const T* weight, float* summed, int64_t rows,
                             int64_t channels, float eps, int threads) {
  T* out = static_cast<T*>(gemm::scratch(gemm::kNormed, rows * channels * sizeof(T)));
  const bool first = parallel::is_first();
  parallel::privately([&] {
    parallel::parallel_shares(rows, rows * channels < kThreadNumbers ? 1 : threads, [&](int64_t row) {
      const int64_t at = row * channels;
      if (!residual) {
        normalise(x + at, weight, out + at, channels, eps);
        return;
      }
      float* to =
          first ? summed + at : static_cast<float*>(gemm::scratch(gemm::kSummed, channels * sizeof(float)));
      add(x + at, residual + at, to, channels);
      normalise(to, weight, out + at, channels, eps);
    });
  });
  return out;
}

}  // namespace norm
