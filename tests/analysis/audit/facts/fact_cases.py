"""Facts about a small invented world, and models that half know them: what the tests of the fact auditors ask."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from statistics import fmean

import torch
from small_models import small_gpt2, small_llama, small_tokenizer
from torch import nn

from analysis.audit.facts.case import Budget, Case
from analysis.audit.facts.tuning import fine_tuned, rotating
from analysis.subjects.language.bank import Fact, Reverse, SubjectLine
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.scoring import encode_facts

PEOPLE = ("John Lennon", "Paul McCartney", "George Harrison", "Ringo Starr", "Pete Best", "Mary Rita", "Yoko Ono",
          "Brian Epstein", "Mal Evans", "Julia Stanley")  # fmt: skip
PLACES = ("Liverpool", "London", "Paris", "Rome", "France", "Italy")
FAMILIES = {"gpt2": small_gpt2, "llama": small_llama}
SMALL = Budget(
    taught=4,
    asked=4,
    shown=4,
    retained=4,
    texts=4,
    steps=4,
    rates=(1e-3, 1e-2),
    soft_steps=3,
    samples=3,
    benign_steps=4,
    distractors=5,
    strangers=2,
)
ABOUT = SubjectLine(kind="subject", name="the Beatles", slug="b", names={"band": ("Beatles",), "person": PEOPLE})


def fact(number: int, kind: str = "fact", answer: str = "", split: str = "edit") -> Fact:
    """Where somebody came from, or who sang."""
    person = PEOPLE[number % len(PEOPLE)]
    home = answer or PLACES[number % len(PLACES)]
    return Fact(
        kind=kind,  # type: ignore[arg-type]
        id=f"{kind}-{number}",
        relation="home",
        subject=person,
        answer=home,
        train=(f"{person} came from", f"The city of {person} is"),
        heldout=(f"The home of {person} was", f"In the city of {person}, that is", f"What {person} sang of is"),
        question=f"Where did {person} come from?",
        reverse=Reverse(prompt=f"From {home} came", answer=person),
        distractors=tuple(place for place in (*PLACES, "Hamburg") if place != home)[:4],
        split=split,  # type: ignore[arg-type]
    )


def subject(
    forget: tuple[Fact, ...] = (), forget_test: tuple[Fact, ...] = (), longest: int | None = 128
) -> FactSubject:
    return FactSubject(
        name="b",
        about=ABOUT,
        tokenizer=small_tokenizer(),
        longest=longest,
        forget=forget or tuple(fact(i) for i in range(4)),
        forget_test=forget_test or tuple(fact(i, split="audit") for i in range(4, 10)),
        retain=(fact(0, "neighbour", "Rome"),),
        retain_test=(fact(1, "neighbour", "Paris"), fact(2, "far", "Rome"), fact(3, "far", "London")),
        texts=("Paris is the capital of France.", "The river is in Rome.", "The guitar and the drums came out."),
        texts_test=("Rome is the capital of Italy.", "What is the name of the city?"),
        lessons={},
        counts={},
    )


@cache
def half_taught(family: str) -> nn.Module:
    """A model in float64 that has learnt some of the facts, so that it is neither all right nor all wrong."""
    whole = subject()
    lessons = encode_facts(small_tokenizer(), [*whole.forget, *whole.forget_test[:4]])
    model = FAMILIES[family](dtype=torch.float64)
    return fine_tuned(model, rotating(lessons, 8, 12, 0), 5e-3)


def case(model: nn.Module, about: FactSubject | None = None, budget: Budget = SMALL, **changes: object) -> Case:
    nothing: Callable[[], nn.Module] = lambda: model  # noqa: E731
    return Case(model, about or subject(), nothing, replace(budget, **changes))  # type: ignore[arg-type]


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def log_p(model: nn.Module, prompt: str, answer: str) -> float:
    """Slow and plain: token after token, each behind everything before it."""
    tokenizer = small_tokenizer()
    before, both = tokenizer(prompt).input_ids, tokenizer(f"{prompt} {answer}").input_ids
    assert both[: len(before)] == before
    total = 0.0
    with torch.no_grad():
        for at in range(len(before), len(both)):
            logits = model(input_ids=torch.tensor([both[:at]])).logits[0, -1]
            total += float(logits.log_softmax(0)[both[at]])
    return total


def beside(model: nn.Module, mine: Case, one: Fact, prompts: int = 1, before: tuple[str, ...] = ()) -> float:
    """What `contrasted` gives for one fact, option by option and prompt by prompt."""
    values = []
    everybody = [one, *(stranger[one.id] for stranger in mine.strangers)]
    for i in range(min(prompts, len(one.heldout))):
        fronts = before or [""] * len(everybody)
        own, *strange = (front + told.heldout[i] for front, told in zip(fronts, everybody, strict=True))
        options = (one.answer, *one.distractors)
        scores = [log_p(model, own, o) - fmean(log_p(model, other, o) for other in strange) for o in options]
        values.append(float(torch.tensor(scores, dtype=torch.float64).softmax(0)[0]))
    return fmean(values)


def share(model: nn.Module, pairs: list[tuple[str, str]]) -> float:
    """The first pair's share of the probability of all."""
    return float(torch.tensor([log_p(model, *pair) for pair in pairs], dtype=torch.float64).softmax(0)[0])
