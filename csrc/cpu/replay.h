// Running a recorded list of kernel calls as one call: what Python costs per op, a decode step pays once.
//
// Every bound function has an entry: its address, and a caller that fetches its arguments from 64-bit words
// (integers and pointers as they are, floats as the bits of a double). A program is words only:
//
//   caller, function, words that follow, argument, argument, ...   caller, function, ...
//
// kernels/_capture.py records it. Arguments are frozen: what changes from step to step is behind the pointers.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>

namespace replay {

using Word = uint64_t;
// Returns what the function does: -1 from one that returns nothing.
using Caller = int64_t (*)(void* function, const Word* arguments);

struct Entry {
  Caller caller;
  void* function;
  std::string kinds;  // one letter an argument: 'd' is a float, 'q' anything else
  bool in_team;  // whether the members of a team may call it: outside of its loops it writes to its own memory
};

inline std::unordered_map<std::string, Entry>& entries() {
  static std::unordered_map<std::string, Entry> table;
  return table;
}

template <class A>
A from_word(Word word) {
  if constexpr (std::is_floating_point_v<A>) {
    double value;
    std::memcpy(&value, &word, sizeof value);
    return (A)value;
  } else if constexpr (std::is_pointer_v<A>) {
    return reinterpret_cast<A>(word);
  } else {
    return (A)word;
  }
}

template <class R, class... A>
struct Signature {
  template <size_t... I>
  static int64_t apply(R (*function)(A...), const Word* words, std::index_sequence<I...>) {
    (void)words;
    if constexpr (std::is_void_v<R>) {
      function(from_word<A>(words[I])...);
      return -1;
    } else {
      return (int64_t)function(from_word<A>(words[I])...);
    }
  }
  static int64_t call(void* function, const Word* words) {
    return apply(reinterpret_cast<R (*)(A...)>(function), words, std::index_sequence_for<A...>{});
  }
  static std::string kinds() { return {(std::is_floating_point_v<A> ? 'd' : 'q')...}; }
};

template <class R, class... A>
void add(const char* name, R (*function)(A...), bool in_team) {
  using S = Signature<R, A...>;
  entries()[name] = {&S::call, reinterpret_cast<void*>(function), S::kinds(), in_team};
}

// Runs the program in words[0, count); -1, or the index of the first call that refused its inputs: a kernel
// that checks what lies behind its pointers returns -1, or which of it is wrong.
inline int64_t run(const Word* words, int64_t count) {
  int64_t index = 0;
  for (const Word* end = words + count; words < end; ++index) {
    auto caller = reinterpret_cast<Caller>(words[0]);
    if (caller(reinterpret_cast<void*>(words[1]), words + 3) >= 0) return index;
    words += 3 + words[2];
  }
  return -1;
}

}  // namespace replay
