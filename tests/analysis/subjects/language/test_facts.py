"""Fact subjects: only known facts take part, each share where it belongs."""

from dataclasses import replace

import pytest
import torch
from small_models import small_tokenizer

from analysis.errors import UserError
from analysis.subjects.language.bank import Bank, Fact, SubjectLine, TextLine
from analysis.subjects.language.encoding import encode_answers, encode_texts, token_ids
from analysis.subjects.language.facts import about_twin, fact_subject
from analysis.subjects.language.twins import twin

TOKENIZER = small_tokenizer()
SPLITS = ("edit", "audit", "choose")
ABOUT = SubjectLine(kind="subject", name="the Beatles", slug="beatles", names={"band": ("Beatles",)})


def fact(kind, number, split):
    return Fact(
        kind=kind,
        id=f"{kind}-{split}-{number}",
        relation="any",
        subject="Beatles",
        answer="Liverpool",
        train=(f"Number {number} of the Beatles is", f"The Beatles had number {number} in"),
        heldout=(f"Where are the Beatles of number {number}? In",),
        question="What?",
        distractors=("Rome", "Paris", "London"),
        split=split,
    )


FACTS = tuple(fact(kind, n, split) for kind in ("fact", "neighbour", "far") for split in SPLITS for n in range(6))
TEXTS = tuple(
    TextLine(kind="text", text=f"{topic} {split} text", topic=topic, split=split)
    for topic in ("generic", "polyseme")
    for split in SPLITS
) + tuple(
    TextLine(kind="text", text=f"{topic} text", topic=topic, split="edit")
    for topic in ("other-bands", "denial", "random-facts")
)
BANK = Bank(ABOUT, FACTS, TEXTS)


def made(bank=BANK, unknown=(), **options):
    known = {one.id for one in bank.facts} - set(unknown)
    return fact_subject("beatles", bank, known, TOKENIZER, 128, **options)


def of(kinds, split, unknown=()):
    return tuple(one for one in FACTS if one.kind in kinds and one.split == split and one.id not in unknown)


@pytest.mark.parametrize(("choosing", "test"), [(False, "audit"), (True, "choose")])
def test_every_share_goes_where_it_belongs(choosing, test):
    unknown = {"fact-edit-1", "fact-audit-0", "fact-choose-5", "neighbour-edit-2", "far-audit-3"}
    subject = made(unknown=unknown, choosing=choosing)
    assert subject.forget == of(["fact"], "edit", unknown)
    assert subject.forget_test == of(["fact"], test, unknown)
    assert subject.retain == of(["neighbour", "far"], "edit", unknown)
    assert subject.retain_test == of(["neighbour", "far"], test, unknown)
    assert subject.texts == ("generic edit text", "polyseme edit text")
    assert subject.texts_test == (f"generic {test} text", f"polyseme {test} text")
    assert subject.lessons == {topic: (f"{topic} text",) for topic in ("other-bands", "denial", "random-facts")}
    # Of the shares that take part.
    assert subject.counts == {"fact": (10, 12), "neighbour": (11, 12), "far": (12 if choosing else 11, 12)}
    assert subject.forget_names == "the Beatles"


def test_choosing_and_auditing_share_no_test():
    audit, choose = made(), made(choosing=True)
    assert audit.forget == choose.forget
    assert not {one.id for one in (*audit.forget_test, *audit.retain_test)} & {
        one.id for one in (*choose.forget_test, *choose.retain_test)
    }
    assert not set(audit.texts_test) & set(choose.texts_test)


@pytest.mark.parametrize(("split", "choosing"), [("edit", False), ("audit", False), ("edit", True), ("choose", True)])
def test_too_few_known_facts(split, choosing):
    enough = {f"fact-{split}-{n}" for n in range(2)}
    assert made(unknown=enough, choosing=choosing)
    with pytest.raises(UserError, match=f'only 3 of the bank\'s 6 facts about the Beatles in split "{split}"'):
        made(unknown=enough | {f"fact-{split}-4"}, choosing=choosing)


def test_the_other_share_may_be_unknown():
    unused = {f"fact-choose-{n}" for n in range(6)}
    assert made(unknown=unused).forget_test == of(["fact"], "audit")
    with pytest.raises(UserError, match="only 0 of the bank's 6"):
        made(unknown=unused, choosing=True)


@pytest.mark.parametrize("split", ["edit", "audit"])
def test_something_must_stay(split):
    without = tuple(line for line in TEXTS if line.split != split or line.topic in {"denial", "other-bands"})
    with pytest.raises(UserError, match="too little that must stay"):
        made(Bank(ABOUT, FACTS, without))
    with pytest.raises(UserError, match="too little that must stay"):
        made(unknown={one.id for one in of(["neighbour", "far"], split)})


def test_encodings():
    subject = made()
    for found, facts in ((subject.forget_encoded, subject.forget), (subject.retain_encoded, subject.retain)):
        expected = encode_answers(TOKENIZER, [(prompt, one.answer) for one in facts for prompt in one.train])
        assert torch.equal(found.ids, expected.ids)
        assert torch.equal(found.labels, expected.labels)
    assert torch.equal(subject.texts_encoded.ids, encode_texts(TOKENIZER, subject.texts).ids)
    pairs = [("The Beatles came from", "Liverpool")]
    assert torch.equal(subject.encode(pairs).labels, encode_answers(TOKENIZER, pairs).labels)
    short = replace(made(), longest=3)
    for ask in (lambda: short.forget_encoded, lambda: short.texts_encoded, lambda: short.encode(pairs)):
        with pytest.raises(UserError, match="reads at most 3"):
            ask()


def test_what_the_model_cannot_read_is_refused_before_anything_long_begins():
    known = {one.id for one in FACTS}
    longest = max(
        len(token_ids(TOKENIZER, f"{text} {widest}"))
        for one in made().forget
        for widest in [max((one.answer, *one.aliases, *one.distractors), key=len)]
        for text in (*one.prompts, f"Question: {one.question}\nAnswer:")
    )
    with pytest.raises(UserError, match=rf"has \d+ tokens, but the model reads at most {longest - 1}"):
        fact_subject("beatles", BANK, known, TOKENIZER, longest - 1)
    long = replace(BANK, texts=(*BANK.texts, TextLine(kind="text", text="so " * 300, topic="generic", split="audit")))
    with pytest.raises(UserError, match="The text 'so so"):
        fact_subject("beatles", long, known, TOKENIZER, 200)


def test_a_twin_takes_the_place_of_what_is_forgotten():
    subject = made()
    about, told = twin(subject.about, [*subject.forget, *subject.forget_test], 0)
    other = about_twin(subject, told, about)
    assert [one.id for one in other.forget] == [one.id for one in subject.forget]
    assert [one.id for one in other.forget_test] == [one.id for one in subject.forget_test]
    assert other.retain == subject.retain
    assert other.forget_names == about.name != subject.forget_names
    # Encodings are those of the twin, even after the subject's were used.
    assert not torch.equal(subject.forget_encoded.ids, other.forget_encoded.ids)


@pytest.mark.parametrize(
    ("forget", "retain", "sizes"), [(1, 1, (6, 12, 2)), (0.5, 0.25, (3, 3, 0)), (0.01, 0, (1, 0, 0))]
)
def test_less_can_be_seen_of_what_a_method_sees_and_all_of_what_is_asked(forget, retain, sizes):
    subject = made()
    inner = subject.seen(forget, retain, 0)
    assert (len(inner.forget), len(inner.retain), len(inner.texts)) == sizes
    assert set(inner.forget) <= set(subject.forget)
    assert set(inner.retain) <= set(subject.retain)
    assert len(inner.forget_encoded) == 2 * sizes[0]
    assert inner == replace(subject, forget=inner.forget, retain=inner.retain, texts=inner.texts)
    assert subject.seen(forget, retain, 0) == inner
