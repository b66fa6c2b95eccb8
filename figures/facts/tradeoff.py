"""Forgetting against keeping: every audited model between what it should lose and what it must not."""

import math

import numpy as np
from matplotlib.artist import Artist

from figures.artefacts import Missing
from figures.facts.artefacts import FORGOTTEN_SHARE, KEPT_SHARE, FactRun, open_facts
from figures.style import GOLD, Drawing, canvas, finish, shares, styled
from figures.words import percent, plural

TITLE = "Forgetting against keeping"
ROOM = 0.06


def _limits(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = max(0.03, ROOM * (high - low))
    return max(-0.02, low - room), min(1.02, high + room)


@styled
def draw(run: FactRun) -> Drawing:
    """Draw the right answer's share on forgotten facts against that on facts to keep.

    Args:
        run: With audit.

    Returns:
        A point per model with its standard errors; shaded where a model is like one that never knew and undamaged.

    Raises:
        Missing: The audit has no band.
    """
    x = run.asked(FORGOTTEN_SHARE)
    y = run.asked(KEPT_SHARE)
    if x.band is None or y.band is None:
        raise Missing(f"The audit in {run.folder} has no band; audit with at least 3 twins.")
    golds = [name for name in run.audit.golds if name in x.values and name in y.values]
    shown = {name: look for name, look in run.models.items() if name in x.values and name in y.values}
    across, up = ([m.values[name] for name in (*golds, *shown)] for m in (x, y))
    spread = {name: (x.spread.get(name, 0.0), y.spread.get(name, 0.0)) for name in shown}
    low = [v - spread[n][0] for n, v in zip(shown, across[len(golds) :], strict=True)]
    high = [v + spread[n][0] for n, v in zip(shown, across[len(golds) :], strict=True)]
    down = [y.values[n] - spread[n][1] for n in shown]
    above = [y.values[n] + spread[n][1] for n in shown]

    figure = canvas(height=4.3)
    axes = figure.subplots()
    left, right = _limits([*across, *low, *high, x.band.edge])
    bottom, top = _limits([*up, *down, *above, y.band.edge])
    handles: list[Artist] = []
    axes.axvspan(left, x.band.edge, color=GOLD, alpha=0.16, lw=0)
    axes.axhspan(y.band.edge, top, color=GOLD, alpha=0.16, lw=0)
    for edge, line in ((x.band.edge, axes.axvline), (y.band.edge, axes.axhline)):
        if math.isfinite(edge):
            line(edge, color=GOLD, lw=1.2)
    axes.plot(across[: len(golds)], up[: len(golds)], ".", color=GOLD, ms=8, mec="white", mew=0.4, zorder=3)
    for name, look in reversed(list(shown.items())):
        big = name in {"original", "edited"}
        axes.errorbar(
            x.values[name], y.values[name], xerr=spread[name][0], yerr=spread[name][1], fmt="none",
            ecolor=look.colour, elinewidth=0.8, alpha=0.5, zorder=2,
        )  # fmt: skip
        axes.plot(
            x.values[name], y.values[name], look.marker, color=look.colour, ms=9 if big else 7,
            mec="white" if look.marker != "x" else look.colour, mew=0.6, zorder=5 if big else 4,
        )  # fmt: skip
    handles += [
        axes.plot([], [], look.marker, color=look.colour, ms=7, label=f"{name}: {run.audit.audits[name].verdict}")[0]
        for name, look in shown.items()
    ]
    handles.append(axes.plot([], [], ".", color=GOLD, ms=9, label="twins")[0])
    handles.append(axes.fill_between([], [], color=GOLD, alpha=0.3, lw=0, label="inside the twins' bands"))
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    what = y.auditor.rpartition(", ")[2]
    axes.set_xlabel(f"right answer's share, facts about {run.forgotten} held out   (left: forgotten)")
    axes.set_ylabel(f"right answer's share, {what}   (up: kept)")
    shares(axes)
    figure.legend(handles=handles, loc="outside upper left", ncols=4, columnspacing=1.4, handletextpad=0.5)

    caption = (
        f"Means over n = {x.examples:,} forgotten facts and {y.examples:,} {what}, none of them shown to a method; "
        f"bars: standard error over facts. Twins: {plural(len(golds), 'subject')} that never existed, asked of the "
        "original; upwards they show how far the original is moved by a moment's tuning on other text. "
        f"Lines: the edges of the bands. Darkest: forgotten and undamaged. Audit seed {run.audit.seed}."
    )
    told = "; ".join(
        f"{name} {percent(x.values[name])} and {percent(y.values[name])} ({run.audit.audits[name].verdict})"
        for name in shown
    )
    alt = (
        f"Points for {len(shown)} models: right answer's share on forgotten facts, and on {what}. {told}. Twins: "
        f"{percent(float(np.mean(across[: len(golds)])))} on the forgotten; their bands end at "
        f"{percent(x.band.edge)} and {percent(y.band.edge)}."
    )
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script_for

    raise SystemExit(script_for(open_facts, "figures.facts.tradeoff", draw))
