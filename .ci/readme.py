"""Code blocks of README.md: `command WORD` prints the sh block with that word, `run-python` runs the Python blocks."""

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    """Code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)


def shell_command(word: str) -> str:
    """The one shell block that contains `word`."""
    found = [block.strip() for block in blocks("sh") if word in block]
    if len(found) != 1:
        sys.exit(f"README.md: expected one sh block with {word!r}, found {len(found)}")
    return found[0]


def run_python() -> None:
    """Runs every Python block in a namespace of its own; an exception fails the run."""
    found = blocks("python")
    if not found:
        sys.exit("README.md: no python block to run")
    for number, block in enumerate(found, 1):
        exec(compile(block, f"README.md, python block {number}", "exec"), {"__name__": "__main__"})
    print(f"README.md: {len(found)} python blocks ran")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["command", word]:
            print(shell_command(word))
        case ["run-python"]:
            run_python()
        case _:
            sys.exit(__doc__)
