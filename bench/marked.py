"""Generated text between two comment lines of a Markdown page."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Markers:
    """The comment lines.

    Attributes:
        command: command that writes the text between them.
    """

    command: str
    end: str = "<!-- end of measured -->"

    @property
    def begin(self) -> str:
        """The first line."""
        return f"<!-- measured: {self.command} -->"

    def replace(self, text: str, generated: str, name: str) -> str:
        """`text` with `generated` between the lines.

        Raises:
            ValueError: the page `name` lacks a line.
        """
        before, begin, rest = text.partition(self.begin)
        _, end, after = rest.partition(self.end)
        if not begin or not end:
            raise ValueError(f"{name}: expected the lines {self.begin!r} and {self.end!r}")
        return f"{before}{begin}\n{generated}\n{end}{after}"
