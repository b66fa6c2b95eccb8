"""Relearning: fine-tune on some facts and test the others (RTT, Deeb & Roger 2024), and on texts about nothing of it.

A model that never knew the subject learns what it is shown and no more. One that only hides it gives back facts that
it was not shown, sometimes after tuning on anything at all ("benign relearning", Hu et al. 2024).
"""

from statistics import fmean

from torch import nn

from analysis.audit.facts.case import Budget, Case, FactReading, ids
from analysis.audit.facts.contrast import ask_contrasted, contrasted, first_prompt, shares
from analysis.audit.facts.tuning import fine_tuned, rotating
from analysis.subjects.language.encoding import Encoded, encode_texts
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.scoring import Answered, ask, encode_facts

BENIGN_RATE = 1e-4
ROWS = 8


def relearning(case: Case) -> FactReading:
    """Teach some facts and ask others; the strongest of all learning rates and moments counts.

    Every learning rate gets half of the steps; the one after which right answers have the largest share goes on to the
    end, with its optimiser begun anew.

    Args:
        case: The model and the facts.

    Returns:
        Shares of the right answers to the first held-out prompt, and that rate's curve over steps.
    """
    budget, tokenizer = case.budget, case.tokenizer
    lessons = list(rotating(encode_facts(tokenizer, case.taught), ROWS, budget.steps, case.seed))
    half = max(1, budget.steps // 2) if len(budget.rates) > 1 else budget.steps
    prompts = [first_prompt(fact) for fact in case.asked]

    def tried(model: nn.Module, rate: float, steps: list[Encoded]) -> tuple[nn.Module, float, list[list[Answered]]]:
        tuned = fine_tuned(model, steps, rate)
        return tuned, rate, ask(tuned, tokenizer, case.asked, prompts)

    tries = (tried(case.model, rate, lessons[:half]) for rate in budget.rates)
    model, rate, best = max(tries, key=lambda one: fmean(shares(one[2])))
    looks = [
        (0, ask_contrasted(case, case.asked)),
        (half, (shares(best), contrasted(case, case.asked, best, first_prompt, model))),
    ]
    if half < budget.steps:
        looks.append((budget.steps, ask_contrasted(case, case.asked, fine_tuned(model, lessons[half:], rate))))
    said, beside = ([both[which] for _, both in looks] for which in (0, 1))
    return FactReading(
        auditor="relearn some facts, test others",
        group="relearn",
        role="inner",
        unit="share",
        facts=ids(case.asked),
        values=max(said[1:], key=fmean),
        curve_x=tuple(float(step) for step, _ in looks),
        curve=tuple(map(fmean, said)),
        beside=max(beside[1:], key=fmean),
        beside_curve=tuple(map(fmean, beside)),
    )


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
        Shares of the right answers.
    """
    said, beside = ask_contrasted(case, case.asked, case.benign())
    return FactReading(
        auditor="after tuning on unrelated text",
        group="benign",
        role="inner",
        unit="share",
        facts=ids(case.asked),
        values=said,
        beside=beside,
    )
