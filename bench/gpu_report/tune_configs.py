"""Launch configurations of the Triton attention kernels that tune.py tries, and their compilation."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch

from bench.failures import reason
from msvit_kernels.triton import aot
from msvit_kernels.triton import common as triton_common
from msvit_kernels.triton import varlen_attention as kernels

KERNELS = {"fwd": kernels._fwd_kernel, "dq": kernels._bwd_dq_kernel, "dkv": kernels._bwd_dkv_kernel}
HEAD_DIM = 64
DTYPE = torch.bfloat16
Config = dict[str, int]


def candidates(kernel: str) -> list[Config]:
    """Configurations to try for "fwd", "dq" or "dkv"; programs split the queries or, for "dkv", the keys."""
    tiles = [(64, other, 4, stages) for other in (32, 64) for stages in (1, 2, 3, 4)]
    tiles += [(128, other, 4, stages) for other in (32, 64) for stages in (2, 3)]
    tiles += [(128, other, 8, stages) for other in (32, 64, 128) for stages in (2, 3)]
    found = []
    for split, other, warps, stages in tiles:
        blocks = (other, split) if kernel == "dkv" else (split, other)
        found.append({"BLOCK_M": blocks[0], "BLOCK_N": blocks[1], "num_warps": warps, "num_stages": stages})
    # With fewer registers, one more program fits on a multiprocessor.
    smallest = {"fwd": (96, 112), "dq": (96, 112), "dkv": (128, 168)}[kernel]
    usual = [each for each in found if min(each["BLOCK_M"], each["BLOCK_N"]) == 32 and each["num_warps"] == 4]
    found += [each | {"maxnreg": most} for each in usual[:3] for most in smallest]
    return found


def jobs() -> list[tuple[str, bool, Config]]:
    """(kernel, weighted, configuration): the backward pass with weights and their gradient, as a gate is trained."""
    return [
        (kernel, weighted, config)
        for kernel, weighted in (("fwd", False), ("fwd", True), ("dq", True), ("dkv", True))
        for config in candidates(kernel)
    ]


@contextmanager
def forced(kernel: str, config: Config, alone: bool = True) -> Iterator[None]:
    """Makes `launch_config` return `config` for one kernel; if `alone`, the launchers launch no other kernel."""
    module: Any = kernels
    usual_config, usual_launch = module.launch_config, module.launch

    def launch_config(name: str, *arguments: Any) -> Config:
        usual: Config = usual_config(name, *arguments)
        return config if name == kernel else usual

    def launch(function: Any, *arguments: Any, **options: Any) -> None:
        if function is KERNELS[kernel] or not alone:
            usual_launch(function, *arguments, **options)

    module.launch_config, module.launch = launch_config, launch
    try:
        yield
    finally:
        module.launch_config, module.launch = usual_config, usual_launch


def compile_one(arch: int | None, job: tuple[str, bool, Config]) -> str:
    """Fills Triton's cache with one configuration of `jobs`.

    Args:
        arch: compute capability such as 90; if None, that of the GPU.
        job: kernel, whether keys have weights, and configuration.

    Returns:
        The error, or an empty text.
    """
    kernel, weighted, config = job
    if arch is not None:
        aot.driver.set_active(aot._Target(arch))
    triton_common.compile_arch = arch or 10 * torch.cuda.get_device_capability()[0]
    triton_common.compile_hook = lambda function, arguments, options: function.warmup(*arguments, grid=(1,), **options)
    try:
        with forced(kernel, config):
            aot._attention(DTYPE, HEAD_DIM, 196, weighted, weighted, aligned=True, dlse=False)
    except Exception as error:  # for example too much shared memory: not a valid candidate
        return f"{kernel} {config}: {reason(error)}"
    finally:
        triton_common.compile_hook = None
    return ""


def compile_all(arch: int | None, processes: int) -> None:
    """Compiles all configurations in several processes."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for problem in pool.map(partial(compile_one, arch), jobs()):
            if problem:
                print(f"left out: {problem}", flush=True)
