// Work shared by a few short-lived threads.
#pragma once
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace text {

// Calls work(0) here and work(1) ... work(threads - 1) on threads of their own; when all are done, throws what
// the first of them that failed has thrown. No threads are kept: a process that forks between two calls loses
// nothing.
template <class Work>
void on_threads(int threads, Work work) {
  std::mutex lock;
  std::exception_ptr error;
  auto guarded = [&](int t) {
    try {
      work(t);
    } catch (...) {
      std::lock_guard<std::mutex> hold(lock);
      if (!error) error = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; t++) others.emplace_back(guarded, t);
  guarded(0);
  for (auto& thread : others) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace text
