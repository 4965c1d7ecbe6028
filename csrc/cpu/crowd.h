// Whether a sequence of steps should run as a team (parallel.h) or as ordinary loops, whose tasks threads
// claim.
//
// A team is faster as long as every member has a core to itself. On a crowded machine members lose their
// cores, and at every loop the whole team waits for the one that did; claimed loops go on without it. So a
// caller counts how often its teams waited too long, and for a while falls back to claimed loops where that
// was often.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace parallel {

// How often members of the caller's team have waited so long for another that they offered it their core; 0
// outside of a team.
int64_t late();

// Decides between the two. One object serves all callers; it may be used from several threads at once.
class Crowd {
 public:
  static constexpr int64_t kMostLate = 2;  // in one sequence of steps; more is no accident

  bool team_is_worth_it() const { return claimed_.load(std::memory_order_relaxed) <= 0; }

  // A team has done this many steps and was late() this often. After a crowded one, some steps run as claimed
  // loops before a team is tried again: twice as many each time, between kLeast and kMost.
  void note_team(int64_t steps, int64_t late) {
    if (late > kMostLate) {
      pause_.store(std::clamp(2 * pause_.load(std::memory_order_relaxed), kLeast, kMost),
                   std::memory_order_relaxed);
      claimed_.store(pause_.load(std::memory_order_relaxed), std::memory_order_relaxed);
    } else if (steps >= kSound) {
      pause_.store(0, std::memory_order_relaxed);
    }
  }

  // So many steps were done as claimed loops.
  void note_claimed(int64_t steps) { claimed_.fetch_sub(steps, std::memory_order_relaxed); }

 private:
  static constexpr int64_t kSound = 32, kLeast = 64, kMost = 512;  // steps
  std::atomic<int64_t> claimed_{0};                                // steps to claim before the next team
  std::atomic<int64_t> pause_{0};                                  // how many they were the last time
};

}  // namespace parallel
