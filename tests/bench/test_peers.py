"""The peers of attention against fp64, and the checks of their results."""

import importlib.util
import sys

import pytest
import torch

from bench.attention.ours import MAX_ERROR, Oracle, relative_error
from bench.attention.prepared import Prepared, UnavailableError
from bench.attention.workloads import Buffers, Workload
from bench.peers import PEERS as ALL_PEERS
from bench.peers import VARLEN_ATTN, is_exact
from tests.bench.helpers import CPU, EVEN, SMALL

PEERS = {peer.name: peer for peer in ALL_PEERS}


@pytest.mark.parametrize("work", [SMALL, EVEN], ids=lambda work: work.name)
@pytest.mark.parametrize(
    "name", ["sdpa loop", "sdpa padded", "sdpa padded efficient", "sdpa padded flash", "sdpa nested"]
)
def test_peers_that_run_on_a_cpu_match_fp64(name, work):
    x = Buffers(work, torch.float32, CPU)
    prepared = PEERS[name].prepare(x)
    Oracle(x).judge_other(prepared)
    assert (prepared.rows is None) == (name != "sdpa padded flash" or work is EVEN)


def test_flex_attention_matches_fp64():
    x = Buffers(SMALL, torch.float32, CPU)
    oracle = Oracle(x)
    x.q, x.k, x.v = (leaf.detach() for leaf in x.leaves)  # on a CPU it has no backward pass
    error = relative_error(
        PEERS["flex_attention"].prepare(x).forward(), oracle.results(torch.float64, weighted=False)[0]
    )
    assert error < 1e-5


def test_unmasked_padding_is_not_called_exact():
    flash = PEERS["sdpa padded flash"]
    assert not is_exact(flash, SMALL.lengths)
    assert is_exact(flash, EVEN.lengths)
    x = Buffers(SMALL, torch.float32, CPU)
    prepared = flash.prepare(x)
    everywhere = relative_error(x.unpad(prepared.forward()), Oracle(x).results(torch.float64, weighted=False)[0], None)
    assert everywhere > MAX_ERROR


@pytest.mark.parametrize("wrong", ["out", "dk"])
def test_a_wrong_peer_is_found(wrong):
    x = Buffers(SMALL, torch.float32, CPU)
    right = PEERS["sdpa padded efficient"].prepare(x)

    def backward():
        dq, dk, dv = right.backward()
        return dq, dk * (1.1 if wrong == "dk" else 1), dv

    forward = (lambda: right.forward() * 1.1) if wrong == "out" else right.forward
    with pytest.raises(AssertionError, match=f"{wrong}: relative error"):
        Oracle(x).judge_other(Prepared(forward, backward, right.packed))


def test_nan_is_an_infinite_error():
    assert relative_error(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")


def test_what_is_not_installed_says_so():
    for name, package in (("cudnn thd", "cudnn"), ("flash-attn-4", "flash_attn")):
        if package not in sys.modules and not importlib.util.find_spec(package):
            with pytest.raises(UnavailableError, match="is not installed"):
                PEERS[name].prepare(Buffers(SMALL, torch.float32, CPU))


def test_peers_that_compile_come_last():
    compiled = [peer.compiled for peer in ALL_PEERS]
    assert compiled == sorted(compiled)
    assert ALL_PEERS[-1].name == "flex_attention"
    assert {peer.name for peer in ALL_PEERS} >= set(VARLEN_ATTN)


@pytest.mark.parametrize("lengths", [(64, 100, 196), (1024, 1024)], ids=["ragged", "equal"])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_graphs_of_cudnn_are_valid(monkeypatch, lengths, head_dim):
    cudnn = pytest.importorskip("cudnn")
    from bench.attention import cudnn_thd

    def graph(handle, graph=cudnn.pygraph, **types):
        return graph(sm_version=90, **types)

    def build(graph):
        graph.validate()
        graph.build_operation_graph()

    # Plans need a device; the earlier checks of the frontend and the library do not.
    monkeypatch.setattr(cudnn, "pygraph", graph)
    monkeypatch.setattr(cudnn_thd, "_handle", lambda: None)
    monkeypatch.setattr(cudnn_thd, "_build", build)
    monkeypatch.setattr(cudnn_thd, "_workspace", lambda graphs, device: None)
    buffers = Buffers(Workload("w", lengths, head_dim), torch.bfloat16, CPU)
    plans = cudnn_thd.Plans(buffers)
    assert len({id_.get_uid() for id_ in plans.forward_ids.values()}) == len(plans.forward_ids)
    assert len({id_.get_uid() for id_ in plans.backward_ids.values()}) == len(plans.backward_ids)
