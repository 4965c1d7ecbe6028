// The pool. What threads share is one word, the serial number of the loop and its next task: a thread claims
// the task there by counting the word up, which fails if anything has moved on in between. So the caller never
// waits for a worker that is asleep or has lost its core, only for one in the midst of a task, and a loop costs
// one line of cache going over and one coming back.
#include "parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

namespace parallel {
namespace {

constexpr int kPauses = 8000;  // about 100 us: longer than what Python does between two steps
constexpr int kYields = 20;    // then the core is offered to whoever may be waited for
constexpr int64_t kMostTasks = int64_t{1} << 32;  // of a loop: the lower half of the word

inline void wait_a_little(int spin) {
#if defined(__x86_64__)
  if (spin < kPauses) return __builtin_ia32_pause();
#endif
  std::this_thread::yield();
}

// All but serve() is for the thread that has acquired the pool.
class Pool {
 public:
  bool acquire() { return !busy_.exchange(true, std::memory_order_acquire); }
  void release() { busy_.store(false, std::memory_order_release); }

  void grow(int workers) {
    for (; workers_ < workers; ++workers_) std::thread([this, worker = workers_] { serve(worker); }).detach();
  }

  void wake() {
    calls_.fetch_add(1);
    notify();
  }

  void run(int64_t tasks, int helpers, Body body, void* context) {
    grow(helpers);
    // No task of the loop before is left, so nobody acts on these until the word says so.
    body_.store(body, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    tasks_.store(tasks, std::memory_order_relaxed);
    helpers_.store(helpers, std::memory_order_relaxed);
    finished_.store(0, std::memory_order_relaxed);
    word_.store(((word_.load(std::memory_order_relaxed) >> 32) + 1) << 32);
    notify();
    work(-1);
    for (int spin = 0; finished_.load(std::memory_order_acquire) < tasks; ++spin) wait_a_little(spin);
  }

 private:
  // Does tasks until no loop has one for this thread; returns the word that says so.
  uint64_t work(int worker) {
    int64_t done = 0;
    uint64_t word = word_.load(std::memory_order_acquire);
    for (;;) {
      const Body body = body_.load(std::memory_order_relaxed);
      void* context = context_.load(std::memory_order_relaxed);
      const int64_t tasks = tasks_.load(std::memory_order_relaxed);
      if (worker >= helpers_.load(std::memory_order_relaxed) || (int64_t)(word & 0xffffffffu) >= tasks) break;
      std::atomic_thread_fence(std::memory_order_acquire);  // a claim that succeeds proves what was read
      if (!word_.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel)) continue;
      body(context, (int64_t)(word & 0xffffffffu));
      ++done, ++word;
    }
    if (done) finished_.fetch_add(done, std::memory_order_release);
    return word;
  }

  void serve(int worker) {
    for (;;) {
      const uint64_t calls = calls_.load(), word = work(worker);
      auto news = [&] { return word_.load() != word || calls_.load() != calls; };
      int spin = 0;
      while (spin < kPauses + kYields && !news()) wait_a_little(spin++);
      if (spin < kPauses + kYields) continue;
      std::unique_lock<std::mutex> lock(mutex_);
      sleeping_.fetch_add(1);
      wake_.wait(lock, news);
      sleeping_.fetch_sub(1);
    }
  }

  void notify() {
    if (sleeping_.load() == 0) return;
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }

  // One line for what goes over, one for what comes back, one for what seldom changes.
  alignas(64) std::atomic<uint64_t> word_{0};
  std::atomic<Body> body_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int64_t> tasks_{0};
  std::atomic<int> helpers_{0};
  alignas(64) std::atomic<int64_t> finished_{0};
  alignas(64) std::atomic<int> sleeping_{0};
  std::atomic<uint64_t> calls_{0};
  std::atomic<bool> busy_{false};
  int workers_ = 0;
  std::mutex mutex_;
  std::condition_variable wake_;
};

// Never destroyed: workers may still spin while the process exits. A forked child has none of its parent's
// threads, so it starts over with an empty pool.
Pool* pool = nullptr;

Pool& the_pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
  });
  return *pool;
}

thread_local bool in_region = false;  // this thread holds the pool and is in no loop

}  // namespace

void run(int64_t tasks, int threads, Body body, void* context) {
  const int helpers = (int)std::min<int64_t>(threads, tasks) - 1;
  Pool& team = the_pool();
  const bool ours = std::exchange(in_region, false);
  if (helpers > 0 && tasks < kMostTasks && (ours || team.acquire())) {
    team.run(tasks, helpers, body, context);
    if (!ours) team.release();
  } else {
    for (int64_t i = 0; i < tasks; ++i) body(context, i);
  }
  in_region = ours;
}

Region::Region(int threads) : held_(threads > 1 && !in_region && the_pool().acquire()) {
  if (!held_) return;
  in_region = true;
  the_pool().grow(threads - 1);
  the_pool().wake();
}

Region::~Region() {
  if (!held_) return;
  in_region = false;
  the_pool().release();
}

}  // namespace parallel
