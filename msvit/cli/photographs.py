"""Arguments of the commands that draw the tokens of photographs."""

from pathlib import Path

from msvit.policies import Budget, Threshold


def find_photograph(name: str) -> Path:
    """The image file of that name, or the sample photograph.

    Raises:
        ValueError: there is neither.
    """
    from msvit.data import sample_photographs

    samples = sample_photographs()
    if Path(name).is_file():
        return Path(name)
    if name in samples:
        return samples[name]
    raise ValueError(f"{name}: expected an image file or one of the photographs {', '.join(samples)}, got neither")


def check_picture(output: Path, width: int) -> None:
    """Checks the arguments of a picture before the work begins.

    Raises:
        ValueError: the suffix of `output` is that of no picture, its folder does not exist, or `width` is below 1.
    """
    from PIL import Image

    if output.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--output: expected the suffix of a picture, such as .png, got {output}")
    if not output.parent.is_dir():
        raise ValueError(f"--output: expected a file in an existing folder, got {output}")
    if width < 1:
        raise ValueError(f"--width: expected 1 pixel or more, got {width}")


def chosen_policy(budget: float | None, threshold: float | None) -> Budget | Threshold | None:
    """The policy that --tokens or --threshold asks for, None without both.

    Raises:
        ValueError: both are given, or one is out of range.
    """
    if budget is not None and threshold is not None:
        raise ValueError("--tokens, --threshold: expected at most one of them, got both")
    if threshold is not None:
        return Threshold(threshold)
    return None if budget is None else Budget(budget)
