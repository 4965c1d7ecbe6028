// Hopper's engines on the CPU, as PTX documents them: what csrc/cuda/hopper.cuh is made of. Test-only.
//
// Everything asynchronous is as late as it may be. A panel that is copied is spoilt (NaN) when the copy is
// asked for, under whoever still reads what was there, and filled when somebody waits for its barrier. The sums
// of products hold NaN from their start until they are waited for; their factors are looked at again then, and
// must not have changed.
#pragma once

namespace shim {

[[noreturn]] inline void stop(const char* why) {
  std::fprintf(stderr, "host shim: %s (block %u, thread %u)\n", why, block->block_index.x, me().thread_index.x);
  std::abort();
}

// Shared memory starts at no round address, as on a card, where what is static precedes it.
constexpr unsigned kWindow = 16;
inline unsigned shared_address(const void* p) {
  return (unsigned)(static_cast<const char*>(p) - block->shared.data()) + kWindow;
}
inline char* at_shared(unsigned address) { return block->shared.data() + (address - kWindow); }
constexpr unsigned kPanelRow = 128;  // bytes
// Chunks of 16 bytes, exchanged within 128 by the number of these modulo 8.
inline unsigned swizzled(unsigned address) { return address ^ (address >> 7 & 7) << 4; }

// ---- mbarrier

struct PhaseBarrier {
  int32_t bytes;  // announced and not yet there
  uint16_t arrivals;
  uint16_t left : 15, parity : 1;  // of the phase under way
};
static_assert(sizeof(PhaseBarrier) == 8, "as large as a card's");

// Something has come in; whether it ended the phase.
inline bool ends_phase(PhaseBarrier* barrier) {
  ++block->progress;
  if (barrier->left || barrier->bytes) return false;
  barrier->left = barrier->arrivals;
  barrier->parity ^= 1;
  return true;
}
inline void init_phases(PhaseBarrier* barrier, int arrivals) {
  *barrier = {0, (uint16_t)arrivals, (uint16_t)arrivals, 0};
}
inline void arrive_with(PhaseBarrier* barrier, int bytes) {
  change_and_wait(
      [&] {
        if (!barrier->left) stop("more arrivals at a barrier than it was made for");
        barrier->bytes += bytes;
        --barrier->left;
        return ends_phase(barrier);
      },
      at_once);
}

// ---- cp.async.bulk.tensor

struct TensorMap {
  char* data;
  int64_t sizes[3];  // columns, heads, rows
  int panel_rows;
  unsigned number;  // bytes
  size_t bytes() const { return panel_rows * kPanelRow; }
};
// One panel of shared memory and its place in a tensor; the barrier's bytes are those of a copy from there.
struct PanelCopy {
  PhaseBarrier* barrier;
  TensorMap map;
  unsigned panel;
  int64_t corner[3];
  unsigned batch;         // of a copy to there
  bool adds;              // float, to what is there
  std::vector<char> was;  // and the panel when it began, which must not change

  // Calls f(number in shared memory, its place in the tensor or null outside of it).
  template <class F>
  void each(F f) const {
    for (int r = 0; r < map.panel_rows; ++r)
      for (unsigned c = 0; c < kPanelRow / map.number; ++c) {
        int64_t place[3] = {corner[0] + c, corner[1], corner[2] + r};
        bool inside = true;
        for (int i = 0; i < 3; ++i) inside = inside && place[i] >= 0 && place[i] < map.sizes[i];
        int64_t index = (place[2] * map.sizes[1] + place[1]) * map.sizes[0] + place[0];
        f(at_shared(swizzled(panel + r * kPanelRow + c * map.number)),
          inside ? map.data + index * map.number : nullptr);
      }
  }
};
inline void check_panel(unsigned panel, const TensorMap& map) {
  if (panel % 1024 || (uintptr_t)map.data % 16 || map.sizes[0] * map.number % 16)
    stop("a copy from or to an address that the engine does not take");
}

inline void copy_panel(void* panel, const TensorMap& map, int column, int head, int row,
                       PhaseBarrier* barrier) {
  check_panel(shared_address(panel), map);
  change_and_wait(
      [&] {
        std::memset(panel, 0xff, map.bytes());
        block->panels.push_back({barrier, map, shared_address(panel), {column, head, row}, 0, false, {}});
        return true;  // who waits for the barrier fetches the panel
      },
      at_once);
}
inline void finish(const PanelCopy& copy) {
  copy.each([&](char* number, const char* place) {
    if (place)
      std::memcpy(number, place, copy.map.number);
    else
      std::memset(number, 0, copy.map.number);
  });
  copy.barrier->bytes -= (int)copy.map.bytes();
}
inline void wait_for_phase(PhaseBarrier* barrier, int parity) {
  auto fetch = [&] {
    bool ended = false;
    for (size_t i = 0; i < block->panels.size();) {
      if (block->panels[i].barrier != barrier) {
        ++i;
        continue;
      }
      finish(block->panels[i]);
      ended = ends_phase(barrier);
      block->panels.erase(block->panels.begin() + i);
    }
    return ended;
  };
  change_and_wait([] { return false; },
                  [&] {
                    if (barrier->parity == parity && fetch()) wake_others();
                    return barrier->parity != parity;
                  });
}

// To memory: a panel is read when its batch is waited for, and must be then as it was.
inline void store_panel(const void* panel, const TensorMap& map, int column, int head, int row,
                        bool adds = false) {
  check_panel(shared_address(panel), map);
  const char* first = static_cast<const char*>(panel);
  me().stores.push_back({nullptr,
                         map,
                         shared_address(panel),
                         {column, head, row},
                         me().store_batch,
                         adds,
                         std::vector<char>(first, first + map.bytes())});
}
inline void end_stores() { ++me().store_batch; }
inline void wait_for_stores(unsigned left) {
  let_others_run();  // these may be the ones that are not to touch a panel yet
  auto& stores = me().stores;
  for (; !stores.empty() && stores.front().batch + left < me().store_batch; stores.erase(stores.begin())) {
    const PanelCopy& copy = stores.front();
    if (std::memcmp(at_shared(copy.panel), copy.was.data(), copy.was.size()))
      stop("a panel changed while it was read");
    copy.each([&](const char* number, char* place) {
      if (!place) return;
      if (copy.adds) {
        float added;
        std::memcpy(&added, number, sizeof added);
        atomicAdd(reinterpret_cast<float*>(place), added);
      } else {
        std::memcpy(place, number, copy.map.number);
      }
    });
  }
}
// A thread is at its end.
inline void check_end() {
  if (!me().stores.empty()) stop("a thread ends before its panels are read");
}

// ---- bar.sync and bar.arrive

inline void wait_for_others(int id, int threads) {
  Barrier& barrier = block->named[id];
  unsigned round = 0;
  change_and_wait([&] { return barrier.size = threads, round = barrier.round, join(barrier); },
                  [&] { return barrier.round != round; });
}
inline void tell_others(int id, int threads) {
  Barrier& barrier = block->named[id];
  change_and_wait([&] { return barrier.size = threads, join(barrier); }, at_once);
}

// ---- wgmma

inline float from_bf16(uint16_t bits) {
  uint32_t word = (uint32_t)bits << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

// A factor in shared memory: number k (of 16) of row or column `outer`.
struct Described {
  unsigned start, panels_apart, eights_apart;  // bytes
  bool columns;                                // K runs across the panel's columns of numbers
  Described(uint64_t bits, bool columns) : columns(columns) {
    if (bits >> 62 != 1 || bits >> 49 & 7) stop("a factor that is not swizzled by 128 bytes");
    start = (bits & 0x3fff) << 4, panels_apart = (bits >> 16 & 0x3fff) << 4,
    eights_apart = (bits >> 32 & 0x3fff) << 4;
  }
  uint16_t bits(unsigned outer, unsigned k) const {
    unsigned address =
        columns ? start + outer / 64 * panels_apart + outer % 64 * 2 + k / 8 * eights_apart + k % 8 * 128
                : start + outer / 8 * eights_apart + outer % 8 * 128 + k * 2;
    uint16_t value;
    std::memcpy(&value, at_shared(swizzled(address)), 2);
    return value;
  }
  uint64_t all(unsigned first, unsigned count) const {
    uint64_t sum = 0;
    for (unsigned outer = first; outer < first + count; ++outer)
      for (unsigned k = 0; k < 16; ++k) sum = sum * 31 + bits(outer, k);
    return sum;
  }
};

inline void remember(std::function<uint64_t()> read) { me().factors.push_back({read, read(), me().batch}); }
inline void begin_products() { me().begun = true; }
inline void end_batch() {
  ++me().batch;
  me().begun = false;
  wait(my_warp());
}
inline void wait_for_products(unsigned left) {
  let_others_run();  // these may be the ones that are not to touch a factor yet
  Thread& thread = me();
  auto over = [&](unsigned batch) { return batch + left < thread.batch; };
  for (const Factor& factor : thread.factors)
    if (over(factor.batch) && factor.read() != factor.was) stop("a factor changed while its product ran");
  for (const Sums& sums : thread.sums) {
    if (!over(sums.batch)) continue;
    for (size_t i = 0; i < sums.values.size(); ++i)
      if (sums.place[i] == sums.place[i]) stop("sums were written while a product ran");
    std::memcpy(sums.place, sums.values.data(), sums.values.size() * sizeof(float));
  }
  auto drop = [&](auto& list) {
    size_t kept = 0;
    for (auto& item : list)
      if (!over(item.batch)) std::swap(list[kept++], item);
    list.erase(list.begin() + kept, list.end());
  };
  drop(thread.factors);
  drop(thread.sums);
  wait(my_warp());  // collective
}

// The sums at a place, as the products under way leave them.
inline std::vector<float>& running(float* place, size_t count, bool onto) {
  Thread& thread = me();
  if (!thread.begun) stop("a product before begin_products");
  for (Sums& sums : thread.sums)
    if (sums.place == place) {
      sums.batch = thread.batch;
      if (!onto) std::fill(sums.values.begin(), sums.values.end(), 0.0f);
      return sums.values;
    }
  std::vector<float> values(count, 0.0f);
  if (onto) std::memcpy(values.data(), place, count * sizeof(float));
  std::fill(place, place + count, NAN);
  thread.sums.push_back({place, values, thread.batch});
  return thread.sums.back().values;
}

// left(row, k) and right(column, k), rows counted in this warp's 16.
template <class Left, class Right>
void add_products(std::vector<float>& sums, Left left, Right right) {
  unsigned lane = me().thread_index.x % kWarp;
  for (size_t i = 0; i < sums.size(); ++i)
    for (unsigned k = 0; k < 16; ++k)
      sums[i] += left(lane / 4 + i % 4 / 2 * 8, k) * right(i / 4 * 8 + lane % 4 * 2 + i % 2, k);
}

template <int N>
void multiply_panels(float (&d)[N][4], uint64_t a, uint64_t b, bool onto, bool a_across, bool b_across) {
  struct Given {
    uint64_t a, b;
  };
  auto all = exchange(Given{a, b});
  if (all[0].a != a || all[0].b != b) stop("threads of a warp describe different factors");
  unsigned first = me().thread_index.x / kWarp % 4 * 16;
  Described left(a, a_across), right(b, b_across);
  if (me().thread_index.x % kWarp == 0)
    remember([=] { return left.all(first, 16) * 31 + right.all(0, 8 * N); });
  add_products(
      running(&d[0][0], 4 * N, onto),
      [&](unsigned r, unsigned k) { return from_bf16(left.bits(first + r, k)); },
      [&](unsigned c, unsigned k) { return from_bf16(right.bits(c, k)); });
}

template <int N>
void multiply_columns(float (&d)[N][4], const uint32_t (&a)[4], uint64_t b, bool onto) {
  struct Given {
    uint32_t a[4];
    uint64_t b;
  };
  auto all = exchange(Given{{a[0], a[1], a[2], a[3]}, b});
  if (all[0].b != b) stop("threads of a warp describe different factors");
  Described right(b, true);
  const uint32_t* registers = a;
  remember([=] {
    uint64_t sum = 0;
    for (int i = 0; i < 4; ++i) sum = sum * 31 + registers[i];
    return sum;
  });
  if (me().thread_index.x % kWarp == 0) remember([=] { return right.all(0, 8 * N); });
  add_products(
      running(&d[0][0], 4 * N, onto),
      [&](unsigned r, unsigned k) {
        return from_bf16((uint16_t)(all[r % 8 * 4 + k % 8 / 2].a[r / 8 + k / 8 * 2] >> 16 * (k % 2)));
      },
      [&](unsigned c, unsigned k) { return from_bf16(right.bits(c, k)); });
}

}  // namespace shim
