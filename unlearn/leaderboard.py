"""The leaderboard of a comparison: who comes nearest to a model that never knew, at what price."""

from collections.abc import Sequence
from statistics import fmean, stdev

from unlearn.table import FARTHEST, NEVER_KNEW, Comparison, Row, counts, where

LOST = ("accuracy on the forgotten", "right answer, facts held out")
KEPT = ("accuracy on the rest", "right answer, kept facts")


def ranked(found: Comparison) -> list[Row]:
    """Order the methods of a comparison.

    Args:
        found: The comparison.

    Returns:
        Its methods at their places, the best mean rank first; references are left out.
    """
    return sorted((row for row in found.rows if row.ranks), key=lambda row: (fmean(row.ranks), row.name, row.where))


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    return f"{fmean(values):.{digits}f} ± {stdev(values) if len(values) > 1 else 0:.{digits}f}"


def leaderboard(found: Comparison) -> str:
    """Write the leaderboard.

    Args:
        found: The comparison.

    Returns:
        A Markdown table with mean, spread, rank, distance to gold and cost; "" where no method was compared.
    """
    rows = ranked(found)
    if not rows:
        return ""
    gold = next(row for row in found.rows if row.name in NEVER_KNEW)
    lost, kept = (next((a for a in names if a in gold.mean), None) for names in (LOST, KEPT))
    head = ["", "method", "may change", "rank", "distance to gold (sd)", "auditors outside", "erased"]
    head += ["left of it", "kept, against gold", "changed", "cost of retraining"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    fresh = [row for row in found.rows if row.name.startswith("fresh")]
    for number, row in enumerate([*rows, *fresh], 1):
        n = len(row.verdicts)
        cells = [str(number) if row.ranks else "", row.name, where(row), _spread(row.ranks, 1)]
        cells += [_spread(row.distance, 2), f"{row.beyond:.1f}" if n else ""]
        cells += [f"{row.verdicts.count('erased')} of {n + len(row.failed)}"]
        cells += [f"{row.mean[lost]:.3f}" if lost in row.mean else ""]
        cells += [f"{row.mean[kept] - gold.mean[kept]:+.3f}" if kept in row.mean else ""]
        cells += [f"{float(f'{100 * row.changed:.2g}'):g}%" if row.changed is not None else ""]
        cells += [f"{row.cost:.2f}" if row.cost is not None else ""]
        lines.append("| " + " | ".join(cells) + " |")
    note = (
        f"{found.subject}: {counts(found)}. Ranked within each subject and seed by distance to gold (mean over "
        f"auditors that count, gold sd on the telling side, at most {FARTHEST:g} each); ± standard deviation."
    )
    return "\n".join([*lines, "", note, ""])
