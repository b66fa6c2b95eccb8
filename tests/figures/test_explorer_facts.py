"""The explorer's numbers for language models, against slower versions that are obviously right; and its HTML."""

import copy
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from facts_explored import TOUCHED, explored
from small_models import small_gpt2, small_llama
from torch import nn

from analysis.audit.facts.case import FactReading
from analysis.errors import UserError
from figures.explorer import facts_html
from figures.explorer.chart import Curve, chart, rounded_up
from figures.explorer.facts_model import (
    Candidate,
    Layer,
    Question,
    Told,
    answer_probability,
    ask,
    candidates,
    continued,
    fading,
    half_strength,
    lens,
    question,
)
from figures.explorer.facts_neurons import (
    Ablation,
    Fired,
    Located,
    Neuron,
    activations,
    changes,
    mean_probability,
    most_changed,
    pushes,
    silenced,
)
from figures.explorer.facts_page import SLID, examples, strengths_panels
from figures.explorer.facts_pair import HELD_OUT, KEPT, SEEN, Pair, open_pair, prompt_of
from unlearn.language.references import save_readings
from unlearn.language.run import state_of

FAMILIES = {"gpt2": small_gpt2, "llama": small_llama}
PROMPT, ANSWER = "The Beatles came from the city of", "Liverpool and Rome"


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YESTERDAY_CACHE", str(folder / "cache"))
        return open_pair(explored(folder, FAMILIES[request.param]))


@pytest.fixture
def asked(pair: Pair) -> Question:
    return question(pair, PROMPT, ANSWER)


@pytest.fixture(scope="module")
def located(pair: Pair) -> Located:
    return Located(pair, tuple(most_changed(pair.original, pair.edit)))


def log_p(model: nn.Module, ids: list[int], place: int) -> float:
    """log p of one token, from a whole forward pass over what stands before it."""
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids[:place]])).logits[0, -1].log_softmax(0)[ids[place]])


def probability(model: nn.Module, pair: Pair, prompt: str = PROMPT, answer: str = ANSWER) -> float:
    ids, start = pair.tokenizer(f"{prompt} {answer}").input_ids, len(pair.tokenizer(prompt).input_ids)
    return math.exp(sum(log_p(model, ids, place) for place in range(start, len(ids))))


def zeroed(pair: Pair, neurons: tuple[Neuron, ...]) -> nn.Module:
    """A copy of the original whose neurons write nothing, by its family's own names."""
    model = copy.deepcopy(pair.original)
    for one in neurons:
        if hasattr(model, "transformer"):
            model.transformer.h[one.block].mlp.c_proj.weight[one.number] = 0
        else:
            model.model.layers[one.block].mlp.down_proj.weight[:, one.number] = 0
    return model


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


def greedy(model: nn.Module, pair: Pair, new: int = 20) -> list[int]:
    ids: list[int] = pair.tokenizer(PROMPT).input_ids
    for _ in range(new):
        with torch.no_grad():
            ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    end = pair.tokenizer.eos_token_id
    return ids[: ids.index(end)] if end in ids else ids


def test_both_models_go_on_greedily(pair: Pair, asked: Question) -> None:
    for told, model in zip(ask(pair, asked), (pair.original, pair.at(1.0)), strict=True):
        assert told.start == len(pair.tokenizer(PROMPT).input_ids)
        assert told.tokens == tuple(pair.tokenizer.decode([i]) for i in greedy(model, pair))
        assert told.said == "".join(told.tokens[told.start :])


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


def test_neurons_are_ranked_by_what_changed_of_all_their_weights(pair: Pair) -> None:
    before, after = pair.original, pair.at(1.0)
    found = changes(before, pair.edit)
    slow = torch.zeros(found.shape, dtype=torch.float64)
    for block in range(3):
        for number in range(found.shape[1]):
            sides = []
            for model in (before, after):
                if hasattr(model, "transformer"):
                    mlp = model.transformer.h[block].mlp
                    mine = [mlp.c_proj.weight[number], mlp.c_fc.weight[:, number], mlp.c_fc.bias[number : number + 1]]
                else:
                    mlp = model.model.layers[block].mlp
                    mine = [mlp.down_proj.weight[:, number], mlp.gate_proj.weight[number], mlp.up_proj.weight[number]]
                sides.append(torch.cat([one.detach().double() for one in mine]))
            slow[block, number] = (sides[0] - sides[1]).norm()
    torch.testing.assert_close(found, slow)
    ranked = most_changed(before, pair.edit)
    assert {(one.block, one.number) for one in ranked} == {(b, n) for b, numbers in TOUCHED.items() for n in numbers}
    assert [one.change for one in ranked] == sorted((one.change for one in ranked), reverse=True)
    assert ranked[0].block == 2


def test_an_edit_of_attention_alone_lists_no_neuron(pair: Pair) -> None:
    mine = {name: change for name, change in pair.edit.changes.items() if "att" in name}
    assert mine
    assert most_changed(pair.original, replace(pair.edit, changes=mine)) == []


def test_silencing_is_zeroing_what_a_neuron_writes(pair: Pair, asked: Question) -> None:
    ids = asked.encoded.ids
    chosen = (Neuron(0, 4), Neuron(2, 5), Neuron(2, 11))
    with torch.no_grad():
        expected, whole = zeroed(pair, chosen)(input_ids=ids).logits, pair.original(input_ids=ids).logits
        with silenced(pair.original, chosen):
            found = pair.original(input_ids=ids).logits
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(found, whole, atol=1e-3)
        assert torch.equal(pair.original(input_ids=ids).logits, whole)


def test_activations_are_those_of_each_prompt_alone(pair: Pair) -> None:
    prompts = ["The Beatles", PROMPT, "Paris is the capital of", "Ringo Starr played the drums in the city of"] * 5
    rows = [pair.tokenizer(prompt).input_ids for prompt in prompts]
    chosen = (Neuron(2, 5), Neuron(0, 3))
    for row, found in zip(rows, activations(pair.original, chosen, rows), strict=True):
        assert found.shape == (len(row), 2)
        for column, one in enumerate(chosen):
            inputs: list[torch.Tensor] = []
            blocks = getattr(pair.original, "transformer", pair.original.base_model)
            mlp = (blocks.h if hasattr(blocks, "h") else blocks.layers)[one.block].mlp
            handle = mlp.register_forward_pre_hook(lambda _, given, inputs=inputs: inputs.append(given[0]))
            with torch.no_grad():
                pair.original(input_ids=torch.tensor([row]))
                x = inputs[0][0]
                fired = mlp.act(mlp.c_fc(x)) if hasattr(mlp, "c_fc") else mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)
            handle.remove()
            torch.testing.assert_close(found[:, column], fired[:, one.number], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_a_neuron_pushes_is_its_writing_through_norm_and_head(pair: Pair, located: Located) -> None:
    one, model = Neuron(1, 7), pair.original
    if hasattr(model, "transformer"):
        written, norm = model.transformer.h[1].mlp.c_proj.weight[7], model.transformer.ln_f
        assert norm.bias.abs().max() > 0.1
        scaled = norm.weight * (written - written.mean()) / (written.var(unbiased=False) + norm.eps).sqrt()
    else:
        written, norm = model.model.layers[1].mlp.down_proj.weight[:, 7], model.model.norm
        scaled = norm.weight * written / (written.pow(2).mean() + norm.variance_epsilon).sqrt()
    expected = model.lm_head.weight @ scaled
    torch.testing.assert_close(pushes(model, one), expected, rtol=1e-4, atol=1e-5)
    up, down = located.promoted(one, 3)
    order = expected.argsort(descending=True).tolist()
    assert [word for word, _ in up] == [pair.tokenizer.decode([i]) for i in order[:3]]
    assert [word for word, _ in down] == [pair.tokenizer.decode([i]) for i in order[:-4:-1]]
    assert up[0][1] == pytest.approx(float(expected.max()), rel=1e-4)


def test_the_prompts_at_which_a_neuron_fires_most(pair: Pair, located: Located) -> None:
    one = located.neurons[1]
    found = located.fired(one, 4)
    every = [
        (group, activations(pair.original, [one], [pair.tokenizer(prompt_of(fact)).input_ids])[0][:, 0])
        for group, facts in pair.facts.items()
        for fact in facts[:40]
    ]
    assert located.prompts == len(every)
    best = sorted(every, key=lambda one: -float(one[1].abs().max()))[:4]
    assert [one.group for one in found] == [group for group, _ in best]
    for mine, (_, theirs) in zip(found, best, strict=True):
        assert mine.activations == pytest.approx(theirs.tolist(), abs=1e-5)
        assert len(mine.tokens) == len(mine.activations)


@torch.no_grad()
def test_ablation_is_what_models_with_zeroed_columns_answer(pair: Pair, asked: Question) -> None:
    located = Located(pair, tuple(most_changed(pair.original, pair.edit)))
    whole, together = pair.original, zeroed(pair, located.neurons)
    for one in located.neurons[:2]:  # what is kept from the first must not be what the first left out
        alone = zeroed(pair, (one,))
        mine, *groups = located.ablated(one, asked)
        expected = [probability(model, pair) for model in (whole, alone, together)]
        assert (mine.group, mine.facts) == ("this prompt", 1)
        assert [mine.whole, mine.alone, mine.together] == pytest.approx(expected, rel=1e-3)
        assert [group.group for group in groups] == [SEEN, HELD_OUT, KEPT]
        for group in groups:
            facts = pair.facts[group.group][: group.facts]
            for found, model in ((group.whole, whole), (group.alone, alone), (group.together, together)):
                slow = [probability(model, pair, prompt_of(fact), fact.answer) for fact in facts]
                assert found == pytest.approx(sum(slow) / len(slow), rel=1e-3)
        assert groups[0].whole != groups[0].together
    assert [one.group for one in located.ablated(one, None)] == [SEEN, HELD_OUT, KEPT]


def test_a_mean_over_many_rows_is_one_over_all(pair: Pair, located: Located) -> None:
    encoded = located._asked[KEPT]
    rows = [mean_probability(pair.original, encoded.take(slice(i, i + 1))) for i in range(len(encoded))]
    assert mean_probability(pair.original, encoded) == pytest.approx(sum(rows) / len(rows), rel=1e-4)


def test_a_neuron_that_is_not_listed_is_refused(located: Located) -> None:
    assert located.named(located.neurons[0].name) == located.neurons[0]
    with pytest.raises(UserError, match="L9"):
        located.named("L9.9")


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


BAD = '<img src=x onerror="alert(1)">'


def test_whatever_is_said_is_escaped(pair: Pair) -> None:
    told = Told((BAD, "&", BAD), 1, (None, -1.0, -2.0), (None, -3.0, -0.5))
    asked = replace(question(pair, PROMPT, ANSWER), prompt=BAD, answer=BAD)
    pages = [
        facts_html.asked_html((told, told)),
        facts_html.candidates_html([Candidate(BAD, 0.1, 0.2)]),
        facts_html.lens_html(asked, [Layer(0.1, 5, BAD)] * 3, [Layer(0.2, 1, BAD)] * 3),
        facts_html.strength_html(asked, (0.0, 1.0), (0.5, 0.1), 0.5, 0.2, BAD),
        facts_html.fired_html(Neuron(1, 2, 0.5), [Fired(BAD, (BAD,), (1.0,))], 3),
        facts_html.promoted_html([(BAD, 1.0)], [(BAD, -1.0)]),
        facts_html.ablated_html([Ablation(BAD, 3, 0.1, 0.2, 0.3)], 4),
        facts_html.token_span(BAD, BAD, 0.5, prompt=True),
        chart([0, 1], [Curve(BAD, [0, 1])], BAD, BAD, lambda _: BAD, [0], (0, 1)),
    ]
    for page in pages:
        assert "<img" not in page
        assert 'onerror="' not in page
        assert "&lt;img" in page


def test_colours_follow_the_change_and_numbers_stand_beside_them(pair: Pair, asked: Question) -> None:
    told = Told(
        ("A", " b", " c", " d"), 2, (None, math.log(0.5), math.log(0.1), -30.0), (None, math.log(0.25), -0.5, -30.0)
    )
    page = facts_html.told_html(told, "edited")
    spans = re.findall(
        r'class="tok( asked)?".*?data-tip="(.*?)".*?class="tint (\w+)" style="--much:(\d+)%">(.*?)<', page
    )
    assert [(bool(asked), text) for asked, _, _, _, text in spans] == [
        (True, "A"), (True, " b"), (False, " c"), (False, " d"),
    ]  # fmt: skip
    assert [tip for _, tip, *_ in spans][1] == "50.0% → 25.0% (-0.7 nats)"
    kinds = [kind for _, _, kind, _, _ in spans]
    much = [int(share) for _, _, _, share, _ in spans]
    assert kinds[1:3] == ["less", "more"]
    assert much[0] == much[3] == 0
    assert much[1] == round(65 * math.log(2) / 3)
    assert facts_html.tint(5) == facts_html.tint(1) != facts_html.tint(0.9)
    assert facts_html.tint(math.nan) == facts_html.tint(0)


def test_a_panel_says_the_strength_its_probability_and_the_words(pair: Pair, asked: Question) -> None:
    first, page = strengths_panels(pair, asked, fading(pair, asked), 0.0)
    for one in (first, page):
        assert "at strength 0.00" in one
        assert facts_html.percent(probability(pair.original, pair)) in one
    said = facts_html.shown(
        "".join(pair.tokenizer.decode([i]) for i in greedy(pair.original, pair, SLID)[len(asked.ids) :])
    )
    assert f"<b>{said}</b>" in page
    assert f"<b>{said}</b>" not in first


def test_charts_put_values_where_they_belong() -> None:
    drawn = chart(
        [0, 1, 2], [Curve("edited", [0.0, 0.5, 1.0])], "x", "alt", "{:g}".format, [0, 2], (0, 1), mark=(1, 0.5)
    )
    points = [tuple(map(float, one.split(","))) for one in re.findall(r'points="(.*?)"', drawn)[0].split()]
    assert points[0][0] < points[1][0] < points[2][0]
    assert points[1] == pytest.approx([(points[0][i] + points[2][i]) / 2 for i in (0, 1)], abs=0.1)
    assert points[0][1] > points[2][1]
    ring = re.search(r'<circle class="mark" cx="(.*?)" cy="(.*?)"', drawn)
    assert ring is not None
    assert tuple(map(float, ring.groups())) == points[1]
    turned = chart([0, 1], [Curve("edited", [1.0, 3.0])], "x", "alt", "{:g}".format, [0], (4, 0))
    first, last = re.findall(r'points="(.*?)"', turned)[0].split()
    assert float(first.split(",")[1]) < float(last.split(",")[1])
    assert [rounded_up(value) for value in (0, 0.0083, 0.01, 0.41, 1.0, 0.11)] == pytest.approx([
        1,
        0.01,
        0.01,
        0.6,
        1,
        0.2,
    ])


def test_the_html_is_well_formed(pair: Pair, asked: Question, located: Located) -> None:
    one = located.neurons[0]
    pages = [
        facts_html.asked_html(ask(pair, asked)),
        facts_html.candidates_html(candidates(pair, asked)),
        facts_html.lens_html(asked, *lens(pair, asked)),
        *strengths_panels(pair, asked, fading(pair, asked), 0.5),
        facts_html.fired_html(one, located.fired(one), located.prompts)
        + facts_html.promoted_html(*located.promoted(one)),
        facts_html.ablated_html(located.ablated(one, asked), len(located.neurons)),
    ]
    for page in pages:
        whole = ElementTree.fromstring(f"<div>{page.replace('<br>', '<br/>')}</div>")
        assert len("".join(whole.itertext())) > 20
