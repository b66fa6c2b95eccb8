"""The cells of a comparison: a method, where it may edit and how much; and what became of them with one seed."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from analysis.ablation import CausalScore
from analysis.audit.report import AuditReport, Document
from analysis.errors import UserError
from analysis.files import write_text
from unlearn.methods import Method, named, slug
from unlearn.optimize import Diverged

AUDIT, NOTES = "comparison-audit.json", "comparison-cells.json"
NONE, RANDOM, LAYERS, BLOCK = "none", "random", "layers", "block "
OWN_PLACE = re.compile(r"(.+)@([a-z-]+)")


@dataclass(frozen=True)
class Cell:
    """One method at one place.

    Attributes:
        method: Which, settings included.
        place: "none" for every weight, "random", "block N" (as many weights there), or the measure that locates.
        fraction: Share of all weights that may change; None with the place "none".
    """

    method: Method
    place: str
    fraction: float | None

    @property
    def where(self) -> str:
        """The place for people, e.g. "20% damage-contrast"."""
        if self.fraction is None:
            return "all"
        words = {RANDOM: "at random"}.get(self.place, f"in {self.place}" if self.control else self.place)
        return f"{100 * self.fraction:g}% {words}"

    @property
    def control(self) -> bool:
        """Whether nothing located the place."""
        return self.place == RANDOM or self.place.startswith(BLOCK)

    @property
    def key(self) -> str:
        """A name for its stage and file."""
        return slug(
            "-".join([self.method.name, self.place, *([] if self.fraction is None else [f"{self.fraction:g}"])])
        )

    def note(self, facts: Mapping[str, Any], gain: float | None = None) -> "CellNote":
        """Note what became of it.

        Args:
            facts: From `attempt`: "changed" and "seconds", or "failed".
            gain: See `CellNote`.

        Returns:
            The note.
        """
        return CellNote(
            key=self.key,
            name=self.method.name,
            place=self.place,
            where=self.where,
            fraction=self.fraction,
            control=self.control,
            changed=facts.get("changed"),
            seconds=facts.get("seconds"),
            gain=gain,
            failed=str(facts.get("failed", "")),
        )


def own_place(name: str) -> tuple[str, str]:
    """Take the place that stands behind a method's name off it.

    Args:
        name: E.g. "regrow:labels=1@random".

    Returns:
        The name alone, and the place or "".
    """
    match = OWN_PLACE.fullmatch(name)
    return (match[1], match[2]) if match else (name, "")


def cross(
    names: Sequence[str], known: Mapping[str, Method], places: Sequence[str], fractions: Sequence[float]
) -> list[Cell]:
    """Cross methods with places and shares.

    Args:
        names: Of methods, as `unlearn.methods.named` reads them; "regrow@random" has a place of its own instead.
        known: The methods of the family.
        places: See `Cell`.
        fractions: How much each may change; of no matter to the place "none".

    Returns:
        The cells, method by method.
    """
    cells = []
    for name in names:
        spec, own = own_place(name)
        method = named(spec, known)
        cells += [
            Cell(method, place, fraction)
            for place in ([own] if own else places)
            for fraction in ((None,) if place == NONE else fractions)
        ]
    return list({cell.key: cell for cell in cells}.values())


class CellNote(Document):
    """What became of one cell.

    Attributes:
        key: Of the cell; the name of its model in the audit.
        name: Of the method.
        place: See `Cell`.
        where: The place for people.
        fraction: Share that it might change; None for everything.
        control: Whether nothing located the place.
        changed: Share of the weights that it changed; None where it failed.
        seconds: Of the edit, without locating; None where it failed.
        gain: How much better than chance what located it does in the causal check (`ablation.CausalScore`); None
            where that was not checked.
        failed: Why there is no edit; "" where there is one.
    """

    key: str
    name: str
    place: str
    where: str
    fraction: float | None
    control: bool
    changed: float | None
    seconds: float | None
    gain: float | None = None
    failed: str = ""


class SeedNotes(Document):
    """What was noted of all cells of one subject with one seed.

    Attributes:
        subject: Its name.
        seed: Decides everything random.
        never: What the mean of the golds (or twins) is called.
        retraining: Seconds that training one gold took; None where no gold was trained alone.
        cells: One by one.
    """

    subject: str
    seed: int
    never: str
    retraining: float | None
    cells: list[CellNote]

    def save(self, folder: Path) -> None:
        """Write it.

        Args:
            folder: The run folder.
        """
        write_text(folder / NOTES, self.model_dump_json(indent=1))


@dataclass(frozen=True)
class Outcome:
    """One subject with one seed, finished.

    Attributes:
        notes: Of its cells.
        audit: Of their models and the references.
    """

    notes: SeedNotes
    audit: AuditReport

    @classmethod
    def load(cls, folder: Path) -> "Outcome":
        """Read both documents.

        Args:
            folder: The run folder.

        Returns:
            The outcome.

        Raises:
            UserError: It is not there or damaged.
        """
        try:
            return cls(
                SeedNotes.model_validate_json((folder / NOTES).read_text(encoding="utf-8")),
                AuditReport.model_validate_json((folder / AUDIT).read_text(encoding="utf-8")),
            )
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            raise UserError(
                f"{folder} holds no finished comparison; give the same `yesterday compare` again."
            ) from error


def gains(causal: Iterable[CausalScore]) -> dict[str, float]:
    """Say by place how much better than chance it was found.

    Args:
        causal: Of the causal check.

    Returns:
        Gains by measure, and 0 for random places, which gains are counted from.
    """
    return {RANDOM: 0.0} | {score.measure: score.mean for score in causal}


def attempt(edit: Callable[[], dict[str, float]]) -> dict[str, float | str]:
    """Make one cell's edit; what the user can mend, or what diverged, becomes a note and not the end.

    Args:
        edit: Does it, and gives facts to note.

    Returns:
        These facts, or "failed" with the reason.
    """
    try:
        return dict(edit())
    except Diverged as error:
        return {"failed": f"diverged after {error.step} steps"}
    except UserError as error:
        return {"failed": str(error)}
