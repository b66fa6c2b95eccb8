"""Neurons of language models in the explorer, against slower versions that are obviously right."""

import copy
from dataclasses import replace

import pytest
import torch
from facts_explored import PROMPT, TOUCHED, probability
from torch import nn

from analysis.errors import UserError
from figures.explorer.facts_model import Question
from figures.explorer.facts_neurons import (
    Located,
    Neuron,
    activations,
    changes,
    mean_probability,
    most_changed,
    pushes,
    silenced,
)
from figures.explorer.facts_pair import HELD_OUT, KEPT, SEEN, Pair, prompt_of


def zeroed(pair: Pair, neurons: tuple[Neuron, ...]) -> nn.Module:
    """A copy of the original whose neurons write nothing, by its family's own names."""
    model = copy.deepcopy(pair.original)
    for one in neurons:
        if hasattr(model, "transformer"):
            model.transformer.h[one.block].mlp.c_proj.weight[one.number] = 0
        else:
            model.model.layers[one.block].mlp.down_proj.weight[:, one.number] = 0
    return model


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
