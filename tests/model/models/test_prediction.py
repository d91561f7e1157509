"""`Segmenter.predict`: against a loop over windows, one at a time, written here."""

import pytest
import torch
import torch.nn.functional as F

import msvit
from msvit.models import prediction
from msvit.models.sliding_window import window_starts
from msvit.policies import Budget
from tests.model.model_helpers import LOGITS_TOLERANCE, randomise, small_vit
from tests.model.reducer_helpers import EverySecond

CLASSES = 4


def segmenter(**options):
    """Regions of 16 pixels, trained at 48 pixels; the entropy of the images below is on both sides of the threshold."""
    gate = msvit.gates.EntropyGate(16, threshold=3.5, mean=(0.5,) * 3, std=(0.5,) * 3)
    encoder = msvit.from_timm(small_vit(), 16, gate=gate, mean=(0.5,) * 3, std=(0.5,) * 3)
    return randomise(msvit.Segmenter(encoder, CLASSES, **options))


MODEL = segmenter()


def image_of(height, width, seed=0):
    """uint8 [3, height, width]: flat on the left, busy on the right."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(3, height, width, generator=generator) * torch.linspace(0, 1, width)
    return (255 * noise).to(torch.uint8)


def floats_of(image):
    return (image / 255 - 0.5) / 0.5


def oracle_view(model, image, window, stride, final):
    """The averaged logits of a float image, resized to `final`, one window at a time."""
    height, width = image.shape[1:]
    size = height, width
    if min(size) < window:
        longer = int(max(size) / min(size) * window)
        size = (window, longer) if height < width else (longer, window)
    image = F.interpolate(image[None], size, mode="bilinear")
    total, count = torch.zeros(CLASSES, *size), torch.zeros(size)
    top = 0
    while True:
        top, left = min(top, size[0] - window), 0
        while True:
            left = min(left, size[1] - window)
            rows, columns = slice(top, top + window), slice(left, left + window)
            total[:, rows, columns] += model(image[:, :, rows, columns])[0]
            count[rows, columns] += 1
            if left + window == size[1]:
                break
            left += stride
        if top + window == size[0]:
            break
        top += stride
    return F.interpolate((total / count)[None], final, mode="bilinear")[0]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=LOGITS_TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((48, 48), 48, 45),
        ((30, 20), 48, 45),
        ((40, 100), 48, 32),
        ((70, 97), 48, 45),
        ((96, 144), 48, 48),
        ((70, 50), 40, 13),
        ((1, 3), 16, 16),
    ],
    ids=["one-window", "smaller", "one-side-smaller", "overlapping", "stride=window", "padded-window", "one-pixel"],
)
def test_windows_match_a_loop(size, window, stride):
    image = image_of(*size)
    expected = oracle_view(MODEL, floats_of(image), window, stride, size)
    assert expected.shape == (CLASSES, *size)
    close(MODEL.predict(image, window, stride), expected)
    close(MODEL.predict(floats_of(image), window, stride, max_tokens=1), expected)


@torch.no_grad()
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(0.5, 1.0, 1.5), (2,)], ids=str)
def test_views_are_averaged_as_probabilities(scales, flip):
    image = image_of(50, 63)
    views = []
    for scale in scales:
        size = [int(side * scale + 0.5) for side in image.shape[1:]]
        scaled = F.interpolate(floats_of(image)[None], size, mode="bilinear")[0]
        for mirrored in (False, True)[: 1 + flip]:
            logits = oracle_view(MODEL, scaled.flip(2) if mirrored else scaled, 48, 40, image.shape[1:])
            views.append(logits.flip(2) if mirrored else logits)
    logits = MODEL.predict(image, 48, 40, scales=scales, flip=flip)
    close(logits.softmax(0), torch.stack([view.softmax(0) for view in views]).mean(0))
    if len(views) == 1:
        close(logits, views[0])
    else:
        close(logits.exp().sum(0), torch.ones(50, 63))


@pytest.mark.parametrize("max_tokens", [1, 60, 10_000])
def test_images_of_a_list_do_not_depend_on_each_other(max_tokens):
    model = segmenter()
    model.policy = Budget(20)
    images = [image_of(60, 50), floats_of(image_of(20, 80, seed=1)), image_of(48, 48, seed=2)]
    together = model.predict(images, 48, 40, scales=(1.0, 1.3), max_tokens=max_tokens)
    for image, logits in zip(images, together, strict=True):
        close(logits, model.predict(image, 48, 40, scales=(1.0, 1.3)))


def test_structures():
    batch = torch.stack([image_of(60, 50), image_of(60, 50, seed=1)])
    together = MODEL.predict(batch, 48, 40)
    assert together.shape == (2, CLASSES, 60, 50)
    close(together, torch.stack(MODEL.predict(list(batch), 48, 40)))
    assert MODEL.predict(batch[:0], 48, 40).shape == (0, CLASSES, 60, 50)
    assert MODEL.predict([], 48, 40) == []


def test_a_budget_holds_for_the_windows_of_an_image_and_no_batch_has_more_tokens(monkeypatch):
    model = segmenter()
    model.policy = Budget(18)
    batches = []
    segment = type(model).segment
    monkeypatch.setattr(
        model, "segment", lambda images, decision: batches.append(decision) or segment(model, images, decision), False
    )
    model.predict([image_of(48, 144), image_of(48, 96)], 48, 48, max_tokens=40)
    windows = [int(count) for decision in batches for count in decision.num_patches()]
    assert (sum(windows[:3]), sum(windows[3:])) == (54, 36)
    assert len(set(windows[:3])) > 1, "busy windows get tokens from flat ones"
    for decision in batches:
        assert decision.num_fine == int(decision.fine_mask.sum())
        assert len(decision.fine_mask) == 1 or int(decision.num_patches().sum()) <= 40
    assert any(len(decision.fine_mask) > 1 for decision in batches)


def test_modes_of_the_modules_stay_and_nothing_needs_a_gradient():
    model = segmenter(dropout=0.5)
    image = image_of(48, 48)
    expected = model.predict(image, 48, 48)
    model.train()
    model.encoder.norm.eval()
    modes = [module.training for module in model.modules()]
    logits = model.predict(image, 48, 48)
    assert torch.equal(logits, expected)
    assert [module.training for module in model.modules()] == modes
    assert not logits.requires_grad
    model.zero_grad()
    model(image[None]).sum().backward()  # no tensor of `predict` was kept


def test_bfloat16_is_averaged_in_fp32():
    model = segmenter().to(torch.bfloat16)
    assert model.predict(image_of(50, 60), 48, 8).dtype == torch.float32


def test_window_starts_cover_the_axis():
    assert window_starts(1000, 512, 480) == [0, 480, 488]
    assert window_starts(992, 512, 480) == [0, 480]
    assert window_starts(512, 512, 480) == [0]


IMAGE = torch.zeros(3, 48, 48)


@pytest.mark.parametrize(
    ("image", "options", "error", "words"),
    [
        (IMAGE, {"window": 0}, ValueError, "window: expected at least 1, got 0"),
        (IMAGE, {"window": 48.0}, TypeError, "window: expected an int, got float"),
        (IMAGE, {"stride": 0}, ValueError, "stride: expected at least 1, got 0"),
        (IMAGE, {"stride": 49}, ValueError, "stride: expected at most window = 48"),
        (IMAGE, {"scales": ()}, ValueError, "scales: expected one or more numbers"),
        (IMAGE, {"scales": 1.0}, ValueError, "scales: expected one or more numbers"),
        (IMAGE, {"scales": (1.0, 0.0)}, ValueError, "scales: expected numbers above zero, got 0.0"),
        (IMAGE, {"scales": (float("nan"),)}, ValueError, "scales: expected a finite number"),
        (IMAGE, {"flip": 1}, TypeError, "flip: expected a bool"),
        (IMAGE, {"max_tokens": 0}, ValueError, "max_tokens: expected at least 1"),
        (IMAGE[None, None], {}, ValueError, r"image: expected shape \[3, H, W\] or \[batch, 3, H, W\]"),
        (IMAGE[:1], {}, ValueError, r"image: expected .* got \[1, 48, 48\]"),
        (IMAGE[:, :0], {}, ValueError, "image: expected .* at least one pixel"),
        (IMAGE.int(), {}, TypeError, "image: expected floats or uint8, got torch.int32"),
        ("photo.png", {}, TypeError, "image: expected a tensor or a list of tensors, got str"),
        ([IMAGE, IMAGE[None]], {}, ValueError, r"image\[1\]: expected shape \[3, H, W\]"),
        ([IMAGE, None], {}, TypeError, r"image\[1\]: expected a tensor, got NoneType"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_wrong_calls_raise_before_anything_runs(image, options, error, words, monkeypatch):
    monkeypatch.setattr(prediction, "make_views", None)
    with pytest.raises(error, match=words):
        MODEL.predict(image, **{"window": 48, "stride": 45, **options})


def test_a_model_that_cannot_predict_is_refused():
    model = segmenter()
    model.encoder.mean = model.encoder.std = None
    with pytest.raises(ValueError, match="image: expected floats, since the model has no mean and std, got uint8"):
        model.predict(image_of(48, 48), 48, 48)
    model.encoder.reducers = {0: EverySecond("before_block")}
    with pytest.raises(ValueError, match="encoder: expected no reducers"):
        model.predict(IMAGE, 48, 48)
