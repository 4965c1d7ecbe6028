// Teams of the pool (csrc/cpu/parallel.h) by themselves, for ThreadSanitizer: prints what is wrong, if
// anything.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "crowd.h"
#include "parallel.h"

namespace {

int wrong = 0;

void expect(bool holds, const char* what, int threads) {
  if (!holds) std::printf("%s, %d threads\n", what, threads), ++wrong;
}

void nap(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

// As a decode step does it: rounds of loops that read what others wrote in the loop before, in plain memory,
// which is written again two loops later; between them every member computes the same in memory of its own.
void many_loops(int threads, int late) {
  constexpr int kRounds = 60, kTasks = 7;
  std::vector<int64_t> a(kTasks, 1), b(kTasks), alone(1), done(kTasks);
  std::atomic<int> members{0}, firsts{0};
  parallel::team(threads, [&] {
    ++members;
    firsts += parallel::is_first();
    for (int round = 0; round < kRounds; ++round) {
      const int64_t sum = std::accumulate(a.begin(), a.end(), int64_t{0});
      int64_t own = 0;
      parallel::privately([&] { parallel::parallel_for(kTasks, threads, [&](int64_t i) { own += i; }); });
      if (round % 30 == 7 && parallel::is_first() == (late == 0)) nap(2);
      parallel::parallel_for(kTasks, threads, [&](int64_t i) { b[i] = sum % 1000 + i + own - 21; });
      parallel::parallel_for(1, 1, [&](int64_t) { alone[0] += b[3]; });
      parallel::parallel_for(kTasks, (threads + 1) / 2, [&](int64_t i) { ++done[i]; });
      parallel::parallel_for(kTasks, threads, [&](int64_t i) {
        parallel::parallel_for(2, threads, [&](int64_t) { a[i] = b[kTasks - 1 - i] + alone[0] % 7; });
      });
    }
  });
  std::vector<int64_t> x(kTasks, 1), y(kTasks);
  int64_t total = 0;
  for (int round = 0; round < kRounds; ++round) {
    const int64_t sum = std::accumulate(x.begin(), x.end(), int64_t{0});
    for (int i = 0; i < kTasks; ++i) y[i] = sum % 1000 + i;
    total += y[3];
    for (int i = 0; i < kTasks; ++i) x[i] = y[kTasks - 1 - i] + total % 7;
  }
  expect(a == x && alone[0] == total, "loops of a team computed something else", threads);
  expect(done == std::vector<int64_t>(kTasks, kRounds), "a task of few threads was not done once", threads);
  expect(members == threads && firsts == 1, "not every thread was a member once", threads);
}

// Without a loop that all wait for, nobody takes another's place.
void no_loops(int threads) {
  for (int round = 0; round < 50; ++round) {
    std::atomic<int> members{0}, firsts{0};
    parallel::team(threads, [&] { ++members, firsts += parallel::is_first(); });
    expect(members == threads && firsts == 1, "a member's place was taken", threads);
  }
}

// A worker of a wider loop that lost its core before it claimed a task may become a member of a later, smaller
// team.
void smaller_than_before(int threads) {
  for (int round = 0; round < 500; ++round) {
    std::atomic<int> members{0}, firsts{0}, tasks{0};
    parallel::parallel_for(3 * threads, 3 * threads, [&](int64_t) { ++tasks; });
    parallel::team(threads, [&] { ++members, firsts += parallel::is_first(); });
    expect(tasks == 3 * threads && members == threads && firsts == 1, "a wider loop disturbed a team", threads);
  }
}

// Who waits long for another says so, but not for one that had to be woken.
void late_members(int threads) {
  bool woken_in_time = false, noticed = false;  // in one of several tries: a member may lose its core just then
  for (int tries = 0; tries < 5; ++tries) {
    nap(30);
    int64_t at_first = -1, later = -1;
    parallel::team(threads, [&] {
      parallel::parallel_for(1, 1, [&, late = parallel::late()](int64_t) { at_first = late; });
      if (parallel::is_first()) nap(20);
      parallel::parallel_for(1, 1, [](int64_t) {});
      parallel::parallel_for(1, 1, [&, late = parallel::late()](int64_t) { later = late; });
    });
    woken_in_time |= at_first == 0;
    noticed |= at_first >= 0 && later > at_first;
  }
  expect(noticed, "nobody noticed a late member", threads);
  expect(woken_in_time, "a member that had to be woken was called late", threads);
  expect(parallel::late() == 0, "late outside of a team", threads);
}

// Teams are given up for twice as long each time they fail, and for no time once one did well.
void crowds() {
  parallel::Crowd crowd;
  const int64_t late = parallel::Crowd::kMostLate + 1;
  auto pause = [&] {
    int64_t steps = 0;
    for (; !crowd.team_is_worth_it(); ++steps) crowd.note_claimed(1);
    return steps;
  };
  crowd.note_team(64, late - 1);
  expect(pause() == 0, "a team that did well was given up", 0);
  crowd.note_team(3, late);
  const int64_t once = pause();
  crowd.note_team(3, late);
  expect(once > 0 && pause() == 2 * once, "a second failure is not waited for twice as long", 0);
  crowd.note_team(64, 0);
  crowd.note_team(3, late);
  expect(pause() == once, "a team that did well left no trace", 0);
}

// What one member throws comes out, once all have left, and the pool is free again.
void errors(int threads, bool in_a_task) {
  std::string told;
  try {
    parallel::team(threads, [&] {
      for (int round = 0;; ++round) {
        parallel::parallel_for(threads, threads, [&](int64_t i) {
          if (in_a_task && round == 3 && i == threads - 1) throw std::runtime_error("no more");
        });
        if (!in_a_task && round == 3 && parallel::is_first()) throw std::runtime_error("no more");
      }
    });
  } catch (const std::runtime_error& error) {
    told = error.what();
  }
  expect(told == "no more", "an error of a member was lost", threads);
  many_loops(threads, 0);
}

// Several callers at once: one has the pool, the others work alone.
void many_callers(int threads) {
  std::vector<std::thread> callers;
  std::atomic<int> sums{0};
  for (int c = 0; c < 3; ++c)
    callers.emplace_back([&] {
      for (int round = 0; round < 20; ++round) {
        std::atomic<int> sum{0};
        parallel::team(threads, [&] { parallel::parallel_for(9, threads, [&](int64_t i) { sum += (int)i; }); });
        parallel::parallel_for(9, threads, [&](int64_t i) { sum += (int)i; });
        sums += sum == 72;
      }
    });
  for (auto& caller : callers) caller.join();
  expect(sums == 60, "callers at once disturbed each other", threads);
}

void in_a_child(int threads) {
  const pid_t child = fork();
  if (child == 0) {
    wrong = 0;
    many_loops(threads, 0);
    _exit(wrong != 0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  expect(status == 0, "a forked child's team failed", threads);
}

}  // namespace

int main(int, char** argv) {
  for (int threads : {1, 2, 5}) {
    for (int late : {0, 1}) many_loops(threads, late);
    if (threads > 1) errors(threads, true), errors(threads, false), late_members(threads);
    no_loops(threads);
    if (threads > 1) smaller_than_before(threads);
    many_callers(threads);
    nap(threads == 2 ? 30 : 0);  // the workers have gone to sleep
  }
  crowds();
  if (argv[1]) in_a_child(2);
  return wrong != 0;
}
