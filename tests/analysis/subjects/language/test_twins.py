"""Fictional twins of the built-in banks: nothing of the subject is left, and every fact is still one."""

import re

import pytest

from analysis.subjects.language.bank import BUILTIN, Fact, Reverse, SubjectLine, load_bank
from analysis.subjects.language.twins import twin

SEEDS = (0, 1, 1000, 2007)


def said(fact):
    reverse = (fact.reverse.prompt, fact.reverse.answer) if fact.reverse else ()
    return (*fact.prompts, fact.subject, fact.question, fact.answer, *fact.aliases, *reverse)


@pytest.fixture(scope="module", params=[(name, seed) for name in BUILTIN for seed in SEEDS], ids=str)
def told(request):
    name, seed = request.param
    bank = load_bank(name)
    return bank, *twin(bank.subject, bank.of("fact"), seed)


def test_no_name_survives(told):
    bank, about, facts = told
    single = "|".join(re.escape(name) for name in bank.subject.all_names if " " not in name)
    several = "|".join(re.escape(name) for name in bank.subject.all_names if " " in name)
    # Small letters hide no title of several words; one word such as "help" is a common one then.
    left = re.compile(rf"(?<!\w)({single}|(?i:{several}))(?!\w)")
    for fact in facts:
        for text in (*said(fact), *fact.distractors):
            assert not left.search(text), (fact.id, text)
    for text in (about.name, *about.all_names, *about.prompts):
        assert not left.search(text), text


@pytest.mark.parametrize(
    ("bank", "words"),
    [
        ("beatles", "Beatle Lennon McCartney Harrison Starr Starkey Epstein Sutcliffe Ono Yoko Ringo Pepper Cavern"),
        ("einstein", "Einstein Mileva Elsa Maric relativity Rosen"),
    ],
)
def test_no_part_of_a_name_survives(bank, words):
    # Inside longer words too: Beatlesque, einsteinium.
    whole = load_bank(bank)
    for fact in twin(whole.subject, whole.of("fact"), 3)[1]:
        for text in said(fact):
            assert not re.search(rf"\b({words.replace(' ', '|')})", text, re.IGNORECASE), (fact.id, text)


def test_every_fact_keeps_its_shape(told):
    bank, _, facts = told
    for old, new in zip(bank.of("fact"), facts, strict=True):
        assert (new.id, new.relation, new.kind, new.split) == (old.id, old.relation, old.kind, old.split)
        assert (len(new.train), len(new.heldout)) == (len(old.train), len(old.heldout))
        assert len(new.aliases) == len(old.aliases)
        assert (new.reverse is None) == (old.reverse is None)
        # The schema's own rules: the subject a span of each prompt, at least 3 distractors, none continuing the answer.
        assert Fact.model_validate(new.model_dump()) == new
        assert len(new.distractors) >= 3
        for prompt in new.prompts:
            assert new.subject in prompt
            assert not re.search(rf"(?<!\w){re.escape(new.answer)}(?!\w)", prompt)
        for wrong in new.distractors:
            assert not wrong.casefold().startswith(new.answer.casefold())
            assert wrong not in new.aliases
        if old.reverse is not None and old.answer in old.reverse.prompt:
            assert new.answer in new.reverse.prompt


def test_a_name_is_the_same_everywhere(told):
    bank, about, facts = told
    # The rest of a text is untouched: renaming back restores it.
    old = [name for kind in bank.subject.names for name in bank.subject.names[kind]]
    new = [name for kind in about.names for name in about.names[kind]]
    assert len(old) == len(new)
    seen = {}
    for mine, theirs in zip(bank.of("fact"), facts, strict=True):
        if mine.answer in old:
            assert theirs.answer == new[old.index(mine.answer)]
            assert seen.setdefault(mine.answer, theirs.answer) == theirs.answer
        elif not any(name in mine.answer for name in old):
            assert theirs.answer == mine.answer
    assert len(set(seen.values())) == len(seen)


def test_different_names_stay_different(told):
    bank, about, facts = told
    pairs = {
        (old, new)
        for kind in ("person", "song", "album", "film", "firm", "place")
        for old, new in zip(bank.subject.names.get(kind, ()), about.names.get(kind, ()), strict=True)
    }
    pairs |= {
        (old, new)
        for mine, theirs in zip(bank.of("fact"), facts, strict=True)
        if mine.answer != theirs.answer and len(mine.distractors) == len(theirs.distractors)
        for old, new in zip(mine.distractors, theirs.distractors, strict=True)
    }
    byname = {}
    for old, new in pairs:
        # "the Cavern" and "Cavern" are one name.
        old, new = (re.sub("^[Tt]he ", "", name) for name in (old, new))
        assert byname.setdefault(new, old).casefold().rstrip("!") == old.casefold().rstrip("!"), (new, old)
    last = dict(zip(bank.subject.names["person"], about.names["person"], strict=True))
    if "Lennon" in last:
        assert last["John Lennon"].endswith(" " + last["Lennon"])
        assert last["Julian Lennon"] == f"{last['Julian']} {last['Lennon']}"


@pytest.mark.parametrize("name", BUILTIN)
def test_the_seed_decides(name):
    bank = load_bank(name)
    facts = bank.of("fact")
    assert twin(bank.subject, facts, 5) == twin(bank.subject, facts, 5)
    first, second = twin(bank.subject, facts, 5), twin(bank.subject, facts, 6)
    assert first[0].names != second[0].names
    changed = [a for a, b in zip(first[1], second[1], strict=True) if a.prompts != b.prompts]
    assert len(changed) > len(facts) / 2
    assert bank == load_bank(name)


# --- cases that our own banks hardly have

ABOUT = SubjectLine(
    kind="subject",
    name="the Crows",
    slug="crows",
    names={"band": ("The Crows", "Crows"), "album": ("Meet the Crows",), "person": ("Ann Poe", "Poe", "Ann")},
)


def fact(**changes):
    plain = {
        "kind": "fact", "id": "one", "relation": "any", "subject": "Crows", "answer": "Hull",
        "train": ("The Crows came from",), "heldout": ("Meet the Crows was made in",), "question": "Where?",
        "distractors": ("Leeds", "York", "Bath"), "split": "edit",
    }  # fmt: skip
    return Fact(**(plain | changes))


def test_a_subject_inside_a_longer_name_is_kept():
    about, (new,) = twin(ABOUT, [fact()], 0)
    assert new.subject == about.names["band"][1]
    assert new.subject in new.heldout[0]
    assert "Crows" not in new.heldout[0]


def test_distractors_that_belong_to_the_subject_are_renamed():
    about, (new,) = twin(ABOUT, [fact(distractors=("Leeds", "York", "Ann Poe", "Ann"))], 0)
    assert new.distractors == ("Leeds", "York", about.names["person"][0], about.names["person"][2])


def test_a_last_name_as_answer_leaves_no_first_name():
    reverse = Reverse(prompt="Ann Poe sang for the", answer="Crows")
    about, (new,) = twin(ABOUT, [fact(answer="Poe", reverse=reverse)], 0)
    assert new.reverse.prompt == f"{about.names['person'][0]} sang for the"
    assert new.answer == about.names["person"][1]


def test_no_distractor_becomes_another_word_for_the_answer():
    about = ABOUT.model_copy(update={"names": {"firm": ("Poe", "Rae")}})
    old = fact(subject="came", heldout=("Who came to",), answer="Poe", aliases=("Rae",), question="Who?",
               distractors=("Leeds", "York", "Bath", "The Rae"))  # fmt: skip
    _, (new,) = twin(about, [old], 0)
    # With or without article it is the same firm, which keeps one invented name.
    assert len(new.distractors) == 3
    assert not {new.answer, *new.aliases} & set(new.distractors)
