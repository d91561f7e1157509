"""Every value of a training run, in one dataclass that `config.json` stores and the command line can override."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msvit.data.decoding import MAX_PIXELS
from msvit.gates.factory import FIXED_GATE_NAMES
from msvit.models.decoders import DECODERS
from msvit.models.segmenter import DECODE
from msvit.models.vit import TOKEN_MODES
from msvit.tokens.policies import PER
from msvit.training.config_checks import check_config

TASKS = ("classification", "segmentation")
GATES = ("learned", *FIXED_GATE_NAMES)
LOSSES = ("gbas", "bas", "bas-flat", "l0", "none")
FREEZE = ("none", "gate", "backbone")
CROPS = ("inception", "light", "none")
POOLS = ("token", "avg", "map")
PRECISIONS = ("no", "bf16")


def _option(
    default: Any, panel: str, text: str, choices: tuple[str, ...] | None = None, *, only: str | None = None
) -> Any:
    """A field of `Config`; `only` is the one task that it applies to, None for all."""
    if only == "classification":
        text = f"{text.removesuffix('.')} (classification only)."
    if choices is not None:
        text = f"{text} One of {', '.join(choices)}."
    metadata = {"panel": panel, "help": text, "choices": choices, "only": only}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """The values of a run; the defaults are the ViT recipe of the paper's appendix C.

    Raises:
        ValueError: a value is out of range; the message names it as on the command line: `--gate-target: expected ...`.
        TypeError: a value has the wrong type.
    """

    preset: str = _option(
        "vit",
        "Run",
        "Recipe for all values that are not given: vit, deit, digits, digits-large; for segmentation ade20k, "
        "digits-segmentation.",
    )
    task: str = _option("classification", "Run", "Task of the model; if not set, that of --preset.", TASKS)

    data: str = _option(
        "digits",
        "Data",
        "'digits' (built in), a folder with one folder per class in train/ and in val/, or the name of a timm data "
        "set such as hfds/cifar10, hfids/... or wds/...; for segmentation 'digits', or a folder with images/ and "
        "annotations/.",
    )
    data_root: str | None = _option(None, "Data", "Root folder of a timm data set.", only="classification")
    train_split: str = _option("train", "Data", "Name of the training split.")
    test_split: str = _option("validation", "Data", "Name of the test split.")
    train_size: int = _option(8000, "Data", "Number of training images to make (digits only).")
    test_size: int = _option(1000, "Data", "Number of test images to make (digits only).")
    data_seed: int = _option(0, "Data", "Seed of the images (digits only); --seed does not change them.")
    num_classes: int | None = _option(None, "Data", "Number of classes; if not set, that of the data set.")
    crops: str = _option("inception", "Data", "Kind of training crops.", CROPS, only="classification")
    flip: float = _option(0.5, "Data", "Probability of a horizontal flip in training.")
    color_jitter: float = _option(
        0.0, "Data", "Strength of random changes of brightness, contrast and saturation.", only="classification"
    )
    num_workers: int = _option(4, "Data", "Number of processes that read images.")
    max_pixels: int = _option(
        MAX_PIXELS, "Data", "Largest number of pixels of an image file; larger files are left out and named."
    )

    model: str = _option("msvit_small_patch16_32_224", "Model", "Name of the model: msvit_..., or a timm ViT or DeiT.")
    image_size: int | None = _option(None, "Model", "Image size in pixels; if not set, that of --model.")
    coarse: int = _option(32, "Model", "Width of a region in pixels, if --model is a timm model.")
    embed_dim: int | None = _option(None, "Model", "Embedding dimension; if not set, that of --model.")
    depth: int | None = _option(None, "Model", "Number of blocks; if not set, that of --model.")
    mlp_ratio: float | None = _option(None, "Model", "Ratio of MLP width to embedding dimension; if not set, 4.")
    num_heads: int | None = _option(None, "Model", "Number of heads; if not set, that of --model.")
    global_pool: str | None = _option(
        None, "Model", "Pooling; if not set, that of --model.", POOLS, only="classification"
    )
    pixel_mean: float | None = _option(
        None, "Model", "Value in [0, 1] to subtract from pixels; if not set, that of --model."
    )
    pixel_std: float | None = _option(
        None, "Model", "Divisor of pixels after --pixel-mean; if not set, that of --model."
    )
    drop_path: float = _option(0.0, "Model", "Stochastic depth rate.")
    pretrained: bool = _option(False, "Model", "Start from timm's pretrained weights.")
    checkpoint: str | None = _option(
        None, "Model", "Checkpoint to start from, or folder of a run whose last checkpoint is used."
    )
    new_head: bool = _option(False, "Model", "Start with a new classifier or decoder instead of that of --checkpoint.")
    token_mode: str = _option("packed", "Model", "Layout of the tokens.", tuple(TOKEN_MODES))

    gate: str = _option("learned", "Gate", "Gate that chooses the fine regions.", GATES)
    gate_file: str | None = _option(
        None,
        "Gate",
        "Load the gate from this file of msvit.gates.save_gate, or from this run (its folder or a checkpoint in it).",
    )
    freeze: str = _option("none", "Gate", "Part that is not trained; 'none' trains backbone and gate jointly.", FREEZE)
    loss: str = _option("gbas", "Gate", "Loss of the gate.", LOSSES, only="classification")
    gate_target: float = _option(0.25, "Gate", "Target share of fine regions, g*, in (0, 1).")
    gate_weight: float = _option(4.0, "Gate", "Weight of the gate loss, lambda.", only="classification")
    gate_delay_epochs: float = _option(0.0, "Gate", "Epochs before the gate starts to learn.", only="classification")
    gate_warmup_epochs: float = _option(
        6.0, "Gate", "Warm-up epochs of the gate's learning rate.", only="classification"
    )
    gate_lr_scale: float = _option(
        1.0, "Gate", "Learning rate of the gate, as a multiple of --lr.", only="classification"
    )
    prior_lr_scale: float = _option(
        1.0, "Gate", "Learning rate of the learned priors, as a multiple of --lr.", only="classification"
    )
    gate_temperature: float = _option(1.0, "Gate", "Temperature of the Gumbel-sigmoid.", only="classification")
    prior_temperature: float = _option(
        0.3,
        "Gate",
        "Temperature tau of the relaxed Bernoulli priors (bas, bas-flat, gbas).",
        only="classification",
    )
    hyperprior_std: float = _option(
        0.1, "Gate", "Standard deviation of the hyperprior of learned priors (gbas).", only="classification"
    )
    center_init: bool = _option(
        True, "Gate", "Start the priors high at the centre of the image (gbas).", only="classification"
    )
    prior_clip: float | None = _option(
        None,
        "Gate",
        "Bound c that clips gate outputs to [c, 1 - c] in the gate loss (bas, bas-flat, gbas).",
        only="classification",
    )
    tokens_per_image: float | None = _option(
        None,
        "Gate",
        "Token budget: the highest-scoring regions of a batch become fine, up to this mean number of tokens per image.",
    )
    budget_per: str = _option(
        "batch", "Gate", "Whether --tokens-per-image is a mean over the batch or holds for each image.", PER
    )

    decoder: str | None = _option(
        None, "Segmentation", "Decoder; if not set, that of --model, or mask.", DECODERS, only="segmentation"
    )
    decode: str = _option("packed", "Segmentation", "Tokens that the decoder gets.", DECODE, only="segmentation")
    decoder_depth: int = _option(2, "Segmentation", "Number of blocks of a mask decoder.", only="segmentation")
    decoder_dropout: float = _option(0.0, "Segmentation", "Dropout rate of a mask decoder.", only="segmentation")
    window: int | None = _option(
        None, "Segmentation", "Width of the windows of test images; if not set, --image-size.", only="segmentation"
    )
    stride: int | None = _option(
        None, "Segmentation", "Distance between windows of test images; if not set, --window.", only="segmentation"
    )
    scale_min: float = _option(0.5, "Segmentation", "Smallest factor of the random resizing.", only="segmentation")
    scale_max: float = _option(2.0, "Segmentation", "Largest factor of the random resizing.", only="segmentation")
    photometric: bool = _option(
        True,
        "Segmentation",
        "Change brightness, contrast, saturation and hue of training images at random.",
        only="segmentation",
    )
    reduce_zero_label: bool | None = _option(
        None,
        "Segmentation",
        "Whether value 0 of label files is no class, and classes begin at 1; if not set, only for ADE20K.",
        only="segmentation",
    )
    class_list: str | None = _option(
        None,
        "Segmentation",
        "File with the names of the classes, one a line, in the order of their labels; 'ade20k' for its 150 classes.",
        only="segmentation",
    )

    epochs: int = _option(20, "Optimisation", "Number of passes over the training images.")
    batch_size: int = _option(512, "Optimisation", "Images per step, over all processes and accumulated parts.")
    accumulate: int = _option(1, "Optimisation", "Number of parts of a batch for gradient accumulation.")
    # timm's "sgd" has Nesterov momentum; the paper's SGD does not.
    optimizer: str = _option("momentum", "Optimisation", "Name of a timm optimizer; 'momentum' is SGD with momentum.")
    lr: float = _option(0.03, "Optimisation", "Peak learning rate.")
    momentum: float = _option(0.9, "Optimisation", "SGD momentum.")
    weight_decay: float = _option(
        0.0, "Optimisation", "Weight decay of matrices; biases, norms and position encodings have none."
    )
    clip_grad: float | None = _option(1.0, "Optimisation", "Norm at which gradients are clipped; 0 for no clipping.")
    clip_gate_grad: float | None = _option(
        0.1,
        "Optimisation",
        "Value at which the gradient of an image's loss is clipped at the gate's logits, in masked and trimmed mode; "
        "0 for no clipping.",
        only="classification",
    )
    label_smoothing: float = _option(0.0, "Optimisation", "Label smoothing, in [0, 1).", only="classification")
    min_lr: float = _option(0.0, "Optimisation", "Learning rate at the end of the schedule.")
    decay_rate: float = _option(0.1, "Optimisation", "Power of --schedule poly; factor of step and multistep.")
    schedule: str = _option("cosine", "Optimisation", "Name of a timm learning rate schedule.")
    warmup_epochs: float = _option(0.5, "Optimisation", "Warm-up epochs of the learning rate.")

    seed: int = _option(0, "Run", "Seed of weights, image order, augmentation and gate noise.")
    precision: str = _option("no", "Run", "Mixed precision.", PRECISIONS)
    cpu: bool = _option(False, "Run", "Use the CPU even if there is a GPU.")
    checkpoint_steps: int | None = _option(
        None, "Run", "Steps between checkpoints in an epoch; one is always written at its end."
    )
    tensorboard: bool = _option(False, "Run", "Also write TensorBoard files.")

    def __post_init__(self) -> None:
        check_config(self)

    @property
    def trains_gate(self) -> bool:
        """Whether the run trains a learned gate."""
        return self.gate == "learned" and self.freeze != "gate"

    def replace(self, **values: Any) -> "Config":
        """Returns a copy with the given values in place of the present ones."""
        return dataclasses.replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        """Values by name, all of them types that JSON supports."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Config":
        """The inverse of `to_dict`.

        Raises:
            ValueError: a name is unknown, or a value is out of range.
            TypeError: a value has the wrong type.
        """
        unknown = sorted(values.keys() - {field.name for field in dataclasses.fields(Config)})
        if unknown:
            raise ValueError(f"config: expected values of this version of msvit, got unknown {', '.join(unknown)}")
        return Config(**values)
