"""Attention inside each packed sequence, forward and backward (eq. 10 of MSViT, arXiv 2307.02321).

    out_i = sum_j p_ij v_j,  p_ij = w_j P~_ij,  P~_ij = exp(s_ij - lse_i)
    s_ij = softmax_scale * q_i . k_j,  lse_i = log sum_j w_j exp(s_ij)
    ds_ij = p_ij g_ij,  g_ij = dout_i . v_j - delta_i,  delta_i = dout_i . out_i - dlse_i

Forward and backward follow FlashAttention-2 (arXiv 2307.08691); docs/operators.md derives the gradients, that of the
weight included. Queries, keys and heads are tiled as the docstrings of the three kernels say; the dq kernel runs before
the dkv kernel, which reads its delta. Programs beyond the end of their sequence return at once. Weights, lse and delta
are loaded one step ahead of their use.

Scores are in units of log2. Weights enter as log2(w), computed once before the launch and added to the scores: a key of
weight 0 scores -inf, which keeps it out of the running maximum and of every sum, while P~, which has no weight in it,
still gives the gradient of its weight. Rows of k and v of weight 0 are read for that gradient alone, because their NaN
or infinity times 0 would be NaN. Products run in the dtype of the inputs, sums in fp32. No atomics: same inputs,
same bits. Offsets are clamped to the tensors, so that wrong ones address nothing outside of them.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from msvit_kernels.calls import VarlenAttention, VarlenAttentionBackward, VarlenAttentionGradients, head_dim_fault
from msvit_kernels.triton.common import INTERPRETER_ARCH, arch_of, device_unsupported, dtype_unsupported, launch
from msvit_kernels.triton.numerics import dot, rounded

OPTIONS = frozenset({"key_weight"})
LOG2E, LN2 = tl.constexpr(1 / math.log(2)), tl.constexpr(math.log(2))
# Without this list Triton would compile again for integers that are 1 or multiples of 16. STRIDE_UNIT gives alignment.
_UNSPECIALIZED = ["num_heads", "num_blocks", "total_q", "total_k"]
_UNSPECIALIZED += [f"stride_{tensor}{axis}" for tensor in "dqkv" for axis in "th"]


def launch_config(
    kernel: str, head_dim: int, max_seqlen: int, dtype: torch.dtype, arch: int, aligned: bool = True
) -> dict[str, int]:
    """Tiles, warps and stages of a kernel.

    Args:
        kernel: "fwd", "dq" or "dkv".
        head_dim: elements of a row.
        max_seqlen: upper bound of the axis that programs share out: queries, or keys for "dkv".
        dtype: dtype of the rows.
        arch: compute capability, from `arch_of`.
        aligned: whether rows begin at multiples of 16 bytes; others are loaded by element, which takes registers.
    """
    if arch == INTERPRETER_ARCH:
        # The interpreter takes about as long for a large tile as for a small one.
        block = 64 if max_seqlen <= 64 else 128 if max_seqlen <= 256 else 256
        return {"BLOCK_M": block, "BLOCK_N": block}
    block_d = triton.next_power_of_2(head_dim)
    if dtype != torch.float32 and 90 <= arch < 100 and block_d <= 64 and max_seqlen > 16:
        return _hopper_config(kernel, max_seqlen, aligned)
    # Before sm_90 products take both operands from registers, of which wide tiles leave too few.
    split, other, num_warps = 64, 64 if arch >= 90 else 32, 4
    if dtype == torch.float32:
        # Products without tensor cores hold both operands in registers, over the whole head_dim.
        split, other, num_warps = 32, 32, 4 if block_d <= 32 else 8
        if kernel == "dkv" and block_d == 128:
            other = 16
    elif kernel == "fwd" and max_seqlen > 128:
        # From 129 queries on, this halves the number of passes over the keys.
        split, other, num_warps = 128, 64, 8
    elif kernel != "fwd" and block_d == 128:
        other, num_warps = 32 if kernel == "dkv" else 64, 8
    elif kernel == "dkv":
        other, num_warps = 32, 4 if arch >= 90 or max_seqlen <= 32 else 8
    split = min(split, max(16, triton.next_power_of_2(max_seqlen)))
    if not aligned and split <= 32:
        other = min(other, 32)  # the forward kernel for sm_100 would spill
    blocks = (other, split) if kernel == "dkv" else (split, other)
    return {"BLOCK_M": blocks[0], "BLOCK_N": blocks[1], "num_warps": num_warps, "num_stages": 2}


def _hopper_config(kernel: str, max_seqlen: int, aligned: bool) -> dict[str, int]:
    """The fastest launch configuration on an H100 in 16 bits, as found by bench/gpu_report/tune.py.

    The rows are in bench/results/cuda-nvidia-h100-80gb-hbm3/tune.csv.

    Small tiles and a cap on registers let more programs run side by side and hide each other's latency. That saves more
    time than the dkv kernel loses by spilling 48 bytes. The forward takes tiles of 64 keys above a max_seqlen of 256.
    """
    if kernel == "fwd" and max_seqlen > 256:
        return {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 3}
    split, most = min(64, triton.next_power_of_2(max_seqlen)), {"fwd": 96, "dq": 112, "dkv": 168}[kernel]
    blocks = (32, split) if kernel == "dkv" else (split, 32)
    config = {"BLOCK_M": blocks[0], "BLOCK_N": blocks[1], "num_warps": 4, "num_stages": 3}
    return config | ({"maxnreg": most} if aligned else {})


@triton.jit
def _sequence(cu_seqlens_ptr, pid_b, total):
    """(first row as int64, length) of sequence `pid_b`, scalars, clamped to [0, total]."""
    start = tl.minimum(tl.maximum(tl.load(cu_seqlens_ptr + pid_b), 0), total)
    end = tl.minimum(tl.maximum(tl.load(cu_seqlens_ptr + pid_b + 1), start), total)
    return start.to(tl.int64), end - start


@triton.jit
def _load_rows(ptr, stride, mask_rows, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr):
    """Loads consecutive rows from `ptr` on, [BLOCK, BLOCK_D]; zeros outside the mask and beyond HEAD_DIM."""
    offs_d = tl.arange(0, BLOCK_D)
    ptrs = ptr + tl.arange(0, BLOCK)[:, None] * stride + offs_d[None, :]
    return tl.load(ptrs, mask=mask_rows[:, None] & (offs_d < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def _store_rows(ptr, tile, stride, mask_rows, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr):
    """Stores an fp32 tile [BLOCK, BLOCK_D], rounded to the dtype of `ptr`, to consecutive rows inside the mask."""
    offs_d = tl.arange(0, BLOCK_D)
    ptrs = ptr + tl.arange(0, BLOCK)[:, None] * stride + offs_d[None, :]
    tl.store(ptrs, rounded(tile, ptr.dtype.element_ty), mask=mask_rows[:, None] & (offs_d < HEAD_DIM)[None, :])


@triton.jit
def _load_log_weight(log_weight_ptr, start_k, offs_n, len_k, HAS_WEIGHT: tl.constexpr):
    """log2 of the weight of each key, fp32 [BLOCK_N]; -inf for weight 0 and beyond the sequence, NaN for NaN."""
    if HAS_WEIGHT:
        return tl.load(log_weight_ptr + start_k + offs_n, mask=offs_n < len_k, other=float("-inf"))
    return tl.where(offs_n < len_k, 0.0, float("-inf"))


@triton.jit
def _mask_keys(log_weight, offs_n, len_k, HAS_WEIGHT: tl.constexpr):
    """Whether to read each key, [BLOCK_N]: only keys inside the sequence whose weight is not 0."""
    if HAS_WEIGHT:
        return log_weight != float("-inf")
    return offs_n < len_k


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _fwd_kernel(
    q_ptr, k_ptr, v_ptr, cu_seqlens_q_ptr, cu_seqlens_k_ptr, log_weight_ptr,
    out_ptr, lse_ptr,
    num_heads, num_blocks, total_q, total_k, scale,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh,
    HAS_WEIGHT: tl.constexpr, STRIDE_UNIT: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out_i = sum_j p_ij v_j and lse_i = log sum_j w_j exp(s_ij), with a running softmax.

    One program computes BLOCK_M queries of one head of one sequence in one pass over its keys and values, BLOCK_N at a
    time. The running maximum and all sums are fp32; each row is written by one program, in one order of summation:
    deterministic.
    """
    pid = tl.program_id(0)
    pid_m, pid_b = pid % num_blocks, pid // (num_blocks * num_heads)
    pid_h = (pid // num_blocks % num_heads).to(tl.int64)
    start_q, len_q = _sequence(cu_seqlens_q_ptr, pid_b, total_q)
    start_m = pid_m * BLOCK_M
    if start_m >= len_q:
        return
    start_k, len_k = _sequence(cu_seqlens_k_ptr, pid_b, total_k)
    stride_kt, stride_vt = stride_kt * STRIDE_UNIT, stride_vt * STRIDE_UNIT
    row = start_q + start_m
    mask_m = start_m + tl.arange(0, BLOCK_M) < len_q
    q_ptr += row * (stride_qt * STRIDE_UNIT) + pid_h * (stride_qh * STRIDE_UNIT)
    q = _load_rows(q_ptr, stride_qt * STRIDE_UNIT, mask_m, HEAD_DIM, BLOCK_D, BLOCK_M)
    k_ptr += start_k * stride_kt + pid_h * (stride_kh * STRIDE_UNIT)
    v_ptr += start_k * stride_vt + pid_h * (stride_vh * STRIDE_UNIT)

    scale *= LOG2E
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    next_log_weight = _load_log_weight(log_weight_ptr, start_k, tl.arange(0, BLOCK_N), len_k, HAS_WEIGHT)
    for start_n in range(0, len_k, BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        log_weight = next_log_weight
        mask_n = _mask_keys(log_weight, offs_n, len_k, HAS_WEIGHT)
        k = _load_rows(k_ptr, stride_kt, mask_n, HEAD_DIM, BLOCK_D, BLOCK_N)
        next_log_weight = _load_log_weight(log_weight_ptr, start_k, offs_n + BLOCK_N, len_k, HAS_WEIGHT)
        scores = dot(q, tl.trans(k)) * scale + log_weight[None, :]
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        finite_max = tl.where(new_max == float("-inf"), 0.0, new_max)
        p = tl.exp2(scores - finite_max[:, None])
        alpha = tl.exp2(row_max - finite_max)
        row_sum = row_sum * alpha + tl.sum(p, 1)
        v = _load_rows(v_ptr, stride_vt, mask_n, HEAD_DIM, BLOCK_D, BLOCK_N)
        acc = dot(rounded(p, v.dtype), v, acc * alpha[:, None])
        row_max = new_max
        k_ptr += BLOCK_N * stride_kt.to(tl.int64)
        v_ptr += BLOCK_N * stride_vt.to(tl.int64)

    no_key = row_sum == 0
    row_sum = tl.where(no_key, 1.0, row_sum)
    out_ptr += (row * num_heads + pid_h) * HEAD_DIM
    _store_rows(out_ptr, acc / row_sum[:, None], num_heads * HEAD_DIM, mask_m, HEAD_DIM, BLOCK_D, BLOCK_M)
    lse = tl.where(no_key, float("-inf"), (row_max + tl.log2(row_sum)) * LN2)
    lse_ptr += pid_h * total_q + row
    tl.store(lse_ptr + tl.arange(0, BLOCK_M), lse, mask=mask_m)


@triton.jit
def _load_lse(lse_ptr, offs_m, len_q):
    """lse in units of log2, fp32 [BLOCK_M]; +inf beyond the sequence and for -inf, so that exp2(scores - lse) is 0."""
    lse = tl.load(lse_ptr + offs_m, mask=offs_m < len_q, other=float("inf")) * LOG2E
    return tl.where(lse == float("-inf"), float("inf"), lse)


@triton.jit
def _load_statistics(lse_ptr, delta_ptr, offs_m, len_q):
    """(lse as from `_load_lse`, delta) of each query, fp32 [BLOCK_M]; delta is 0 beyond the sequence."""
    return _load_lse(lse_ptr, offs_m, len_q), tl.load(delta_ptr + offs_m, mask=offs_m < len_q, other=0.0)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _bwd_dq_kernel(
    dout_ptr, dlse_ptr, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, cu_seqlens_q_ptr, cu_seqlens_k_ptr, log_weight_ptr,
    dq_ptr, delta_ptr,
    num_heads, num_blocks, total_q, total_k, scale,
    stride_dt, stride_dh, stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh,
    HAS_WEIGHT: tl.constexpr, HAS_DLSE: tl.constexpr, STRIDE_UNIT: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """delta_i = dout_i . out_i - dlse_i and dq_i = softmax_scale * sum_j ds_ij k_j.

    One program computes BLOCK_M queries of one head of one sequence: delta from one read of dout and out, dq in one
    pass over the keys and values, with P computed again from lse. Sums are fp32 and have one order; each row is written
    by one program: deterministic.
    """
    pid = tl.program_id(0)
    pid_m, pid_b = pid % num_blocks, pid // (num_blocks * num_heads)
    pid_h = (pid // num_blocks % num_heads).to(tl.int64)
    start_q, len_q = _sequence(cu_seqlens_q_ptr, pid_b, total_q)
    start_m = pid_m * BLOCK_M
    if start_m >= len_q:
        return
    start_k, len_k = _sequence(cu_seqlens_k_ptr, pid_b, total_k)
    stride_kt, stride_vt = stride_kt * STRIDE_UNIT, stride_vt * STRIDE_UNIT
    row = start_q + start_m
    offs_m = tl.arange(0, BLOCK_M)
    mask_m = start_m + offs_m < len_q
    packed = (row * num_heads + pid_h) * HEAD_DIM  # in out and dq, which are contiguous
    q_ptr += row * (stride_qt * STRIDE_UNIT) + pid_h * (stride_qh * STRIDE_UNIT)
    dout_ptr += row * (stride_dt * STRIDE_UNIT) + pid_h * (stride_dh * STRIDE_UNIT)
    q = _load_rows(q_ptr, stride_qt * STRIDE_UNIT, mask_m, HEAD_DIM, BLOCK_D, BLOCK_M)
    dout = _load_rows(dout_ptr, stride_dt * STRIDE_UNIT, mask_m, HEAD_DIM, BLOCK_D, BLOCK_M)
    out = _load_rows(out_ptr + packed, num_heads * HEAD_DIM, mask_m, HEAD_DIM, BLOCK_D, BLOCK_M)
    per_row = pid_h * total_q + row
    lse = _load_lse(lse_ptr + per_row, offs_m, len_q - start_m)
    delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1)
    if HAS_DLSE:
        delta -= tl.load(dlse_ptr + per_row + offs_m, mask=mask_m, other=0.0)
    tl.store(delta_ptr + per_row + offs_m, delta, mask=mask_m)
    k_ptr += start_k * stride_kt + pid_h * (stride_kh * STRIDE_UNIT)
    v_ptr += start_k * stride_vt + pid_h * (stride_vh * STRIDE_UNIT)

    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    next_log_weight = _load_log_weight(log_weight_ptr, start_k, tl.arange(0, BLOCK_N), len_k, HAS_WEIGHT)
    for start_n in range(0, len_k, BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        log_weight = next_log_weight
        mask_n = _mask_keys(log_weight, offs_n, len_k, HAS_WEIGHT)
        k = _load_rows(k_ptr, stride_kt, mask_n, HEAD_DIM, BLOCK_D, BLOCK_N)
        v = _load_rows(v_ptr, stride_vt, mask_n, HEAD_DIM, BLOCK_D, BLOCK_N)
        next_log_weight = _load_log_weight(log_weight_ptr, start_k, offs_n + BLOCK_N, len_k, HAS_WEIGHT)
        scores = dot(q, tl.trans(k)) * (scale * LOG2E) + log_weight[None, :]
        p = tl.exp2(scores - lse[:, None])
        ds = p * (dot(dout, tl.trans(v)) - delta[:, None])
        dq = dot(rounded(ds, k.dtype), k, dq)
        k_ptr += BLOCK_N * stride_kt.to(tl.int64)
        v_ptr += BLOCK_N * stride_vt.to(tl.int64)
    _store_rows(dq_ptr + packed, dq * scale, num_heads * HEAD_DIM, mask_m, HEAD_DIM, BLOCK_D, BLOCK_M)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _bwd_dkv_kernel(
    dout_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, cu_seqlens_q_ptr, cu_seqlens_k_ptr, log_weight_ptr,
    dk_ptr, dv_ptr, dweight_ptr,
    num_heads, num_blocks, total_q, total_k, scale,
    stride_dt, stride_dh, stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh,
    HAS_WEIGHT: tl.constexpr, NEEDS_DWEIGHT: tl.constexpr, STRIDE_UNIT: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dk_j = softmax_scale * sum_i ds_ij q_i, dv_j = sum_i p_ij dout_i, dweight_j = sum_i P~_ij g_ij of one head.

    One program computes BLOCK_N keys of one head of one sequence in one pass over the queries and output gradients,
    BLOCK_M at a time, with P computed again from lse. The launcher adds dweight over heads. Sums are fp32 and have one
    order; each row is written by one program: deterministic.
    """
    pid = tl.program_id(0)
    pid_n, pid_b = pid % num_blocks, pid // (num_blocks * num_heads)
    pid_h = (pid // num_blocks % num_heads).to(tl.int64)
    start_k, len_k = _sequence(cu_seqlens_k_ptr, pid_b, total_k)
    start_n = pid_n * BLOCK_N
    if start_n >= len_k:
        return
    start_q, len_q = _sequence(cu_seqlens_q_ptr, pid_b, total_q)
    stride_qt, stride_dt = stride_qt * STRIDE_UNIT, stride_dt * STRIDE_UNIT
    row = start_k + start_n
    offs_n = tl.arange(0, BLOCK_N)
    mask_n = start_n + offs_n < len_k
    k_ptr += row * (stride_kt * STRIDE_UNIT) + pid_h * (stride_kh * STRIDE_UNIT)
    v_ptr += row * (stride_vt * STRIDE_UNIT) + pid_h * (stride_vh * STRIDE_UNIT)
    k = _load_rows(k_ptr, stride_kt * STRIDE_UNIT, mask_n, HEAD_DIM, BLOCK_D, BLOCK_N)
    v = _load_rows(v_ptr, stride_vt * STRIDE_UNIT, mask_n, HEAD_DIM, BLOCK_D, BLOCK_N)
    log_weight = _load_log_weight(log_weight_ptr, start_k, start_n + offs_n, len_k, HAS_WEIGHT)
    q_ptr += start_q * stride_qt + pid_h * (stride_qh * STRIDE_UNIT)
    dout_ptr += start_q * stride_dt + pid_h * (stride_dh * STRIDE_UNIT)
    lse_ptr += pid_h * total_q + start_q
    delta_ptr += pid_h * total_q + start_q

    # Tiles of P and dS are [BLOCK_N, BLOCK_M], keys by queries: the products for dk and dv take them as they are.
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dweight = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)  # summed over queries once, after the loop
    next_lse, next_delta = _load_statistics(lse_ptr, delta_ptr, tl.arange(0, BLOCK_M), len_q)
    for start_m in range(0, len_q, BLOCK_M):
        offs_m = start_m + tl.arange(0, BLOCK_M)
        mask_m = offs_m < len_q
        lse, delta = next_lse, next_delta
        next_lse, next_delta = _load_statistics(lse_ptr, delta_ptr, offs_m + BLOCK_M, len_q)
        q = _load_rows(q_ptr, stride_qt, mask_m, HEAD_DIM, BLOCK_D, BLOCK_M)
        dout = _load_rows(dout_ptr, stride_dt, mask_m, HEAD_DIM, BLOCK_D, BLOCK_M)
        scores = dot(k, tl.trans(q)) * (scale * LOG2E) - lse[None, :]
        p = tl.exp2(scores + log_weight[:, None])
        dv = dot(rounded(p, dout.dtype), dout, dv)
        dp = dot(v, tl.trans(dout)) - delta[None, :]
        if NEEDS_DWEIGHT:
            # In two halves, because P~ may overflow where the product does not; limited, so that 0 times it is 0.
            half = tl.exp2(tl.minimum(scores, 254.0, propagate_nan=tl.PropagateNan.ALL) * 0.5)
            dweight += half * (half * dp)
        dk = dot(rounded(p * dp, q.dtype), q, dk)
        q_ptr += BLOCK_M * stride_qt.to(tl.int64)
        dout_ptr += BLOCK_M * stride_dt.to(tl.int64)

    if HAS_WEIGHT:
        has_weight = (log_weight != float("-inf"))[:, None]
        dk, dv = tl.where(has_weight, dk, 0.0), tl.where(has_weight, dv, 0.0)
    packed = (row * num_heads + pid_h) * HEAD_DIM
    _store_rows(dk_ptr + packed, dk * scale, num_heads * HEAD_DIM, mask_n, HEAD_DIM, BLOCK_D, BLOCK_N)
    _store_rows(dv_ptr + packed, dv, num_heads * HEAD_DIM, mask_n, HEAD_DIM, BLOCK_D, BLOCK_N)
    if NEEDS_DWEIGHT:
        dweight_ptr += pid_h * total_k + row
        tl.store(dweight_ptr + offs_n, tl.sum(dweight, 1), mask=mask_n)


def varlen_attention_fwd(call: VarlenAttention) -> tuple[Tensor, Tensor]:
    """Computes out [total_q, num_heads, head_dim] in the dtype of q, and lse, float32 [num_heads, total_q]."""
    q, k, v = call.q, call.k, call.v
    total_q, num_heads, head_dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(num_heads, total_q, dtype=torch.float32, device=q.device)
    unit, strides = _strides(q, k, v)
    aligned = _aligned(unit, q, k, v)
    config = launch_config("fwd", head_dim, call.max_seqlen_q, q.dtype, arch_of(q), aligned)
    num_blocks = triton.cdiv(call.max_seqlen_q, config["BLOCK_M"])
    launch(
        _fwd_kernel,
        _grid(num_blocks, num_heads, call.cu_seqlens_q, q),
        q,
        (q, k, v, call.cu_seqlens_q, call.cu_seqlens_k, _log2(call.key_weight), out, lse)
        + (num_heads, num_blocks, total_q, k.shape[0], call.softmax_scale, *strides),
        HAS_WEIGHT=call.key_weight is not None,
        STRIDE_UNIT=unit,
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        **config,
    )
    return out, lse


def varlen_attention_bwd(backward: VarlenAttentionBackward) -> VarlenAttentionGradients:
    """Computes the gradients of q, k and v, and that of key_weight, float32 [total_k], if it is wanted."""
    call, out, lse, dout, dlse, needs_dweight = backward
    q, k, v = call.q, call.k, call.v
    total_q, num_heads, head_dim = q.shape
    total_k = k.shape[0]
    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    dlse = None if dlse is None else dlse.contiguous()
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty_like(lse)
    dweight = torch.empty(num_heads, total_k, dtype=torch.float32, device=q.device) if needs_dweight else None
    unit, strides = _strides(dout, q, k, v)
    aligned = _aligned(unit, dout, q, k, v)
    log_weight = _log2(call.key_weight)
    flags = {"HAS_WEIGHT": call.key_weight is not None, "STRIDE_UNIT": unit}
    flags |= {"HEAD_DIM": head_dim, "BLOCK_D": triton.next_power_of_2(head_dim)}

    config = launch_config("dq", head_dim, call.max_seqlen_q, q.dtype, arch_of(q), aligned)
    num_blocks = triton.cdiv(call.max_seqlen_q, config["BLOCK_M"])
    launch(
        _bwd_dq_kernel,
        _grid(num_blocks, num_heads, call.cu_seqlens_q, q),
        q,
        (dout, dlse, q, k, v, out, lse, call.cu_seqlens_q, call.cu_seqlens_k, log_weight, dq, delta)
        + (num_heads, num_blocks, total_q, total_k, call.softmax_scale, *strides),
        HAS_DLSE=dlse is not None,
        **flags,
        **config,
    )
    config = launch_config("dkv", head_dim, call.max_seqlen_k, q.dtype, arch_of(q), aligned)
    num_blocks = triton.cdiv(call.max_seqlen_k, config["BLOCK_N"])
    launch(
        _bwd_dkv_kernel,
        _grid(num_blocks, num_heads, call.cu_seqlens_k, k),
        q,
        (dout, q, k, v, lse, delta, call.cu_seqlens_q, call.cu_seqlens_k, log_weight, dk, dv, dweight)
        + (num_heads, num_blocks, total_q, total_k, call.softmax_scale, *strides),
        NEEDS_DWEIGHT=needs_dweight,
        **flags,
        **config,
    )
    return VarlenAttentionGradients(dq, dk, dv, None if dweight is None else dweight.sum(0))


def _log2(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.log2()


def _strides(*tensors: Tensor) -> tuple[int, list[int]]:
    """(unit, token and head strides in this unit): 8 elements if 8 divides all of them, for aligned loads; else 1."""
    strides = [stride for tensor in tensors for stride in tensor.stride()[:2]]
    unit = 1 if any(stride % 8 for stride in strides) else 8
    return unit, [stride // unit for stride in strides]


def _aligned(unit: int, *tensors: Tensor) -> bool:
    """Whether all rows begin at multiples of 16 bytes; `unit` is that of their strides."""
    return unit > 1 and all(tensor.data_ptr() % 16 == 0 for tensor in tensors)


def _grid(num_blocks: int, num_heads: int, cu_seqlens: Tensor, rows: Tensor) -> tuple[int]:
    """One axis, because only the first may exceed 65535, with the blocks of a head side by side; 0 without rows."""
    return (num_blocks * num_heads * (cu_seqlens.shape[0] - 1) if math.prod(rows.shape) else 0,)


def unsupported_reason(device_type: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Reason why q, k and v of this dtype and head_dim cannot run here, or None."""
    reason = device_unsupported(device_type) or dtype_unsupported(dtype)
    fault = head_dim_fault(head_dim)
    return reason or (f"takes {fault}" if fault else None)
