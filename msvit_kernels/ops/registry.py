"""`define`: registers an operator from the record of its call, whose fields name the arguments."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from msvit_kernels import validation
from msvit_kernels.ops.arguments import flattener, names, schema, unflattener
from msvit_kernels.ops.derivatives import Derivative, autograd_kernel

_library = torch.library.Library("msvit", "DEF")


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
        derivative: formulas of the derivatives; None if the operator is not differentiable.

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
    operator, flatten = getattr(torch.ops.msvit, name).default, flattener(record)
    torch.library.register_vmap(f"msvit::{name}", _one_by_one(operator), lib=_library)
    if derivative is not None:
        _library.impl(name, autograd_kernel(operator, record, derivative), "Autograd", with_keyset=True)
    return lambda call, backend: operator(*flatten(call, backend))


def _one_by_one(operator: Any) -> Callable[..., Any]:
    """The operator under `torch.vmap`: one call for each sample."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        def of_sample(sample: int) -> Any:
            # Contiguous, because kernels rely on strides that the public functions checked with the batch in place.
            return operator(
                *(
                    x.select(dim, sample).contiguous() if isinstance(dim, int) else x
                    for x, dim in zip(arguments, in_dims, strict=True)
                )
            )

        results = [of_sample(sample) for sample in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(each) for each in zip(*results, strict=True)), (0,) * len(results[0])

    return rule


def none_as_empty(gradients: Any, like: Tensor) -> tuple[Tensor, ...]:
    """Replaces each None by a tensor without elements, because the outputs of an operator have to be tensors."""
    return tuple(like.new_empty(0) if gradient is None else gradient for gradient in gradients)
