import pytest
from fact_cases import SMALL, case, fact, subject
from small_models import small_gpt2, small_tokenizer

from analysis.audit.facts.case import ids
from analysis.subjects.language.bank import load_bank
from analysis.subjects.language.facts import about_twin, fact_subject
from analysis.subjects.language.twins import twin


def test_attackers_are_judged_on_answers_that_they_were_not_shown() -> None:
    forget = tuple(fact(i, answer=("Rome", "Rome", "Rome", "London", "Paris")[i]) for i in range(5))
    test = tuple(fact(i, answer=("Rome", "Italy", "France", "Liverpool")[i - 5], split="audit") for i in range(5, 9))
    mine = case(small_gpt2(), subject(forget, test), taught=3)
    # Two answers that nobody is asked about go first; then Rome is given away once, and no longer asked.
    assert sorted(one.answer for one in mine.taught) == ["London", "Paris", "Rome"]
    assert {one.answer for one in mine.asked} == {"Italy", "France", "Liverpool"}


def test_an_answer_is_also_given_away_by_another_name_of_it() -> None:
    forget = tuple(fact(i, answer="Rome") for i in range(4))
    other = fact(5, answer="Italy", split="audit").model_copy(update={"aliases": ("rome",)})
    mine = case(small_gpt2(), subject(forget, (other, *(fact(i, answer="Paris", split="audit") for i in range(6, 9)))))
    assert {one.answer for one in mine.asked} == {"Paris"}


def test_with_no_other_answers_left_all_unseen_facts_are_asked() -> None:
    forget = tuple(fact(i, answer="Rome") for i in range(4))
    mine = case(small_gpt2(), subject(forget, tuple(fact(i, answer="Rome", split="audit") for i in range(5, 9))))
    assert mine.asked == mine.unseen
    assert len(mine.unseen) == SMALL.asked


def test_the_budget_bounds_every_choice_and_the_seed_decides_it() -> None:
    every = tuple(fact(i) for i in range(10))
    mine, again = (case(small_gpt2(), subject(every, every), taught=3, asked=5, shown=6) for _ in range(2))
    assert (len(mine.taught), len(mine.unseen), len(mine.shown)) == (3, 5, 6)
    assert (mine.taught, mine.unseen, mine.shown) == (again.taught, again.unseen, again.shown)
    assert len(set(ids(mine.shown))) == 6


@pytest.mark.parametrize("bank", ["beatles", "einstein"])
def test_a_twin_is_asked_and_taught_the_same_facts(bank: str) -> None:
    whole = load_bank(bank)
    real = fact_subject("b", whole, {one.id for one in whole.facts}, small_tokenizer(), None)
    about, told = twin(real.about, [*real.forget, *real.forget_test], 3)
    mine, other = case(small_gpt2(), real), case(small_gpt2(), about_twin(real, told, about))
    for which in ("shown", "unseen", "taught", "asked"):
        assert ids(getattr(mine, which)) == ids(getattr(other, which))
    assert not {one.heldout for one in mine.unseen} & {one.heldout for one in other.unseen}


def test_a_case_is_set_beside_as_many_strangers_as_the_budget_says() -> None:
    mine, fewer = (case(small_gpt2(), strangers=count) for count in (3, 2))
    assert fewer.strangers == mine.strangers[:2]
    assert [set(stranger) for stranger in mine.strangers] == [
        {*ids(mine.subject.forget + mine.subject.forget_test)}
    ] * 3
    prompts = [{prompt for one in told.values() for prompt in one.heldout} for told in mine.strangers]
    own = {prompt for one in (*mine.shown, *mine.unseen) for prompt in one.heldout}
    assert not any(one & other for i, one in enumerate(prompts) for other in (own, *prompts[:i]))
