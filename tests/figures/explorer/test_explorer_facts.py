"""What both language models say, by degrees and layer by layer, against slower versions that are obviously right."""

import json
from pathlib import Path

import pytest
import torch
from facts_explored import ANSWER, PROMPT, explored, greedy, log_p, probability
from small_models import small_gpt2

from analysis.audit.facts.case import FactReading
from analysis.errors import UserError
from figures.explorer import facts_html
from figures.explorer.facts_model import (
    Question,
    answer_probability,
    ask,
    candidates,
    continued,
    fading,
    half_strength,
    lens,
    question,
)
from figures.explorer.facts_page import examples
from figures.explorer.facts_pair import HELD_OUT, KEPT, SEEN, Pair, open_pair, prompt_of
from unlearn.edit import state_of
from unlearn.language.references import save_readings


def test_no_strength_and_full_strength_are_the_two_models_bit_for_bit(pair: Pair) -> None:
    before = {name: value.clone() for name, value in state_of(pair.original).items()}
    after = pair.edit.apply(before)
    for strength, expected in ((0.0, before), (1.0, after), (0.0, before), (1.0, after)):
        found = state_of(pair.at(strength))
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert all(torch.equal(value, before[name]) for name, value in state_of(pair.original).items())


def test_half_strength_lies_in_the_middle(pair: Pair) -> None:
    before = state_of(pair.original)
    after = pair.edit.apply(before)
    for name, value in state_of(pair.at(0.5)).items():
        torch.testing.assert_close(value, (before[name] + after[name]) / 2)


def test_both_models_go_on_greedily(pair: Pair, asked: Question) -> None:
    for told, model in zip(ask(pair, asked), (pair.original, pair.at(1.0)), strict=True):
        assert told.start == len(pair.tokenizer(PROMPT).input_ids)
        assert told.tokens == tuple(pair.tokenizer.decode([i]) for i in greedy(model, pair))


def test_a_model_that_ends_says_no_more(pair: Pair, asked: Question) -> None:
    whole = continued(pair.original, asked.ids, None, 6)
    assert len(whole) == 6
    assert continued(pair.original, asked.ids, whole[3], 6) == whole[: whole.index(whole[3])]


def test_changes_are_what_each_model_alone_says_of_the_whole_text(pair: Pair, asked: Question) -> None:
    after = pair.at(1.0)
    both = ask(pair, asked)
    for told, model in zip(both, (pair.original, after), strict=True):
        ids = greedy(model, pair)
        assert told.before[0] is told.after[0] is told.changes[0] is None
        for place in range(1, len(ids)):
            old, new = log_p(pair.original, ids, place), log_p(after, ids, place)
            assert told.before[place] == pytest.approx(old, abs=1e-4)
            assert told.after[place] == pytest.approx(new, abs=1e-4)
            assert told.changes[place] == pytest.approx(new - old, abs=1e-4)
    assert any(abs(change) > 0.05 for told in both for change in told.changes[1:] if change is not None)


def test_candidates_are_the_likeliest_tokens_of_either_model(pair: Pair, asked: Question) -> None:
    ids = torch.tensor([pair.tokenizer(PROMPT).input_ids])
    with torch.no_grad():
        before, after = (m(input_ids=ids).logits[0, -1].softmax(0) for m in (pair.original, pair.at(1.0)))
    order = sorted(range(len(before)), key=lambda i: -max(float(before[i]), float(after[i])))[:5]
    found = candidates(pair, asked, 5)
    assert [one.token for one in found] == [pair.tokenizer.decode([i]) for i in order]
    assert [one.before for one in found] == pytest.approx([float(before[i]) for i in order], abs=1e-5)
    assert [one.after for one in found] == pytest.approx([float(after[i]) for i in order], abs=1e-5)


def test_the_last_layer_of_the_lens_is_the_model_itself(pair: Pair, asked: Question) -> None:
    ids = torch.tensor([pair.tokenizer(PROMPT).input_ids])
    for layers, model in zip(lens(pair, asked), (pair.original, pair.at(1.0)), strict=True):
        assert len(layers) == 4
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1]
        first = pair.tokenizer(f"{PROMPT} {ANSWER}").input_ids[len(ids[0])]
        assert layers[-1].word == pair.tokenizer.decode([int(logits.argmax())])
        assert layers[-1].rank == 1 + int((logits > logits[first]).sum())
        assert layers[-1].probability == pytest.approx(probability(model, pair), rel=1e-3)


def test_the_curve_ends_at_the_two_models(pair: Pair, asked: Question) -> None:
    found = fading(pair, asked, (0.0, 0.5, 1.0))
    assert found[0] == pytest.approx(probability(pair.original, pair), rel=1e-3)
    assert found[2] == pytest.approx(probability(pair.at(1.0), pair), rel=1e-3)
    assert found[1] == pytest.approx(probability(pair.at(0.5), pair), rel=1e-3)
    assert found[0] != pytest.approx(found[2], rel=0.01)


def test_where_half_is_gone() -> None:
    assert half_strength((0.0, 0.5, 1.0), (0.8, 0.6, 0.2)) == pytest.approx(0.75)
    assert half_strength((0.0, 0.5, 1.0), (0.8, 0.4, 0.0)) == pytest.approx(0.5)
    assert half_strength((0.0, 0.5, 1.0), (0.8, 0.7, 0.41)) is None
    assert half_strength((0.0, 1.0), (0.0, 0.0)) is None


def test_without_an_answer_the_originals_next_token_is_followed(pair: Pair) -> None:
    asked = question(pair, f"{PROMPT} ", " ")
    with torch.no_grad():
        logits = pair.original(input_ids=torch.tensor([pair.tokenizer(PROMPT).input_ids])).logits[0, -1]
    assert not asked.given
    assert asked.answer == pair.tokenizer.decode([int(logits.argmax())])
    assert answer_probability(pair.original, asked) == pytest.approx(float(logits.softmax(0).max()), rel=1e-3)
    assert lens(pair, asked)[0][-1].rank == 1
    assert "No answer was typed" in facts_html.lens_html(asked, *lens(pair, asked))


def test_what_cannot_be_asked_is_one_sentence(pair: Pair) -> None:
    with pytest.raises(UserError, match="type some words"):
        question(pair, "  ", "Liverpool")
    with pytest.raises(UserError, match="reads at most 128"):
        question(pair, "The Beatles sang and sang " * 20, "")


def test_facts_are_sorted_by_what_the_edit_should_do(pair: Pair) -> None:
    assert list(pair.facts) == [SEEN, HELD_OUT, KEPT]
    assert {one.split for one in pair.facts[SEEN]} == {"edit"}
    assert "edit" not in {one.split for one in pair.facts[HELD_OUT]}
    assert {one.kind for one in (*pair.facts[SEEN], *pair.facts[HELD_OUT])} == {"fact"}
    assert "fact" not in {one.kind for one in pair.facts[KEPT]}
    assert all(prompt_of(one) in one.train for one in pair.facts[SEEN])
    assert all(prompt_of(one) in one.heldout for one in pair.facts[HELD_OUT])
    labels, prompts, answers = zip(*examples(pair), strict=True)
    assert max(map(len, labels)) <= 90
    assert set(pair.openings) <= set(prompts)
    assert {answer for prompt, answer in zip(prompts, answers, strict=True) if prompt in pair.openings} >= {""}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("YESTERDAY_CACHE", str(tmp_path / "cache"))
    return explored(tmp_path, small_gpt2)


def test_of_an_audited_run_only_facts_that_were_known_are_shown(run: Path) -> None:
    every = open_pair(run).facts
    chosen = (every[SEEN][1].id, every[KEPT][2].id)
    reading = FactReading(auditor="a", group="recall", role="behaviour", unit="share", facts=chosen, values=(0.5, 0.2))
    save_readings(run / "readings" / "edited.json", [reading])
    assert {name: [one.id for one in facts] for name, facts in open_pair(run).facts.items()} == {
        SEEN: [chosen[0]], KEPT: [chosen[1]],
    }  # fmt: skip


def test_a_run_made_before_a_setting_was_there_can_be_explored(run: Path) -> None:
    document = json.loads((run / "run.json").read_text())
    del document["config"]["seen_forget"], document["config"]["seen_retain"]
    (run / "run.json").write_text(json.dumps(document))
    assert open_pair(run).facts


def test_an_unfinished_run_and_one_of_another_family_are_refused(run: Path) -> None:
    (run / "edit.safetensors").unlink()
    with pytest.raises(UserError, match="no edit yet"):
        open_pair(run)
    document = json.loads((run / "run.json").read_text())
    document["config"] = {"fraction": "a lot", "subject": {"data": "mnist-5k"}}
    (run / "run.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="no run on a language model"):
        open_pair(run)
