// AdamW over a list of tensors in one call, and the squared norm of a list.
//
// A number costs 16 bytes read and 12 written for about 15 flops: memory is the bound, so all is one pass.
// Where the model is bf16, gradients are read as they are and the parameter is also written rounded in that
// pass. Tensors are cut into chunks, and the chunks of all tensors are shared out together, so that hundreds of
// small tensors cost one loop over the pool. The norm is a double for each chunk, summed over chunks in order.
#include <algorithm>
#include <cmath>
#include <vector>

#include "ops.h"
#include "parallel.h"

using namespace simd;

namespace {

constexpr int64_t kChunk = 1 << 14;  // floats a task

struct Chunk {
  int64_t tensor, begin, end;
};

std::vector<Chunk> chunks_of(const int64_t* sizes, int64_t tensors) {
  std::vector<Chunk> chunks;
  for (int64_t t = 0; t < tensors; ++t)
    for (int64_t i = 0; i < sizes[t]; i += kChunk) chunks.push_back({t, i, std::min(sizes[t], i + kChunk)});
  return chunks;
}

int threads_for(const std::vector<Chunk>& chunks, int threads) { return chunks.size() < 4 ? 1 : threads; }

}  // namespace

template <class T>
void adamw_step(const int64_t* params, const int64_t* grads, const int64_t* exp_avgs,
                const int64_t* exp_avg_sqs, const int64_t* copies, const int64_t* sizes, int64_t tensors,
                double lr, double beta1, double beta2, double eps, double weight_decay, int64_t step,
                double grad_scale, int threads) {
  // v / (1 - b2^t) is folded into the root's scale: one division a number.
  const f32 decay = set((float)(1 - lr * weight_decay)), rate = set((float)(lr / (1 - std::pow(beta1, step))));
  const f32 root_scale = set((float)(1 / std::sqrt(1 - std::pow(beta2, step)))), tiny = set((float)eps);
  const f32 b1 = set((float)beta1), b2 = set((float)beta2), scale = set((float)grad_scale);
  const f32 c1 = set((float)(1 - beta1)), c2 = set((float)(1 - beta2));
  const std::vector<Chunk> chunks = chunks_of(sizes, tensors);
  parallel::parallel_for((int64_t)chunks.size(), threads_for(chunks, threads), [&](int64_t task) {
    const Chunk chunk = chunks[task];
    auto* p = reinterpret_cast<float*>(params[chunk.tensor]);
    auto* grad = reinterpret_cast<const T*>(grads[chunk.tensor]);
    auto* copy = reinterpret_cast<T*>(copies ? copies[chunk.tensor] : 0);
    auto* m = reinterpret_cast<float*>(exp_avgs[chunk.tensor]);
    auto* v = reinterpret_cast<float*>(exp_avg_sqs[chunk.tensor]);
    for (int64_t i = chunk.begin; i < chunk.end; i += kLanes) {
      const int n = (int)std::min<int64_t>(kLanes, chunk.end - i);
      f32 g = load_n(grad + i, n) * scale;
      f32 first = b1 * load_n(m + i, n) + c1 * g, second = b2 * load_n(v + i, n) + c2 * (g * g);
      f32 update = rate * first / (sqrt(second) * root_scale + tiny);
      store_n(m + i, first, n);
      store_n(v + i, second, n);
      const f32 moved = load_n(p + i, n) * decay - update;
      store_n(p + i, moved, n);
      if (copy) store_n(copy + i, moved, n);
    }
  });
}

template <class T>
void sum_of_squares(const int64_t* tensors, const int64_t* sizes, int64_t count, double* out, int threads) {
  const std::vector<Chunk> chunks = chunks_of(sizes, count);
  std::vector<double> partial(chunks.size());
  parallel::parallel_for((int64_t)chunks.size(), threads_for(chunks, threads), [&](int64_t task) {
    const Chunk chunk = chunks[task];
    auto* data = reinterpret_cast<const T*>(tensors[chunk.tensor]);
    // float lanes for a kilobyte at a time, then double: exact enough, and as fast as memory
    double total = 0;
    for (int64_t i = chunk.begin; i < chunk.end;) {
      f32 squares = zero();
      for (int64_t end = std::min(chunk.end, i + 256); i < end; i += kLanes) {
        f32 x = load_n(data + i, (int)std::min<int64_t>(kLanes, end - i));
        squares = fma(x, x, squares);
      }
      total += sum(squares);
    }
    partial[task] = total;
  });
  *out = 0;
  for (double part : partial) *out += part;
}

#define INSTANTIATE(T)                                                                                        \
  template void adamw_step<T>(const int64_t*, const int64_t*, const int64_t*, const int64_t*, const int64_t*, \
                              const int64_t*, int64_t, double, double, double, double, double, int64_t,       \
                              double, int);                                                                   \
  template void sum_of_squares<T>(const int64_t*, const int64_t*, int64_t, double*, int);
INSTANTIATE(float)
INSTANTIATE(bf16)
