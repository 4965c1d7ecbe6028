// Sampling: the steps stated in kernels/sample/reference.py, bit for bit, one block a row.
//
// Thresholds are found by radix selection on the logits' ordered bit patterns, eight bits a round: a histogram
// of counts for top-k, of whole-number weights for top-p. Whole numbers add up the same in any order, so
// atomics are exact here. The row is read 11 times at most; up to 128k logits it stays in L2, so the bound is
// one read of memory and ten of L2. The log-sum-exp has the order of csrc/cpu/logsumexp.h: 16 strands a tile of
// 1,024 logits, one thread each.
#include "common.cuh"
#include "ops.h"

namespace {

constexpr int kThreads = 256;
constexpr int kBins = 256;
constexpr int kTile = 1024, kStrands = 16;
constexpr float kGreedy = 1e-5f;

typedef unsigned long long Weight;

__device__ inline uint32_t bits_of(float x) {
  union {
    float value;
    uint32_t bits;
  } u{x};
  return u.bits;
}
__device__ inline float float_of(uint32_t bits) {
  union {
    uint32_t bits;
    float value;
  } u{bits};
  return u.value;
}

// Unsigned order of keys is the order of numbers; -0 and +0 are one key.
__device__ inline uint32_t key_of(float x) {
  uint32_t bits = bits_of(add(x, 0.0f));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// simd::exp of csrc/cpu/simd.h: separate multiplies and adds, the same bits everywhere.
__device__ inline float exp_stated(float x) {
  if (x != x) return x;
  float clamped = fminf(fmaxf(x, -87.33f), 88.72f);
  float n = add(add(mul(clamped, 1.44269504f), 12582912.0f), -12582912.0f);
  float r = add(add(clamped, -mul(n, 0.693145752f)), -mul(n, 1.42860677e-6f));
  float p = 1.0f / 720;
  p = add(mul(p, r), 1.0f / 120);
  p = add(mul(p, r), 1.0f / 24);
  p = add(mul(p, r), 1.0f / 6);
  p = add(mul(p, r), 0.5f);
  p = add(mul(p, r), 1.0f);
  p = add(mul(p, r), 1.0f);
  int whole = (int)n, half = whole >> 1;
  float scaled =
      mul(mul(p, float_of((uint32_t)(half + 127) << 23)), float_of((uint32_t)(whole - half + 127) << 23));
  if (x < -87.33f) return 0.0f;
  return x > 88.72f ? INFINITY : scaled;
}

__device__ inline Weight weight_of(float y, float peak) {
  return (Weight)((double)exp_stated(add(y, -peak)) * 1099511627776.0);  // 2^40, rounded down
}

// The largest of one value a thread, the same in every thread.
__device__ inline Weight block_max(Weight value, Weight* scratch) {
  __syncthreads();
  scratch[threadIdx.x] = value;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if ((int)threadIdx.x < half && scratch[threadIdx.x + half] > scratch[threadIdx.x])
      scratch[threadIdx.x] = scratch[threadIdx.x + half];
    __syncthreads();
  }
  return scratch[0];
}

constexpr Weight kNoBound = ~(Weight)0;  // above every candidate

struct Row {
  const float* logits;
  int64_t vocabulary;
  float scale, peak;
  uint32_t least;  // key of the smallest logit kept
  double light;    // weights below it are not kept

  __device__ float y(int64_t i) const { return mul(logits[i], scale); }
  __device__ bool keeps(float value) const {
    return key_of(value) >= least && (light == 0.0 || (double)weight_of(value, peak) >= light);
  }
  // The largest candidate below `before` among this thread's logits: a logit's key, then its id counted from
  // the end, so that of equal logits the lowest id is the largest. Sets `nan` if one of them is no number.
  __device__ Weight largest_below(Weight before, bool& nan) const {
    Weight best = 0;
    for (int64_t i = threadIdx.x; i < vocabulary; i += kThreads) {
      float value = y(i);
      nan |= value != value;
      Weight candidate = (Weight)key_of(value) << 32 | (uint32_t)(0xffffffffu - (uint32_t)i);
      if (candidate < before && candidate > best) best = candidate;
    }
    return best;
  }
};

// The largest key whose logits at or above it have together at least `wanted(total)`, among those kept so far.
// `measure` is what one logit adds: 1 to count, its weight to weigh.
template <class Measure, class Enough>
__device__ uint32_t select_key(const Row& row, Weight* bins, Measure measure, Enough enough) {
  __shared__ uint32_t digit;
  __shared__ Weight above;
  uint32_t prefix = 0, mask = 0;
  Weight over = 0;  // of keys larger than any with this prefix
  for (int shift = 24; shift >= 0; shift -= 8) {
    __syncthreads();
    bins[threadIdx.x] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < row.vocabulary; i += kThreads) {
      float y = row.y(i);
      uint32_t key = key_of(y);
      if (key >= row.least && (key & mask) == prefix) {
        Weight amount = measure(y);
        if (amount) atomicAdd(&bins[key >> shift & 255], amount);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      Weight running = over;
      int bin = kBins - 1;
      while (bin > 0 && !enough(running + bins[bin])) running += bins[bin--];
      digit = (uint32_t)bin;
      above = running;
    }
    __syncthreads();
    prefix |= digit << shift;
    mask |= 255u << shift;
    over = above;
  }
  return prefix;
}

// log(sum(e^y)) over the kept, in the stated order; scratch holds 2 * 16 * tiles floats. Valid in thread 0.
__device__ float logsumexp(const Row& row, float* scratch) {
  int64_t tiles = (row.vocabulary + kTile - 1) / kTile, strands = tiles * kStrands;
  float *peaks = scratch, *sums = scratch + strands;
  for (int64_t s = threadIdx.x; s < strands; s += kThreads) {
    int64_t first = s / kStrands * kTile + s % kStrands, last = (s / kStrands + 1) * kTile;
    float top = -INFINITY;
    for (int64_t i = first; i < last && i < row.vocabulary; i += kStrands) {
      float y = row.y(i);
      if (row.keeps(y) && y > top) top = y;
    }
    peaks[s] = top;
  }
  __syncthreads();
  for (int64_t s = threadIdx.x; s < strands; s += kThreads) {
    int64_t tile = s / kStrands;
    float top = -INFINITY;
    for (int i = 0; i < kStrands; ++i) top = fmaxf(top, peaks[tile * kStrands + i]);
    float shift = top == -INFINITY ? 0.0f : top, sum = 0.0f;
    for (int64_t i = tile * kTile + s % kStrands; i < (tile + 1) * kTile && i < row.vocabulary; i += kStrands) {
      float y = row.y(i);
      sum = add(sum, exp_stated(row.keeps(y) ? add(y, -shift) : -INFINITY));
    }
    sums[s] = sum;
  }
  __syncthreads();
  if (threadIdx.x) return 0.0f;
  float max = -INFINITY, sum = 0.0f;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    float strand[kStrands], top = -INFINITY;
    for (int i = 0; i < kStrands; ++i) {
      strand[i] = sums[tile * kStrands + i];
      top = fmaxf(top, peaks[tile * kStrands + i]);
    }
    for (int half = kStrands / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) strand[i] = add(strand[i], strand[i + half]);
    if (top == -INFINITY) {
      sum = add(sum, strand[0]);
    } else if (top > max) {
      sum = add(mul(sum, exp_stated(add(max, -top))), strand[0]);
      max = top;
    } else {
      sum = add(sum, mul(strand[0], exp_stated(add(top, -max))));
    }
  }
  return (float)(max + log((double)sum));
}

// ids_given null: draw an id for u; else score the given ids.
__global__ void sample_kernel(const float* logits, const float* u, const float* temperature,
                              const int32_t* top_k, const float* top_p, const float* min_p,
                              const int64_t* ids_given, int64_t* ids, float* logprobs, float* scratch,
                              int64_t vocabulary) {
  __shared__ Weight shared[kThreads];
  __shared__ int64_t chosen;
  int64_t r = blockIdx.x, tiles = (vocabulary + kTile - 1) / kTile;
  bool greedy = temperature[r] < kGreedy;
  Row row{logits + r * vocabulary, vocabulary, greedy ? 1.0f : 1.0f / temperature[r], 0.0f, 0, 0.0};

  // The largest logit, the lowest id on ties.
  bool nan = false;
  Weight best = row.largest_below(kNoBound, nan);
  bool any_nan = block_max(nan, shared) != 0;
  best = block_max(best, shared);
  int64_t largest = 0xffffffffu - (uint32_t)best;
  row.peak = row.y(largest);
  bool bad = any_nan || row.peak == INFINITY || row.peak == -INFINITY || (ids_given && ids_given[r] < 0);
  if (bad) {
    if (threadIdx.x == 0) {
      if (ids) ids[r] = -1;
      if (logprobs) logprobs[r] = NAN;
    }
    return;
  }

  Weight total = 0;
  if (!greedy) {
    int64_t k = top_k[r] <= 0 || top_k[r] > vocabulary ? vocabulary : top_k[r];
    if (k < vocabulary)
      row.least =
          select_key(row, shared, [](float) { return (Weight)1; }, [&](Weight n) { return n >= (Weight)k; });
    float peak = row.peak;
    auto weigh = [peak](float y) { return weight_of(y, peak); };
    const int passes = top_p[r] < 1.0f ? 2 : 1;
    for (int pass = 0; pass < passes; ++pass) {
      if (pass) {
        double enough = (double)top_p[r] * (double)total;
        row.least = select_key(row, shared, weigh, [&](Weight n) { return (double)n >= enough; });
        if (row.least > key_of(peak)) row.least = key_of(peak);  // top_p 0 still keeps the largest
      }
      if (pass == passes - 1) row.light = (double)min_p[r] * 1099511627776.0;
      // Each thread weighs a stretch of neighbouring ids; the last pass leaves the stretches' weights in
      // shared.
      int64_t stretch = (vocabulary + kThreads - 1) / kThreads;
      Weight mine = 0;
      for (int64_t i = threadIdx.x * stretch; i < (threadIdx.x + 1) * stretch && i < vocabulary; ++i) {
        float y = row.y(i);
        if (row.keeps(y)) mine += weigh(y);
      }
      __syncthreads();
      shared[threadIdx.x] = mine;
      __syncthreads();
      total = 0;
      for (int t = 0; t < kThreads; ++t) total += shared[t];
    }
  }
  if (threadIdx.x == 0) {
    int64_t id = ids_given ? ids_given[r] : largest;
    if (!ids_given && !greedy) {
      Weight steps = (Weight)((double)u[r] * 16777216.0);  // u has 24 bits
      Weight target = steps * (total >> 24) + (steps * (total & 0xffffff) >> 24);
      int64_t stretch = (vocabulary + kThreads - 1) / kThreads;
      int t = 0;
      Weight running = 0;
      while (running + shared[t] <= target) running += shared[t++];
      for (id = t * stretch;; ++id) {
        float y = row.y(id);
        if (row.keeps(y)) running += weight_of(y, row.peak);
        if (running > target) break;
      }
    }
    chosen = id;
  }
  __syncthreads();
  if (ids && threadIdx.x == 0) ids[r] = chosen;
  if (!logprobs) return;
  float lse = logsumexp(row, scratch + r * tiles * kStrands * 2);
  if (threadIdx.x == 0) {
    float y = row.y(chosen);
    logprobs[r] = add(row.keeps(y) ? y : -INFINITY, -lse);
  }
}

// The n largest logits in turn, one maximum each.
__global__ void top_logprobs_kernel(const float* logits, int64_t* ids, float* logprobs, float* scratch,
                                    int64_t vocabulary, int64_t n) {
  __shared__ Weight shared[kThreads];
  __shared__ float all;
  int64_t r = blockIdx.x, tiles = (vocabulary + kTile - 1) / kTile;
  Row row{logits + r * vocabulary, vocabulary, 1.0f, 0.0f, 0, 0.0};
  float lse = logsumexp(row, scratch + r * tiles * kStrands * 2);
  if (threadIdx.x == 0) all = lse;
  Weight before = kNoBound;
  for (int64_t j = 0; j < n; ++j) {
    bool nan = false;
    Weight best = row.largest_below(before, nan);
    if (j == 0) {
      bool any_nan = block_max(nan, shared) != 0;
      Weight top = block_max(best, shared);
      row.peak = row.y(0xffffffffu - (uint32_t)top);
      if (any_nan || row.peak == INFINITY || row.peak == -INFINITY) {
        for (int64_t i = threadIdx.x; i < n; i += kThreads) ids[r * n + i] = -1, logprobs[r * n + i] = NAN;
        return;
      }
    }
    before = block_max(best, shared);
    if (threadIdx.x == 0) {
      int64_t id = 0xffffffffu - (uint32_t)before;
      ids[r * n + j] = id;
      logprobs[r * n + j] = add(row.y(id), -all);
    }
  }
}

__global__ void adjust_logits_kernel(const float* logits, const int32_t* ids, const int32_t* starts,
                                     const float* repetition, const float* added, const int32_t* allowed,
                                     float* out, int64_t vocabulary) {
  int64_t r = blockIdx.x, words = (vocabulary + 31) / 32;
  logits += r * vocabulary, out += r * vocabulary;
  auto may = [&](int64_t i) {
    return !allowed || ((uint32_t)allowed[r * words + i / 32] >> (i % 32) & 1u) != 0;
  };
  for (int64_t i = threadIdx.x; i < vocabulary; i += kThreads) out[i] = may(i) ? logits[i] : -INFINITY;
  __syncthreads();
  for (int64_t e = starts[r] + (int64_t)threadIdx.x; e < starts[r + 1]; e += kThreads) {
    float x = logits[ids[e]];
    if (may(ids[e])) out[ids[e]] = add(mul(x, x > 0.0f ? 1.0f / repetition[e] : repetition[e]), added[e]);
  }
}

__device__ inline uint64_t mix(uint64_t z) {
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ z >> 27) * 0x94D049BB133111EBull;
  return z ^ z >> 31;
}

__global__ void uniform_kernel(const int64_t* seeds, const int64_t* positions, float* u, int64_t rows) {
  int64_t r = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (r >= rows) return;
  uint64_t hashed = mix(mix((uint64_t)seeds[r]) + ((uint64_t)positions[r] + 1) * 0x9E3779B97F4A7C15ull);
  u[r] = (float)(hashed >> 40) * 5.9604644775390625e-8f;  // 2^-24
}

}  // namespace

int sample(const float* logits, const float* u, const float* temperature, const int32_t* top_k,
           const float* top_p, const float* min_p, const int64_t* ids_given, int64_t* ids, float* logprobs,
           float* scratch, int64_t rows, int64_t vocabulary, void* stream) {
  return launch(sample_kernel, rows, kThreads, 0, stream, logits, u, temperature, top_k, top_p, min_p,
                ids_given, ids, logprobs, scratch, vocabulary);
}

int top_logprobs(const float* logits, int64_t* ids, float* logprobs, float* scratch, int64_t rows,
                 int64_t vocabulary, int64_t n, void* stream) {
  return launch(top_logprobs_kernel, rows, kThreads, 0, stream, logits, ids, logprobs, scratch, vocabulary, n);
}

int adjust_logits(const float* logits, const int32_t* ids, const int32_t* starts, const float* repetition,
                  const float* added, const int32_t* allowed, float* out, int64_t rows, int64_t vocabulary,
                  void* stream) {
  return launch(adjust_logits_kernel, rows, kThreads, 0, stream, logits, ids, starts, repetition, added,
                allowed, out, vocabulary);
}

int uniform(const int64_t* seeds, const int64_t* positions, float* u, int64_t rows, void* stream) {
  return launch(uniform_kernel, (rows + 127) / 128, 128, 0, stream, seeds, positions, u, rows);
}
