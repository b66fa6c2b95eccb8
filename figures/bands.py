"""Where every auditor puts every model: distance from the golds, in their own standard deviations."""

import math
from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from analysis.audit.report import AuditReport, Band, Measurement
from figures.artefacts import Run
from figures.looks import Look, looks
from figures.style import FAINT, GOLD, INK, PALE, Drawing, canvas, finish, styled
from figures.words import plural

NAME = "bands"
TITLE = "Is it inside the band of models that never knew?"
LINEAR = 2.0
FARTHEST = 1000.0
ROLES = {"behaviour": "what it does", "inner": "what is inside", "damage": "what must stay"}


def reach(band: Band) -> float:
    """Compute how far the band's edge lies from the gold mean.

    Args:
        band: A one-sided prediction interval for one more gold.

    Returns:
        In gold standard deviations: t * sqrt(1 + 1/n), on whatever scale the band was made.
    """
    from scipy import stats

    return float(stats.t.ppf(1 - band.level, band.n - 1)) * math.sqrt(1 + 1 / band.n)


def distances(report: AuditReport, model: str) -> dict[str, float]:
    """Look up how far a model lies from gold.

    Args:
        report: The audit.
        model: A model that was audited.

    Returns:
        Distances in gold sd by auditor; positive on the telling side.
    """
    return {finding.auditor: finding.distance for finding in report.audits[model].findings}


def ordered(report: AuditReport) -> list[Measurement]:
    """Sort the measurements for reading: by role, those that count before those that don't.

    Args:
        report: The audit.

    Returns:
        The measurements.
    """
    roles = list(ROLES)
    return sorted(report.measurements, key=lambda m: (roles.index(m.role), not m.counted))


def forest(
    axes: Axes,
    report: AuditReport,
    rows: Sequence[Measurement | str],
    shown: dict[str, Look],
    size: float = 8.5,
    reasons: bool = True,
) -> None:
    """Draw one row per auditor, one mark per model, the golds' band behind.

    Args:
        axes: The panel.
        report: The audit.
        rows: Measurements, and headings between them, from top to bottom.
        shown: Looks of the models to draw, by name.
        size: Of the auditors' names in points.
        reasons: Whether to say at the right why an auditor doesn't count.
    """
    found = {name: distances(report, name) for name in shown if name in report.audits}
    auditors = {place: row for place, row in enumerate(rows) if isinstance(row, Measurement)}
    told = {row.auditor for row in auditors.values()}
    finite = [d for by in found.values() for auditor, d in by.items() if auditor in told and math.isfinite(d)]
    edges = [reach(row.band) for row in auditors.values() if row.band is not None]
    far = min(FARTHEST, max([*finite, *edges, 5.0])) * 1.5
    near = -min(FARTHEST, max([-d for d in finite if d < 0] + [2.0])) * 1.5
    axes.set_xscale("symlog", linthresh=LINEAR, linscale=0.7)
    axes.set_xlim(near, far)
    for place, measurement in auditors.items():
        strength = 1.0 if measurement.counted else 0.35
        if measurement.band is not None:
            edge = reach(measurement.band)
            axes.barh(place, edge - near, left=near, height=0.8, color=GOLD, alpha=0.28 * strength, lw=0)
            axes.plot([edge, edge], [place - 0.4, place + 0.4], color=GOLD, lw=2, alpha=strength, solid_capstyle="butt")
        for name, look in reversed(list(shown.items())):
            value = found.get(name, {}).get(measurement.auditor)
            if value is None or math.isnan(value):
                continue
            beyond = value > far or value < near
            x = min(max(value, near), far)
            big = look.label in {"original", "edited"}
            marker = (">" if value > 0 else "<") if beyond else look.marker
            axes.plot(
                x,
                place,
                marker,
                color=look.colour,
                ms=6.5 if big else 5.2,
                alpha=strength,
                zorder=5 if big else 4,
                clip_on=False,
                mew=1.3 if marker == "x" else 0.4,
                mec=look.colour if marker == "x" else "white",
            )
        if reasons and not measurement.counted:
            why = measurement.why_not.partition(":")[0]
            axes.text(
                1.01,
                place,
                f"not counted: {why}",
                transform=axes.get_yaxis_transform(),
                va="center",
                size=7.5,
                color=FAINT,
            )
    axes.axvline(0, color=INK, lw=0.7, zorder=1)
    axes.set_yticks(range(len(rows)), [row if isinstance(row, str) else row.auditor for row in rows], size=size)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        if isinstance(row, str):
            label.set_fontweight("bold")
        else:
            label.set_color(INK if row.counted else FAINT)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    steps = (2, 5, 10, 30, 100, 300, 1000)
    sides = [*(-s for s in reversed(steps) if -s >= near), 0, *(s for s in steps if s <= far)]
    axes.set_xticks([
        t for t in sides if abs(t) in {0, 2, 10, 100, 1000} or (t == 5 and far < 60) or (t == 30 and far < 300)
    ])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=PALE)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("distance from the gold mean, in gold sd  (right: tells the model from gold)")


@styled
def draw(run: Run) -> Drawing:
    """Draw all auditors' distances of original, edited and control models from gold, with the bands' edges.

    Args:
        run: With audit.

    Returns:
        One forest plot, grouped by what the auditors look at; auditors without a say are grey, with the reason.
    """
    report = run.audit
    names = [name for name in report.audits if name not in report.golds]
    order = sorted(names, key=lambda name: ("original", "edited").index(name) if name in {"original", "edited"} else 2)
    shown = looks(order, report.golds)
    rows = ordered(report)

    lines: list[Measurement | str] = []
    for role, words in ROLES.items():
        mine = [m for m in rows if m.role == role]
        lines += [words, *mine] if mine else []

    figure = canvas(height=0.225 * len(lines) + 1.15)
    axes = figure.subplots()
    forest(axes, report, lines, shown)
    handles: list[Artist] = [
        axes.plot([], [], look.marker, color=look.colour, ms=6, label=f"{look.label}: {report.audits[name].verdict}")[0]
        for name, look in shown.items()
    ]
    handles.append(axes.fill_between([], [], color=GOLD, alpha=0.4, lw=0, label="inside gold's band"))
    figure.legend(handles=handles, loc="outside upper left", ncols=3)

    counted = sum(m.counted for m in rows)
    images = sorted({m.examples for m in rows})
    caption = (
        f"{plural(len(rows), 'auditor')}, {counted} of them counted; gold: {plural(len(report.golds), 'model')} with "
        f"other seeds that never saw {run.forgotten}. The band's edge is a prediction interval for one more gold, its "
        "level shared by the counted auditors (5% together). n = "
        f"{' to '.join(f'{i:,}' for i in dict.fromkeys((images[0], images[-1])))} images an auditor, seed "
        f"{report.seed}. Arrowheads: beyond the axis."
    )
    verdicts = "; ".join(f"{name}: {report.audits[name].verdict}" for name in order)
    edited = report.audits.get("edited")
    outside = [f.auditor for f in edited.findings if f.counted and not f.inside] if edited else []
    alt = (
        f"Forest plot of {len(rows)} auditors against a band of {len(report.golds)} gold models. Verdicts: {verdicts}."
    )
    alt += f" The edited model is outside the band for: {', '.join(outside)}." if outside else ""
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script

    raise SystemExit(script(NAME, draw))
