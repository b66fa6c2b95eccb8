"""Shown some facts again, does a model know the others? Curves of every model against the twins'."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.audit.report import Measurement
from figures.artefacts import Missing
from figures.facts.artefacts import FactRun, open_facts
from figures.style import FAINT, GOLD, Drawing, canvas, finish, styled
from figures.words import percent, plural

TITLE = "Shown some of the facts again, does it know the others?"


def _curves(axes: Axes, measurement: Measurement, run: FactRun) -> None:
    x = np.array(measurement.curve_x)
    twins = [np.array(measurement.curves[name]) for name in run.audit.golds if name in measurement.curves]
    if twins:
        axes.fill_between(x, np.min(twins, 0), np.max(twins, 0), color=GOLD, alpha=0.28, lw=0)
        for curve in twins:
            axes.plot(x, curve, color=GOLD, lw=0.7, alpha=0.9)
        mean = float(np.mean([measurement.values[name] for name in run.audit.golds if name in measurement.values]))
        axes.plot([], [], color=GOLD, lw=5, alpha=0.6, label=f"twins, mean: {percent(mean)}")
    for name, look in run.models.items():
        if name not in measurement.curves:
            continue
        big = name in {"original", "edited"}
        axes.plot(
            x, measurement.curves[name], color=look.colour, ls=look.line, lw=2.2 if big else 1.3, marker=look.marker,
            ms=6 if big else 4.5, zorder=4 if big else 3, clip_on=False,
            label=f"{name}: {percent(measurement.values[name])}",
        )  # fmt: skip
    if measurement.band is not None:
        axes.axhline(measurement.band.edge, color=GOLD, lw=1.2, ls=(0, (4, 2)), label="edge of the twins' band")


@styled
def draw(run: FactRun) -> Drawing:
    """Draw the right answer's share on facts that were not shown, while every model is fine-tuned on others.

    Args:
        run: With audit.

    Returns:
        One panel; twins as thin lines.

    Raises:
        Missing: The audit holds no relearning curves.
    """
    found = [m for m in run.measurements("relearn") if len(m.curve_x) > 1 and m.curves]
    if not found:
        raise Missing(f"The audit in {run.folder} has no relearning curves; audit with more steps.")
    m = found[0]
    shown = [name for name in run.models if name in m.curves]

    figure = canvas(height=3.5)
    axes = figure.subplots()
    _curves(axes, m, run)
    axes.set_xlim(m.curve_x[0], m.curve_x[-1])
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
    axes.set_xlabel("fine-tuning steps")
    axes.set_ylabel("right answer's share")
    axes.grid(axis="y")
    if not m.counted:
        axes.set_title("not counted", loc="right", size=8, color=FAINT)
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.03, 1.0), borderpad=0, borderaxespad=0, title="strongest moment",
        alignment="left",
    )  # fmt: skip

    twins = [m.values[name] for name in run.audit.golds if name in m.values]
    caption = (
        f"Every model is fine-tuned on some facts about {run.forgotten} and asked about others (n = {m.examples:,}, "
        "answers that were not shown); the curve of its strongest learning rate. Twins: the original, taught some "
        f"facts about one of {plural(len(twins), 'subject')} that never existed and asked the others; thin "
        f"lines, min to max shaded. Above the band's edge: the facts were still there. Audit seed {run.audit.seed}."
    )
    alt = (
        f"Curves of {m.auditor}. Right answer's share at the strongest moment: "
        + ", ".join(f"{name} {percent(m.values[name])}" for name in shown)
        + f"; twins {percent(min(twins))} to {percent(max(twins))}"
        + (f", edge of their band {percent(m.band.edge)}." if m.band else ".")
    )
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script_for

    raise SystemExit(script_for(open_facts, "figures.facts.relearn", draw))
