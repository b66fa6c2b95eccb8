"""Where the edit was allowed, matrix by matrix, and where it changed weights."""

from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter

from figures.facts.artefacts import FactRun, open_facts
from figures.facts.words import in_block_order, place
from figures.style import EDITED, PALE, SEQUENTIAL, Drawing, canvas, finish, styled
from figures.words import percent

TITLE = "Where the edit was allowed, and where it changed weights"
ELSEWHERE = "elsewhere"
NARROWEST = 10.0


@dataclass(frozen=True)
class Counts:
    """Weights by matrix and block; the last column is what belongs to no block, where anything of it is meant.

    Attributes:
        matrices: Names of the rows.
        columns: Block numbers as text, maybe followed by "elsewhere".
        size: [matrices, columns]: weights there; 0 where there is no such matrix among the candidates.
        inside: Those inside the mask.
        changed: Those that the edit changed.
    """

    matrices: list[str]
    columns: list[str]
    size: np.ndarray
    inside: np.ndarray
    changed: np.ndarray

    @property
    def allowed_by_column(self) -> np.ndarray:
        """Share of each column's weights that is inside the mask; 0 for a column without candidates."""
        return self.inside.sum(0) / np.maximum(1, self.size.sum(0))


def weight_counts(run: FactRun) -> Counts:
    """Count allowed and changed weights.

    Args:
        run: With pictures.

    Returns:
        The counts.
    """
    touched = run.words.touched
    places = {name: place(name) for name in touched}
    outside = [name for name, (block, _) in places.items() if block is None]
    matrices = in_block_order(matrix for block, matrix in places.values() if block is not None)
    matrices += in_block_order(places[name][1] for name in outside)
    blocks = max((block for block, _ in places.values() if block is not None), default=-1) + 1
    columns = [*map(str, range(blocks)), *([ELSEWHERE] if outside else [])]
    table = np.zeros((3, len(matrices), len(columns)))
    for name, (block, matrix) in places.items():
        column = len(columns) - 1 if block is None else block
        one = touched[name]
        table[:, matrices.index(matrix), column] += (one.size, one.inside, one.changed)
    return Counts(matrices, columns, *table)


def allowed_and_changed(axes: Axes, counts: Counts) -> None:
    """Draw a wide pale bar of the allowed weights and a narrow one of the changed weights for every block.

    Args:
        axes: The panel.
        counts: From `weight_counts`.
    """
    x = range(len(counts.columns))
    axes.bar(x, counts.inside.sum(0), color="#BDBDBD", width=0.86, label="inside the mask")
    axes.bar(x, counts.changed.sum(0), color=EDITED, width=0.5, label="changed")
    block_ticks(axes, counts.columns)
    axes.yaxis.set_major_formatter(FuncFormatter(short_count))
    axes.grid(axis="y")


def short_count(value: float, _: object = None) -> str:
    """Write a count for an axis.

    Args:
        value: The count.

    Returns:
        E.g. "0", "900", "25k" or "1.5M".
    """
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value / 1e3:.3g}k" if abs(value) >= 1e3 else f"{value:g}"


def block_ticks(axes: Axes, columns: list[str]) -> None:
    """Number the blocks on the x axis, not too densely.

    Args:
        axes: The panel.
        columns: From `Counts`.
    """
    dense = len(columns) > 20
    ticks = [i for i, name in enumerate(columns) if not dense or not name.isdigit() or int(name) % 5 == 0]
    axes.set_xticks(ticks, ["else" if columns[i] == ELSEWHERE else columns[i] for i in ticks])
    axes.set_xlim(-0.6, len(columns) - 0.4)


@styled
def draw(run: FactRun) -> Drawing:
    """Draw the share of each matrix inside the mask, and how many weights of each block changed.

    Args:
        run: With pictures.

    Returns:
        A map of matrices x blocks on a logarithmic scale, above bars of counts.
    """
    counts = weight_counts(run)
    shares = counts.inside / np.maximum(1, counts.size)
    positive = shares[shares > 0]
    high = float(positive.max()) if positive.size else 1.0
    low = min(float(positive.min()), high / NARROWEST) if positive.size else high / NARROWEST

    figure = canvas(height=0.24 * len(counts.matrices) + 3.0)
    upper, lower = figure.subplots(2, 1, height_ratios=[0.24 * len(counts.matrices) + 0.5, 2.0])
    colours = matplotlib.colormaps[SEQUENTIAL].with_extremes(bad=PALE)
    norm = LogNorm(low, high)
    image = upper.imshow(np.ma.masked_equal(shares, 0), cmap=colours, norm=norm, aspect="auto")
    upper.set_yticks(range(len(counts.matrices)), counts.matrices, size=8.5)
    block_ticks(upper, counts.columns)
    upper.tick_params(length=0)
    upper.spines[["left", "bottom"]].set_visible(False)
    upper.set_title("share of each matrix inside the mask")
    bar = figure.colorbar(image, ax=upper, aspect=8, pad=0.01, fraction=0.06)
    ticks = sorted({low, float(np.sqrt(low * high)), high})
    bar.set_ticks(ticks, labels=[percent(tick) for tick in ticks])
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    allowed_and_changed(lower, counts)
    lower.set_title("weights of each block")
    lower.set_xlabel("block")
    lower.set_ylabel("weights")
    lower.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderpad=0, handlelength=1.2)

    inside, changed = int(counts.inside.sum()), int(counts.changed.sum())
    caption = (
        f"Inside the mask: {inside:,} of the model's n = {run.total:,} weights ({percent(inside / run.total)}); the "
        f"edit changed {changed:,} ({percent(changed / run.total)} of the model), all others are bit-identical. "
        f"Grey cells: nothing is allowed, or no such matrix was a candidate. Run seed {run.seed}; blocks are counted "
        "from 0."
    )
    row, column = np.unravel_index(int(shares.argmax()), shares.shape)
    busiest = int(counts.changed.sum(0).argmax())
    alt = (
        f"Map of the share of {len(counts.matrices)} kinds of matrices in {len(counts.columns)} blocks inside the "
        f"mask, densest in {counts.matrices[row]} of block {counts.columns[column]} ({percent(shares[row, column])}); "
        f"below, bars of {inside:,} allowed and {changed:,} changed weights, most changes in block "
        f"{counts.columns[busiest]} ({int(counts.changed.sum(0)[busiest]):,})."
    )
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script_for

    raise SystemExit(script_for(open_facts, "figures.facts.mask_layers", draw))
