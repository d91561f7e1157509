"""The derivatives of an operator: the kernel that torch's dispatcher calls if autograd or a transform has to see it.

torch.library.register_autograd has no forward mode: it drops the tangents of dual tensors and gives 0. It also refuses
torch.func.grad. The kernel here does what the kernels of torch's own operators do. Under torch.func each level of
transforms calls it once, and the call below autograd proceeds to the next level.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch import eager_transforms
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from msvit_kernels.ops.arguments import names, unflattener

_TENSOR = object()


class Derivative(NamedTuple):
    """The formulas of an operator's derivatives. They may call operators of `ops`, which have derivatives themselves.

    Attributes:
        save: function of the call and the output; returns the tuple that the formulas need, of tensors, records and
            other values.
        backward: function of that tuple, of the gradients of the outputs (None for zeros, but not all) and, by name, of
            `needed` (names of the arguments that need a gradient) and `backend`; returns gradients by name of argument,
            those of `needed` at least.
        tangent: function of that tuple, of the tangents by name of argument (at least one) and of `backend`; returns
            the tangents of the outputs, as the operator returns its outputs.
    """

    save: Callable[[Any, Any], tuple[Any, ...]]
    backward: Callable[..., Mapping[str, Tensor | None]]
    tangent: Callable[[Any, dict[str, Tensor], str | None], Any]


def forward_mode_is_on() -> bool:
    """Whether tensors may carry tangents: within a `torch.autograd.forward_ad.dual_level` or `torch.func.jvp`."""
    return forward_ad._current_level >= 0


def autograd_kernel(operator: Any, record: type[Any], derivative: Derivative) -> Callable[..., Any]:
    """Makes the kernel for the dispatch key Autograd, a function of the key set and the operator's arguments.

    Args:
        operator: overload of the operator.
        record: type of its call, from `calls`.
        derivative: its formulas.
    """
    function = _function(operator, record, derivative)

    def kernel(keyset: Any, *arguments: Any) -> Any:
        if forward_mode_is_on() or (torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)):
            if eager_transforms.JVP_NESTING > 1:
                raise NotImplementedError(
                    f"{operator._schema.name}: forward mode inside forward mode is not implemented; "
                    "use torch.func.grad, vjp or jacrev for one of the two"
                )
            with enable_single_level_autograd_function() if _in_transform() else nullcontext():
                return function.apply(keyset, *arguments)
        return _below_autograd(operator, keyset, arguments)

    return kernel


def _in_transform() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


def _below_autograd(operator: Any, keyset: Any, arguments: tuple[Any, ...]) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return operator.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)


def _function(operator: Any, record: type[Any], derivative: Derivative) -> Any:
    arguments, unflatten = [*names(record), "backend"], unflattener(record)

    def forward(ctx: Any, keyset: Any, *inputs: Any) -> Any:
        if _in_transform():
            # apply() turned both off, for this level and for those below it.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                output = _below_autograd(operator, keyset, inputs)
        else:
            output = _below_autograd(operator, keyset, inputs)
        ctx.backend = inputs[-1]
        tensors: list[Tensor] = []
        ctx.saved = _take_tensors(derivative.save(unflatten(inputs), output), tensors)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)  # None in place of zeros saves work
        return output

    def backward(ctx: Any, *douts: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(dout is None for dout in douts):
            return (None,) * (1 + len(arguments))
        saved = _put_back(ctx.saved, iter(ctx.saved_tensors))
        wants = zip(arguments, ctx.needs_input_grad[1:], strict=True)
        needed = {argument for argument, needs in wants if needs}
        gradients = derivative.backward(saved, *douts, needed=needed, backend=ctx.backend)
        return None, *(gradients[argument] if argument in needed else None for argument in arguments)

    def jvp(ctx: Any, _: Any, *tangents: Tensor | None) -> Any:
        saved = _put_back(ctx.saved, iter(ctx.saved_tensors))
        given = {name: tangent for name, tangent in zip(arguments, tangents, strict=True) if tangent is not None}
        return derivative.tangent(saved, given, ctx.backend)

    formulas = {"forward": staticmethod(forward), "backward": staticmethod(backward), "jvp": staticmethod(jvp)}
    return type(operator._opname, (_SingleLevelFunction,), formulas)


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
