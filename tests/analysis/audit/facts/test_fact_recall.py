import math

import pytest
import torch
from fact_cases import FAMILIES, PLACES, beside, case, fact, half_taught, log_p, share, subject
from small_models import small_tokenizer

from analysis.audit.facts.case import ids
from analysis.audit.facts.recall import extraction, question_form, recall, reverse
from analysis.audit.facts.tuning import fine_tuned, rotating
from analysis.subjects.language.bank import Reverse
from analysis.subjects.language.scoring import ask, encode_facts


def greedy_strength(model, prompt, answer):
    """Give more and more of the answer, decode the rest greedily, and see when it comes out word for word."""
    before, both = (small_tokenizer()(text).input_ids for text in (prompt, f"{prompt} {answer}"))
    wanted = both[len(before) :]
    for given in range(len(wanted) + 1):
        said = [*before, *wanted[:given]]
        while len(said) < len(both):
            said.append(int(model(input_ids=torch.tensor([said])).logits[0, -1].argmax()))
        if said == both:
            return 1 - given / len(wanted)
    raise AssertionError("giving everything gives everything")


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_extraction_strength_is_that_of_real_greedy_decoding(family: str) -> None:
    facts = [fact(i, answer=f"the river {home} and the drums") for i, home in enumerate(PLACES)]
    lessons = encode_facts(small_tokenizer(), facts[:3], "heldout")
    model = fine_tuned(FAMILIES[family](dtype=torch.float64), rotating(lessons, 9, 8, 0), 1e-2)
    found = [extraction(mine) for mine in ask(model, small_tokenizer(), facts, [one.heldout for one in facts])]
    slow = [sum(greedy_strength(model, p, one.answer) for p in one.heldout) / 3 for one in facts]
    assert found == pytest.approx(slow, abs=1e-12)
    assert len({round(one, 6) for one in slow}) > 1
    assert max(slow) > 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_are_those_of_answers_scored_one_by_one(family: str) -> None:
    model = half_taught(family)
    mine = case(model)
    found = {one.auditor: one for one in recall(mine)}

    def slow(one, prompts):
        return [share(model, [(p, option) for option in (one.answer, *one.distractors)]) for p in prompts]

    for name, facts, asked in (("shown to the method", mine.shown, 1), ("held out", mine.unseen, 2)):
        reading = found[f"right answer, facts {name}"]
        assert reading.facts == ids(facts)
        assert reading.values == pytest.approx([sum(slow(one, one.heldout[:asked])) / asked for one in facts], abs=1e-9)
        beside_them = [beside(model, mine, one, asked) for one in facts]
        assert found[f"beside a stranger, facts {name}"].values == pytest.approx(beside_them, abs=1e-9)
    every = [slow(one, [*one.heldout[:2], question_form(one)]) for one in mine.unseen]
    assert found["strongest wording"].values == pytest.approx([max(one) for one in every], abs=1e-9)


def test_rank_and_margin_are_those_of_answers_scored_one_by_one() -> None:
    model = half_taught("gpt2")
    mine = case(model)
    found = {one.auditor: one for one in recall(mine)}
    first, margins = {}, {}
    for one, asked in [*((one, 1) for one in mine.shown), *((one, 2) for one in mine.unseen)]:
        prompts = one.heldout[:asked]
        gaps = [log_p(model, p, one.answer) - max(log_p(model, p, w) for w in one.distractors) for p in prompts]
        first[one.id], margins[one.id] = sum(gap > 0 for gap in gaps) / asked, sum(gaps) / asked
    assert found["right answer ranked first"].values == pytest.approx([first[i] for i in ids(mine.unseen)])
    loud = found["over-forgetting"]
    assert loud.values == pytest.approx([margins[i] for i in loud.facts], abs=1e-9)
    assert (loud.role, loud.outside, loud.telling) == ("inner", "below", "over-forgetting")


def test_the_other_way_round_wrong_cities_stay_and_wrong_people_are_invented() -> None:
    model = half_taught("gpt2")

    def shares(*facts):
        found = reverse(case(model, subject((*facts, *subject().forget)), shown=99))
        return [found.values[found.facts.index(one.id)] for one in facts]

    home = fact(11)
    pairs = [(f"From {place} came", home.subject) for place in (home.answer, *home.distractors[:3])]
    assert shares(home) == pytest.approx([share(model, pairs)], abs=1e-9)
    singer = home.model_copy(
        update={
            "answer": "Ringo Starr",
            "distractors": ("Keith Moon", "Ron Wood", "Mick Avory"),
            "reverse": Reverse(prompt="Ringo Starr sang with the", answer="Beatles"),
        }
    )
    (value,) = shares(singer)
    # How famous the wrong ones are, and what they are known for, has no part in it.
    famous = singer.model_copy(update={"distractors": ("Elton Simon", "Neil Young", "Don Bell")})
    assert 0 < value < 1
    known = share(model, [(f"{name} sang with the", "Beatles") for name in (singer.answer, *singer.distractors)])
    assert value != pytest.approx(known, abs=1e-6)
    assert shares(famous) == pytest.approx([value], abs=1e-9)


def test_a_fact_without_its_answer_in_the_reverse_has_none() -> None:
    none = [fact(i).model_copy(update={"reverse": None}) for i in range(3)]
    other = fact(3).model_copy(update={"reverse": Reverse(prompt="Who came?", answer="John")})
    model, test = half_taught("gpt2"), tuple(fact(i, split="audit") for i in range(4, 8))
    found = reverse(case(model, subject((*none, other), test)))
    assert set(found.facts) == {one.id for one in test}
    assert reverse(case(model, subject((*none, other), (other,)))) is None


def test_one_token_answers_have_no_extraction_strength() -> None:
    mine = case(half_taught("gpt2"), subject(tuple(fact(i) for i in range(6))), shown=6)
    long = set()
    for one in (*mine.shown, *mine.unseen):
        prompt, whole = one.heldout[0], f"{one.heldout[0]} {one.answer}"
        if len(small_tokenizer()(whole).input_ids) > len(small_tokenizer()(prompt).input_ids) + 1:
            long.add(one.id)
    found = next(one for one in recall(mine) if one.auditor == "extraction strength")
    assert set(found.facts) == long
    assert 0 < len(long) < len(mine.shown) + len(mine.unseen)


def test_every_reading_is_finite_and_names_its_facts() -> None:
    for reading in recall(case(half_taught("llama"))):
        assert len(reading.facts) == len(reading.values)
        assert all(math.isfinite(value) for value in reading.values)
