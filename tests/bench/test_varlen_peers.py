"""Stand-ins for every generation of torch.nn.attention.varlen."""

import sys
import types

import pytest
import torch
from torch.nn.attention import SDPBackend

from bench.attention.prepared import UnavailableError
from bench.attention.workloads import Buffers, Workload
from bench.peers import PEERS, VARLEN_ATTN
from tests.bench.helpers import CPU


class StandInAttention(torch.autograd.Function):
    """A sum instead of attention, which records whether it would take cuDNN, forward and backward."""

    @staticmethod
    def forward(ctx, q, k, v, takes_cudnn, remembers, taken):
        ctx.takes_cudnn, ctx.remembered, ctx.taken = takes_cudnn, takes_cudnn() if remembers else None, taken
        taken.append(takes_cudnn())
        return q + k + v

    @staticmethod
    def backward(ctx, dout):
        ctx.taken.append(ctx.takes_cudnn() if ctx.remembered is None else ctx.remembered)
        return dout, dout, dout, None, None, None


def stand_in_varlen(generation, cudnn):
    """torch.nn.attention.varlen of three generations, and the list of its choices: True for cuDNN."""
    varlen, taken = types.ModuleType("varlen"), []
    varlen._should_use_cudnn = lambda index: cudnn and generation != "2.11"
    takes_cudnn = lambda: varlen._should_use_cudnn(0)  # noqa: E731
    if generation == "2.14":
        varlen._can_use_cudnn = lambda q, k, v, longest, window: cudnn
        takes_cudnn = lambda: varlen._can_use_cudnn(None, None, None, 0, [-1, -1])  # noqa: E731
    if generation == "later":
        backends = (SDPBackend.FLASH_ATTENTION.value, SDPBackend.CUDNN_ATTENTION.value)
        varlen._select_backend = lambda *_: backends[cudnn and torch.backends.cuda.cudnn_sdp_enabled()]
        takes_cudnn = lambda: varlen._select_backend() == backends[1]  # noqa: E731
    remembers = generation == "later"
    varlen.varlen_attn = lambda q, k, v, *_: StandInAttention.apply(q, k, v, takes_cudnn, remembers, taken)
    return varlen, taken


def prepared_varlen(name, buffers):
    return next(peer for peer in PEERS if peer.name == name).prepare(buffers)


@pytest.fixture
def small():
    return Buffers(Workload("2 x 3", (3, 3), 8, 16), torch.float32, CPU)


@pytest.mark.parametrize("generation", ["2.11", "2.14", "later"])
@pytest.mark.parametrize("cudnn", [False, True], ids=["no-cudnn", "cudnn"])
def test_varlen_attn_is_measured_with_both_backends(monkeypatch, small, generation, cudnn):
    varlen, taken = stand_in_varlen(generation, cudnn)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", varlen)
    before = dict(vars(varlen))
    by_default = cudnn and generation != "2.11"
    for name, wanted in zip(VARLEN_ATTN, (False, True), strict=True):
        if wanted and not by_default:
            with pytest.raises(UnavailableError, match="186142" if generation == "2.11" else "takes flash"):
                prepared_varlen(name, small)
            continue
        prepared = prepared_varlen(name, small)
        taken.clear()
        assert torch.equal(prepared.forward(), small.q + small.k + small.v)
        assert all(torch.equal(gradient, small.dout) for gradient in prepared.backward())
        assert taken == [wanted] * 3  # the graph of the backward pass has a forward pass of its own
        assert prepared.note == f"varlen_attn by itself takes {'cuDNN' if by_default else 'flash'}"
    assert vars(varlen) == before
