"""Where the class lives: the share of each layer inside the mask, and the first layer's weights as pictures."""

import math
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from figures.artefacts import Run
from figures.style import DIVERGING, EDITED, FAINT, INK, PALE, Drawing, bare, canvas, centred, finish, stacked, styled
from figures.words import percent, plural, shorten, tick_percent

NAME = "mask_map"
TITLE = "Where the class lives: what the mask covers"
MOST_UNITS, ROW = 12, 6
MOST_CHANNELS = 3
MOST_ROWS = 16
CELL_PIXELS = 168
FADED = 0.22
RIM = 0.2
WHOLE = 0.2
"""From this largest share on the axis shows whole layers; below, nothing could be seen there."""


@dataclass(frozen=True)
class Tile:
    """One unit of the first layer, or one of its input channels, as a picture.

    Attributes:
        unit: Its row in the weight.
        channel: Its input channel.
        weights: [height, width].
        inside: Which of them the mask covers, bool [height, width].
    """

    unit: int
    channel: int
    weights: np.ndarray
    inside: np.ndarray


def layer_counts(run: Run) -> dict[str, tuple[int, int]]:
    """Count weights inside the mask.

    Args:
        run: With mask and original model.

    Returns:
        (inside, all) by parameter name, first layer first; by module when there are many parameters.
    """
    bits = run.mask.bits
    counts: dict[str, tuple[int, int]] = {}
    by_module = len(run.weights) > MOST_ROWS
    for name, weight in run.weights.items():
        key = name.rpartition(".")[0] if by_module else name
        inside, whole = counts.get(key, (0, 0))
        counts[key] = (inside + (int(bits[name].sum()) if name in bits else 0), whole + weight.numel())
    return counts


def _round_up(share: float) -> float:
    # To the next of 1, 2, 5, 10 times a power of ten, for the end of an axis.
    power = 10.0 ** math.floor(math.log10(share)) if share > 0 else WHOLE
    return next(round(step * power, 12) for step in (1, 2, 5, 10) if step * power >= share)


def draw_shares(axes: Axes, counts: dict[str, tuple[int, int]], colour: str = EDITED, numbers: bool = True) -> None:
    """Draw a bar per layer: which share of it is meant.

    Args:
        axes: The panel.
        counts: (inside, all) by name, from `layer_counts`.
        colour: Of the bars.
        numbers: Whether to write counts beside the share.
    """
    names = list(counts)
    shares = [inside / whole if whole else 0.0 for inside, whole in counts.values()]
    most = 1.0 if max(shares) >= WHOLE else _round_up(max(shares))
    places = range(len(names))
    if most == 1:
        axes.barh(places, [1.0] * len(names), color=PALE, height=0.62)
    axes.barh(places, shares, color=colour, height=0.62)
    for place, share, (inside, whole) in zip(places, shares, counts.values(), strict=True):
        text = f"{percent(share)}   {inside:,} of {whole:,}" if numbers else percent(share)
        axes.text(most * 1.03, place, text, va="center", ha="left", size=8.5, color=INK if inside else FAINT)
    axes.set_yticks(places, [shorten(name, 24) for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0, most * (1.55 if numbers else 1.2))
    axes.set_xticks([0, most / 2, most], ["0", tick_percent(most / 2), tick_percent(most)])
    axes.spines["bottom"].set_bounds(0, most)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def first_layer(run: Run) -> tuple[str, list[Tile]]:
    """Turn the first layer's weights into pictures, units with most masked weights first.

    Args:
        run: With mask, original model and images of the forgotten class.

    Returns:
        The weight's name and its tiles, unit by unit, at most `MOST_UNITS` units of three channels. A Linear layer over
        pixels is reshaped to the image; any other matrix is one tile, units by inputs.
    """
    name = next(iter([n for n, w in run.weights.items() if w.dim() in {2, 4}]), next(iter(run.weights)))
    weight = run.weights[name].double().numpy()
    found = run.mask.bits.get(name)
    inside = np.zeros(weight.shape, bool) if found is None else found.numpy().astype(bool)
    channels, height, width = run.picture("six.images").shape[1:]
    if weight.ndim == 2 and weight.shape[1] == channels * height * width:
        weight, inside = (x.reshape(-1, channels, height, width) for x in (weight, inside))
    if weight.ndim != 4:
        weight, inside = (x.reshape(1, 1, x.shape[0], -1) for x in (weight, inside))
    per_unit = inside.reshape(len(inside), -1).sum(1)
    loud = np.abs(weight).reshape(len(weight), -1).sum(1)
    units = sorted(range(len(weight)), key=lambda unit: (-per_unit[unit], -loud[unit]))[:MOST_UNITS]
    units = [unit for unit in units if per_unit[unit]] or units
    if ROW < len(units) < MOST_UNITS or not inside.any():
        units = units[:ROW]
    return name, [Tile(u, c, weight[u, c], inside[u, c]) for u in units for c in range(weight.shape[1])[:MOST_CHANNELS]]


def tile_pixels(tile: Tile, norm: Normalize) -> np.ndarray:
    """Paint one tile: masked weights in full colour and outlined, the others faded.

    Args:
        tile: The weights.
        norm: The signed scale.

    Returns:
        RGB [height, width, 3] in [0, 1], each weight several pixels wide.
    """
    colours = matplotlib.colormaps[DIVERGING](norm(tile.weights))[..., :3]
    faded = 1 - FADED * (1 - colours.mean(-1, keepdims=True).repeat(3, -1))
    painted = np.where(tile.inside[..., None], colours, faded)
    size = max(4, CELL_PIXELS // max(tile.weights.shape))
    big = painted.repeat(size, 0).repeat(size, 1)
    rim = max(1, size // 10)
    around = np.pad(tile.inside, 1)
    for down, across in ((0, 1), (2, 1), (1, 0), (1, 2)):
        height, width = tile.inside.shape
        open_side = tile.inside & ~around[down : down + height, across : across + width]
        for row, column in zip(*np.nonzero(open_side), strict=True):
            top, left = row * size + (size - rim) * (down == 2), column * size + (size - rim) * (across == 2)
            big[top : top + (size if down == 1 else rim), left : left + (size if across == 1 else rim)] = RIM
    return big


def draw_tiles(axes: np.ndarray, tiles: list[Tile], norm: Normalize) -> None:
    """Draw tiles into panels, one after another; panels without a tile are hidden.

    Args:
        axes: Array of panels.
        tiles: From `first_layer`.
        norm: The signed scale.
    """
    several = any(tile.channel for tile in tiles)
    for panel in axes.flat:
        panel.set_visible(False)
    for panel, tile in zip(axes.flat, tiles, strict=False):
        panel.set_visible(True)
        panel.imshow(
            tile_pixels(tile, norm), aspect="auto" if max(tile.weights.shape) > 3 * min(tile.weights.shape) else "equal"
        )
        bare(panel)
        channel = f" c{tile.channel}" if several else ""
        panel.set_title(f"unit {tile.unit}{channel}: {int(tile.inside.sum())}", size=8.5, loc="center", pad=2)


@styled
def draw(run: Run) -> Drawing:
    """Draw the mask: shares per layer, and the first layer's most masked units.

    Args:
        run: With mask, original model and pictures.

    Returns:
        Bars on top, tiles below on one signed scale.
    """
    counts = layer_counts(run)
    name, tiles = first_layer(run)
    norm = centred(*[tile.weights for tile in tiles], quantile=0.995)
    columns = min(ROW, len(tiles))
    if tiles and any(tile.channel for tile in tiles):
        columns = ROW if len(tiles) % ROW == 0 else ROW // 2
    rows = -(-len(tiles) // columns)
    tall, small = 0.30 * len(counts) + 0.5, 1.36 * rows + 0.35

    figure = canvas(height=tall + small)
    upper, lower = stacked(figure, [tall, small])
    bars = upper.subplots()
    draw_shares(bars, counts)
    bars.set_title("share of each layer inside the mask")
    axes = lower.subplots(rows, columns, squeeze=False)
    draw_tiles(axes, tiles, norm)
    masked = any(tile.inside.any() for tile in tiles)
    heading = f"{name}: masked weights in colour, the others faded" if masked else f"{name}: no weight is in the mask"
    lower.suptitle(f"   {heading}", size=9.5, ha="left", x=0.0)
    bar = lower.colorbar(ScalarMappable(norm, DIVERGING), ax=axes, shrink=0.8, aspect=25, extend="both", pad=0.01)
    bar.set_label("weight")
    bar.outline.set_visible(False)

    inside = sum(k for k, _ in counts.values())
    units = len({tile.unit for tile in tiles})
    caption = (
        f"The mask covers {inside:,} of n = {run.total:,} weights ({percent(inside / run.total)}); run seed "
        f"{run.seed}. Below: the {plural(units, 'unit')} of {name} with most masked weights, with their number, on one "
        "signed scale centred on zero."
    )
    top = max(counts, key=lambda n: counts[n][0] / max(1, counts[n][1]))
    alt = (
        "Bars of the share of each layer inside the mask: "
        + ", ".join(f"{n} {percent(k / max(1, whole))}" for n, (k, whole) in counts.items())
        + f"; densest in {top}. Below, weights of {units} units of {name} as pictures with masked weights in colour."
    )
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script

    raise SystemExit(script(NAME, draw))
