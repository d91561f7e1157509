"""Makes command-line options from the fields of `Config`, so that every value of a run has one."""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Collection
from typing import Annotated, Any

import typer

from msvit.training.config import Config
from msvit.training.config_checks import flag
from msvit.training.presets import PRESETS


def with_config_options(names: Collection[str] | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds an option for each field of `Config`, or for some of them, to a command.

    Args:
        names: fields that get an option; None for all.

    Returns:
        A decorator. The command receives the options that the user gave as one argument, `values`, a dict by name.
    """
    fields = [field for field in dataclasses.fields(Config) if names is None or field.name in names]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "values"]

        def wrapper(**arguments: Any) -> None:
            values = {field.name: arguments.pop(field.name) for field in fields}
            command(**arguments, values={name: value for name, value in values.items() if value is not None})

        wrapper.__doc__ = command.__doc__
        wrapper.__signature__ = inspect.Signature([*own, *map(_parameter, fields)])  # type: ignore[attr-defined]
        return wrapper

    return decorate


def _parameter(field: dataclasses.Field[Any]) -> inspect.Parameter:
    kind = next(t for t in _alternatives(typing.get_type_hints(Config)[field.name]) if t is not type(None))
    names = [flag(field.name)]
    if kind is bool:
        names = [f"{names[0]}/--no-{names[0].removeprefix('--')}"]
    text = f"{field.metadata['help']} {_defaults(field.name)}".rstrip()
    option = typer.Option(*names, help=text, rich_help_panel=field.metadata["panel"], show_default=False)
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _defaults(name: str) -> str:
    """The default: one value, or one for each preset if they differ; "" if there is none."""
    by_preset = {preset: getattr(config, name) for preset, config in PRESETS.items()}
    if len(set(by_preset.values())) > 1 and name != "preset":
        return f"({', '.join(f'{preset}: {value}' for preset, value in by_preset.items())})"
    value = by_preset["vit"]
    return "" if value is None else f"(default: {value})"


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) or (hint,)
