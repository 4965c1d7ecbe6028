// Python's door to the text kernels. Texts come as str or bytes; the GIL is released while they are worked on.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <memory>

#include "ceiling.h"
#include "decode.h"
#include "encode.h"
#include "train.h"

namespace py = pybind11;
using namespace text;

namespace {

// The bytes of a str (UTF-8; lone surrogates as three bytes each) or bytes object, kept alive with it.
struct Text {
  py::object owner;
  std::string_view view;
};

Text view_of(py::handle object) {
  char* data;
  Py_ssize_t size;
  if (PyUnicode_Check(object.ptr())) {
    if (const char* utf8 = PyUnicode_AsUTF8AndSize(object.ptr(), &size))
      return {py::reinterpret_borrow<py::object>(object), {utf8, size_t(size)}};
    PyErr_Clear();
    PyObject* bytes = PyUnicode_AsEncodedString(object.ptr(), "utf-8", "surrogatepass");
    if (!bytes) throw py::error_already_set();
    py::object owner = py::reinterpret_steal<py::object>(bytes);
    if (PyBytes_AsStringAndSize(bytes, &data, &size)) throw py::error_already_set();
    return {owner, {data, size_t(size)}};
  }
  if (!PyBytes_Check(object.ptr()))
    throw py::type_error(std::string("text must be str or bytes, not ") + Py_TYPE(object.ptr())->tp_name);
  if (PyBytes_AsStringAndSize(object.ptr(), &data, &size)) throw py::error_already_set();
  return {py::reinterpret_borrow<py::object>(object), {data, size_t(size)}};
}

// Many of them. Each object lies elsewhere in memory, so what is read and written there, to count a reference,
// is asked for ahead: all of this happens before the first thread begins and after the last has ended.
struct Texts {
  std::vector<py::object> owners;
  std::vector<std::string_view> views;
  explicit Texts(const py::sequence& objects) {
    const auto items =
        py::reinterpret_steal<py::object>(PySequence_Fast(objects.ptr(), "texts must be a sequence"));
    if (!items) throw py::error_already_set();
    auto size = [&] { return PySequence_Fast_GET_SIZE(items.ptr()); };
    owners.reserve(size_t(size()));
    views.reserve(size_t(size()));
    for (Py_ssize_t i = 0; i < size(); i++) {  // an object's own encoding may change the list
      if (i + ahead < size()) {
        const char* next = reinterpret_cast<const char*>(PySequence_Fast_GET_ITEM(items.ptr(), i + ahead));
        __builtin_prefetch(next, 1);
        __builtin_prefetch(next + sizeof(PyCompactUnicodeObject) - 1);
      }
      Text text = view_of(PySequence_Fast_GET_ITEM(items.ptr(), i));
      owners.push_back(std::move(text.owner));
      views.push_back(text.view);
    }
  }
  ~Texts() {
    for (size_t i = 0; i < owners.size(); i++) {
      if (i + ahead < owners.size()) __builtin_prefetch(owners[i + ahead].ptr(), 1);
      owners[i] = py::object();
    }
  }
  Texts(const Texts&) = delete;
  Texts& operator=(const Texts&) = delete;

 private:
  static constexpr int ahead = 16;
};

// A numpy array that owns the values.
template <class Values>
py::array array_of(Values&& values) {
  auto* kept = new Values(std::move(values));
  py::capsule owner(kept, [](void* p) { delete static_cast<Values*>(p); });
  return py::array_t<std::remove_pointer_t<decltype(kept->data())>>(py::ssize_t(kept->size()), kept->data(),
                                                                    owner);
}

Pattern pattern_of(const std::string& family, int digits, bool whole_tail) {
  Pattern pattern;
  pattern.digits = uint8_t(digits);
  pattern.whole_tail = whole_tail;
  if (family == "gpt2")
    pattern.family = Pattern::Gpt2;
  else if (family == "cl100k")
    pattern.family = Pattern::Cl100k;
  else if (family == "o200k")
    pattern.family = Pattern::O200k;
  else if (!family.empty())
    throw py::value_error("no such pattern family: " + family);
  return pattern;
}

py::array rows_of(const std::vector<Merge>& merges) {
  py::array_t<uint32_t> rows({py::ssize_t(merges.size()), py::ssize_t(4)});
  std::memcpy(rows.mutable_data(), merges.data(), merges.size() * sizeof(Merge));
  return rows;
}

std::vector<Merge> merges_of(const py::array_t<uint32_t, py::array::c_style | py::array::forcecast>& rows) {
  if (rows.ndim() != 2 || rows.shape(1) != 4) throw py::value_error("merges must have shape (M, 4)");
  std::vector<Merge> merges(rows.shape(0));
  std::memcpy(merges.data(), rows.data(), merges.size() * sizeof(Merge));
  return merges;
}

// The ids of a text as a list, or nullptr and Python's error.
PyObject* list_of(const Encoder& encoder, PyObject* object) {
  try {
    const Text text = view_of(object);
    auto workspace = encoder.take();
    const Ids* ids;
    if (text.view.size() < 4096) {  // releasing the GIL costs more than this
      ids = &encoder.encode_in(*workspace, text.view);
    } else {
      py::gil_scoped_release release;
      ids = &encoder.encode_in(*workspace, text.view);
    }
    PyObject* list = PyList_New(Py_ssize_t(ids->size()));
    for (size_t i = 0; list && i < ids->size(); i++)
      PyList_SET_ITEM(list, Py_ssize_t(i), PyLong_FromUnsignedLong(ids->data()[i]));
    encoder.give(std::move(workspace));
    return list;
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::type_error& error) {
    PyErr_SetString(PyExc_TypeError, error.what());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  }
  return nullptr;
}

// text -> list of ids, called by Python without pybind11's work for each call; with more than a text it calls
// what it was made with instead. Its self is a capsule that names the encoder, with a reference to the
// encoder's Python object and to that other in a tuple in its context.
PyObject* encode_list(PyObject* capsule, PyObject* const* arguments, Py_ssize_t count, PyObject* names) {
  if (count != 1 || names) {
    auto* kept = static_cast<PyObject*>(PyCapsule_GetContext(capsule));
    return PyObject_Vectorcall(PyTuple_GET_ITEM(kept, 1), arguments, size_t(count), names);
  }
  return list_of(*static_cast<const Encoder*>(PyCapsule_GetPointer(capsule, "encoder")), arguments[0]);
}

py::object encode_list_or(const py::object& self, const py::object& other) {
  static PyMethodDef method = {
      "encode", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(encode_list)),
      METH_FASTCALL | METH_KEYWORDS,
      "encode(text, allowed_special=()): the ids of a text. Names of special tokens are plain text unless\n"
      "allowed (some, or \"all\")."};
  auto capsule = py::reinterpret_steal<py::object>(
      PyCapsule_New(const_cast<Encoder*>(self.cast<const Encoder*>()), "encoder",
                    [](PyObject* c) { Py_XDECREF(static_cast<PyObject*>(PyCapsule_GetContext(c))); }));
  if (!capsule || PyCapsule_SetContext(capsule.ptr(), py::make_tuple(self, other).release().ptr()))
    throw py::error_already_set();
  return py::reinterpret_steal<py::object>(PyCFunction_New(&method, capsule.ptr()));
}

// Calls run(ids, count) for ids that are an array of integers, where it lies, or any sequence of int, copied.
// Python's lock is kept, so that nobody changes the ids between their being measured and their being written.
template <class Run>
auto with_ids(py::handle ids, Run&& run) {
  auto is = [&](auto id) { return py::isinstance<py::array_t<decltype(id), py::array::c_style>>(ids); };
  auto where_it_lies = [&](auto id) {
    auto array = py::reinterpret_borrow<py::array_t<decltype(id), py::array::c_style>>(ids);
    if (array.ndim() != 1) throw py::type_error("ids must be one row");
    return run(array.data(), size_t(array.size()));
  };
  if (py::isinstance<py::array>(ids)) {
    if (is(uint32_t())) return where_it_lies(uint32_t());
    if (is(uint16_t())) return where_it_lies(uint16_t());
    if (is(int64_t())) return where_it_lies(int64_t());
    if (is(int32_t())) return where_it_lies(int32_t());
  }
  const auto items =
      py::reinterpret_steal<py::object>(PySequence_Fast(ids.ptr(), "ids must be a sequence of int"));
  if (!items) throw py::error_already_set();
  std::vector<Py_ssize_t> copy;
  copy.reserve(size_t(PySequence_Fast_GET_SIZE(items.ptr())));
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items.ptr()); i++) {
    PyObject* item = PySequence_Fast_GET_ITEM(items.ptr(), i);
    if (PyLong_CheckExact(item)) {
      copy.push_back(PyLong_AsSsize_t(item));
      if (copy.back() == -1 && PyErr_Occurred()) throw py::index_error("no such id");
    } else {  // its own code may change the list, and let go of it
      const auto kept = py::reinterpret_borrow<py::object>(item);
      copy.push_back(PyNumber_AsSsize_t(item, PyExc_IndexError));
      if (copy.back() == -1 && PyErr_Occurred()) throw py::error_already_set();
    }
  }
  return run(copy.data(), copy.size());
}

py::bytes bytes_of(const Decoder& decoder, py::handle ids) {
  return with_ids(ids, [&](const auto* first, size_t count) {
    const size_t size = decoder.measure(first, count);
    auto bytes = py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, Py_ssize_t(size)));
    if (!bytes) throw py::error_already_set();
    char* out = PyBytes_AS_STRING(bytes.ptr());
    decoder.write(first, count, out, out + size);
    return bytes;
  });
}

py::str text_of(const Decoder& decoder, py::handle ids, const std::string& errors) {
  return with_ids(ids, [&](const auto* first, size_t count) {
    const size_t size = decoder.measure(first, count);
    const std::unique_ptr<char[]> bytes(new char[size]);
    decoder.write(first, count, bytes.get(), bytes.get() + size);
    auto text =
        py::reinterpret_steal<py::str>(PyUnicode_DecodeUTF8(bytes.get(), Py_ssize_t(size), errors.c_str()));
    if (!text) throw py::error_already_set();
    return text;
  });
}

// Whether this machine runs the module built for `isa`.
bool supported(const std::string& isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  if (isa == "avx2") return avx2;
  if (isa == "avx512")
    return avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
           __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512bitalg") &&
           __builtin_cpu_supports("avx512cd");
#endif
  return isa == "base";
}

}  // namespace

PYBIND11_MODULE(PYENGINE_MODULE, m) {
  m.def("supported", &supported);

  py::class_<Pattern>(m, "Pattern", py::module_local())
      .def(py::init(&pattern_of), py::arg("family") = "", py::arg("digits") = 3, py::arg("whole_tail") = false)
      .def("ceiling",
           [](const Pattern& self, py::handle object) {
             Text text = view_of(object);
             py::gil_scoped_release release;
             return encode_nothing(self, text.view);
           })
      .def("split", [](const Pattern& self, py::handle object) {
        Text text = view_of(object);
        py::list pieces;
        for_each_piece(self, text.view, [&](const uint8_t* p, const uint8_t* end) {
          pieces.append(py::bytes(reinterpret_cast<const char*>(p), size_t(end - p)));
        });
        return pieces;
      });

  py::class_<Encoder>(m, "Encoder", py::module_local())
      .def(py::init([](const std::vector<std::string>& spelled, py::array_t<uint32_t> merges,
                       const Pattern& pattern, bool whole_pieces) {
             Tokens tokens;
             for (size_t id = 0; id < spelled.size(); id++) tokens.set(id, spelled[id]);
             return std::make_unique<Encoder>(Vocabulary(std::move(tokens), merges_of(merges), whole_pieces),
                                              pattern);
           }),
           py::arg("tokens"), py::arg("merges"), py::arg("pattern"), py::arg("whole_pieces") = false)
      .def_static(
          "from_ranks",
          [](const py::bytes& file, const Pattern& pattern) {
            return std::make_unique<Encoder>(Vocabulary(parse_ranks(std::string_view(file))), pattern);
          },
          py::arg("file"), py::arg("pattern"))
      .def_property_readonly("tokens",
                             [](const Encoder& self) {
                               py::list list;
                               const Tokens& tokens = self.vocabulary.tokens;
                               for (size_t id = 0; id < tokens.size(); id++)
                                 list.append(py::bytes(tokens[id].data(), tokens[id].size()));
                               return list;
                             })
      .def_property_readonly("pattern", [](const Encoder& self) { return self.pattern; })
      .def_property_readonly("size", [](const Encoder& self) { return self.vocabulary.tokens.size(); })
      .def_property_readonly(
          "image", [](const Encoder& self) { return array_of(image_of(self.vocabulary, self.pattern)); })
      .def_property_readonly("merges", [](const Encoder& self) { return rows_of(self.vocabulary.merges()); })
      .def(
          "encode",
          [](const Encoder& self, py::handle object, size_t most) {
            Text text = view_of(object);
            Ids ids = self.fresh_ids();
            {
              py::gil_scoped_release release;
              ids.room(std::min(text.view.size() / 3, most) + 8);
              self.encode(text.view, ids, most);
            }
            return array_of(std::move(ids));
          },
          py::arg("text"), py::arg("most") = SIZE_MAX)
      .def("encode_list",
           [](const Encoder& self, py::handle object) {
             PyObject* list = list_of(self, object.ptr());
             if (!list) throw py::error_already_set();
             return py::reinterpret_steal<py::object>(list);
           })
      .def("encode_list_or", &encode_list_or, py::arg("other"))
      .def("encode_pieces",
           [](const Encoder& self, const py::sequence& objects) {
             Texts pieces(objects);
             Ids ids;
             {
               py::gil_scoped_release release;
               self.encode_pieces(pieces.views, ids);
             }
             return array_of(std::move(ids));
           })
      .def(
          "encode_batch",
          [](const Encoder& self, const py::sequence& objects, int threads) {
            Texts texts(objects);
            Ids ids;
            std::vector<int64_t> offsets;
            {
              py::gil_scoped_release release;
              self.encode_batch(texts.views, threads, ids, offsets);
            }
            return py::make_tuple(array_of(std::move(ids)), array_of(std::move(offsets)));
          },
          py::arg("texts"), py::arg("threads") = 1);

  py::class_<WordCounts>(m, "WordCounts", py::module_local())
      .def(py::init<>())
      .def("__len__", &WordCounts::size)
      .def(
          "add_texts",
          [](WordCounts& self, const py::sequence& objects, const Pattern& pattern, int threads) {
            Texts texts(objects);
            py::gil_scoped_release release;
            count_words(texts.views, pattern, threads, self);
          },
          py::arg("texts"), py::arg("pattern"), py::arg("threads") = 1)
      .def("add_words",
           [](WordCounts& self, const py::dict& words) {
             for (auto item : words) self.add(view_of(item.first).view, item.second.cast<int64_t>());
           })
      .def("items", [](const WordCounts& self) {
        py::dict words;
        for (size_t i = 0; i < self.size(); i++) {
          std::string_view word = self.word(i);
          words[py::bytes(word.data(), word.size())] = self.count(i);
        }
        return words;
      });

  m.def(
      "train",
      [](const WordCounts& words, const py::bytes& byte_order, size_t vocab_size, int64_t min_frequency) {
        std::string order = byte_order;
        if (order.size() != 256) throw py::value_error("byte_order must hold each byte once");
        uint8_t byte_ids[256];
        for (int id = 0; id < 256; id++) byte_ids[uint8_t(order[id])] = uint8_t(id);
        std::vector<Merge> merges;
        {
          py::gil_scoped_release release;
          merges = train(words, byte_ids, vocab_size, min_frequency);
        }
        return rows_of(merges);
      },
      py::arg("words"), py::arg("byte_order"), py::arg("vocab_size"), py::arg("min_frequency") = 0);

  m.def(
      "spell",
      [](const py::bytes& byte_order, const py::array_t<uint32_t>& merges) {
        const std::string order = byte_order;
        std::vector<std::string> tokens;
        for (char byte : order) tokens.emplace_back(1, byte);
        for (const Merge& merge : merges_of(merges)) {
          if (std::max(merge.left, merge.right) >= tokens.size() || merge.id > tokens.size())
            throw py::value_error("a merge names an id that no earlier merge makes");
          if (merge.id == tokens.size()) tokens.push_back(tokens[merge.left] + tokens[merge.right]);
        }
        py::list spelled;
        for (const std::string& token : tokens) spelled.append(py::bytes(token));
        return spelled;
      },
      py::arg("byte_order"), py::arg("merges"));

  py::class_<Decoder>(m, "Decoder", py::module_local())
      .def(py::init([](const py::list& tokens) {
             std::vector<std::string_view> views;
             for (py::handle token : tokens) {
               if (!PyBytes_Check(token.ptr())) throw py::type_error("tokens must be bytes");
               views.emplace_back(PyBytes_AS_STRING(token.ptr()), size_t(PyBytes_GET_SIZE(token.ptr())));
             }
             return Decoder(views);
           }),
           py::arg("tokens"))
      .def_property_readonly("size", &Decoder::size)
      .def("bytes", &bytes_of, py::arg("ids"))
      .def("text", &text_of, py::arg("ids"), py::arg("errors") = "replace");
}
