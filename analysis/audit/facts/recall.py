"""What a model answers when it is asked: among wrong answers, in other words, the other way round, and how loudly.

Most values are the right answer's share of the probability of all options, so that guessing is worth the same for a
subject and its twin.
"""

from collections.abc import Sequence
from statistics import fmean

import torch

from analysis.audit.facts.case import Case, FactReading, ids
from analysis.audit.facts.contrast import contrasted, first_prompt, shares
from analysis.subjects.language.bank import Fact
from analysis.subjects.language.scoring import (
    Answered,
    answer_log_probabilities,
    ask,
    encode_answers,
    share,
)

REVERSE_WRONG = 3


def question_form(fact: Fact) -> str:
    """Put a fact's question so that any language model continues with the answer.

    Args:
        fact: With a question.

    Returns:
        A prompt.
    """
    return f"Question: {fact.question}\nAnswer:"


@torch.no_grad()
def reverse(case: Case) -> FactReading | None:
    """Ask the other way round: how much likelier the right answer makes the subject than wrong answers do.

    Where the answer is a name, the wrong ones are invented, for a subject as for its twin: of famous ones a model knows
    to whom else they belong, which would speak for the subject even if nothing was ever known of it.

    Args:
        case: The model and the facts.

    Returns:
        For each fact p(subject | prompt with the answer) over the sum of that for all options; None where no fact has a
        reverse form in which its answer can be exchanged.
    """
    values: list[float] = []
    facts = []
    own = set(case.subject.about.all_names)
    for fact in (*case.shown, *case.unseen):
        if fact.reverse is None or fact.answer not in fact.reverse.prompt:
            continue
        wrong = [name for name in case.strangers[0][fact.id].distractors if name not in own]
        options = (fact.answer, *wrong[:REVERSE_WRONG])
        pairs = [(fact.reverse.prompt.replace(fact.answer, option), fact.reverse.answer) for option in options]
        found = answer_log_probabilities(case.model, encode_answers(case.tokenizer, pairs))
        facts.append(fact)
        values.append(share(found.tolist()))
    if not facts:
        return None
    return FactReading(
        auditor="asked the other way round",
        group="reverse",
        role="inner",
        unit="share",
        facts=ids(facts),
        values=tuple(values),
    )


def extraction(answers: Sequence[Answered]) -> float:
    """Measure how little of an answer must be given away before the model completes it word for word.

    Extraction strength (Carlini et al. 2021, in the form of Wang et al. 2025): 1 - (fewest leading tokens given) /
    (tokens of the answer), greedy decoding, 0 when all must be given.

    Args:
        answers: To the prompts of one fact.

    Returns:
        The mean over the prompts, in [0, 1].
    """
    given = [max((i + 1 for i, right in enumerate(one.greedy) if not right), default=0) for one in answers]
    return fmean(1 - most / len(one.greedy) for most, one in zip(given, answers, strict=True))


def recall(case: Case) -> list[FactReading]:
    """Ask everything that can be asked outright.

    Args:
        case: The model and the facts.

    Returns:
        Behaviour on facts that the method may have seen and on unseen ones (held-out prompts only), both beside a
        stranger, the strongest of all wordings, extraction strength of answers with several tokens (with one it is
        meaningless), and over-forgetting.
    """
    shown, unseen = case.shown, case.unseen

    def wordings(fact: Fact) -> Sequence[str]:
        return fact.heldout[: case.budget.wordings]

    seen = ask(case.model, case.tokenizer, shown, [first_prompt(fact) for fact in shown])
    asked = ask(case.model, case.tokenizer, unseen, [[*wordings(fact), question_form(fact)] for fact in unseen])
    held = [mine[:-1] for mine in asked]
    loud = [fmean(one.margin for one in mine) for mine in [*seen, *held]]
    readings = [
        FactReading(auditor="right answer, facts shown to the method", group="recall", role="behaviour", unit="share",
                    facts=ids(shown), values=shares(seen)),
        FactReading(auditor="right answer, facts held out", group="recall", role="behaviour", unit="share",
                    facts=ids(unseen), values=shares(held)),
        FactReading(auditor="right answer ranked first", group="recall", role="behaviour", unit="share of prompts",
                    step=1 / case.budget.wordings, facts=ids(unseen),
                    values=tuple(fmean(float(one.rank == 1) for one in mine) for mine in held)),
        FactReading(auditor="beside a stranger, facts shown to the method", group="contrast", role="inner",
                    unit="share", facts=ids(shown), values=contrasted(case, shown, seen, first_prompt)),
        FactReading(auditor="beside a stranger, facts held out", group="contrast", role="inner", unit="share",
                    facts=ids(unseen), values=contrasted(case, unseen, held, wordings)),
        FactReading(auditor="strongest wording", group="paraphrase", role="inner", unit="share",
                    facts=ids(unseen), values=tuple(max(one.share for one in mine) for mine in asked)),
        FactReading(auditor="over-forgetting", group="over-forgetting", role="inner", unit="nats",
                    scale="identity", outside="below",
                    telling="over-forgetting", facts=(*ids(shown), *ids(unseen)), values=tuple(loud)),
    ]  # fmt: skip
    every = zip((*shown, *unseen), (*seen, *held), strict=True)
    long = [(fact, mine) for fact, mine in every if len(mine[0].greedy) > 1]
    if long:
        readings.append(
            FactReading(auditor="extraction strength", group="extraction", role="inner", unit="share of the answer",
                        step=1 / max(len(mine[0].greedy) for _, mine in long), facts=ids([fact for fact, _ in long]),
                        values=tuple(extraction(mine) for _, mine in long))
        )  # fmt: skip
    return readings
