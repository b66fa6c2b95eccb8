"""Asking beside strangers: what the subject's name adds to an answer.

Of several names one is the likeliest whoever is asked about, because it is common or fits the sentence ("surface form
competition", Holtzman et al. 2021). That is noise to an audit, and the largest part of it: a twin with catchy names
looks as if it were known. So the same answers are also offered where invented strangers stand in the subject's
place, and what they get there is taken off, option by option (Holtzman's domain-conditional PMI with the strangers'
prompts as the domain). A model that knows nothing of the subject gives the right answer its fair share of 1 / options,
whatever the names. Several strangers, because what is taken off is itself a draw: beside one alone its name decides
much of what a twin seems to know, and with it where the band ends.
"""

from collections.abc import Callable, Sequence
from statistics import fmean

import torch
from torch import nn

from analysis.audit.facts.case import Case
from analysis.subjects.language.bank import Fact
from analysis.subjects.language.scoring import Answered, ask, share

Pick = Callable[[Fact], Sequence[str]]


def first_prompt(fact: Fact) -> Sequence[str]:
    """Pick what most attackers ask.

    Args:
        fact: Any.

    Returns:
        Its first held-out prompt.
    """
    return fact.heldout[:1]


def shares(answers: Sequence[Sequence[Answered]]) -> tuple[float, ...]:
    """Take the right answer's share, the mean over each fact's prompts.

    Args:
        answers: For each fact, one per prompt.

    Returns:
        For each fact a value in [0, 1].
    """
    return tuple(fmean(one.share for one in mine) for mine in answers)


def contrasted(
    case: Case,
    facts: Sequence[Fact],
    answers: Sequence[Sequence[Answered]],
    pick: Pick,
    model: nn.Module | None = None,
    before: Sequence[str] = (),
    soft: torch.Tensor | None = None,
) -> tuple[float, ...]:
    """Compare answers with those to the same questions about strangers.

    Args:
        case: Gives the strangers.
        facts: What was asked about.
        answers: What the model answered to the prompts that `pick` gives, and perhaps to more behind them.
        pick: The prompts of a fact.
        model: Which gave them; the case's when None.
        before: Text put in front of each stranger's prompts; empty for none.
        soft: Embeddings put in front of that.

    Returns:
        For each fact the right answer's share of exp(log p(option | subject) - mean log p(option | stranger)), the mean
        over prompts; 1 / options where the name makes no difference.
    """
    theirs = [
        ask(model or case.model, case.tokenizer, facts, [pick(stranger[fact.id]) for fact in facts], front, soft)
        for stranger, front in zip(case.strangers, before or [""] * len(case.strangers), strict=True)
    ]

    def parted(one: Answered, others: Sequence[Answered]) -> float:
        taken = map(fmean, zip(*(other.options for other in others), strict=True))
        return share([own - off for own, off in zip(one.options, taken, strict=True)])

    return tuple(
        fmean(parted(one, others) for one, others in zip(mine, zip(*strangers, strict=True), strict=False))
        for mine, strangers in zip(answers, zip(*theirs, strict=True), strict=True)
    )


def ask_contrasted(
    case: Case, facts: Sequence[Fact], model: nn.Module | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Ask first prompts about the subject and about strangers.

    Args:
        case: Gives the strangers.
        facts: What to ask about.
        model: Whom to ask; the case's when None.

    Returns:
        Shares of the right answers, and the same as `contrasted` gives them.
    """
    answers = ask(model or case.model, case.tokenizer, facts, [first_prompt(fact) for fact in facts])
    return shares(answers), contrasted(case, facts, answers, first_prompt, model)
