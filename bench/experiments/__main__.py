"""Runs the experiments on the built-in digits, three seeds each, and writes the results.

    python -m bench.experiments [--jobs 2] [--only NAME ...] [--seeds 3]    trains the missing runs, then collects
    python -m bench.experiments --study segmentation                         the same for digits with masks
    python -m bench.experiments --collect                                    only collects the finished runs
    python -m bench.experiments --write                                      only docs/experiments.md, from the CSV
    python -m bench.experiments --check                                      only compares the page with both CSVs

As in the paper, models start from a plain one: `pretrained` is trained first, for each seed. Finished runs are skipped
and interrupted runs are resumed, so the command can be stopped and started again. Figures go to
bench/results/<device>/experiments.csv or experiments_segmentation.csv, and from there into docs/experiments.md. A CSV
is never replaced by one that lacks some of its runs; to write such a CSV, remove the old one first.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import ROOT
from bench.command_line import make_parser
from bench.experiments.collect import collect
from bench.experiments.jobs import make_jobs
from bench.experiments.page import source_of, write_page
from bench.experiments.studies import STUDIES
from bench.experiments.study import Study
from bench.experiments.train import train
from bench.machine import results_dir


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--study", choices=list(STUDIES), help="settings to train (default: digits)")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="settings to run, with those that they start from (default: all)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each setting (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, which share the cores (default: 1)")
    parser.add_argument(
        "--runs", type=Path, help="folder of the runs (default: runs/experiments or runs/experiments_segmentation)"
    )
    parser.add_argument("--output", type=Path, help="CSV to write (default: see above)")
    parser.add_argument("--page", type=Path, help="page to write (default: docs/experiments.md)")
    parser.add_argument("--collect", action="store_true", help="train nothing")
    parser.add_argument("--write", action="store_true", help="train and evaluate nothing, only write the page")
    parser.add_argument("--check", action="store_true", help="only compare the page with its CSVs")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny models and few images: a smoke test, with --runs, --output and --page",
    )
    arguments = parser.parse_args(argv)
    if arguments.seeds < 1 or arguments.jobs < 1:
        parser.error("--seeds and --jobs: expected 1 or more")
    if arguments.quick and None in (arguments.runs, arguments.output, arguments.page):
        parser.error("--quick: expected --runs, --output and --page too, so that no real result is replaced")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, collects and writes."""
    arguments = parse_arguments(argv)
    every = arguments.check and arguments.study is None and arguments.output is None
    for study in STUDIES.values() if every else [STUDIES[arguments.study or "digits"]]:
        try:
            _run(study, arguments)
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")


def _run(study: Study, arguments: argparse.Namespace) -> None:
    runs = (arguments.runs or ROOT / "runs" / study.name).resolve()
    page = arguments.page or ROOT / "docs" / "experiments.md"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    output = arguments.output or results_dir(device) / f"{study.name}.csv"
    if arguments.output is None and (arguments.write or arguments.check):
        output = source_of(page, study.markers) or output  # of the machine that measured, perhaps another one
    if not (arguments.write or arguments.check):
        waves = make_jobs(study, runs, arguments.only, arguments.seeds, arguments.quick)
        if not arguments.collect and (failed := train(waves, arguments.jobs)):
            sys.exit(f"failed: {', '.join(failed)}")
        # Collects all finished runs, not only those of --only: the page shows the whole table.
        collect(study, make_jobs(study, runs, [], arguments.seeds, arguments.quick), output, device)
    write_page(study, output, page, arguments.check)
    print(f"{page} {'shows' if arguments.check else 'written from'} {output}")


if __name__ == "__main__":
    main()
