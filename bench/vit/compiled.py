"""The dense and the packed model through torch.compile, checked against fp64 before they are timed."""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
import torch._dynamo.config
from torch import Tensor

from bench.failures import RefusalError
from bench.vit.zoo import Method, Zoo, logits_of, require_same
from msvit.policies import Budget

# Every size, budget and batch compiles the same few lines of Python again; torch's default limit is eight times.
torch._dynamo.config.recompile_limit = 256
CHECKED = 4  # images of a batch whose logits are checked against fp64


def compiled(zoo: Zoo, method: Method, batch: int) -> Method:
    """The dense or the packed model through torch.compile with static shapes, compiled and checked for a batch size.

    Raises:
        RefusalError: its logits differ from those of the uncompiled model by more than rounding.
        Exception: an error of the compiler; a graph break is an error too.
    """
    make = {"dense": _dense, "packed": _packed}[method.name]
    return replace(
        method, name=f"{method.name} compiled", call=make(zoo, method, zoo.images(method.image_size)[:batch])
    )


def _dense(zoo: Zoo, method: Method, images: Tensor) -> Callable[[Tensor], Tensor]:
    model = zoo.plain(method.image_size)  # without the hooks, which would be compiled as well
    call = zoo.dense_call(model)
    compiled = torch.compile(call, dynamic=False, fullgraph=True)
    logits, few = compiled(images), images[:CHECKED]
    oracle = zoo.dense_call(copy.deepcopy(model).double(), torch.float64)(few.double())
    require_same(f"compiled ViT-S at {method.image_size} px", logits[:CHECKED], call(few), oracle)
    return compiled


def _packed(zoo: Zoo, method: Method, images: Tensor) -> Callable[[Tensor], Tensor]:
    # One model for each budget; a shared model would be compiled again for each.
    model = zoo.bare_mixed(method.image_size)
    model.token_mode, model.policy = "packed", Budget(method.wanted)

    def with_mask(images: Tensor) -> tuple[Tensor, Tensor]:
        decision = model.decide(images)
        return model.classify(images, decision), decision.fine_mask

    compiled = torch.compile(with_mask, dynamic=False, fullgraph=True)
    (logits, mask), few = compiled(images), images[:CHECKED]
    name = f"compiled packed MSViT-S with {method.wanted} tokens"
    # Rounding may swap two regions with nearly the same entropy: first the scores are compared, then the logits for
    # the chosen regions.
    scores, wanted = model.gate(images).double(), model.decide(images).fine_mask
    gap = ((scores * wanted).sum() - (scores * mask).sum()).abs().item()
    if int(mask.sum()) != int(wanted.sum()) or gap > 1e-5 * wanted.numel():
        raise RefusalError(f"{name} is not timed: its regions score {gap:.3g} bits other than uncompiled")
    eager = logits_of(model, "packed", few, mask[:CHECKED])
    oracle = logits_of(copy.deepcopy(model).double(), "masked", few, mask[:CHECKED])
    require_same(name, logits[:CHECKED], eager, oracle)
    return lambda images: compiled(images)[0]
