"""`keep` refuses the same calls in packed and padded sequences, and pooling of an image without tokens gives zero."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from msvit.models.vit import TOKEN_MODES
from msvit.tokens import sequences as sequences_module
from msvit.tokens.sequences import PackedSequences, PaddedSequences, Sequences
from msvit_kernels import Packing
from tests.model.model_helpers import images_of, mask_of
from tests.model.reducer_helpers import gradients, make_model

# Two images of three rows, of which the first is a prefix token.
SEQUENCES = [
    pytest.param(
        PackedSequences(Packing.from_offsets(torch.tensor([0, 3, 6], dtype=torch.int32), 3, 6, 1)), id="packed"
    ),
    pytest.param(PaddedSequences(torch.ones(2, 3, dtype=torch.bool), None, None, 1), id="padded"),
]
TOKENS, MASK = torch.randn(6, 4), torch.tensor([False, True, False, False, False, True])

WRONG_CALLS = [
    pytest.param((TOKENS, MASK[:1]), ValueError, r"mask: expected shape \(6,\), got \(1,\)", id="mask-of-one"),
    pytest.param((TOKENS, MASK.view(2, 3)), ValueError, "mask: expected 1 axes, got 2", id="mask-by-image"),
    pytest.param((TOKENS, MASK.long()), TypeError, "mask: expected dtype bool, got int64", id="int64"),
    pytest.param((TOKENS, MASK.float()), TypeError, "mask: expected dtype bool, got float32", id="float"),
    pytest.param((TOKENS, MASK.tolist()), TypeError, "mask: expected a tensor, got list", id="list"),
    pytest.param((TOKENS, MASK.to("meta")), ValueError, "mask: expected device cpu, got meta", id="mask-device"),
    pytest.param((TOKENS[:5], MASK), ValueError, r"tokens: expected shape \(6, 4\), got \(5, 4\)", id="few-tokens"),
    pytest.param((TOKENS.view(2, 3, 4), MASK), ValueError, "tokens: expected 2 axes, got 3", id="tokens-by-image"),
    pytest.param((TOKENS.to("meta"), MASK), ValueError, "tokens: expected device cpu, got meta", id="tokens-device"),
    pytest.param((TOKENS, MASK, 3.0), TypeError, "total_tokens: expected an int, got float", id="float-total"),
    pytest.param((TOKENS, MASK, True), TypeError, "total_tokens: expected an int, got bool", id="bool-total"),
    pytest.param((TOKENS, MASK, -1), ValueError, "total_tokens: expected at least 0, got -1", id="negative-total"),
    pytest.param(
        (TOKENS, MASK, 3), ValueError, "total_tokens: .*(tokens 3, got 4|active rows 4, got 3)", id="low-total"
    ),
    pytest.param(
        (TOKENS, MASK, 5), ValueError, "total_tokens: .*(tokens 5, got 4|active rows 4, got 5)", id="high-total"
    ),
]


@pytest.mark.parametrize(("arguments", "error", "words"), WRONG_CALLS)
@pytest.mark.parametrize("sequences", SEQUENCES)
def test_wrong_calls_of_keep(sequences: Sequences, arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        sequences.keep(*arguments)


@pytest.mark.parametrize("total_tokens", [None, 4])
@pytest.mark.parametrize("sequences", SEQUENCES)
def test_keep(sequences: Sequences, total_tokens: int | None) -> None:
    tokens, kept = sequences.keep(TOKENS, MASK, total_tokens)
    assert torch.equal(tokens[kept.is_active()], TOKENS[[0, 1, 3, 5]])
    assert kept.batch_index[kept.is_active()].tolist() == [0, 0, 1, 1]
    assert kept.num_rows == len(tokens)


def test_rows_that_are_inactive_already_do_not_count() -> None:
    active = torch.tensor([[True, True, True], [True, True, False]])
    _, kept = PaddedSequences(active, None, None, 1).keep(TOKENS, MASK, 3)
    assert kept.active.tolist() == [[True, True, False], [True, False, False]]


@torch.no_grad()
def test_blocks_share_one_key_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    with_some_key = sequences_module._with_some_key
    monkeypatch.setattr(sequences_module, "_with_some_key", lambda active: made.append(active) or with_some_key(active))
    model = make_model({}, gate="entropy", class_token=False, global_pool="avg")
    model.token_mode = "masked"
    model(images_of(48).double())
    assert len(model.blocks) > 1
    assert len(made) == 1


class Nothing:
    """Leaves no patch token in the first image."""

    place = "after_attention"

    def __call__(self, tokens: Tensor, sequences: Sequences, attention: Any) -> tuple[Tensor, Sequences]:
        return sequences.keep(tokens, sequences.batch_index > 0)


POOLS = [
    pytest.param({"global_pool": "avg"}, id="avg"),
    pytest.param({"global_pool": "avg", "class_token": False}, id="avg-no-prefix"),
    pytest.param({"global_pool": "map", "reg_tokens": 1}, id="map"),
    pytest.param({"global_pool": "map", "class_token": False}, id="map-no-prefix"),
]


@pytest.mark.parametrize("kwargs", POOLS)
@pytest.mark.parametrize("gate", ["entropy", "mlp"])
@pytest.mark.parametrize("token_mode", TOKEN_MODES)
def test_an_image_without_patch_tokens(token_mode: str, gate: str, kwargs: dict[str, Any]) -> None:
    """Its mean is zero, in the last block and in the one before it, and no gradient is NaN."""
    for block in (0, 1):
        model = make_model({block: Nothing()}, gate=gate, **kwargs)
        if gate == "mlp":
            nn.init.normal_(model.gate.fc4.weight, std=0.3)
        model.token_mode = token_mode
        if kwargs["global_pool"] == "avg":
            model.fc_norm = nn.Identity()
        images = images_of(48).double()
        pooled: list[Tensor] = []
        model.fc_norm.register_forward_pre_hook(lambda _, arguments, pooled=pooled: pooled.append(arguments[0]))
        logits = model(images, mask_of((2, 3, 3)) if gate == "entropy" else None)
        assert logits.isfinite().all()
        if kwargs["global_pool"] == "avg":
            assert pooled[0][0].eq(0).all()
            assert pooled[0][1].ne(0).all()
        found = gradients(model, logits.square().sum())
        assert all(gradient.isfinite().all() for gradient in found.values())
