"""The whole run in one picture: where the facts lay, what the model says now, what auditors see."""

import numpy as np
from matplotlib.axes import Axes

from figures.bands import distances, forest, ordered
from figures.facts.artefacts import FORGOTTEN_SHARE, KEPT_SHARE, FactRun, open_facts
from figures.facts.mask_layers import allowed_and_changed, weight_counts
from figures.facts.survival import dots
from figures.overview import WIDE, head, judged, under_banner
from figures.style import EDITED, GOLD, INK, ORIGINAL, Drawing, beside, canvas, finish, stacked, styled
from figures.words import percent, plural

TITLE = "Facts located, edited, audited: the run in one picture"
MOST_AUDITORS = 13
MOST_RELATIONS = 12
CROWDED = 150
LETTERS = 18
EDGE = "band's edge"


def _says(axes: Axes, run: FactRun) -> dict[str, dict[str, float]]:
    groups = {FORGOTTEN_SHARE: run.briefly, KEPT_SHARE: "kept facts"}
    found = {groups[m.auditor]: m for m in run.audit.measurements if m.auditor in groups}
    told: dict[str, dict[str, float]] = {}
    for at, (words, m) in enumerate(found.items()):
        twins = [m.values[name] for name in run.audit.golds]
        values = {"original": m.values["original"], "edited": m.values["edited"]}
        if m.role == "behaviour":
            values["twins"] = float(np.mean(twins))
        told[words] = values
        for turn, (name, colour) in enumerate(zip(values, (ORIGINAL, EDITED, GOLD), strict=False)):
            x = at + 0.27 * (turn - (len(values) - 1) / 2)
            axes.bar(x, values[name], width=0.24, color=colour, label=name if at == 0 else None)
            if name == "twins":
                axes.plot([x, x], [min(twins), max(twins)], color=INK, lw=1)
            top = max(twins) if name == "twins" else values[name]
            text = axes.text(x, top + 0.025, percent(values[name]).rstrip("%"), ha="center", va="bottom", size=7.5)
            text.set_bbox({"facecolor": "white", "alpha": 0.85, "lw": 0, "boxstyle": "square,pad=0.05"})
        if m.band is not None:
            axes.plot([at - 0.43, at + 0.43], [m.band.edge] * 2, color=GOLD, lw=1.4, ls=(0, (3, 1.5)), zorder=2.5)
    axes.set_xticks(range(len(found)), list(found), size=9)
    axes.set_ylim(0, 1.14)
    axes.set_yticks([0, 0.5, 1], ["0", "50%", "100%"])
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("right answer's share")
    axes.plot([], [], color=GOLD, lw=1.4, ls=(0, (3, 1.5)), label=EDGE)
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i] == EDGE)
    axes.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="lower left", bbox_to_anchor=(-0.02, 0.98),
        ncols=4, handlelength=1.2, columnspacing=1.2, borderpad=0,
    )  # fmt: skip
    return told


def _auditors(axes: Axes, run: FactRun) -> int:
    report = run.audit
    far = distances(report, "edited")
    counted = [m for m in ordered(report) if m.counted]
    kept = sorted(counted, key=lambda m: -far.get(m.auditor, 0.0))[:MOST_AUDITORS]
    rows = [m for m in counted if m in kept]
    forest(axes, report, rows, {name: run.models[name] for name in ("edited", "original")}, size=8, reasons=False)
    axes.set_xlabel("twins' sd from their mean", size=8.5)
    ends = axes.get_xlim()
    if max(ends[1], -ends[0]) > CROWDED:
        axes.set_xticks([tick for tick in axes.get_xticks() if abs(tick) in {0, 10, 1000}])
    axes.tick_params(axis="y", pad=7)
    axes.text(0.0, 1.01, "inside the band", transform=axes.transAxes, size=8, color="#9A6B00", va="bottom")
    axes.text(1.0, 1.01, "unlike a twin  →", transform=axes.transAxes, size=8, ha="right", va="bottom")
    return len(counted) - len(rows)


@styled
def draw(run: FactRun) -> Drawing:
    """Draw the story of a run on facts for a reader who has not read the text.

    Args:
        run: With pictures and audit.

    Returns:
        The verdict in words above four numbered panels.
    """
    report, audit = run.audit, judged(run)
    survival, counts = run.words.survival, weight_counts(run)
    changed = int(counts.changed.sum())
    relations = len(survival.relations[:MOST_RELATIONS])
    low = 0.23 * max(relations, 8) + 1.1

    figure = canvas(height=3.4 + low, width=WIDE)
    body = under_banner(figure, audit, 2.8 + low)
    upper, lower = stacked(body, [2.8, low])
    masked, says = beside(upper, [1.1, 1])
    left, seen = beside(lower, [1, 1.1])

    head(masked, "1  Where it was allowed to change, and did")
    bars = masked.subplots()
    allowed_and_changed(bars, counts)
    bars.set_xlabel("block", size=8.5)
    bars.set_title(f"{changed:,} of {run.total:,} weights changed ({percent(changed / run.total)})", size=8.5, pad=18)
    bars.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=2, handlelength=1.2, borderpad=0)
    head(says, "2  What the model answers")
    told = _says(says.subplots(), run)
    head(left, "3  What is left of each relation")
    axes = left.subplots()
    dots(axes, survival, MOST_RELATIONS, 8, LETTERS)
    axes.set_xlabel("right answer's share", size=8.5)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.02, 0.99), ncols=3, handletextpad=0.2, columnspacing=0.8, borderpad=0,
        handlelength=1.4,
    )  # fmt: skip
    head(seen, "4  What the auditors see")
    left_out = _auditors(seen.subplots(), run)

    n = {m.auditor: m.examples for m in report.measurements}
    asked = [f"{n[FORGOTTEN_SHARE]:,} facts about {run.forgotten}"] if FORGOTTEN_SHARE in n else []
    asked += [f"{n[a]:,} {a.rpartition(', ')[2]}" for a in (KEPT_SHARE,) if a in n]
    caption = (
        f"n = {', '.join(asked)}, none of them shown to the method, asked with held-out prompts; "
        f"{plural(len(report.golds), 'twin')}: subjects that never existed, asked of the original. Whisker: twins' min "
        f"to max. Run seed {run.seed}, audit seed {report.seed}. Shown: auditors that can tell the original from twins"
        + (f", without the {left_out} in which the edited model is nearest to them." if left_out else ".")
    )
    caption += f" Panel 3: n = {sum(survival.facts):,}, those that the method was shown among them."
    hidden = len(survival.relations) - relations
    caption += f" {plural(hidden, 'smaller relation')} left out." if hidden else ""
    alt = (
        f"{audit.sentence} {changed:,} of {run.total:,} weights were changed. Right answer's share "
        + "; ".join(
            f"on {what}: " + ", ".join(f"{m} {percent(v)}" for m, v in values.items()) for what, values in told.items()
        )
        + "."
    )
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script_for

    raise SystemExit(script_for(open_facts, "figures.facts.overview", draw))
