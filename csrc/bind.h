// How a function on raw pointers becomes a Python function: pointers cross as integers, and the GIL is released
// for the length of the call.
//
// Arguments are made words (words.h), as in a replayed program. So a signature costs the compiler one small
// caller and not a wrapper of pybind11's, of which a module's sixty were half of what it took to compile, and a
// call of thirty arguments takes Python a fraction of the time.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <type_traits>

#include "words.h"

namespace bind {

constexpr size_t kMostArguments = 64;

struct Function {
  PyMethodDef method;
  words::Function function;
  std::string sizes;  // of the arguments, in bytes
  bool returns;       // an integer, or nothing
};

// An integer or an address, of `size` bytes; sets Python's error where it is none, or does not fit.
inline words::Word integer(PyObject* object, int size) {
  PyObject* index = PyNumber_Index(object);
  if (!index) return 0;
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(index, &overflow);
  auto word = (words::Word)value;
  if (size < 8) {
    const long long most = (1ll << (8 * size - 1)) - 1;
    if (overflow || value > most || value < -most - 1)
      PyErr_Format(PyExc_OverflowError, "a kernel was given %R for a number of %d bytes", object, size);
  } else if (overflow) {
    word = PyLong_AsUnsignedLongLong(index);
  }
  Py_DECREF(index);
  return word;
}

inline words::Word number(PyObject* object) {
  const double value = PyFloat_AsDouble(object);
  words::Word word;
  std::memcpy(&word, &value, sizeof word);
  return word;
}

// The GIL, given up for as long as this lives.
class Released {
 public:
  Released() : state_(PyEval_SaveThread()) {}
  ~Released() { PyEval_RestoreThread(state_); }
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;

 private:
  PyThreadState* state_;
};

inline PyObject* call(PyObject* self, PyObject* const* objects, Py_ssize_t count) {
  const auto& bound = *static_cast<const Function*>(PyCapsule_GetPointer(self, nullptr));
  const auto& [caller, address, kinds] = bound.function;
  if (size_t(count) != kinds.size())
    return PyErr_Format(PyExc_TypeError, "%s: expected %zu arguments, got %zd", bound.method.ml_name,
                        kinds.size(), count);
  words::Word words[kMostArguments];
  for (Py_ssize_t i = 0; i < count; ++i)
    words[i] = kinds[i] == 'd' ? number(objects[i]) : integer(objects[i], bound.sizes[i]);
  if (PyErr_Occurred()) return nullptr;
  int64_t result;
  try {
    Released released;
    result = caller(address, words);
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  if (!bound.returns) Py_RETURN_NONE;
  return PyLong_FromLongLong(result);
}

// name: a literal.
template <class R, class... A>
void def(pybind11::module_& m, const char* name, R (*function)(A...)) {
  static_assert(sizeof...(A) <= kMostArguments);
  static_assert(std::is_void_v<R> || std::is_integral_v<R>);
  // As long as the process: nothing unloads an extension module.
  auto* bound = new Function{{name, nullptr, METH_FASTCALL, nullptr},
                             words::function(function),
                             {char(sizeof(A))...},
                             !std::is_void_v<R>};
  bound->method.ml_meth = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call));
  const pybind11::capsule self(bound);
  m.attr(name) = pybind11::reinterpret_steal<pybind11::object>(PyCFunction_New(&bound->method, self.ptr()));
}

}  // namespace bind
