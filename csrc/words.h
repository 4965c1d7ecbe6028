// A function whose type is forgotten: called with its arguments as 64-bit words, integers and pointers as they
// are, floats as the bits of a double. So Python's calls (bind.h) and recorded ones (cpu/replay.h) need one
// small caller for each signature, and hold functions of all signatures in one table.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>

namespace words {

using Word = uint64_t;
// Returns what the function does: -1 from one that returns nothing.
using Caller = int64_t (*)(void* function, const Word* arguments);

struct Function {
  Caller caller;
  void* address;
  std::string kinds;  // one letter an argument: 'd' is a float, 'q' anything else
};

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

template <class R, class... A, size_t... I>
int64_t apply(R (*function)(A...), [[maybe_unused]] const Word* words, std::index_sequence<I...>) {
  if constexpr (std::is_void_v<R>) {
    function(from_word<A>(words[I])...);
    return -1;
  } else {
    return (int64_t)function(from_word<A>(words[I])...);
  }
}

template <class R, class... A>
Function function(R (*f)(A...)) {
  const Caller caller = [](void* address, const Word* words) {
    return apply(reinterpret_cast<R (*)(A...)>(address), words, std::index_sequence_for<A...>{});
  };
  return {caller, reinterpret_cast<void*>(f), {(std::is_floating_point_v<A> ? 'd' : 'q')...}};
}

}  // namespace words
