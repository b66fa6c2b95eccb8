"""Does a better causal locator give a better erasure? Causal gain against the distance that is left, for each place."""

from statistics import fmean

from figures.artefacts import Missing
from figures.labels import Label, write_labels
from figures.pareto import Compared, open_comparison
from figures.style import CONTROL, EDITED, Drawing, canvas, finish, styled
from figures.words import plural
from unlearn.table import TWINS_MEAN, Row, counts

TITLE = "Does a better locator erase better?"
FEWEST = 4
"""Measures for which a rank correlation says anything."""
ROOM = 0.12
"""For names at the left and right edges."""


def _left(row: Row) -> float:
    # Mean over the seeds, as on the leaderboard: auditors outside are too few to rank places by.
    return fmean(row.distance)


@styled
def draw(run: Compared) -> Drawing:
    """Draw, for the method that was tried at most places, how its places locate and erase.

    Args:
        run: The comparison.

    Returns:
        A point per measure, the random control, and Spearman's rank correlation over the measures.

    Raises:
        Missing: No method was tried at four or more located places.
    """
    from scipy import stats

    found = run.found
    tried = [row for row in found.rows if row.gain is not None and row.distance and not row.failed]
    places_of = {row.name: sum(other.name == row.name for other in tried) for row in tried}
    name = max(places_of, key=lambda one: places_of[one], default="")
    rows = [row for row in tried if row.name == name]
    measured = [row for row in rows if not row.control]
    if len(measured) < FEWEST:
        raise Missing(
            f"{run.folder} compares no method at {FEWEST} or more places; give `yesterday compare` more measures with "
            "--locate."
        )
    correlation = stats.spearmanr([row.gain for row in measured], [_left(row) for row in measured])
    rho, p = float(correlation.statistic), float(correlation.pvalue)

    figure = canvas(height=4.2)
    axes = figure.subplots()
    shares = {row.where.partition(" ")[0] for row in rows}
    never = "twins" if any(row.name == TWINS_MEAN for row in found.rows) else "golds"
    labels = [
        Label(row.gain or 0.0, _left(row), row.where.partition(" ")[2], EDITED if row in measured else CONTROL)
        for row in sorted(rows, key=lambda one: (one.gain or 0.0, _left(one)))
    ]
    for one in labels:
        axes.plot(one.x, one.y, "o", color=one.colour, ms=8, mec="white")
    axes.margins(x=ROOM)
    high = max(one.y for one in labels)
    axes.set_ylim(0, 1.1 * high)
    axes.set_xlabel("causal gain over random weights when set to zero   (right: locates better)")
    axes.set_ylabel(f"distance to {never}, in their sd   (down: erases better)")
    write_labels(figure, axes, labels)
    told = "; ".join(
        f"{row.where} gain {row.gain:.2f}, distance {_left(row):.2f}, {row.beyond:.1f} auditors outside" for row in rows
    )
    caption = (
        f"{found.subject}, {name} on {' and '.join(sorted(shares))} of the weights: means over "
        f"{counts(found)}, {found.golds} {never} each. "
        f"Spearman's rank correlation over {plural(len(measured), 'measure')}: {rho:+.2f} (p\u00a0{p:.2f}); a good "
        "locator that erased well would make it negative."
    )
    return finish(figure, TITLE, caption, f"Points for {plural(len(rows), 'place')} of {name}. {told}.")


if __name__ == "__main__":
    from figures.save import script_for

    raise SystemExit(script_for(open_comparison, "figures.places", draw))
