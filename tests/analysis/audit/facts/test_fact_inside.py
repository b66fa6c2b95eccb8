import random
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from fact_cases import ABOUT, FAMILIES, PEOPLE, beside, case, fact, half_taught, state, subject
from small_models import small_gpt2, small_tokenizer

from analysis.audit.facts.inside import lens, own_wrong, truth_probe
from analysis.subjects.language.bank import SubjectLine, load_bank
from analysis.subjects.language.facts import about_twin, fact_subject
from analysis.subjects.language.scoring import ask
from analysis.subjects.language.twins import twin

RIGHT = ("city", "river", "capital", "name")
WRONG_WORDS = ("drums", "guitar", "album", "London")


def token(word):
    found = small_tokenizer()(f" {word}").input_ids
    assert len(found) == 1
    return found[0]


def short_answers(kind="edit"):
    # Every option is one token, so that a whole answer is its first token.
    words = [word for word in (*RIGHT, *WRONG_WORDS) if len(small_tokenizer()(f" {word}").input_ids) == 1]
    assert len(words) == len({*RIGHT, *WRONG_WORDS})
    return tuple(
        fact(i, answer=words[i % len(words)], split=kind).model_copy(
            update={"distractors": tuple(word for word in words if word != words[i % len(words)])[:5]}
        )
        for i in range(10)
    )


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens_at_the_last_layer_says_what_the_model_says(family: str) -> None:
    facts = short_answers()
    mine = case(half_taught(family), subject(facts[:5], facts[5:]), shown=5, asked=5)
    found = lens(mine)
    assert len(found.facts) == 10
    own = ask(mine.model, mine.tokenizer, facts, [one.heldout[:1] for one in facts])
    assert found.curve[-1] == pytest.approx(fmean(answers[0].share for answers in own), abs=1e-9)
    assert found.beside_curve[-1] == pytest.approx(fmean(beside(mine.model, mine, one) for one in facts), abs=1e-9)
    assert fmean(found.beside) == pytest.approx(max(found.beside_curve), abs=1e-12)
    assert len(found.curve) == 4
    assert fmean(found.values) == pytest.approx(max(found.curve), abs=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens_reads_every_layer_through_norm_and_head(family: str) -> None:
    facts = short_answers()
    mine = case(half_taught(family), subject(facts[:5], facts[5:]), shown=5, asked=5)
    caught = []
    blocks = mine.model.base_model.h if family == "gpt2" else mine.model.base_model.layers
    hooks = [blocks[0].register_forward_pre_hook(lambda _, given: caught.append(given[0]))]
    hooks += [
        block.register_forward_hook(lambda _, __, out: caught.append(out if isinstance(out, torch.Tensor) else out[0]))
        for block in blocks
    ]
    norm = mine.model.base_model.ln_f if family == "gpt2" else mine.model.base_model.norm
    sums, besides = torch.zeros(2, 4, dtype=torch.float64)
    for one in facts:
        options = [token(word) for word in (one.answer, *one.distractors)]
        logits = []
        for told in (one, *(stranger[one.id] for stranger in mine.strangers)):
            caught.clear()
            mine.model(input_ids=torch.tensor([small_tokenizer()(told.heldout[0]).input_ids]))
            logits.append([mine.model.lm_head(norm(stream[0, -1]))[options] for stream in caught])
        assert len(logits) == 3
        for layer, (own, first, second) in enumerate(zip(*logits, strict=True)):
            sums[layer] += own.softmax(0)[0]
            besides[layer] += (own - (first + second) / 2).softmax(0)[0]
    for hook in hooks:
        hook.remove()
    assert lens(mine).curve == pytest.approx((sums / 10).tolist(), abs=1e-9)
    assert lens(mine).beside_curve == pytest.approx((besides / 10).tolist(), abs=1e-9)


def test_answers_that_begin_alike_are_parted_where_they_differ() -> None:
    same = fact(0, answer="the river of Rome").model_copy(
        update={"distractors": ("the river of Paris", "the river of London", "the river of France")}
    )
    mine = case(half_taught("gpt2"), subject((same,), (same,)), shown=1, asked=1, strangers=1)
    logits = torch.zeros(len(small_tokenizer()), dtype=torch.float64)
    for sign, one in ((1, same), (-1, mine.strangers[0][same.id])):
        prompt = torch.tensor([small_tokenizer()(f"{one.heldout[0]} the river of").input_ids])
        with torch.no_grad():
            logits += sign * mine.model(input_ids=prompt).logits[0, -1]
    ends = [small_tokenizer()(f" {place}").input_ids[0] for place in ("Rome", "Paris", "London", "France")]
    assert len(set(ends)) == 4
    assert lens(mine).beside_curve[-1] == pytest.approx(float(logits[ends].softmax(0)[0]), abs=1e-9)


def questions(count, seed):
    chance = torch.Generator().manual_seed(seed)
    out = []
    for i in range(count):
        right, wrong = (torch.randperm(4, generator=chance).tolist() for _ in range(2))
        words = [WRONG_WORDS[j] for j in wrong[:3]]
        out.append(fact(i, answer=RIGHT[right[0]]).model_copy(update={"id": f"q-{i}", "distractors": tuple(words)}))
    return tuple(out)


def test_the_probe_finds_a_planted_direction_and_none_in_noise() -> None:
    taught, asked = questions(12, 0), tuple(one.model_copy(update={"answer": "name"}) for one in questions(30, 1))
    taught = tuple(one.model_copy(update={"answer": RIGHT[i % 3]}) for i, one in enumerate(taught))
    model = small_gpt2()
    with torch.no_grad():
        direction = torch.randn(32, generator=torch.Generator().manual_seed(3))
        for word in RIGHT:
            model.transformer.wte.weight[token(word)] += 3 * direction
    before = state(model)
    planted = case(model, subject(taught, asked), taught=12, asked=30, judged=30)
    (found,) = truth_probe(planted)
    # "name" was never taught: what is found is the direction, not the word.
    assert len(found.values) == 30
    assert fmean(found.values) > 0.95
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    def told(facts, seed):
        # Words that nobody knows, each said once: nothing to learn.
        chance = random.Random(seed)
        words = [["".join(chance.choices("abcdefghijklmnop", k=5)) for _ in range(4)] for _ in facts]
        return tuple(
            one.model_copy(update={"answer": mine[0], "distractors": tuple(mine[1:])})
            for one, mine in zip(facts, words, strict=True)
        )

    means = []
    for seed in range(8):
        noise = subject(told(taught, 2 * seed), told(asked, 2 * seed + 1))
        means += [fmean(one.values) for one in truth_probe(case(model, noise, taught=12, asked=30))]
    # The best of three layers is a little above one half.
    assert len(means) == 8
    assert 0.45 < fmean(means) < 0.65


def test_that_a_subjects_names_look_strange_is_no_knowledge() -> None:
    chance = random.Random(0)

    def word(end):
        return "".join(chance.choices("abcdefghijklmnop", k=5)) + end

    facts = tuple(
        fact(i).model_copy(update={"id": f"q-{i}", "answer": word("Q"), "distractors": tuple(map(word, "XYZ"))})
        for i in range(52)
    )
    model = small_gpt2()
    with torch.no_grad():
        # The last letter, which the subject's names share, has a direction of its own.
        model.transformer.wte.weight[small_tokenizer().convert_tokens_to_ids("Q")] += 5.0
    names = {"person": tuple(one.answer for one in facts)}
    found = []
    for about in (ABOUT.model_copy(update={"names": names}), ABOUT.model_copy(update={"names": {}})):
        whole = replace(subject(facts[:12], facts[12:]), about=about)
        found += [fmean(one.values) for one in truth_probe(case(model, whole, taught=12, asked=40))]
    own, others = found
    assert 0.4 < own < 0.65
    assert others > 0.95


def test_a_probe_with_too_few_facts_says_nothing() -> None:
    facts = tuple(fact(i, answer="Beatles") for i in range(5))
    bands = ABOUT.model_copy(update={"names": {"band": ("Beatles", "Beatle", "the Beatles")}})
    assert truth_probe(case(small_gpt2(), replace(subject(facts, facts), about=bands))) == []


def singers(about: SubjectLine):
    facts = [
        fact(i).model_copy(
            update={"answer": PEOPLE[i], "distractors": ("Keith Moon", "Ron Wood", "Mick Avory"), "aliases": alias}
        )
        for i, alias in enumerate([("Lennon",), (), (), ()])
    ]
    return replace(subject(tuple(facts), tuple(facts)), about=about)


def test_wrong_names_are_the_subjects_own() -> None:
    about = ABOUT.model_copy(update={"names": {"person": ("Lennon", "Ringo", *PEOPLE), "song": ("Help!",)}})
    mine = case(small_gpt2(), singers(about))
    for one in mine.shown:
        wrong = own_wrong(mine, one)
        assert len(set(wrong)) == 3
        # Other answers of the relation come first, and there are just three of them.
        assert set(wrong) == set(PEOPLE[:4]) - {one.answer}
    parts = case(small_gpt2(), singers(ABOUT.model_copy(update={"names": {"person": ("Lennon", "John", PEOPLE[0])}})))
    assert own_wrong(parts, parts.shown[0]) == ()


def test_an_answer_to_the_same_prompt_is_not_wrong() -> None:
    mine = singers(ABOUT)
    twice = mine.forget[1].model_copy(update={"heldout": mine.forget[0].heldout, "subject": mine.forget[0].subject})
    facts = (mine.forget[0], twice, *mine.forget[2:])
    wrong = own_wrong(case(small_gpt2(), replace(mine, forget=facts, forget_test=facts)), facts[0])
    assert len(wrong) == 3
    assert not {PEOPLE[0], PEOPLE[1]} & set(wrong)


def test_wrong_places_stay_as_the_bank_has_them() -> None:
    one = fact(0)
    assert own_wrong(case(small_gpt2()), one) == one.distractors[:3]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_twin_gets_the_same_wrong_names_retold(seed: int) -> None:
    whole = load_bank("beatles")
    real = fact_subject("b", whole, {one.id for one in whole.facts}, small_tokenizer(), None)
    about, told = twin(real.about, [*real.forget, *real.forget_test], seed)
    mine, other = case(small_gpt2(), real), case(small_gpt2(), about_twin(real, told, about))
    renamed = {
        old: new for kind, names in real.about.names.items() for old, new in zip(names, about.names[kind], strict=True)
    }
    same, names = 0, 0
    for one, retold in zip((*real.forget, *real.forget_test), told, strict=True):
        wrong, theirs = own_wrong(mine, one), own_wrong(other, retold)
        assert len(wrong) == len(theirs)
        assert not set(wrong) & {one.answer, *one.aliases}
        if one.answer in real.about.names["person"]:
            names += 1
            same += tuple(renamed[name] for name in wrong) == theirs
    assert names > 40
    # All but a few whose words happen to be parts of each other in one telling only. Titles differ in length.
    assert same > 0.9 * names
