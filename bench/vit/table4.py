"""Table 4 of the MSViT paper: Segmenter with plain and with mixed-scale tokens, on ADE20K at 512 px."""

from dataclasses import dataclass

IMAGE_SIZE, CELLS = 512, 1024  # pixels, fine patches


@dataclass(frozen=True)
class PaperRow:
    """A row of the table.

    Attributes:
        target: g*, the gate's target; None for the plain model.
        tokens: mean patch tokens per image.
        encoder_gmacs: 1e9 multiply-accumulates of the encoder.
        cpu_ms, gpu_ms: milliseconds per image, the GPU's on a V100. Figure 4a has the CPU's as those of a 2080 Ti.
    """

    target: float | None
    tokens: int
    encoder_gmacs: float
    cpu_ms: float
    gpu_ms: float

    def ms(self, device_type: str) -> float:
        """Milliseconds per image on a "cpu" or on "cuda"."""
        return self.cpu_ms if device_type == "cpu" else self.gpu_ms


# By the name of the size in `msvit.create_model`; the plain model comes first.
TABLE = {
    "tiny": (
        PaperRow(None, 1024, 10.4, 113.68, 26.5),
        PaperRow(0.5, 655, 5.6, 86.12, 25.6),
        PaperRow(0.25, 565, 4.6, 75.96, 25.0),
        PaperRow(0.1, 525, 4.2, 69.13, 24.3),
    ),
    "small": (
        PaperRow(None, 1024, 31.7, 252.09, 30.7),
        PaperRow(0.5, 684, 19.2, 184.81, 29.6),
        PaperRow(0.25, 586, 15.9, 153.12, 29.0),
        PaperRow(0.1, 552, 14.8, 144.02, 28.5),
    ),
}
LABELS = {"tiny": "Seg-T", "small": "Seg-S"}


def default_tokens(size: str, cells: int) -> list[int]:
    """Numbers of tokens of the mixed-scale rows, in proportion for images of other sizes."""
    return [round(row.tokens * cells / CELLS) for row in TABLE[size][1:]]


def paper_row(size: str, tokens: int, image_size: int) -> PaperRow | None:
    """The paper's row of a model with `tokens` tokens per image; None if it has none."""
    found = (row for row in TABLE[size] if (row.tokens, IMAGE_SIZE) == (tokens, image_size))
    return next(found, None)
