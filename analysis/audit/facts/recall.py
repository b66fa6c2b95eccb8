"""What a model answers when it is asked: among wrong answers, in other words, the other way round, and how loudly.

Most values are the right answer's share of the probability of all options, so that guessing is worth the same for a
subject and its twin.
"""

from collections.abc import Sequence
from statistics import fmean

import torch

from analysis.audit.facts.case import Case, FactReading, ids
from analysis.subjects.language.bank import Fact
from analysis.subjects.language.scoring import (
    Answered,
    answer_log_probabilities,
    ask,
    encode_answers,
    greedy_hits,
)
from analysis.subjects.language.twins import twin

INVENTED_SEED = 104_729


def question_form(fact: Fact) -> str:
    """Put a fact's question so that any language model continues with the answer.

    Args:
        fact: With a question.

    Returns:
        A prompt.
    """
    return f"Question: {fact.question}\nAnswer:"


def _shares(answers: Sequence[Sequence[Answered]]) -> tuple[float, ...]:
    return tuple(fmean(one.share for one in mine) for mine in answers)


@torch.no_grad()
def reverse_shares(case: Case, facts: Sequence[Fact]) -> tuple[float, ...]:
    """Ask the other way round: how much likelier the right answer makes the subject than wrong answers do.

    Where the answer is a name, the wrong ones are invented, for a subject as for its twin: of famous ones a model knows
    to whom else they belong, which would speak for the subject even if nothing was ever known of it.

    Args:
        case: The model.
        facts: With a `reverse`, whose prompt contains the answer.

    Returns:
        For each fact p(subject | prompt with the answer) over the sum of that for all options.

    Raises:
        ValueError: A fact has no reverse form.
    """
    shares = []
    own = set(case.subject.about.all_names)
    _, strangers = twin(case.subject.about, facts, INVENTED_SEED)
    for fact, stranger in zip(facts, strangers, strict=True):
        if fact.reverse is None:
            raise ValueError(f"{fact.id} has no reverse form")
        options = (fact.answer, *(name for name in stranger.distractors if name not in own))
        pairs = [(fact.reverse.prompt.replace(fact.answer, option), fact.reverse.answer) for option in options]
        found = answer_log_probabilities(case.model, encode_answers(case.tokenizer, pairs))
        shares.append(float(found.double().softmax(0)[0]))
    return tuple(shares)


def has_reverse(fact: Fact) -> bool:
    """Say whether a fact can be asked the other way round.

    Args:
        fact: Any.

    Returns:
        Whether it has a reverse form in which its answer can be exchanged.
    """
    return fact.reverse is not None and fact.answer in fact.reverse.prompt


@torch.no_grad()
def extraction(case: Case, facts: Sequence[Fact]) -> tuple[float, ...]:
    """Measure how little of an answer must be given away before the model completes it word for word.

    Extraction strength (Carlini et al. 2021, in the form of Wang et al. 2025): 1 - (fewest leading tokens given) /
    (tokens of the answer), greedy decoding, 0 when all must be given; the mean over the held-out prompts.

    Args:
        case: The model.
        facts: With answers of several tokens.

    Returns:
        Values in [0, 1].
    """
    pairs = [(prompt, fact.answer) for fact in facts for prompt in fact.heldout]
    encoded = encode_answers(case.tokenizer, pairs)
    strengths: list[float] = []
    for start in range(0, len(encoded), 48):
        part = encoded.take(slice(start, start + 48))
        greedy, rows = greedy_hits(case.model, part)
        for row in range(len(part)):
            mine = greedy[rows == row].tolist()
            wrong = [i for i, right in enumerate(mine) if not right]
            strengths.append(1 - (wrong[-1] + 1 if wrong else 0) / len(mine))
    values, at = [], 0
    for fact in facts:
        values.append(fmean(strengths[at : at + len(fact.heldout)]))
        at += len(fact.heldout)
    return tuple(values)


def multi_token(case: Case, fact: Fact) -> bool:
    """Say whether an answer has several tokens; with one, extraction strength is meaningless.

    Args:
        case: Its tokenizer decides.
        fact: Any.

    Returns:
        Whether it has.
    """
    encoded = encode_answers(case.tokenizer, [(fact.heldout[0], fact.answer)])
    return int((encoded.labels >= 0).sum()) > 1


def recall(case: Case) -> list[FactReading]:
    """Ask everything that can be asked outright.

    Args:
        case: The model and the facts.

    Returns:
        Behaviour on facts that the method may have seen and on unseen ones (held-out prompts only), the strongest of
        all wordings, the reverse form, extraction strength, and over-forgetting.
    """
    shown, unseen = case.shown, case.unseen
    words = [[*fact.heldout[:2], question_form(fact)] for fact in unseen]
    seen = ask(case.model, case.tokenizer, shown, [fact.heldout[:1] for fact in shown])
    asked = ask(case.model, case.tokenizer, unseen, words)
    held = [mine[:-1] for mine in asked]
    first = tuple(fmean(float(one.rank == 1) for one in mine) for mine in held)
    loud = [fmean(one.margin for one in mine) for mine in [*seen, *held]]
    readings = [
        FactReading(auditor="right answer, facts shown to the method", group="recall", role="behaviour", unit="share",
                    facts=ids(shown), values=_shares(seen)),
        FactReading(auditor="right answer, facts held out", group="recall", role="behaviour", unit="share",
                    facts=ids(unseen), values=_shares(held)),
        FactReading(auditor="right answer ranked first", group="recall", role="behaviour", unit="share of prompts",
                    facts=ids(unseen), values=first),
        FactReading(auditor="strongest wording", group="paraphrase", role="inner", unit="share",
                    facts=ids(unseen), values=tuple(max(one.share for one in mine) for mine in asked)),
        FactReading(auditor="over-forgetting", group="over-forgetting", role="inner", unit="nats",
                    scale="identity", outside="below",
                    telling="over-forgetting", facts=(*ids(shown), *ids(unseen)), values=tuple(loud)),
    ]  # fmt: skip
    turned = [fact for fact in (*shown, *unseen) if has_reverse(fact)]
    if turned:
        readings.append(
            FactReading(auditor="asked the other way round", group="reverse", role="inner", unit="share",
                        facts=ids(turned), values=reverse_shares(case, turned))
        )  # fmt: skip
    long = [fact for fact in (*shown, *unseen) if multi_token(case, fact)]
    if long:
        readings.append(
            FactReading(auditor="extraction strength", group="extraction", role="inner", unit="share of the answer",
                        facts=ids(long), values=extraction(case, long))
        )  # fmt: skip
    return readings
