"""Writes names beside points so that no name stands on another name or on a point, as far as there is room."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import BboxBase

from figures.style import FAINT

RADIUS = 5.0
"""Points around a place that its marker takes."""
NEAR, FAR, FARTHEST = 2.0, 13.0, 26.0
"""Points between a marker and its name; from FAR on a line joins them."""
SIDES = ((1, 0), (0, 1), (1, 1), (-1, 0), (0, -1), (-1, 1), (1, -1), (-1, -1))
DIAGONAL = 0.7


@dataclass(frozen=True)
class Label:
    """A name and the point that it belongs to.

    Attributes:
        x: In the axes' data.
        y: Likewise.
        text: The name.
        colour: Of the name.
    """

    x: float
    y: float
    text: str
    colour: str


def _covered(box: np.ndarray, others: np.ndarray) -> int:
    # Square pixels of a box (left, bottom, right, top) on other boxes; whole ones, since the layout's last bits differ.
    if not len(others):
        return 0
    wide = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    high = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    return round(float((wide.clip(0) * high.clip(0)).sum()))


def _best_place(
    place: np.ndarray, half: np.ndarray, pixels: float, frame: BboxBase, taken: np.ndarray, marks: np.ndarray
) -> tuple[np.ndarray, float]:
    # Where a name's middle goes, from its point and in pixels, and at which gap: the first free spot, else the least
    # covered one. `half` is half of the name's width and height.
    found = []
    for gap, side in itertools.product((NEAR, FAR, FARTHEST), SIDES):
        away = (RADIUS + gap) * (DIAGONAL if all(side) else 1)
        offset = np.array(side) * (half + away * pixels)
        box = np.concatenate([place + offset - half, place + offset + half])
        outside = max(0.0, frame.x0 - box[0], frame.y0 - box[1], box[2] - frame.x1, box[3] - frame.y1)
        cost = _covered(box, taken) + _covered(box, marks) + round(outside * 100)
        if not cost:
            return offset, gap
        found.append((cost, offset, gap))
    return min(found, key=lambda one: one[0])[1:]


def write_labels(
    figure: Figure, axes: Axes, labels: Sequence[Label], others: Sequence[tuple[float, float]] = (), size: float = 8
) -> None:
    """Write names: to the right of the point where that is free, else on another side, else further off with a line.

    Args:
        figure: Laid out, but for title and caption.
        axes: Its panel; the limits are final.
        labels: What to write, the most important first.
        others: Points without a name that should stay visible too.
        size: Of the letters, in points.
    """
    figure.draw_without_rendering()
    renderer, pixels = FigureCanvasAgg(figure).get_renderer(), figure.dpi / 72
    places = axes.transData.transform([*((one.x, one.y) for one in labels), *others])
    marks = np.concatenate([places - RADIUS * pixels, places + RADIUS * pixels], axis=1)
    frame = axes.get_window_extent(renderer)
    taken = np.empty((0, 4))
    for place, label in zip(places, labels, strict=False):
        written = axes.annotate(
            label.text, (label.x, label.y), (0, 0), textcoords="offset points", fontsize=size, color=label.colour,
            ha="center", va="center",
        )  # fmt: skip
        extent = written.get_window_extent(renderer)
        half = np.array([extent.width, extent.height]) / 2
        offset, gap = _best_place(place, half, pixels, frame, taken, marks)
        written.set_position(tuple(offset / pixels))
        taken = np.concatenate([taken, [np.concatenate([place + offset - half, place + offset + half])]])
        if gap > NEAR:
            end = np.clip(np.zeros(2), offset - half, offset + half) / pixels
            axes.annotate(
                "", (label.x, label.y), tuple(end), textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": FAINT, "lw": 0.6, "shrinkA": 0, "shrinkB": RADIUS},
            )  # fmt: skip
