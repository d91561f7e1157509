"""Compiles every Triton kernel ahead of time, without a GPU, in the configurations that the launchers can choose.

    python -m msvit_kernels.triton.aot --archs 80,90,100 [--quick] [--csv PATH] [--jobs 2]

sm_90 gets all configurations of bf16 and fp32 and a few of fp16; the other architectures get those of bf16 and a few of
fp32. The launchers run on meta tensors, and a hook compiles each kernel for the named architecture instead of launching
it. The table shows registers and spilled bytes per thread (from the cuobjdump that comes with Triton) and shared memory
per program. The exit status is 1 if a value exceeds its bound.
"""

import argparse
import itertools
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from msvit_kernels import calls
from msvit_kernels.files import write_rows
from msvit_kernels.triton import common, mixed_scale_embed, mixed_scale_layout, unpack_to_grid, varlen_attention

SHARED_KB = {80: 163, 90: 227, 100: 227}  # shared memory of one program, at most, by compute capability
# This architecture compiles every dtype, but few configurations of fp16, whose kernels differ from those of bf16 in the
# type alone. The others leave out fp16 and most of fp32, whose tiles are the same on every GPU; fp32 has to fit the
# smallest shared memory everywhere, but its spills are checked here alone.
COMPLETE_ARCH = 90
MAX_REGISTERS = 255
MAX_TENSOR_COLUMNS = 512
# Spilled bytes per thread, at most. Hot kernels are attention in 16 bits up to head_dim 64 and the forward product of
# the embedding in 16 bits: they may spill nothing on sm_80; twelve values on sm_90, where an H100 is faster with more
# programs side by side (launch_config); four values on sm_100, which ptxas keeps in memory across the loop, but not
# within it, to stay at 128 registers. Other kernels (head_dim above 64; fp32, which does not use tensor cores; rows
# that are loaded by element) may spill a few more.
SPILLS_HOT = {80: 0, 90: 48, 100: 16}
SPILLS_ELSEWHERE = 64
HEAD_DIMS = (16, 32, 40, 64, 80, 128)
HEAD_DIMS_ELSEWHERE = (32, 40, 64, 80, 128)  # 16 needs less of everything than 32


@dataclass(frozen=True)
class Row:
    """Resources of one compiled kernel; registers and spills are per thread, shared memory per program."""

    arch: int
    operator: str
    kernel: str
    dtype: str
    options: str
    num_warps: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    verdict: str


class _Target:
    """The part of a Triton driver that a compilation calls, for an architecture instead of a GPU."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_device(self) -> int:
        return self.arch  # Triton caches compiled kernels by device number

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def _attention(
    dtype: torch.dtype, head_dim: int, max_seqlen: int, weighted: bool, needs_dweight: bool, aligned: bool, dlse: bool
) -> None:
    """Launches attention forward and backward once; the functions below do the same for the other operators."""
    pad = 0 if aligned else 1
    q, k, v = _meta(1000, 3, 6, head_dim + pad, dtype=dtype)[..., :head_dim].unbind(1)
    offsets = _meta(5, dtype=torch.int32)
    weight = _meta(1000) if weighted else None
    call = calls.VarlenAttention(q, k, v, offsets, offsets, max_seqlen, max_seqlen, 0.125, weight)
    out, lse = varlen_attention.varlen_attention_fwd(call)
    upstream = torch.empty_like(out), torch.empty_like(lse) if dlse else None
    varlen_attention.varlen_attention_bwd(calls.VarlenAttentionBackward(call, out, lse, *upstream, needs_dweight))


def _embed(dtype: torch.dtype, images_dtype: torch.dtype, patch_size: int, dim: int, scale_factor: int = 2) -> None:
    side = 4 * patch_size * scale_factor
    images, index = _meta(2, 3, side, side, dtype=images_dtype), _meta(100, dtype=torch.int32)
    weight, bias = _meta(dim, 3, patch_size, patch_size, dtype=dtype), _meta(dim, dtype=dtype)
    regions = calls.Regions(_meta(2, 4, 4, dtype=torch.bool), _meta(2, 16, dtype=torch.int32), scale_factor)
    table = _meta(regions.scales(num_prefix=1).num_candidates, dim, dtype=dtype)
    offsets = _meta(3, dtype=torch.int32)
    patches = calls.Patches(images, regions, offsets, index, index, 1, weight, patch_size, (0.5,) * 3, (0.5,) * 3)
    out = mixed_scale_embed.mixed_scale_embed_fwd(calls.MixedScaleEmbed(patches, table, bias))
    needs = images.is_floating_point(), True, True, True
    mixed_scale_embed.mixed_scale_embed_bwd(calls.MixedScaleEmbedBackward(patches, out, *needs))


def _layout(side: int) -> None:
    mask = _meta(2, side, side, dtype=torch.bool)
    offsets = calls.MixedScaleLayoutOffsets(mask, scale_factor=2, num_prefix=1)
    _, cu_seqlens, region_start = mixed_scale_layout.mixed_scale_layout_offsets(offsets)
    regions = calls.Regions(mask, region_start, offsets.scale_factor)
    mixed_scale_layout.mixed_scale_layout_fwd(calls.MixedScaleLayoutIndices(regions, cu_seqlens, 100, num_prefix=1))


def _unpack(dtype: torch.dtype, dim: int) -> None:
    regions = calls.Regions(_meta(2, 7, 7, dtype=torch.bool), _meta(2, 49, dtype=torch.int32), scale_factor=2)
    grid = unpack_to_grid.unpack_to_grid_fwd(calls.UnpackToGrid(_meta(100, dim, dtype=dtype), regions))
    unpack_to_grid.unpack_to_grid_bwd(calls.UnpackToGridBackward(grid, regions, total_tokens=100))


Case = tuple[str, torch.dtype, Callable[[], None]]


def cases(arch: int, quick: bool) -> Iterator[Case]:
    """(operator, dtype, function that launches the kernels) of every case; with `quick`, a few of them."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    complete = not quick and arch == COMPLETE_ARCH
    head_dims: dict[torch.dtype, Sequence[int]] = {bf16: (64,) if quick else HEAD_DIMS_ELSEWHERE, fp32: (16,)}
    if complete:
        head_dims = {bf16: HEAD_DIMS, fp32: HEAD_DIMS, fp16: (64,)}
    for dtype, dims in head_dims.items():
        for head_dim in dims:
            yield "varlen_attention", dtype, partial(_attention_cases, dtype, head_dim, quick or dtype == fp16)
    embeds = [(bf16, torch.uint8, 16), (fp32, fp32, 16)]
    if not quick:
        embeds += [(bf16, torch.uint8, p) for p in (8, 14, 32)] + [(bf16, fp32, 14), (bf16, fp32, 16), (bf16, bf16, 16)]
    if complete:
        embeds += [(fp16, fp16, 16), (fp32, torch.uint8, 16), (fp32, fp32, 8)]
    for dtype, images_dtype, patch_size in embeds:
        yield "mixed_scale_embed", dtype, partial(_embed, dtype, images_dtype, patch_size, 384)
    yield "mixed_scale_layout", torch.bool, partial(_layout, 7)
    for dtype in (bf16, fp16, fp32) if complete else (bf16,):
        yield "unpack_to_grid", dtype, partial(_unpack, dtype, 384)


def _attention_cases(dtype: torch.dtype, head_dim: int, quick: bool) -> None:
    """Launches one head_dim with a max_seqlen for every tile, and a few of them with other flags."""
    whole_tiles = head_dim in (16, 32, 64, 128)
    for max_seqlen in (1, 32, 128, 196, 577) if whole_tiles and not quick else (196,):
        _attention(dtype, head_dim, max_seqlen, weighted=True, needs_dweight=True, aligned=True, dlse=False)
    if whole_tiles:
        for max_seqlen in (196,) if quick else (196, 577):
            _attention(dtype, head_dim, max_seqlen, weighted=False, needs_dweight=False, aligned=True, dlse=False)
    if head_dim == 64 and not quick:
        _attention(dtype, head_dim, 196, weighted=True, needs_dweight=False, aligned=True, dlse=True)
        for max_seqlen in (32, 196, 577):
            _attention(dtype, head_dim, max_seqlen, weighted=True, needs_dweight=True, aligned=False, dlse=False)


def _spill_bound(operator: str, kernel: str, dtype: torch.dtype, options: dict[str, Any]) -> int:
    """Spilled bytes per thread that the kernel may have on `compile_arch`."""
    hot = operator == "varlen_attention" and options["HEAD_DIM"] <= 64 and options["STRIDE_UNIT"] == 8
    hot = hot or (operator == "mixed_scale_embed" and kernel == "_fwd_kernel")
    return SPILLS_HOT[common.compile_arch] if hot and dtype != torch.float32 else SPILLS_ELSEWHERE


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory of one thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # Triton itself puts nothing into local memory, so all of the stack is spills.
    registers, stack, local = (sum(map(int, re.findall(rf"{key}:(\d+)", text))) for key in ("REG", "STACK", "LOCAL"))
    return registers, stack + local


def _measure(kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any], operator: str, dtype: Any) -> Row:
    """Compiles a kernel for `compile_arch` and compares its resources with their bounds."""
    arch = common.compile_arch
    compiled = kernel.warmup(*arguments, grid=(1,), **options)
    registers, spill_bytes = _resources(compiled.asm["cubin"])
    shared_bytes = compiled.metadata.shared
    name = kernel.fn.__name__
    shared_kb = min(SHARED_KB.values()) if dtype == torch.float32 else SHARED_KB[arch]
    bounds = {
        "registers": (registers, MAX_REGISTERS),
        "spills": (spill_bytes, _spill_bound(operator, name, dtype, options)),
        "shared memory": (shared_bytes, shared_kb * 1024),
        "tensor memory": (getattr(compiled.metadata, "tmem_size", None) or 0, MAX_TENSOR_COLUMNS),
    }
    verdict = ", ".join(f"{what} above {bound}" for what, (value, bound) in bounds.items() if value > bound) or "ok"
    shown = {k: int(v) for k, v in options.items() if k.isupper()}
    text = " ".join(f"{k}={v}" for k, v in shown.items())
    warps = options["num_warps"]
    dtype_name = str(dtype).removeprefix("torch.")
    return Row(arch, operator, name, dtype_name, text, warps, registers, spill_bytes, shared_bytes, verdict)


def compile_case(index: int, arch: int, quick: bool) -> list[Row]:
    """Compiles the kernels that case number `index` of `cases` launches; one row for each."""
    operator, dtype, launch_all = next(itertools.islice(cases(arch, quick), index, None))
    driver.set_active(_Target(arch))
    rows: dict[str, Row] = {}

    def hook(kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        key = f"{kernel.fn.__name__} {options} {[str(getattr(x, 'dtype', '')) for x in arguments]}"
        if key not in rows:
            rows[key] = _measure(kernel, arguments, options, operator, dtype)

    common.compile_hook, common.compile_arch = hook, arch
    try:
        launch_all()
    finally:
        common.compile_hook = None
    return list(rows.values())


def report(rows: Sequence[Row]) -> str:
    """The rows as a text table with aligned columns."""
    header = tuple(field.name for field in fields(Row))
    table = [header, *(tuple(map(str, asdict(row).values())) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(cell.ljust(n) for cell, n in zip(line, widths, strict=True)).rstrip() for line in table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m msvit_kernels.triton.aot", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--archs", default="80,90,100", help="compute capabilities, separated by commas")
    parser.add_argument("--quick", action="store_true", help="compile one case of each kind")
    parser.add_argument("--csv", type=Path, help="CSV file to write the table to, in addition to the output")
    parser.add_argument("--jobs", type=int, default=2, help="number of processes")
    options = parser.parse_args(arguments)
    archs = [int(arch) for arch in options.archs.split(",")]
    unknown = [arch for arch in archs if arch not in SHARED_KB]
    if unknown:
        parser.error(f"--archs: bounds are known for {', '.join(map(str, SHARED_KB))}, not for {unknown}")
    if common.interpreting():
        parser.error("TRITON_INTERPRET=1 is set: kernels made for the interpreter cannot be compiled")
    work = [(i, arch, options.quick) for arch in archs for i, _ in enumerate(cases(arch, options.quick))]
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows = list(itertools.chain.from_iterable(pool.map(compile_case, *zip(*work, strict=True))))
    print(report(rows))
    if options.csv:
        write_rows(options.csv, [field.name for field in fields(Row)], list(map(asdict, rows)))
    bad = [row for row in rows if row.verdict != "ok"]
    print(f"{len(rows)} kernels compiled with Triton {triton.__version__}, {len(bad)} above a bound")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
