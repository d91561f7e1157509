"""The photographs that lie in the scikit-image wheel; nothing is ever downloaded."""

import importlib.util
from pathlib import Path

# Photographs only: the wheel also has diagrams, scans and masks.
SAMPLE_NAMES = (
    "astronaut",
    "rocket",
    "chelsea",
    "coffee",
    "motorcycle_left",
    "camera",
    "coins",
    "moon",
    "hubble_deep_field",
    "retina",
    "brick",
    "grass",
    "gravel",
    "ihc",
    "page",
    "motorcycle_right",
)


def sample_photographs() -> dict[str, Path]:
    """Files of the sample photographs by name, those of `SAMPLE_NAMES` that this scikit-image has on disk.

    Raises:
        ValueError: scikit-image is not installed or has none of them.
    """
    # The package is found, not imported: importing it takes a second and is not needed to read its files.
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ValueError("sample photographs: expected scikit-image to be installed; `pip install scikit-image`")
    folder = Path(spec.origin).parent / "data"
    found = {}
    for name in SAMPLE_NAMES:
        for path in (folder / f"{name}.png", folder / f"{name}.jpg"):
            if path.is_file():
                found[name] = path
    if not found:
        raise ValueError(f"sample photographs: none of them is in {folder}")
    return found
