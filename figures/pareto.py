"""Forgetting against keeping over several seeds: every compared method, where it might change, and the controls."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.artist import Artist
from pydantic import ValidationError

from analysis.errors import UserError
from figures.artefacts import Missing, existing
from figures.labels import Label, write_labels
from figures.looks import CONTROL_MARKS
from figures.style import (
    CONTROL,
    EDITED,
    FAINT,
    GOLD,
    ORIGINAL,
    SMALL_SIZE,
    Drawing,
    canvas,
    finish,
    shares,
    styled,
    wrap,
)
from figures.words import percent
from unlearn.table import NEVER_KNEW, TWINS_MEAN, Comparison, Row, counts

TITLE = "Forgetting against keeping: the methods side by side"
FILE = "comparison.json"
FACT_AXES = ("right answer, facts held out", "right answer, kept facts")
PROBE = "5-shot probe, hidden "
THIN = "1234+x|_"
LINE = 0.2
"""Inches that a line of the legend takes."""
LONGEST = 2.4
"""Inches of a line of a name in the legend."""
CLASS_AXES = ("accuracy on the forgotten", "accuracy on the rest")
MEANINGS = {EDITED: "may change what was located", FAINT: "may change everything", CONTROL: "control"}
DEEP = 0.15
"""Rows that keep so much less than the middle one are named in the caption instead of drawn."""


@dataclass(frozen=True)
class Compared:
    """A folder of a comparison.

    Attributes:
        folder: Where it is.
        found: What its `comparison.json` says.
    """

    folder: Path
    found: Comparison


def open_comparison(folder: Path) -> Compared:
    """Open the folder of a comparison.

    Args:
        folder: E.g. runs/compare-beatles.

    Returns:
        The comparison.

    Raises:
        Missing: There is no comparison in it.
        UserError: It is damaged.
    """
    path = existing(folder) / FILE
    if not path.is_file():
        raise Missing(f"{folder} has no {FILE}; make it with `yesterday compare`.")
    try:
        return Compared(folder, Comparison.model_validate_json(path.read_text(encoding="utf-8")))
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged; delete it and give the same `yesterday compare` again.") from error


def _axes(found: Comparison) -> tuple[str, str]:
    # What should be lost, and what should be kept. Of a class every cheat loses the answers, so a probe is better.
    measured = found.rows[0].mean
    if all(auditor in measured for auditor in FACT_AXES):
        return FACT_AXES
    deepest = max((auditor for auditor in measured if auditor.startswith(PROBE)), default=CLASS_AXES[0])
    return deepest, CLASS_AXES[1]


def _colour(row: Row) -> str:
    if row.name in NEVER_KNEW:
        return GOLD
    if row.name == "original":
        return ORIGINAL
    if row.where in {"", "all"}:
        return CONTROL if row.where == "" else FAINT
    return CONTROL if row.control else EDITED


def _marks(rows: Sequence[Row]) -> dict[str, str]:
    # One mark for each name, or dots (with numbers, see below) where there are more names than shapes; the two fixed
    # ones are those of all other figures.
    names = [name for name in dict.fromkeys(row.name for row in rows) if name != "original" and name not in NEVER_KNEW]
    shapes = (*CONTROL_MARKS, "o", "8", "H", "*", *THIN)
    marks = dict(zip(names, shapes, strict=False)) if len(names) <= len(shapes) else dict.fromkeys(names, "o")
    return marks | {"original": "D"} | dict.fromkeys(NEVER_KNEW, ".")


@styled
def draw(run: Compared) -> Drawing:
    """Draw every row of a comparison between what it should lose and what it must not.

    Args:
        run: The comparison.

    Returns:
        A point per row with the standard deviation over seeds; what lies far below everything else is only named.
    """
    found = run.found
    pair = _axes(found)
    rows = [row for row in found.rows if all(auditor in row.mean for auditor in pair)]
    kept = sorted(row.mean[pair[1]] for row in rows)
    floor = kept[len(kept) // 2] - DEEP
    shown = [row for row in rows if row.mean[pair[1]] >= floor]
    below = [row for row in rows if row.mean[pair[1]] < floor]
    marks = _marks(rows)
    dots = [name for name, mark in marks.items() if mark == "o"]
    numbers = {name: str(i) for i, name in enumerate(dots, 1)} if len(dots) > 1 else {}

    used = {_colour(row) for row in rows}
    figure = canvas(height=4.6)
    said = {
        name: wrap(figure, f"{numbers[name]}  {name}" if name in numbers else name, SMALL_SIZE, LONGEST)
        for name in marks
    }
    figure.set_figheight(max(figure.get_figheight(), LINE * (sum(map(len, said.values())) + len(used) + 1)))
    axes = figure.subplots()
    for row in reversed(shown):
        x, y = (row.mean[auditor] for auditor in pair)
        colour, mark = _colour(row), marks[row.name]
        axes.errorbar(
            x,
            y,
            xerr=row.sd[pair[0]],
            yerr=row.sd[pair[1]],
            fmt="none",
            ecolor=colour,
            elinewidth=0.7,
            alpha=0.2 if numbers else 0.45,
        )
        thin = mark in THIN
        edge, line = (colour, 1.2) if thin else ("white", 0.5)
        axes.plot(x, y, marker=mark, ls="none", color=colour, ms=12 if mark == "." else 7, mec=edge, mew=line)
    fixed = {row.name: _colour(row) for row in rows if row.name in NEVER_KNEW | {"original"}}
    handles: list[Artist] = [
        axes.plot(
            [],
            [],
            marker=mark,
            color=fixed.get(name, "#555555"),
            ms=10 if mark == "." else 6,
            ls="none",
            label="\n".join(said[name]),
        )[0]
        for name, mark in marks.items()
        if any(row.name == name for row in rows)
    ]
    handles += [
        axes.plot([], [], "s", color=colour, ms=8, ls="none", label=words)[0]
        for colour, words in MEANINGS.items()
        if colour in used
    ]
    axes.set_xlabel(f"{pair[0]}   (left: forgotten)")
    axes.set_ylabel(f"{pair[1]}   (up: kept)")
    shares(axes)
    figure.legend(handles=handles, loc="outside right upper", ncols=1, handletextpad=0.4)
    if numbers:
        named = [row for row in shown if row.name in numbers]
        labels = [Label(row.mean[pair[0]], row.mean[pair[1]], numbers[row.name], _colour(row)) for row in named]
        others = [(row.mean[pair[0]], row.mean[pair[1]]) for row in shown if row not in named]
        write_labels(figure, axes, labels, others)

    def told(row: Row) -> str:
        where = f" ({row.where})" if row.where else ""
        return f"{row.name}{where} {percent(row.mean[pair[0]])} and {percent(row.mean[pair[1]])}"

    never = "twins" if any(row.name == TWINS_MEAN for row in rows) else "golds"
    moved = " (upwards: of the original, moved by a moment's tuning on other text)" if never == "twins" else ""
    caption = (
        f"{found.subject}: means over {counts(found)}, {found.golds} {never} each; bars: standard deviation, "
        f"for the {never} among themselves{moved}. Forgotten is what lies as far left as the {never}; further left is "
        "no better."
    )
    if below:
        caption += f" Below the axis: {'; '.join(map(told, below))}."
    alt = f"Points for {len(rows)} rows, {pair[0]} against {pair[1]}. {'; '.join(map(told, rows))}."
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script_for

    raise SystemExit(script_for(open_comparison, "figures.pareto", draw))
