"""Relearning: fine-tune on some facts and test the others (RTT, Deeb & Roger 2024), and on texts about nothing of it.

A model that never knew the subject learns what it is shown and no more. One that only hides it gives back facts that
it was not shown, sometimes after tuning on anything at all ("benign relearning", Hu et al. 2024).
"""

from statistics import fmean

from torch import nn

from analysis.audit.facts.case import Budget, Case, FactReading, ids
from analysis.audit.facts.tuning import fine_tuned, rotating
from analysis.subjects.language.encoding import encode_texts
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.scoring import ask, encode_facts

BENIGN_RATE = 1e-4
ROWS = 8


def relearning(case: Case) -> FactReading:
    """Teach some facts and ask others; the strongest of all learning rates and moments counts.

    Every learning rate gets half of the steps; the one that brought back most goes on to the end, with its optimiser
    begun anew.

    Args:
        case: The model and the facts.

    Returns:
        Shares of the right answers to the first held-out prompt, and the strongest rate's curve over steps.
    """
    budget, tokenizer = case.budget, case.tokenizer
    lessons = list(rotating(encode_facts(tokenizer, case.taught), ROWS, budget.steps, case.seed))
    half = max(1, budget.steps // 2) if len(budget.rates) > 1 else budget.steps
    before = _asked(case, case.model)
    tries = []
    for rate in budget.rates:
        model = fine_tuned(case.model, lessons[:half], rate)
        tries.append((_asked(case, model), rate, model))
    best, rate, model = max(tries, key=lambda one: fmean(one[0]))
    looks = [(0, before), (half, best)]
    if half < budget.steps:
        looks.append((budget.steps, _asked(case, fine_tuned(model, lessons[half:], rate))))
    return FactReading(
        auditor="relearn some facts, test others",
        group="relearn",
        role="inner",
        unit="share",
        facts=ids(case.asked),
        values=max((values for step, values in looks if step > 0), key=fmean),
        curve_x=tuple(float(step) for step, _ in looks),
        curve=tuple(fmean(values) for _, values in looks),
    )


def _asked(case: Case, model: nn.Module) -> tuple[float, ...]:
    found = ask(model, case.tokenizer, case.asked, [fact.heldout[:1] for fact in case.asked])
    return tuple(mine[0].share for mine in found)


def benign_tuned(model: nn.Module, subject: FactSubject, budget: Budget, seed: int) -> nn.Module:
    """Fine-tune on texts that have nothing to do with the subject.

    Args:
        model: Where to begin; not changed.
        subject: Its texts are used.
        budget: How many steps.
        seed: Of the order.

    Returns:
        The tuned copy.
    """
    short = [text for text in subject.texts if len(text.split()) <= 30] or subject.texts
    texts = encode_texts(subject.tokenizer, short[:200], subject.longest)
    return fine_tuned(model, rotating(texts, ROWS // 2, budget.benign_steps, seed), BENIGN_RATE)


def benign_relearning(case: Case) -> FactReading:
    """Ask after benign fine-tuning.

    Args:
        case: The model and the facts.

    Returns:
        Shares of the right answers to all held-out prompts.
    """
    found = ask(case.benign(), case.tokenizer, case.unseen, [fact.heldout[:2] for fact in case.unseen])
    return FactReading(
        auditor="after tuning on unrelated text",
        group="benign",
        role="inner",
        unit="share",
        facts=ids(case.unseen),
        values=tuple(fmean(one.share for one in mine) for mine in found),
    )
