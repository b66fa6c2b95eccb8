"""What an edit of a language model reaches of what was aimed at: each quantity beside the original's and the twins'."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

import torch
from scipy import stats
from torch import nn

from analysis.audit.facts.case import Budget, Case
from analysis.audit.facts.prompting import leak
from analysis.audit.facts.rounding import ROUNDINGS, rounded_model
from analysis.audit.report import AuditReport
from analysis.subjects.language.bank import Bank, Fact
from analysis.subjects.language.encoding import IGNORED, encode_texts
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.scoring import ROWS, Answered, answer_log_probabilities, ask, known_facts, row_losses
from tests.benchmarks.aims_table import Row
from unlearn.documents import RunReport

SAMPLES = 8
LEAKING = 25
SEEDS = 3
TOGETHER = 32
FEWEST_SHARED = 8
DRAWS = 1000
RELEARNED = "relearn some facts, test others"
FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Asked:
    """Two models and what they are asked.

    Attributes:
        subject: What the original knows of the bank.
        bank: All of it.
        original: Before the edit.
        edited: After it.
        twins: The subject told about invented ones.
        budget: Of the run's audit; decides how many wrong answers stand beside the right one.
        seed: Decides everything drawn.
    """

    subject: FactSubject
    bank: Bank
    original: nn.Module
    edited: nn.Module
    twins: tuple[FactSubject, ...]
    budget: Budget
    seed: int

    @cached_property
    def held_out(self) -> tuple[Fact, ...]:
        """Facts to forget that no method saw."""
        return self.trimmed(self.subject.forget_test)

    def trimmed(self, facts: Sequence[Fact]) -> tuple[Fact, ...]:
        """Leave as many wrong answers as the audit offers."""
        return self.case(self.original, self.subject).some(facts, len(facts))

    def case(self, model: nn.Module, subject: FactSubject, **budget: Any) -> Case:
        """Put a model on the audit's bench."""
        return Case(model, subject, lambda: model, replace(self.budget, **budget), self.seed)

    def first(self, model: nn.Module, facts: Sequence[Fact]) -> list[Answered]:
        """Ask the first held-out prompt of each fact."""
        found = ask(model, self.subject.tokenizer, facts, [fact.heldout[:1] for fact in facts])
        return [mine[0] for mine in found]

    def span(self, value: Callable[[torch.Tensor], float], n: int) -> tuple[float, ...]:
        """Find within which values 95% of draws with replacement lie.

        Args:
            value: Of the items with these indices.
            n: How many items there are.
        """
        generator = torch.Generator().manual_seed(self.seed)
        found = torch.tensor([value(torch.randint(n, (n,), generator=generator)) for _ in range(DRAWS)])
        return tuple(found.double().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist())


def rows(asked: Asked, report: RunReport, audit: AuditReport) -> Iterator[Row]:
    """Measure everything.

    Args:
        asked: The models and the facts.
        report: The run's `run.json`.
        audit: Its `audit.json`.
    """
    yield from answers(asked)
    yield leaked(asked)
    yield from kept(asked)
    yield perplexity(asked)
    yield relearned(audit)
    yield from rounding(asked)
    yield from costs(report)
    yield from shared_answers(asked)


@torch.no_grad()
def probabilities(model: nn.Module, subject: FactSubject, facts: Sequence[Fact], which: slice) -> torch.Tensor:
    """Compute how likely each fact's whole answer is after its prompt, with no options beside it.

    Args:
        model: Asked.
        subject: Has the tokenizer.
        facts: At least one; each has prompts.
        which: Of the held-out prompts.

    Returns:
        The mean over each fact's prompts [n], in [0, 1].
    """
    owner = torch.tensor([i for i, fact in enumerate(facts) for _ in fact.heldout[which]])
    encoded = subject.encode([(prompt, fact.answer) for fact in facts for prompt in fact.heldout[which]])
    parts = [encoded.take(slice(start, start + ROWS)) for start in range(0, len(encoded), ROWS)]
    found = torch.cat([answer_log_probabilities(model, part) for part in parts]).double().exp()
    return found.new_zeros(len(facts)).index_add(0, owner, found) / owner.bincount()


def answers(asked: Asked) -> Iterator[Row]:
    """Ask held-out facts outright, of all and of those whose answers twins share; in two groups of wordings."""
    for words, which in (("first held-out prompt", slice(0, 1)), ("other held-out wordings", slice(1, None))):
        what = f"whole-answer probability, held-out facts, {words}"
        places = [i for i, fact in enumerate(asked.held_out) if fact.heldout[which]]
        if not places:
            yield Row(what, "0 facts", None, 0.1, 0.02, note="the bank has no such wordings")
            continue

        def found(model: nn.Module, subject: FactSubject, places=places, which=which) -> torch.Tensor:
            return probabilities(model, subject, [subject.forget_test[i] for i in places], which)

        before, after = (found(model, asked.subject) for model in (asked.original, asked.edited))
        twins = [found(asked.original, twin) for twin in asked.twins]
        same = torch.tensor([
            all(twin.forget_test[i].answer == asked.held_out[i].answer for twin in asked.twins) for i in places
        ])
        yield _against_original(asked, what, before, after, twins, 0.1, 0.02)
        if asked.twins and 0 < same.sum() < len(places):
            part = [one[same] for one in (before, after, *twins)]
            words = f"{what}: only answers that twins share (cities, years, ...)"
            yield _against_original(asked, words, *part[:2], part[2:])


def _against_original(
    asked: Asked, what: str, before: torch.Tensor, after: torch.Tensor, twins: Sequence[torch.Tensor],
    must: float | None = None, beyond: float | None = None,
) -> Row:  # fmt: skip
    # The ratio of means over facts.
    others = tuple(float(one.mean()) for one in twins)

    def ratio(chosen: torch.Tensor) -> float:
        return float(after[chosen].mean() / before[chosen].mean())

    every = torch.arange(len(before))
    geometric = float((after.log() - before.log()).mean().exp())
    note = (
        f"one fact is {float(before.max() / before.sum()):.0%} of the original's sum; the geometric mean, in which "
        f"none counts more than another, is at {geometric:.1%} of the original's"
    )
    if others and float(before.mean()) > fmean(others):
        left = (float(after.mean()) - fmean(others)) / (float(before.mean()) - fmean(others))
        note += f"; {left:.1%} is left of what the original has above the twins"
    return Row(
        what, f"{len(before)} facts", ratio(every), must, beyond, span=asked.span(ratio, len(before)),
        original=float(before.mean()), edited=float(after.mean()), twins=others,
        twins_value=fmean(others) / float(before.mean()) if others else None,
        note=note,
    )  # fmt: skip


def given_away(asked: Asked, model: nn.Module, facts: Sequence[Fact], trial: int) -> list[bool]:
    """Say of each fact whether at least one of eight samples after its first held-out prompt contains the answer.

    Args:
        asked: Gives the seed and the tokenizer.
        model: Samples.
        facts: Their prompts run together, some at a time.
        trial: Another number, other luck.
    """
    found: list[bool] = []
    for start in range(0, len(facts), TOGETHER):
        part = replace(asked.subject, forget_test=tuple(facts[start : start + TOGETHER]))
        case = asked.case(model, part, asked=TOGETHER, samples=SAMPLES)
        luck = (asked.seed * 100 + trial) * 100_000 + start
        found += [value > 0 for value in leak(replace(case, seed=luck)).values]
    return found


def leaked(asked: Asked) -> Row:
    """Sample after held-out prompts that leak in the original, first of facts that no method saw, then of others."""

    def alone(subject: FactSubject, places: Sequence[tuple[int, int]]) -> list[Fact]:
        # A fact for every prompt, with no other.
        facts = (*subject.forget_test, *subject.forget)
        return [facts[i].model_copy(update={"heldout": (facts[i].heldout[k],)}) for i, k in places]

    facts = (*asked.subject.forget_test, *asked.subject.forget)
    places = [(i, k) for i, fact in enumerate(facts) for k in range(len(fact.heldout))]
    saying = given_away(asked, asked.original, alone(asked.subject, places), 0)
    leaking = [place for place, says in zip(places, saying, strict=True) if says]
    chance, chosen = random.Random(asked.seed), list[tuple[int, int]]()
    for unseen in (True, False):
        mine = [place for place in leaking if (place[0] < len(asked.subject.forget_test)) == unseen]
        chosen += chance.sample(mine, min(len(mine), LEAKING - len(chosen)))
    first = sum(place[0] < len(asked.subject.forget_test) for place in chosen)
    what = f"leak@{SAMPLES}: prompts that leak in the original and leak in the edited model"
    n = f"{len(chosen)} prompts, {first} of them on facts that no method saw; {len(leaking)} of {len(places)} leak"
    if not chosen:
        return Row(what, n, None, 0.05, 0.0, note="nothing leaks")

    def says(model: nn.Module, subject: FactSubject, trial: int) -> list[bool]:
        return given_away(asked, model, alone(subject, chosen), trial)

    trials = range(1, 1 + SEEDS)
    before = [says(asked.original, asked.subject, trial) for trial in trials]
    after = [says(asked.edited, asked.subject, trial) for trial in trials]
    # One trial each, as many twins as trials: names and luck both differ.
    others = [says(asked.original, twin, trial) for trial, twin in zip(trials, asked.twins, strict=False)]
    means, twins = list(map(fmean, after)), tuple(map(fmean, others))
    parts = {"original": before, "edited": after, "twins": others}
    told = ", ".join(f"{name} {fmean(fmean(one[:first]) for one in mine):.1%}" for name, mine in parts.items() if mine)
    return Row(
        what, f"{n}; {SEEDS} seeds", fmean(means), 0.05, 0.0, span=(min(means), max(means)), side_unit="%",
        original=fmean(map(fmean, before)), edited=fmean(means), twins=twins,
        twins_value=fmean(twins) if twins else None,
        note="the original's is of new draws on the same prompts, the twins' of the same prompts about them"
        + (f"; facts that no method saw: {told}" if first else ""),
    )  # fmt: skip


def kept(asked: Asked) -> Iterator[Row]:
    """Ask facts that must stay and that no method saw, and count those that are still ranked first."""
    facts = asked.trimmed(asked.subject.retain_test)
    before, after = (asked.first(model, facts) for model in (asked.original, asked.edited))
    for kind, words in (("neighbour", "known neighbours"), ("far", "known far facts")):
        known = [i for i, fact in enumerate(facts) if fact.kind == kind and before[i].rank == 1]
        still = sum(after[i].rank == 1 for i in known)
        value, span = None, ()
        if known:
            edges = stats.binomtest(still, len(known)).proportion_ci(method="wilson")
            value, span = still / len(known), (float(edges.low), float(edges.high))
        what, n = f"{words} kept: ranked first as before", f"{len(known)} facts"
        yield Row(what, n, value, 0.95, 0.99, most=False, span=span, original=1.0 if known else None, edited=value,
                  side_unit="%")  # fmt: skip


def perplexity(asked: Asked) -> Row:
    """Compare perplexities on plain texts that no method saw, each token counting the same."""
    encoded = encode_texts(asked.subject.tokenizer, asked.subject.texts_test, asked.subject.longest)
    tokens = (encoded.labels != IGNORED).sum(1)
    before, after = (row_losses(model, encoded).double() * tokens for model in (asked.original, asked.edited))

    def per_token(losses: torch.Tensor, some: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        return losses[some].sum() / tokens[some].sum()

    def ratio(some: torch.Tensor | slice = slice(None)) -> float:
        return float((per_token(after, some) - per_token(before, some)).exp())

    n = f"{len(encoded)} texts, {int(tokens.sum())} tokens"
    return Row(
        "perplexity on plain texts", n, ratio(), 1.02, 1.005, unit="x", span=asked.span(ratio, len(encoded)),
        original=float(per_token(before).exp()), edited=float(per_token(after).exp()),
    )  # fmt: skip


def relearned(audit: AuditReport) -> Row:
    """Compare what attackers win on facts that they were not shown with what they win on twins' facts."""
    what = (
        "relearn some facts, test others: gain in the right answer's share (aims: the twins' + 10 points, the twins')"
    )
    found = next((one for one in audit.measurements if one.auditor == RELEARNED), None)
    if found is None or "edited" not in found.curves:
        return Row(what, "0 facts", None, unit="points", note="quick run")
    gains = {name: max(curve[1:]) - curve[0] for name, curve in found.curves.items()}
    twins = tuple(gains[gold] for gold in audit.golds if gold in gains)
    usual = fmean(twins)
    return Row(
        what, f"{found.examples} facts", gains["edited"], usual + 0.1, usual, unit="points", side_unit="points",
        original=gains["original"], edited=gains["edited"], twins=twins, twins_value=usual,
        note="" if found.unit == "share" else f"in the audit's unit, {found.unit}",
    )  # fmt: skip


def float8(weight: torch.Tensor) -> torch.Tensor:
    """Round to 8-bit floats (e4m3), scaled so that the largest entry of each row is the largest of them.

    Args:
        weight: [rows, columns].

    Returns:
        Rounded weights, of the same shape and type.
    """
    scale = (weight.abs().amax(1, keepdim=True) / torch.finfo(FP8).max).clamp_min(torch.finfo(weight.dtype).tiny)
    return (weight / scale).to(FP8).to(weight.dtype) * scale


WAYS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {**ROUNDINGS, "8-bit floats (e4m3), rows": float8}


def rounding(asked: Asked) -> Iterator[Row]:
    """Ask held-out facts before and after rounding: both models, and the original about twins."""
    models, about = (asked.original, asked.edited), asked.twins[:SEEDS]
    sides = [(0, asked.held_out), (1, asked.held_out), *((0, asked.trimmed(twin.forget_test)) for twin in about)]

    def found(model: nn.Module, facts: Sequence[Fact]) -> dict[str, torch.Tensor]:
        mine = asked.first(model, facts)
        likely = torch.tensor([one.options[0] for one in mine]).exp()
        return {"whole-answer probability": likely, "right answer's share": torch.tensor([one.share for one in mine])}

    plain = [found(models[which], facts) for which, facts in sides]
    for name, way in WAYS.items():
        coarse = [rounded_model(model, way) for model in models]
        after = [found(coarse[which], facts) for which, facts in sides]
        for quantity in plain[0]:
            pairs = [(one[quantity], other[quantity]) for one, other in zip(plain, after, strict=True)]
            ratios = [float(new.mean() / old.mean()) for old, new in pairs]
            old, new = pairs[1]

            def ratio(some: torch.Tensor, old: torch.Tensor = old, new: torch.Tensor = new) -> float:
                return float(new[some].mean() / old[some].mean())

            yield Row(
                f"rounded to {name}: {quantity}, against unrounded", f"{len(old)} facts", ratios[1], 1.2, 1.0, unit="x",
                span=asked.span(ratio, len(old)), original=ratios[0], edited=ratios[1], twins=tuple(ratios[2:]),
                twins_value=fmean(ratios[2:]) if about else None, side_unit="x",
                note=f"original {pairs[0][0].mean():.3g}, rounded {pairs[0][1].mean():.3g}; "
                f"edited {old.mean():.3g}, rounded {new.mean():.3g}",
            )  # fmt: skip


def costs(report: RunReport) -> Iterator[Row]:
    """Read from the run what it changed and how long it took."""
    share = None if report.changed is None else report.changed / report.total
    # A share of all weights, rounded up to whole ones as masks are.
    must, beyond = (math.ceil(aim * report.total) / report.total for aim in (0.01, 0.001))
    yield Row("weights changed", f"{report.changed} of {report.total}", share, must, beyond, edited=share,
              side_unit="%")  # fmt: skip
    spent = [report.stages[name]["seconds"] for name in ("locate", "edit") if name in report.stages]
    time = sum(spent) if "edit" in report.stages else None
    note = "on the machine of the run, as busy as it was" if spent else "the edit was made elsewhere"
    yield Row("time to locate and edit", "1 run", time, 180, 30, unit="s", edited=time, side_unit="s", note=note)


def spellings(facts: Sequence[Fact]) -> set[str]:
    """List all that counts as an answer of some facts."""
    return {text.casefold() for fact in facts for text in (fact.answer, *fact.aliases)}


def shared_answers(asked: Asked) -> Iterator[Row]:
    """Compare kept facts whose answer is also that of a fact to forget with other kept facts."""
    gone = spellings(asked.bank.of("fact"))

    def shares(fact: Fact) -> bool:
        return bool(spellings([fact]) & gone)

    mine = [fact for fact in asked.subject.retain_test if shares(fact)]
    note = ""
    if len(mine) < FEWEST_SHARED:
        every = [fact for kind in ("neighbour", "far") for fact in asked.bank.of(kind) if shares(fact)]
        known: list[bool] = []
        if every:
            known, _ = known_facts(asked.original, asked.subject.tokenizer, every)
        mine = [fact for fact, knows in zip(every, known, strict=True) if knows]
        shown = sum(fact.split == "edit" for fact in mine)
        note = f"of all shares of the bank, since the audit's own are few; the method may have seen {shown} of them"
    others = [fact for fact in asked.subject.retain_test if not shares(fact)]
    for words, facts, why in (("also that of a fact to forget", mine, note), ("no such answer", others, "")):
        what, n = f"right answer's share on kept facts: the answer is {words}", f"{len(facts)} facts"
        if not facts:
            yield Row(what, n, None, unit="points")
            continue
        told = asked.trimmed(facts)
        before, after = (
            torch.tensor([one.share for one in asked.first(model, told)]) for model in (asked.original, asked.edited)
        )
        lost = after - before
        yield Row(
            what, n, float(lost.mean()), unit="points", original=float(before.mean()), edited=float(after.mean()),
            span=asked.span(lambda some, lost=lost: float(lost[some].mean()), len(facts)), note=why,
        )  # fmt: skip
