// Sampling from logits without a sort: the steps stated in kernels/sample/reference.py, to the bit.
//
// The row is read in blocks of 64 vectors; one read finds the largest logit of each of a block's columns. The
// k-th largest of these is at most the k-th largest logit, so top_k looks again only into blocks that reach it.
// top_p alone weighs every logit once, into a histogram of 256 steps below the largest, and then looks only at
// the step in which the share is reached. What is kept is a short list in order of id or, where it is long, all
// logits from a threshold on. Weights are whole numbers, so no sum depends on its order.
#include <algorithm>
#include <cmath>
#include <vector>

#include "integers.h"
#include "logsumexp.h"
#include "ops.h"
#include "parallel.h"

using namespace simd;

namespace {

constexpr float kGreedy = 1e-5f;           // temperatures below it
constexpr int64_t kBlock = 64 * kLanes;    // logits
constexpr float kUnit = 1099511627776.0f;  // 2^40: weights are floor(2^40 e^(y - largest))
constexpr float kWeightless = -28.0f;      // e^-28 < 2^-40
constexpr float kHalf = 1048576.0f;        // 2^20
constexpr int kSteps = 256;                // of the histogram,
constexpr float kStepsPerNat = 8.0f;       // which covers 32 nats
constexpr size_t kShort = 4096;            // candidates a list may hold
constexpr float kNone = logsumexp::kNone;

struct Candidate {
  float y;
  int32_t id;
  int64_t weight;
};

// Scratch of a thread, kept from row to row.
struct Memory {
  std::vector<float> tops, block_tops;  // largest y of each column of a block, and of each block
  std::vector<int64_t> block_weights;
  std::vector<Candidate> list, order;
  int64_t histogram[4][kSteps];
};

// Weights of a vector: floor(2^40 e) = 2^20 high + low, without 64-bit lanes.
struct Weights {
  i32 high, low;
  explicit Weights(f32 e) {
    f32 scaled = e * set(kHalf);
    high = __builtin_convertvector(scaled, i32);
    low = __builtin_convertvector((scaled - __builtin_convertvector(high, f32)) * set(kHalf), i32);
  }
  int64_t operator[](int lane) const { return ((int64_t)high[lane] << 20) + low[lane]; }
};

struct Row {
  const float* x;
  int64_t size;
  float scale;  // 1 / temperature
  Memory& memory;
  float largest = kNone;  // of y = x scale
  bool bad = false;
  // What is kept: memory.list if `listed`, else every y >= floor with a weight >= light.
  bool listed = false;
  float floor = kNone;
  double light = 0.0;

  int64_t blocks() const { return ceil_div(size, kBlock); }
  float y(int64_t i) const { return x[i] * scale; }

  // body(i, y) for each vector of a block; beyond the row y is -inf.
  template <class F>
  void each(int64_t block, F&& body) const {
    int64_t i = block * kBlock, end = std::min(size, i + kBlock);
    for (; i + kLanes <= end; i += kLanes) body(i, load(x + i) * set(scale));
    if (i < end) body(i, load_n(x + i, (int)(end - i), kNone) * set(scale));
  }

  void read() {
    memory.tops.resize(blocks() * kLanes);
    memory.block_tops.resize(blocks());
    f32 nan = zero();  // max(0, v) keeps a NaN, so does the sum
    for (int64_t b = 0; b < blocks(); ++b) {
      f32 top[4] = {set(kNone), set(kNone), set(kNone), set(kNone)}, sum[4] = {};
      auto take = [&](int j, f32 v) { top[j] = max(v, top[j]), sum[j] += max(set(0.0f), v); };
      int64_t i = b * kBlock, end = std::min(size, i + kBlock);
      for (; i + 4 * kLanes <= end; i += 4 * kLanes)
        for (int j = 0; j < 4; ++j) take(j, load(x + i + j * kLanes));
      for (; i < end; i += kLanes) take(0, load_n(x + i, (int)std::min<int64_t>(kLanes, end - i), kNone));
      f32 most = max(max(top[0], top[1]), max(top[2], top[3])) * set(scale);
      nan += (sum[0] + sum[1]) + (sum[2] + sum[3]);
      store(memory.tops.data() + b * kLanes, most);
      memory.block_tops[b] = max_lane(most);
      largest = std::max(largest, memory.block_tops[b]);
    }
    bad = any_nan(nan) || std::isinf(largest);
  }

  // The list becomes every y >= bound, in order of id; false, and nothing is listed, if that is too long.
  bool gather(float bound, size_t limit = kShort) {
    auto& list = memory.list;
    list.clear();
    for (int64_t b = 0; b < blocks() && list.size() <= limit; ++b) {
      if (memory.block_tops[b] < bound) continue;
      each(b, [&](int64_t i, f32 v) {
        for_lanes(v >= set(bound), [&](int lane) {
          if (i + lane < size) list.push_back({v[lane], (int32_t)(i + lane), 0});
        });
      });
    }
    return list.size() <= limit;
  }

  void drop_below(float threshold) {
    auto& list = memory.list;
    list.erase(std::remove_if(list.begin(), list.end(), [&](const Candidate& c) { return c.y < threshold; }),
               list.end());
  }

  // The k-th largest y, or any number between it and the next one above which no other lies; count(t): how many
  // reach t. Halves the numbers between -inf and the largest by their bits.
  template <class F>
  float kth(int64_t k, F&& count) const {
    auto number = [](int32_t key) {  // keys have the order of the numbers
      int32_t bits = key ^ ((key >> 31) & 0x7fffffff);
      float value;
      std::memcpy(&value, &bits, 4);
      return value;
    };
    int32_t bits;
    float most = largest + 0.0f;  // +0 where it is -0
    std::memcpy(&bits, &most, 4);
    int64_t low = -0x7f800001ll, high = (int64_t)(bits ^ ((bits >> 31) & 0x7fffffff)) + 1;  // low: -inf
    while (high - low > 1) {
      int64_t middle = (low + high) >> 1, n = count(number((int32_t)middle));
      if (n >= k) low = middle;
      if (n < k) high = middle;
      if (n == k) break;
    }
    return number((int32_t)low);
  }

  void keep_top_k(int64_t k) {
    if (k <= 0 || k >= size) return;
    const auto& tops = memory.tops;
    float bound = kNone;
    if (k <= (int64_t)tops.size() / 2)
      bound = kth(k, [&](float t) {
        i32 n = {};
        for (size_t i = 0; i < tops.size(); i += kLanes) n -= load(tops.data() + i) >= set(t);
        return total(n);
      });
    if (bound > kNone && gather(bound)) {
      listed = true;
      const auto& list = memory.list;
      drop_below(kth(k, [&](float t) {
        return std::count_if(list.begin(), list.end(), [&](const Candidate& c) { return c.y >= t; });
      }));
      return;
    }
    floor = kth(k, [&](float t) {
      int64_t n = 0;
      for (int64_t b = 0; b < blocks(); ++b) {
        if (memory.block_tops[b] < t) continue;
        i32 here = {};
        each(b, [&](int64_t, f32 v) { here -= v >= set(t); });
        n += total(here);
      }
      return n;
    });
    listed = gather(floor);
  }

  // Weights of the list.
  int64_t weigh_list() {
    auto& list = memory.list;
    int64_t sum = 0;
    for (size_t i = 0; i < list.size(); i += kLanes) {
      float part[kLanes];
      int n = (int)std::min<size_t>(kLanes, list.size() - i);
      for (int j = 0; j < kLanes; ++j) part[j] = j < n ? list[i + j].y - largest : kNone;
      Weights w(exp(load(part)));
      for (int j = 0; j < n; ++j) sum += list[i + j].weight = w[j];
    }
    return sum;
  }

  // body(i, y, weights of the kept) for each vector of a block; false if none weighs anything.
  template <class F>
  bool each_weight(int64_t block, F&& body) const {
    if (memory.block_tops[block] - largest < kWeightless || memory.block_tops[block] < floor) return false;
    each(block, [&](int64_t i, f32 v) {
      Weights w(v >= set(floor) ? exp(v - set(largest)) : zero());
      if (light > 0.0)
        for (int lane = 0; lane < kLanes; ++lane)
          if ((double)w[lane] < light) w.high[lane] = w.low[lane] = 0;
      body(i, v, w);
    });
    return true;
  }

  // The weight of all that is kept, and of each block.
  int64_t weigh_blocks(bool histogram = false) {
    int64_t sum = 0;
    memory.block_weights.assign(blocks(), 0);
    if (histogram) std::fill(memory.histogram[0], memory.histogram[0] + 4 * kSteps, 0);
    for (int64_t b = 0; b < blocks(); ++b) {
      i32 high = {}, low = {};
      each_weight(b, [&](int64_t, f32 v, const Weights& w) {
        high += w.high, low += w.low;
        if (histogram) {
          struct {
            i32 step, high, low;
          } lanes{step_of(v), w.high, w.low};
          int32_t numbers[3][kLanes];
          std::memcpy(numbers, &lanes, sizeof numbers);
          for (int j = 0; j < kLanes; ++j)
            memory.histogram[j % 4][numbers[0][j]] += ((int64_t)numbers[1][j] << 20) + numbers[2][j];
        }
      });
      sum += memory.block_weights[b] = (total(high) << 20) + total(low);
    }
    return sum;
  }

  i32 step_of(f32 v) const {
    return __builtin_convertvector(min(set(kSteps - 1.0f), (set(largest) - v) * set(kStepsPerNat)), i32);
  }

  void keep_top_p(float p) {
    if (!(p < 1.0f)) return;
    auto& order = memory.order;
    int64_t sum, above = 0;  // weight of what is larger than anything in `order`
    if (listed) {
      sum = weigh_list();
      order = memory.list;
    } else {
      sum = weigh_blocks(true);
      int step = 0;
      for (;; ++step) {
        int64_t here = 0;
        for (auto& part : memory.histogram) here += part[step];
        if (step == kSteps - 1 || (double)(above + here) >= (double)p * (double)sum) break;
        above += here;
      }
      order.clear();
      for (int64_t b = 0; b < blocks(); ++b)
        each_weight(b, [&](int64_t i, f32 v, const Weights& w) {
          for_lanes((step_of(v) == step - i32{}) & (v >= set(floor)),
                    [&](int lane) { order.push_back({v[lane], (int32_t)(i + lane), w[lane]}); });
        });
    }
    float threshold = share(above, (double)p * (double)sum);
    if (listed) return drop_below(threshold);
    floor = std::max(floor, threshold);
    listed = gather(floor);
  }

  // The largest y of memory.order with which the weights reach `wanted`: halves it around a middle value.
  float share(int64_t above, double wanted) {
    auto first = memory.order.begin(), last = memory.order.end();
    float threshold = largest;
    while (first != last) {
      float pivot = (first + (last - first) / 2)->y;
      auto larger = std::partition(first, last, [&](const Candidate& c) { return c.y > pivot; });
      auto equal = std::partition(larger, last, [&](const Candidate& c) { return c.y == pivot; });
      int64_t with_larger = above, with_equal = 0;
      for (auto c = first; c != larger; ++c) with_larger += c->weight;
      for (auto c = larger; c != equal; ++c) with_equal += c->weight;
      with_equal += with_larger;
      if (first != larger && (double)with_larger >= wanted) {
        last = larger;
      } else {
        threshold = pivot;
        if ((double)with_equal >= wanted) break;
        first = equal, above = with_equal;
      }
    }
    return threshold;
  }

  void keep_min_p(float p) {
    if (!(p > 0.0f)) return;
    light = (double)p * (double)kUnit;
    if (!listed) {  // the logarithm only narrows the search
      float bound = largest + std::max(std::log(p) - 1e-3f, kWeightless);
      listed = gather(std::max(floor, bound));
    }
    if (!listed) return;
    weigh_list();
    auto& list = memory.list;
    list.erase(
        std::remove_if(list.begin(), list.end(), [&](const Candidate& c) { return (double)c.weight < light; }),
        list.end());
  }

  int64_t pick(float u) {
    int64_t sum = listed ? weigh_list() : weigh_blocks();
    int64_t steps = (int64_t)((double)u * 16777216.0);
    int64_t target = steps * (sum >> 24) + (steps * (sum & 0xffffff) >> 24);  // floor(u sum)
    if (listed) {
      for (const Candidate& c : memory.list)
        if ((target -= c.weight) < 0) return c.id;
      return memory.list.front().id;  // u >= 1
    }
    int64_t block = 0, id = 0;
    while (block < blocks() - 1 && target >= memory.block_weights[block])
      target -= memory.block_weights[block++];
    each_weight(block, [&](int64_t i, f32, const Weights& w) {
      for (int lane = 0; lane < kLanes && target >= 0; ++lane)
        if ((target -= w[lane]) < 0) id = i + lane;
    });
    return id;
  }

  int64_t argmax() const {
    for (int64_t b = 0; b < blocks(); ++b)
      if (memory.block_tops[b] == largest) {
        int64_t first = b * kBlock, end = std::min(size, first + kBlock);
        return std::find_if(x + first, x + end, [&](float v) { return v * scale == largest; }) - x;
      }
    return -1;
  }

  bool keeps(float v) const {
    return v >= floor && (light == 0.0 || (double)Weights(exp(set(v - largest)))[0] >= light);
  }

  // Of the kept, in the stated order; what was filtered out would add exact zeros.
  float log_sum_exp() const {
    using logsumexp::kStrands;
    using logsumexp::kTile;
    logsumexp::Row state;
    if (!listed) {
      alignas(64) float kept[kTile + kLanes];
      for (int64_t first = 0; first < size; first += kTile) {
        int64_t n = std::min(kTile, size - first);
        for (int64_t i = 0; i < n; i += kLanes) {
          int used = (int)std::min<int64_t>(kLanes, n - i);
          f32 v = load_n(x + first + i, used, kNone) * set(scale);
          store(kept + i, v >= set(floor) ? v : set(kNone));
        }
        if (light > 0.0)
          for (int64_t i = 0; i < n; ++i)
            if (!keeps(kept[i])) kept[i] = kNone;
        state.add_tile(kept, n);
      }
      return (float)state.value();
    }
    const auto& list = memory.list;
    for (size_t i = 0; i < list.size();) {
      const int64_t tile = list[i].id / kTile;
      size_t last = i;
      float most = kNone, strand[kStrands] = {};
      for (; last < list.size() && list[last].id / kTile == tile; ++last) most = std::max(most, list[last].y);
      for (; i < last; ++i) strand[list[i].id % kStrands] += logsumexp::exp1(list[i].y - most);
      state.merge(most, logsumexp::add_strands(strand));
    }
    return (float)state.value();
  }

  float logprob(int64_t id) const {
    if (id < 0 || id >= size) return NAN;
    if (listed) {
      const auto& list = memory.list;
      auto found = std::lower_bound(list.begin(), list.end(), id,
                                    [](const Candidate& c, int64_t i) { return c.id < i; });
      if (found == list.end() || found->id != id) return kNone;
    } else if (!keeps(y(id))) {
      return kNone;
    }
    return y(id) - log_sum_exp();
  }

  // body(lane) for each lane of a comparison that holds.
  template <class F>
  static void for_lanes(i32 mask, F&& body) {
    for (uint32_t bits = lanes_of(mask); bits; bits &= bits - 1) body(__builtin_ctz(bits));
  }

  static int64_t total(i32 v) {
    int64_t sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += v[lane];
    return sum;
  }
};

// One parameter of each kind a row.
struct Parameters {
  const float* temperature;
  const int32_t* top_k;
  const float *top_p, *min_p;
};

Row prepare(const float* logits, int64_t row, int64_t size, const Parameters& p) {
  static thread_local Memory memory;
  const bool greedy = p.temperature[row] < kGreedy;
  Row r{logits + row * size, size, greedy ? 1.0f : 1.0f / p.temperature[row], memory};
  r.read();
  if (!greedy && !r.bad) {
    r.keep_top_k(p.top_k[row]);
    r.keep_top_p(p.top_p[row]);
    r.keep_min_p(p.min_p[row]);
  }
  return r;
}

inline uint64_t mix(uint64_t z) {
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

}  // namespace

void sample(const float* logits, const float* u, const float* temperature, const int32_t* top_k,
            const float* top_p, const float* min_p, int64_t* ids, float* logprobs, int64_t rows, int64_t size,
            int threads) {
  const Parameters p{temperature, top_k, top_p, min_p};
  parallel::parallel_for(rows, threads, [&](int64_t row) {
    Row r = prepare(logits, row, size, p);
    ids[row] = r.bad ? -1 : temperature[row] < kGreedy ? r.argmax() : r.pick(u[row]);
    if (logprobs) logprobs[row] = r.logprob(ids[row]);
  });
}

void sampled_logprob(const float* logits, const int64_t* ids, const float* temperature, const int32_t* top_k,
                     const float* top_p, const float* min_p, float* logprobs, int64_t rows, int64_t size,
                     int threads) {
  const Parameters p{temperature, top_k, top_p, min_p};
  parallel::parallel_for(rows, threads, [&](int64_t row) {
    Row r = prepare(logits, row, size, p);
    logprobs[row] = r.bad ? NAN : r.logprob(ids[row]);
  });
}

void top_logprobs(const float* logits, int64_t* ids, float* logprobs, int64_t rows, int64_t size, int64_t n,
                  int threads) {
  parallel::parallel_for(rows, threads, [&](int64_t row) {
    static thread_local Memory memory;
    Row r{logits + row * size, size, 1.0f, memory};
    r.read();
    if (r.bad) {
      for (int64_t i = row * n; i < (row + 1) * n; ++i) ids[i] = -1, logprobs[i] = NAN;
      return;
    }
    const float all = r.log_sum_exp();
    r.keep_top_k(n);
    if (!r.listed) r.gather(r.floor, (size_t)size);
    auto& list = memory.list;
    std::partial_sort(list.begin(), list.begin() + n, list.end(), [](const Candidate& a, const Candidate& b) {
      return a.y > b.y || (a.y == b.y && a.id < b.id);
    });
    for (int64_t i = 0; i < n; ++i) ids[row * n + i] = list[i].id, logprobs[row * n + i] = list[i].y - all;
  });
}

void adjust_logits(const float* logits, const int32_t* ids, const int32_t* starts, const float* repetition,
                   const float* added, const int32_t* allowed, float* out, int64_t rows, int64_t size,
                   int threads) {
  u32 lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = 1u << i;
  parallel::parallel_for(rows, threads, [&](int64_t row) {
    const float* x = logits + row * size;
    float* y = out + row * size;
    std::memcpy(y, x, size * sizeof(float));
    for (int32_t e = starts[row]; e < starts[row + 1]; ++e) {
      float v = x[ids[e]];
      y[ids[e]] = (v > 0 ? v * (1.0f / repetition[e]) : v * repetition[e]) + added[e];
    }
    if (!allowed) return;
    const int32_t* words = allowed + row * ceil_div(size, 32);
    for (int64_t i = 0; i < size; i += kLanes) {
      const uint32_t bits = (uint32_t)words[i / 32] >> (i % 32);
      if ((bits & ((1ull << kLanes) - 1)) == ((1ull << kLanes) - 1)) continue;
      int n = (int)std::min<int64_t>(kLanes, size - i);
      store_n(y + i, (lane & (bits - u32{})) != 0 ? load_n(y + i, n) : set(kNone), n);
    }
  });
}

void uniform(const int64_t* seeds, const int64_t* positions, float* u, int64_t rows) {
  parallel::parallel_for(1, 1, [&](int64_t) {
    for (int64_t i = 0; i < rows; ++i) {
      uint64_t hashed = mix(mix((uint64_t)seeds[i]) + ((uint64_t)positions[i] + 1) * 0x9e3779b97f4a7c15u);
      u[i] = (float)(hashed >> 40) * 0x1p-24f;
    }
  });
}
