"""`msvit report`: examines runs and writes figures, a table as CSV, and one HTML page."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from msvit.report.examined import Examined, Group, examine
from msvit.report.figures.coverage import draw_coverage
from msvit.report.figures.history import draw_history
from msvit.report.figures.masks import draw_masks, draw_priors
from msvit.report.figures.shifts import draw_shifted_maps, draw_shifts
from msvit.report.figures.tokens import draw_histogram, draw_token_maps
from msvit.report.figures.tradeoff import draw_tradeoff
from msvit.report.page import Section, write_page
from msvit.report.segmentation.build import segmentation_sections
from msvit.report.segmentation.examined import examine_segmenters
from msvit.report.shifts import compare_gates
from msvit.report.tables import result_tables, write_runs
from msvit.training.runs import load_run

# Largest number of images for zooms and shifts, each of which needs a pass over them.
_SHIFTED_IMAGES = 500
# Pictures to remove from an older report, which may have had more of them.
_PICTURES = (
    "tradeoff.png",
    "history.png",
    "masks.png",
    "priors.png",
    "tokens-[0-9]*.png",
    "histogram.png",
    "coverage.png",
    "shifts-[0-9]*.png",
    "classes.png",
    "examples-[0-9]*.png",
    "shifted-maps-[0-9]*.png",
)


def build_report(
    folders: Sequence[Path],
    output: Path,
    *,
    device: torch.device,
    limit: int | None = None,
    maps: int = 12,
    transforms: int = 16,
    latency_seconds: float = 2.0,
    max_pixels: int | None = None,
) -> Path:
    """Writes output/report.html, output/runs.csv and the PNGs that the page holds.

    Args:
        folders: folders of runs.
        output: folder of the report, created if it does not exist; files of an older report are replaced.
        device: device of the models.
        limit: number of test images of each run, starting with the first; None for all.
        maps: number of test images with token maps, starting with the first.
        transforms: number of random zooms and shifts; with 0, that section is left out.
        latency_seconds: seconds spent on timing each model.
        max_pixels: largest number of pixels of a test image file; None for the value of each run.

    Returns:
        Path of the HTML file.

    Raises:
        FileNotFoundError: a folder does not exist, is not the folder of a run, or has no checkpoint.
        NotADirectoryError: `output` is a file.
        ValueError: a run cannot be read, or a number is out of range.
    """
    for name, value, least in (("--images", limit, 1), ("--maps", maps, 1), ("--transforms", transforms, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name}: expected {least} or more, got {value}")
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output}: expected a folder, got a file")
    distinct = {folder.resolve(): folder for folder in folders}
    runs = [load_run(folder) for folder in distinct.values()]
    if max_pixels is not None:
        runs = [replace(run, config=run.config.replace(max_pixels=max_pixels)) for run in runs]
    if len(tasks := {run.config.task for run in runs}) > 1:
        raise ValueError(
            f"{', '.join(map(str, folders))}: expected runs of one task, got {' and '.join(sorted(tasks))}"
        )
    for run in runs:
        run.checkpoint()  # fails for a run without one before minutes of work on the others
    if tasks == {"segmentation"}:
        segmenters = examine_segmenters(runs, device, limit, maps, latency_seconds)
        _remove_older(output)
        sections = segmentation_sections(segmenters, output, device)
    else:
        groups = examine(runs, device, limit, latency_seconds)
        _remove_older(output)
        sections = _classification_sections(groups, output, device, maps, transforms)
    page = output / "report.html"
    title = f"Run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs"
    write_page(page, f"{title}: mixed-scale tokens", sections)
    return page


def _remove_older(output: Path) -> None:
    """Makes the folder, and removes the pictures of an older report."""
    output.mkdir(parents=True, exist_ok=True)
    for pattern in _PICTURES:
        for old in output.glob(pattern):
            old.unlink()


def _classification_sections(
    groups: Sequence[Group], output: Path, device: torch.device, maps: int, transforms: int
) -> list[Section]:
    write_runs(groups, output / "runs.csv")
    return [
        _summary(groups, device),
        _tradeoff(groups, output, device),
        _history(groups, output),
        _masks(groups, output),
        _priors(groups, output),
        *(_token_maps(group, i, output, maps) for i, group in enumerate(groups)),
        _histogram(groups, output),
        _coverage(groups, output),
        *_shifts(groups, output, transforms),
    ]


def _summary(groups: Sequence[Group], device: torch.device) -> Section:
    first = groups[0].runs[0]
    text = (
        f"{len(first.test.images)} test images of {first.run.config.data!r}, "
        f"{first.run.image_size[1]} x {first.run.image_size[0]} pixels; "
        f"files that could not be read: {first.test.left_out}. "
        f"GMACs include the gate. Times are medians over packed batches of {first.run.config.batch_size} images on "
        f"{device}. Variance between images is the share of the mask's variance that the position does not explain; it "
        "is 0 for a static pattern. Fine on object is the share of fine regions that cover the object. Object found is "
        "the share of the object's regions that are fine."
    )
    tables = result_tables(groups)
    if len(tables) > 1:
        text += " A setting has the mean ± standard deviation of runs that differ only in their seed."
    return Section("Summary", text, tables)


def _tradeoff(groups: Sequence[Group], output: Path, device: torch.device) -> Section:
    picture = draw_tradeoff(groups, output / "tradeoff.png", str(device))
    return Section("Accuracy against cost", "Large markers are means over the runs of a setting.", pictures=[picture])


def _history(groups: Sequence[Group], output: Path) -> Section:
    if not any(run.run.metrics for group in groups for run in group.runs):
        return Section("Training", "Left out: no run has finished an epoch.")
    text = "Loss, accuracy and tokens by epoch, from metrics.csv."
    return Section("Training", text, pictures=[draw_history(groups, output / "history.png")])


def _masks(groups: Sequence[Group], output: Path) -> Section:
    text = "Share of test images in which each region is fine, and its variance over them (0 for a static pattern)."
    return Section("Masks by position", text, pictures=[draw_masks(groups, output / "masks.png")])


def _priors(groups: Sequence[Group], output: Path) -> Section:
    picture = draw_priors(groups, output / "priors.png")
    if picture is None:
        return Section("Learned priors", "Left out: only the generalized batch-shaping loss learns priors.")
    return Section(
        "Learned priors", "Prior theta of each region, for the first run of each setting.", pictures=[picture]
    )


def _token_maps(group: Group, index: int, output: Path, count: int) -> Section:
    run = group.runs[0]
    text = f"The first {min(count, len(run.test.images))} test images of {run.run.name}, without selection."
    if run.test.boxes is not None:
        text += " The green frame surrounds the object."
    picture = draw_token_maps(run, output / f"tokens-{index}.png", count)
    return Section(f"Token maps: {group.label}", text, pictures=[picture])


def _histogram(groups: Sequence[Group], output: Path) -> Section:
    picture = draw_histogram(groups, output / "histogram.png")
    return Section("Tokens per image", "Patch tokens only, without prefix tokens.", pictures=[picture])


def _coverage(groups: Sequence[Group], output: Path) -> Section:
    title = "Fine regions on the object"
    known = [group for group in groups if all(run.coverage for run in group.runs)]
    if not known:
        return Section(title, "Left out: the data set does not give the place of the object.")
    text = "A setting has no first bar if one of its runs makes no region fine."
    return Section(title, text, pictures=[draw_coverage(known, output / "coverage.png")])


def _shifts(groups: Sequence[Group], output: Path, transforms: int) -> list[Section]:
    title = "Random zooms and shifts"
    learned = [group for group in groups if group.learned]
    if not learned or not transforms:
        reason = "--transforms 0" if learned else "there is no learned gate"
        return [Section(title, f"Left out: {reason}.")]
    sections = []
    for i, group in enumerate(learned):
        one = group.runs[0]
        fixed, source = _fixed_model(one, groups)
        pairs = compare_gates(
            one.model, fixed.model, one.test.first(_SHIFTED_IMAGES), one.run.config.batch_size, transforms
        )
        better = sum(pair.learned.top1 > pair.radial.top1 for pair in pairs[1:])
        text = (
            f"The learned gate of {one.run.name} is compared with a radial pattern, which has as many fine regions as "
            f"the gate chooses for unchanged images and runs on {source}. The learned gate is more accurate under "
            f"{better} of {len(pairs) - 1} transforms. On unchanged images its accuracy is "
            f"{100 * pairs[0].learned.top1:.2f} % with {pairs[0].learned.tokens_per_image:.1f} tokens per image; that "
            f"of the radial pattern is {100 * pairs[0].radial.top1:.2f} % with {pairs[0].radial.tokens_per_image:.1f}."
        )
        pictures = [
            draw_shifts(pairs, output / f"shifts-{i}.png", group.label),
            draw_shifted_maps(one, pairs, output / f"shifted-maps-{i}.png"),
        ]
        sections.append(Section(f"{title}: {group.label}", text, pictures=pictures))
    return sections


def _fixed_model(one: Examined, groups: Sequence[Group]) -> tuple[Examined, str]:
    """A run of the same backbone with a radial gate if there is one, else the run itself; and its description."""
    for group in groups:
        other = group.runs[0]
        config = other.run.config
        same = all(
            getattr(config, name) == getattr(one.run.config, name) for name in ("model", "data", "embed_dim", "depth")
        )
        if config.gate == "radial" and same and other.run.image_size == one.run.image_size:
            return other, f"the backbone of {other.run.name}, which was trained with such a pattern"
    return one, "the same backbone, which was not trained with it"
