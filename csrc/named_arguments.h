// Python functions whose named arguments are the fields of a C++ structure: relu(x=..., out=..., size=...).
//
//     using Args = ReluArgs;
//     define_named<Args>(m, "relu", [](const Args& args) { ... },
//                        {MSVIT_FIELD(Args, x, x), MSVIT_FIELD(Args, out, out), MSVIT_FIELD(Args, size, size)});
//
// pybind11 can name arguments too, but takes longer to match twenty names than a short kernel runs. Here a name costs
// one comparison of addresses if the call has the order of the fields. The names arrive in a dictionary, which Python
// makes anyway for a call with ** or with more than 15 names.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <exception>
#include <string>
#include <utility>
#include <vector>

namespace msvit {

// `convert` stores a Python value in a field and returns null, or returns a description of the expected value. A field
// of integers takes neither a bool nor a float nor an int out of its range; a field of floats takes an int too.

inline bool is_int(PyObject* value) { return PyLong_Check(value) && !PyBool_Check(value); }

inline const char* convert(PyObject* value, uintptr_t& field) {
  constexpr const char* kExpected = "an address (int >= 0)";
  static_assert(sizeof(size_t) == sizeof(uintptr_t), "addresses are read as sizes");
  if (!is_int(value)) return kExpected;
  field = PyLong_AsSize_t(value);
  if (field != static_cast<uintptr_t>(-1) || !PyErr_Occurred()) return nullptr;
  PyErr_Clear();
  return kExpected;
}

template <class T>
const char* convert(PyObject* value, T*& field) {
  uintptr_t address = 0;
  const char* expected = convert(value, address);
  field = reinterpret_cast<T*>(address);
  return expected;
}

inline const char* convert(PyObject* value, int64_t& field) {
  constexpr const char* kExpected = "an int that fits 64 bits";
  if (!is_int(value)) return kExpected;
  int overflow = 0;
  field = PyLong_AsLongLongAndOverflow(value, &overflow);
  return overflow == 0 ? nullptr : kExpected;
}

inline const char* convert(PyObject* value, int32_t& field) {
  constexpr const char* kExpected = "an int that fits 32 bits";
  int64_t wide = 0;
  if (convert(value, wide) != nullptr) return kExpected;
  field = static_cast<int32_t>(wide);
  return field == wide ? nullptr : kExpected;
}

inline const char* convert(PyObject* value, bool& field) {
  field = value == Py_True;
  return PyBool_Check(value) ? nullptr : "a bool";
}

inline const char* convert(PyObject* value, double& field) {
  constexpr const char* kExpected = "a float";
  if (PyFloat_Check(value)) {
    field = PyFloat_AS_DOUBLE(value);
    return nullptr;
  }
  if (!is_int(value)) return kExpected;
  field = PyLong_AsDouble(value);
  if (field != -1.0 || !PyErr_Occurred()) return nullptr;
  PyErr_Clear();
  return kExpected;
}

inline const char* convert(PyObject* value, float& field) {
  double wide = 0;
  const char* expected = convert(value, wide);
  field = static_cast<float>(wide);
  return expected;
}

inline const char* convert(PyObject* value, std::array<double, 3>& field) {
  constexpr const char* kExpected = "a tuple of three floats";
  if (!PyTuple_Check(value) || PyTuple_GET_SIZE(value) != 3) return kExpected;
  for (int i = 0; i < 3; ++i)
    if (convert(PyTuple_GET_ITEM(value, i), field[i]) != nullptr) return kExpected;
  return nullptr;
}

// An argument: its name, and a function that stores its value in the structure, with the result of `convert`.
struct Field {
  const char* name;
  const char* (*store)(void* args, PyObject* value);
};
using Fields = std::vector<Field>;

// The argument `name`, which is stored in the field `path` of an Args.
#define MSVIT_FIELD(Args, name, path)                                                                          \
  ::msvit::Field {                                                                                             \
    #name, [](void* args, PyObject* value) { return ::msvit::convert(value, static_cast<Args*>(args)->path); } \
  }

inline Fields operator+(Fields first, const Fields& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

// The arguments of a function. No template over the structure, so that little is compiled for each.
class NamedArguments {
 public:
  NamedArguments(const char* function, Fields fields) : function_(function), fields_(std::move(fields)) {
    for (const Field& field : fields_)
      keys_.push_back(pybind11::reinterpret_steal<pybind11::object>(PyUnicode_InternFromString(field.name)));
  }

  // The signature as text, in the form that inspect.signature reads.
  std::string signature() const {
    std::string text = function_ + "(*";
    for (const Field& field : fields_) text += std::string(", ") + field.name;
    return text + ")\n--\n\n";
  }

  // Fills the structure; returns false, with Python's error set, if an argument is wrong.
  bool fill(void* args, PyObject* unnamed, PyObject* named) const {
    return fill_in_order(args, unnamed, named) || fill_in_any_order(args, unnamed, named);
  }

 private:
  // The common, fast case; returns false, without an error, if an argument is out of order or wrong.
  bool fill_in_order(void* args, PyObject* unnamed, PyObject* named) const {
    if (PyTuple_GET_SIZE(unnamed) > 0 || named == nullptr || PyDict_Size(named) != size()) return false;
    Py_ssize_t position = 0;
    PyObject *key, *value;
    for (size_t i = 0; i < fields_.size(); ++i)
      if (!PyDict_Next(named, &position, &key, &value) || key != keys_[i].ptr() ||
          fields_[i].store(args, value) != nullptr)
        return false;
    return true;
  }

  bool fill_in_any_order(void* args, PyObject* unnamed, PyObject* named) const {
    const char* name = function_.c_str();
    if (PyTuple_GET_SIZE(unnamed) > 0)
      return fail("%s: expected named arguments only, got %zd without a name", name, PyTuple_GET_SIZE(unnamed));
    for (size_t i = 0; i < fields_.size(); ++i) {
      PyObject* value = named == nullptr ? nullptr : PyDict_GetItemWithError(named, keys_[i].ptr());
      if (value == nullptr) return fail("%s: missing argument '%s'", name, fields_[i].name);
      const char* expected = fields_[i].store(args, value);
      if (expected != nullptr)
        return fail("%s: argument '%s': expected %s, got %s", name, fields_[i].name, expected, Py_TYPE(value)->tp_name);
    }
    if (PyDict_Size(named) == size()) return true;
    Py_ssize_t position = 0;
    PyObject *key, *value;
    while (PyDict_Next(named, &position, &key, &value))
      if (is_unknown(key)) return fail("%s: unknown argument %R", name, key);
    return true;
  }

  Py_ssize_t size() const { return static_cast<Py_ssize_t>(fields_.size()); }

  bool is_unknown(PyObject* key) const {
    return std::none_of(keys_.begin(), keys_.end(),
                        [key](const pybind11::object& known) { return PyUnicode_Compare(known.ptr(), key) == 0; });
  }

  template <class... Values>
  static bool fail(const char* format, Values... values) {
    PyErr_Format(PyExc_TypeError, format, values...);
    return false;
  }

  const std::string function_;
  const Fields fields_;
  std::vector<pybind11::object> keys_;  // interned, as are the names in most calls: the objects are the same
};

template <class Args>
class NamedFunction {
 public:
  using Run = void (*)(const Args& args);

  NamedFunction(const char* name, Run run, Fields fields)
      : run_(run), arguments_(name, std::move(fields)), signature_(arguments_.signature()) {
    const auto function = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call));
    method_ = {name, function, METH_VARARGS | METH_KEYWORDS, signature_.c_str()};
  }
  NamedFunction(const NamedFunction&) = delete;
  NamedFunction& operator=(const NamedFunction&) = delete;

  PyMethodDef* method() { return &method_; }

 private:
  static PyObject* call(PyObject* self, PyObject* unnamed, PyObject* named) {
    const auto& function = *static_cast<const NamedFunction*>(PyCapsule_GetPointer(self, nullptr));
    Args args{};
    if (!function.arguments_.fill(&args, unnamed, named)) return nullptr;
    try {
      const pybind11::gil_scoped_release release;
      function.run_(args);
    } catch (const std::exception& error) {
      PyErr_SetString(PyExc_RuntimeError, error.what());
      return nullptr;
    } catch (...) {
      PyErr_SetString(PyExc_RuntimeError, "an exception that is not a std::exception");
      return nullptr;
    }
    Py_RETURN_NONE;
  }

  const Run run_;
  const NamedArguments arguments_;
  const std::string signature_;
  PyMethodDef method_;  // points to the name and into signature_
};

// Adds a function to the module that takes each field as a named argument, all of them required, and passes the
// structure to `run` with the GIL released. Wrong arguments raise TypeError; C++ exceptions become RuntimeError. `name`
// is a string literal.
template <class Args>
void define_named(pybind11::module_& m, const char* name, void (*run)(const Args& args), Fields fields) {
  auto* function = new NamedFunction<Args>(name, run, std::move(fields));
  const pybind11::capsule owner(function, [](void* pointer) { delete static_cast<NamedFunction<Args>*>(pointer); });
  const pybind11::object module_name = m.attr("__name__");
  PyObject* callable = PyCFunction_NewEx(function->method(), owner.ptr(), module_name.ptr());
  if (callable == nullptr) throw pybind11::error_already_set();
  m.attr(name) = pybind11::reinterpret_steal<pybind11::object>(callable);
}

}  // namespace msvit
