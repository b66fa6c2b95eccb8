"""Integrated gradients of neurons and tokens against one straight line at a time, by finite differences."""

import numpy as np
import pytest
import torch
from small_models import exact, sequences, small_gpt2, small_llama

from analysis.attribution import language_ig
from analysis.attribution.anatomy import anatomy, neuron_mask_rows
from analysis.attribution.language_ig import neuron_integrated_gradients, neuron_residuals, token_integrated_gradients
from analysis.errors import UserError

MAKERS = {"gpt2": small_gpt2, "llama": small_llama}


def totals(model, ids, labels):
    """Sum of log p of each row's asked tokens, from the model's own logits."""
    found = model(ids).logits.log_softmax(2).gather(2, labels.clamp_min(0)[..., None]).squeeze(2)
    return found.masked_fill(labels == -100, 0.0).sum(1)


def with_neurons(model, name, change, ids, labels):
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, given: (change(given[0]),))
    try:
        return totals(model, ids, labels)
    finally:
        handle.remove()


def silenced(neurons):
    """Neurons at zero everywhere but at the first position, which stays."""
    out = torch.zeros_like(neurons)
    out[:, 0] = neurons[:, 0]
    return out


def slow_shares(model, name, ids, labels, start, intervals=120):
    """Simpson's rule over directional derivatives of whole forward passes; [neurons], mean over rows."""
    caught = []
    with_neurons(model, name, lambda a: (caught.append(a.detach()), a)[1], ids, labels)
    end = caught[0]
    start = start.expand_as(end).clone()
    start[:, 0] = end[:, 0]
    total = torch.zeros_like(end)
    for i in range(intervals + 1):
        point = (start + (end - start) * i / intervals).requires_grad_()
        value = with_neurons(model, name, lambda _, point=point: point, ids, labels).sum()
        weight = 1 if i in {0, intervals} else 4 if i % 2 else 2
        total += weight * torch.autograd.grad(value, point)[0]
    return ((end - start) * total / (3 * intervals)).sum((0, 1)) / len(ids)


@pytest.mark.parametrize("name", MAKERS)
def test_neurons_same_as_whole_passes_over_a_fine_path(name):
    model = exact(MAKERS[name]())
    ids, labels = sequences()
    scores = neuron_integrated_gradients(model, ids, labels, steps=24)
    assert (scores.kind, scores.units) == ("unit", "nats")
    assert tuple(scores.values) == anatomy(model).down
    assert abs(scores.residual) < 1e-6
    for layer in (0, 2) if name == "gpt2" else (1,):
        down = anatomy(model).down[layer]
        right = slow_shares(model, down, ids, labels, torch.zeros((), dtype=torch.float64))
        torch.testing.assert_close(scores.values[down], right, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", MAKERS)
def test_neurons_sum_to_what_removing_them_costs(name):
    model = exact(MAKERS[name]())
    ids, labels = sequences()
    scores = neuron_integrated_gradients(model, ids, labels, steps=32)
    with torch.no_grad():
        for down, values in scores.values.items():
            lost = totals(model, ids, labels) - with_neurons(model, down, silenced, ids, labels)
            torch.testing.assert_close(values.sum(), lost.mean(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", MAKERS)
def test_mean_baseline(name):
    model = exact(MAKERS[name]())
    ids, labels = sequences()
    down = anatomy(model).down[1]
    caught = []
    with torch.no_grad():
        with_neurons(model, down, lambda a: (caught.append(a), a)[1], ids, labels)
    mean = torch.cat([caught[0][0, :5], caught[0][1, :2], caught[0][2, :6]]).mean(0)
    scores = neuron_integrated_gradients(model, ids, labels, steps=24, layers=[down], baseline="mean")
    assert list(scores.values) == [down]
    right = slow_shares(model, down, ids, labels, mean)
    torch.testing.assert_close(scores.values[down], right, rtol=1e-5, atol=1e-7)


def test_residual_is_that_of_the_worst_layer():
    model = exact(small_llama())
    ids, labels = sequences()
    scores = neuron_integrated_gradients(model, ids, labels, steps=2)
    missed = {}
    with torch.no_grad():
        for down, values in scores.values.items():
            lost = totals(model, ids, labels) - with_neurons(model, down, silenced, ids, labels)
            missed[down] = float(values.sum() - lost.mean())
    assert abs(scores.residual) > 1e-4
    assert scores.residual == pytest.approx(max(missed.values(), key=abs), rel=1e-6)
    assert neuron_residuals(scores, model, ids, labels) == pytest.approx(missed, rel=1e-6)
    other = neuron_integrated_gradients(model, ids, labels, steps=2, baseline="mean")
    found = neuron_residuals(other, model, ids, labels, "mean")
    assert max(found.values(), key=abs) == pytest.approx(other.residual, rel=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_batches_and_padding_change_nothing(name, monkeypatch):
    model = exact(MAKERS[name]())
    ids, labels = sequences()
    whole = neuron_integrated_gradients(model, ids, labels, steps=4)
    tokens = token_integrated_gradients(model, ids, labels, steps=4)
    monkeypatch.setattr(language_ig, "TOKENS", 1)
    padded, more = torch.nn.functional.pad(ids, (0, 4)), torch.nn.functional.pad(labels, (0, 4), value=-100)
    single = neuron_integrated_gradients(model, padded, more, steps=4)
    for down, values in whole.values.items():
        torch.testing.assert_close(single.values[down], values)
    found = token_integrated_gradients(model, padded, more, steps=4).values["input"]
    torch.testing.assert_close(found[:, :7], tokens.values["input"])
    assert not found[:, 7:].any()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_either_attention(attention):
    ids, labels = sequences()
    model = exact(small_gpt2())
    model.set_attn_implementation(attention)
    # Eager attention takes its softmax in float32.
    right = neuron_integrated_gradients(exact(small_gpt2()), ids, labels, steps=4)
    for down, values in neuron_integrated_gradients(model, ids, labels, steps=4).values.items():
        torch.testing.assert_close(values, right.values[down], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_best_neurons_become_a_mask(name):
    model = exact(MAKERS[name]())
    ids, labels = sequences()
    scores = neuron_integrated_gradients(model, ids, labels, steps=4)
    bits = scores.top(0.05).bits
    joined = torch.cat([scores.values[down] for down in bits])
    chosen = torch.cat(list(bits.values()))
    assert joined[chosen].min() >= joined[~chosen].max()
    masks = neuron_mask_rows(model, bits)
    assert sum(int(mask.sum()) for mask in masks.values()) == int(chosen.sum()) * 32


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("other", [False, True])
def test_tokens_same_as_one_sequence_and_one_node_at_a_time(name, other):
    model = exact(MAKERS[name]())
    ids, labels = sequences()
    baseline = ids.flip(0) if other else None
    scores = token_integrated_gradients(model, ids, labels, baseline, steps=12)
    assert scores.kind == "input"
    embed = model.get_input_embeddings()
    for row in range(3):
        end = embed(ids[row : row + 1]).detach()
        mean = embed.weight.detach().mean(0).expand(1, 6, -1)
        start = embed(baseline[row : row + 1]).detach() if other else torch.cat([end[:, :1], mean], 1)
        asked = [p for p in range(7) if labels[row, p] >= 0]
        right = torch.zeros(7, dtype=torch.float64)
        for node, weight in zip(*np.polynomial.legendre.leggauss(12), strict=True):
            point = (start + (end - start) * (node + 1) / 2).requires_grad_()
            logp = model(inputs_embeds=point).logits.log_softmax(2)
            value = sum(logp[0, p, labels[row, p]] for p in asked)
            (gradient,) = torch.autograd.grad(value, point)
            right += weight / 2 * ((end - start) * gradient).sum(2)[0]
        torch.testing.assert_close(scores.values["input"][row], right)
        assert not scores.values["input"][row, asked[-1] + 1 :].any()


@pytest.mark.parametrize("name", MAKERS)
def test_tokens_sum_to_the_difference_of_the_ends(name):
    """Residuals are honest, and vanish with the number of steps."""
    model = exact(MAKERS[name]())
    ids, labels = sequences()
    with torch.no_grad():
        embed = model.get_input_embeddings()
        mean = torch.cat([embed(ids[:, :1]), embed.weight.mean(0).expand(3, 6, 32)], 1)
        logp = model(inputs_embeds=mean).logits.log_softmax(2).gather(2, labels.clamp_min(0)[..., None]).squeeze(2)
        gain = totals(model, ids, labels) - logp.masked_fill(labels == -100, 0.0).sum(1)
    rough, fine = (token_integrated_gradients(model, ids, labels, steps=steps) for steps in (8, 128))
    for scores in (rough, fine):
        missed = (scores.values["input"].sum(1) - gain).tolist()
        assert scores.residual == pytest.approx(max(missed, key=abs), rel=1e-6, abs=1e-12)
    assert abs(rough.residual) > 1e-3
    assert abs(fine.residual) < 1e-5


def test_the_model_is_left_as_it_was():
    model = exact(small_llama()).train()
    model.lm_head.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = [p.requires_grad for p in model.parameters()]
    with torch.no_grad():
        neuron_integrated_gradients(model, *sequences(), steps=2)
        token_integrated_gradients(model, *sequences(), steps=2)
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_bad_input():
    model = small_gpt2()
    ids, labels = sequences()
    with pytest.raises(UserError, match="at least 1 step"):
        neuron_integrated_gradients(model, ids, labels, steps=0)
    with pytest.raises(UserError, match=r"no down projection 'h\.9'"):
        neuron_integrated_gradients(model, ids, labels, layers=["h.9"])
    with pytest.raises(UserError, match="no baseline"):
        neuron_integrated_gradients(model, ids, labels, baseline="median")
    with pytest.raises(UserError, match="No token is asked for"):
        neuron_integrated_gradients(model, ids, torch.full_like(labels, -100))
    with pytest.raises(UserError, match="none of the model's 400 outputs"):
        token_integrated_gradients(model, ids, labels.clamp_max(0) + 400)
    with pytest.raises(UserError, match="Baseline ids"):
        token_integrated_gradients(model, ids, labels, ids[:, :3])
