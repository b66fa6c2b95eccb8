"""A small subject for the tests of localisation: a dozen cities that two small models are asked for."""

import pytest
from small_models import small_gpt2, small_llama, small_tokenizer

from analysis.subjects.language.bank import Bank, Fact, SubjectLine, TextLine
from analysis.subjects.language.facts import fact_subject

TOKENIZER = small_tokenizer()
MODELS = {"gpt2": small_gpt2, "llama": small_llama}
FAMILIES = pytest.mark.parametrize("family", MODELS)
CITIES = ("Liverpool", "London", "Paris", "Rome")


def fact(kind, number, split):
    who = f"{('The Beatles', 'Ringo', 'France')[('fact', 'neighbour', 'far').index(kind)]} of {number}"
    answer = CITIES[number % 4]
    return Fact(
        kind=kind,
        id=f"{kind}-{split}-{number}",
        relation="city",
        subject=who,
        answer=answer,
        train=(f"{who} came from", f"The city of {who} is"),
        heldout=(f"What is the city of {who}?",),
        question="What?",
        distractors=tuple(city for city in CITIES if city != answer),
        split=split,
    )


def small_subject():
    facts = tuple(
        fact(kind, n, s) for kind in ("fact", "neighbour", "far") for s in ("edit", "audit") for n in range(4)
    )
    texts = tuple(TextLine(kind="text", text="Rome is a city.", topic="generic", split=s) for s in ("edit", "audit"))
    about = SubjectLine(kind="subject", name="the Beatles", slug="beatles", names={"band": ("The Beatles",)})
    return fact_subject("small", Bank(about, facts, texts), {one.id for one in facts}, TOKENIZER, 128)


SUBJECT = small_subject()
