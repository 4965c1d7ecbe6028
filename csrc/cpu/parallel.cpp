#include "parallel.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace parallel {
namespace {

struct Job {
  Body body;
  void* context;
  int64_t tasks;
  std::atomic<int64_t> next{0};
  std::atomic<int> finished{0};

  void work() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) body(context, i);
  }
};

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// One worker with one slot. The caller offers a job by writing the slot; the worker takes it by swapping in
// kTaken; an offer not taken in time is withdrawn the same way, so nobody waits for a thread that is still
// waking up.
class Worker {
 public:
  Worker() : thread_([this] { loop(); }) { thread_.detach(); }

  void offer(Job* job) {
    slot_.store(job);
    if (asleep_.load()) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_one();
    }
  }

  // True if the worker never started on the job.
  bool withdraw(Job* job) { return slot_.compare_exchange_strong(job, nullptr); }

 private:
  static constexpr int kSpins = 4000;  // about 50 us
  static Job* taken() { return reinterpret_cast<Job*>(1); }

  void loop() {
    for (;;) {
      Job* job = wait();
      job->work();
      slot_.store(nullptr);
      job->finished.fetch_add(1);
    }
  }

  Job* wait() {
    for (;;) {
      for (int spin = 0; spin < kSpins; ++spin) {
        if (Job* job = take()) return job;
        pause();
      }
      std::unique_lock<std::mutex> lock(mutex_);
      asleep_.store(true);
      wake_.wait(lock, [this] { return slot_.load() != nullptr; });
      asleep_.store(false);
    }
  }

  Job* take() {
    Job* job = slot_.load(std::memory_order_acquire);
    return job && slot_.compare_exchange_strong(job, taken()) ? job : nullptr;
  }

  std::atomic<Job*> slot_{nullptr};
  std::atomic<bool> asleep_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::thread thread_;
};

struct Pool {
  std::mutex busy;
  std::vector<std::unique_ptr<Worker>> workers;
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

}  // namespace

void run(int64_t tasks, int threads, Body body, void* context) {
  int helpers = (int)(threads < tasks ? threads : tasks) - 1;
  Pool& team = the_pool();
  std::unique_lock<std::mutex> busy(team.busy, std::defer_lock);
  if (helpers <= 0 || !busy.try_lock()) {
    for (int64_t i = 0; i < tasks; ++i) body(context, i);
    return;
  }
  while ((int)team.workers.size() < helpers) team.workers.push_back(std::make_unique<Worker>());
  Job job{body, context, tasks};
  for (int w = 0; w < helpers; ++w) team.workers[w]->offer(&job);
  job.work();
  int started = 0;
  for (int w = 0; w < helpers; ++w) started += !team.workers[w]->withdraw(&job);
  for (int spin = 0; job.finished.load() < started; ++spin) spin < 100000 ? pause() : std::this_thread::yield();
}

}  // namespace parallel
