"""Packed sequences through nvidia-cudnn-frontend, in which an offset is added to the base pointer of each sequence."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import cudnn  # type: ignore[import-not-found]
import torch
from torch import Tensor

from bench.attention.workloads import Buffers


@cache
def _handle() -> Any:
    return cudnn.create_handle()


class Plans:
    """The forward and the backward plan for the shapes of one workload, used with all of its sets of buffers."""

    def __init__(self, x: Buffers) -> None:
        work = x.workload
        self.batch, self.heads, self.dim, self.longest = len(work.lengths), work.num_heads, work.head_dim, work.longest
        self.scale = self.dim**-0.5
        # Only shapes matter here: the strides of q, k, v are those of views of one projection.
        self.in_strides = self._strides(x.q)
        self.out_strides = self._strides(x.dout)
        # Offsets count elements, and tokens of q are further apart than those of out.
        self.offsets_in = self._offsets(x, x.q.stride(0))
        self.offsets_out = self._offsets(x, x.dout.stride(0))
        self.lengths = x.offsets.diff().view(-1, 1, 1, 1)
        self.rows = -(-work.total // 64) * 64  # as NVIDIA's own tests round it
        self.forward, self.forward_ids = self._forward()
        self.backward, self.backward_ids = self._backward()
        self.workspace = _workspace([self.forward, self.backward], x.device)

    def run(self, plan: Any, tensors: dict[Any, Tensor]) -> None:
        cudnn.set_stream(handle=_handle(), stream=torch.cuda.current_stream().cuda_stream)
        plan.execute(tensors, self.workspace, handle=_handle())

    def stats(self, device: torch.device) -> Tensor:
        # Padded, without offsets: every version of cuDNN takes this form.
        return torch.empty(self.batch, self.heads, self.longest, 1, dtype=torch.float32, device=device)

    def _strides(self, x: Tensor) -> list[int]:
        return [x.stride(0) * self.longest, x.stride(1), x.stride(0), 1]

    def _offsets(self, x: Buffers, stride: int) -> Tensor:
        return (x.offsets.long() * stride).view(-1, 1, 1, 1)

    def _graph(self) -> Any:
        return cudnn.pygraph(
            io_data_type=cudnn.data_type.BFLOAT16,
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
            handle=_handle(),
        )

    def _tensor(self, graph: Any, strides: Sequence[int], offsets: Any) -> Any:
        tensor = graph.tensor(dim=[self.batch, self.heads, self.longest, self.dim], stride=list(strides))
        tensor.set_ragged_offset(offsets)
        return tensor

    def _output(self, tensor: Any, strides: Sequence[int], offsets: Any) -> Any:
        tensor.set_output(True).set_dim([self.batch, self.heads, self.longest, self.dim]).set_stride(list(strides))
        tensor.set_ragged_offset(offsets)
        return tensor

    def _forward(self) -> tuple[Any, dict[str, Any]]:
        graph = self._graph()
        offsets_in, offsets_out = graph.tensor_like(self.offsets_in), graph.tensor_like(self.offsets_out)
        lengths_q, lengths_k = graph.tensor_like(self.lengths), graph.tensor_like(self.lengths)
        q, k, v = (self._tensor(graph, self.in_strides, offsets_in) for _ in "qkv")
        out, stats = graph.sdpa(
            q=q, k=k, v=v, generate_stats=True, attn_scale=self.scale,
            use_padding_mask=True, seq_len_q=lengths_q, seq_len_kv=lengths_k,
        )  # fmt: skip
        self._output(out, self.out_strides, offsets_out)
        stats.set_output(True).set_data_type(cudnn.data_type.FLOAT)
        _build(graph)
        ids = {"q": q, "k": k, "v": v, "out": out, "stats": stats, "lengths_q": lengths_q, "lengths_k": lengths_k}
        return graph, ids | {"offsets_in": offsets_in, "offsets_out": offsets_out}

    def _backward(self) -> tuple[Any, dict[str, Any]]:
        graph = self._graph()
        offsets_in, offsets_out = graph.tensor_like(self.offsets_in), graph.tensor_like(self.offsets_out)
        lengths_q, lengths_k = graph.tensor_like(self.lengths), graph.tensor_like(self.lengths)
        q, k, v = (self._tensor(graph, self.in_strides, offsets_in) for _ in "qkv")
        out, dout = (self._tensor(graph, self.out_strides, offsets_out) for _ in "od")
        stats = graph.tensor(
            dim=[self.batch, self.heads, self.longest, 1],
            stride=[self.heads * self.longest, self.longest, 1, 1],
            data_type=cudnn.data_type.FLOAT,
        )
        gradients = graph.sdpa_backward(
            q=q, k=k, v=v, o=out, dO=dout, stats=stats, attn_scale=self.scale,
            use_padding_mask=True, seq_len_q=lengths_q, seq_len_kv=lengths_k,
            max_total_seq_len_q=self.rows, max_total_seq_len_kv=self.rows,
        )  # fmt: skip
        dq, dk, dv = (self._output(gradient, self.out_strides, offsets_out) for gradient in gradients)
        _build(graph)
        ids = {"q": q, "k": k, "v": v, "out": out, "dout": dout, "stats": stats, "dq": dq, "dk": dk, "dv": dv}
        ids |= {"lengths_q": lengths_q, "lengths_k": lengths_k}
        return graph, ids | {"offsets_in": offsets_in, "offsets_out": offsets_out}


def _workspace(graphs: Sequence[Any], device: torch.device) -> Tensor:
    """uint8 buffer shared by all graphs, which run one after the other."""
    size = max(1, *(graph.get_workspace_size() for graph in graphs))
    return torch.empty(size, dtype=torch.uint8, device=device)


def _build(graph: Any) -> None:
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    graph.build_plans()


_plans: dict[tuple[Any, ...], Plans] = {}


def prepare(x: Buffers) -> tuple[Callable[[], Tensor], Callable[[], Sequence[Tensor]]]:
    """Forward and backward calls on one set of buffers; the backward pass reads the results of the forward pass.

    Raises:
        Exception: cuDNN refuses the shapes.
    """
    key = (x.workload.lengths, x.workload.head_dim)
    if key not in _plans:
        _plans.clear()
        _plans[key] = Plans(x)
    plans = _plans[key]
    out, stats = torch.empty_like(x.dout), plans.stats(x.device)
    gradients = {name: torch.empty_like(x.dout) for name in ("dq", "dk", "dv")}
    tensors = {"q": x.q.detach(), "k": x.k.detach(), "v": x.v.detach(), "out": out, "stats": stats}
    tensors |= {"lengths_q": plans.lengths, "lengths_k": plans.lengths}
    tensors |= {"offsets_in": plans.offsets_in, "offsets_out": plans.offsets_out}
    forward_pack = {id_: tensors[name] for name, id_ in plans.forward_ids.items()}
    tensors |= {"dout": x.dout, **gradients}
    backward_pack = {id_: tensors[name] for name, id_ in plans.backward_ids.items()}

    def forward() -> Tensor:
        plans.run(plans.forward, forward_pack)
        return out

    def backward() -> Sequence[Tensor]:
        plans.run(plans.backward, backward_pack)
        return tuple(gradients.values())

    forward()
    return forward, backward
