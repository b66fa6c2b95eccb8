"""What a run on facts begins with: the model, and the references that its configuration asks for."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from analysis.audit.facts.case import CHOOSING, QUICK, Budget
from analysis.audit.verdict import Words, fact_words
from analysis.errors import UserError
from analysis.subjects.data import cache_folder
from analysis.subjects.language.bank import Bank
from analysis.subjects.language.lab import lab_models
from analysis.subjects.language.lab_bank import LAB_NAME, in_lab, lab_band
from analysis.subjects.language.models import LanguageModel, load_language_model
from unlearn.language.config import FactRunConfig
from unlearn.language.references import References
from unlearn.stages import Report, locked

TWINS = 14
ATTACKED_TWINS = 6
QUICK_TWINS = 10
FEWEST_TWINS = 3
MOST_FACTS = 60
MOST_KEPT = 20
YARDSTICK = "twins that never existed"
HARMLESS_CHANGE = "changes as small as a moment's tuning on other text makes"
LAB_GOLDS = 5
LAB_YARDSTICK = "models trained without it"


def is_lab(config: FactRunConfig) -> bool:
    """Say whether the subject is the gold lab's, whose model is made here and can be made without it.

    Args:
        config: Of the run.

    Returns:
        Whether it is.
    """
    return in_lab(config.bank)


def words_of(config: FactRunConfig, forgotten: str) -> Words:
    """Choose how the verdict speaks.

    Args:
        config: Of the run.
        forgotten: Whom the facts are about.

    Returns:
        The words.
    """
    return fact_words(forgotten, LAB_YARDSTICK) if is_lab(config) else fact_words(forgotten, YARDSTICK, HARMLESS_CHANGE)


def _lab_folder() -> Path:
    return cache_folder() / LAB_NAME


def open_language(config: FactRunConfig, report: Report) -> LanguageModel:
    """Load the original, or train the lab's.

    Args:
        config: Of the run.
        report: Called with what is running and the share done.

    Returns:
        The model, which nothing trains.
    """
    # What isn't in the cache yet is made once, however many jobs ask for it.
    with locked(cache_folder(), wait=True):
        if is_lab(config):
            made = lab_models(None, 0, _lab_folder(), lambda share: report("training the lab's model", share))
            loaded = replace(load_language_model(str(made.folder), report), name=LAB_NAME)
        else:
            loaded = load_language_model(config.model, report)
    loaded.model.requires_grad_(False)
    return loaded


def _retrained(band: str, number: int, tell: Callable[[float], None]) -> nn.Module:
    with locked(cache_folder(), wait=True):
        return lab_models(band, 1 + number, _lab_folder(), tell).model.requires_grad_(False)


def twins_of(config: FactRunConfig) -> int:
    """Say how many models that never knew span the band.

    Args:
        config: Of the run.

    Returns:
        How many twins, or in the lab how many golds.

    Raises:
        UserError: There are too few for a band, or the lab is given another model.
    """
    if is_lab(config):
        if config.twins is not None or (config.model, config.device) != (FactRunConfig().model, FactRunConfig().device):
            raise UserError("The lab has its own model and golds, on the CPU; leave out --model, --twins and --device.")
        return LAB_GOLDS
    twins = config.twins if config.twins is not None else QUICK_TWINS if config.quick else TWINS
    if twins < FEWEST_TWINS:
        raise UserError(f"A band needs at least {FEWEST_TWINS} twins, not {twins}; give more with --twins.")
    return twins


def open_references(config: FactRunConfig, language: LanguageModel, bank: Bank, report: Report) -> References:
    """Prepare what is shared with other runs.

    Args:
        config: Of the run.
        language: The original.
        bank: The facts.
        report: Called with what is running and the share done.

    Returns:
        The references; nothing is read yet.
    """
    twins, quick = twins_of(config), config.quick
    return References(
        language=language,
        bank=bank,
        twins=twins,
        attacked=twins if quick else min(twins, ATTACKED_TWINS),
        budget=(CHOOSING if config.choosing else QUICK) if quick else Budget(),
        seed=config.seed,
        choosing=config.choosing,
        most_facts=MOST_FACTS if quick else None,
        most_kept=MOST_KEPT if quick else None,
        retrained=partial(_retrained, lab_band(config.bank)) if is_lab(config) else None,
        cache=cache_folder() / "references",
        report=report,
    )
