"""What every class is called: original, edited and gold confusion matrices on one scale."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from figures.artefacts import Run
from figures.style import (
    EDITED,
    FORGOTTEN,
    GOLD,
    ORIGINAL,
    SEQUENTIAL,
    WIDTH,
    Drawing,
    canvas,
    finish,
    readable_on,
    styled,
)
from figures.words import squeeze

NAME = "confusion"
TITLE = "What every class is called, before and after"
MOST_NUMBERED = 12


def normalised(counts: np.ndarray) -> np.ndarray:
    """Divide every row by its sum.

    Args:
        counts: [classes, classes].

    Returns:
        Shares; a row without images stays 0.
    """
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def _panel(axes: Axes, counts: np.ndarray, run: Run, answers: Sequence[str]) -> matplotlib.image.AxesImage:
    n = len(counts)
    shares = normalised(counts)
    drawn = axes.imshow(shares, cmap=SEQUENTIAL, vmin=0, vmax=1)
    long = max(map(len, run.classes)) > 3
    step = 1 if n <= 30 else -(-n // 25)
    near = {tick for tick in range(0, n, step) for label in run.forget if 0 < abs(tick - label) < step}
    ticks = sorted({*range(0, n, step), *run.forget} - (near - {*run.forget}))
    size = 8.5 if n <= 12 else 6.5
    axes.set_xticks(ticks, [squeeze(answers[i], 10) for i in ticks], size=size, rotation=90 if long else 0)
    axes.set_yticks(ticks, [squeeze(run.classes[i], 10) for i in ticks], size=size)
    axes.tick_params(length=0)
    for tick, label in zip(ticks, axes.get_yticklabels(), strict=False):  # only the first panel has labels
        if tick in run.forget:
            label.set(color=FORGOTTEN, weight="bold")
    for spine in axes.spines.values():
        spine.set(visible=True, color="#cccccc")
    colours = matplotlib.colormaps[SEQUENTIAL]
    for row in run.forget:
        axes.add_patch(
            Rectangle((-0.5, row - 0.5), n, 1, fill=False, edgecolor=FORGOTTEN, lw=1.6, clip_on=False, zorder=4)
        )
        if n <= MOST_NUMBERED:
            for column in range(n):
                if counts[row, column]:
                    colour = readable_on(colours(shares[row, column]))
                    number = f"{int(counts[row, column])}"
                    axes.text(
                        column, row, number, ha="center", va="center", size=7 if len(number) < 4 else 5.5, color=colour
                    )
    return drawn


def _calls(counts: np.ndarray, run: Run, answers: Sequence[str]) -> str:
    row = counts[list(run.forget)].sum(0).astype(int)
    best = [c for c in np.argsort(-row, kind="stable")[:3] if row[c]]
    return ", ".join(f'{row[c]:,} × "{answers[c]}"' for c in best)


@styled
def draw(run: Run) -> Drawing:
    """Draw confusion matrices, rows normalised, the forgotten rows framed with their counts.

    Args:
        run: With pictures.

    Returns:
        Three panels on one scale from 0 to 1.
    """
    models = {"original": ORIGINAL, "edited": EDITED, "gold": GOLD}
    tables = {name: run.picture(f"confusion.{name}").astype(float) for name in models}
    meant = {name: run.classes if name == "original" else run.answers for name in tables}
    longest = min(10, max(map(len, run.classes)))
    label = 0.1 if longest <= 3 else longest * (0.075 if len(run.classes) <= 12 else 0.058)
    figure = canvas(height=(WIDTH - 1.45 - label) / 3 + label + 0.45)
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (name, colour) in zip(panels, models.items(), strict=True):
        drawn = _panel(axes, tables[name], run, meant[name])
        axes.set_title(name, color=colour, weight="bold")
        axes.set_xlabel("called")
    panels[0].set_ylabel("true class")
    bar = figure.colorbar(drawn, ax=panels, shrink=0.7, aspect=22, pad=0.01)
    bar.set_ticks([0, 0.5, 1], labels=["0", "50%", "100%"])
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)

    n, forgotten = int(tables["edited"].sum()), int(tables["edited"][list(run.forget)].sum())
    calls = {name: _calls(table, run, meant[name]) for name, table in tables.items()}
    caption = (
        f"Rows add up to 100%. Framed{', with counts' if len(run.classes) <= MOST_NUMBERED else ''}: {run.forgotten}. "
        f"n = {n:,} test images, {forgotten:,} of them forgotten; run seed {run.seed}; one gold model of "
        f"{len(run.audit.golds)}. What {run.briefly} {'is' if len(run.forget) == 1 else 'are'} called most often: "
        + "; ".join(f"{name}: {text}" for name, text in calls.items())
        + "."
    )
    caption += run.slot_note
    alt = (
        f"Three confusion matrices of {len(run.classes)} classes. Images of {run.forgotten} are called, by the "
        + "; by the ".join(f"{name} model, {text}" for name, text in calls.items())
        + "."
    )
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script

    raise SystemExit(script(NAME, draw))
