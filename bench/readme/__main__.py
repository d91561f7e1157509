"""Writes the measured tables of README.md from the CSV rows under bench/results.

    python -m bench.readme [--check]

The tables are between two comment lines in README.md. Do not edit them by hand.
"""

import sys
from collections.abc import Sequence

from bench import RESULTS, ROOT
from bench.command_line import make_parser
from bench.marked import Markers
from bench.readme import cpu, gpu, segmentation
from msvit_kernels.files import write_text

README = ROOT / "README.md"
MARKERS = Markers("python -m bench.readme")


def measured() -> str:
    """The text between the comment lines."""
    sections = (part.section(RESULTS) for part in (cpu, segmentation, gpu))
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the tables, or compares them with the rows."""
    parser = make_parser(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the tables differ from the rows")
    check = parser.parse_args(argv).check
    text = README.read_text()
    try:
        wanted = MARKERS.replace(text, measured(), README.name)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if wanted == text:
        print("README.md agrees with the CSV rows")
    elif check:
        sys.exit("README.md differs from the CSV rows: run `python -m bench.readme`")
    else:
        write_text(README, wanted)
        print("README.md written")


if __name__ == "__main__":
    main()
