// The output layer with its loss on Hopper (sm_90a) in bf16: logits are sums of product_hopper.cuh, and never
// leave the registers but as what is made of them.
//
// Forward: of each tile of 256 logits a token's maximum and sum of exponentials, which a warp a token then
// merges, and the target's logit. Backward: the logits of a chunk of tokens are computed again, and their
// gradients go to memory in bf16, for two more products.
#include "ops.h"
#include "product_hopper.cuh"

namespace {

// Of 256 logits of a token.
struct Peaks {
  const int64_t* targets;
  float *peaks, *sums;  // (tokens, tiles)
  float* chosen;
  int64_t tiles;
  int tokens, vocabulary;

#if HAS_HOPPER
  __device__ void operator()(Panels&, const Sums& logits, int row, int column) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = row + lane() / 4 + 8 * half;
      const bool exists = token < tokens;
      const int64_t target = exists ? targets[token] - column : -1;
      float peak = -INFINITY, sum = 0.0f;
      each(logits, half, [&](float logit, int c) {
        if (column + c < vocabulary) peak = fmaxf(peak, logit);
      });
      peak = row_max(peak);
      each(logits, half, [&](float logit, int c) {
        if (column + c < vocabulary) sum += exp2_fast((logit - peak) * kLog2e);
        if (c == target && column + c < vocabulary) chosen[token] = logit;
      });
      sum = row_sum(sum);
      if (lane() % 4 || !exists) continue;
      peaks[token * tiles + column / kColumns] = peak;
      sums[token * tiles + column / kColumns] = sum;
    }
  }
  // Calls f(logit, its column in the tile) with this thread's of a row.
  template <class F>
  __device__ static void each(const Sums& logits, int half, F f) {
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) f(logits[n][2 * half + i], 8 * n + lane() % 4 * 2 + i);
  }
#endif
};

// (e^(z - lse) - onehot(target)) dnll, in bf16.
struct Gradients {
  TensorMap out;
  const int64_t* targets;
  const double* lse;
  const float* dnll;
  int64_t ignored;
  int tokens, vocabulary;

#if HAS_HOPPER
  __device__ void operator()(Panels& panels, const Sums& logits, int row, int column) const {
    int64_t target[2];
    float high[2], low[2], grad[2];  // high + low: the log of the sum
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = row + lane() / 4 + 8 * half;
      const bool exists = token < tokens;
      const double log_sum = exists ? lse[token] : 0.0;
      target[half] = exists ? targets[token] : ignored;
      high[half] = (float)log_sum, low[half] = (float)(log_sum - high[half]);
      grad[half] = target[half] == ignored ? 0.0f : dnll[token];
    }
    // an ignored token adds nothing, whatever its logits; nor do columns that only fill up a row
    auto gradient = [&](float logit, int c, int half) {
      const float share =
          exp2_fast((logit - high[half] - low[half]) * kLog2e) - (c == target[half] ? 1.0f : 0.0f);
      return grad[half] == 0.0f || c >= vocabulary ? 0.0f : share * grad[half];
    };
    store_sums<bf16, false>(panels, &out, logits, row, column, [&](float& upper, float& lower, int c) {
      upper = gradient(upper, c, 0), lower = gradient(lower, c, 1);
    });
  }
#endif
};

constexpr int kMergers = 4;  // warps of a block, one a token

__global__ void __launch_bounds__(kMergers* kWarp)
    merge_peaks_kernel(const int64_t* targets, const float* peaks, const float* sums, const float* chosen,
                       float* nll, double* lse, int64_t tokens, int64_t tiles, int64_t vocabulary,
                       int64_t ignored) {
  const int64_t token = (int64_t)blockIdx.x * kMergers + threadIdx.x / kWarp;
  if (token >= tokens) return;
  float peak = -INFINITY, total = 0.0f;
  for (int64_t tile = lane(); tile < tiles; tile += kWarp) peak = fmaxf(peak, peaks[token * tiles + tile]);
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, offset));
  for (int64_t tile = lane(); tile < tiles; tile += kWarp)
    total += sums[token * tiles + tile] * exp2_fast((peaks[token * tiles + tile] - peak) * kLog2e);
  for (int offset = kWarp / 2; offset > 0; offset /= 2) total += __shfl_xor_sync(0xffffffffu, total, offset);
  if (lane()) return;
  const int64_t target = targets[token];
  const float log_total = logf(total);
  lse[token] = (double)peak + log_total;
  const bool known = target >= 0 && target < vocabulary;
  nll[token] = target == ignored ? 0.0f : known ? peak + log_total - chosen[token] : NAN;
}

}  // namespace

int64_t cross_entropy_hopper_tiles(int64_t vocabulary) { return (vocabulary + kColumns - 1) / kColumns; }

int cross_entropy_forward_hopper(const bf16* x, const bf16* weight, const int64_t* targets, float* peaks,
                                 float* sums, float* chosen, float* nll, double* lse, int64_t tokens,
                                 int64_t vocabulary, int64_t channels, int64_t ignored, void* stream) {
  const int64_t tiles = cross_entropy_hopper_tiles(vocabulary);
  const Peaks epilogue{targets, peaks, sums, chosen, tiles, (int)tokens, (int)vocabulary};
  if (int error = product<false, false>(x, weight, epilogue, tokens, vocabulary, channels, stream))
    return error;
  return launch(merge_peaks_kernel, (tokens + kMergers - 1) / kMergers, kMergers * kWarp, 0, stream, targets,
                peaks, sums, chosen, nll, lse, tokens, tiles, vocabulary, ignored);
}

int cross_entropy_dlogits_hopper(const bf16* x, const bf16* weight, const int64_t* targets, const double* lse,
                                 const float* dnll, bf16* dlogits, int64_t tokens, int64_t vocabulary,
                                 int64_t channels, int64_t ignored, void* stream) {
  Gradients epilogue{{}, targets, lse, dnll, ignored, (int)tokens, (int)vocabulary};
  if (int error = describe_results(&epilogue.out, dlogits, tokens, vocabulary)) return error;
  return product<false, false>(x, weight, epilogue, tokens, vocabulary, channels, stream);
}
