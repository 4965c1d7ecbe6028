// A small pool of threads for loops whose iterations do not depend on each other.
//
//   parallel_for(tasks, threads, [&](int64_t i) { ... });
//
// The caller works too. Tasks are claimed one at a time, so a slow core takes fewer; since each output
// belongs to exactly one task, results never depend on the number of threads. Workers spin for some hundred
// microseconds after a loop (the next op of a step usually comes at once) and then sleep. A loop started while
// the pool is busy (from another Python thread, or from inside a task) runs on its caller alone.
//
//   Region region(threads);    the caller's loops, one after the other, until it ends
//
// keeps the pool for a sequence of loops and wakes the workers before the first of them: a captured step is
// one.
#pragma once

#include <cstdint>
#include <type_traits>

namespace parallel {

using Body = void (*)(void* context, int64_t index);
void run(int64_t tasks, int threads, Body body, void* context);

template <class F>
void parallel_for(int64_t tasks, int threads, F&& body) {
  using Function = std::remove_reference_t<F>;
  run(
      tasks, threads, [](void* context, int64_t index) { (*static_cast<Function*>(context))(index); },
      const_cast<std::remove_const_t<Function>*>(&body));
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
