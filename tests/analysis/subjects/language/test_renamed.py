"""Texts retold about strangers: the same words at the aligned places, and the names' tokens found."""

from dataclasses import replace

import pytest
from small_models import ABOUT, small_tokenizer

from analysis.errors import UserError
from analysis.subjects.language.bank import Bank, Fact, TextLine
from analysis.subjects.language.facts import fact_subject
from analysis.subjects.language.renamed import (
    OF_THINGS,
    SENTENCES,
    _alike,
    fact_texts,
    name_texts,
    other_name_texts,
    retell,
)

TOKENIZER = small_tokenizer()
TEXTS = (
    "John Lennon sang the album Abbey Road.",
    "In 1969 the Beatles came from Liverpool and Lennon",
    "Paris is the capital of France.",
    "Abbey Road, the name of the album (the Beatles)",
)


def words(ids, positions):
    return TOKENIZER.decode([ids[i] for i in positions])


def test_texts_without_a_name_are_left_out_and_names_become_strangers():
    found = retell(TOKENIZER, ABOUT, TEXTS, 3, 0)
    assert [one.text for one in found] == [TEXTS[0], TEXTS[1], TEXTS[3]]
    for one in found:
        assert TOKENIZER.decode(one.ids) == one.text
        texts = [TOKENIZER.decode(told.ids) for told in one.retold]
        assert len(set(texts)) == 3
        for told in texts:
            assert not any(name in told for name in ABOUT.all_names)


def test_aligned_places_hold_the_same_token_or_end_the_same_name():
    for one in retell(TOKENIZER, ABOUT, TEXTS, 4, 1):
        for told in one.retold:
            ends = {(mine[-1], theirs[-1]) for mine, theirs in told.names}
            if first := _first_name(one):
                ends.add((max(first), told.places[0][1]))
            inside = {i for mine, _ in told.names for i in mine} | first
            for i, j, _ in told.places:
                assert (i, j) in ends or (one.ids[i] == told.ids[j] and i not in inside)
            assert {i for i, _, _ in told.places} == set(range(1, len(one.ids))) - inside | {i for i, _ in ends}
            assert [j for _, j, _ in told.places] == sorted(j for _, j, _ in told.places)


def _first_name(one):
    # Tokens of a name at the very beginning, which is not among the names that something predicts.
    length = next((len(name) for name in ABOUT.all_names if one.text.startswith(name)), 0)
    count = 0
    while len(TOKENIZER.decode(one.ids[:count])) < length:
        count += 1
    return set(range(count))


def test_names_are_whole_and_marked_from_the_first_on():
    one = retell(TOKENIZER, ABOUT, TEXTS, 1, 0)[1]
    told = one.retold[0]
    assert [words(one.ids, mine).strip() for mine, _ in told.names] == ["the Beatles", "Lennon"]
    begin = told.names[0][0][0]
    assert all(after == (i >= begin) for i, _, after in told.places)
    assert any(not after for _, _, after in told.places)


def test_a_name_that_begins_the_text_is_not_asked_for_but_its_end_is_compared():
    one = retell(TOKENIZER, ABOUT, TEXTS, 1, 0)[0]
    told = one.retold[0]
    assert [words(one.ids, mine).strip() for mine, _ in told.names] == ["Abbey Road"]
    assert told.places[0][0] == max(_first_name(one))


def test_the_same_seed_tells_the_same_and_another_tells_otherwise():
    assert retell(TOKENIZER, ABOUT, TEXTS, 2, 5) == retell(TOKENIZER, ABOUT, TEXTS, 2, 5)
    assert retell(TOKENIZER, ABOUT, TEXTS, 2, 5) != retell(TOKENIZER, ABOUT, TEXTS, 2, 6)


def test_every_name_stands_in_the_sentences_of_its_kind():
    texts = name_texts(ABOUT)
    assert len(texts) == 2 * len(SENTENCES["band"]) + 2 * len(SENTENCES["person"]) + len(OF_THINGS)
    assert "Lennon was born in" in texts
    assert "Abbey Road was made by" in texts


def test_a_subject_nobody_mentions_is_refused():
    with pytest.raises(UserError, match="No training prompt names the subject"):
        retell(TOKENIZER, ABOUT, ["Paris is the capital."], 2, 0)


class Slow:
    """A tokenizer that can't say where its tokens come from."""

    is_fast = False


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(UserError, match="fast tokenizer"):
        retell(Slow(), ABOUT, TEXTS, 2, 0)


def fact(number, answer, wrong, kind="fact", split="edit"):
    return Fact(
        kind=kind, id=f"{kind}-{split}-{number}", relation="album", subject="John Lennon", answer=answer,
        train=("John Lennon sang on", "John Lennon came from"), heldout=("Where was John Lennon?",), question="What?",
        distractors=wrong, split=split,
    )  # fmt: skip


def test_names_that_stay_are_wrong_answers_to_facts_about_names():
    facts = [
        fact(0, "Abbey Road", ("Let It Bleed", "Pet Sounds", "John Lennon")),
        fact(1, "Abbey Road", ("Pet Sounds", "Aftermath", "Tommy")),
        fact(2, "the Beatles", ("the Kinks", "Pet Sounds", "the Who")),
        fact(3, "Liverpool", ("Rome", "Paris", "London")),
    ]
    facts += [fact(n, "Abbey Road", ("Unseen", "Unheard", "Unread"), split="audit") for n in range(4)]
    facts += [fact(0, "Rome", ("Paris", "London", "Oslo"), "far", split) for split in ("edit", "audit")]
    texts = tuple(TextLine(kind="text", text="Rome is a city.", topic="generic", split=s) for s in ("edit", "audit"))
    bank = Bank(ABOUT, tuple(facts), texts)
    subject = fact_subject("small", bank, {one.id for one in facts}, TOKENIZER, 128)
    expected = [s.format(name) for name in ("Let It Bleed", "Pet Sounds", "Aftermath", "Tommy") for s in OF_THINGS]
    expected += [s.format(name) for name in ("the Kinks", "Pet Sounds", "the Who") for s in SENTENCES["band"]]
    assert other_name_texts(subject) == expected
    assert fact_texts(subject)[:2] == ["John Lennon sang on Abbey Road", "John Lennon came from Abbey Road"]
    assert len(fact_texts(subject)) == 8


def test_a_name_that_some_retelling_does_not_predict_counts_in_none():
    one = retell(TOKENIZER, ABOUT, TEXTS, 2, 0)[1].retold
    assert len(one[0].names) == 2
    less = replace(one[1], names=one[1].names[1:])
    assert [told.names for told in _alike((one[0], less))] == [one[0].names[1:], less.names]


def test_texts_that_outgrow_the_context_when_retold_are_left_out():
    every = retell(TOKENIZER, ABOUT, TEXTS, 3, 0)
    widths = [max(len(one.ids), *(len(told.ids) for told in one.retold)) for one in every]
    fits = retell(TOKENIZER, ABOUT, TEXTS, 3, 0, min(widths))
    assert [one.text for one in fits] == [
        o.text for o, width in zip(every, widths, strict=True) if width == min(widths)
    ]
    assert len(fits) < len(every)
