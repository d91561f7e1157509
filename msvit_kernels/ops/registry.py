"""`define`: registers an operator from the record of its call, whose fields name the arguments."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from msvit_kernels import validation
from msvit_kernels.ops.arguments import flattener, names, schema, unflattener

_library = torch.library.Library("msvit", "DEF")
_TENSOR = object()


class Derivative(NamedTuple):
    """The backward formula of an operator.

    Attributes:
        save: function of the call and the output; returns the tuple that the backward needs, of tensors, records and
            other values.
        backward: function of that tuple, of the gradients of the outputs and, by name, of `needed` (names of the
            arguments that need a gradient) and `backend`; returns a record with one gradient per argument.
    """

    save: Callable[[Any, Any], tuple[Any, ...]]
    backward: Callable[..., Any]


def define(
    name: str,
    record: type[Any],
    results: str,
    run: Callable[[Any, str | None], Any],
    fake: Callable[[Any], Any],
    derivative: Derivative | None = None,
) -> Callable[[Any, str | None], Any]:
    """Registers torch.ops.msvit.<name>.

    Args:
        name: name of the operator.
        record: type of its call, from `calls`.
        results: types of its results, in torch's schema language.
        run: implementation below autograd, a function of the call and the requested backend.
        fake: implementation for tensors without data, a function of the call.
        derivative: backward formula; None if the operator is not differentiable.

    Returns:
        Function of the call and the requested backend that runs the operator through torch's dispatcher.
    """
    _library.define(f"{name}({schema(record)}, str? backend) -> {results}")

    labels, unflatten = names(record), unflattener(record)

    def implementation(*arguments: Any) -> Any:
        return run(unflatten(arguments), arguments[-1])

    def without_data(*arguments: Any) -> Any:
        # One tensor without data brings a call here, and the others would not be read.
        validation.require_one_device(labels, arguments)
        return fake(unflatten(arguments))

    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"msvit::{name}", without_data, lib=_library)
    if derivative is not None:
        _register_derivative(name, record, derivative)
    operator, flatten = getattr(torch.ops.msvit, name).default, flattener(record)
    return lambda call, backend: operator(*flatten(call, backend))


def _register_derivative(name: str, record: type[Any], derivative: Derivative) -> None:
    arguments, unflatten = [*names(record), "backend"], unflattener(record)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.backend = inputs[-1]
        tensors: list[Tensor] = []
        ctx.saved = _take_tensors(derivative.save(unflatten(inputs), output), tensors)
        ctx.save_for_backward(*tensors)
        # With several outputs, None in place of zeros saves the backward some work.
        ctx.set_materialize_grads(not isinstance(output, tuple))

    def backward(ctx: Any, *douts: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = _put_back(ctx.saved, iter(ctx.saved_tensors))
        needed = {argument for argument, needs in zip(arguments, ctx.needs_input_grad, strict=True) if needs}
        gradients = derivative.backward(saved, *douts, needed=needed, backend=ctx.backend)._asdict()
        return tuple(gradients[argument] if argument in needed else None for argument in arguments)

    torch.library.register_autograd(f"msvit::{name}", backward, setup_context=setup_context, lib=_library)


def _take_tensors(value: Any, tensors: list[Tensor]) -> Any:
    """`value` with a marker in place of each tensor; appends the tensors to `tensors`."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return _TENSOR
    return _map_tuple(lambda item: _take_tensors(item, tensors), value)


def _put_back(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The inverse of `_take_tensors`."""
    return next(tensors) if value is _TENSOR else _map_tuple(lambda item: _put_back(item, tensors), value)


def _map_tuple(function: Callable[[Any], Any], value: Any) -> Any:
    """Applies `function` to each item of a tuple or record; returns any other value unchanged."""
    if not isinstance(value, tuple):
        return value
    items = [function(item) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def none_as_empty(gradients: Any, like: Tensor) -> tuple[Tensor, ...]:
    """Replaces each None by a tensor without elements, because the outputs of an operator have to be tensors."""
    return tuple(like.new_empty(0) if gradient is None else gradient for gradient in gradients)
