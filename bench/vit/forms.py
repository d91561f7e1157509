"""The models that bench/latency.py compares in their faster forms: compiled, as CUDA graphs, and both."""

import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench import graphs as cuda_graphs
from bench.failures import is_fatal, reason
from bench.vit.compiled import compiled
from bench.vit.tokens import IMAGE_SIZES
from bench.vit.zoo import Method, Zoo
from msvit_kernels import testing

HEADLINE_TOKENS = 98  # half of 196: the headline compares packed with dense
FASTER = ("dense", "packed")  # the masked model is a yardstick only, and trimming waits for the device
FORMS = tuple(f"{name}{form}" for name in FASTER for form in (" compiled", " graph", " compiled graph"))
Tables = dict[int, list[list[Method]]]


@torch.inference_mode()
def add_forms(
    zoo: Zoo,
    tables: Tables,
    deadline: float,
    added: Callable[[int, list[Method]], None] = lambda batch, methods: None,
    *,
    reserve: float = 0.0,
    forms: Collection[str] = FORMS,
) -> list[str]:
    """Adds the graphs of the methods of each batch size, then the compiled models and their graphs one by one.

    Args:
        zoo: zoo that made the methods.
        tables: lists of methods by batch size, which are extended.
        deadline: value of `time.perf_counter` at which compilation must end.
        added: function that is called with a batch size and its new methods as soon as they are ready.
        reserve: seconds before the deadline that only the headline pair, which compiles first, may use.
        forms: wanted forms, some of FORMS.

    Returns:
        Notes on forms that are left out, with reasons.
    """
    notes: list[str] = []
    graphs = Graphs(zoo, notes) if any(form.endswith("graph") for form in forms) else None
    for batch, rows in tables.items():
        for row in rows:
            methods = [method for method in row if f"{method.name} graph" in forms]
            new = [graph for method in methods if graphs and (graph := graphs.capture(method, batch))]
            row += new
            added(batch, new)
    took: list[float] = []
    for index, (batch, row, method) in enumerate(_to_compile(tables, forms)):
        start = time.perf_counter()
        name = f"{method.name} compiled"
        if start + _expected_seconds(took) > deadline - reserve * (index > 1):
            notes.append(f"{name} at {method.wanted} tokens and batch {batch}: no time to compile it")
            continue
        try:
            found = compiled(zoo, method, batch)
        except Exception as error:  # of the compiler, or a wrong result: the other methods are still timed
            if is_fatal(error):
                raise
            notes.append(f"{name} at {method.wanted} tokens and batch {batch}: {reason(error)}")
            continue
        took.append(time.perf_counter() - start)
        new = [found] * (name in forms)
        if graphs and f"{name} graph" in forms and (graph := graphs.capture(found, batch)):
            new.append(graph)
        row += new
        added(batch, new)
    return notes


def _to_compile(tables: Tables, forms: Collection[str]) -> list[tuple[int, list[Method], Method]]:
    """(batch, row, method), the most important ones first.

    The headline pair comes first, at the largest batch, then one image, then the other batches. The dense model at 576
    tokens follows, the other reference of speed-ups, and then the packed model at all other numbers of tokens.
    """
    found = [(batch, row, method) for batch, rows in tables.items() for row in rows for method in row]
    found = [each for each in found if {f"{each[2].name} compiled", f"{each[2].name} compiled graph"} & {*forms}]
    found = [
        each for each in found if each[2].name == "packed" or each[2].tokens == each[2].wanted in IMAGE_SIZES.values()
    ]
    packed = [method.wanted for _, _, method in found if method.name == "packed"]
    nearest = min(packed, key=lambda tokens: abs(tokens - HEADLINE_TOKENS), default=0)
    headline = {("dense", IMAGE_SIZES[min(IMAGE_SIZES)]), ("packed", nearest)}
    order = [max(tables), *sorted(tables)]

    def priority(each: tuple[int, list[Method], Method]) -> tuple[bool, int, bool, int]:
        batch, _, method = each
        return (method.name, method.wanted) not in headline, order.index(batch), method.name != "dense", method.wanted

    return sorted(found, key=priority)


def _expected_seconds(took: list[float]) -> float:
    """Expected seconds of the next compilation; the first one takes longer, because it also loads the compiler."""
    return max(took[1:], default=0.6 * took[0]) if took else 0.0


class Graphs:
    """Captures methods into one pool of memory; `notes` lists methods that cannot be captured."""

    def __init__(self, zoo: Zoo, notes: list[str]) -> None:
        self.zoo, self.notes = zoo, notes
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def capture(self, method: Method, batch: int) -> Method | None:
        """The method as a graph; None if that fails."""
        try:
            images = self.zoo.images(method.image_size)[:batch]
            call = graphed(method.call, images, self.zoo, self.pool, self.stream)
        except Exception as error:
            if is_fatal(error):
                raise
            self.notes.append(f"{method.name} graph at {method.wanted} tokens: {reason(error)}")
            return None
        return replace(method, name=f"{method.name} graph", call=call)


def graphed(
    call: Callable[[Tensor], Tensor], images: Tensor, zoo: Zoo, pool: Any, stream: torch.cuda.Stream
) -> Callable[[Tensor], None]:
    """A function that copies images to the input of the graph of `call`, and replays it.

    Raises:
        AssertionError: the logits of the replay differ from those of the call.
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
            graph, (logits,) = cuda_graphs.capture([lambda: call(static)], pool)
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
