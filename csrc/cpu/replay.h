// Running a recorded list of kernel calls as one call: what Python costs per op, a decode step pays once.
//
// Every bound function has an entry: its address, and a caller that fetches its arguments from words (words.h).
// A program is words only:
//
//   caller, function, words that follow, argument, argument, ...   caller, function, ...
//
// kernels/_capture.py records it. Arguments are frozen: what changes from step to step is behind the pointers.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>

#include "../words.h"

namespace replay {

using words::Word;

struct Entry {
  words::Function function;
  bool in_team;  // whether the members of a team may call it: outside of its loops it writes to its own memory
};

inline std::unordered_map<std::string, Entry>& entries() {
  static std::unordered_map<std::string, Entry> table;
  return table;
}

template <class R, class... A>
void add(const char* name, R (*function)(A...), bool in_team) {
  entries()[name] = {words::function(function), in_team};
}

// Runs the program in words[0, count); -1, or the index of the first call that refused its inputs: a kernel
// that checks what lies behind its pointers returns -1, or which of it is wrong.
inline int64_t run(const Word* words, int64_t count) {
  int64_t index = 0;
  for (const Word* end = words + count; words < end; ++index) {
    auto caller = reinterpret_cast<words::Caller>(words[0]);
    if (caller(reinterpret_cast<void*>(words[1]), words + 3) >= 0) return index;
    words += 3 + words[2];
  }
  return -1;
}

}  // namespace replay
