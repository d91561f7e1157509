"""From the records of `calls` to argument lists, as torch's dispatcher wants them, and back."""

import functools
import operator
from collections.abc import Callable, Sequence
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
    """The fields as arguments in torch's schema language: "Tensor q, Tensor k, ...".

    Raises:
        TypeError: a field has a type that the language lacks, or that nobody needed yet.
    """
    arguments = _arguments(record)
    for name, kind in arguments:
        if kind not in _SCHEMA_TYPES:
            known = ", ".join(getattr(each, "__name__", str(each)) for each in _SCHEMA_TYPES)
            raise TypeError(f"{record.__name__}.{name}: expected one of {known}, got {kind}")
    return ", ".join(f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in arguments)


def gradients_schema(record: type[tuple[Any, ...]]) -> str:
    """The fields of a record of gradients as results: "(Tensor dq, Tensor dk, ...)"."""
    return f"({', '.join(f'Tensor d{name}' for name in names(record))})"


def names(record: type[tuple[Any, ...]]) -> list[str]:
    """Names of the arguments, in the order of the schema."""
    return [name for name, _ in _arguments(record)]


def flattener(record: type[tuple[Any, ...]]) -> Callable[[Any], list[Any]]:
    """A function from a call to the values of its arguments, in the order of the schema.

    What it knows of the record it looks up here: torch.compile, which traces the function, cannot.
    """
    inner = [flattener(kind) if _is_record(kind) else None for kind in _fields(record).values()]

    def flatten(call: Any) -> list[Any]:
        values = []
        for value, flatten_inner in zip(call, inner, strict=True):
            values += [value] if flatten_inner is None else flatten_inner(value)
        return values

    return flatten


def unflattener(record: type[Record]) -> Callable[[Sequence[Any]], Record]:
    """A function from the values of the arguments to the record that `flattener` takes them from."""
    build: Callable[[Sequence[Any]], Record] = _builder(record, 0)
    return build


def _builder(record: Any, first: int) -> Callable[[Sequence[Any]], Any]:
    """Makes a record of the values from number `first` on."""
    parts: list[Callable[[Sequence[Any]], Any]] = []
    for kind in _fields(record).values():
        parts.append(_builder(kind, first) if _is_record(kind) else operator.itemgetter(first))
        first += len(names(kind)) if _is_record(kind) else 1
    return lambda values: record(*[part(values) for part in parts])


def options(call: tuple[Any, ...]) -> tuple[str, ...]:
    """Names of the options that have another value than their default, those of inner records included."""
    given: tuple[str, ...] = ()
    for name, get, default in known_options(type(call)):
        value = get(call)
        # By value: torch's dispatcher makes new floats and strings. A tensor is never equal to a default.
        if value is not default and (isinstance(value, Tensor) or value != default):
            given += (name,)
    return given


@functools.cache
def known_options(record: Any) -> list[tuple[str, Callable[[Any], Any], Any]]:
    """The name of each option, a function that gets its value from a call, and its default."""
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
