// What this machine can do at most, for benches to speak in percent of: multiply-adds in registers, and reads
// and copies of memory. Each function does a known amount of work on every thread; the caller takes the time.
#include "ops.h"
#include "parallel.h"

using namespace simd;

namespace {

// Ten independent accumulators hide the latency of two FMA units. They start from different values, or the
// compiler would see that they are one and the same; the asm keeps the chains from being dropped.
constexpr int kChains = 10;

struct Chains {
  f32 acc[kChains];
  Chains() {
    for (int i = 0; i < kChains; ++i) acc[i] = set((float)i);
  }
};

}  // namespace

int64_t ceiling_fma_f32(int64_t rounds, int threads) {
  parallel::parallel_for(threads, threads, [&](int64_t) {
    auto [acc] = Chains();
    f32 a = set(1.0001f), b = set(0.9999f);
    for (int64_t r = 0; r < rounds; ++r)
      for (int i = 0; i < kChains; ++i) acc[i] = fma(a, b, acc[i]);
    for (int i = 0; i < kChains; ++i) asm volatile("" ::"m"(acc[i]));
  });
  return rounds * kChains * kLanes * 2 * threads;
}

int64_t ceiling_dot_bf16(int64_t rounds, int threads) {
  parallel::parallel_for(threads, threads, [&](int64_t) {
    auto [acc] = Chains();
    pairs a = set_pair(0x3f803f80u), b = set_pair(0x3f813f81u);
    for (int64_t r = 0; r < rounds; ++r)
      for (int i = 0; i < kChains; ++i) acc[i] = dot_pairs(acc[i], a, b);
    for (int i = 0; i < kChains; ++i) asm volatile("" ::"m"(acc[i]));
  });
  return rounds * kChains * kLanes * 4 * threads;
}

// Reads `floats` numbers, a contiguous share a thread; returns bytes.
int64_t ceiling_read(const float* data, int64_t floats, int threads) {
  int64_t share = floats / threads / (8 * kLanes) * (8 * kLanes);
  parallel::parallel_for(threads, threads, [&](int64_t t) {
    f32 acc[8] = {};
    for (const float* p = data + t * share; p < data + (t + 1) * share; p += 8 * kLanes)
      for (int i = 0; i < 8; ++i) acc[i] += load(p + i * kLanes);
    for (int i = 0; i < 8; ++i) asm volatile("" ::"m"(acc[i]));
  });
  return share * threads * 4;
}

// Copies `floats` numbers; returns bytes read plus bytes written.
int64_t ceiling_copy(const float* from, float* to, int64_t floats, int threads) {
  int64_t share = floats / threads / kLanes * kLanes;
  parallel::parallel_for(threads, threads, [&](int64_t t) {
    for (int64_t i = t * share; i < (t + 1) * share; i += kLanes) store(to + i, load(from + i));
  });
  return share * threads * 8;
}
