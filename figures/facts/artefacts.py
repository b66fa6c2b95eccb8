"""Reads what a run on facts left behind, beyond what all runs have."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from analysis.audit.report import Measurement
from analysis.errors import UserError
from analysis.fact_causal_check import FactLocalization
from analysis.scores import Scores
from figures.artefacts import MOST_LETTERS, Missing, Run, existing
from figures.looks import Look, looks
from unlearn.language.pictures import Pictures

PLANTED = ("planted", "planted-filtered", "never-planted")
FORGOTTEN_SHARE = "right answer, facts held out"
KEPT_SHARE = "right answer, kept facts"


@dataclass(frozen=True)
class FactRun(Run):
    """The folder of a run on facts; its parts are read when first used and kept."""

    @property
    def forgotten(self) -> str:
        """Whom the forgotten facts are about, for sentences, e.g. "the Beatles"."""
        if (self.folder / "audit.json").exists():
            return self.audit.forgotten
        return str(self.document.get("name", "the subject"))

    @property
    def briefly(self) -> str:
        """The same for legends and headings, where a long name would not fit."""
        return self.forgotten if len(self.forgotten) <= MOST_LETTERS else "the forgotten"

    @property
    def total(self) -> int:
        """How many weights the model has.

        Raises:
            UserError: `run.json` doesn't say.
        """
        found = self.document.get("total")
        if not isinstance(found, int) or found < 1:
            raise UserError(self.complaint("run.json", "it doesn't say how many weights the model has"))
        return found

    @cached_property
    def words(self) -> Pictures:
        """What `pictures.json` says.

        Raises:
            UserError: The file is damaged.
        """
        try:
            return Pictures.model_validate_json(self._text("pictures.json"))
        except ValidationError as error:
            raise UserError(self.complaint("pictures.json", error)) from error

    @cached_property
    def causes(self) -> FactLocalization:
        """Overlaps and ablation curves.

        Raises:
            UserError: The file is damaged.
        """
        try:
            return FactLocalization.model_validate_json(self._text("localization.json"))
        except ValidationError as error:
            raise UserError(self.complaint("localization.json", error)) from error

    @cached_property
    def scores(self) -> Scores:
        """The scores of units by which the mask was cut.

        Raises:
            Missing: The run located nothing.
        """
        measure = self.config.get("measure")
        if not isinstance(measure, str) or measure == "none":
            raise Missing(f"The run in {self.folder} located nothing; run again with --locate fisher.")
        return Scores.load(self._path(f"scores/{measure}.safetensors"))

    @cached_property
    def models(self) -> Mapping[str, Look]:
        """Looks of the audited models: original, edited, controls; without twins and without the planted world."""
        found = [name for name in self.audit.audits if name not in (*self.audit.golds, *PLANTED)]
        first = [name for name in ("original", "edited") if name in found]
        return looks([*first, *(name for name in found if name not in first)])

    def asked(self, auditor: str) -> Measurement:
        """Pick one measurement of the audit.

        Args:
            auditor: Its full name.

        Returns:
            The measurement.

        Raises:
            Missing: The audit has none of that name.
        """
        for one in self.audit.measurements:
            if one.auditor == auditor:
                return one
        raise Missing(f'The audit in {self.folder} has no "{auditor}"; audit with a bank that has such facts.')


def open_facts(folder: Path) -> FactRun:
    """Open the folder of a run on facts.

    Args:
        folder: E.g. runs/beatles.

    Returns:
        The run; nothing but `run.json` has been read yet.

    Raises:
        UserError: There is no such folder, or it holds no run on facts.
    """
    run = FactRun(existing(folder))
    if run.family != "facts":
        raise UserError(f"{folder} is no run on facts; draw it with `yesterday figures {folder}`.")
    return run
