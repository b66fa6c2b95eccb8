"""Where every auditor puts every model: distance from the twins, in their own standard deviations."""

from matplotlib.artist import Artist
from matplotlib.axes import Axes

from analysis.audit.report import Measurement
from figures.bands import ROLES, forest, ordered
from figures.facts.artefacts import FactRun, open_facts
from figures.style import FAINT, GOLD, INK, Drawing, canvas, finish, styled
from figures.words import plural

TITLE = "Is it inside the band of twins that never existed?"
AXIS = "distance from the twins' mean, in twins' sd  (right: tells the model from one that never knew)"


def _notes(axes: Axes, lines: list[Measurement | str], aucs: dict[str, float]) -> None:
    for row, line in enumerate(lines):
        if isinstance(line, str):
            continue
        auc = f"AUC {aucs[line.auditor]:.2f}" if line.auditor in aucs else ""
        why = "" if line.counted else "does not part planted facts" if auc and "AUC" in line.why_not else "no power"
        if not line.counted and line.why_not.startswith("no control"):
            why = "no control"
        text = auc if line.counted else ", ".join(part for part in (f"not counted: {why}", auc) if part)
        axes.text(
            1.01, row, text, transform=axes.get_yaxis_transform(), va="center", size=7.5,
            color=INK if line.counted else FAINT,
        )  # fmt: skip


@styled
def draw(run: FactRun) -> Drawing:
    """Draw all auditors' distances of original, edited and control models from the twins, with the bands' edges.

    Args:
        run: With audit.

    Returns:
        One forest plot, grouped by what the auditors look at; auditors without a say are grey, with the reason; at the
        right how well each parts planted facts from facts never planted.
    """
    report = run.audit
    shown = dict(run.models)
    rows = ordered(report)
    lines: list[Measurement | str] = []
    for role, words in ROLES.items():
        mine = [m for m in rows if m.role == role]
        lines += [words, *mine] if mine else []
    aucs = {one.auditor: one.auc for one in report.calibration}

    figure = canvas(height=0.225 * len(lines) + 1.15)
    axes = figure.subplots()
    forest(axes, report, lines, shown, reasons=False)
    _notes(axes, lines, aucs)
    axes.set_xlabel(AXIS)
    axes.tick_params(axis="y", pad=7)
    handles: list[Artist] = [
        axes.plot([], [], look.marker, color=look.colour, ms=6, label=f"{name}: {report.audits[name].verdict}")[0]
        for name, look in shown.items()
    ]
    handles.append(axes.fill_between([], [], color=GOLD, alpha=0.4, lw=0, label="inside the twins' band"))
    figure.legend(handles=handles, loc="outside upper left", ncols=4)

    counted = sum(m.counted for m in rows)
    sizes = sorted({m.examples for m in rows})
    n = " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1])))
    attacked = min((m.band.n for m in rows if m.band and m.role != "damage"), default=len(report.golds))
    some = f" ({attacked} of them attacked)" if attacked < len(report.golds) else ""
    caption = (
        f"{plural(len(rows), 'auditor')}, {counted} of them counted; {plural(len(report.golds), 'twin')}{some}: "
        "subjects that never existed, asked of the original (for what must stay: the original, moved as a moment's "
        "tuning on other text moves it). The band's edge is a prediction interval for one more of them, its level "
        f"shared by the counted auditors (5% together). n = {n} facts or texts an auditor, seed {report.seed}. "
        "Arrowheads: beyond the axis."
    )
    if aucs:
        caption += " AUC: how well the auditor parts facts planted into the model from facts never planted."
    verdicts = "; ".join(f"{name}: {report.audits[name].verdict}" for name in shown)
    edited = report.audits.get("edited")
    outside = [f.auditor for f in edited.findings if f.counted and not f.inside] if edited else []
    alt = f"Forest plot of {len(rows)} auditors against a band of {len(report.golds)} twins. Verdicts: {verdicts}."
    alt += f" The edited model is outside the band for: {', '.join(outside)}." if outside else ""
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script_for

    raise SystemExit(script_for(open_facts, "figures.facts.fact_bands", draw))
