"""The whole run in one picture: where the class lived, what was changed, what the model does now, what auditors see."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from analysis.audit.report import Audit
from analysis.errors import UserError
from figures.artefacts import Run
from figures.bands import distances, forest, ordered
from figures.looks import looks
from figures.mask_map import draw_shares, draw_tiles, first_layer, layer_counts
from figures.style import (
    CONTROL,
    EDITED,
    FAINT,
    GOLD,
    INK,
    ORIGINAL,
    Drawing,
    bare,
    beside,
    canvas,
    centred,
    finish,
    inches,
    stacked,
    styled,
    wrap,
)
from figures.weight_change import changed_counts
from figures.words import percent, plural, shorten

NAME = "overview"
TITLE = "Located, edited, audited: the run in one picture"
VERDICTS = {"erased": CONTROL, "hidden": EDITED, "remembered": ORIGINAL, "damaged": "#555555", "undecided": FAINT}
SQUARES = (20, 50)
MOST_AUDITORS = 14
WIDE = 9.6
VERDICT_SIZE = 15


def head(part: SubFigure, text: str) -> None:
    """Write a numbered panel's heading.

    Args:
        part: Of the figure.
        text: With its number.
    """
    part.suptitle(f" {text}", x=0.0, ha="left", size=10.5, weight="bold")


def under_banner(figure: Figure, audit: Audit, below: float) -> SubFigure:
    """Say the verdict at the top of a figure.

    Args:
        figure: Empty.
        audit: Of the edited model.
        below: Height of the rest, in inches.

    Returns:
        The rest.
    """
    wide = figure.get_size_inches()[0]
    after = 0.012 + (inches(figure, audit.verdict.upper(), VERDICT_SIZE, "bold") + 0.45) / wide
    words = wrap(figure, audit.sentence, 9.5, wide * (1 - after) - 0.15)
    banner, body = stacked(figure, [0.2 + 0.19 * max(2, len(words)), below])
    banner.text(
        0.012,
        0.5,
        audit.verdict.upper(),
        size=VERDICT_SIZE,
        weight="bold",
        color="white",
        va="center",
        bbox={"facecolor": VERDICTS[audit.verdict], "lw": 0, "boxstyle": "round,pad=0.35"},
    )
    banner.text(after, 0.5, "\n".join(words), size=9.5, va="center", linespacing=1.25)
    return body


def judged(run: Run) -> Audit:
    """Look up the edited model's verdict.

    Args:
        run: With audit.

    Returns:
        The audit of the edited model.

    Raises:
        UserError: The audit doesn't know the edited or the original model.
    """
    for name in ("original", "edited"):
        if name not in run.audit.audits:
            raise UserError(run.complaint("audit.json", f"it says nothing of the {name} model"))
    return run.audit.audits["edited"]


def _lived(part: SubFigure, run: Run) -> None:
    head(part, f"1  Where {run.briefly} lived")
    upper, lower = stacked(part, [1.25, 1])
    axes = upper.subplots()
    counts = layer_counts(run)
    if len(counts) > 8:
        by: dict[str, tuple[int, int]] = {}
        for name, (inside, whole) in counts.items():
            layer = name.rpartition(".")[0] or name
            before = by.get(layer, (0, 0))
            by[layer] = (before[0] + inside, before[1] + whole)
        counts = by
    draw_shares(axes, counts, numbers=False)
    axes.set_title("share of each layer in the mask", size=8.5)
    name, tiles = first_layer(run)
    masked = any(tile.inside.any() for tile in tiles)
    lower.suptitle(
        f"  {name}: {'masked weights in colour' if masked else 'no weight is masked'}", size=8.5, x=0.0, ha="left"
    )
    tiles = [tile for tile in tiles if not tile.channel][:4]
    panels = lower.subplots(1, len(tiles), squeeze=False)
    draw_tiles(panels, tiles, centred(*[tile.weights for tile in tiles], quantile=0.995))
    for panel, tile in zip(panels.flat, tiles, strict=True):
        panel.set_title(f"unit {tile.unit}", size=8, pad=2, loc="center")


def _changed(axes: Axes, run: Run, changed: int) -> None:
    total = run.total
    rows, columns = SQUARES
    cells = rows * columns
    filled = min(cells, max(1, round(cells * changed / total))) if changed else 0
    grid = np.full((rows, columns), False)
    grid.T.flat[:filled] = True
    size = 7
    pixels = np.ones((rows * size, columns * size, 3))
    from matplotlib.colors import to_rgb

    for (row, column), on in np.ndenumerate(grid):
        pixels[row * size : row * size + size - 2, column * size : column * size + size - 2] = to_rgb(
            EDITED if on else "#D9D9D9"
        )
    axes.imshow(pixels)
    bare(axes)
    axes.set_title(f"{changed:,} of {total:,} weights ({percent(changed / total)}){_how(run)}", size=10)
    share = f"each square: {total / cells:,.0f} weights; the grey ones kept every bit"
    axes.text(0, -0.05, share, transform=axes.transAxes, va="top", size=8, color=FAINT)


def _how(run: Run) -> str:
    method, measure = run.config.get("method"), run.config.get("measure")
    if not isinstance(method, str):
        return ""
    return f"\nby {method}" + (f", located by {measure}" if isinstance(measure, str) and measure != "none" else "")


def _behaviour(axes: Axes, run: Run) -> dict[str, dict[str, float]]:
    groups = {"forget accuracy": run.briefly, "retain accuracy": "the rest", "incoming accuracy": "the new class"}
    found = {words: m for group, words in groups.items() for m in run.measurements(group)[:1]}
    told: dict[str, dict[str, float]] = {}
    for place, (words, measurement) in enumerate(found.items()):
        golds = [measurement.values[name] for name in run.audit.golds]
        told[words] = {
            "original": measurement.values["original"],
            "edited": measurement.values["edited"],
            "gold": float(np.mean(golds)) if golds else float("nan"),
        }
        for turn, (name, colour) in enumerate((("original", ORIGINAL), ("edited", EDITED), ("gold", GOLD))):
            x, value = place + 0.27 * (turn - 1), told[words][name]
            axes.bar(x, value, width=0.24, color=colour, label=name if place == 0 else None)
            top = max(golds) if name == "gold" and golds else value
            if name == "gold" and golds:
                axes.plot([x, x], [min(golds), max(golds)], color=INK, lw=1)
            axes.text(x, top + 0.02, percent(value).rstrip("%"), ha="center", va="bottom", size=7.5)
    axes.set_xticks(range(len(found)), [shorten(words, 24) for words in found], size=9)
    axes.set_ylim(0, 1.14)
    axes.set_yticks([0, 0.5, 1], ["0", "50%", "100%"])
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("test accuracy")
    axes.legend(
        loc="upper left", bbox_to_anchor=(-0.02, 1.17), ncols=3, handlelength=1.2, columnspacing=1.2, borderpad=0
    )
    return told


def _auditors(axes: Axes, run: Run) -> int:
    report = run.audit
    far = distances(report, "edited")
    counted = [m for m in ordered(report) if m.counted]
    kept = sorted(counted, key=lambda m: -far.get(m.auditor, 0.0))[:MOST_AUDITORS]
    rows = [m for m in counted if m in kept]
    shown = looks([name for name in ("edited", "original") if name in report.audits])
    forest(axes, report, rows, shown, size=8, reasons=False)
    axes.set_xlabel("gold sd from the mean of models that never knew", size=8.5)
    axes.text(0.0, 1.01, "inside the band", transform=axes.transAxes, size=8, color="#9A6B00", va="bottom")
    axes.text(1.0, 1.01, "unlike gold  →", transform=axes.transAxes, size=8, ha="right", va="bottom")
    return len(counted) - len(rows)


@styled
def draw(run: Run) -> Drawing:
    """Draw the story of a run for a reader who has not read the text.

    Args:
        run: With mask, edit, original model, pictures and audit.

    Returns:
        The verdict in words above four numbered panels.
    """
    report, audit = run.audit, judged(run)
    changed = sum(count for count, _ in changed_counts(run).values())

    figure = canvas(height=6.9, width=WIDE)
    body = under_banner(figure, audit, 6.3)
    left, right = beside(body, [1, 1.3])
    lived, does = stacked(left, [1.35, 1])
    touched, seen = stacked(right, [1, 1.75])
    _lived(lived, run)
    head(touched, "2  What was changed")
    _changed(touched.subplots(), run, changed)
    head(does, "3  What the model does")
    told = _behaviour(does.subplots(), run)
    head(seen, "4  What the auditors see")
    left_out = _auditors(seen.subplots(), run)

    n = {m.group: m.examples for m in report.measurements if m.group in {"forget accuracy", "retain accuracy"}}
    caption = (
        f"n = {n.get('forget accuracy', 0):,} forgotten and {n.get('retain accuracy', 0):,} retained test images; "
        f"{plural(len(report.golds), 'gold model')} trained without {run.forgotten}; run seed {run.seed}, audit seed "
        f"{report.seed}. Whiskers: gold min to max. Circles: edited; diamonds: original. Shown: auditors that can tell "
        "the original from gold"
        + (f", without the {left_out} in which the edited model is nearest to gold." if left_out else ".")
    )
    alt = (
        f"{audit.sentence} {changed:,} of {run.total:,} weights were changed. Accuracy "
        + "; ".join(
            f"on {what}: " + ", ".join(f"{m} {percent(v)}" for m, v in values.items()) for what, values in told.items()
        )
        + "."
    )
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script

    raise SystemExit(script(NAME, draw))
