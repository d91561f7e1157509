"""Sample photographs from the scikit-image wheel; nothing is downloaded."""

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
    """Finds the files of the sample photographs.

    Returns:
        Paths by name, for those of `SAMPLE_NAMES` that the installed scikit-image has on disk.

    Raises:
        ValueError: scikit-image is not installed, or it has none of them.
    """
    # The package is located without an import, which takes a second and is not needed to read its files.
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ValueError(
            "sample photographs: expected scikit-image to be installed, got none; run: pip install scikit-image"
        )
    folder = Path(spec.origin).parent / "data"
    found = {}
    for name in SAMPLE_NAMES:
        for path in (folder / f"{name}.png", folder / f"{name}.jpg"):
            if path.is_file():
                found[name] = path
    if not found:
        raise ValueError(f"sample photographs: expected at least one in {folder}, got none")
    return found
