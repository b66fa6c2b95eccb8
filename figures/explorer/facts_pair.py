"""The two language models of a finished run, and the facts to ask them about."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import nn

from analysis.errors import UserError
from analysis.subjects.language.bank import Bank, Fact
from analysis.subjects.language.encoding import Tokenizer
from analysis.subjects.language.models import LanguageModel
from unlearn.documents import read_run
from unlearn.edit import Edit
from unlearn.language.config import FactRunConfig
from unlearn.language.references import load_readings
from unlearn.language.run import READS, FactRun

SEEN, HELD_OUT, KEPT = "shown to the edit", "held out", "must stay"
READINGS = f"{READS}/edited.json"


@dataclass(frozen=True)
class Pair:
    """The original beside a copy that carries as much of the edit as is wanted.

    Attributes:
        language: The original with its tokenizer; never changed.
        edited: The edited model; its changed weights, and only these, are moved by `at`.
        edit: What was changed.
        facts: What to ask, by group; facts of the run's audit where it has one, else of the whole bank.
        openings: Prompts of the bank that any words may follow.
    """

    language: LanguageModel
    edited: nn.Module
    edit: Edit
    facts: Mapping[str, tuple[Fact, ...]]
    openings: tuple[str, ...]

    @property
    def original(self) -> nn.Module:
        """The model before the edit."""
        return self.language.model

    @property
    def tokenizer(self) -> Tokenizer:
        """Of both models."""
        return self.language.tokenizer

    @torch.no_grad()
    def at(self, strength: float) -> nn.Module:
        """Move the edited model along the line from the original to the edit.

        Args:
            strength: 0 for the original's weights, 1 for the edit's, both bit for bit; other values lie between.

        Returns:
            `edited`, in which only the weights that the edit changes were written.
        """
        weights = dict(self.edited.named_parameters())
        for name, change in self.edit.changes.items():
            weights[name].view(-1)[change.indices] = change.at(strength)
        return self.edited


def prompt_of(fact: Fact) -> str:
    """Choose the opening by which a fact is asked about.

    Args:
        fact: Of a bank.

    Returns:
        One that the method may have seen for what was shown to it, else one that it can't have seen.
    """
    return fact.train[0] if fact.split == "edit" else fact.heldout[0]


def grouped(bank: Bank, known: frozenset[str] | None = None) -> dict[str, tuple[Fact, ...]]:
    """Sort a bank's facts by what the edit should do to them.

    Args:
        bank: The facts.
        known: Ids of those to take; None takes all.

    Returns:
        Facts by group, in the bank's order; a group without facts is left out.
    """
    chosen = [fact for fact in bank.facts if known is None or fact.id in known]
    sorted_out = {
        SEEN: [one for one in chosen if one.kind == "fact" and one.split == "edit"],
        HELD_OUT: [one for one in chosen if one.kind == "fact" and one.split != "edit"],
        KEPT: [one for one in chosen if one.kind != "fact"],
    }
    return {name: tuple(mine) for name, mine in sorted_out.items() if mine}


def open_pair(folder: Path) -> Pair:
    """Load the models of a run.

    Args:
        folder: Of a run on facts that has made its edit.

    Returns:
        Both models and the run's facts.

    Raises:
        UserError: The folder holds no run on facts, or one that has not got as far as its edit.
    """
    asked = read_run(folder).config
    try:
        config = FactRunConfig.model_validate({k: asked[k] for k in FactRunConfig.model_fields if k in asked})
    except ValidationError as error:
        raise UserError(f"{folder} is no run on a language model; explore one such as runs/beatles.") from error
    if not (folder / "edit.safetensors").is_file():
        raise UserError(f"The run in {folder} has no edit yet; run the same command again to finish it.")
    run = FactRun(config, folder, lambda *_: None)
    known = None
    if (folder / READINGS).is_file():
        known = frozenset(fact for reading in load_readings(folder / READINGS) for fact in reading.facts)
    edit, bank = Edit.load(folder / "edit.safetensors"), run.bank
    return Pair(run.language, run.edited, edit, grouped(bank, known), bank.subject.prompts)
