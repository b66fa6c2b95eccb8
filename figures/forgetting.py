"""Accuracy while the edit runs: on all test images, on the retained classes, on the forgotten ones."""

from matplotlib.artist import Artist
from matplotlib.axes import Axes

from analysis.audit.report import Measurement
from figures.artefacts import Run
from figures.style import EDITED, GOLD, ORIGINAL, Drawing, canvas, finish, styled
from figures.words import percent, plural

NAME = "forgetting"
TITLE = "Accuracy while the model forgets"
LONG = 100
APART = 3
"""How many times the tick before it the last step must be, so that their labels don't meet."""


def _gold(run: Run, group: str) -> Measurement | None:
    return next(iter(run.measurements(group)), None)


def _golds(run: Run, measurement: Measurement | None) -> list[float]:
    return [measurement.values[name] for name in run.audit.golds] if measurement else []


def _band(axes: Axes, values: list[float]) -> None:
    if values:
        axes.axhspan(min(values), max(values), color=GOLD, alpha=0.35, lw=0)
        axes.axhline(sum(values) / len(values), color=GOLD, lw=1.2)


@styled
def draw(run: Run) -> Drawing:
    """Draw the history of test accuracies beside the level of the gold models.

    Args:
        run: With history and audit.

    Returns:
        Three panels on one scale.
    """
    history = run.history
    retain, forget = _gold(run, "retain accuracy"), _gold(run, "forget accuracy")
    levels = {"the rest": _golds(run, retain), run.briefly: _golds(run, forget)}
    if retain and forget:
        weights = (retain.examples, forget.examples)
        levels["overall"] = [
            (a * weights[0] + b * weights[1]) / sum(weights)
            for a, b in zip(levels["the rest"], levels[run.briefly], strict=True)
        ]
    lines = {"overall": history.overall, "the rest": history.retain, run.briefly: history.forget}

    figure = canvas(height=2.75)
    panels = figure.subplots(1, 3, sharey=True, sharex=True)
    for axes, (what, values) in zip(panels, lines.items(), strict=True):
        _band(axes, levels.get(what, []))
        axes.plot(history.steps, values, color=EDITED, marker="." if len(values) < 40 else "", clip_on=False, zorder=3)
        axes.plot(history.steps[:1], values[:1], "D", color=ORIGINAL, clip_on=False, zorder=4)
        axes.set_title(what)
        axes.set_title(f"{percent(values[0])} → {percent(values[-1])}", loc="right", size=9)
        axes.set_ylim(-0.02, 1.02)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
        axes.grid(axis="y")
        axes.set_xlabel("step of the edit")
    panels[0].set_ylabel("test accuracy")
    if history.steps[-1] >= LONG:
        # Most of the forgetting happens in the first steps.
        panels[0].set_xscale("symlog", linthresh=10, linscale=0.5)
        last = int(history.steps[-1])
        ticks = [0, *(10**k for k in range(1, 9) if 10**k <= last / APART), last]
        panels[0].set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        panels[0].minorticks_off()
    handles: list[Artist] = [
        panels[0].plot([], [], "D", color=ORIGINAL, label="original")[0],
        panels[0].plot([], [], color=EDITED, label="while the edit runs")[0],
        panels[0].fill_between(
            [], [], color=GOLD, alpha=0.5, lw=0, label=f"{plural(len(run.audit.golds), 'gold model')}, min to max"
        ),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3)

    n = (
        f"n = {forget.examples:,} forgotten and {retain.examples:,} retained test images"
        if retain and forget
        else "n not recorded"
    )
    caption = (
        f"Test accuracy after each step recorded, one run of the edit (seed {run.seed}); {n}. Gold: "
        f"{plural(len(run.audit.golds), 'model')} trained with other seeds that never saw {run.forgotten}; their "
        "overall level follows from the other two."
    )
    alt = (
        "Three curves of test accuracy while the edit runs: "
        + "; ".join(
            f"{what} from {percent(values[0])} to {percent(values[-1])}"
            + (f" (gold {percent(sum(levels[what]) / len(levels[what]))})" if levels.get(what) else "")
            for what, values in lines.items()
        )
        + "."
    )
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script

    raise SystemExit(script(NAME, draw))
