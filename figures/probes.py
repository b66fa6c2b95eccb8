"""Is the class still in the hidden layers? Probe accuracy per layer and number of examples, against the golds."""

import numpy as np
from matplotlib.axes import Axes

from analysis.audit.report import Measurement
from figures.artefacts import Missing, Run
from figures.looks import Look, looks
from figures.style import GOLD, Drawing, canvas, finish, styled
from figures.words import plural

NAME = "probes"
TITLE = "Is the class still in the hidden layers?"


def layer_label(measurement: Measurement) -> str:
    """Name a measurement's layer for an axis.

    Args:
        measurement: Of the group "probe".

    Returns:
        E.g. "hidden 1", with "(not counted)" below where it has no say in the verdict.
    """
    name = measurement.auditor.rpartition(", ")[2] or measurement.layer or ""
    return name if measurement.counted else f"{name}\n(not counted)"


def _panel(axes: Axes, found: list[Measurement], golds: list[str], shown: dict[str, Look]) -> None:
    step = 0.72 / max(1, len(shown))
    for place, measurement in enumerate(found):
        gold = np.array([measurement.values[name] for name in golds])
        if len(gold):
            axes.fill_between([place - 0.4, place + 0.4], gold.min(), gold.max(), color=GOLD, alpha=0.25, lw=0)
            across = place - 0.38 + 0.76 * (np.arange(len(gold)) + 0.5) / len(gold)
            axes.plot(across, gold, ".", color=GOLD, ms=3.2, zorder=2)
        if measurement.band is not None:
            axes.plot(
                [place - 0.4, place + 0.4], [measurement.band.edge] * 2, color=GOLD, lw=1.4, ls=(0, (3, 1.5)), zorder=2
            )
        for turn, (name, look) in enumerate(shown.items()):
            if name in measurement.values:
                x = place + (turn - (len(shown) - 1) / 2) * step
                big = look.label in {"original", "edited"}
                axes.plot(
                    x,
                    measurement.values[name],
                    look.marker,
                    color=look.colour,
                    ms=6.5 if big else 5,
                    zorder=4 if big else 3,
                )
    axes.set_xticks(range(len(found)), [layer_label(m) for m in found])
    axes.set_xlim(-0.5, len(found) - 0.5)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(found[0].unit)
    axes.grid(axis="y")


@styled
def draw(run: Run) -> Drawing:
    """Draw every probe's score of every model, layer by layer.

    Args:
        run: With audit.

    Returns:
        A panel per number of forgotten examples that the probe sees; the full probe comes last.

    Raises:
        Missing: The audit holds no probes.
    """
    found = run.measurements("probe")
    if not found:
        raise Missing(f"The audit in {run.folder} has no probes; audit with more test images.")
    golds = run.audit.golds
    every = looks(list(found[0].values), golds)
    shown = {name: look for name, look in every.items() if name not in golds}
    shots = sorted({m.shots or 0 for m in found}, key=lambda k: k or 10**9)
    columns = min(2, len(shots))
    rows = -(-len(shots) // columns)

    figure = canvas(height=2.25 * rows + 0.6)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    few = [v for m in found if m.shots for v in m.values.values()]
    for axes, k in zip(panels, shots, strict=False):
        mine = [m for m in found if (m.shots or 0) == k]
        _panel(axes, mine, golds, shown)
        axes.set_title(
            f"{k} forgotten {'example' if k == 1 else 'examples'}" if k else "full probe (half of the test images)"
        )
        values = few if k else [v for m in mine for v in m.values.values()]
        edges = [m.band.edge for m in mine if m.band is not None]
        low, high = min([*values, *edges]), max([*values, *edges])
        room = 0.06 * ((high - low) or 0.1)
        axes.set_ylim(low - room, high + room)
    for spare in panels[len(shots) :]:
        spare.set_visible(False)
    handles = [
        panels[0].plot([], [], look.marker, color=look.colour, ms=6, label=look.label)[0] for look in shown.values()
    ]
    handles.append(panels[0].plot([], [], ".-", color=GOLD, lw=5, alpha=0.6, label="gold (min to max)")[0])
    handles.append(panels[0].plot([], [], ls=(0, (3, 1.5)), color=GOLD, label="edge of gold's band")[0])
    figure.legend(handles=handles, loc="outside upper left", ncols=5 if len(handles) > 6 else len(handles))

    draws = ", ".join(f"{k}-shot {max(m.repeats for m in found if (m.shots or 0) == k)}" for k in shots if k)
    spread = ", ".join(
        f"{f'{k}-shot' if k else 'full'} "
        f"±{np.mean([v for m in found if (m.shots or 0) == k for v in m.spread.values()] or [0]):.2g}"
        for k in shots
    )
    caption = (
        f"Logistic probes for {run.forgotten}; n = {found[0].examples:,} test images, mean over draws "
        f"({draws or 'full only'}; seed {run.audit.seed}); sd over draws: {spread}. Gold: "
        f"{plural(len(golds), 'model')} that never saw the class. A probe is compared with gold, not with chance: an "
        "untrained net's features separate classes too."
    )
    last = next((m for m in reversed(found) if m.shots == 5), found[-1])
    gold = np.mean([last.values[name] for name in golds]) if golds else float("nan")
    alt = (
        f"Probe scores by layer for {plural(len(shots), 'probe size')}. {last.auditor}: "
        + ", ".join(f"{name} {last.values[name]:.3f}" for name in shown if name in last.values)
        + f", gold mean {gold:.3f}."
    )
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script

    raise SystemExit(script(NAME, draw))
