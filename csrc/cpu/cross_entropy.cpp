// The output layer and its loss, forward and backward.
//
// Both take a strip of the vocabulary at a time for all rows, so that its weights are read from memory once and
// stay in cache. Forward: a task computes the logits of a block of rows into L2 (gemm::multiply: the bits of
// linear) and folds them into each row's running log-sum-exp (logsumexp.h). Backward turns them into dz = g
// (e^(z - lse) - onehot), rounded to the layer's type, and multiplies: dW of the strip = dz^T x, and dx += dz
// W. dx adds strips in order, in float32.
//
// Where the caller has memory for all logits, forward keeps them, strip after strip, each (rows, its columns):
// 8 bytes written and read a logit, against 2 x channels flops of computing it again. Else backward does that:
// the same bits.
//
// Rows whose target is ignored are left out: the others are moved together first, unless all count.
#include <algorithm>
#include <vector>

#include "gemm.h"
#include "integers.h"
#include "logsumexp.h"
#include "ops.h"
#include "parallel.h"

using namespace simd;

namespace {

// A strip is a tile of the log-sum-exp, and a multiple of the sum's block, so that the strips' products in dx
// are the blocks of one product over all of V.
constexpr int64_t kStrip = logsumexp::kTile;
constexpr int64_t kRows = 56;  // rows a task at most: 56 x 1024 logits are 224 KiB

// Calls body(first row, rows) for tasks of almost equal size, as many for each thread.
template <class F>
void each_task(int64_t rows, int threads, F&& body) {
  const int64_t most = std::clamp<int64_t>(ceil_div(rows, 4 * threads), 1, kRows);
  const int64_t tasks = std::min(rows, round_up(ceil_div(rows, most), threads));
  parallel::parallel_shares(tasks, threads, [&](int64_t task) {
    const int64_t row0 = task * rows / tasks;
    body(row0, (task + 1) * rows / tasks - row0);
  });
}

// A strip of the weight (n rows of the vocabulary) as the right operand of logits, packed in this thread's
// scratch.
template <class T>
const T* packed_strip(const T* strip, int64_t n, int64_t channels, int threads) {
  T* packed = (T*)gemm::scratch(gemm::kPackedB, gemm::packed_size<T>(n, channels) * sizeof(T));
  gemm::pack({strip, channels, 1}, n, channels, packed, threads);
  return packed;
}

// The logits (rows, n) of some rows of x in a packed strip, in `out`, or where that is null in this thread's
// scratch.
template <class T>
const float* strip_logits(const T* x, const T* packed, float* out, int64_t rows, int64_t n, int64_t channels) {
  if (!out) out = (float*)gemm::scratch(gemm::kLogits, rows * n * sizeof(float));
  gemm::multiply<T, float>({x, channels, 1}, packed, rows, n, channels, out, n, nullptr, false, 1);
  return out;
}

// The rows whose target is not ignored, in order.
std::vector<int64_t> counted(const int64_t* targets, int64_t rows, int64_t ignore_index) {
  std::vector<int64_t> found;
  found.reserve(rows);
  for (int64_t r = 0; r < rows; ++r)
    if (targets[r] != ignore_index) found.push_back(r);
  return found;
}

// x (rows, channels) at those rows: itself where they are all.
template <class T>
const T* gather(const T* x, const std::vector<int64_t>& at, int64_t rows, int64_t channels, int threads) {
  if ((int64_t)at.size() == rows) return x;
  T* out = (T*)gemm::scratch(gemm::kCounted, at.size() * channels * sizeof(T));
  each_task((int64_t)at.size(), threads, [&](int64_t row0, int64_t count) {
    for (int64_t r = row0; r < row0 + count; ++r)
      std::copy_n(x + at[r] * channels, channels, out + r * channels);
  });
  return out;
}

// out[0, n) = g e^(z - lse), less g at the target, which counts from the strip's start and may lie outside. lse
// comes in two floats: rounded to one, it would put every probability off by its own rounding.
template <class T>
void softmax_gradient(const float* z, T* out, int64_t n, double lse, float g, int64_t target) {
  const f32 high = set((float)lse), low = set((float)(lse - (float)lse));
  auto probability = [&](f32 logit) { return exp2_nonpositive(((logit - high) - low) * set(1.44269504f)); };
  each_vector(n, [&](int64_t i, int lanes) { put(out + i, set(g) * probability(get(z + i, lanes)), lanes); });
  if (target >= 0 && target < n) out[target] = from_float<T>(g * (probability(set(z[target]))[0] - 1.0f));
}

}  // namespace

template <class T>
int64_t cross_entropy_forward(const T* x, const T* weight, const int64_t* targets, float* nll, double* lse,
                              float* kept, int64_t rows, int64_t channels, int64_t vocabulary,
                              int64_t ignore_index, int threads) {
  for (int64_t r = 0; r < rows; ++r)
    if (targets[r] != ignore_index && (targets[r] < 0 || targets[r] >= vocabulary)) return r;
  const std::vector<int64_t> at = counted(targets, rows, ignore_index);
  std::fill_n(nll, rows, 0.0f);
  std::fill_n(lse, rows, 0.0);
  x = gather(x, at, rows, channels, threads);
  rows = (int64_t)at.size();
  std::vector<logsumexp::Row> state(rows);
  std::vector<float> target_logit(rows);
  for (int64_t v = 0; v < vocabulary; v += kStrip) {
    const int64_t n = std::min(kStrip, vocabulary - v);
    const T* packed = packed_strip(weight + v * channels, n, channels, threads);
    each_task(rows, threads, [&](int64_t row0, int64_t count) {
      float* out = kept ? kept + v * rows + row0 * n : nullptr;
      const float* logits = strip_logits(x + row0 * channels, packed, out, count, n, channels);
      for (int64_t r = row0; r < row0 + count; ++r, logits += n) {
        state[r].add_tile(logits, n);
        const int64_t target = targets[at[r]] - v;
        if (target >= 0 && target < n) target_logit[r] = logits[target];
      }
    });
  }
  for (int64_t r = 0; r < rows; ++r) {
    lse[at[r]] = state[r].value();
    nll[at[r]] = (float)lse[at[r]] - target_logit[r];
  }
  return -1;
}

template <class T>
void cross_entropy_backward(const float* dnll, const T* x, const T* weight, const int64_t* targets,
                            const double* lse, const float* kept, T* dx, T* dweight, float* dx_sum, int64_t all,
                            int64_t channels, int64_t vocabulary, int64_t ignore_index, int threads) {
  const T* none = nullptr;
  const std::vector<int64_t> at = counted(targets, all, ignore_index);
  const int64_t rows = (int64_t)at.size();
  x = gather(x, at, all, channels, threads);
  if (dx && rows < all) dx_sum = (float*)gemm::scratch(gemm::kSum, rows * channels * sizeof(float));
  auto* gradient = (T*)gemm::scratch(gemm::kGradient, rows * kStrip * sizeof(T));
  T* packed_x = nullptr;
  if (dweight) {
    packed_x = (T*)gemm::scratch(gemm::kPackedX, gemm::packed_size<T>(channels, rows) * sizeof(T));
    gemm::pack({x, 1, channels}, channels, rows, packed_x, threads);
  }
  for (int64_t v = 0; v < vocabulary; v += kStrip) {
    const int64_t n = std::min(kStrip, vocabulary - v);
    const T* strip = weight + v * channels;
    const T* packed = kept ? nullptr : packed_strip(strip, n, channels, threads);
    each_task(rows, threads, [&](int64_t row0, int64_t count) {
      const float* logits = kept ? kept + v * rows + row0 * n
                                 : strip_logits(x + row0 * channels, packed, nullptr, count, n, channels);
      for (int64_t r = row0; r < row0 + count; ++r, logits += n) {
        const int64_t row = at[r];
        if (dnll[row] == 0.0f)
          std::memset((void*)(gradient + r * n), 0, n * sizeof(T));
        else
          softmax_gradient(logits, gradient + r * n, n, lse[row], dnll[row], targets[row] - v);
      }
    });
    if (dweight)
      gemm::multiply({gradient, 1, n}, packed_x, n, channels, rows, dweight + v * channels, channels, none,
                     false, threads);
    if (dx) {
      T* right = (T*)gemm::scratch(gemm::kPackedB, gemm::packed_size<T>(channels, n) * sizeof(T));
      gemm::pack({strip, 1, channels}, channels, n, right, threads);
      gemm::multiply({gradient, n, 1}, right, rows, channels, n, dx_sum, channels, none, v > 0, threads);
    }
  }
  if (dx) {
    if (rows < all) std::fill_n(dx, all * channels, from_float<T>(0.0f));
    each_task(rows, threads, [&](int64_t row0, int64_t count) {
      for (int64_t r = row0; r < row0 + count; ++r)
        each_vector(channels, [&](int64_t i, int n) {
          put(dx + at[r] * channels + i, vocabulary ? get(dx_sum + r * channels + i, n) : zero(), n);
        });
    });
  }
}

#define INSTANTIATE(T)                                                                                      \
  template int64_t cross_entropy_forward<T>(const T*, const T*, const int64_t*, float*, double*, float*,    \
                                            int64_t, int64_t, int64_t, int64_t, int);                       \
  template void cross_entropy_backward<T>(const float*, const T*, const T*, const int64_t*, const double*,  \
                                          const float*, T*, T*, float*, int64_t, int64_t, int64_t, int64_t, \
                                          int);
INSTANTIATE(float)
INSTANTIATE(bf16)
