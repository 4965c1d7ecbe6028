// A small pool of threads for loops whose iterations do not depend on each other.
//
//   parallel_for(tasks, threads, [&](int64_t i) { ... });
//
// The caller works too. Tasks are claimed one at a time, so a slow core takes fewer; since each output
// belongs to exactly one task, results never depend on the number of threads. Workers spin for some tens of
// microseconds after a job (the next op of a step usually comes at once) and then sleep. A loop started while
// the pool is busy (from another Python thread, or from inside a task) runs on its caller alone.
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

}  // namespace parallel
