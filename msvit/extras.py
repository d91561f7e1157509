"""The extras of the package (`msvit[train]`, ...), and the error if their packages are not installed."""

import importlib.util

# Modules that `msvit` imports from the packages of each extra in pyproject.toml.
_MODULES = {
    "train": ("accelerate", "sklearn", "torchmetrics"),
    "tensorboard": ("tensorboard",),
}


class MissingExtraError(ImportError):
    """An extra is not installed; the text has the line that installs it."""


def require_extra(extra: str) -> None:
    """Raises MissingExtraError, with the line that installs the extra, unless all of its modules are there."""
    missing = [module for module in _MODULES[extra] if importlib.util.find_spec(module) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise MissingExtraError(f'{", ".join(missing)} {verb} not installed; run: pip install "msvit[{extra}]"')
