"""How a model is drawn, the same in every figure: a colour of its role, and a marker and a line of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

from figures.style import CONTROL, EDITED, GOLD, ORIGINAL, UNTRAINED

CONTROL_MARKS = ("s", "^", "v", "P", "X", "<", ">", "p", "h", "d")
CONTROL_LINES: tuple[tuple[float, ...], ...] = ((5, 2), (1, 1.5), (5, 1.5, 1, 1.5), (8, 2, 2, 2), (3, 1, 1, 1, 1, 1))


@dataclass(frozen=True)
class Look:
    """How one model is drawn in every figure.

    Attributes:
        colour: Of its role.
        marker: Tells controls apart, which share a colour.
        dashes: On and off lengths in points; empty for a solid line.
        label: For legends.
    """

    colour: str
    marker: str
    dashes: tuple[float, ...]
    label: str

    @property
    def line(self) -> tuple[float, tuple[float, ...]] | str:
        """The dashes as matplotlib wants them."""
        return (0, self.dashes) if self.dashes else "-"


def looks(models: Sequence[str], golds: Sequence[str] = ()) -> dict[str, Look]:
    """Assign every model its colour, marker and line by role.

    Args:
        models: Names of models, in the order in which controls take their markers.
        golds: Which of them are gold.

    Returns:
        Looks by name; all golds share one.
    """
    fixed = {
        "original": Look(ORIGINAL, "D", (), "original"),
        "edited": Look(EDITED, "o", (), "edited"),
        "untrained": Look(UNTRAINED, "x", (2, 2), "untrained"),
    }
    out: dict[str, Look] = {}
    controls = 0
    for name in models:
        if name in golds:
            out[name] = Look(GOLD, ".", (), "gold")
        elif name in fixed:
            out[name] = fixed[name]
        else:
            marker = CONTROL_MARKS[controls % len(CONTROL_MARKS)]
            out[name] = Look(CONTROL, marker, CONTROL_LINES[controls % len(CONTROL_LINES)], name)
            controls += 1
    return out
