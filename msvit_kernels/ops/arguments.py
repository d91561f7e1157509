"""Conversion between the records of `calls` and the flat argument lists of torch's dispatcher."""

import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, get_type_hints

from torch import Tensor

from msvit_kernels.calls import SymInt

Record = TypeVar("Record", bound=tuple[Any, ...])

_SCHEMA_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    int: "int",
    SymInt: "SymInt",
    float: "float",
    bool: "bool",
    str: "str",
    Sequence[int]: "int[]",
    Sequence[float]: "float[]",
}
_SCHEMA_TYPES |= {kind | None: f"{name}?" for kind, name in _SCHEMA_TYPES.items()}


def schema(record: type[tuple[Any, ...]]) -> str:
    """The fields of a record as arguments in torch's schema language: "Tensor q, Tensor k, ...".

    Raises:
        TypeError: a field has a type that is not in `_SCHEMA_TYPES`.
    """
    arguments = _arguments(record)
    for name, kind in arguments:
        if kind not in _SCHEMA_TYPES:
            known = ", ".join(getattr(each, "__name__", str(each)) for each in _SCHEMA_TYPES)
            raise TypeError(f"{record.__name__}.{name}: expected one of {known}, got {kind}")
    return ", ".join(f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in arguments)


def gradients_schema(record: type[tuple[Any, ...]]) -> str:
    """The fields of a record of gradients as results in the schema language: "(Tensor dq, Tensor dk, ...)"."""
    return f"({', '.join(f'Tensor d{name}' for name in names(record))})"


def names(record: type[tuple[Any, ...]]) -> list[str]:
    """Names of the arguments, in the order of the schema."""
    return [name for name, _ in _arguments(record)]


def flattener(record: type[tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Makes a function that returns a call's arguments in the order of the schema, followed by any further values.

    The function is compiled from source, as namedtuple does it, because it runs in every call, and a loop over the
    fields takes as long as a small kernel.
    """
    source = f"lambda call, *more: ({', '.join(_reads(record, 'call'))}, *more)"
    flatten: Callable[..., tuple[Any, ...]] = eval(source)
    return flatten


def _reads(record: Any, call: str) -> list[str]:
    """Expressions that read the arguments from a record; `call` is the expression for the record."""
    found = []
    for at, kind in enumerate(_fields(record).values()):
        found += _reads(kind, f"{call}[{at}]") if _is_record(kind) else [f"{call}[{at}]"]
    return found


def unflattener(record: type[Record]) -> Callable[[Sequence[Any]], Record]:
    """Makes the inverse of `flattener`: a function from the values of the arguments to the record."""
    scope: dict[str, Any] = {"new": tuple.__new__}  # a record's own __new__ is Python and takes twice the time
    source = _construction(record, itertools.count(), scope)
    build: Callable[[Sequence[Any]], Record] = eval(f"lambda values: {source}", scope)
    return build


def _construction(record: Any, places: Iterator[int], scope: dict[str, Any]) -> str:
    """Expression that makes a record of the next `values`; adds the classes that it names to `scope`."""
    scope[record.__name__] = record
    parts = [
        _construction(kind, places, scope) if _is_record(kind) else f"values[{next(places)}]"
        for kind in _fields(record).values()
    ]
    return f"new({record.__name__}, ({', '.join(parts)},))"


def options(call: tuple[Any, ...]) -> tuple[str, ...]:
    """Names of the options that differ from their defaults, those of inner records included."""
    given: tuple[str, ...] = ()
    for name, get, default in known_options(type(call)):
        value = get(call)
        # Compared by value, because torch's dispatcher copies floats and strings. No default is a tensor.
        if value is not default and (isinstance(value, Tensor) or value != default):
            given += (name,)
    return given


@functools.cache
def known_options(record: Any) -> list[tuple[str, Callable[[Any], Any], Any]]:
    """(name, function that reads the value from a call, default) of each option, those of inner records included."""
    found: list[tuple[str, Callable[[Any], Any], Any]] = []
    for at, (name, kind) in enumerate(_fields(record).items()):
        if _is_record(kind):
            inner = operator.itemgetter(at)
            found += [(name, _composed(get, inner), default) for name, get, default in known_options(kind)]
        elif name in record._field_defaults:
            found.append((name, operator.itemgetter(at), record._field_defaults[name]))
    return found


def _composed(outer: Callable[[Any], Any], inner: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda call: outer(inner(call))


@functools.cache
def _fields(record: Any) -> dict[str, Any]:
    return get_type_hints(record, include_extras=True)


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


def _arguments(record: type[tuple[Any, ...]]) -> list[tuple[str, Any]]:
    found = []
    for name, kind in _fields(record).items():
        found += _arguments(kind) if _is_record(kind) else [(name, kind)]
    return found
