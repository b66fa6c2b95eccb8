"""Does it matter? Accuracies as the located weights are switched off, against random weights and whole layers."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.ablation import CausalScore, Curve
from figures.artefacts import Run
from figures.style import FAINT, FORGOTTEN, RETAINED, Drawing, canvas, finish, styled
from figures.words import percent, plural, seeds_in_words, shorten, tick_percent

NAME = "ablation"
TITLE = "Ablation: what is lost when the located weights are set to zero"
COLUMNS = 4
MOST_LAYERS = 8


def _mean_sd(rows: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    table = [np.asarray(row, float) for row in rows]
    return np.array([row.mean() for row in table]), np.array([
        row.std(ddof=1) if len(row) > 1 else 0.0 for row in table
    ])


def _line(axes: Axes, x: Sequence[float], rows: Sequence[Sequence[float]], colour: str, dashed: bool = False) -> None:
    mean, sd = _mean_sd(rows)
    axes.fill_between(x, np.clip(mean - sd, 0, 1), np.clip(mean + sd, 0, 1), color=colour, alpha=0.22, lw=0)
    axes.plot(x, mean, "--" if dashed else "-", color=colour, marker="" if dashed else ".")


def _dress(axes: Axes, title: str, x: Sequence[float]) -> None:
    """Name a panel and give it the scales that all panels share; x holds all curves' fractions."""
    axes.set_title(title, size=9.5)
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks([0, 0.5, 1], ["0", "50%", "100%"])
    axes.set_xscale("log")
    low, high = min(x), max(x)
    axes.set_xlim(low * 0.85, high * 1.18)
    decades = [10.0**k for k in range(-6, 1) if low * 0.85 <= 10.0**k <= high * 1.18]
    ticks = decades if len(decades) > 1 else sorted({low, *decades, high})
    axes.set_xticks(ticks, [tick_percent(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="y")


def _gap(x: Sequence[float], forget: Sequence[Sequence[float]], retain: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Find where retained accuracy exceeds forgotten accuracy most.

    Args:
        x: Shares of the weights.
        forget: Accuracies on the forgotten, [x][repeat].
        retain: Accuracies on the rest, likewise.

    Returns:
        The gap, and there x, mean forgotten and mean retained accuracy.
    """
    kept, lost = _mean_sd(retain)[0], _mean_sd(forget)[0]
    at = int((kept - lost).argmax())
    return float(kept[at] - lost[at]), float(x[at]), float(lost[at]), float(kept[at])


def own(curves: Sequence[Curve]) -> list[Curve]:
    """Pick the curves of the measures' own rankings.

    Args:
        curves: All, with controls.

    Returns:
        One per measure.
    """
    return [c for c in curves if c.control is None]


def widest(curves: Sequence[Curve]) -> tuple[str, float, float, float]:
    """Find the measure that takes most from the forgotten and least from the rest.

    Args:
        curves: With at least one measure's own.

    Returns:
        Its name, the share of the weights where the gap is widest, and there what is left of the forgotten and of the
        rest.
    """
    best = max(own(curves), key=lambda c: _gap(c.x, c.forget, c.retain)[0])
    _, at, lost, kept = _gap(best.x, best.forget, best.retain)
    return best.measure, at, lost, kept


def panels(
    curves: Sequence[Curve],
    causal: Sequence[CausalScore],
    forgotten: str,
    unit: str = "accuracy",
    most_columns: int = COLUMNS,
) -> Figure:
    """Draw a panel per measure with its random control, then one per layer of the sweep.

    Args:
        curves: From a localization report.
        causal: Likewise; their gains are written above the panels.
        forgotten: For the legend.
        unit: Of the values.
        most_columns: Panels side by side, at most.

    Returns:
        The figure, without title and caption.
    """
    mine = own(curves)
    random = {c.measure: c for c in curves if c.control == "random"}
    sweep = [c for c in curves if c.control == "layer"]
    sweep = [c for c in sweep if c.measure == sweep[0].measure][:MOST_LAYERS]
    gains = {score.measure: score for score in causal}
    every = sorted({x for c in curves for x in c.x})
    columns = min(most_columns, max(len(mine), len(sweep), 1))
    above = -(-len(mine) // columns)
    rows = above + -(-len(sweep) // columns)

    figure = canvas(height=1.62 * rows + 0.15 * above + 0.85)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    upper, lower = list(grid[:above].flat), list(grid[above:].flat)
    for axes, curve in zip(upper, mine, strict=False):
        control = random.get(curve.measure) or (next(iter(random.values())) if len(random) == 1 else None)
        if control is not None:
            _line(axes, control.x, control.forget, FORGOTTEN, dashed=True)
            _line(axes, control.x, control.retain, RETAINED, dashed=True)
        _line(axes, curve.x, curve.forget, FORGOTTEN)
        _line(axes, curve.x, curve.retain, RETAINED)
        _dress(axes, curve.measure, every)
        gain = gains.get(curve.measure)
        if gain is not None:
            sd = f" ± {gain.sd:.2f}" if gain.n > 1 else ""
            axes.set_title(curve.measure, size=9.5, pad=17)
            axes.text(0, 1.03, f"gain {gain.mean:.2f}{sd}", transform=axes.transAxes, size=8, color=FAINT)
    for axes, curve in zip(lower, sweep, strict=False):
        _line(axes, curve.x, curve.forget, FORGOTTEN)
        _line(axes, curve.x, curve.retain, RETAINED)
        _dress(axes, f"layer sweep: {shorten(curve.layer or '', 14)}", every)
    for spare in (*upper[len(mine) :], *lower[len(sweep) :]):
        spare.set_visible(False)
    for row in grid:
        row[0].set_ylabel(unit)
    for axes in upper[max(0, len(mine) - columns) : len(mine)]:
        axes.set_xlabel("weights set to zero")
    for axes in lower[max(0, len(sweep) - columns) : len(sweep)]:
        axes.set_xlabel("weights set to zero")
    handles = [
        grid.flat[0].plot([], [], style, color=colour, label=label)[0]
        for colour, what in ((FORGOTTEN, forgotten), (RETAINED, "the rest"))
        for style, label in (("-", what), ("--", f"{what}, random weights"))
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=4, handlelength=2.6)
    return figure


@styled
def draw(run: Run) -> Drawing:
    """Draw accuracy on forgotten and retained images against the share of weights that is ablated.

    Args:
        run: With a localization report.

    Returns:
        A panel per measure with its random control (as many weights in each layer), then one per layer of the sweep.
    """
    report = run.localization
    figure = panels(report.curves, report.causal, run.briefly)
    mine = own(report.curves)

    repeats = max((len(rows_[0]) for c in report.curves for rows_ in [c.forget] if rows_), default=1)
    caption = (
        f"Mean ± sd over {plural(repeats, 'repeat')} ({seeds_in_words(report.seeds)}), each scored on a random half of "
        f"the training images and tested on n = {report.n_forget:,} forgotten and {report.n_retain:,} retained test "
        f"images (before: {percent(report.forget_before)} and {percent(report.retain_before)} right). Dashed: as many "
        f"weights of each parameter at random. Gain: accuracy lost on {run.briefly} less that lost on the rest, mean "
        "over the fractions, beyond the random control."
    )
    if any(c.control == "layer" for c in report.curves):
        caption += " Layer sweep: as many weights at random from one layer, as far as it has so many."
    alt = f"Curves of accuracy on {run.forgotten} and on the rest for {plural(len(mine), 'attribution measure')}."
    if mine:
        best, at, lost, kept = widest(report.curves)
        alt += (
            f" The widest gap is made by {best}: with {percent(at)} of the weights at zero, {percent(lost)} of "
            f"the forgotten and {percent(kept)} of the retained images are still right."
        )
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script

    raise SystemExit(script(NAME, draw))
