"""Turns strokes into an image like those of a data set: cropped, scaled, smoothed and centred as its own images are.

MNIST's digits were fitted into 20 x 20 pixels, smoothed, and put into a field of 28 x 28 with their centre of mass at
row and column 14. How large things are, where their middle is, and which value is ground and which is ink, is measured
on the data, so that other sets of dark or light shapes on an even ground can be drawn as well.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

EMPTY = 0.02
"""Ink up to this share counts as none."""
EVEN = 0.1
LEAST_GROUND = 0.5


@dataclass(frozen=True)
class Frame:
    """How a data set's images lie in their field.

    Attributes:
        height: Of the field, in pixels.
        width: Likewise.
        side: Longer side of what is drawn, in pixels; the median over images.
        middle: Row and column of the centre of mass, likewise.
        ground: Value of an empty pixel, as the network takes it.
        ink: Value of a full one.
    """

    height: int
    width: int
    side: int
    middle: tuple[float, float]
    ground: float
    ink: float


def _boxes(inked: torch.Tensor) -> torch.Tensor:
    # [n]: longer side of the bounding box of what is true in each of [n, h, w].
    spans = []
    for axis in (1, 2):
        line = inked.any(axis).long()
        first = line.argmax(1)
        last = line.shape[1] - 1 - line.flip(1).argmax(1)
        spans.append((last - first + 1) * line.any(1))
    return torch.maximum(*spans)


def _centres(ink: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # Rows and columns [n] of the centres of mass of [n, h, w]; the centres of what is empty are not numbers.
    mass = ink.sum((1, 2))
    rows, columns = (torch.arange(length, dtype=ink.dtype) for length in ink.shape[1:])
    return (ink.sum(2) * rows).sum(1) / mass, (ink.sum(1) * columns).sum(1) / mass


def frame_of(images: torch.Tensor) -> Frame | None:
    """Measure how a data set's images lie in their field.

    Args:
        images: [n, channels, height, width], normalised.

    Returns:
        The frame, or None where nobody could draw such images: with colours, or without an even ground.
    """
    if images.shape[1] != 1:
        return None
    pixels = images[:, 0]
    edge = torch.cat([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], 1)
    ground = float(edge.median())
    ink = max(float(pixels.min()), float(pixels.max()), key=lambda value: abs(value - ground))
    if ink == ground:
        return None
    share = (pixels - ground) / (ink - ground)
    if float((share.abs() < EVEN).float().mean()) < LEAST_GROUND:
        return None
    side = int(_boxes(share > EMPTY).median())
    row, column = (float(centres.nanmedian()) for centres in _centres(share.clamp(0, 1)))
    height, width = pixels.shape[1:]
    return Frame(height, width, side, (row, column), ground, ink)


def _shifted(centre: float, middle: float, length: int, room: int) -> int:
    # Where a stretch begins so that its centre of mass is at the middle, without sticking out.
    return max(0, min(room - length, round(middle - centre)))


def as_image(ink: np.ndarray, frame: Frame) -> torch.Tensor | None:
    """Fit a drawing into a data set's frame.

    Args:
        ink: [height, width], 0 to 1, of any size.
        frame: Of the data set.

    Returns:
        [1, 1, height, width] as the network takes it, or None where nothing was drawn.
    """
    rows, columns = (np.flatnonzero((ink > EMPTY).any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    cut = torch.from_numpy(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32))[None, None]
    scale = min(frame.side / max(cut.shape[2:]), frame.height / cut.shape[2], frame.width / cut.shape[3])
    size = [max(1, round(length * scale)) for length in cut.shape[2:]]
    small = functional.interpolate(cut, size, mode="bilinear", antialias=True).clamp(0, 1)[0, 0]
    small = small / small.max()
    room = (frame.height, frame.width)
    centres = [float(centre) for centre in _centres(small[None])]
    top, left = (_shifted(*one) for one in zip(centres, frame.middle, size, room, strict=True))
    field = torch.zeros(1, 1, *room)
    field[0, 0, top : top + size[0], left : left + size[1]] = small
    return frame.ground + field * (frame.ink - frame.ground)
