"""Operators of the backend `cpu` in a child of `os.fork`, in which the parent's OpenMP threads do not exist."""

import os
import signal

import pytest
import torch

from msvit_kernels import mixed_scale_embed, mixed_scale_layout, testing, unpack_to_grid, varlen_attention

pytest.importorskip("msvit_kernels._C")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12's, if there are threads
LIMIT_S = 60  # for a child that waits forever; a sanitized one takes seconds


def attention(backward):
    """Output and gradients of two sequences, enough work for two threads."""
    q = torch.linspace(-1, 1, 320 * 4 * 32).reshape(320, 4, 32).requires_grad_(backward)
    out = varlen_attention(q, q, q, testing.offsets([150, 170]), 170, backend="cpu")
    return torch.autograd.grad(out.sum(), q)[0] if backward else out


def token_operators(backward):
    """The same for layout, embedding and unpacking in a row."""
    layout = mixed_scale_layout(torch.arange(4 * 64 * 64).reshape(4, 64, 64) % 3 == 0, backend="cpu")
    images = torch.linspace(0, 1, 4 * 3 * 512 * 512).reshape(4, 3, 512, 512).requires_grad_(backward)
    weight = torch.linspace(-1, 1, 16 * 48).reshape(16, 3, 4, 4).requires_grad_(backward)
    bias, table = torch.ones(16), torch.ones(layout.num_candidates, 16)
    tokens = mixed_scale_embed(images, layout, weight, bias, table, patch_size=4, backend="cpu")
    grid = unpack_to_grid(tokens, layout, backend="cpu")
    return torch.cat([x.flatten() for x in torch.autograd.grad(grid.sum(), (images, weight))]) if backward else grid


def status_of_child(check):
    """Exit status of a forked child that runs `check`: 0 if it returned true, negative if a signal ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(LIMIT_S)
            status = 0 if check() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("operator", [attention, token_operators])
def test_a_forked_child_computes_the_bits_of_its_parent(operator, backward, set_threads):
    set_threads(2)
    expected = operator(backward)

    def the_same_bits():
        return torch.equal(operator(backward), expected)

    assert status_of_child(the_same_bits) == 0
    assert the_same_bits(), "the parent goes on"
    # The second child inherits the threads that the parent started after the first.
    assert status_of_child(lambda: status_of_child(the_same_bits) == 0 and the_same_bits()) == 0


def test_threads_that_torch_started_do_not_stop_the_child(set_threads):
    set_threads(2)
    torch.ones(1 << 20).exp()
    assert status_of_child(lambda: bool(attention(False).isfinite().all())) == 0
