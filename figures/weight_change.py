"""What the edit changed: how many weights of each layer, and by how much."""

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from figures.artefacts import NOT_WEIGHTS, Run
from figures.mask_map import draw_shares
from figures.style import EDITED, FAINT, Drawing, canvas, finish, styled
from figures.words import percent, plural

NAME = "weight_change"
TITLE = "What the edit changed"
BINS = 61


def changed_counts(run: Run) -> dict[str, tuple[int, int]]:
    """Count changed weights.

    Args:
        run: With edit and original model.

    Returns:
        (changed, all) by parameter name, in the order of the network.
    """
    counts = run.edit.counts()
    return {name: (counts.get(name, 0), weight.numel()) for name, weight in run.weights.items()}


def _by_layer(counts: dict[str, tuple[int, int]], most: int = 16) -> dict[str, tuple[int, int]]:
    if len(counts) <= most:
        return counts
    out: dict[str, tuple[int, int]] = {}
    for name, (changed, whole) in counts.items():
        layer = name.rpartition(".")[0] or name
        before = out.get(layer, (0, 0))
        out[layer] = (before[0] + changed, before[1] + whole)
    return out


def _limit(moves: np.ndarray) -> tuple[float, int]:
    """Choose where the axis ends: at the largest move, unless a few stand far outside.

    Args:
        moves: Finite changes.

    Returns:
        The end of the axis, and how many changes lie outside.
    """
    if not moves.size:
        return 1.0, 0
    sizes = np.abs(moves)
    usual = 1.5 * float(np.quantile(sizes, 0.995))
    if sizes.max() <= 4 * usual or not usual:
        return float(sizes.max()) or 1.0, 0
    return usual, int((sizes > usual).sum())


@styled
def draw(run: Run) -> Drawing:
    """Draw the distribution of weight changes and the share of each layer that changed.

    Args:
        run: With edit and original model.

    Returns:
        A histogram with logarithmic counts, centred on zero, beside bars by layer.
    """
    edit = run.edit
    moves = [
        (c.new.double() - c.old.double()).numpy()
        for name, c in edit.changes.items()
        if name in run.weights and not name.endswith(NOT_WEIGHTS)
    ]
    delta = np.concatenate(moves) if moves else np.empty(0)
    finite = delta[np.isfinite(delta)]
    counts = changed_counts(run)
    buffers = [name for name in edit.changes if name not in run.weights]

    bars = _by_layer(counts)
    figure = canvas(height=max(2.7, 0.25 * len(bars) + 0.6))
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
    limit, outside = _limit(finite)
    if finite.size:
        left.hist(finite, bins=np.linspace(-limit, limit, BINS), color=EDITED, alpha=0.9, lw=0)
        left.set_yscale("log")
        left.set_ylim(bottom=0.7)
        left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    else:
        left.text(0.5, 0.5, "no weight changed", transform=left.transAxes, ha="center", color=FAINT)
        left.set_yticks([])
    left.axvline(0, color=FAINT, lw=0.8)
    left.set_xlim(-limit * 1.03, limit * 1.03)
    left.xaxis.set_major_locator(MaxNLocator(5))
    left.set_xlabel("new value − old value")
    left.set_ylabel("weights (log scale)")
    left.set_title("how far they moved")
    left.grid(axis="y")
    draw_shares(right, bars)
    right.set_title("share of each layer that changed")

    total, changed = run.total, int(delta.size)
    rms = float(np.sqrt((finite**2).mean())) if finite.size else 0.0
    caption = (
        f"{changed:,} of n = {total:,} weights changed ({percent(changed / total)}), by {rms:.3g} (root mean square), "
        f"at most {np.abs(finite).max() if finite.size else 0:.3g}; all others are bit-identical. One edit, run seed "
        f"{run.seed}."
    )
    if buffers:
        caption += f" {plural(len(buffers), 'running statistic')} changed as well."
    if outside:
        caption += f" Left out of the histogram: {plural(outside, 'change')} beyond ±{limit:.2g}."
    if finite.size < delta.size:
        caption += f" Not finite and not drawn: {plural(delta.size - finite.size, 'change')}."
    most = max(counts, key=lambda n: counts[n][0] / max(1, counts[n][1]))
    alt = (
        f"Histogram of {changed:,} weight changes with root mean square {rms:.3g}, and bars of the changed share of "
        f"each layer, largest in {most} ({percent(counts[most][0] / max(1, counts[most][1]))})."
    )
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script

    raise SystemExit(script(NAME, draw))
