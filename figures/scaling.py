"""How the cost of each stage grows with its size, and what its memory peak is."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from pydantic import ValidationError

from analysis.audit.report import Document
from analysis.errors import UserError
from figures.artefacts import Missing, existing
from figures.style import CONTROL, EDITED, FAINT, INK, ORIGINAL, Drawing, canvas, finish, stacked, styled
from figures.words import plural

TITLE = "How the cost of each stage grows"
FILE = "scaling.json"
COMMAND = "python -m tests.benchmarks.scaling"
COLUMNS = 3
PANEL, BAR, AROUND = 1.75, 0.26, 0.75
"""Inches: height of a panel, of a bar, and of what the bars' axis takes."""
AIM = 1.5
SAME, NEARLY = 0.15, 0.25


class Series(Document):
    """One stage, timed at several sizes.

    Attributes:
        stage: What is done.
        by: What grows.
        unit: What `x` counts.
        x: Sizes, rising.
        seconds: One for each.
        slope: Exponent of the power of the size that fits best.
        tail: The same for the largest sizes alone, where fixed costs matter less.
    """

    stage: str
    by: str
    unit: str
    x: list[float]
    seconds: list[float]
    slope: float
    tail: float


class Peak(Document):
    """The most memory that a stage takes.

    Attributes:
        stage: What is done.
        model_bytes: Size of the model.
        bound_bytes: The aim.
        peak_bytes: Model and all tensors made beside it.
        ratio: Of the peak to the model with two moments for each weight that is trained.
        holds: What is alive at the peak beside the model, in bytes.
    """

    stage: str
    model_bytes: int
    bound_bytes: int
    peak_bytes: int
    ratio: float
    holds: dict[str, int]


class Scaling(Document):
    """Everything in `scaling.json`.

    Attributes:
        benchmark: Which one.
        machine: What it was measured on.
        series: Times.
        memory: Peaks.
    """

    benchmark: Literal["scaling"] = "scaling"
    machine: dict[str, Any]
    series: list[Series]
    memory: list[Peak]


@dataclass(frozen=True)
class Scaled:
    """A folder of the scaling study.

    Attributes:
        folder: Where it is.
        found: What its `scaling.json` says.
    """

    folder: Path
    found: Scaling


def open_scaling(folder: Path) -> Scaled:
    """Open the folder of a scaling study.

    Args:
        folder: E.g. tests/benchmarks/results/scaling.

    Returns:
        The study.

    Raises:
        Missing: There is none in it, or it has no series.
        UserError: It is damaged.
    """
    path = existing(folder) / FILE
    if not path.is_file():
        raise Missing(f"{folder} has no {FILE}; make it with `{COMMAND}`.")
    try:
        found = Scaling.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged; make it again with `{COMMAND}`.") from error
    if not found.series:
        raise Missing(f"{path} has no series; make it again with `{COMMAND}`.")
    return Scaled(folder, found)


def growth(slope: float) -> str:
    """Say what an exponent means.

    Args:
        slope: Of a power of the size.

    Returns:
        E.g. "in proportion".
    """
    if slope < SAME:
        return "hardly grows"
    if slope < 1 - SAME:
        return "slower than in proportion"
    if slope <= 1 + SAME:
        return "in proportion"
    return "with the square" if abs(slope - 2) <= NEARLY else "faster than in proportion"


def _number(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}" if value >= 1 else f"{value:.2g}"


def _seconds(value: float, _: object = None) -> str:
    return f"{value:g} s" if value >= 1 else f"{1000 * value:g} ms"


def _ticks(values: list[float], most: int) -> list[float]:
    # Sizes that were measured stand on the axis, every second or third where there is no room for all.
    step = math.ceil((len(values) - 1) / (most - 1)) if len(values) > 1 else 1
    return values[::-1][::step][::-1]


def _panel(axes: Axes, one: Series) -> None:
    x, y = np.array(one.x), np.array(one.seconds)
    through = np.exp(np.mean(np.log(y)) + one.slope * (np.log(x) - np.mean(np.log(x))))
    axes.plot(x, through, color=FAINT, lw=1.2)
    axes.plot(x, y, "o", color=ORIGINAL, ms=5.5, mec="white")
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = _ticks(one.x, 5)
    axes.set_xticks(ticks, [_number(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = float(min(y.min(), through.min())), float(max(y.max(), through.max()))
    # At least one decade, so that what hardly grows looks like it.
    room = max(0.0, 1.2 - math.log10(high / low)) / 2 + 0.1
    axes.set_ylim(low / 10**room, high * 10**room)
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 3), numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_seconds))
    axes.grid(axis="y")
    axes.set_title(f"{one.stage}\nby {one.by}: power {one.slope:.2f} ({one.tail:.2f})")
    axes.set_xlabel(one.unit)


def _bars(part: SubFigure, peaks: list[Peak]) -> None:
    axes = part.subplots()
    for height, peak in enumerate(peaks):
        colour = CONTROL if peak.ratio <= AIM else EDITED
        axes.barh(height, peak.ratio, color=colour, height=0.62)
        axes.annotate(
            f"{peak.ratio:.2f}", (peak.ratio, height), (-4, 0), textcoords="offset points", ha="right", va="center",
            color="white", fontsize=8.5, weight="bold",
        )  # fmt: skip
    axes.axvline(AIM, color=INK, lw=1, ls=(0, (4, 2)))
    axes.set_yticks(range(len(peaks)), [peak.stage for peak in peaks])
    axes.set_ylim(len(peaks) - 0.4, -0.6)
    axes.set_xlim(0, 1.04 * max(AIM, *(peak.ratio for peak in peaks)))
    axes.set_xlabel("memory peak over model and moments of the trained weights   (dashed: the aim)")


@styled
def draw(run: Scaled) -> Drawing:
    """Draw a panel for each series, both axes logarithmic, and the memory peaks below.

    Args:
        run: The study.

    Returns:
        Points, the fitted power through them, and bars.
    """
    found = run.found
    rows = math.ceil(len(found.series) / COLUMNS)
    heights = [rows * PANEL, *([AROUND + BAR * len(found.memory)] if found.memory else [])]
    figure = canvas(height=sum(heights))
    parts = stacked(figure, heights)
    panels = parts[0].subplots(rows, COLUMNS, squeeze=False).flat
    for axes, one in zip(panels, found.series, strict=False):
        _panel(axes, one)
    for axes in list(parts[0].axes)[len(found.series) :]:
        axes.remove()
    if found.memory:
        _bars(parts[1], found.memory)
    machine = found.machine
    threads = plural(int(machine.get("threads", 1)), "thread")
    caption = (
        f"Seconds, medians of several readings, {machine.get('processor', 'one machine')}, {threads}. The line is the "
        "power of the size that fits best: 1 grows in proportion, 2 with the square; below 1 fixed costs still show. "
        "In brackets: the three largest sizes alone."
    )
    if found.memory:
        megabytes = found.memory[0].model_bytes / 1e6
        caption += f" Memory: tensors alive at once, model of {megabytes:.0f} MB."
    told = [
        f"{one.stage} by {one.by}: power {one.slope:.2f}, {growth(one.slope)}; at the largest sizes {one.tail:.2f}"
        for one in found.series
    ]
    told += [f"{peak.stage}: memory peak {peak.ratio:.2f}" for peak in found.memory]
    return finish(figure, TITLE, caption, f"{plural(len(found.series), 'panel')}. {'; '.join(told)}.")


if __name__ == "__main__":
    from figures.save import script_for

    raise SystemExit(script_for(open_scaling, "figures.scaling", draw))
