// Python functions whose arguments are the fields of a C++ structure, by name: relu(x=..., out=..., size=...).
//
//     define_named<ReluArgs>(m, "relu", [](const ReluArgs& args) { ... },
//                            std::tuple{MSVIT_FIELD(x, x), MSVIT_FIELD(out, out), MSVIT_FIELD(size, size)});
//
// pybind11 can name arguments too, but takes longer to match twenty of them than a short kernel runs. Here names in the
// order of the fields cost one comparison of addresses each. The names come as a dictionary: Python makes one anyway
// for a call with ** or with more than 15 names.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <exception>
#include <string>
#include <tuple>
#include <utility>

namespace msvit {

// `convert` stores a Python value in a field. It returns null if it could, else a description of what it expected. A
// bool is not an int, nor is a float; an int may stand for a float. Ints that do not fit are refused.

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

// An argument, and how its value gets into the structure: store(args, value) returns what `convert` does.
template <class Store>
struct Field {
  const char* name;
  Store store;
};
template <class Store>
Field(const char*, Store) -> Field<Store>;

// The argument `name`, which fills args.path.
#define MSVIT_FIELD(name, path)                                                           \
  ::msvit::Field {                                                                        \
    #name, [](auto& args, PyObject* value) { return ::msvit::convert(value, args.path); } \
  }

template <class Args, class... Stores>
class NamedFunction {
 public:
  using Run = void (*)(const Args& args);

  NamedFunction(const char* name, Run run, const std::tuple<Field<Stores>...>& fields)
      : name_(name), run_(run), fields_(fields) {
    signature_ = name_ + "(*";
    each_field([this](size_t i, const auto& field) {
      keys_[i] = pybind11::reinterpret_steal<pybind11::object>(PyUnicode_InternFromString(field.name));
      signature_ += std::string(", ") + field.name;
      return true;
    });
    signature_ += ")\n--\n\n";  // the form that inspect.signature reads
    const auto function = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call));
    method_ = {name_.c_str(), function, METH_VARARGS | METH_KEYWORDS, signature_.c_str()};
  }
  NamedFunction(const NamedFunction&) = delete;
  NamedFunction& operator=(const NamedFunction&) = delete;

  PyMethodDef* method() { return &method_; }

 private:
  static constexpr Py_ssize_t kFields = sizeof...(Stores);

  static PyObject* call(PyObject* self, PyObject* unnamed, PyObject* named) {
    const auto& function = *static_cast<const NamedFunction*>(PyCapsule_GetPointer(self, nullptr));
    Args args{};
    if (!function.fill_in_order(args, unnamed, named) && !function.fill(args, unnamed, named)) return nullptr;
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

  // The common call, and the fast one. False if anything is out of order or wrong.
  bool fill_in_order(Args& args, PyObject* unnamed, PyObject* named) const {
    if (PyTuple_GET_SIZE(unnamed) > 0 || named == nullptr || PyDict_Size(named) != kFields) return false;
    Py_ssize_t position = 0;
    PyObject *key, *value;
    return each_field([&](size_t i, const auto& field) {
      return PyDict_Next(named, &position, &key, &value) && key == keys_[i].ptr() &&
             field.store(args, value) == nullptr;
    });
  }

  // Any call. False with Python's error set.
  bool fill(Args& args, PyObject* unnamed, PyObject* named) const {
    const char* name = name_.c_str();
    if (PyTuple_GET_SIZE(unnamed) > 0)
      return fail("%s: expected named arguments only, got %zd without a name", name, PyTuple_GET_SIZE(unnamed));
    const bool filled = each_field([&](size_t i, const auto& field) {
      PyObject* value = named == nullptr ? nullptr : PyDict_GetItemWithError(named, keys_[i].ptr());
      if (value == nullptr) return fail("%s: missing argument '%s'", name, field.name);
      const char* expected = field.store(args, value);
      return expected == nullptr ||
             fail("%s: argument '%s': expected %s, got %s", name, field.name, expected, Py_TYPE(value)->tp_name);
    });
    if (!filled || PyDict_Size(named) == kFields) return filled;
    Py_ssize_t position = 0;
    PyObject *key, *value;
    while (PyDict_Next(named, &position, &key, &value))
      if (is_unknown(key)) return fail("%s: unknown argument %R", name, key);
    return true;
  }

  bool is_unknown(PyObject* key) const {
    return std::none_of(keys_.begin(), keys_.end(),
                        [key](const pybind11::object& known) { return PyUnicode_Compare(known.ptr(), key) == 0; });
  }

  template <class... Values>
  static bool fail(const char* format, Values... values) {
    PyErr_Format(PyExc_TypeError, format, values...);
    return false;
  }

  // visit(i, field) for each field in order, until one returns false: unrolled. True if none does.
  template <class Visit>
  bool each_field(const Visit& visit) const {
    return visit_fields(visit, std::index_sequence_for<Stores...>());
  }
  template <class Visit, size_t... I>
  bool visit_fields(const Visit& visit, std::index_sequence<I...>) const {
    return (visit(I, std::get<I>(fields_)) && ...);
  }

  const std::string name_;
  const Run run_;
  const std::tuple<Field<Stores>...> fields_;
  std::array<pybind11::object, sizeof...(Stores)>
      keys_;  // interned: the names in a call are then mostly the same objects
  std::string signature_;
  PyMethodDef method_;  // points into the strings above
};

// Adds a function to the module that takes each field as a named argument, all required, and gives the structure to
// `run`, with the GIL released. Wrong calls raise TypeError, exceptions of C++ become RuntimeError.
template <class Args, class... Stores>
void define_named(pybind11::module_& m, const char* name, void (*run)(const Args& args),
                  const std::tuple<Field<Stores>...>& fields) {
  using Function = NamedFunction<Args, Stores...>;
  auto* function = new Function(name, run, fields);
  const pybind11::capsule owner(function, [](void* pointer) { delete static_cast<Function*>(pointer); });
  const pybind11::object module_name = m.attr("__name__");
  PyObject* callable = PyCFunction_NewEx(function->method(), owner.ptr(), module_name.ptr());
  if (callable == nullptr) throw pybind11::error_already_set();
  m.attr(name) = pybind11::reinterpret_steal<pybind11::object>(callable);
}

}  // namespace msvit
