"""Conversion of records to argument lists and back, on artificial records; and the counts of `Scales`."""

from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from msvit_kernels import Scales
from msvit_kernels.calls import SymInt
from msvit_kernels.ops import arguments


class Inner(NamedTuple):
    mask: Tensor
    size: SymInt
    weight: Tensor | None = None


class Record(NamedTuple):
    x: Tensor
    inner: Inner
    scale: float
    eps: float = 0.5
    mode: str = "derivative"
    window: int = 100_000
    sizes: Sequence[int] | None = None
    soft_cap: float | None = None


CALL = Record(torch.ones(1), Inner(torch.ones(2), 3), 0.25)


def test_schema():
    assert arguments.schema(Record) == (
        "Tensor x, Tensor mask, SymInt size, Tensor? weight, float scale, float eps, str mode, int window, "
        "int[]? sizes, float? soft_cap"
    )
    assert arguments.gradients_schema(Inner) == "(Tensor dmask, Tensor dsize, Tensor dweight)"


def test_a_type_without_a_name_in_the_schema_is_an_error():
    class Wrong(NamedTuple):
        path: bytes

    with pytest.raises(TypeError, match=r"Wrong.path: expected one of Tensor, .*, got <class 'bytes'>"):
        arguments.schema(Wrong)


def test_flatten_and_back():
    values = arguments.flattener(Record)(CALL)
    assert len(values) == len(arguments.names(Record))
    assert arguments.unflattener(Record)(values) == CALL


def test_options_are_told_by_value():
    # torch's dispatcher hands on other objects than it got.
    through_torch = CALL._replace(eps=float("0.5"), mode="".join(["deriv", "ative"]), window=int("100000"))
    assert arguments.options(CALL) == arguments.options(through_torch) == ()
    given = CALL._replace(inner=CALL.inner._replace(weight=torch.ones(3)), eps=0.25, mode="switch", soft_cap=1.0)
    assert arguments.options(given) == ("weight", "eps", "mode", "soft_cap")


@pytest.mark.parametrize(("scale_factor", "num_prefix"), [(2, 0), (2, 1), (3, 5)])
def test_counts(scale_factor, num_prefix):
    scales = Scales((2, 3), scale_factor, num_prefix)
    cells = scale_factor**2
    assert scales.grid_size == (2 * scale_factor, 3 * scale_factor)
    assert scales.num_candidates == num_prefix + 6 + 6 * cells
    assert scales.most_tokens == num_prefix + 6 * cells
    for num_fine in range(7):
        assert scales.patches(num_fine) == (6 - num_fine) + num_fine * cells == scales.possible_patches[num_fine]
        assert scales.mean_patches(num_fine / 6) == pytest.approx(scales.patches(num_fine))
    assert len(scales.possible_patches) == 7
    assert scales.total_tokens(4, 5) == 4 * num_prefix + 19 + 5 * cells


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (((2, -2), 2, 1), r"regions: expected two numbers of at least 0, got \(2, -2\)"),
        (((2, 2), 1, 1), "scale_factor: expected at least 2, got 1"),
        (((2, 2), 2, -1), "num_prefix: expected at least 0, got -1"),
    ],
)
def test_scales_that_cannot_be_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        Scales(*wrong)
