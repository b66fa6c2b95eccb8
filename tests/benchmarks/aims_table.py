"""A quantity held against its aims, and the Markdown table of many."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

HEAD = ("what", "n", "aim", "original", "edited", "twins", "reached")
Unit = Literal["", "%", "x", "points", "s"]
Reached = Literal["beyond", "must", "no", "not measured", "no aim"]


@dataclass(frozen=True)
class Row:
    """One quantity.

    Attributes:
        what: In words.
        n: On how much it was measured.
        value: What is held against the aim; None where it was not measured.
        must: The aim; None where there is none.
        beyond: The aim beyond it.
        most: Whether the aims are the most allowed, or else the least.
        unit: Of the value and the aims.
        span: Within which the value may lie: 95% of draws of as many facts with replacement, or of the seeds; empty
            where nothing was drawn.
        original: The same of the original, or what the value compares the edited model with.
        edited: Of the edited model.
        twins: Of the original asked about each twin.
        twins_value: Mean of the twins, in the value's unit.
        side_unit: Unit of `original`, `edited` and `twins`.
        note: What else a reader should know.
    """

    what: str
    n: str
    value: float | None
    must: float | None = None
    beyond: float | None = None
    most: bool = True
    unit: Unit = "%"
    span: tuple[float, ...] = ()
    original: float | None = None
    edited: float | None = None
    twins: tuple[float, ...] = ()
    twins_value: float | None = None
    side_unit: Unit = ""
    note: str = ""

    def reaches(self, value: float | None) -> Reached:
        """Which aim a value reaches."""
        if value is None:
            return "not measured"
        if self.must is None:
            return "no aim"
        sign = 1 if self.most else -1
        if self.beyond is not None and sign * value <= sign * self.beyond:
            return "beyond"
        return "must" if sign * value <= sign * self.must else "no"

    @property
    def reached(self) -> Reached:
        """Which aim the edited model reaches."""
        return self.reaches(self.value)

    @property
    def told(self) -> dict[str, Any]:
        """The row as a JSON object."""
        return {**asdict(self), "reached": self.reached, "reached_by_twins": self.reaches(self.twins_value)}


def written(value: float | None, unit: Unit) -> str:
    """Put a value into words."""
    if value is None:
        return "-"
    if unit == "points":
        return f"{100 * value:+.1f} points"
    if unit == "x":
        return f"{value:.3f}".rstrip("0").rstrip(".") + "x"
    return f"{100 * value:.3g}%" if unit == "%" else f"{value:.3g}{' s' if unit == 's' else ''}"


def cells(row: Row) -> list[str]:
    """Put a row into words, in the order of `HEAD`."""
    sign = "<=" if row.most else ">="
    aim = f"{sign} {written(row.must, row.unit)}, beyond {sign} {written(row.beyond, row.unit)}"
    twins = "-"
    if row.twins:
        twins = written(sum(row.twins) / len(row.twins), row.side_unit)
        twins += f" ({written(min(row.twins), row.side_unit)} to {written(max(row.twins), row.side_unit)}, "
        twins += f"{len(row.twins)} twins)"
        if row.unit != row.side_unit:
            twins += f" = {written(row.twins_value, row.unit)}"
    reached: str = row.reached
    if row.value is not None:
        reached += f": {written(row.value, row.unit)}"
    elif row.note:
        reached += f" ({row.note})"
    if row.span:
        reached += f" ({' to '.join(written(one, row.unit) for one in row.span)})"
    if row.reaches(row.twins_value) == "no":
        reached += "; nor do the twins reach it" if row.reached == "no" else "; the twins don't reach it"
    sides = [written(side, row.side_unit) for side in (row.original, row.edited)]
    return [row.what, row.n, "-" if row.must is None else aim, *sides, twins, reached]


def table(found: Sequence[Row]) -> str:
    """Make a Markdown table, with the notes below it."""
    lines = ["| " + " | ".join(line) + " |" for line in (HEAD, ["---"] * len(HEAD), *map(cells, found))]
    notes = [f"- {row.what}: {row.note}." for row in found if row.note and row.value is not None]
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"
