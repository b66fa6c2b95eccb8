"""How every figure looks: one palette with fixed roles, one diverging map, one way to set title and caption.

Colours are those of Okabe and Ito (2008), which people with any common colour blindness can tell apart; models also
differ by marker or line, so that nothing hangs on colour alone.
"""

import base64
import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox, BboxBase

ORIGINAL = "#0072B2"
EDITED = "#D55E00"
GOLD = "#E69F00"
UNTRAINED = "#7F7F7F"
CONTROL = "#009E73"
FORGOTTEN = "#CC79A7"
RETAINED = "#56B4E9"
INK = "#222222"
FAINT = "#8A8A8A"
PALE = "#E4E4E4"

DIVERGING = "RdBu_r"
SEQUENTIAL = "Blues"

WIDTH = 8.6
DPI = 96
SCALE_PNG = 2
EDGE = 0.12
CAPTION_SIZE = 8.5
TITLE_SIZE = 12.5
SMALL_SIZE = 8.5
"""Of what ticks and legends say."""
LEADING = 1.35
GRID = 5e-4
# Hinting makes the same text a little wider at another resolution.
SAFETY = 1.02

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "xtick.labelsize": SMALL_SIZE,
    "ytick.labelsize": SMALL_SIZE,
    "legend.fontsize": SMALL_SIZE,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": PALE,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.7,
    "lines.markersize": 5.0,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "image.interpolation": "nearest",
    "figure.facecolor": "white",
    "figure.dpi": DPI,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "yesterday",
}

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Drawing:
    """A finished figure with its words; the last line of a notebook's cell shows it.

    Attributes:
        figure: Title, panels and caption; nothing moves any more when it is saved.
        caption: What stands below the panels.
        alt: The figure in words, for those who can't see it.
        title: What stands above the panels.
    """

    figure: Figure
    caption: str
    alt: str
    title: str = ""

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, str], dict[str, Any]]:
        # Jupyter asks for this. The words go along twice: with the picture for those who can't see it, and in its place
        # where none can be shown.
        from figures.save import png_bytes  # which imports this module

        wide, high = (round(side * DPI) for side in self.figure.get_size_inches())
        png = base64.b64encode(png_bytes(self)).decode()
        words = {"width": wide, "height": high, "alt": self.alt}
        return {"image/png": png, "text/plain": self.alt}, {"image/png": words}


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function under this style and leave matplotlib's settings as they were.

    Args:
        function: Draws or saves.

    Returns:
        The function with the same signature.
    """

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(RC):
            return function(*args, **kwargs)

    return inside


def canvas(height: float, width: float = WIDTH) -> Figure:
    """Open an empty figure for panels; `finish` adds the room for title and caption.

    Args:
        height: Of the panels, in inches.
        width: In inches.

    Returns:
        A figure that lays itself out, with an Agg canvas.
    """
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def stacked(figure: Figure | SubFigure, heights: Sequence[float]) -> list[SubFigure]:
    """Divide a figure into parts, one above the other.

    Args:
        figure: What to divide.
        heights: Of the parts, in proportion.

    Returns:
        The parts, top first.
    """
    return list(figure.subfigures(len(heights), 1, height_ratios=list(heights), squeeze=False).flat)


def beside(figure: Figure | SubFigure, widths: Sequence[float]) -> list[SubFigure]:
    """Divide a figure into parts, one beside the other.

    Args:
        figure: What to divide.
        widths: Of the parts, in proportion.

    Returns:
        The parts, left first.
    """
    return list(figure.subfigures(1, len(widths), width_ratios=list(widths), squeeze=False).flat)


def inches(figure: Figure, text: str, size: float, weight: str = "normal") -> float:
    """Measure a line of text as it will be drawn.

    Args:
        figure: Whose renderer measures.
        text: One line.
        size: Of the font in points.
        weight: Of the font.

    Returns:
        Its width in inches.
    """
    canvas_ = figure.canvas
    if not isinstance(canvas_, FigureCanvasAgg):
        canvas_ = FigureCanvasAgg(figure)
    font = FontProperties(family=str(RC["font.family"]), size=size, weight=weight)
    return canvas_.get_renderer().get_text_width_height_descent(text, font, False)[0] / figure.dpi * SAFETY


def wrap(figure: Figure, text: str, size: float, longest: float, weight: str = "normal") -> list[str]:
    """Break text into lines by its drawn width.

    Args:
        figure: Whose renderer measures.
        text: Words separated by blanks; line breaks are kept. A word that is longer than a line, as the name of a
            method with many settings, is broken after its colons.
        size: Of the font in points.
        longest: Of the lines, in inches.
        weight: Of the font.

    Returns:
        The lines.
    """
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            pieces = [word] if inches(figure, word, size, weight) <= longest else re.split(r"(?<=:)", word)
            for i, piece in enumerate(pieces):
                longer = line + (" " if line and i == 0 else "") + piece
                if line and inches(figure, longer, size, weight) > longest:
                    lines.append(line)
                    longer = piece
                line = longer
        lines.append(line)
    return lines


def finish(figure: Figure, title: str, caption: str, alt: str) -> Drawing:
    """Put the title above and the caption below the panels, lay everything out once and freeze it.

    Args:
        figure: From `canvas`, panels drawn.
        title: One line or two.
        caption: With n and seeds; wrapped to the figure's width.
        alt: The figure in words.

    Returns:
        The drawing.
    """
    width, body = figure.get_size_inches()
    inner = width - 2 * EDGE
    head = wrap(figure, title, TITLE_SIZE, inner, "bold")
    foot = wrap(figure, caption, CAPTION_SIZE, inner)
    top = len(head) * TITLE_SIZE * LEADING / 72 + 1.5 * EDGE
    bottom = len(foot) * CAPTION_SIZE * LEADING / 72 + 2 * EDGE
    height = math.ceil((body + top + bottom) * DPI) / DPI
    figure.set_size_inches(width, height)
    place: dict[str, Any] = {"ha": "left", "linespacing": LEADING * 0.86}
    figure.text(
        EDGE / width,
        1 - EDGE / height,
        "\n".join(head),
        size=TITLE_SIZE,
        weight="bold",
        va="top",
        in_layout=False,
        **place,
    )
    figure.text(
        EDGE / width,
        EDGE / height,
        "\n".join(foot),
        size=CAPTION_SIZE,
        color="#444444",
        va="bottom",
        in_layout=False,
        **place,
    )
    side = EDGE / width
    room = (side, bottom / height, 1 - 2 * side, (height - top - bottom) / height)
    layout = figure.get_layout_engine()
    if isinstance(layout, ConstrainedLayoutEngine):
        layout.set(rect=room)
    figure.draw_without_rendering()
    figure.set_layout_engine(None)
    _snap(figure)
    for legend in figure.legends:
        # The layout has made room for an "outside" legend, but places it at the figure's edge, over our title.
        legend.set_bbox_to_anchor(room, transform=figure.transFigure)
        legend.borderaxespad = 0.0
    return Drawing(figure, caption, alt, title)


def _snap(part: Figure | SubFigure) -> None:
    """Round all places, since the layout's solver differs in the last bits from one process to the next."""

    def rounded(box: BboxBase) -> Bbox:
        return Bbox(np.round(box.get_points() / GRID) * GRID)

    for axes in part.axes:
        if axes.figure is part:
            axes.set_position(rounded(axes.get_position(original=True)))
    for text in part.texts:
        x, y = text.get_position()
        text.set_position((round(x / GRID) * GRID, round(y / GRID) * GRID))
    for inner in part.subfigs:
        inner.bbox_relative.set_points(rounded(inner.bbox_relative).get_points())
        _snap(inner)


def centred(*arrays: np.ndarray, quantile: float = 1.0) -> Normalize:
    """Make one signed scale for several maps, centred on zero.

    Args:
        arrays: Everything that is compared; non-finite values are ignored.
        quantile: Share of the absolute values that the scale covers, for maps with a few extreme pixels.

    Returns:
        A norm from -limit to limit.
    """
    flat = np.abs(np.concatenate([np.asarray(array, float).ravel() for array in arrays]))
    flat = flat[np.isfinite(flat)]
    limit = float(np.quantile(flat, quantile)) if flat.size else 0.0
    limit = limit or (float(flat.max()) if flat.size else 0.0) or 1.0
    return Normalize(-limit, limit)


def bare(axes: Axes) -> None:
    """Take away ticks and frame, for pictures.

    Args:
        axes: The panel.
    """
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def shares(axes: Axes) -> None:
    """Write both axes of a panel in percent, with a grid.

    Args:
        axes: The panel; its values are shares, 0 to 1.
    """
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
    axes.grid()


def picture(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Turn a normalised image into something imshow can draw.

    Args:
        image: [channels, height, width].
        low: Value drawn black.
        high: Value drawn white.

    Returns:
        [height, width, 3] in [0, 1]; one channel becomes grey, of more than three the first three are drawn.
    """
    scaled = np.clip((image - low) / ((high - low) or 1.0), 0, 1)
    scaled = np.repeat(scaled[:1], 3, axis=0) if scaled.shape[0] < 3 else scaled[:3]
    return np.moveaxis(scaled, 0, -1)


def readable_on(colour: tuple[float, float, float, float]) -> str:
    """Choose black or white text for a background.

    Args:
        colour: RGBA of the background, 0 to 1.

    Returns:
        A colour name.
    """
    red, green, blue = colour[:3]
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else INK
