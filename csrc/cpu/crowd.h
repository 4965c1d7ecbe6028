// Whether a team is worth its waits: on cores that others want too, members wait for one that has lost its core
// at every loop, where claimed loops go on without it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace parallel {

// How often members of the caller's team have given up their cores while they waited for another; 0 outside of
// one.
int64_t late();

// What a caller does in steps, by a team or by claimed loops: which of them is next. Of all callers together.
class Crowd {
 public:
  static constexpr int64_t kMostLate = 2;  // in one sequence of steps; more is no accident

  bool team_is_worth_it() const { return claimed_.load(std::memory_order_relaxed) <= 0; }

  // A team did so many steps and was `late` or not: after some claimed ones another is tried, each time after
  // more.
  void note_team(int64_t steps, int64_t late) {
    if (late > kMostLate) {
      pause_.store(std::clamp(2 * pause_.load(std::memory_order_relaxed), kLeast, kMost),
                   std::memory_order_relaxed);
      claimed_.store(pause_.load(std::memory_order_relaxed), std::memory_order_relaxed);
    } else if (steps >= kSound) {
      pause_.store(0, std::memory_order_relaxed);
    }
  }

  void note_claimed(int64_t steps) { claimed_.fetch_sub(steps, std::memory_order_relaxed); }

 private:
  static constexpr int64_t kSound = 32, kLeast = 64, kMost = 512;  // steps
  std::atomic<int64_t> claimed_{0};                                // steps to claim before the next team
  std::atomic<int64_t> pause_{0};                                  // how many they were the last time
};

}  // namespace parallel
