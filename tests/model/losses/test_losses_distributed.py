"""Two processes with DistributedDataParallel against one process with the whole batch."""

import os
import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from msvit.losses import BatchShapingLoss, GeneralizedBatchShapingLoss, L0Loss

POSITIONS = 6


def make_losses() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    return {
        "l0": L0Loss(0.25),
        "bas": BatchShapingLoss(0.25),
        "bas-flat": BatchShapingLoss(0.25, flatten=True),
        "gbas": GeneralizedBatchShapingLoss(0.25, (2, 3), center_init=True),
    }


class GateAndLoss(nn.Module):
    """A gate as small as can be, together with the loss, whose priors are learned, too."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.gate = nn.Linear(8, POSITIONS)
        self.loss = loss

    def forward(self, x: Tensor) -> Tensor:
        return self.loss(3 * self.gate(x))


def results(parts: list[Tensor], rank: int, wrap) -> dict[str, tuple[Tensor, list[Tensor]]]:
    found = {}
    for name, loss in make_losses().items():
        module = GateAndLoss(loss)
        wrapped = wrap(module)
        value = wrapped(parts[rank])
        value.backward()
        found[name] = (value.detach(), [p.grad for p in module.parameters()])
    return found


def _process(rank: int, port: int, folder: str, parts: list[Tensor]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.save(results(parts, rank, DistributedDataParallel), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    """With batches of different sizes."""
    x, split = torch.randn(32, 8), (21, 11)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_process, (port, str(tmp_path), list(x.split(split))), nprocs=2)
    expected = results([x], 0, lambda module: module)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, expected)
    for name, (value, grads) in expected.items():
        assert value > 0, name
        assert all(grad.abs().max() > 0 for grad in grads), name
    # Each process alone would find other values: the test can tell.
    alone = results([x[: split[0]]], 0, lambda module: module)
    assert all(not torch.allclose(alone[name][0], expected[name][0], rtol=1e-3) for name in expected)
