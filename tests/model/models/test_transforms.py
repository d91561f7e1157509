"""A packed model under the transforms of `torch.func`, and its second derivatives."""

import pytest
import torch
from torch import func

import msvit
from tests.model.model_helpers import images_of, mask_of, small_vit


@pytest.fixture(scope="module")
def model():
    return msvit.from_timm(small_vit(), coarse=16).eval()


@pytest.fixture(scope="module")
def parameters(model):
    return {name: x.detach() for name, x in model.named_parameters()}


def squares(model, parameters, images, mask):
    return func.functional_call(model, parameters, (images, mask)).pow(2).sum()


def test_per_sample_gradients_with_a_fixed_mask(model, parameters):
    images, mask = images_of(48, 3), mask_of((1, 3, 3))
    one = lambda parameters, image: squares(model, parameters, image[None], mask)  # noqa: E731
    found = func.vmap(func.grad(one), in_dims=(None, 0))(parameters, images)
    for i, image in enumerate(images):
        expected = func.grad(one)(parameters, image)
        for name, x in expected.items():
            torch.testing.assert_close(found[name][i], x, msg=lambda text, name=name: f"{name}: {text}")
    leaves = {name: x.clone().requires_grad_() for name, x in parameters.items()}
    one(leaves, images[2]).backward()
    name = "patch_embed.proj.weight"
    torch.testing.assert_close(found[name][2], leaves[name].grad)


def test_forward_mode_and_gradient_penalty_against_reverse_mode(model, parameters):
    images, mask = images_of(48), mask_of((2, 3, 3))
    tangent = torch.randn_like(images)
    call = lambda images: func.functional_call(model, parameters, (images, mask))  # noqa: E731
    logits, tangents = func.jvp(call, (images,), (tangent,))
    torch.testing.assert_close(tangents, func.vjp(lambda t: func.vjp(call, images)[1](t)[0], logits)[1](tangent)[0])
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(call(leaf).pow(2).sum(), leaf, create_graph=True)
    (penalty,) = torch.autograd.grad((gradient * tangent).sum(), leaf)
    forward = func.jvp(func.grad(lambda images: call(images).pow(2).sum()), (images,), (tangent,))[1]
    assert penalty.abs().max() > 0
    torch.testing.assert_close(penalty, forward)
