"""How fast does fine-tuning bring the class back? Curves of every model against the golds'."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.audit.report import Measurement
from figures.artefacts import Missing, Run
from figures.looks import Look, looks
from figures.style import FAINT, GOLD, Drawing, canvas, finish, styled
from figures.words import plural

NAME = "relearning"
TITLE = "How fast does fine-tuning bring the class back?"
SETTLED = 0.005
MOST_COLUMNS = 3


def steps_text(value: float, longest: float) -> str:
    """Write steps to relearn.

    Args:
        value: Steps; infinite or the whole attack's length where the class never came back.
        longest: Steps of the whole attack.

    Returns:
        E.g. "3.2" or "never".
    """
    return "never" if not math.isfinite(value) or value >= longest else f"{value:.1f}"


def _length(measurement: Measurement) -> int:
    """Find where all curves have stopped moving, so that a flat tail takes no room.

    Args:
        measurement: With curves.

    Returns:
        How many of the curves' points to draw.
    """
    curves = [np.nan_to_num(np.asarray(c, float)) for c in measurement.curves.values()]
    moving = [
        int(np.flatnonzero(np.abs(c - c[-1]) > SETTLED)[-1]) if np.any(np.abs(c - c[-1]) > SETTLED) else 0
        for c in curves
    ]
    return min(len(measurement.curve_x), max(moving, default=0) + 3)


def _panel(axes: Axes, measurement: Measurement, golds: list[str], shown: dict[str, Look], legend_columns: int) -> None:
    x = np.array(measurement.curve_x)[: _length(measurement)]
    longest = measurement.curve_x[-1]
    gold = [np.asarray(measurement.curves[name], float)[: len(x)] for name in golds if name in measurement.curves]
    if gold:
        axes.fill_between(x, np.min(gold, 0), np.max(gold, 0), color=GOLD, alpha=0.3, lw=0)
        for curve in gold:
            axes.plot(x, curve, color=GOLD, lw=0.6, alpha=0.8)
        mean = float(np.mean([min(measurement.values[name], longest) for name in golds]))
        axes.plot([], [], color=GOLD, lw=5, alpha=0.6, label=f"gold, mean {steps_text(mean, longest)}")
    for name, look in shown.items():
        if name in measurement.curves:
            curve = np.asarray(measurement.curves[name], float)[: len(x)]
            big = look.label in {"original", "edited"}
            axes.plot(
                x,
                curve,
                color=look.colour,
                ls=look.line,
                lw=2.0 if big else 1.3,
                marker=look.marker,
                ms=5 if big else 4,
                markevery=max(1, len(x) // 10),
                zorder=4 if big else 3,
                clip_on=False,
                label=f"{look.label}: {steps_text(measurement.values[name], longest)}",
            )
    axes.axhline(0.5, color=FAINT, lw=0.8, ls=":")
    axes.set_title(measurement.auditor)
    if not measurement.counted:
        axes.set_title("not counted", loc="right", size=8, color=FAINT)
    axes.set_xlim(x[0], x[-1])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("fine-tuning steps")
    axes.grid(axis="y")
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(0, -0.2),
        ncols=legend_columns,
        title=f"{measurement.unit} to 50%",
        alignment="left",
        borderpad=0,
    )


@styled
def draw(run: Run) -> Drawing:
    """Draw how well the forgotten class is recognised again while every model is fine-tuned on it.

    Args:
        run: With audit.

    Returns:
        A panel per attack (head as it is, fresh head), on one scale.

    Raises:
        Missing: The audit holds no relearning curves.
    """
    found = [m for m in run.measurements("relearn") if m.curves][:4]
    if not found:
        raise Missing(f"The audit in {run.folder} has no relearning curves; audit with more test images.")
    golds = run.audit.golds
    every = looks(list(found[0].values), golds)
    shown = {name: look for name, look in every.items() if name not in golds}
    columns = len(found) if len(found) <= MOST_COLUMNS else 2
    rows = -(-len(found) // columns)
    legend_columns = 1 if columns == MOST_COLUMNS else 2

    figure = canvas(height=rows * (2.75 + 0.17 * math.ceil((len(shown) + 1) / legend_columns)))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, measurement in zip(panels.flat, found, strict=False):
        _panel(axes, measurement, golds, shown, legend_columns)
    for spare in list(panels.flat)[len(found) :]:
        spare.set_visible(False)
    lowest = min([0.0, *(min(curve) for m in found for curve in m.curves.values())])
    for row in panels:
        row[0].set_ylabel("recognised again")
        row[0].set_ylim(lowest - 0.03, 1.03)

    first = found[0]
    caption = (
        f"Recall of {run.forgotten} minus false alarms while models are fine-tuned on it; the strongest of several "
        f"learning rates for each model; mean of {plural(first.repeats, 'attack')} (seed {run.audit.seed}), n = "
        f"{first.examples:,} test images. Gold: {plural(len(golds), 'model')} that never saw the class, each a thin "
        "line, min to max shaded. Faster than gold means hidden. Curves are flat once the attack has ended."
    )
    parts = []
    for m in found:
        longest = m.curve_x[-1]
        gold = [min(m.values[name], longest) for name in golds]
        told = ", ".join(f"{name} {steps_text(m.values[name], longest)}" for name in shown if name in m.values)
        parts.append(
            f"{m.auditor}: {told}, gold {min(gold):.1f} to {max(gold):.1f}" if gold else f"{m.auditor}: {told}"
        )
    alt = f"Curves of how fast {run.forgotten} comes back. Steps to 50%. " + ". ".join(parts) + "."
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script

    raise SystemExit(script(NAME, draw))
