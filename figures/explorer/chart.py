"""A small line chart as inline SVG, which takes the page's colours and stays readable on a phone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDE, HIGH = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 42
STEPS = 4
ROUND = (1, 2, 4, 6, 8, 10)


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        name: A class in the family's style sheet, which has its colour, e.g. "original".
        values: One for each place on the horizontal axis.
    """

    name: str
    values: Sequence[float]


def rounded_up(value: float) -> float:
    """Find a round end for an axis of four steps.

    Args:
        value: What must have room, not negative.

    Returns:
        A round number of at least that; 1 for 0.
    """
    if value <= 0:
        return 1.0
    decade = 10 ** math.floor(math.log10(value))
    return next(one * decade for one in ROUND if one * decade >= value * (1 - 1e-9))


def chart(
    places: Sequence[float], curves: Sequence[Curve], along: str, alt: str, write: Callable[[float], str],
    ticks: Sequence[float], span: tuple[float, float], steps: int = STEPS, mark: tuple[float, float] | None = None,
) -> str:  # fmt: skip
    """Draw a chart.

    Args:
        places: Along the horizontal axis, rising, at least two.
        curves: What to draw.
        along: Name of the horizontal axis.
        alt: The chart in words.
        write: Writes a value for the vertical axis.
        ticks: Places to be named on the horizontal axis.
        span: Lowest and highest value on the vertical axis, which may be turned upside down.
        steps: Between the lines of the grid.
        mark: A place and a value to be ringed.

    Returns:
        An SVG element; text is escaped.
    """
    low, high = span

    def x(place: float) -> float:
        return LEFT + (place - places[0]) / (places[-1] - places[0]) * (WIDE - LEFT - RIGHT)

    def y(value: float) -> float:
        return HIGH - BOTTOM - (value - low) / (high - low) * (HIGH - TOP - BOTTOM)

    parts = []
    for line in range(steps + 1):
        value = low + (high - low) * line / steps
        parts += [
            f'<line class="grid" x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>',
            f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{escape(write(value))}</text>',
        ]
    parts += [
        f'<text x="{x(tick):.1f}" y="{HIGH - BOTTOM + 17}" text-anchor="middle">{tick:g}</text>' for tick in ticks
    ]
    parts.append(f'<text x="{(LEFT + WIDE - RIGHT) / 2}" y="{HIGH - 6}" text-anchor="middle">{escape(along)}</text>')
    for curve in curves:
        points = [f"{x(place):.1f},{y(value):.1f}" for place, value in zip(places, curve.values, strict=True)]
        dots = "".join(f'<circle cx="{a}" cy="{b}" r="2.6"/>' for a, b in (point.split(",") for point in points))
        parts.append(f'<g class="{escape(curve.name)}"><polyline points="{" ".join(points)}"/>{dots}</g>')
    if mark:
        place, value = mark
        parts.append(
            f'<line class="mark" x1="{x(place):.1f}" x2="{x(place):.1f}" y1="{TOP}" y2="{HIGH - BOTTOM}"/>'
            f'<circle class="mark" cx="{x(place):.1f}" cy="{y(value):.1f}" r="6"/>'
        )
    return (
        f'<svg class="chart" viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{escape(alt)}">{"".join(parts)}</svg>'
    )
