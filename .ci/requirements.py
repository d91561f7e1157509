"""Prints the requirements of the package with an extra, without the package itself: `requirements.py EXTRA`."""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())


def of_extra(extra: str) -> list[str]:
    """Requirements of an extra, including those of the package's other extras that it names."""
    found = []
    for requirement in PROJECT["project"]["optional-dependencies"][extra]:
        own = re.fullmatch(r"msvit\[(.*)\]", requirement)
        found += [each for name in own[1].split(",") for each in of_extra(name)] if own else [requirement]
    return found


if __name__ == "__main__":
    if sys.argv[1:] == ["build"]:
        print(*PROJECT["build-system"]["requires"], sep="\n")
    else:
        (extra,) = sys.argv[1:]
        print(*PROJECT["project"]["dependencies"], *of_extra(extra), sep="\n")
