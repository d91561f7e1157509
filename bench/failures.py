"""Errors of a bench: refusals to time a wrong result, and short texts for errors of other code."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

FATAL = (
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "device-side assert triggered",
)


class RefusalError(Exception):
    """A bench refuses to time a method whose result is wrong."""


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Ends the program with one line if the bench refuses or an argument is wrong."""
    try:
        yield
    except RefusalError as error:
        sys.exit(f"refused: {error}")
    except ValueError as error:
        sys.exit(f"error: {error}")


def reason(error: BaseException) -> str:
    """First line of an error, short enough for a table."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".rstrip(": ")


def is_fatal(error: BaseException) -> bool:
    """True if the device is lost for this process: every later call would fail as well."""
    text = str(error).lower()
    return any(words in text for words in FATAL)
