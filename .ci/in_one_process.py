"""Runs the command lines of standard input in one process, which imports torch and timm once.

    in_one_process.py < LINES

A line is a script and its arguments. The first that fails ends the run.
"""

import runpy
import shlex
import sys


def main() -> None:
    """Runs every line as `python LINE` would."""
    for line in filter(None, map(str.strip, sys.stdin)):
        print(f"$ python {line}", flush=True)
        sys.argv = shlex.split(line)
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise


if __name__ == "__main__":
    main()
