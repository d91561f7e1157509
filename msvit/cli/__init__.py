"""The `msvit` command."""

# Commands import the packages of `msvit[train]` and the figures' only when they run: `msvit --help` does without them.

from msvit.cli.app import app

__all__ = ["app"]
