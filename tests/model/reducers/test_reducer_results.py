"""Results of reducers that do not fit are refused by name, in every token mode and at both places."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from msvit.models.vit import TOKEN_MODES
from msvit.reducers import PLACES, PackedSequences, PaddedSequences, Sequences
from msvit_kernels import Packing
from tests.model.model_helpers import images_of, mask_of
from tests.model.reducer_helpers import make_model

Result = Callable[[Tensor, Sequences], Any]


class Returns:
    """A reducer whose result is that of a function."""

    def __init__(self, place: str, result: Result) -> None:
        self.place, self.result = place, result

    def __call__(self, tokens, sequences, attention):
        return self.result(tokens, sequences)


def fewer_images(sequences: Sequences) -> tuple[Tensor, Sequences]:
    if isinstance(sequences, PaddedSequences):
        active = sequences.active[1:]
        return torch.zeros(active.numel(), 32).double(), PaddedSequences(active, None, None, sequences.num_prefix)
    offsets = sequences.packing.cu_seqlens[:2].clone()
    rows = int(offsets[1])
    return torch.zeros(rows, 32).double(), PackedSequences(Packing.from_offsets(offsets, rows, rows, 1))


def no_prefix(sequences: Sequences) -> Sequences:
    if isinstance(sequences, PaddedSequences):
        return replace(sequences, num_prefix=0)
    old = sequences.packing
    return PackedSequences(Packing.from_offsets(old.cu_seqlens, old.max_seqlen, old.total_tokens))


def weighted(sequences: Sequences, change: Callable[[Tensor], Any]) -> Sequences:
    return replace(sequences, key_weight=change(sequences.is_active().double()))


WRONG_RESULTS = [
    pytest.param(lambda x, s: None, r"expected a pair \(tokens, sequences\), got NoneType", id="none"),
    pytest.param(lambda x, s: x, r"expected a pair .*, got a tensor torch.float64 of shape", id="tokens-only"),
    pytest.param(lambda x, s: (x, s, None), r"expected a pair .*, got a tuple of 3", id="three"),
    pytest.param(lambda x, s: (s, x), "expected a tensor of tokens, got Pa", id="swapped"),
    pytest.param(lambda x, s: (x[:, :16], s), r"expected tokens of shape \[rows, 32\], got \[.*, 16\]", id="width"),
    pytest.param(lambda x, s: (x[None], s), r"expected tokens of shape \[rows, 32\], got \[1, ", id="axes"),
    pytest.param(lambda x, s: (x.float(), s), "expected tokens of dtype torch.float64, got torch.float32", id="dtype"),
    pytest.param(lambda x, s: (x.to("meta"), s), "expected tokens on cpu, got meta", id="device"),
    pytest.param(lambda x, s: (x, x), "expected PackedSequences or PaddedSequences, got a tensor", id="no-sequences"),
    pytest.param(lambda x, s: (x, PackedSequences(x)), "expected sequences with a Packing, got a tensor", id="packing"),
    pytest.param(
        lambda x, s: (x, PaddedSequences(torch.ones(2, 10), None, None, 1)),
        r"expected sequences with `active` bool \[batch, k\], got a tensor torch.float32 of shape \[2, 10\]",
        id="active",
    ),
    pytest.param(lambda x, s: fewer_images(s), "expected sequences of 2 images, got 1", id="batch"),
    pytest.param(lambda x, s: (x, no_prefix(s)), "expected num_prefix 1, got 0", id="prefix"),
    pytest.param(lambda x, s: (x[:-1], s), "expected .* tokens, as many as the sequences have rows, got", id="rows"),
    pytest.param(lambda x, s: (x, weighted(s, lambda w: 1.0)), "expected a tensor as key_weight, got float", id="one"),
    pytest.param(lambda x, s: (x, weighted(s, lambda w: w[1:])), "expected a key_weight of shape", id="weight-shape"),
    pytest.param(
        lambda x, s: (x, weighted(s, lambda w: w.half().view(getattr(s, "active", w).shape))),
        "expected a key_weight of dtype torch.float64, got torch.float16",
        id="weight-dtype",
    ),
]


@torch.no_grad()
@pytest.mark.parametrize(("result", "words"), WRONG_RESULTS)
@pytest.mark.parametrize("token_mode", TOKEN_MODES)
@pytest.mark.parametrize("place", PLACES)
def test_wrong_results(place: str, token_mode: str, result: Result, words: str) -> None:
    model = make_model({1: Returns(place, result)})
    model.token_mode = token_mode
    with pytest.raises((TypeError, ValueError), match=rf"^reducers\[1\]: {words}"):
        model(images_of(48).double(), mask_of((2, 3, 3)))


@torch.no_grad()
@pytest.mark.parametrize("token_mode", TOKEN_MODES)
def test_key_weights_of_ones_change_nothing(token_mode: str) -> None:
    images, mask = images_of(48).double(), mask_of((2, 3, 3))
    plain = make_model({})
    model = make_model(
        {0: Returns("before_block", lambda x, s: (x, weighted(s, lambda w: w.view(getattr(s, "active", w).shape))))}
    )
    plain.token_mode = model.token_mode = token_mode
    torch.testing.assert_close(model(images, mask), plain(images, mask))
