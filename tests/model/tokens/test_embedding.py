"""Rows of the three layouts against a token-by-token enumeration in the order of the contract."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from msvit.tokens.decision import Decision
from msvit.tokens.embedding import (
    Embedding,
    candidate_weight,
    embed_masked,
    embed_packed,
    embed_trimmed,
    position_table,
)
from msvit_kernels import Scales
from tests.model.model_helpers import images_of, mask_of

CASES = [pytest.param(2, 1, id="s2"), pytest.param(3, 0, id="s3-no-prefix"), pytest.param(4, 5, id="s4-registers")]
PATCH, DIM, GRID = 4, 16, (2, 3)


def make_case(scale_factor: int, num_prefix: int) -> tuple[Tensor, Decision, Embedding]:
    height, width = (n * scale_factor for n in GRID)
    table = position_table(torch.randn(num_prefix, DIM), torch.randn(height, width, DIM), scale_factor)
    weight, bias = torch.randn(DIM, 3, PATCH, PATCH) / 7, torch.randn(DIM)
    images = images_of(max(height, width) * PATCH, batch=3)[:, :, : height * PATCH, : width * PATCH].contiguous()
    mask = mask_of((3, *GRID))
    mask[1] = False
    decision = Decision(mask, Scales(GRID, scale_factor, num_prefix))
    return images, decision, Embedding(weight, bias, table, None, None)


def contract_order(mask: Tensor, s: int, num_prefix: int) -> list[list[int]]:
    """Candidates of each image in packed order: prefix, then regions in raster order, fine ones in raster order."""
    rows = []
    _, height, width = mask.shape
    for image in mask.tolist():
        order = list(range(num_prefix))
        for i in range(height):
            for j in range(width):
                coarse = num_prefix + i * width + j
                first_fine = num_prefix + height * width
                fine = [first_fine + (i * s + y) * width * s + j * s + x for y in range(s) for x in range(s)]
                order += fine if image[i][j] else [coarse]
        rows.append(order)
    return rows


def token_by_hand(images: Tensor, b: int, candidate: int, scales: Scales, embedding: Embedding) -> Tensor:
    s, p, num_prefix = scales.scale_factor, PATCH, scales.num_prefix
    height, width = GRID
    row = embedding.table[candidate]
    if candidate < num_prefix:
        return row
    index = candidate - num_prefix
    if index < height * width:
        y, x = divmod(index, width)
        pixels = images[b, :, y * p * s : (y + 1) * p * s, x * p * s : (x + 1) * p * s]
        pixels = pixels.unflatten(1, (p, s)).unflatten(3, (p, s)).mean(dim=(2, 4))
    else:
        y, x = divmod(index - height * width, width * s)
        pixels = images[b, :, y * p : (y + 1) * p, x * p : (x + 1) * p]
    return row + (embedding.weight * pixels).sum((1, 2, 3)) + embedding.bias


@pytest.mark.parametrize(("scale_factor", "num_prefix"), CASES)
def test_packed_rows_follow_the_contract(scale_factor: int, num_prefix: int) -> None:
    images, decision, embedding = make_case(scale_factor, num_prefix)
    tokens, sequences = embed_packed(images, decision, embedding)
    orders = contract_order(decision.fine_mask, scale_factor, num_prefix)
    layout = sequences.packing
    assert layout.token_index.tolist() == [candidate for order in orders for candidate in order]
    assert layout.batch_index.tolist() == [b for b, order in enumerate(orders) for _ in order]
    assert layout.num_tokens.tolist() == [len(order) for order in orders]
    expected = [
        token_by_hand(images, b, i, decision.scales, embedding) for b, order in enumerate(orders) for i in order
    ]
    torch.testing.assert_close(tokens, torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("scale_factor", "num_prefix"), CASES)
def test_masked_keeps_all_candidates(scale_factor: int, num_prefix: int) -> None:
    images, decision, embedding = make_case(scale_factor, num_prefix)
    tokens, sequences = embed_masked(images, decision, embedding)
    orders = contract_order(decision.fine_mask, scale_factor, num_prefix)
    assert sequences.active.shape == (3, len(embedding.table))
    assert [row.nonzero().flatten().tolist() for row in sequences.active] == [sorted(order) for order in orders]
    packed, packed_sequences = embed_packed(images, decision, embedding)
    torch.testing.assert_close(sequences.pack(tokens, packed_sequences.packing), packed, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("scale_factor", "num_prefix"), CASES)
def test_trimmed_keeps_as_many_as_the_fullest_image(scale_factor: int, num_prefix: int) -> None:
    images, decision, embedding = make_case(scale_factor, num_prefix)
    masked, masked_sequences = embed_masked(images, decision, embedding)
    tokens, sequences = embed_trimmed(images, decision, embedding)
    orders = contract_order(decision.fine_mask, scale_factor, num_prefix)
    k = max(map(len, orders))
    assert sequences.active.shape == (3, k)
    assert sequences.active.int().diff(dim=1).le(0).all()  # activity descends
    for b, order in enumerate(orders):
        inactive = [i for i in range(len(embedding.table)) if i not in order]
        kept = (sorted(order) + inactive)[:k]  # among equals the candidates' own order
        assert torch.equal(tokens.view(3, k, DIM)[b], masked.view(3, -1, DIM)[b, kept])
    layout = embed_packed(images, decision, embedding)[1].packing
    assert torch.equal(sequences.pack(tokens, layout), masked_sequences.pack(masked, layout))


def test_position_table_averages_the_fine_grid() -> None:
    prefix, grid = torch.randn(2, DIM), torch.randn(4, 6, DIM, requires_grad=True)
    table = position_table(prefix, grid, 2)
    coarse = F.avg_pool2d(grid.permute(2, 0, 1), 2).flatten(1).T
    torch.testing.assert_close(table, torch.cat([prefix, coarse, grid.flatten(0, 1)]))
    table.sum().backward()
    torch.testing.assert_close(grid.grad, torch.full_like(grid, 1.25))  # itself, and a quarter of its region


def test_candidate_weight_sums_to_one_per_cell() -> None:
    """Every cell of the fine grid is covered once: w by its fine token, 1 - w by the coarse one (eq. 3)."""
    weight = torch.rand(3, *GRID)
    candidates = candidate_weight(weight, Scales(GRID, 2, 1))
    prefix, coarse, fine = candidates.split([1, 6, 24], dim=1)
    assert prefix.eq(1).all()
    cells = coarse.unflatten(1, GRID).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1) + fine
    torch.testing.assert_close(cells, torch.ones_like(cells))


@pytest.mark.parametrize("embed", [embed_packed, embed_masked, embed_trimmed])
def test_fused_normalisation(embed) -> None:
    images, decision, embedding = make_case(2, 1)
    raw = torch.randint(0, 256, images.shape, dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    floats = (raw / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    fused = Embedding(embedding.weight, embedding.bias, embedding.table, mean, std)
    tokens, _ = embed(raw, decision, fused)
    torch.testing.assert_close(tokens, embed(floats, decision, embedding)[0], atol=1e-4, rtol=1e-4)
