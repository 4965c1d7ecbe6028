// Sampling from logits without a sort: the steps stated in kernels/sample/reference.py, to the bit.
//
// One read of the row finds the largest logit of every 64. The k-th largest of those is at most the k-th
// largest logit, so for top_k only groups that reach it are read again and a list of about k survivors remains;
// its exact k-th is selected. For top_p alone, one pass of exponentials sums the weights; survivors are those
// within e^-8 of the largest if they hold the share (they mostly do), else all with a weight; the threshold is
// selected among them by halving. Weights are whole numbers, so no sum depends on its order.
#include <algorithm>
#include <cmath>
#include <vector>

#include "logsumexp.h"
#include "ops.h"
#include "parallel.h"

using namespace simd;

namespace {

constexpr float kGreedy = 1e-5f;           // temperatures below it
constexpr int64_t kGroup = 64;             // logits that share a maximum
constexpr float kUnit = 1099511627776.0f;  // 2^40: weights are floor(2^40 e^(y - largest))
constexpr float kWeightless = -28.0f;      // e^-28 < 2^-40
constexpr float kNear = -8.0f;
constexpr float kNone = logsumexp::kNone;

struct Candidate {
  float y;
  int32_t id;
  int64_t weight;
};

// Scratch of a thread, kept from row to row.
struct Memory {
  std::vector<float> tops, values;
  std::vector<Candidate> list, order;
};

struct Row {
  const float* x;
  int64_t size;
  float scale;  // 1 / temperature
  Memory& memory;
  float largest = kNone;  // of y = x scale
  bool bad = false;
  bool filtered = false;  // memory.list holds the kept, in order of id; else all are kept

  int64_t groups() const { return (size + kGroup - 1) / kGroup; }
  int64_t end(int64_t group) const { return std::min(size, (group + 1) * kGroup); }
  float y(int64_t i) const { return x[i] * scale; }

  void read() {
    memory.tops.resize(groups());
    bool nan = false;
    float most = kNone;
    for (int64_t g = 0; g < groups(); ++g) {
      f32 top = set(kNone), sum = zero();  // the sum shows a NaN
      int64_t i = g * kGroup;
      auto take = [&](f32 v) {
        top = max(v, top), sum += max(set(0.0f), v);
      };  // max keeps a NaN that comes second
      for (; i + kLanes <= end(g); i += kLanes) take(load(x + i));
      if (i < end(g)) take(load_n(x + i, (int)(end(g) - i), kNone));
      memory.tops[g] = max_lane(top);
      nan |= any_nan(sum);
      most = std::max(most, memory.tops[g]);
    }
    largest = most * scale;
    bad = nan || std::isinf(largest);
  }

  // Fills the list with every y >= bound; `all`: of groups whose tops may lie below it too.
  void gather(float bound) {
    memory.list.clear();
    for (int64_t g = 0; g < groups(); ++g)
      if (memory.tops[g] * scale >= bound)
        for (int64_t i = g * kGroup; i < end(g); ++i)
          if (y(i) >= bound) memory.list.push_back({y(i), (int32_t)i, 0});
    filtered = true;
  }

  void drop_below(float threshold) {
    auto& list = memory.list;
    list.erase(std::remove_if(list.begin(), list.end(), [&](const Candidate& c) { return c.y < threshold; }),
               list.end());
  }

  void keep_top_k(int64_t k) {
    if (k <= 0 || k >= size) return;
    auto kth = [&](std::vector<float>& values) {
      std::nth_element(values.begin(), values.begin() + k - 1, values.end(), std::greater<float>());
      return values[k - 1];
    };
    auto& values = memory.values;
    float bound = kNone;
    if (k <= groups()) {
      values = memory.tops;
      bound = kth(values) * scale;
    }
    gather(bound);
    values.clear();
    for (const Candidate& c : memory.list) values.push_back(c.y);
    drop_below(kth(values));
  }

  // Weights of the list.
  int64_t weigh_list() {
    auto& list = memory.list;
    int64_t total = 0;
    for (size_t i = 0; i < list.size(); i += kLanes) {
      float part[kLanes];
      int n = (int)std::min<size_t>(kLanes, list.size() - i);
      for (int j = 0; j < kLanes; ++j) part[j] = j < n ? list[i + j].y - largest : kNone;
      store(part, exp(load(part)));
      for (int j = 0; j < n; ++j) total += list[i + j].weight = (int64_t)(part[j] * kUnit);
    }
    return total;
  }

  // Weights of one group into w[64]; false if all are 0.
  bool weigh_group(int64_t g, int64_t* w) const {
    if (memory.tops[g] * scale - largest < kWeightless) return false;
    alignas(64) float part[kGroup];
    int64_t first = g * kGroup, n = end(g) - first;
    for (int64_t i = 0; i < kGroup; i += kLanes) {
      f32 v = i + kLanes <= n ? load(x + first + i)
                              : load_n(x + first + i, (int)std::max<int64_t>(0, n - i), kNone);
      store(part + i, exp(v * set(scale) - set(largest)));
    }
    for (int64_t i = 0; i < kGroup; ++i) w[i] = (int64_t)(part[i] * kUnit);
    return true;
  }

  int64_t weigh_all() const {
    int64_t w[kGroup], total = 0;
    for (int64_t g = 0; g < groups(); ++g)
      if (weigh_group(g, w))
        for (int64_t i = 0; i < kGroup; ++i) total += w[i];
    return total;
  }

  void keep_top_p(float p) {
    if (!(p < 1.0f)) return;
    int64_t total;
    if (filtered) {
      total = weigh_list();
    } else {
      total = weigh_all();
      gather(largest + kNear);
      if ((double)weigh_list() < (double)p * (double)total) {
        gather(largest + kWeightless);
        weigh_list();
      }
    }
    // The largest threshold with share enough: halve the list around a middle value until one value is left.
    auto& order = memory.order;
    order = memory.list;
    auto first = order.begin(), last = order.end();
    int64_t above = 0;  // weight of what is larger than [first, last)
    float threshold = largest;
    while (first != last) {
      float pivot = (first + (last - first) / 2)->y;
      auto larger = std::partition(first, last, [&](const Candidate& c) { return c.y > pivot; });
      auto equal = std::partition(larger, last, [&](const Candidate& c) { return c.y == pivot; });
      int64_t with_larger = above, with_equal = 0;
      for (auto c = first; c != larger; ++c) with_larger += c->weight;
      for (auto c = larger; c != equal; ++c) with_equal += c->weight;
      with_equal += with_larger;
      auto enough = [&](int64_t weight) { return (double)weight >= (double)p * (double)total; };
      if (first != larger && enough(with_larger)) {
        last = larger;
      } else {
        threshold = pivot;
        if (enough(with_equal)) break;
        first = equal, above = with_equal;
      }
    }
    drop_below(threshold);
  }

  int64_t pick(float u) {
    int64_t total = filtered ? weigh_list() : weigh_all();
    int64_t steps = (int64_t)((double)u * 16777216.0);
    int64_t target = steps * (total >> 24) + (steps * (total & 0xffffff) >> 24);  // floor(u total)
    if (filtered) {
      for (const Candidate& c : memory.list)
        if ((target -= c.weight) < 0) return c.id;
      return memory.list.front().id;  // u >= 1
    }
    int64_t w[kGroup];
    for (int64_t g = 0; g < groups(); ++g)
      if (weigh_group(g, w))
        for (int64_t i = 0; i < kGroup; ++i)
          if ((target -= w[i]) < 0) return g * kGroup + i;
    return 0;
  }

  int64_t argmax() const {
    for (int64_t g = 0; g < groups(); ++g)
      if (memory.tops[g] == largest) return std::find(x + g * kGroup, x + end(g), largest) - x;
    return -1;
  }

  // Of the kept, in the stated order; what was filtered out would add exact zeros.
  float log_sum_exp() const {
    using logsumexp::kStrands;
    using logsumexp::kTile;
    logsumexp::Row state;
    if (!filtered) {
      alignas(64) float scaled[kTile];
      for (int64_t first = 0; first < size; first += kTile) {
        int64_t n = std::min(kTile, size - first), i = 0;
        for (; i + kLanes <= n; i += kLanes) store(scaled + i, load(x + first + i) * set(scale));
        for (; i < n; ++i) scaled[i] = y(first + i);
        state.add_tile(scaled, n);
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
    if (filtered) {
      const auto& list = memory.list;
      auto found = std::lower_bound(list.begin(), list.end(), id,
                                    [](const Candidate& c, int64_t i) { return c.id < i; });
      if (found == list.end() || found->id != id) return kNone;
    }
    return y(id) - log_sum_exp();
  }
};

Row prepare(const float* logits, int64_t row, int64_t size, float temperature, int64_t top_k, float top_p) {
  static thread_local Memory memory;
  const bool greedy = temperature < kGreedy;
  Row r{logits + row * size, size, greedy ? 1.0f : 1.0f / temperature, memory};
  r.read();
  if (!greedy && !r.bad) {
    r.keep_top_k(top_k);
    r.keep_top_p(top_p);
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
            const float* top_p, int64_t* ids, float* logprobs, int64_t rows, int64_t size, int threads) {
  parallel::parallel_for(rows, threads, [&](int64_t row) {
    Row r = prepare(logits, row, size, temperature[row], top_k[row], top_p[row]);
    ids[row] = r.bad ? -1 : temperature[row] < kGreedy ? r.argmax() : r.pick(u[row]);
    logprobs[row] = r.logprob(ids[row]);
  });
}

void sampled_logprob(const float* logits, const int64_t* ids, const float* temperature, const int32_t* top_k,
                     const float* top_p, float* logprobs, int64_t rows, int64_t size, int threads) {
  parallel::parallel_for(rows, threads, [&](int64_t row) {
    Row r = prepare(logits, row, size, temperature[row], top_k[row], top_p[row]);
    logprobs[row] = r.bad ? NAN : r.logprob(ids[row]);
  });
}

void uniform(const int64_t* seeds, const int64_t* positions, float* u, int64_t rows) {
  for (int64_t i = 0; i < rows; ++i) {
    uint64_t hashed = mix(mix((uint64_t)seeds[i]) + ((uint64_t)positions[i] + 1) * 0x9e3779b97f4a7c15u);
    u[i] = (float)(hashed >> 40) * 0x1p-24f;
  }
}
