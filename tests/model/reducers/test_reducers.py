"""Reducers: fewer and more rows in every token mode, against blocks of timm run image by image."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import msvit
from msvit.models.vit import TOKEN_MODES
from msvit.policies import Budget
from msvit.reducers import PLACES, AttentionTerms, PackedSequences, Sequences
from msvit_kernels import MixedScaleLayout, Packing
from tests.model.model_helpers import LOGITS_TOLERANCE, POOL_IDS, POOLS, images_of, mask_of, small_vit
from tests.model.reducer_helpers import Best, EverySecond, gradients, make_model

DOCS = Path(__file__).resolve().parents[3] / "docs" / "reducers.md"
MASKS = [
    pytest.param(lambda: mask_of((3, 3, 3)), id="random"),
    pytest.param(lambda: mask_of((1, 3, 3)), id="batch-1"),
    pytest.param(lambda: torch.stack([torch.zeros(3, 3), torch.ones(3, 3)]).bool(), id="coarse-beside-fine"),
    pytest.param(lambda: torch.zeros(2, 3, 3).bool(), id="all-coarse"),
    pytest.param(lambda: torch.ones(2, 3, 3).bool(), id="all-fine"),
]


class AppendMean:
    """One row more for each image: the mean of its rows. Packed only."""

    place = "before_block"

    def __call__(
        self, tokens: Tensor, sequences: Sequences, attention: AttentionTerms | None
    ) -> tuple[Tensor, Sequences]:
        assert isinstance(sequences, PackedSequences)
        old, batch = sequences.packing, torch.arange(sequences.batch + 1, dtype=torch.int32)
        image = torch.cat([old.batch_index, batch[:-1]])
        sums = tokens.new_zeros(sequences.batch, tokens.shape[1]).index_add(0, old.batch_index, tokens)
        order = image.argsort(stable=True)  # behind the other rows of its image
        packing = Packing.from_offsets(
            old.cu_seqlens + batch, old.max_seqlen + 1, old.total_tokens + sequences.batch, old.num_prefix
        )
        weight = sequences.key_weight
        if weight is not None:
            weight = torch.cat([weight, weight.new_ones(sequences.batch)])[order]
        means = sums / old.cu_seqlens.diff()[:, None]
        return torch.cat([tokens, means])[order], PackedSequences(packing, weight)

    def by_hand(self, x: Tensor, num_prefix: int) -> Tensor:
        return torch.cat([x, x.mean(0, keepdim=True)])


def features_by_hand(reducers: dict[int, Any], images: Tensor, mask: Tensor, **kwargs: Any) -> list[Tensor]:
    """Class tokens after the last norm, by timm's blocks on one image at a time."""
    vit, model = small_vit(**kwargs).double(), make_model({}, **kwargs)
    embedded: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: embedded.append(args[0]))
    features = []
    for b in range(len(images)):
        model(images[b : b + 1], mask[b : b + 1])
        x = embedded.pop()
        for i, block in enumerate(vit.blocks):
            reducer = reducers.get(i)
            if reducer is not None and reducer.place == "before_block":
                x = reducer.by_hand(x, vit.num_prefix_tokens)
            x = x + block.ls1(block.attn(block.norm1(x)[None]))[0]
            if reducer is not None and reducer.place == "after_attention":
                x = reducer.by_hand(x, vit.num_prefix_tokens)
            x = x + block.ls2(block.mlp(block.norm2(x)))
        features.append(vit.norm(x)[0])
    return features


@torch.no_grad()
@pytest.mark.parametrize("make_mask", MASKS)
@pytest.mark.parametrize("token_mode", TOKEN_MODES)
@pytest.mark.parametrize("place", PLACES)
def test_fewer_rows_equal_each_image_by_itself(place: str, token_mode: str, make_mask) -> None:
    reducers = {0: EverySecond(place), 1: EverySecond(place)}
    model, mask = make_model(reducers), make_mask()
    model.token_mode = token_mode
    images = images_of(48, len(mask)).double()
    expected = torch.stack(features_by_hand(reducers, images, mask))
    tokens, packing = model.forward_features(images, mask)
    torch.testing.assert_close(tokens[packing.cu_seqlens[:-1]], expected)
    patches = (9 + 3 * mask.flatten(1).sum(1)).tolist()
    assert packing.cu_seqlens.diff().tolist() == [1 + (n + 3) // 4 for n in patches]
    torch.testing.assert_close(model(images, mask), model.head(expected))


@torch.no_grad()
@pytest.mark.parametrize("make_mask", MASKS)
def test_more_rows_equal_each_image_by_itself(make_mask) -> None:
    reducers = {0: AppendMean(), 1: EverySecond("after_attention")}
    model, mask = make_model(reducers, reg_tokens=1), make_mask()
    images = images_of(48, len(mask)).double()
    expected = torch.stack(features_by_hand(reducers, images, mask, reg_tokens=1))
    tokens, packing = model.forward_features(images, mask)
    torch.testing.assert_close(tokens[packing.cu_seqlens[:-1]], expected)
    assert packing.cu_seqlens.diff().tolist() == [2 + (11 + 3 * int(fine.sum())) // 2 for fine in mask]


@pytest.mark.parametrize("kwargs", POOLS, ids=POOL_IDS)
@pytest.mark.parametrize("place", PLACES)
def test_token_modes_agree_in_training_and_in_inference(place: str, kwargs: dict) -> None:
    model = make_model({0: EverySecond(place), 1: Best(3).double()}, gate="mlp", **kwargs)
    images, mask = images_of(48, 3).double(), mask_of((3, 3, 3))
    found = {}
    for model.token_mode in TOKEN_MODES:
        with torch.no_grad():
            logits = model(images, mask)
            tokens, packing = model.forward_features(images, mask)
            torch.testing.assert_close(model.forward_head(tokens, packing), logits)
            assert packing.total_tokens == len(tokens) == 3 * (model.num_prefix_tokens + 3)
        trained = model(images, mask)
        torch.testing.assert_close(trained, logits)
        found[model.token_mode] = (logits, gradients(model, trained.square().sum()))
    named = {name for name, _ in model.named_parameters() if not name.startswith("gate.")}
    assert found["packed"][1].keys() == named
    assert found["packed"][1]["reducers.1.score.weight"].abs().max() > 0
    torch.testing.assert_close(found["trimmed"], found["packed"])
    torch.testing.assert_close(found["masked"], found["packed"])


@torch.no_grad()
@pytest.mark.parametrize("kwargs", POOLS, ids=POOL_IDS)
@pytest.mark.parametrize("token_mode", TOKEN_MODES)
def test_one_token_left(token_mode: str, kwargs: dict) -> None:
    """Its attention is on itself, and on the prefix tokens if there are any."""
    model = make_model({0: Best(1).double()}, **kwargs)
    model.token_mode = token_mode
    images, mask = images_of(48, 2).double(), mask_of((2, 3, 3))
    tokens, packing = model.forward_features(images, mask)
    assert packing.cu_seqlens.diff().tolist() == [model.num_prefix_tokens + 1] * 2
    logits = model(images, mask)
    torch.testing.assert_close(model.forward_head(tokens, packing), logits)
    torch.testing.assert_close(torch.cat([model(images[b : b + 1], mask[b : b + 1]) for b in range(2)]), logits)


@pytest.mark.parametrize("token_mode", TOKEN_MODES)
@pytest.mark.parametrize("given", [True, False], ids=["mask", "gate"])
def test_terms_are_those_of_the_attention(token_mode: str, given: bool) -> None:
    """Probabilities of equation 10: over the active keys of an image they sum to one."""
    seen: list[tuple[Sequences, AttentionTerms]] = []

    class Watch:
        place = "after_attention"

        def __call__(self, tokens: Tensor, sequences: Sequences, attention: AttentionTerms) -> tuple[Tensor, Sequences]:
            seen.append((sequences, attention))
            return tokens, sequences

    plain, model = make_model({}, gate="mlp"), make_model({0: Watch()}, gate="mlp")
    model.load_state_dict(plain.state_dict())
    plain.token_mode = model.token_mode = token_mode
    images, mask = images_of(48, 2).double(), mask_of((2, 3, 3)) if given else None
    torch.testing.assert_close(model(images, mask), plain(images, mask))
    sequences, (q, k, lse, scale) = seen[0]
    image = sequences.batch_index
    same = (image[:, None] == image) & sequences.is_active()
    probabilities = (scale * torch.einsum("ihd,jhd->hij", q, k) - lse[..., None]).exp() * same
    torch.testing.assert_close(probabilities.sum(2), torch.ones_like(lse, dtype=q.dtype))


@pytest.mark.parametrize("token_mode", TOKEN_MODES)
@pytest.mark.parametrize("place", PLACES)
def test_gate_is_heard_through_a_reducer(place: str, token_mode: str) -> None:
    model = make_model({0: EverySecond(place)}, gate="mlp")
    nn.init.normal_(model.gate.fc4.weight, std=0.3)
    model.token_mode = token_mode
    images = images_of(48, 3).double()
    found = gradients(model, model(images).square().sum())
    assert found["gate.fc1.weight"].abs().max() > 0
    with torch.no_grad():
        mask = model.decide(images).fine_mask
        torch.testing.assert_close(model(images), model(images, mask))


@pytest.mark.parametrize("token_mode", TOKEN_MODES)
def test_drop_path_after_a_reducer(token_mode: str) -> None:
    """One draw per image, as without a reducer: what is dropped does not depend on the rows that are left."""
    model = make_model({0: EverySecond("after_attention")}, drop_path_rate=0.5, depth=3)
    for block in model.blocks:
        block.drop_path1.train()
        block.drop_path2.train()
    images, mask = images_of(48, 4).double(), mask_of((4, 3, 3))
    torch.manual_seed(5)
    expected = model(images, mask)
    model.token_mode = token_mode
    torch.manual_seed(5)
    torch.testing.assert_close(model(images, mask), expected)
    torch.manual_seed(6)
    assert not torch.allclose(model(images, mask), expected)


@pytest.mark.parametrize("token_mode", TOKEN_MODES)
@pytest.mark.parametrize("place", PLACES)
def test_checkpointed_blocks_give_the_same_gradients(place: str, token_mode: str) -> None:
    model = make_model({0: EverySecond(place), 1: Best(2).double()}, gate="mlp")
    model.token_mode = token_mode
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        found.append(gradients(model, model(images_of(48).double()).square().sum()))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("token_mode", ["packed", "masked"])  # the length of trimmed rows is read from the device
def test_compiles_whole_with_a_known_count(token_mode: str) -> None:
    model = make_model({0: Best(4), 1: Best(2)}).float()
    model.policy, model.token_mode = Budget(20), token_mode
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for seed in (1, 2):
        images = images_of(48, seed=seed)
        logits = [call(images) for call in (model, compiled)]
        torch.testing.assert_close(logits[1], logits[0], atol=LOGITS_TOLERANCE, rtol=0)
        found = [gradients(model, x.square().sum()) for x in logits]
        torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-3)


def test_parameters_belong_to_the_model(tmp_path: Path) -> None:
    model = make_model({}).float()
    before = set(model.state_dict())
    model.reducers[1] = Best(4)
    assert set(model.state_dict()) - before == {"reducers.1.score.weight", "reducers.1.score.bias"}
    assert list(model.reducers) == [1]
    images, mask = images_of(48), mask_of((2, 3, 3))
    logits = model(images, mask)

    copied = copy.deepcopy(model)
    assert torch.equal(copied(images, mask), logits)
    assert copied.reducers[1] is not model.reducers[1]
    optimizer = torch.optim.SGD(copied.parameters(), lr=0.1)
    copied(images, mask).square().sum().backward()
    optimizer.step()
    assert not torch.equal(copied.reducers[1].score.weight, model.reducers[1].score.weight)
    assert torch.equal(model(images, mask), logits)

    msvit.save_checkpoint(copied, tmp_path / "model.safetensors")
    msvit.load_checkpoint(model, tmp_path / "model.safetensors")
    assert torch.equal(model(images, mask), copied(images, mask))
    assert model.double().reducers[1].score.weight.dtype == torch.float64

    model.reducers.clear()
    assert set(model.state_dict()) == before


def test_checkpoint_without_reducers_leaves_them_as_they_are(tmp_path: Path) -> None:
    model = make_model({})
    msvit.save_checkpoint(model, tmp_path / "model.safetensors")
    model.reducers = {0: Best(4), 1: EverySecond("before_block")}
    missing = msvit.load_checkpoint(model, tmp_path / "model.safetensors")
    assert missing == ["reducers.0.score.bias", "reducers.0.score.weight"]


def test_layout_is_returned_without_reducers() -> None:
    model = make_model({0: EverySecond("before_block")})
    images, mask = images_of(48).double(), mask_of((2, 3, 3))
    for model.token_mode in TOKEN_MODES:
        assert type(model.forward_features(images, mask)[1]) is Packing
    del model.reducers[0]
    for model.token_mode in TOKEN_MODES:
        assert type(model.forward_features(images, mask)[1]) is MixedScaleLayout


def test_macs_are_not_counted_wrong() -> None:
    model = make_model({1: EverySecond("before_block")})
    with pytest.raises(NotImplementedError, match="expected a model without reducers, got reducers at blocks 1"):
        msvit.macs(model, 20)


class Misplaced(EverySecond):
    def __init__(self) -> None:
        super().__init__("after_block")


WRONG_REDUCERS = [
    pytest.param(
        [EverySecond("before_block")], TypeError, "expected a dict from block to reducer, got list", id="list"
    ),
    pytest.param(nn.ModuleDict({"0": Best()}), TypeError, "got ModuleDict", id="module-dict"),
    pytest.param({"0": Best()}, TypeError, "expected block numbers as keys, got '0'", id="name"),
    pytest.param({True: Best()}, TypeError, "expected block numbers as keys, got True", id="bool"),
    pytest.param({2: Best()}, ValueError, "expected blocks from 0 to 1, got 2", id="beyond"),
    pytest.param({-1: Best()}, ValueError, "expected blocks from 0 to 1, got -1", id="negative"),
    pytest.param({0: "evit"}, TypeError, r"reducers\[0\]: expected a callable, got str", id="not-callable"),
    pytest.param(
        {0: EverySecond}, TypeError, r"reducers\[0\]: expected an instance, got the class EverySecond", id="class"
    ),
    pytest.param({0: Best}, TypeError, r"reducers\[0\]: expected an instance, got the class Best", id="module-class"),
    pytest.param({0: nn.Identity()}, ValueError, r"reducers\[0\].place: expected one of before_block", id="no-place"),
    pytest.param({1: Misplaced()}, ValueError, r"reducers\[1\].place: .* got 'after_block'", id="place"),
]


@pytest.mark.parametrize(("value", "error", "words"), WRONG_REDUCERS)
def test_wrong_reducers(value: Any, error: type[Exception], words: str) -> None:
    model = make_model({0: EverySecond("before_block")})
    with pytest.raises(error, match=words):
        model.reducers = value
    assert list(model.reducers) == [0]


def test_a_missing_reducer_cannot_be_removed() -> None:
    with pytest.raises(KeyError):
        del make_model({}).reducers[0]


def test_example_of_the_docs_runs() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(), flags=re.DOTALL | re.MULTILINE)
    exec(compile(block, str(DOCS), "exec"), {"__name__": "__main__"})
