"""Localisation of facts: scores against slower ways, masks counted, and the whole causal check on small models."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from small_models import small_gpt2, small_llama, small_tokenizer

from analysis.ablation import count_of
from analysis.attribution.anatomy import anatomy
from analysis.attribution.fisher import fisher_diagonal, fisher_diagonal_vmap
from analysis.errors import UserError
from analysis.fact_localization import (
    MEASURES,
    ROWS,
    FactLocalization,
    ablated_shares,
    by_layer,
    candidates,
    fact_localization,
    gradients,
    layer_mask,
    mask_of,
    score,
)
from analysis.scores import Mask, Scores
from analysis.subjects.language.bank import Bank, Fact, SubjectLine, TextLine
from analysis.subjects.language.encoding import encode_answers
from analysis.subjects.language.facts import fact_subject
from analysis.subjects.language.scoring import ask, encode_facts, mean_loss

TOKENIZER = small_tokenizer()
MODELS = {"gpt2": small_gpt2, "llama": small_llama}
FAMILIES = pytest.mark.parametrize("family", MODELS)
CITIES = ("Liverpool", "London", "Paris", "Rome")


def fact(kind, number, split):
    who = f"{('The Beatles', 'Ringo', 'France')[('fact', 'neighbour', 'far').index(kind)]} of {number}"
    answer = CITIES[number % 4]
    return Fact(
        kind=kind,
        id=f"{kind}-{split}-{number}",
        relation="city",
        subject=who,
        answer=answer,
        train=(f"{who} came from", f"The city of {who} is"),
        heldout=(f"What is the city of {who}?",),
        question="What?",
        distractors=tuple(city for city in CITIES if city != answer),
        split=split,
    )


def small_subject():
    facts = tuple(
        fact(kind, n, s) for kind in ("fact", "neighbour", "far") for s in ("edit", "audit") for n in range(4)
    )
    texts = tuple(TextLine(kind="text", text="Rome is a city.", topic="generic", split=s) for s in ("edit", "audit"))
    about = SubjectLine(kind="subject", name="the Beatles", slug="beatles", names={"band": ("The Beatles",)})
    return fact_subject("small", Bank(about, facts, texts), {one.id for one in facts}, TOKENIZER, 128)


SUBJECT = small_subject()


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)) for name in one
    )


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
    before, flags = state(model), [p.requires_grad for p in model.parameters()]
    found = gradients(model, partial(mean_loss, model, encode_facts(TOKENIZER, SUBJECT.forget)), [frozen])
    assert found[frozen].abs().sum() > 0
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(KeyError):
        gradients(model, partial(mean_loss, model, encode_facts(TOKENIZER, SUBJECT.forget)), ["none"])
    assert [p.requires_grad for p in model.parameters()] == flags
    assert same(state(model), before)


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


# --- the causal check


@FAMILIES
def test_ablation_restores_every_bit(family):
    model = MODELS[family]()
    name = candidates(model, "down")[1]
    with torch.no_grad():
        # A zero with a sign is lost by any restoring that computes.
        dict(model.named_parameters())[name][0, :4] = -0.0
    before = state(model)
    everything = Mask.everything(model)
    groups = [SUBJECT.forget_test[:2], SUBJECT.retain_test]
    for mask in (Mask({}), Mask({name: everything.bits[name]}), everything.random_like(0), everything):
        expected = copy.deepcopy(model)
        with torch.no_grad():
            for key, bits in mask.bits.items():
                dict(expected.named_parameters())[key][bits] = 0.0
        shares = ablated_shares(model, mask, SUBJECT, groups)
        assert same(state(model), before)
        slow = [[ask(expected, TOKENIZER, [one], [one.heldout[:1]])[0][0].share for one in group] for group in groups]
        assert shares == pytest.approx([sum(mine) / len(mine) for mine in slow], abs=1e-5)
    # Nothing but zeros gives every token the same probability.
    assert shares[0] == pytest.approx(
        ablated_shares(small_gpt2(7), Mask.everything(small_gpt2(7)), SUBJECT, groups)[0], abs=1e-5
    )


def test_ablation_restores_after_a_failure():
    model = small_gpt2()
    before = state(model)
    long = SUBJECT.forget_test[0].model_copy(update={"heldout": ("The city " * 200,)})
    with pytest.raises(UserError, match="reads at most 128"):
        ablated_shares(model, Mask.everything(model), SUBJECT, [[long]])
    assert same(state(model), before)


@FAMILIES
def test_by_layer(family):
    model = MODELS[family]()
    blocks = anatomy(model).blocks
    mask = mask_of(model, score(model, SUBJECT, "gradient", "blocks", 0), 0.01)
    shares = by_layer(model, mask)
    assert len(shares) == len(blocks)
    assert sum(shares) == pytest.approx(1)
    assert shares == [
        sum(int(bits.sum()) for name, bits in mask.bits.items() if name.split(".")[2] == str(block)) / mask.count
        for block in range(3)
    ]
    only = candidates(model, "down")[1]
    assert by_layer(model, Mask({only: Mask.everything(model).bits[only]})) == [0, 1, 0]
    assert by_layer(model, Mask({})) == [0, 0, 0]


@FAMILIES
def test_fact_localization(family, tmp_path):
    model = MODELS[family]().train()
    before, done = state(model), []
    torch.manual_seed(11)
    random_state = torch.get_rng_state()
    report = fact_localization(
        model, SUBJECT, 0.01, "mlp", fractions=(0.002, 0.02), seeds=(0, 1), every=2, progress=done.append
    )
    assert same(state(model), before)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert done == sorted(done)
    assert done[-1] == 1.0

    blocks = anatomy(model).blocks
    kinds = [(curve.measure, curve.control, curve.layer) for curve in report.curves]
    assert kinds == [
        *((measure, control, None) for measure in MEASURES for control in (None, "random")),
        ("all", "layer", blocks[0]),
        ("all", "layer", blocks[2]),
    ]
    for curve in report.curves:
        repeats = 1 if curve.control == "layer" else 2
        assert curve.x == [0.002, 0.02]
        for side in (curve.forget, curve.retain):
            assert [len(row) for row in side] == [repeats, repeats]
            assert all(0 <= share <= 1 for row in side for share in row)
    assert {one.measure for one in report.causal} == set(MEASURES)
    assert (report.n_forget, report.n_retain) == (4, 8)
    for measure in MEASURES:
        assert report.iou[measure][measure] == 1
        assert sum(report.layers[measure]) == pytest.approx(1)
        for other in MEASURES:
            assert report.iou[measure][other] == report.iou[other][measure]

    # What it says of no ablation and of its first mask, computed anew.
    still = copy.deepcopy(model).eval()
    untouched = [
        [ask(still, TOKENIZER, [one], [one.heldout[:1]])[0][0].share for one in group]
        for group in (SUBJECT.forget_test, SUBJECT.retain_test)
    ]
    means = [sum(mine) / len(mine) for mine in untouched]
    assert [report.forget_before, report.retain_before] == pytest.approx(means, abs=1e-5)
    mask = mask_of(still, score(still, SUBJECT, "gradient", "mlp", 0, 2), 0.02)
    again = ablated_shares(still, mask, SUBJECT, [SUBJECT.forget_test, SUBJECT.retain_test])
    first = report.curves[0]
    assert [first.forget[1][0], first.retain[1][0]] == pytest.approx(again, abs=1e-5)
    assert FactLocalization.model_validate_json(report.model_dump_json()) == report


def test_located_weights_of_a_taught_model_matter_more_than_others():
    # Taught facts of the subject only, by one block's MLP: without the weights found, less is left than without others.
    model = small_gpt2()
    name = candidates(model, "down")[1]
    pairs = [(p, one.answer) for one in (*SUBJECT.forget, *SUBJECT.forget_test) for p in one.prompts]
    encoded = encode_answers(TOKENIZER, pairs)
    weight = dict(model.requires_grad_(False).named_parameters())[name].requires_grad_(True)
    optimizer = torch.optim.Adam([weight], 0.02)
    for _ in range(120):
        optimizer.zero_grad()
        mean_loss(model, encoded).backward()
        optimizer.step()
    report = fact_localization(
        model.requires_grad_(False), SUBJECT, 0.01, "down", ["gradient"], fractions=(0.003, 0.01), seeds=(0, 1, 2)
    )
    assert report.forget_before > 0.9
    own, chance = report.curves[:2]
    assert sum(own.forget[1]) < sum(chance.forget[1])
    assert report.causal[0].mean > 0


def test_a_block_with_too_few_candidates_lends_its_other_matrices():
    model = small_gpt2()
    names, block = candidates(model, "down"), anatomy(model).blocks[1]
    few = layer_mask(model, names, block, 32 * 128, 0)
    more = layer_mask(model, names, block, 32 * 128 + 1, 0)
    assert [name for name, bits in few.bits.items() if bits.any()] == [f"{block}.mlp.c_proj.weight"]
    assert more.count == 32 * 128 + 1
    assert sum(bool(bits.any()) for bits in more.bits.values()) > 1
    assert all(name.startswith(f"{block}.") for name in more.bits)
    assert layer_mask(model, names, block, 10**6, 0) is None


def test_a_block_with_too_few_weights_is_left_out_of_the_sweep():
    model = small_gpt2()
    block = sum(p.numel() for n, p in model.named_parameters() if n in candidates(model, "blocks")) / 3
    share = 1.5 * block / sum(p.numel() for p in model.parameters())
    report = fact_localization(model, SUBJECT, 0.01, "down", ["gradient"], fractions=(0.01, share), seeds=(0,), every=3)
    (sweep,) = [curve for curve in report.curves if curve.control == "layer"]
    assert sweep.x == [0.01]
    assert report.causal[0].low is None
