"""The `msvit` command."""

# torch and timm take seconds to import: commands import what they use, so that `msvit --help` answers at once.

from msvit.cli.app import app

__all__ = ["app"]
