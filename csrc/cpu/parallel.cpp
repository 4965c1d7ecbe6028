// The pool. What threads share is a word for each share of the loop, what is left of its tasks: a thread claims
// one by counting up where it begins, or down where it ends, and nothing else has to be known for that. A claim
// that succeeds proves that the loop goes on, and it does until the task is reported as done; only then is read
// what there is to do. So the caller never waits for a worker that is asleep or has lost its core, only for one
// in the midst of a task, and a loop of one share costs one line of cache going over and one coming back.
//
// A team is a loop with a task for each member. Members meet by flags, each written by one of them. A thread
// has the same place in each team, so that what its core's caches hold of one call serves the next.
#include "parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "crowd.h"

namespace parallel {
namespace {

constexpr int kPauses = 8000;  // about 100 us: longer than what Python does between two steps
constexpr int kYields = 20;    // then the core is offered to whoever may be waited for
constexpr int kMeetingPauses =
    2000;  // of a member, for whom others can only be late if they have lost their core
constexpr int64_t kMostTasks = int64_t{1} << 32;  // of a loop: half of the word
constexpr int kMostShares = 64;                   // of a loop: of more threads some begin with the same

inline void wait_a_little(int spin, int pauses = kPauses) {
#if defined(__x86_64__)
  if (spin < pauses) return __builtin_ia32_pause();
#endif
  std::this_thread::yield();
}

thread_local int seat = 0;  // of a worker its number from 1 on

// What is left of a share's tasks: those from `next` on, below `end`.
constexpr uint64_t word_of(uint64_t next, uint64_t end) { return end << 32 | next; }
constexpr bool any(uint64_t word) { return (word & 0xffffffffu) < word >> 32; }

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

  void run(int64_t tasks, int helpers, int shares, Body body, void* context) {
    grow(helpers);
    shares = std::min(shares, kMostShares);
    // No task of the loop before is left, so nobody reads these until a word says so.
    body_.store(body, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    helpers_.store(helpers, std::memory_order_relaxed);
    shares_.store(shares, std::memory_order_relaxed);
    finished_.store(0, std::memory_order_relaxed);
    for (int64_t i = 0; i < shares; ++i) word(i).store(word_of(tasks * i / shares, tasks * (i + 1) / shares));
    notify();
    work();
    for (int spin = 0; finished_.load(std::memory_order_acquire) < tasks; ++spin) wait_a_little(spin);
  }

 private:
  std::atomic<uint64_t>& word(int64_t share) { return share ? others_[share - 1].word : word_; }

  // Does tasks until none is left: of this thread's share in order, then of the others' from their ends.
  void work() {
    int64_t done = 0;
    const int shares = shares_.load(std::memory_order_relaxed);
    // With a task done that is not yet reported the loop goes on; else it may be another's by now.
    for (int i = 0; i < shares && (i == 0 || done > 0); ++i) {
      std::atomic<uint64_t>& share = word((seat + i) % shares);
      uint64_t left = share.load(std::memory_order_relaxed);
      while (any(left)) {
        const uint64_t less = i == 0 ? left + 1 : left - (uint64_t{1} << 32);
        if (!share.compare_exchange_weak(left, less, std::memory_order_acq_rel, std::memory_order_relaxed))
          continue;
        body_.load(std::memory_order_relaxed)(context_.load(std::memory_order_relaxed),
                                              (int64_t)(i == 0 ? left & 0xffffffffu : less >> 32));
        ++done, left = less;
      }
    }
    if (done) finished_.fetch_add(done, std::memory_order_release);
  }

  void serve(int worker) {
    seat = worker + 1;
    for (;;) {
      const uint64_t calls = calls_.load();
      auto asked = [&] {
        const int shares = shares_.load(std::memory_order_relaxed);
        return any(word(seat % shares).load()) && worker < helpers_.load(std::memory_order_relaxed);
      };
      if (asked()) work();
      auto news = [&] { return asked() || calls_.load() != calls; };
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

  struct alignas(64) Share {
    std::atomic<uint64_t> word{word_of(0, 0)};
  };

  // One line for what goes over, one for each further share, one for what comes back, one for what seldom
  // changes.
  alignas(64) std::atomic<uint64_t> word_{word_of(0, 0)};  // of the first share
  std::atomic<Body> body_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int> helpers_{0}, shares_{1};
  Share others_[kMostShares - 1];
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

// Of a team. What a member throws ends it for all: whoever meets the others afterwards throws Left.
class Team {
 public:
  explicit Team(int members) : members_(members), turns_(std::make_unique<Turn[]>(members)) {}

  int members() const { return members_; }
  int64_t late() const { return late_.load(std::memory_order_relaxed); }

  // All are there: workers that had to be woken are late for no other reason.
  void begin(int me) {
    meet(me);
    late_.store(0, std::memory_order_relaxed);
  }

  // Of a member, for good: its number in the pool, so that it is where it was in the team before. A worker of a
  // wider loop that lost its core on the way to a task may come instead of one of this team's; then the next
  // free.
  int place(int seat) {
    int at = std::min(seat, members_ - 1);
    while (turns_[at].taken.exchange(true, std::memory_order_relaxed)) at = at ? at - 1 : members_ - 1;
    return at;
  }

  void meet(int me) {
    const uint64_t turn = turns_[me].count.load(std::memory_order_relaxed) + 1;
    turns_[me].count.store(turn, std::memory_order_release);
    for (int other = 0; other < members_; ++other)
      for (int spin = 0; turns_[other].count.load(std::memory_order_acquire) < turn; ++spin) {
        if (spin == kMeetingPauses) late_.fetch_add(1, std::memory_order_relaxed);
        wait_a_little(spin, kMeetingPauses);
      }
    if (failed_.load(std::memory_order_relaxed)) throw Left();
  }

  template <class F>
  void work(int me, F&& body) {
    try {
      body();
    } catch (const Left&) {
      leave(me);
    } catch (...) {
      std::unique_lock<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
      lock.unlock();
      leave(me);
    }
  }

  // For the caller, when all have left.
  void throw_error() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  struct Left {};
  struct alignas(64) Turn {
    std::atomic<uint64_t> count{0};  // how often its member has met the others
    std::atomic<bool> taken{false};
  };

  void leave(int me) {
    failed_.store(true, std::memory_order_relaxed);
    turns_[me].count.store(~uint64_t{0}, std::memory_order_release);
  }

  const int members_;
  const std::unique_ptr<Turn[]> turns_;
  std::atomic<bool> failed_{false};
  std::atomic<int64_t> late_{0};
  std::mutex mutex_;
  std::exception_ptr error_;
};

struct Member {
  Team* team;
  int index;
};

thread_local bool in_region = false;        // this thread holds the pool and is in no loop
thread_local Member* membership = nullptr;  // of this thread, where its loops are shared with the other members

}  // namespace

int members() { return membership ? membership->team->members() : 1; }
bool is_first() { return !membership || membership->index == 0; }

int64_t late() { return membership ? membership->team->late() : 0; }

Privately::Privately() : member_(std::exchange(membership, nullptr)) {}
Privately::~Privately() { membership = static_cast<Member*>(member_); }

void run(int64_t tasks, int threads, bool shared_out, Body body, void* context) {
  if (Member* const member = membership) {
    const int sharing = std::min(threads, member->team->members());
    if (member->index < sharing)
      privately([&] {
        for (int64_t i = member->index; i < tasks; i += sharing) body(context, i);
      });
    return member->team->meet(member->index);
  }
  const int helpers = (int)std::min<int64_t>(threads, tasks) - 1;
  Pool& team = the_pool();
  const bool ours = std::exchange(in_region, false);
  if (helpers > 0 && tasks < kMostTasks && (ours || team.acquire())) {
    team.run(tasks, helpers, shared_out ? helpers + 1 : 1, body, context);
    if (!ours) team.release();
  } else {
    for (int64_t i = 0; i < tasks; ++i) body(context, i);
  }
  in_region = ours;
}

void run_team(int threads, void (*body)(void*), void* context) {
  Pool& pool = the_pool();
  if (threads < 2 || in_region || membership || !pool.acquire()) return body(context);
  Team team(threads);
  auto join = [&] {
    Member member{&team, team.place(seat)};
    membership = &member;
    team.work(member.index, [&] {
      team.begin(member.index);  // so nobody is through, and free to take another's task, before all have one
      body(context);
    });
    membership = nullptr;
  };
  using Join = decltype(join);
  pool.run(threads, threads - 1, 1, [](void* join, int64_t) { (*static_cast<Join*>(join))(); }, &join);
  pool.release();
  team.throw_error();
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
