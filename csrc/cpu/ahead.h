// Memory that will be read or written soon, asked for a few lines at a time while there is arithmetic to do, in
// the load slots that this leaves free. For what no hardware asks ahead for, such as the rows of one head,
// which lie a stride apart, or a dozen rows that are packed at once.
//
//   Ahead later;
//   later.add(rows, n, stride, count);     whatever comes next: where threads take tasks in turn, a thread most
//   later.share(calls);                    likely takes task i + threads after task i
//   later.more();                          so many times
#pragma once

#include <cstdint>

class Ahead {
 public:
  // `pieces` pieces of n numbers, `stride` numbers apart. They are taken to lie in lines as the first does.
  template <class T>
  void add(const T* first, int64_t n, int64_t stride, int64_t pieces) {
    if (n <= 0 || pieces <= 0) return;
    const auto skew = (int64_t)(reinterpret_cast<uintptr_t>(first) % kLine);
    const int64_t bytes = skew + n * (int64_t)sizeof(T);
    parts_[count_++] = {reinterpret_cast<const char*>(first) - skew, bytes, stride * (int64_t)sizeof(T),
                        pieces};
    lines_ += (bytes + kLine - 1) / kLine * pieces;
  }

  // From here on, so many calls of more() share what was added.
  void share(int64_t calls) { each_ = calls > 0 ? (lines_ + calls - 1) / calls : 0; }

  void more() {
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
  int count_ = 0, at_ = 0;
  int64_t lines_ = 0, each_ = 0, done_ = 0;  // lines in all and for each call; bytes of the first piece
};
