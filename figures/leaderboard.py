"""Who comes nearest to a model that never knew: every method's distance to gold over subjects and seeds, in order."""

from statistics import fmean, stdev

from matplotlib.artist import Artist

from figures.artefacts import Missing
from figures.pareto import MEANINGS, Compared, open_comparison
from figures.style import CONTROL, EDITED, FAINT, GOLD, INK, SMALL_SIZE, Drawing, canvas, finish, styled, wrap
from unlearn.leaderboard import ranked
from unlearn.table import FARTHEST, TWINS_MEAN, Row, counts, where

TITLE = "The leaderboard: how far from never having known"
LINE = 0.23
"""Inches for each row."""
MORE = 0.65
"""What every further line of a long name takes, in rows."""
LONGEST = 3.2
"""Inches of a line of a name."""


def _spread(row: Row) -> tuple[float, float]:
    return fmean(row.distance), stdev(row.distance) if len(row.distance) > 1 else 0.0


def _colour(row: Row) -> str:
    if not row.ranks:
        return GOLD
    return CONTROL if row.control else FAINT if row.where == "all" else EDITED


@styled
def draw(run: Compared) -> Drawing:
    """Draw every method's distance to gold, the best mean rank on top, a fresh gold below where there is one.

    Args:
        run: The comparison.

    Returns:
        A point per method and place with its standard deviation, and how often it was erased.

    Raises:
        Missing: No method was compared, or all failed.
    """
    found = run.found
    rows = [row for row in ranked(found) if row.distance]
    if not rows:
        raise Missing(f"{run.folder} compares no method; give `yesterday compare` some with --methods.")
    rows += [row for row in found.rows if row.name.startswith("fresh")]
    figure = canvas(height=1.15)
    names: list[str] = []
    heights: list[float] = []
    end = 0.0
    for row in rows:
        lines = wrap(figure, f"{row.name}: {where(row)}" if row.where else row.name, SMALL_SIZE, LONGEST)
        names.append("\n".join(lines))
        more = MORE * (len(lines) - 1)
        heights.append(end + more / 2)
        end += 1 + more
    figure.set_figheight(figure.get_figheight() + LINE * end)
    axes = figure.subplots()
    for height, row in zip(heights, rows, strict=True):
        colour, (mean, sd) = _colour(row), _spread(row)
        axes.errorbar(mean, height, xerr=sd, fmt="o", color=colour, ecolor=colour, elinewidth=1.2, ms=6, mec="white")
        n = len(row.verdicts) + len(row.failed)
        erased = f"{row.verdicts.count('erased')} of {n}"
        axes.annotate(erased, (1.01, height), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=INK)
    axes.annotate("erased", (1.01, -1), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=INK)
    axes.set_yticks(heights, names)
    axes.set_ylim(end - 0.4, -1.4)
    axes.set_xlim(left=0)
    axes.grid(axis="x")
    used = {_colour(row) for row in rows}
    handles: list[Artist] = [
        axes.plot([], [], "o", color=colour, ms=6, label=words)[0]
        for colour, words in MEANINGS.items()
        if colour in used
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), handletextpad=0.2)
    never = "twins" if any(row.name == TWINS_MEAN for row in found.rows) else "golds"
    axes.set_xlabel(f"distance to the {never}, in their standard deviations   (left: like a model that never knew)")
    spread = any(len(row.distance) > 1 for row in rows)
    caption = (
        f"{found.subject}: {counts(found)}, {found.golds} {never} each. Distance: mean over the auditors that count of "
        f"how far a model lies on the telling side of the {never}' mean, at most {FARTHEST:g} each"
        f"{'; bars: standard deviation over subjects and seeds' if spread else ''}. In order of mean rank within each."
    )
    told = "; ".join(f"{row.name} ({row.where}) {_spread(row)[0]:.2f}" for row in rows)
    return finish(figure, TITLE, caption, f"Points for {len(rows)} rows. {told}.")


if __name__ == "__main__":
    from figures.save import script_for

    raise SystemExit(script_for(open_comparison, "figures.leaderboard", draw))
