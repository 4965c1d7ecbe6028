// A small pool of threads for loops whose iterations do not depend on each other.
//
//   parallel_for(tasks, threads, [&](int64_t i) { ... });
//   parallel_shares(tasks, threads, [&](int64_t i) { ... });
//
// The caller works too. Tasks are claimed one at a time, so a slow core takes fewer; since each output
// belongs to exactly one task, results never depend on the number of threads. Workers spin for some hundred
// microseconds after a loop (the next op of a step usually comes at once) and then sleep. A loop started while
// the pool is busy (from another Python thread, or from inside a task) runs on its caller alone.
//
// parallel_for gives out tasks in turn. parallel_shares divides them into as many shares of neighbours as there
// are threads: each takes its own, in order, then helps with the others from their ends. So what follows a task
// is most likely its neighbour, and where the tasks of several loops are the same rows, a thread finds in its
// caches what it wrote before: a line that another core has written costs several times one from L3.
//
//   Region region(threads);    the caller's loops, one after the other, until it ends
//
// keeps the pool for a sequence of loops and wakes the workers before the first of them.
//
//   team(threads, [&] { ... });
//
// has all threads run the same, each of them the whole of it: a sequence of small loops without a hand-over to
// each, as a decode step is one. There a loop's tasks are shared out by their numbers, and behind it all wait
// for all. So what stands between loops is computed by every member, and may read what loops have written but
// write to memory of its own thread only (its stack, gemm::scratch); what is written for all belongs in a loop,
// of one task if need be. A member that has lost its core keeps the others waiting, who then offer theirs.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

namespace parallel {

using Body = void (*)(void* context, int64_t index);
void run(int64_t tasks, int threads, bool shared_out, Body body, void* context);

template <class F>
void run(int64_t tasks, int threads, bool shared_out, F&& body) {
  using Function = std::remove_reference_t<F>;
  run(
      tasks, threads, shared_out,
      [](void* context, int64_t index) { (*static_cast<Function*>(context))(index); },
      const_cast<std::remove_const_t<Function>*>(&body));
}

template <class F>
void parallel_for(int64_t tasks, int threads, F&& body) {
  run(tasks, threads, false, std::forward<F>(body));
}

template <class F>
void parallel_shares(int64_t tasks, int threads, F&& body) {
  run(tasks, threads, true, std::forward<F>(body));
}

void run_team(int threads, void (*body)(void* context), void* context);

// What a member throws, team() throws when all have left.
template <class F>
void team(int threads, F&& body) {
  using Function = std::remove_reference_t<F>;
  run_team(
      threads, [](void* context) { (*static_cast<Function*>(context))(); },
      const_cast<std::remove_const_t<Function>*>(&body));
}

// Members of the team that runs the caller: 1 outside of one, and inside of a task.
int members();
// Whether the caller is the one of them that writes what all have computed.
bool is_first();

// Runs body, which writes to memory of the calling thread: in a team every member does all of its loops.
class Privately {
 public:
  Privately();
  ~Privately();
  Privately(const Privately&) = delete;
  Privately& operator=(const Privately&) = delete;

 private:
  void* const member_;
};

template <class F>
void privately(F&& body) {
  const Privately here;
  body();
}

class Region {
 public:
  explicit Region(int threads);
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

 private:
  bool held_;  // false where the pool was busy: each loop then looks for itself
};

}  // namespace parallel
