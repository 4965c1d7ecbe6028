// A small pool of threads for loops whose iterations do not depend on each other.
//
//   parallel_for(tasks, threads, [&](int64_t i) { ... });
//   parallel_shares(tasks, threads, [&](int64_t i) { ... });
//
// Both call the body once for each task 0 <= i < tasks, on up to `threads` threads (the caller is one of
// them), and return when all tasks are done. Each output belongs to exactly one task, so results never depend
// on the number of threads. Any thread may call them. A loop that is started while the pool is busy, by
// another Python thread or from inside a task, runs on its caller alone. The body must not throw, except
// inside a team (below).
//
// They differ in who does which task:
//
// - parallel_for hands out tasks one at a time, in order. A slow core takes fewer.
// - parallel_shares divides the tasks into as many runs of neighbours as there are threads. Each thread does
//   its own run from the front; when it is through, it helps the others from their ends. So a thread's next
//   task is most likely the neighbour of its last one. And where several loops go over the same rows, a
//   thread finds in its caches what it wrote in the loop before; a cache line that another core wrote costs
//   several times one from L3.
//
// After a loop the workers spin for about 100 us, since the next op of a step usually comes at once; then they
// sleep.
//
//   Region region(threads);
//
// reserves the pool for a sequence of the caller's loops, until it goes out of scope, and wakes the workers
// ahead of the first of them.
//
//   team(threads, [&] { ... });
//
// is for a sequence of loops too small to be handed out task by task, such as a decode step. Every thread
// (member) runs the whole body. At a loop, the members divide the tasks among themselves by number, and then
// wait until all are done. The rules for the body:
//
// - Code between loops runs in every member. It may read what earlier loops wrote, but write only to memory
//   of its own thread (its stack, gemm::scratch). What is written for all must be written in a loop, if need
//   be of one task.
// - If a member throws, all leave at their next loop, and team() throws the error on the caller's thread.
//
// The price: when a member loses its core, all others wait for it, after a while by offering it theirs.
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

template <class F>
void team(int threads, F&& body) {
  using Function = std::remove_reference_t<F>;
  run_team(
      threads, [](void* context) { (*static_cast<Function*>(context))(); },
      const_cast<std::remove_const_t<Function>*>(&body));
}

// How many members the team has that runs the caller; 1 outside of a team, and inside of a task.
int members();
// Whether the caller is the member that writes down what all members have computed. True outside of a team.
bool is_first();

// While one lives, the calling thread's loops are its own: in a team, each member does all their tasks itself.
// For what is written to memory of the calling thread.
class Privately {
 public:
  Privately();
  ~Privately();
  Privately(const Privately&) = delete;
  Privately& operator=(const Privately&) = delete;

 private:
  void* const member_;
};

// Runs body with its loops private to the calling thread.
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
