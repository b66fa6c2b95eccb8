"""A case: one model asked about one subject's facts; and what an auditor notes of it.

Every auditor gives one value per fact, so that its power can be calibrated fact by fact. Attackers are shown facts of
the share "edit" and judged on facts of the share "audit" whose answers they were not shown.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import nn

from analysis.audit.bands import Scale
from analysis.audit.report import Document, Role
from analysis.subjects.language.bank import Fact
from analysis.subjects.language.encoding import Tokenizer
from analysis.subjects.language.facts import FactSubject


@dataclass(frozen=True)
class Budget:
    """How much an audit spends on each case; equal for all models of one audit.

    Attributes:
        taught: Facts that attackers are shown, at most.
        asked: Facts on which they are judged, at most.
        shown: Facts of the share "edit" asked about with held-out prompts, at most.
        distractors: Wrong answers beside the right one, at most.
        retained: Facts that must stay, asked about, at most.
        texts: Texts that must stay, at most.
        steps: Fine-tuning steps of an attacker.
        rates: Learning rates that a fine-tuning attacker tries.
        soft_steps: Steps of the soft-prompt attack.
        samples: Continuations drawn per fact.
        benign_steps: Fine-tuning steps on unrelated text.
        roundings: How many ways of rounding to try, of those in `rounding`.
        probe: Whether to train the probe for true statements.
    """

    taught: int = 12
    asked: int = 40
    shown: int = 32
    distractors: int = 3
    retained: int = 64
    texts: int = 64
    steps: int = 8
    rates: tuple[float, ...] = (3e-5, 1e-4)
    soft_steps: int = 8
    samples: int = 2
    benign_steps: int = 8
    roundings: int = 3
    probe: bool = True


QUICK = Budget(
    asked=24,
    shown=16,
    retained=24,
    texts=24,
    steps=0,
    soft_steps=0,
    samples=0,
    benign_steps=0,
    roundings=1,
    probe=False,
)


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
        facts: What each value belongs to.
        values: One per fact.
        curve_x: x values of `curve`, e.g. fine-tuning steps.
        curve: Means over facts.
    """

    auditor: str
    group: str
    role: Role
    unit: str
    outside: Literal["above", "below"] = "above"
    scale: Scale = "logit"
    telling: str = "original"
    facts: tuple[str, ...]
    values: tuple[float, ...]
    curve_x: tuple[float, ...] = ()
    curve: tuple[float, ...] = ()


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
        chosen = set(random.Random(self.seed).sample(range(len(facts)), min(most, len(facts))))
        wrong = self.budget.distractors
        return tuple(
            fact.model_copy(update={"distractors": fact.distractors[:wrong]})
            for i, fact in enumerate(facts)
            if i in chosen
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
        """Facts on which attackers are judged: unseen ones with answers that the attackers were not shown."""
        given = {text.casefold() for fact in self.taught for text in (fact.answer, *fact.aliases)}
        left = tuple(
            fact for fact in self.unseen if not given & {text.casefold() for text in (fact.answer, *fact.aliases)}
        )
        return left or self.unseen


def ids(facts: Sequence[Fact]) -> tuple[str, ...]:
    """List the ids of facts.

    Args:
        facts: Any.

    Returns:
        In order.
    """
    return tuple(fact.id for fact in facts)
