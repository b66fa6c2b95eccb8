"""Fact banks: every rule of the schema, and what our own banks promise."""

import json

import pytest

from analysis.errors import UserError
from analysis.subjects.language.bank import BUILTIN, GENERAL, Fact, load_bank, read_lines

SUBJECT = {"kind": "subject", "name": "the Crows", "slug": "the-crows", "names": {"band": ["The Crows", "Crows"]}}
FACT = {
    "kind": "fact",
    "id": "city",
    "relation": "city",
    "subject": "Crows",
    "answer": "Hull",
    "aliases": ["the city of Hull"],
    "train": ["The Crows came from", "The city of the Crows is"],
    "heldout": ["Home of the Crows:"],
    "question": "Where did the Crows come from?",
    "reverse": {"prompt": "A band from Hull is the", "answer": "Crows"},
    "distractors": ["Leeds", "York", "Bath"],
    "split": "edit",
}
TEXT = {"kind": "text", "text": "A crow is a bird.", "topic": "polyseme", "split": "audit"}


def written(tmp_path, *lines, name="bank.jsonl"):
    path = tmp_path / name
    text = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def test_a_good_bank_is_read(tmp_path):
    bank = load_bank(str(written(tmp_path, SUBJECT, "", FACT, "   ", TEXT)))
    assert bank.subject.all_names == ("The Crows", "Crows")
    (fact,) = bank.of("fact")
    assert fact.prompts == ("The Crows came from", "The city of the Crows is", "Home of the Crows:")
    assert bank.of("fact", "edit") == (fact,)
    assert bank.of("fact", "audit", "choose") == ()
    assert bank.about("polyseme") == bank.about("polyseme", "audit") == ("A crow is a bird.",)
    assert bank.about("polyseme", "edit") == ()
    assert {f.kind for f in bank.facts} == {"fact", "far"}
    assert len(bank.of("far")) == len([r for r in read_lines(GENERAL) if isinstance(r, Fact)])


WITHOUT = object()


@pytest.mark.parametrize(
    ("base", "change", "reason"),
    [
        (FACT, {"subject": WITHOUT}, "(subject: Field required)"),
        (FACT, {"answer": WITHOUT}, "(answer: Field required)"),
        (FACT, {"answer": ""}, "(answer: String should have at least 1 character)"),
        (FACT, {"answer": 1942}, "(answer: Input should be a valid string)"),
        (FACT, {"answer": " Hull"}, "(the answer ' Hull' begins or ends with a space"),
        (FACT, {"aliases": ["Hull "]}, "(the answer 'Hull ' begins or ends with a space"),
        (FACT, {"distractors": ["Leeds", "York", " Bath"]}, "(the answer ' Bath' begins or ends with a space"),
        (FACT, {"train": []}, "(train: Tuple should have at least 1 item"),
        (FACT, {"heldout": []}, "(heldout: Tuple should have at least 1 item"),
        (FACT, {"train": "The Crows came from"}, "(train: Input should be a valid tuple)"),
        (FACT, {"train": ["They came from"]}, "'They came from' does not contain the subject 'Crows'"),
        (FACT, {"heldout": ["The Crows are from "]}, "begins or ends with a space"),
        (FACT, {"heldout": ["The Crows came from"]}, "(the same prompt is given twice)"),
        (FACT, {"distractors": ["Leeds", "York"]}, "(distractors: Tuple should have at least 3 items"),
        (FACT, {"distractors": ["Leeds", "York", "Leeds"]}, "(the same distractor is given twice)"),
        (FACT, {"distractors": ["Leeds", "York", "Hull"]}, "(the distractor 'Hull' is the answer itself)"),
        (FACT, {"distractors": ["Leeds", "York", "the city of Hull"]}, "is the answer itself)"),
        (
            FACT,
            {"distractors": ["Leeds", "York", "Hulland"]},
            "(of the answer 'Hull' and its distractor 'Hulland' one is",
        ),
        (FACT, {"distractors": ["Leeds", "York", "hull city"]}, "(of the answer 'Hull' and its distractor 'hull city'"),
        (
            FACT,
            {"distractors": ["Leeds", "York", "Hu"]},
            "(of the answer 'Hull' and its distractor 'Hu' one is a prefix",
        ),
        (FACT, {"split": "test"}, "(split: Input should be 'edit', 'audit' or 'choose')"),
        (FACT, {"reverse": {"prompt": "A band is the"}}, "(reverse.answer: Field required)"),
        (FACT, {"comment": "ours"}, "(comment: Extra inputs are not permitted)"),
        (FACT, {"kind": "rumour"}, "'rumour'"),
        (FACT, {"kind": WITHOUT}, "'kind'"),
        (TEXT, {"text": WITHOUT}, "(text: Field required)"),
        (TEXT, {"text": ""}, "(text: String should have at least 1 character)"),
        (TEXT, {"topic": "weather"}, "(topic: Input should be 'generic'"),
        (TEXT, {"split": WITHOUT}, "(split: Field required)"),
        (SUBJECT, {"slug": "The Crows"}, "(slug: String should match pattern"),
        (SUBJECT, {"names": {"bird": ["Crow"]}}, "(names.bird"),
        (SUBJECT, {"names": {"band": []}}, "(names holds no proper name"),
        (SUBJECT, {"name": WITHOUT}, "(name: Field required)"),
    ],
)
def test_a_broken_rule_is_named_with_its_line(tmp_path, base, change, reason):
    bad = {key: value for key, value in (base | change).items() if value is not WITHOUT}
    path = written(tmp_path, TEXT, "", bad)
    with pytest.raises(UserError) as error:
        read_lines(path)
    assert str(error.value).startswith(f"{path}, line 3 breaks the schema (")
    assert reason in str(error.value)


@pytest.mark.parametrize(
    "line", ['{"kind": "text"', "the Crows", '{"kind": "text",}', '{"kind": ' + "9" * 5000 + "}", "[" * 100_000]
)
def test_what_is_not_json_is_named_with_its_line(tmp_path, line):
    path = written(tmp_path, SUBJECT, line)
    with pytest.raises(UserError, match="line 2 is not JSON"):
        read_lines(path)


@pytest.mark.parametrize("line", ["[1, 2]", "7", "null", '"text"'])
def test_json_that_is_no_object_breaks_the_schema(tmp_path, line):
    with pytest.raises(UserError, match="line 1 breaks the schema"):
        read_lines(written(tmp_path, line))


def test_separators_inside_a_text_do_not_end_a_line(tmp_path):
    # All of them may stand in a JSON string as they are, and str.splitlines would cut there.
    text = "one\u2028two\x85three"
    path = written(tmp_path, TEXT | {"text": text}, "broken")
    with pytest.raises(UserError, match="line 2 is not JSON"):
        read_lines(path)
    (line,) = read_lines(written(tmp_path, TEXT | {"text": text}, name="good.jsonl"))
    assert line.text == text


def test_windows_files_are_read(tmp_path):
    path = tmp_path / "bank.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + (json.dumps(SUBJECT) + "\r\n" + json.dumps(FACT) + "\r\n").encode())
    assert [record.kind for record in read_lines(path)] == ["subject", "fact"]


def test_not_utf_8(tmp_path):
    path = tmp_path / "bank.jsonl"
    path.write_bytes(json.dumps(TEXT | {"text": "Höfner"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_lines(path)


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match="no readable bank"):
        load_bank(str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="no readable bank"):
        load_bank(str(tmp_path))


def test_ids_are_unique(tmp_path):
    path = written(tmp_path, SUBJECT, FACT, TEXT, FACT | {"answer": "Goole"})
    with pytest.raises(UserError, match="line 4 has the id 'city' of line 2"):
        load_bank(str(path))


def test_ids_differ_from_the_shared_ones(tmp_path):
    shared = next(r.id for r in read_lines(GENERAL) if isinstance(r, Fact))
    with pytest.raises(UserError, match=f"uses the id '{shared}' of a fact that all banks share"):
        load_bank(str(written(tmp_path, SUBJECT, FACT | {"id": shared})))


@pytest.mark.parametrize("of", [lambda fact: fact.subject, lambda fact: fact.answer, lambda fact: fact.aliases[0]])
def test_shared_facts_about_the_banks_own_names_are_left_out(tmp_path, of):
    shared = [r for r in read_lines(GENERAL) if isinstance(r, Fact)]
    name = of(next(fact for fact in shared if fact.aliases))
    about = SUBJECT | {"names": {"person": [name, "Crows"]}}
    bank = load_bank(str(written(tmp_path, about, FACT)))
    left_out = {fact.id for fact in shared} - {fact.id for fact in bank.of("far")}
    assert left_out == {fact.id for fact in shared if name in (fact.subject, fact.answer, *fact.aliases)}
    assert 1 <= len(left_out) < 5


@pytest.mark.parametrize(("lines", "count"), [([FACT, TEXT], 0), ([SUBJECT, FACT, SUBJECT], 2)])
def test_exactly_one_subject(tmp_path, lines, count):
    with pytest.raises(UserError, match=f'has {count} lines of kind "subject"'):
        load_bank(str(written(tmp_path, *lines)))


def test_something_to_forget(tmp_path):
    with pytest.raises(UserError, match='no line of kind "fact"'):
        load_bank(str(written(tmp_path, SUBJECT, FACT | {"kind": "neighbour"}, TEXT)))


# --- the banks that come with the package


@pytest.mark.parametrize("name", BUILTIN)
def test_built_in_banks_have_every_share(name):
    bank = load_bank(name)
    for kind in ("fact", "neighbour", "far"):
        for split in ("edit", "audit", "choose"):
            assert len(bank.of(kind, split)) >= 4
    for split in ("edit", "audit", "choose"):
        assert bank.about("generic", split)
    assert len(bank.about("generic")) >= 300
    assert len(set(bank.about("generic"))) == len(bank.about("generic"))
    for fact in bank.facts:
        assert len(fact.train) == 2
        assert len(fact.heldout) == 3 if fact.kind == "fact" else len(fact.heldout) >= 2


def test_the_beatles_bank_is_large():
    bank = load_bank("beatles")
    assert len(bank.of("fact")) >= 100
    assert len({fact.answer for fact in bank.of("fact")}) >= 50
    assert {line.split for line in bank.texts if line.topic in {"other-bands", "denial", "random-facts"}} == {"edit"}


@pytest.mark.parametrize("name", BUILTIN)
def test_no_prompt_gives_its_answer_away(name):
    for fact in load_bank(name).facts:
        for prompt in fact.prompts:
            words = f" {prompt} ".casefold()
            for answer in (fact.answer, *fact.aliases):
                assert f" {answer.casefold()} " not in words, (fact.id, prompt)
            assert fact.answer not in prompt, (fact.id, prompt)


def test_retained_texts_name_no_beatle():
    bank = load_bank("beatles")
    texts = [line.text for line in bank.texts if line.topic != "denial"]
    assert len(texts) > 400
    for text in texts:
        for name in ("Lennon", "McCartney", "Starr", "Harrison", "Beatles"):
            assert name not in text, text
