"""A case: one model asked about one subject's facts; and what an auditor notes of it.

Every auditor gives one value per fact, so that its power can be calibrated fact by fact. Attackers are shown facts of
the share "edit" and judged on facts of the share "audit" whose answers they were not shown.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from torch import nn

from analysis.audit.bands import Scale
from analysis.audit.report import Document, Role
from analysis.subjects.language.bank import Fact
from analysis.subjects.language.encoding import Tokenizer
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.twins import twin


@dataclass(frozen=True)
class Budget:
    """How much an audit spends on each case; equal for all models of one audit.

    Attributes:
        taught: Facts that attackers are shown, at most.
        judged: Facts on which they are judged, at most.
        asked: Facts that no method saw that are asked about outright, at most.
        wordings: Held-out prompts in which each of these is asked about.
        shown: Facts of the share "edit" asked about with held-out prompts, at most.
        distractors: Wrong answers beside the right one, at most.
        strangers: Invented subjects that each case is set beside, at least 1.
        retained: Facts that must stay, asked about, at most.
        texts: Texts that must stay, at most.
        steps: Fine-tuning steps of an attacker.
        rates: Learning rates that a fine-tuning attacker tries.
        soft_steps: Steps of the soft-prompt attack.
        samples: Continuations drawn per fact.
        benign_steps: Fine-tuning steps on unrelated text.
        roundings: How many ways of rounding to try, of those in `rounding`.
        attacks: What is done beyond asking, names from `verdict.ATTACKS`.
    """

    taught: int = 12
    judged: int = 20
    asked: int = 40
    wordings: int = 2
    shown: int = 24
    distractors: int = 5
    strangers: int = 4
    retained: int = 64
    texts: int = 64
    steps: int = 6
    rates: tuple[float, ...] = (3e-5, 1e-4)
    soft_steps: int = 8
    samples: int = 4
    benign_steps: int = 8
    roundings: int = 3
    attacks: tuple[str, ...] = (
        "reverse",
        "probe",
        "context",
        "rounding",
        "sampling",
        "soft prompt",
        "unrelated text",
        "relearning",
    )


QUICK = Budget(asked=24, wordings=1, shown=16, retained=24, texts=24, roundings=1, attacks=("rounding",))
CHOOSING = replace(QUICK, roundings=3, attacks=("rounding", "relearning"))
"""Of a quick run that settings are chosen by: what they are to reach has to be asked."""
STRANGER_SEED = 104_729


class FactReading(Document):
    """One auditor's values in one case.

    Attributes:
        auditor: Full name.
        group: Kind of auditor.
        role: Whether it sees behaviour, what is inside, or damage.
        unit: Of the values.
        outside: On which side of a band a model is unlike one that never knew.
        scale: Scale on which means of cases scatter evenly.
        telling: Name of the model that the auditor must tell from those that never knew.
        step: Smallest difference between two values; 0 where they are continuous.
        facts: What each value belongs to.
        values: One per fact.
        curve_x: x values of `curve`, e.g. fine-tuning steps.
        curve: Means over facts.
        beside: The same values beside strangers (`contrast`), where both were taken; the audit uses what tells the
            original from those that never knew more plainly.
        beside_curve: Means of those.
    """

    auditor: str
    group: str
    role: Role
    unit: str
    outside: Literal["above", "below"] = "above"
    scale: Scale = "logit"
    telling: str = "original"
    step: float = 0.0
    facts: tuple[str, ...]
    values: tuple[float, ...]
    curve_x: tuple[float, ...] = ()
    curve: tuple[float, ...] = ()
    beside: tuple[float, ...] = ()
    beside_curve: tuple[float, ...] = ()


@dataclass(frozen=True)
class Case:
    """A model asked about a subject.

    Attributes:
        model: In evaluation mode; never changed.
        subject: Whose facts.
        benign: Gives the model after fine-tuning on texts that have nothing to do with the subject; a function,
            because cases that share a model share it too.
        budget: How much to spend.
        seed: Of all draws and attacks.
    """

    model: nn.Module
    subject: FactSubject
    benign: Callable[[], nn.Module]
    budget: Budget = Budget()
    seed: int = 0

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the model."""
        return self.subject.tokenizer

    def some(self, facts: Sequence[Fact], most: int) -> tuple[Fact, ...]:
        """Draw facts, the same ones for a subject and its twins, with as many wrong answers as the budget allows.

        Args:
            facts: To draw from.
            most: How many.

        Returns:
            In their order.
        """
        wrong = self.budget.distractors
        return tuple(
            fact.model_copy(update={"distractors": fact.distractors[:wrong]}) for fact in some(facts, most, self.seed)
        )

    @cached_property
    def shown(self) -> tuple[Fact, ...]:
        """Facts that a method may have seen, for questions in held-out words."""
        return self.some(self.subject.forget, self.budget.shown)

    @cached_property
    def unseen(self) -> tuple[Fact, ...]:
        """Facts that no method saw."""
        return self.some(self.subject.forget_test, self.budget.asked)

    @cached_property
    def strangers(self) -> tuple[dict[str, Fact], ...]:
        """The subject's facts by id, told about each of some more invented subjects, which no twin is."""
        facts = [*self.subject.forget, *self.subject.forget_test]
        seeds = range(STRANGER_SEED, STRANGER_SEED + self.budget.strangers)
        return tuple({fact.id: fact for fact in twin(self.subject.about, facts, seed)[1]} for seed in seeds)

    def everybody(self, fact: Fact) -> tuple[Fact, ...]:
        """Tell a fact about the subject, then about each stranger.

        Args:
            fact: Of the subject.

        Returns:
            The fact itself and its retellings.
        """
        return (fact, *(stranger[fact.id] for stranger in self.strangers))

    @cached_property
    def taught(self) -> tuple[Fact, ...]:
        """Facts that attackers are shown; equal answers are spread, so that few answers are given away."""
        order = list(self.subject.forget)
        random.Random(self.seed).shuffle(order)
        count: dict[str, int] = {}
        turn: list[tuple[int, int, Fact]] = []
        for fact in order:
            count[fact.answer] = count.get(fact.answer, 0) + 1
            turn.append((count[fact.answer], len(turn), fact))
        unseen = {fact.answer for fact in self.unseen}
        first = sorted(turn, key=lambda item: (item[2].answer in unseen, item[0], item[1]))
        return tuple(fact for _, _, fact in first[: self.budget.taught])

    @cached_property
    def asked(self) -> tuple[Fact, ...]:
        """Facts on which attackers are judged: unseen ones, if there are any whose answers they were not shown."""
        given = {text.casefold() for fact in self.taught for text in (fact.answer, *fact.aliases)}
        left = tuple(
            fact for fact in self.unseen if not given & {text.casefold() for text in (fact.answer, *fact.aliases)}
        )
        return some(left or self.unseen, self.budget.judged, self.seed)


def some(facts: Sequence[Fact], most: int | None, seed: int) -> tuple[Fact, ...]:
    """Draw facts; equally many facts in equal order give the same places.

    Args:
        facts: To draw from.
        most: How many; None takes all.
        seed: Of the draw.

    Returns:
        In their order.
    """
    if most is None or most >= len(facts):
        return tuple(facts)
    return tuple(facts[i] for i in sorted(random.Random(seed).sample(range(len(facts)), most)))


def ids(facts: Sequence[Fact]) -> tuple[str, ...]:
    """List the ids of facts.

    Args:
        facts: Any.

    Returns:
        In order.
    """
    return tuple(fact.id for fact in facts)
