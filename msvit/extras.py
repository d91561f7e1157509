"""The optional extras of the package, such as `msvit[train]`, and the error if one is not installed."""

import importlib.util

# Modules that `msvit` imports from the packages of each extra in pyproject.toml.
_MODULES = {
    "train": ("accelerate", "sklearn", "torchmetrics"),
    "tensorboard": ("tensorboard",),
}


class MissingExtraError(ImportError):
    """An extra is not installed; the message contains the command that installs it."""


def require_extra(extra: str, *modules: str) -> None:
    """Raises MissingExtraError, with the command that installs the extra, unless its modules are installed.

    Args:
        extra: name of the extra.
        modules: those of its modules that are needed; all if there is none.
    """
    missing = [module for module in modules or _MODULES[extra] if importlib.util.find_spec(module) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise MissingExtraError(f'{", ".join(missing)} {verb} not installed; run: pip install "msvit[{extra}]"')
