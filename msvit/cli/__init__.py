"""The `msvit` command."""

# Commands import matplotlib and the packages of `msvit[train]` when they run, so `msvit --help` works without them.

from msvit.cli.app import app

__all__ = ["app"]
