// How a function on raw pointers becomes a Python function: pointers cross as integers, and the GIL is released
// for the length of the call.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace bind {

template <class A>
struct Wire {
  using type = A;
};
template <class P>
struct Wire<P*> {
  using type = std::uintptr_t;
};

template <class R, class... A>
void def(pybind11::module_& m, const char* name, R (*function)(A...)) {
  m.def(name, [function](typename Wire<A>::type... arguments) {
    pybind11::gil_scoped_release release;
    return function((A)arguments...);
  });
}

}  // namespace bind
