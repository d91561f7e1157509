"""`model.reducers` as a module: tools that look modules up by name, replace or save them find every reducer."""

import copy
import pickle
from collections.abc import MutableMapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

import msvit
from msvit.models.vit import MixedScaleVisionTransformer
from msvit.policies import Budget
from msvit.reducers import Reducers
from tests.model.model_helpers import images_of, mask_of
from tests.model.reducer_helpers import Best, EverySecond, make_model

NAMES = {"reducers.1.score.weight", "reducers.1.score.bias"}


def model_with_a_module() -> MixedScaleVisionTransformer:
    return make_model({0: EverySecond("before_block"), 1: Best(4)}).float()


def test_submodules_and_parameters_are_found_by_name() -> None:
    model = model_with_a_module()
    assert isinstance(model.reducers, nn.Module)
    assert isinstance(model.reducers, MutableMapping)
    assert model.get_submodule("reducers.1") is model.reducers[1] is dict(model.named_modules())["reducers.1"]
    assert model.get_parameter("reducers.1.score.weight") is model.reducers[1].score.weight


def test_functional_call_replaces_the_parameters() -> None:
    model, images, mask = model_with_a_module(), images_of(48), mask_of((2, 3, 3))
    other = copy.deepcopy(model)
    nn.init.normal_(other.reducers[1].score.weight)
    given = dict(other.named_parameters())
    found = torch.func.functional_call(model, given, (images, mask))
    assert torch.equal(found, other(images, mask))
    assert not torch.equal(found, model(images, mask))


@pytest.mark.parametrize("token_mode", ["packed", "masked"])
def test_export(token_mode: str) -> None:
    model = make_model({0: Best(4), 1: Best(2)}).float()
    model.policy, model.token_mode = Budget(20), token_mode
    exported = torch.export.export(model, (images_of(48),))
    assert set(exported.state_dict) >= NAMES
    images = images_of(48, seed=3)
    torch.testing.assert_close(exported.module()(images), model(images), atol=1e-4, rtol=0)


def test_distributed_state_dict() -> None:
    model, other = model_with_a_module(), model_with_a_module()
    nn.init.normal_(other.reducers[1].score.weight)
    state = get_model_state_dict(other)
    assert {name for name in state if name.startswith("reducers.")} == NAMES
    set_model_state_dict(model, state)
    assert torch.equal(model.reducers[1].score.weight, other.reducers[1].score.weight)


class Wrapped(nn.Module):
    """A module as a tool puts it in the place of another: it has no `place` of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, *arguments):
        self.calls += 1
        return self.inner(*arguments)


@pytest.mark.parametrize("direct", [False, True], ids=["setattr", "_modules"])
def test_a_module_put_in_the_place_of_a_reducer_runs_there(direct: bool) -> None:
    model, images, mask = model_with_a_module(), images_of(48), mask_of((2, 3, 3))
    logits = model(images, mask)
    wrapped = Wrapped(model.reducers[1])
    if direct:
        model.reducers._modules["1"] = wrapped
    else:
        setattr(model.get_submodule("reducers"), "1", wrapped)
    assert model.reducers[1] is wrapped
    assert torch.equal(model(images, mask), logits)
    assert wrapped.calls == 1


def test_a_module_can_be_added_and_deleted_by_name() -> None:
    model, images, mask = make_model({}).float(), images_of(48), mask_of((2, 3, 3))
    logits = model(images, mask)
    model.reducers.add_module("1", Best(4))
    assert list(model.reducers) == [1]
    assert not torch.equal(model(images, mask), logits)
    delattr(model.reducers, "1")
    assert (list(model.reducers), 1 in model.reducers) == ([], False)
    assert torch.equal(model(images, mask), logits)


def test_it_is_changed_as_a_dict() -> None:
    model = make_model({}, depth=4)
    plain, first, second = EverySecond("before_block"), Best(3), Best(4)
    model.reducers = {3: first, 0: plain}
    assert dict(model.reducers) == {0: plain, 3: first}
    assert (list(model.reducers), len(model.reducers), 3 in model.reducers, "3" in model.reducers) == (
        [0, 3],
        2,
        True,
        False,
    )
    model.reducers[3] = plain
    model.reducers[0] = second
    assert dict(model.reducers) == {0: second, 3: plain}
    assert {name for name, _ in model.reducers.named_parameters()} == {"0.score.weight", "0.score.bias"}
    model.reducers = model.reducers
    assert model.reducers.pop(0) is second
    assert model.reducers.get(0) is None
    assert not list(model.reducers.parameters())
    model.reducers.update({1: first})
    assert "EverySecond" in repr(model.reducers)
    model.reducers.clear()
    assert not model.reducers


@pytest.mark.parametrize("key", ["1", True, 7])
def test_keys_are_numbers_of_blocks(key) -> None:
    model = make_model({0: Best()})
    with pytest.raises(KeyError):
        model.reducers[key]
    with pytest.raises((TypeError, ValueError), match="reducers: expected"):
        model.reducers[key] = Best()
    assert list(model.reducers) == [0]


def test_deleting_the_attribute_removes_all_reducers() -> None:
    model, images, mask = model_with_a_module(), images_of(48), mask_of((2, 3, 3))
    del model.reducers
    assert not list(model.reducers)
    assert not NAMES & set(model.state_dict())
    assert torch.equal(model(images, mask), make_model({}).float()(images, mask))


def test_no_reducer_has_a_key_in_the_state_dict() -> None:
    assert not [name for name in make_model({0: EverySecond("before_block")}).state_dict() if "reducers" in name]


def test_equality_and_hash_are_those_of_modules() -> None:
    first, second = Reducers(2), Reducers(2)
    assert first != second
    assert len({first, second}) == 2


def test_pickle() -> None:
    model, images, mask = model_with_a_module(), images_of(48), mask_of((2, 3, 3))
    loaded = pickle.loads(pickle.dumps(model))
    assert torch.equal(loaded(images, mask), model(images, mask))
    loaded.reducers[0] = Best(2)
    assert isinstance(model.reducers[0], EverySecond)


class Fickle(EverySecond):
    """Another place each time it is asked."""

    def __init__(self) -> None:
        self.places = iter(["before_block", "after_attention", "nowhere"])

    @property
    def place(self) -> str:
        return next(self.places)

    def __call__(self, tokens, sequences, attention):
        assert attention is None
        return sequences.keep(tokens, ~sequences.is_prefix())


def test_the_place_is_read_once() -> None:
    model, images, mask = make_model({0: Fickle()}), images_of(48).double(), mask_of((2, 3, 3))
    assert torch.equal(model(images, mask), model(images, mask))


def test_one_module_at_two_blocks_is_saved_once(tmp_path: Path) -> None:
    best, path = Best(4), tmp_path / "model.safetensors"
    model = make_model({0: best, 1: best}).float()
    msvit.save_checkpoint(model, path, metadata={"step": "3"})
    assert {name for name in load_file(path) if "reducers" in name} == {
        "reducers.0.score.weight",
        "reducers.0.score.bias",
    }
    apart = make_model({0: Best(4), 1: Best(4)}).float()
    again = Best(4)
    for loaded in (apart, make_model({0: again, 1: again}).float()):
        assert msvit.load_checkpoint(loaded, path) == []
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
