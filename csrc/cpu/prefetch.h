// Prefetching what will be read or written soon, a few lines at a time while there is arithmetic to do: the
// prefetches go through load slots that the arithmetic leaves free.
//
// This is for memory that the hardware's prefetcher does not foresee, such as the rows of one head, which lie a
// stride apart, or a dozen rows that are packed at once.
//
//   Prefetcher soon;
//   soon.add(rows, n, stride, count);   what is needed next, piece by piece
//   soon.spread(calls);                 the lines are divided evenly among this many calls of
//   soon.step();                        which the loop that computes makes as it goes along
//
// What a thread needs next is a guess: where threads take tasks in turn, task i is most likely followed by task
// i + threads. A wrong guess costs time only, and no address is ever dereferenced.
#pragma once

#include <cstdint>

#include "integers.h"

class Prefetcher {
 public:
  // `pieces` pieces of n numbers each, which begin `stride` numbers apart. All are taken to lie in lines as the
  // first does. At most kMostParts calls.
  template <class T>
  void add(const T* first, int64_t n, int64_t stride, int64_t pieces) {
    if (n <= 0 || pieces <= 0) return;
    const auto skew = (int64_t)(reinterpret_cast<uintptr_t>(first) % kLine);
    const int64_t bytes = skew + n * (int64_t)sizeof(T);
    parts_[count_++] = {reinterpret_cast<const char*>(first) - skew, bytes, stride * (int64_t)sizeof(T),
                        pieces};
    lines_ += ceil_div(bytes, kLine) * pieces;
  }

  // Divides what was added among this many calls of step().
  void spread(int64_t calls) { each_ = calls > 0 ? ceil_div(lines_, calls) : 0; }

  // Prefetches the next share; nothing once all is done.
  void step() {
    for (int64_t left = each_; left > 0 && at_ < count_; --left) {
      Part& part = parts_[at_];
      __builtin_prefetch(part.first + done_, 0, 2);
      if ((done_ += kLine) < part.bytes) continue;
      done_ = 0, part.first += part.stride;
      at_ += --part.pieces == 0;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  static constexpr int kMostParts = 8;
  struct Part {
    const char* first;  // of the pieces that are left
    int64_t bytes, stride, pieces;
  };
  Part parts_[kMostParts];
  int count_ = 0, at_ = 0;                   // parts, and the one that is next
  int64_t lines_ = 0, each_ = 0, done_ = 0;  // lines in all and for each step; bytes done of the first piece
};
