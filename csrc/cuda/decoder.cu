// A whole decode step in one kernel that stays: its blocks are all on the card at once, and meet at barriers
// across the card instead of at launches (kernels/decoder).
//
// A layer has five phases with a barrier after each: norm and q/k/v; rotation, keys and values into pages,
// attention; output; norm, gate, up and SwiGLU; down. At the start of a phase every block makes the phase's few
// input rows for itself, in shared memory; then each warp takes rows of the phase's matrix, a multiple of all
// warps apart, reads each number once and multiplies it with all input rows. Before a barrier a warp asks for
// the first of what it will read behind it. Bound by memory, weights and cache once, and by 5 barriers a layer.
//
// A row is summed in an order that depends on nothing but the sizes of the model: not on the other rows, not on
// the number of blocks. Values are rounded where they are when every op is a launch of its own.
#include "common.cuh"
#include "ops.h"

namespace {

constexpr int kPage = 64;         // tokens
constexpr int kSpan = 4 * kPage;  // tokens that a warp attends to
constexpr int kNormWarps = 2;     // that share a row's norm, whatever the block

struct Layer {
  const void *attention_norm, *qkv, *qkv_bias, *q_norm, *k_norm, *out, *mlp_norm, *gate_up, *down;
  void *k_pages, *v_pages;
};

struct Step {
  Layer layers[kDecoderLayers];
  const void *embedding, *norm, *head;
  const int64_t* ids;
  const int32_t *positions, *slots, *table;
  const float* angles;  // (2, positions, D / 2): cosines, then sines
  float *stream, *parts, *logits;
  void *qkv, *act;
  GridBarrier* barrier;
  int layer_count, rows, channels, heads, kv_heads, dim, width, vocabulary, table_width, spans;
  int64_t angle_positions;
  float eps, scale;
};

// What a thread is among all of the card's.
struct Place {
  int lane, warp, warps;  // in the block
  int64_t global, all;    // warp of the card, warps of the card
};
__device__ inline Place place() {
  Place p{(int)(threadIdx.x % kWarp), (int)(threadIdx.x / kWarp), (int)(blockDim.x / kWarp), 0, 0};
  p.global = (int64_t)p.warp * gridDim.x + blockIdx.x;  // neighbours in a matrix go to different SMs
  p.all = (int64_t)p.warps * gridDim.x;
  return p;
}

__device__ inline float warp_sum(float value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}
__device__ inline float warp_max(float value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  return value;
}

template <class T>
__device__ inline float rounded(float x) {
  return to_float(from_float<T>(x));
}

// The residual stream before layer 0 is the embedding; the first output product writes it.
template <class T>
__device__ inline float residual(const Step& s, bool first, int row, int c) {
  if (first) return to_float(((const T*)s.embedding)[s.ids[row] * s.channels + c]);
  return s.stream[(int64_t)row * s.channels + c];
}

// x (rows, C) = the norm of the residual stream, in shared memory. All threads of the block.
template <class T>
__device__ void load_normed(const Step& s, bool first, const void* weight, T* x, float* scratch) {
  Place p = place();
  int at_once = p.warps / kNormWarps, part = p.warp % kNormWarps;
  for (int start = 0; start < s.rows; start += at_once) {
    int row = start + p.warp / kNormWarps;
    float squares = 0.0f;
    if (row < s.rows)
      for (int c = part * kWarp + p.lane; c < s.channels; c += kNormWarps * kWarp) {
        float value = residual<T>(s, first, row, c);
        squares += value * value;
      }
    squares = warp_sum(squares);
    if (p.lane == 0) scratch[p.warp] = squares;
    __syncthreads();
    if (row < s.rows) {
      float total = 0.0f;
      for (int i = 0; i < kNormWarps; ++i) total += scratch[p.warp - part + i];
      float factor = 1.0f / sqrtf(total / s.channels + s.eps);
      for (int c = part * kWarp + p.lane; c < s.channels; c += kNormWarps * kWarp)
        x[row * s.channels + c] =
            from_float<T>(residual<T>(s, first, row, c) * factor * to_float(((const T*)weight)[c]));
    }
    __syncthreads();  // scratch, and in the end x, may be used
  }
}

// x (rows, K) = what lies in memory.
template <class T>
__device__ void load_rows(const T* from, int64_t numbers, T* x) {
  constexpr int N = 16 / sizeof(T);
  for (int64_t i = threadIdx.x * N; i < numbers; i += blockDim.x * N)
    store_pack<T, N>(x + i, load_pack<T, N>(from + i));
  __syncthreads();
}

// x (rows, H D) = attention's spans, folded in order.
template <class T>
__device__ void load_attended(const Step& s, T* x) {
  int64_t numbers = (int64_t)s.heads * s.dim;
  for (int64_t i = threadIdx.x; i < s.rows * numbers; i += blockDim.x) {
    int row = (int)(i / numbers), d = (int)(i % s.dim);
    int used = s.positions[row] / kSpan + 1;
    const float* part = s.parts + i / s.dim * s.spans * (s.dim + 2);
    float most = -INFINITY, sum = 0.0f, weights = 0.0f;
    for (int j = 0; j < used; ++j) most = fmaxf(most, part[(int64_t)j * (s.dim + 2) + s.dim]);
    for (int j = 0; j < used; ++j) {
      const float* here = part + (int64_t)j * (s.dim + 2);
      float weight = expf(here[s.dim] - most);
      sum += weight * here[d];
      weights += weight * here[s.dim + 1];
    }
    x[i] = from_float<T>(sum / weights);
  }
  __syncthreads();
}

// Sums of a row of the matrix with each of R rows of x, in every lane.
template <class T, int R>
__device__ void dot(const T* weights, const T* x, int k, int lane, float (&sums)[R]) {
  constexpr int N = 16 / sizeof(T);
  for (int r = 0; r < R; ++r) sums[r] = 0.0f;
#pragma unroll(R > 2 ? 2 : 4)
  for (int i = lane * N; i < k; i += kWarp * N) {
    Pack<T, N> w = load_pack<T, N>(weights + i);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      Pack<T, N> in = load_pack<T, N>(x + r * k + i);
#pragma unroll
      for (int j = 0; j < N; ++j) sums[r] += to_float(w.value[j]) * to_float(in.value[j]);
    }
  }
  for (int r = 0; r < R; ++r) sums[r] = warp_sum(sums[r]);
}

// Asks for this warp's first row of a matrix (n, k) that is read behind the barrier.
template <class T>
__device__ void ask_ahead(const void* matrix, int64_t n, int k) {
  Place p = place();
  if (p.global >= n) return;
  const char* row = (const char*)((const T*)matrix + p.global * k);
#pragma unroll 1
  for (int64_t byte = p.lane * 128; byte < (int64_t)(k * sizeof(T)); byte += kWarp * 128) prefetch(row + byte);
}

// out (D,) = a head of q or k with its norm, turned by its position. All lanes of the warp.
template <class T>
__device__ void turn(const Step& s, const T* head, const void* weight, int position, int lane, float* out) {
  int half = s.dim / 2;
  float factor = 1.0f;
  if (weight) {
    float squares = 0.0f;
    for (int d = lane; d < s.dim; d += kWarp) squares += to_float(head[d]) * to_float(head[d]);
    factor = 1.0f / sqrtf(warp_sum(squares) / s.dim + s.eps);
  }
  const T* w = (const T*)weight;
  for (int d = lane; d < half; d += kWarp) {
    float a = to_float(head[d]), b = to_float(head[d + half]);
    if (weight) a = a * factor * to_float(w[d]), b = b * factor * to_float(w[d + half]);
    float c = s.angles[(int64_t)position * half + d];
    float sine = s.angles[(s.angle_positions + position) * half + d];
    out[d] = rounded<T>(a * c - b * sine);
    out[d + half] = rounded<T>(b * c + a * sine);
  }
  __syncwarp();
}

// Where a page holds number d of the key or value at `place`; two adjacent ones of 16 bits share a word.
template <class T>
__device__ inline int64_t key_at(int place, int d) {
  return sizeof(T) == 2 ? ((int64_t)(d / 2) * kPage + place) * 2 + d % 2 : (int64_t)d * kPage + place;
}
template <class T>
__device__ inline int64_t value_at(int place, int d, int padded) {
  return sizeof(T) == 2 ? ((int64_t)(place / 2) * padded + d) * 2 + place % 2 : (int64_t)place * padded + d;
}

// One query head's attention to one span of its request: (D sums, the largest score, the sum of weights).
// The token's own key and value come from qkv, so that nobody waits for the pages; one warp writes them there.
template <class T>
__device__ void attend(const Step& s, const Layer& layer, int row, int head, int span, float* mine) {
  constexpr int kMost = kDecoderDim / kWarp;  // numbers of the output in a lane
  int lane = threadIdx.x % kWarp, position = s.positions[row], group = s.heads / s.kv_heads;
  int kv_head = head / group, padded = (s.dim + 15) / 16 * 16;
  const T* qkv = (const T*)s.qkv + (int64_t)row * (s.heads + 2 * s.kv_heads) * s.dim;
  float *q = mine, *own = mine + s.dim;
  __syncwarp();  // mine may still be read
  turn<T>(s, qkv + (int64_t)head * s.dim, layer.q_norm, position, lane, q);
  float most = -INFINITY, weights = 0.0f, sums[kMost] = {};
  int first = span * kSpan, stop = first + kSpan < position ? first + kSpan : position;
  for (int at = first; at < stop; at += kPage) {
    int count = stop - at < kPage ? stop - at : kPage;
    int64_t page = s.table[(int64_t)row * s.table_width + at / kPage] * (int64_t)s.kv_heads + kv_head;
    const T* keys = (const T*)layer.k_pages + page * s.dim * kPage;
    const T* values = (const T*)layer.v_pages + page * padded * kPage;
    float low = 0.0f, high = 0.0f;  // scores of keys `lane` and `lane + 32`
    for (int d = 0; d < s.dim; d += 2) {
      if constexpr (sizeof(T) == 2) {
        Pack<T, 2> a = load_pack<T, 2>(keys + key_at<T>(lane, d));
        Pack<T, 2> b = load_pack<T, 2>(keys + key_at<T>(lane + kWarp, d));
        low += q[d] * to_float(a.value[0]) + q[d + 1] * to_float(a.value[1]);
        high += q[d] * to_float(b.value[0]) + q[d + 1] * to_float(b.value[1]);
      } else {
        for (int e = d; e < d + 2; ++e) {
          low += q[e] * to_float(keys[key_at<T>(lane, e)]);
          high += q[e] * to_float(keys[key_at<T>(lane + kWarp, e)]);
        }
      }
    }
    low = lane < count ? low * s.scale : -INFINITY;
    high = lane + kWarp < count ? high * s.scale : -INFINITY;
    float before = most;
    most = fmaxf(most, warp_max(fmaxf(low, high)));
    float shrink = expf(before - most);
    low = expf(low - most), high = expf(high - most);
    weights = weights * shrink + low + high;
    for (int j = 0; j < kMost; ++j) sums[j] *= shrink;
    for (int t = 0; t < count; ++t) {
      float weight = __shfl_sync(0xffffffffu, t < kWarp ? low : high, t % kWarp);
      for (int j = 0; j < kMost; ++j)
        if (int d = lane + j * kWarp; d < s.dim)
          sums[j] += weight * to_float(values[value_at<T>(t, d, padded)]);
    }
  }
  weights = warp_sum(weights);
  if (position / kSpan == span) {
    const T* value = qkv + (int64_t)(s.heads + s.kv_heads + kv_head) * s.dim;
    turn<T>(s, qkv + (int64_t)(s.heads + kv_head) * s.dim, layer.k_norm, position, lane, own);
    float score = 0.0f;
    for (int d = lane; d < s.dim; d += kWarp) score += q[d] * own[d];
    score = warp_sum(score) * s.scale;
    float before = most;
    most = fmaxf(most, score);
    float shrink = expf(before - most), weight = expf(score - most);
    weights = weights * shrink + weight;
    for (int j = 0; j < kMost; ++j)
      if (int d = lane + j * kWarp; d < s.dim) sums[j] = sums[j] * shrink + weight * to_float(value[d]);
    if (head % group == 0) {
      int64_t page = (int64_t)(s.slots[row] / kPage) * s.kv_heads + kv_head;
      int at = s.slots[row] % kPage;
      for (int d = lane; d < s.dim; d += kWarp) {
        ((T*)layer.k_pages)[page * s.dim * kPage + key_at<T>(at, d)] = from_float<T>(own[d]);
        ((T*)layer.v_pages)[page * padded * kPage + value_at<T>(at, d, padded)] = value[d];
      }
    }
  }
  float* part = s.parts + (((int64_t)row * s.heads + head) * s.spans + span) * (s.dim + 2);
  for (int j = 0; j < kMost; ++j)
    if (int d = lane + j * kWarp; d < s.dim) part[d] = sums[j];
  if (lane == 0) part[s.dim] = most, part[s.dim + 1] = weights;
}

// R: rows that are multiplied at once; those from s.rows on are computed and thrown away.
template <class T, int R>
__global__ void __launch_bounds__(512, 1) decoder_kernel(const __grid_constant__ Step s) {
  SHARED_MEMORY(float, shared);
  Place p = place();
  float* scratch = shared;  // one number a warp
  T* x = (T*)(shared + kWarp);
  float* mine = shared + kWarp + p.warp * 2 * s.dim;  // in attention's phase, in x's place
  int columns = (s.heads + 2 * s.kv_heads) * s.dim, attended = s.heads * s.dim;
  float sums[R], more[R];
  // f(r, sum of row r) by one lane for each row
  auto each_row = [&](auto f) {
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (p.lane == r && r < s.rows) f(r, sums[r]);
  };

  for (int i = 0; i < s.layer_count; ++i) {
    const Layer& layer = s.layers[i];
    load_normed<T>(s, i == 0, layer.attention_norm, x, scratch);
    for (int64_t o = p.global; o < columns; o += p.all) {
      dot<T, R>((const T*)layer.qkv + o * s.channels, x, s.channels, p.lane, sums);
      float bias = layer.qkv_bias ? to_float(((const T*)layer.qkv_bias)[o]) : 0.0f;
      each_row([&](int r, float sum) { ((T*)s.qkv)[(int64_t)r * columns + o] = from_float<T>(sum + bias); });
    }
    ask_ahead<T>(layer.out, s.channels, attended);
    wait_for_all(s.barrier);

    for (int64_t item = p.global; item < (int64_t)s.rows * s.heads * s.spans; item += p.all) {
      int span = (int)(item % s.spans), head = (int)(item / s.spans % s.heads);
      int row = (int)(item / s.spans / s.heads);
      if (span <= s.positions[row] / kSpan) attend<T>(s, layer, row, head, span, mine);
    }
    wait_for_all(s.barrier);

    load_attended<T>(s, x);
    for (int64_t o = p.global; o < s.channels; o += p.all) {
      dot<T, R>((const T*)layer.out + o * attended, x, attended, p.lane, sums);
      each_row([&](int r, float sum) {
        s.stream[(int64_t)r * s.channels + o] = residual<T>(s, i == 0, r, (int)o) + rounded<T>(sum);
      });
    }
    ask_ahead<T>(layer.gate_up, s.width, s.channels);
    wait_for_all(s.barrier);

    load_normed<T>(s, false, layer.mlp_norm, x, scratch);
    for (int64_t o = p.global; o < s.width; o += p.all) {
      dot<T, R>((const T*)layer.gate_up + (s.width + o) * s.channels, x, s.channels, p.lane, more);
      dot<T, R>((const T*)layer.gate_up + o * s.channels, x, s.channels, p.lane, sums);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        float gate = rounded<T>(sums[r]), up = rounded<T>(more[r]);
        sums[r] = gate / (1.0f + expf(-gate)) * up;
      }
      each_row([&](int r, float sum) { ((T*)s.act)[(int64_t)r * s.width + o] = from_float<T>(sum); });
    }
    ask_ahead<T>(layer.down, s.channels, s.width);
    wait_for_all(s.barrier);

    load_rows<T>((const T*)s.act, (int64_t)s.rows * s.width, x);
    for (int64_t o = p.global; o < s.channels; o += p.all) {
      dot<T, R>((const T*)layer.down + o * s.width, x, s.width, p.lane, sums);
      each_row([&](int r, float sum) { s.stream[(int64_t)r * s.channels + o] += rounded<T>(sum); });
    }
    bool last = i + 1 == s.layer_count;
    ask_ahead<T>(last ? s.head : s.layers[i + 1].qkv, last ? s.vocabulary : columns, s.channels);
    wait_for_all(s.barrier);
  }
  load_normed<T>(s, false, s.norm, x, scratch);
  for (int64_t o = p.global; o < s.vocabulary; o += p.all) {
    dot<T, R>((const T*)s.head + o * s.channels, x, s.channels, p.lane, sums);
    each_row([&](int r, float sum) { s.logits[(int64_t)r * s.vocabulary + o] = sum; });
  }
}

}  // namespace

int64_t decoder_shared_bytes(int64_t rows, int64_t longest, int64_t dim, int64_t threads, int64_t bytes) {
  int64_t padded = 1;
  while (padded < rows) padded *= 2;
  int64_t inputs = padded * longest * bytes, heads = threads / kWarp * 2 * dim * (int64_t)sizeof(float);
  return kWarp * (int64_t)sizeof(float) + (inputs > heads ? inputs : heads);
}

template <class T>
int decoder_step(const int64_t* layers, const T* embedding, const T* norm, const T* head, const int64_t* ids,
                 const int32_t* positions, const int32_t* slots, const int32_t* table, const float* angles,
                 float* work, T* narrow, float* logits, uint32_t* barrier, int64_t layer_count, int64_t rows,
                 int64_t channels, int64_t heads, int64_t kv_heads, int64_t dim, int64_t width,
                 int64_t vocabulary, int64_t table_width, int64_t spans, int64_t angle_positions, float eps,
                 float scale, int64_t blocks, int64_t threads, void* stream) {
  Step s{};
  for (int64_t i = 0; i < layer_count; ++i) {
    const int64_t* p = layers + i * 11;
    s.layers[i] = {(const void*)p[0], (const void*)p[1], (const void*)p[2], (const void*)p[3],
                   (const void*)p[4], (const void*)p[5], (const void*)p[6], (const void*)p[7],
                   (const void*)p[8], (void*)p[9],       (void*)p[10]};
  }
  s.embedding = embedding, s.norm = norm, s.head = head, s.ids = ids;
  s.positions = positions, s.slots = slots, s.table = table, s.angles = angles;
  s.stream = work, s.parts = work + rows * channels, s.logits = logits;
  s.qkv = narrow, s.act = narrow + rows * (heads + 2 * kv_heads) * dim;
  s.barrier = (GridBarrier*)barrier;
  s.layer_count = (int)layer_count, s.rows = (int)rows, s.channels = (int)channels, s.heads = (int)heads;
  s.kv_heads = (int)kv_heads, s.dim = (int)dim, s.width = (int)width, s.vocabulary = (int)vocabulary;
  s.table_width = (int)table_width, s.spans = (int)spans, s.angle_positions = angle_positions;
  s.eps = eps, s.scale = scale;
  int64_t longest = channels > width ? channels : width;
  longest = longest > heads * dim ? longest : heads * dim;
  auto kernel = rows > 4   ? decoder_kernel<T, 8>
                : rows > 2 ? decoder_kernel<T, 4>
                : rows > 1 ? decoder_kernel<T, 2>
                           : decoder_kernel<T, 1>;
  return launch_together(kernel, blocks, (int)threads,
                         (size_t)decoder_shared_bytes(rows, longest, dim, threads, sizeof(T)), stream, s);
}

#define DECODER(T)                                                                                           \
  template int decoder_step(const int64_t*, const T*, const T*, const T*, const int64_t*, const int32_t*,    \
                            const int32_t*, const int32_t*, const float*, float*, T*, float*, uint32_t*,     \
                            int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, \
                            int64_t, int64_t, float, float, int64_t, int64_t, void*);
DECODER(float)
DECODER(bf16)
