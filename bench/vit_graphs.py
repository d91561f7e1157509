"""CUDA graphs of the models that bench/latency.py compares, and the compiled dense model beside them."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from gpu import timing
from torch import Tensor
from vit_methods import IMAGE_SIZES, Method, Zoo

from msvit_kernels import testing

GRAPHED = ("dense", "dense compiled", "packed")
Tables = dict[int, list[list[Method]]]


@torch.inference_mode()
def add_graphs(zoo: Zoo, tables: Tables, deadline: float) -> list[str]:
    """Adds to the methods of each batch size the compiled dense model and the graphs.

    Compiling takes at most about half of the time until the deadline, and begins with the largest batch.

    Returns:
        What there is no time for, or no graph of, and why.
    """
    notes: list[str] = []
    start = time.perf_counter()
    compile_until = start + (deadline - start) / 2
    longest = 0.0
    order = [(tokens, batch) for tokens in sorted(IMAGE_SIZES.values()) for batch in sorted(tables, reverse=True)]
    for tokens, batch in order:
        row = next((row for row in tables[batch] if row[0].name == "dense" and row[0].tokens == tokens), None)
        if row is None:
            continue
        if time.perf_counter() + longest > compile_until:
            notes.append(f"dense compiled at {tokens} tokens and batch {batch}: no time to compile it")
            continue
        begin = time.perf_counter()
        method = zoo.dense(tokens, compiled=True)
        method.call(zoo.images(method.image_size)[:batch])
        torch.cuda.synchronize()
        longest = max(longest, time.perf_counter() - begin)
        row.append(method)
    pool = torch.cuda.graph_pool_handle()
    stream = torch.cuda.Stream()
    for batch, rows in tables.items():
        for row in rows:
            for method in [method for method in row if method.name in GRAPHED]:
                try:
                    images = zoo.images(method.image_size)[:batch]
                    call = graphed(method.call, images, zoo, pool, stream)
                    row.append(replace(method, name=f"{method.name} graph", call=call))
                except Exception as error:
                    notes.append(f"{method.name} graph at {method.wanted} tokens: {timing.reason(error)}")
                    if timing.is_fatal(error):
                        raise
    return notes


def graphed(
    call: Callable[[Tensor], Tensor], images: Tensor, zoo: Zoo, pool: Any, stream: torch.cuda.Stream
) -> Callable[[Tensor], None]:
    """A function that copies images to where the graph of `call` reads them, and replays it.

    Raises:
        AssertionError: the replay gives other logits than the call.
        RuntimeError: the call cannot be captured.
    """
    static = images.clone()
    zoo.stopwatch.paused = True
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            for _ in range(3):
                expected = call(static).clone()
            torch.cuda.synchronize()
            graph, (logits,) = timing.capture([lambda: call(static)], pool)
            logits.zero_()
            graph.replay()
            torch.cuda.synchronize()
            testing.assert_accurate("logits of the graph", logits, expected, expected.double())
    finally:
        zoo.stopwatch.paused = False
    torch.cuda.current_stream().wait_stream(stream)
    del logits  # their memory may be that of the next graph

    def replay(images: Tensor) -> None:
        static.copy_(images)
        graph.replay()

    return replay
