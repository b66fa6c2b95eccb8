"""What must stay: neighbours, far facts, and plain text."""

import random
from statistics import fmean

from analysis.audit.facts.case import Case, FactReading, ids
from analysis.subjects.language.encoding import encode_texts
from analysis.subjects.language.scoring import ask, row_losses


def retained(case: Case) -> list[FactReading]:
    """Ask about what was not to be forgotten, in held-out words and on facts and texts that no method saw.

    Args:
        case: The model; its own facts are not asked about.

    Returns:
        Shares of the right answers for as many neighbours as far facts, and the loss on text.
    """
    chance = random.Random(case.seed)
    facts = list(case.subject.retain_test)
    chance.shuffle(facts)
    half = case.budget.retained // 2
    near, far = ([fact for fact in facts if fact.kind == kind] for kind in ("neighbour", "far"))
    chosen = case.some([*near[:half], *far[:half]], 2 * half)
    answers = ask(case.model, case.tokenizer, chosen, [fact.heldout[:1] for fact in chosen])
    readings = [
        FactReading(auditor="right answer, kept facts", group="retained", role="damage", unit="share",
                    outside="below", telling="over-forgetting", facts=ids(chosen),
                    values=tuple(mine[0].share for mine in answers))
    ]  # fmt: skip
    texts = list(case.subject.texts_test)
    chance.shuffle(texts)
    texts = texts[: case.budget.texts]
    losses = row_losses(case.model, encode_texts(case.tokenizer, texts, case.subject.longest))
    readings.append(
        FactReading(auditor="loss on plain text", group="retained", role="damage", unit="nats per token",
                    outside="above", scale="identity", telling="over-forgetting",
                    facts=tuple(f"text-{i}" for i in range(len(texts))),
                    values=tuple(losses.tolist()))
    )  # fmt: skip
    return readings


def drawn_again(reading: FactReading, harmless: FactReading, seed: int) -> FactReading:
    """Draw what another model shows that is as good as the original on the whole, but not the same.

    Twins have no neighbours of their own, so the band comes from a harmless change: each value of the original is moved
    by what that change did to a value drawn at random, less what it did on average. Comparing like with like, fact by
    fact, sees losses that drown in the differences between facts.

    Args:
        reading: Of the original.
        harmless: The same auditor's, of a copy fine-tuned for a moment on texts that have nothing to do with anything.
        seed: Of the draw.

    Returns:
        The reading of the draw.
    """
    chance = random.Random(seed)
    moved = [new - old for new, old in zip(harmless.values, reading.values, strict=True)]
    drift = fmean(moved)
    values = tuple(value + chance.choice(moved) - drift for value in reading.values)
    return reading.model_copy(update={"values": values})
