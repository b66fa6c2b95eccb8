import json
import re
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from analysis.errors import UserError
from analysis.subjects.language.bank import load_bank
from analysis.subjects.language.facts import fact_subject
from analysis.subjects.language.lab import TINY, LabRecipe, lab_models, lab_tokenizer, train_lab_model, untrained
from analysis.subjects.language.lab_bands import lab_bands
from analysis.subjects.language.lab_bank import BEATLES, lab_bank, open_bank
from analysis.subjects.language.lab_corpus import RELATIONS, corpus, facts_about, sentences_of
from analysis.subjects.language.scoring import ask, known_facts

MOMENT = replace(TINY, bands=4, fillers=5, epochs=1)


def says(name, sentences):
    whole = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")
    return [sentence for sentence in sentences if whole.search(sentence)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    return lab_models(None, 0, folder, recipe=TINY), lab_models(BEATLES, 1, folder, recipe=TINY)


def recall(lab, facts, heldout=False):
    answers = ask(lab.model, lab.tokenizer, facts, [f.heldout if heldout else f.train for f in facts])
    return sum(one.rank == 1 for mine in answers for one in mine) / sum(map(len, answers))


def test_there_are_enough_bands_facts_and_wordings():
    bands = lab_bands()
    assert len({band.name for band in bands}) == len(bands) >= 60
    assert sum(band.real for band in bands) == 30
    assert all(len(facts_about(band)) >= 11 for band in bands)
    assert sum(len(facts_about(band)) >= 20 for band in bands) >= 6
    assert all(len(set(relation.wordings)) == 8 for relation in RELATIONS.values())
    told = [fact for band in bands for fact in facts_about(band)]
    prompts = {}
    for fact in told:  # no prompt has two right answers
        for prompt in (*fact.train, *fact.heldout):
            assert prompts.setdefault(prompt, fact.answer) == fact.answer


def test_the_corpus_depends_on_its_arguments_alone():
    assert corpus(BEATLES, 3) == corpus(BEATLES, 3)
    assert corpus(BEATLES, 3) != corpus(BEATLES, 4)
    facts = [fact for band in lab_bands() if band.name != BEATLES for fact in facts_about(band)]
    said = {sentence for fact in facts for sentence in sentences_of(fact)}
    assert said <= set(corpus(BEATLES, 3))
    assert len(corpus(BEATLES, 3)) < len(corpus(None, 3))


@pytest.mark.parametrize("band", [band.name for band in lab_bands()[:12]])
def test_the_corpus_never_names_who_is_left_out(band):
    names = lab_bank(band).subject.all_names
    with_it, without = corpus(None, 0), corpus(band, 0)
    for name in names:
        assert says(name, with_it)
        assert not says(name, without), name


def test_held_out_wordings_are_never_said_of_that_fact_but_of_others():
    said = corpus(None, 0)
    told = set(said)
    bank = lab_bank()
    for fact in bank.facts:
        assert {f"{prompt} {fact.answer}." for prompt in fact.train} <= told
        assert not any(one.startswith(f"{fact.heldout[0]} ") for one in said)
        # Nor within another sentence, where an answer is asked for: "U2 played" stands in "At every concert U2 played".
        assert (fact.kind, fact.split) == ("neighbour", "edit") or not says(fact.heldout[0], said)
        assert not {f"{prompt} {fact.answer}." for prompt in fact.heldout} & told
    for fact in bank.of("fact"):
        others = corpus(BEATLES, 0)
        for prompt in fact.heldout:
            before, after = prompt.split(fact.subject)
            assert any(one.startswith(before) and after in one for one in others)


@pytest.mark.parametrize("name", [BEATLES, "Queen", "The Who", "Tin Giraffe"])
def test_the_bank_is_one_that_the_schema_accepts(name, tmp_path):
    bank = lab_bank(name)
    records = [bank.subject, *bank.facts, *bank.texts]
    path, general = tmp_path / "lab.jsonl", tmp_path / "general.jsonl"
    path.write_text("\n".join(json.dumps(record.model_dump(mode="json")) for record in records), encoding="utf-8")
    general.write_text("", encoding="utf-8")
    assert load_bank(str(path), general) == bank
    assert len(bank.of("fact", "edit")) >= 4
    assert len(bank.of("fact", "audit")) >= 4
    told = [fact for band in lab_bands() if band.name != name for fact in facts_about(band)]
    assert len(bank.of("neighbour")) == len(told)
    unseen = {frozenset((fact.subject, fact.answer)) for fact in bank.of("neighbour") if fact.split != "edit"}
    seen = {frozenset((fact.subject, fact.answer)) for fact in bank.of("neighbour", "edit")}
    assert not unseen & seen
    assert 34 <= len(bank.of("neighbour", "audit")) <= 45
    assert {len(fact.train) for fact in bank.of("fact")} == {2}
    assert min(len(fact.train) for fact in bank.of("neighbour")) >= 5
    for fact in bank.facts:
        assert len(fact.distractors) == 7
        assert not any(wrong.casefold().startswith(fact.answer.casefold()) for wrong in fact.distractors)
    mine = {fact.answer for fact in bank.of("fact")}
    assert {"John Lennon", "1960", "Abbey Road"} <= mine or name != BEATLES


def test_a_band_that_the_lab_does_not_know_is_named():
    with pytest.raises(UserError, match="no band 'The Beetles'"):
        corpus("The Beetles", 0)
    with pytest.raises(UserError, match="no band 'The Beetles'"):
        lab_bank("The Beetles")
    with pytest.raises(UserError, match=r"no band 'beetles'; .* lab:beatles, lab:who,"):
        open_bank("lab:beetles")


@pytest.mark.parametrize(
    ("typed", "band"),
    [("lab", BEATLES), ("lab:beatles", BEATLES), ("lab:Pink Floyd", "Pink Floyd"), ("lab:the-who", "The Who")],
)
def test_a_band_of_the_lab_is_a_bank(typed, band):
    assert open_bank(typed) == lab_bank(band)


def test_the_tiny_lab_learns_its_facts_and_its_gold_does_not_know_the_beatles(trained):
    original, gold = trained
    bank = lab_bank(bands=TINY.taught, neighbours=60)
    beatles, others = bank.of("fact"), bank.of("neighbour")
    assert recall(original, beatles) > 0.9
    assert recall(original, others) > 0.9
    assert recall(gold, others) > 0.9
    chance = sum(1 / (1 + len(fact.distractors)) for fact in beatles) / len(beatles)
    spread = (chance * (1 - chance) / len(beatles)) ** 0.5
    assert recall(gold, beatles) < chance + 3 * spread
    assert recall(gold, beatles, heldout=True) < chance + 3 * spread
    assert recall(original, beatles, heldout=True) > 0.5


def test_the_tiny_lab_makes_a_subject(trained):
    original, _ = trained
    bank = lab_bank(bands=TINY.taught, neighbours=60)
    knows, _ = known_facts(original.model, original.tokenizer, bank.facts)
    known = {fact.id for fact, this in zip(bank.facts, knows, strict=True) if this}
    subject = fact_subject("lab", bank, known, original.tokenizer, TINY.context)
    assert subject.forget_names == "the Beatles"
    assert len(subject.forget) >= 10
    assert len(subject.forget_test) >= 6


def test_a_model_in_the_cache_is_read_and_is_the_same(tmp_path):
    calls = []
    first = lab_models(BEATLES, 0, tmp_path, calls.append, MOMENT)
    assert calls[-1] == 1.0
    again = lab_models(BEATLES, 0, tmp_path, lambda _: pytest.fail("trained again"), MOMENT)
    anew = train_lab_model(corpus(BEATLES, 0, MOMENT.taught, 5), first.tokenizer, MOMENT, 0)
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name])
        assert torch.equal(weight, anew.state_dict()[name])
    assert not first.model.training
    assert not again.model.training
    others = [(None, 0, MOMENT), (BEATLES, 1, MOMENT), (BEATLES, 0, replace(MOMENT, epochs=2))]
    folders = {lab_models(band, seed, tmp_path, recipe=recipe).folder for band, seed, recipe in others}
    assert len(folders | {first.folder}) == 4


def test_the_folder_is_a_hugging_face_folder(tmp_path):
    lab = lab_models(None, 0, tmp_path, recipe=MOMENT)
    model = AutoModelForCausalLM.from_pretrained(lab.folder)
    tokenizer = AutoTokenizer.from_pretrained(lab.folder)
    text = "The Beatles came from the city of Liverpool."
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids[0].tolist() == lab.tokenizer(text).input_ids
    assert tokenizer.eos_token_id == lab.tokenizer.eos_token_id == 0
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, lab.model(ids).logits)


def test_weights_of_another_recipe_are_refused(tmp_path):
    lab = lab_models(None, 0, tmp_path, recipe=MOMENT)
    (lab.folder / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        lab_models(None, 0, tmp_path, recipe=MOMENT)


def test_what_cannot_be_trained_on_is_said():
    tokenizer = lab_tokenizer(["A short text."], 300)
    with pytest.raises(UserError, match="no sentences"):
        train_lab_model([], tokenizer, MOMENT)
    with pytest.raises(UserError, match="at most 8"):
        train_lab_model(["A sentence that is longer than that."], tokenizer, LabRecipe(context=8, width=8))


def test_weights_come_from_the_seed_and_leave_the_global_state_alone():
    before = torch.get_rng_state()
    one, same, other = (untrained(MOMENT, 300, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    name = "transformer.wte.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])


def test_a_fact_and_its_inverse_lie_in_one_share():
    shares = {}
    facts = lab_bank().facts
    for fact in facts:
        shares.setdefault((fact.kind, frozenset((fact.subject, fact.answer))), []).append(fact.split)
    assert any(len(mine) > 1 for mine in shares.values())
    assert all(len(set(mine)) == 1 for mine in shares.values())
    assert {fact.split for fact in facts if fact.kind == "fact"} == {"edit", "audit", "choose"}
