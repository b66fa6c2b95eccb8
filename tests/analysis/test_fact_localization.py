"""Localisation of facts: scores against slower ways, and masks counted."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from located_facts import FAMILIES, MODELS, SUBJECT, TOKENIZER
from small_models import same, small_gpt2, small_llama

from analysis.ablation import count_of
from analysis.attribution.anatomy import anatomy
from analysis.attribution.fisher import fisher_diagonal, fisher_diagonal_vmap
from analysis.errors import UserError
from analysis.fact_localization import (
    MEASURES,
    ROWS,
    candidates,
    gradients,
    mask_of,
    score,
)
from analysis.scores import Scores
from analysis.subjects.language.encoding import encode_answers
from analysis.subjects.language.scoring import encode_facts, mean_loss

# --- candidates


def test_candidates_are_the_blocks_matrices():
    gpt2, llama = small_gpt2(), small_llama()
    for within, per_block in (("down", ["mlp.c_proj"]), ("mlp", ["mlp.c_fc", "mlp.c_proj"])):
        assert candidates(gpt2, within) == [f"transformer.h.{b}.{m}.weight" for b in range(3) for m in per_block]
    attention = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    assert candidates(gpt2, "blocks") == [f"transformer.h.{b}.{m}.weight" for b in range(3) for m in attention]
    assert candidates(llama, "down") == [f"model.layers.{b}.mlp.down_proj.weight" for b in range(3)]
    assert len(candidates(llama, "mlp")) == 9
    assert len(candidates(llama, "blocks")) == 21
    with pytest.raises(UserError, match="give mlp, down or blocks"):
        candidates(gpt2, "head")


# --- scores


@FAMILIES
def test_gradients_against_finite_differences(family):
    model = MODELS[family](1, torch.float64)
    # Llama's norms round to float32, so its steps must be wide.
    step, tolerance = (1e-5, 1e-6) if family == "gpt2" else (3e-3, 2e-3)
    encoded = encode_facts(TOKENIZER, SUBJECT.forget)
    names = candidates(model, "blocks")[::2]
    found = gradients(model, partial(mean_loss, model, encoded), names)
    assert list(found) == names
    named = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    for name in names:
        direction = torch.randn(named[name].shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        ends = []
        with torch.no_grad():
            for sign in (1, -2):
                named[name] += sign * step * direction
                ends.append(float(mean_loss(model, encoded)))
            named[name] += step * direction
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float((found[name] * direction).sum()) == pytest.approx(slope, rel=tolerance, abs=10 * tolerance**1.5)


@FAMILIES
def test_gradients_leave_the_model_as_it_was(family):
    model = MODELS[family]()
    frozen = candidates(model, "down")[0]
    dict(model.named_parameters())[frozen].requires_grad_(False)
    before, flags = copy.deepcopy(model), [p.requires_grad for p in model.parameters()]
    found = gradients(model, partial(mean_loss, model, encode_facts(TOKENIZER, SUBJECT.forget)), [frozen])
    assert found[frozen].abs().sum() > 0
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(KeyError):
        gradients(model, partial(mean_loss, model, encode_facts(TOKENIZER, SUBJECT.forget)), ["none"])
    assert [p.requires_grad for p in model.parameters()] == flags
    assert same(model, before)


def slow_gradient(model, pairs, name, square=False):
    """By plain autograd, one sequence after the other: the sum over all tokens, or of each sequence's squares."""
    weights, total, tokens = dict(model.named_parameters())[name], 0.0, 0
    for pair in pairs:
        encoded = encode_answers(TOKENIZER, [pair])
        count = int((encoded.labels >= 0).sum())
        (grad,) = torch.autograd.grad(mean_loss(model, encoded) * count, [weights])
        total, tokens = total + (grad.square() if square else grad), tokens + count
    return total / len(pairs) if square else total / tokens


@FAMILIES
def test_scores_against_plain_autograd(family):
    model = MODELS[family](2, torch.float64)
    weights = dict(model.named_parameters())
    found = {measure: score(model, SUBJECT, measure, "down", 0) for measure in MEASURES}
    assert {measure: one.measure for measure, one in found.items()} == {measure: measure for measure in MEASURES}
    sides = [[(p, one.answer) for one in facts for p in one.train] for facts in (SUBJECT.forget, SUBJECT.retain)]
    names = candidates(model, "down")
    plain, fisher = (
        [{name: slow_gradient(model, pairs, name, square) for name in names} for pairs in sides]
        for square in (False, True)
    )
    salience = [{name: (g * weights[name]).abs().detach() for name, g in side.items()} for side in plain]
    floor = torch.cat([value.flatten() for value in salience[1].values()]).mean()
    damping = 0.01 * torch.cat([value.flatten() for value in fisher[1].values()]).mean()
    for name in names:
        expected = {
            "gradient": salience[0][name],
            "gradient-ratio": salience[0][name] / (salience[1][name] + floor),
            "fisher": fisher[0][name],
            "fisher-ratio": fisher[0][name] / (fisher[1][name] + damping),
            "wagle": ((weights[name].detach() - 1e6 * plain[1][name]) * plain[0][name]).abs(),
        }
        for measure, value in expected.items():
            torch.testing.assert_close(found[measure].values[name], value, rtol=1e-3, atol=1e-5 * float(value.max()))
    assert list(found["neuron-ig"].values) == list(anatomy(model).down[1:])
    assert found["neuron-ig"].kind == "unit"
    assert all((value >= 0).all() for value in found["neuron-ig"].values.values())
    with pytest.raises(UserError, match="no attribution measure 'luck'"):
        score(model, SUBJECT, "luck", "down", 0)


@FAMILIES
def test_each_asked_token_counts_once_however_answers_are_split_into_passes(family):
    model = MODELS[family](2, torch.float64)
    first, *others = SUBJECT.forget[:3]
    longer = first.model_copy(update={"answer": "Liverpool and Rome in Italy"})
    subject = replace(SUBJECT, forget=(longer, *others))
    pairs = [(prompt, fact.answer) for fact in subject.forget for prompt in fact.train]
    counts = [int((encode_answers(TOKENIZER, [pair]).labels >= 0).sum()) for pair in pairs]
    assert len(set(counts)) > 1
    assert len(pairs) % ROWS
    found = score(model, subject, "gradient", "down", 0)
    for name, weight in model.named_parameters():
        if name in found.values:
            right = (slow_gradient(model, pairs, name) * weight).abs().detach()
            torch.testing.assert_close(found.values[name], right, rtol=1e-3, atol=1e-5 * float(right.max()))


def test_the_seed_draws_the_facts():
    model = small_gpt2()
    one, two, again = (score(model, SUBJECT, "gradient", "down", seed, most=2) for seed in (0, 5, 0))
    name = candidates(model, "down")[0]
    assert torch.equal(one.values[name], again.values[name])
    assert not torch.equal(one.values[name], two.values[name])


@FAMILIES
def test_fisher_of_some_parameters_equals_that_of_all(family):
    model = MODELS[family](0, torch.float64)
    encoded = encode_facts(TOKENIZER, SUBJECT.forget[:2])
    embedding = f"{anatomy(model).embedding}.weight"
    every = fisher_diagonal(model, encoded.ids, encoded.labels)
    for names in ([candidates(model, "mlp")[1]], [*candidates(model, "down"), embedding]):
        some = fisher_diagonal(model, encoded.ids, encoded.labels, chunk=1, names=names)
        assert set(some.values) == set(names)
        slow = fisher_diagonal_vmap(model, encoded.ids, encoded.labels, names=names)
        for name in names:
            scale = float(every.values[name].max())
            torch.testing.assert_close(some.values[name], every.values[name], rtol=1e-5, atol=1e-7 * scale)
            torch.testing.assert_close(some.values[name], slow.values[name], rtol=1e-5, atol=1e-7 * scale)


# --- masks


@FAMILIES
@pytest.mark.parametrize("fraction", [1e-5, 0.0013, 0.01, 0.02])
def test_masks_take_their_share_of_all_weights(family, fraction):
    model = MODELS[family]()
    scores = score(model, SUBJECT, "gradient", "mlp", 0)
    mask = mask_of(model, scores, fraction)
    assert mask.count == count_of(model, fraction)
    flat = torch.cat([value.flatten() for value in scores.values.values()])
    inside = torch.cat([mask.bits[name].flatten() for name in scores.values])
    assert flat[inside].min() >= flat[~inside].max()


def test_masks_end_where_the_candidates_end():
    model = small_gpt2()
    scores = score(model, SUBJECT, "gradient", "down", 0)
    assert mask_of(model, scores, 1.0).count == sum(value.numel() for value in scores.values.values())
    with pytest.raises(UserError):
        mask_of(model, scores, 0.0)


@FAMILIES
@pytest.mark.parametrize(("fraction", "neurons"), [(1e-5, 1), (0.01, None), (1.0, "all")])
def test_neuron_masks_are_what_the_neurons_write(family, fraction, neurons):
    model = MODELS[family]()
    parts, width = anatomy(model), 32
    generator = torch.Generator().manual_seed(3)
    values = {name: torch.rand(parts.neurons, generator=generator) for name in parts.down}
    mask = mask_of(model, Scores(values, "unit", "neuron-ig"), fraction)
    total = sum(p.numel() for p in model.parameters())
    every = torch.cat(list(values.values()))
    take = {None: int(fraction * total) // width, "all": len(every)}.get(neurons, neurons)
    assert mask.count == take * width
    best = set(every.argsort(descending=True)[:take].tolist())
    for layer, name in enumerate(parts.down):
        # Conv1D keeps a neuron's outgoing weights in a row, nn.Linear in a column.
        bits = mask.bits[f"{name}.weight"]
        bits = bits if family == "gpt2" else bits.T
        for neuron in range(parts.neurons):
            assert bits[neuron].tolist() == [layer * parts.neurons + neuron in best] * width
