"""What every layer would say: the logit lens on one prompt, before and after the edit."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import FuncFormatter

from analysis.errors import UserError
from figures.facts.artefacts import FactRun, open_facts
from figures.facts.words import token, visible
from figures.style import EDITED, ORIGINAL, SEQUENTIAL, WIDTH, Drawing, canvas, finish, readable_on, styled
from figures.words import percent

TITLE = "What every layer would say: the logit lens before and after"
MOST_ROWS = 16
MOST_COLUMNS = 12
SIDE_BY_SIDE = 6
ROW_INCHES, LOWEST = 0.17, 1.3
SIZE = 7.0
LETTER_INCHES = 0.061
MARGIN = 1.35


def chosen_layers(layers: int) -> list[int]:
    """Choose rows that leave room for text; the last layer is always among them.

    Args:
        layers: How many there are.

    Returns:
        Their numbers, rising.
    """
    step = -(-layers // MOST_ROWS)
    return list(range(layers - 1, -1, -step))[::-1]


def layer_name(layer: int) -> str:
    """Name a row.

    Args:
        layer: 0 for what enters the first block, i for what block i - 1 gives out.

    Returns:
        E.g. "block 11".
    """
    return "embedding" if layer == 0 else f"block {layer - 1}"


def _grid(axes: Axes, said: list[list[str]], values: np.ndarray, norm: Normalize, letters: int) -> None:
    colours = matplotlib.colormaps[SEQUENTIAL]
    axes.imshow(values, cmap=colours, norm=norm, aspect="auto", origin="lower")
    for (row, column), value in np.ndenumerate(values):
        axes.text(
            column, row, token(said[row][column], letters), size=SIZE, ha="center", va="center",
            color=readable_on(colours(norm(value))),
        )  # fmt: skip
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


@styled
def draw(run: FactRun) -> Drawing:
    """Draw the likeliest next token by layer and position, of the original and the edited model.

    Args:
        run: With pictures.

    Returns:
        Two grids on one scale of probability.

    Raises:
        UserError: Words and numbers don't fit each other.
    """
    lens = run.words.lens
    grids = {"original": lens.original, "edited": lens.edited}
    values = {name: run.picture(f"lens.{name}") for name in grids}
    for name, grid in grids.items():
        if values[name].shape != (len(grid), len(lens.tokens)):
            raise UserError(run.complaint("pictures.safetensors", f"lens.{name} doesn't fit pictures.json"))
    rows = chosen_layers(len(lens.original))
    start = max(0, len(lens.tokens) - MOST_COLUMNS)
    shown = lens.tokens[start:]
    beside = len(shown) <= SIDE_BY_SIDE
    width = (WIDTH / 2 if beside else WIDTH) - MARGIN
    letters = max(4, int(width / len(shown) / LETTER_INCHES))
    norm = Normalize(0, 1)

    tall = max(LOWEST, ROW_INCHES * len(rows))
    figure = canvas(height=tall + 0.75 if beside else 2 * tall + 1.1)
    panels = figure.subplots(1, 2, sharey=True) if beside else figure.subplots(2, 1, sharex=True)
    for axes, (name, grid), colour in zip(panels, grids.items(), (ORIGINAL, EDITED), strict=True):
        _grid(axes, [grid[row][start:] for row in rows], values[name][np.ix_(rows, range(start, len(lens.tokens)))],
              norm, letters)  # fmt: skip
        axes.set_title(name, color=colour, weight="bold")
        axes.set_yticks(range(len(rows)), [layer_name(row) for row in rows], size=8)
        axes.set_xticks(range(len(shown)), [token(text, letters) for text in shown], size=SIZE + 0.8)
    for axes in panels if beside else panels[-1:]:
        axes.set_xlabel("after this token of the prompt")
    bar = figure.colorbar(ScalarMappable(norm, SEQUENTIAL), ax=panels, aspect=30, pad=0.01, fraction=0.05)
    bar.set_label("probability")
    bar.set_ticks([0, 0.5, 1])
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    bar.outline.set_visible(False)

    prompt = visible("".join(lens.tokens))
    layers = len(lens.original)
    every = "All layers" if len(rows) == layers else f"Every {'2nd' if layers <= 2 * MOST_ROWS else 'few'} layer"
    caption = (
        f'The likeliest next token if the model stopped after a block (n = 1 prompt: "{prompt}"), shaded by its '
        f"probability. {every} of {layers}, the last one being the model's answer; blocks are counted from 0. Long "
        f"tokens are cut. Run seed {run.seed}."
    )
    if start:
        caption += f" The first {start} tokens are left out."
    told = "; ".join(
        f'{name} "{token(grid[-1][-1])}" with {percent(float(values[name][-1, -1]))}' for name, grid in grids.items()
    )
    same = np.mean([a == b for one, two in zip(lens.original, lens.edited, strict=True)
                    for a, b in zip(one, two, strict=True)])  # fmt: skip
    alt = (
        f'Two grids of the likeliest token by layer and position for the prompt "{prompt}". After the last token the '
        f"models say: {told}. {percent(float(same))} of all cells say the same before and after."
    )
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script_for

    raise SystemExit(script_for(open_facts, "figures.facts.lens", draw))
