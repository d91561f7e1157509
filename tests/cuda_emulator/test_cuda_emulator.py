"""The emulator that runs the CUDA kernels on the CPU: each primitive against its definition, and each error."""

import pytest
import torch

from tests.cuda_emulator import build
from tests.cuda_emulator.startup.sitecustomize import load

SCHEDULES = ["forward", "reverse", "random:1", "random:2"]


def built(target):
    try:
        return load(build.build(target))
    except build.UnavailableError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def emulator():
    return built(build.SELFTEST)


@pytest.fixture(params=SCHEDULES)
def schedule(request, monkeypatch):
    monkeypatch.setenv("MSVIT_EMULATED_SCHEDULE", request.param)


def run(emulator, name, input=None, outputs=1024, blocks=1, threads=32, shared_bytes=0, argument=0):
    """The output of a kernel of the self-test: int32, -1 in words that it did not write."""
    input = torch.zeros(1024, dtype=torch.int32) if input is None else input.contiguous()
    output = torch.full((outputs,), -1, dtype=torch.int32)
    emulator.emulator_statistics()
    emulator.run(name, input.data_ptr(), output.data_ptr(), blocks, threads, shared_bytes, argument)
    return output


def words(x):
    """16-bit pairs as 32-bit words, the lower half first."""
    return x.contiguous().view(torch.int32)


def floats(bits):
    return bits.view(torch.float32)


def test_every_cuda_source_compiles_for_the_emulator():
    assert built(build.MODULE).device_properties(0)["name"] == "emulated on the CPU"


# ---- arithmetic


def fragments(a, b, d):
    """Registers of the 32 lanes, [32, 10], by the tables of the PTX ISA for mma.m16n8k16."""
    rows = []
    for lane in range(32):
        group, pair = lane // 4, slice(2 * (lane % 4), 2 * (lane % 4) + 2)
        later = slice(pair.start + 8, pair.stop + 8)
        a_parts = [a[group, pair], a[group + 8, pair], a[group, later], a[group + 8, later]]
        sixteen = torch.cat([*a_parts, b[pair, group], b[later, group]])
        rows.append(torch.cat([words(sixteen), words(torch.cat([d[group, pair], d[group + 8, pair]]))]))
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_mma_is_the_matrix_product(emulator, schedule, dtype):
    a, b, d = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype), torch.randn(16, 8)
    name = "mma_bf16" if dtype == torch.bfloat16 else "mma_fp16"
    registers = floats(run(emulator, name, fragments(a, b, d), outputs=128)).view(32, 4)
    expected = torch.stack([floats(row[6:]) for row in fragments(a, b, (a.double() @ b.double() + d).float())])
    torch.testing.assert_close(registers, expected)


def halves(dtype):
    """Every 16-bit number, its neighbours, the midpoints between numbers, and values that overflow."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).float()
    between = (every + torch.nextafter(every, torch.tensor(torch.inf)).to(dtype).float()) / 2
    finite = every[every.isfinite()].sort().values
    midpoints = ((finite[1:].double() + finite[:-1].double()) / 2).float()
    extremes = torch.tensor([torch.inf, -torch.inf, torch.nan, 65519.9, 65520, -65520, 3.4e38, 1e-45, 2.9e-8, 3e-8])
    near = torch.cat([torch.nextafter(midpoints, torch.tensor(x)) for x in (torch.inf, -torch.inf)])
    x = torch.cat([every, between, midpoints, near, extremes, torch.randn(1000)])
    return torch.cat([x, x[: -len(x) % 512]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_rounding_to_16_bits_is_that_of_torch(emulator, dtype):
    x = halves(dtype)
    name = "pack_bf16" if dtype == torch.bfloat16 else "pack_fp16"
    blocks = len(x) // 512
    result = run(emulator, name, x.view(torch.int32), outputs=len(x) // 2 * 3, blocks=blocks, threads=256).view(-1, 3)
    packed = result[:, 0].contiguous().view(dtype)
    expected = x.to(dtype)
    numbers = ~expected.isnan()
    assert torch.equal(packed.view(torch.int16)[numbers], expected.view(torch.int16)[numbers])
    assert (packed.view(torch.int16)[~numbers] == 0x7FFF).all()
    torch.testing.assert_close(floats(result[:, 1:].flatten()), packed.float(), rtol=0, atol=0, equal_nan=True)


# ---- shared memory


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_are_loaded_in_the_layout_of_ldmatrix(emulator, schedule, transposed):
    matrices = torch.arange(256, dtype=torch.int16).view(4, 8, 8)
    name = "load_transposed" if transposed else "load"
    result = run(emulator, name, words(matrices), outputs=128, shared_bytes=32 * 48, argument=48)
    expected = matrices.transpose(1, 2) if transposed else matrices
    registers = words(expected.reshape(4, 32, 2)).view(4, 32).T
    assert torch.equal(result.view(32, 4), registers)


@pytest.mark.parametrize(("row_bytes", "extra"), [(16, 0), (48, 0), (144, 0), (32, 4), (64, 12), (128, 28)])
def test_bank_conflicts_of_matrix_loads(emulator, row_bytes, extra):
    run(emulator, "load", outputs=128, shared_bytes=32 * row_bytes, argument=row_bytes)
    (launch,) = emulator.emulator_statistics()
    assert launch["matrix_loads"] == 1
    assert launch["matrix_load_conflicts"] == extra
    assert launch["copy_async_bytes"] == 32 * 16
    assert launch["barriers"] == 1


@pytest.mark.parametrize(("stride", "extra"), [(1, 0), (0, 0), (2, 1), (8, 7), (32, 31), (33, 0)])
def test_bank_conflicts_of_stores(emulator, stride, extra):
    # With one lane for stride 0: two lanes that write the same word are a race.
    run(emulator, "stores", threads=32 if stride else 1, shared_bytes=4 * 32 * 33, argument=stride)
    (launch,) = emulator.emulator_statistics()
    assert (launch["shared_stores"], launch["shared_store_conflicts"]) == (1, extra)


@pytest.mark.parametrize("pending", [0, 1, 2])
def test_copies_arrive_in_groups(emulator, schedule, pending):
    result = run(
        emulator, "copies", torch.arange(1, 13, dtype=torch.int32), 12 * 32, shared_bytes=48 * 32, argument=pending
    )
    expected = torch.tensor([1, 2, 3, 4, 0, 0, 0, 0, 9, 10, 11, 12], dtype=torch.int32)
    expected[12 - 4 * pending :] = -1
    assert torch.equal(result.view(32, 12), expected.expand(32, 12))


def test_shared_memory_starts_as_nan(emulator):
    result = run(emulator, "uninitialised", outputs=32, shared_bytes=128)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert result.view(dtype).isnan().all()


# ---- warps and blocks


def test_warps_exchange_values(emulator, schedule):
    values = torch.randint(0, 100, (64,), dtype=torch.int32)
    result = run(emulator, "warp", values, 6 * 64, threads=64).view(2, 32, 6)
    lanes = torch.arange(32)
    for x, warp in zip(values.view(2, 32), result, strict=True):
        weights = 2 ** lanes.long()
        expected = [
            x[(lanes + 5) % 32],
            x[lanes ^ 9],
            (weights * (x % 3 == 0)).sum().expand(32),
            (weights * (x[:, None] % 4 == x % 4)).sum(1),
            x[torch.where(lanes < 16, 3, 20)],
            x[lanes // 8 * 8 + 1],
        ]
        for i, column in enumerate(expected):
            assert torch.equal(warp[:, i].long() & 0xFFFFFFFF, column.long()), i


@pytest.mark.parametrize("workers", ["1", "3"])
def test_blocks_sum_with_barriers_and_atomics(emulator, schedule, monkeypatch, workers):
    monkeypatch.setenv("MSVIT_EMULATED_WORKERS", workers)
    values = torch.randint(0, 100, (8, 256), dtype=torch.int32)
    result = run(emulator, "sum", values, 16, blocks=8, threads=256, shared_bytes=16 + 1024).view(8, 2)
    assert torch.equal(result[:, 0], values.sum(1, dtype=torch.int32))
    assert torch.equal(result[:, 1], values.sum(1, dtype=torch.int32))
    assert emulator.emulator_statistics()[-1]["barriers"] == 8 * 10


# ---- errors


def fails(emulator, name, match, **options):
    options = {"threads": 64, "shared_bytes": 512} | options
    with pytest.raises(RuntimeError, match=match):
        run(emulator, name, **options)


@pytest.mark.parametrize("name", ["exchange", "exchange_plain"])
def test_a_missing_barrier_is_a_race(emulator, schedule, name):
    for argument in (0, 1):
        assert torch.equal(
            run(emulator, name, outputs=64, threads=64, shared_bytes=256, argument=argument),
            torch.arange(64, dtype=torch.int32) ^ 1,
        )
    for argument in (2, 3):
        fails(emulator, name, r"race: thread \d+ .* with no barrier between", argument=argument)


def test_overwriting_what_another_warp_reads_is_a_race(emulator, schedule):
    run(emulator, "overwrite", threads=64, shared_bytes=512, argument=1)
    fails(emulator, "overwrite", r"race: .*copy.* with no barrier between|race: .*load_matrices.* started a copy")


def test_two_writers_of_one_word_are_a_race(emulator, schedule):
    fails(emulator, "write_twice", r"race: .* writes .* wrote at .* with no barrier between")


def test_blocks_that_share_global_memory_are_a_race(emulator, schedule):
    assert (run(emulator, "global", outputs=64, blocks=2, argument=1) == 1).all()
    fails(emulator, "global", r"race: .* writes 4 bytes of global memory .* at selftest.cu:\d+\)", argument=0, blocks=1)
    match = r"race: .* of global memory .*, which block \d (wrote|read) at selftest.cu:\d+ in the same launch"
    fails(emulator, "global", match, argument=0, blocks=2, threads=1)
    fails(emulator, "global", match, argument=100, blocks=2)


def test_reading_a_copy_early_is_a_race(emulator, schedule):
    fails(
        emulator,
        "early_read",
        r"reads .* started a copy to at selftest.cu:\d+ and has not waited for",
        argument=0,
        shared_bytes=1024,
    )
    fails(emulator, "early_read", r"race: .* with no barrier between|has not waited for", argument=1, shared_bytes=1024)


@pytest.mark.parametrize(
    ("argument", "match"),
    [
        (0, r"warp 0: lanes 0-15 wait at mma at selftest.cu:\d+ for lanes 0-31; lanes 16-31 have left"),
        (1, r"warp 0: lanes 0-15 wait at __syncthreads at selftest.cu:\d+; lanes 16-31 have left"),
        (2, r"warp 0: lanes 0,2,4,.* wait at mma at selftest.cu:(\d+) .* lanes 1,3,5,.* wait at mma"),
    ],
)
def test_lanes_that_do_not_meet_are_a_deadlock(emulator, argument, match):
    fails(emulator, "diverged", r"(?s)diverged_kernel.*deadlock:.*" + match, threads=32, argument=argument)


@pytest.mark.parametrize(
    ("argument", "match"),
    [
        (0, r"reads bytes 496 to 511 of shared memory \(load_matrices at selftest.cu:\d+\): outside of its 496 bytes"),
        (1, r"load_matrices at selftest.cu:\d+: address \d+ is no multiple of 16"),
        (2, r"stray_kernel.* block 0: thread 0 .*writes bytes 496 to 499 of shared memory .* outside"),
        (3, r"the source is not aligned"),
        (4, r"the destination is not aligned"),
        (5, r"writes bytes 496 to 499 of shared memory \(plain access at selftest.cu:\d+\): outside"),
        (6, r"writes bytes -4 to -1 of shared memory .* outside"),
        (7, r"writes bytes -1024 to -1021 of shared memory .* outside"),
        (8, r"with a mask that does not name it: lanes 0-15"),
        (9, r"thread 0 at selftest.cu:\d+: an access that is not aligned"),
        (10, r"thread 0 at selftest.cu:\d+: an index outside of its array"),
    ],
)
def test_a_stray_access_is_an_error(emulator, argument, match):
    fails(emulator, "stray", match, threads=32, shared_bytes=496, argument=argument)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threads": 1025}, "1025 threads"),
        ({"blocks": 0}, "0 blocks"),
        ({"shared_bytes": 50000}, "50000 bytes of shared memory; the kernel was allowed 49152"),
    ],
)
def test_a_launch_that_cuda_would_refuse_is_refused(emulator, options, match):
    fails(emulator, "stores", match, **options)


def test_an_unknown_schedule_is_an_error(emulator, monkeypatch):
    monkeypatch.setenv("MSVIT_EMULATED_SCHEDULE", "backward")
    fails(emulator, "stores", "MSVIT_EMULATED_SCHEDULE: expected forward, reverse or random:SEED, got backward")
