"""Drop path: one draw per image, whatever the layout."""

import importlib

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from msvit.models.blocks import drop_path
from msvit.tokens.decision import Decision
from msvit.tokens.embedding import Embedding, embed_masked, embed_packed, embed_trimmed, position_table
from msvit_kernels import Scales
from tests.model.model_helpers import images_of, mask_of, small_vit
from tests.model.reducer_helpers import EverySecond, make_model

IMAGES = 12


PROJ = small_vit().patch_embed.proj
TABLE = position_table(torch.zeros(1, 32), torch.zeros(6, 6, 32), 2)
EMBEDDING = Embedding(PROJ.weight, PROJ.bias, TABLE, None, None)
DECISION = Decision(mask_of((IMAGES, 3, 3)), Scales((3, 3), 2, 1))


def factors(embed, module: nn.Module) -> list[set[float]]:
    """What each image's rows were multiplied by, one set per image."""
    tokens, sequences = embed(images_of(48, IMAGES), DECISION, EMBEDDING)
    out = drop_path(torch.ones_like(tokens), module, sequences)
    return [set(out[sequences.batch_index == b].flatten().tolist()) for b in range(IMAGES)]


@pytest.mark.parametrize("embed", [embed_packed, embed_trimmed, embed_masked])
def test_rows_of_an_image_share_their_draw(embed) -> None:
    found = factors(embed, DropPath(0.75).train())
    assert all(len(values) == 1 for values in found)
    assert set.union(*found) == {0.0, 4.0}


@pytest.mark.parametrize("embed", [embed_packed, embed_trimmed, embed_masked])
def test_draws_do_not_depend_on_the_layout(embed) -> None:
    torch.manual_seed(4)
    expected = DropPath(0.5).train()(torch.ones(IMAGES, 1)).flatten().tolist()
    torch.manual_seed(4)
    assert factors(embed, DropPath(0.5).train()) == [{value} for value in expected]


@pytest.mark.parametrize(
    "module",
    [nn.Identity(), DropPath(0.0).train(), DropPath(0.5).eval()],
    ids=["identity", "rate-0", "evaluation"],
)
def test_nothing_is_dropped(module: nn.Module) -> None:
    assert set.union(*factors(embed_packed, module)) == {1.0}


def test_everything_is_dropped() -> None:
    assert set.union(*factors(embed_packed, DropPath(1.0).train())) == {0.0}


def test_without_scaling() -> None:
    assert set.union(*factors(embed_packed, DropPath(0.5, scale_by_keep=False).train())) == {0.0, 1.0}


def test_hooks_on_attention_get_a_tensor() -> None:
    """With a reducer after the attention they get the terms of its probabilities too."""
    model = make_model({0: EverySecond("before_block"), 1: EverySecond("after_attention")})
    found = []
    for block in model.blocks:
        block.attn.register_forward_hook(lambda _, arguments, out: found.append(out))
    model(images_of(48).double(), mask_of((2, 3, 3)))
    assert isinstance(found[0], Tensor)
    assert (type(found[1]), isinstance(found[1][0], Tensor)) == (tuple, True)


EARLIER_NAMES = {
    "sequences": ["PackedSequences", "PaddedSequences", "Sequences", "softmax_dtype"],
    "tokenization": [
        "Decision",
        "Embedding",
        "candidate_weight",
        "embed_masked",
        "embed_packed",
        "embed_trimmed",
        "normalise",
        "position_table",
    ],
}


@pytest.mark.parametrize("module", EARLIER_NAMES)
def test_earlier_modules_can_be_imported(module: str) -> None:
    found = importlib.import_module(f"msvit.{module}")
    assert sorted(found.__all__) == EARLIER_NAMES[module]
    assert all(hasattr(found, name) for name in found.__all__)
