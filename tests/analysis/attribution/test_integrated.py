"""Integrated gradients of pixels and units against closed forms and patched endpoints."""

import copy

import pytest
import torch
from small_networks import skip
from torch import nn

from analysis.attribution.integrated import (
    pixel_integrated_gradients,
    pixel_residuals,
    unit_integrated_gradients,
)
from analysis.attribution.targets import log_probability, logit
from analysis.errors import UserError

# captum holds the nodes' weights in float32.
CAPTUM = 1e-6


def test_pixels_of_a_linear_model_get_weight_times_difference():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    x, y = torch.randn(4, 1, 3, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
    base = torch.full((1, 3, 4), -1.0)
    scores = pixel_integrated_gradients(model, x, y, baseline=base, steps=2)
    right = model[1].weight[y].view_as(x) * (x + 1)
    torch.testing.assert_close(scores.values["input"], right.detach(), rtol=CAPTUM, atol=CAPTUM)
    assert (scores.kind, scores.measure) == ("input", "input-ig")


def test_pixels_of_a_quadratic_form():
    # F = (w x)^2 from zero: x_i's share is w_i x_i (w x).
    torch.manual_seed(0)
    model = nn.Linear(5, 2).double()
    nn.init.zeros_(model.bias)
    x, y = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    scores = pixel_integrated_gradients(model, x, y, lambda out, labels: logit(out, labels) ** 2, steps=1)
    own = model.weight[y].detach()
    right = own * x * (own * x).sum(1, keepdim=True)
    torch.testing.assert_close(scores.values["input"], right, rtol=CAPTUM, atol=CAPTUM)


def test_residuals_are_completeness_gaps_and_vanish_with_more_steps():
    model, x, y = skip()
    base = -torch.ones_like(x)
    gain = log_probability(copy.deepcopy(model).eval()(x), y) - log_probability(copy.deepcopy(model).eval()(base), y)
    worst = []
    for steps in (2, 16, 256):
        scores = pixel_integrated_gradients(model, x, y, log_probability, base, steps)
        gaps = pixel_residuals(scores, model, x, y, log_probability, base)
        torch.testing.assert_close(gaps, (scores.values["input"].sum((1, 2, 3)) - gain).detach())
        assert scores.residual == pytest.approx(float(gaps.sum()), abs=1e-12)
        worst.append(float(gaps.abs().max()))
    assert worst[0] > worst[1] > worst[2]
    assert worst[2] < 1e-3


def test_images_are_attributed_by_themselves_whatever_the_chunk():
    model, x, y = skip()
    # 600 steps leave room for one image per pass, 4 for all.
    many, few = (pixel_integrated_gradients(model, x, y, steps=steps) for steps in (600, 4))
    alone = pixel_integrated_gradients(model, x[:1], y[:1], steps=4)
    torch.testing.assert_close(few.values["input"][:1], alone.values["input"])
    one = pixel_integrated_gradients(model, x[:1], y[:1], steps=600)
    torch.testing.assert_close(many.values["input"][:1], one.values["input"])


def test_units_of_a_linear_net_by_closed_form():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 1, 0])
    base = torch.randn(6, 4, dtype=torch.float64)
    scores = unit_integrated_gradients(model, x, y, baseline_images=base, steps=1)
    moved = (x - base) @ model[0].weight.T
    torch.testing.assert_close(
        scores.values["0"], (moved * model[1].weight[y]).mean(0).detach(), rtol=CAPTUM, atol=CAPTUM
    )
    head = torch.zeros(3, dtype=torch.float64).index_add(0, y, (moved * model[1].weight[y]).sum(1).detach()) / 6
    torch.testing.assert_close(scores.values["1"], head, rtol=CAPTUM, atol=CAPTUM)
    assert (scores.kind, scores.measure) == ("unit", "unit-ig")
    assert scores.shapes == {"0.weight": (5, 4), "0.bias": (5,), "1.weight": (3, 5), "1.bias": (3,)}


def patched_gain(model, layer, x, base, y):
    """Target with the layer as it is minus target with the layer's output for the baseline, all else as it is."""
    model, kept = copy.deepcopy(model).eval(), []
    module = model.get_submodule(layer)
    handle = module.register_forward_hook(lambda _, __, out: kept.append(out.clone()))
    model(base)
    handle.remove()
    whole = logit(model(x), y)
    module.register_forward_hook(lambda _, __, ___: kept[0].clone())
    return float((whole - logit(model(x), y)).mean().detach())


@pytest.mark.parametrize("layer", ["stem", "inner", "head"])
def test_units_are_complete_between_patched_endpoints(layer):
    model, x, y = skip()
    gain = patched_gain(model, layer, x, torch.zeros_like(x), y)
    scores = unit_integrated_gradients(model, x, y, [layer], steps=512)
    assert float(scores.values[layer].sum()) == pytest.approx(gain, abs=1e-3)
    coarse = unit_integrated_gradients(model, x, y, [layer], steps=2)
    assert coarse.residual == pytest.approx(float(coarse.values[layer].sum()) - gain, abs=1e-9)


@pytest.mark.parametrize("layer", ["stem", "inner"])
def test_units_agree_with_captums_layer_method(layer):
    from captum.attr import LayerIntegratedGradients

    model, x, y = skip()
    scores = unit_integrated_gradients(model, x, y, [layer], steps=64)
    # ReLUs in place would break captum's own hook.
    plain = copy.deepcopy(model).eval()
    plain.relu = nn.ReLU()
    method = LayerIntegratedGradients(lambda a: logit(plain(a), y.repeat(len(a) // 3)), plain.get_submodule(layer))
    values = method.attribute(x, torch.zeros_like(x), n_steps=64)
    torch.testing.assert_close(scores.values[layer], values.sum((2, 3)).mean(0), rtol=1e-5, atol=1e-7)


class Picked(nn.Module):
    """Picks rows by the number of inputs: with more copies behind a layer it would quietly drop them."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.stem(x))[torch.arange(len(x))])


def test_what_lies_below_a_layer_runs_once_for_all_steps():
    torch.manual_seed(0)
    x, y = torch.randn(4, 4, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    plain = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    picked = Picked().double()
    picked.stem.load_state_dict(plain[0].state_dict())
    picked.head.load_state_dict(plain[2].state_dict())
    rows = {}
    for name, model, first in (("plain", plain, plain[0]), ("picked", picked, picked.stem)):
        seen = []
        first.register_forward_hook(lambda _, __, out, seen=seen: seen.append(len(out)))
        rows[name] = [dict(unit_integrated_gradients(model, x, y, steps=steps).values) for steps in (50, 51)]
        rows[name].append(max(seen))
    assert rows["plain"][2] == 4
    assert rows["picked"][2] == 51 * 4
    for mine, other in zip(rows["plain"][:2], rows["picked"][:2], strict=True):
        torch.testing.assert_close(list(mine.values()), list(other.values()))


def test_captums_delta_misleads_on_a_net_with_a_skip_connection():
    from captum.attr import LayerIntegratedGradients

    model, x, y = skip()
    plain = copy.deepcopy(model).eval()
    plain.relu = nn.ReLU()
    method = LayerIntegratedGradients(lambda a: logit(plain(a), y.repeat(len(a) // 3)), plain.inner)
    _, delta = method.attribute(x, torch.zeros_like(x), n_steps=64, return_convergence_delta=True)
    assert float(delta.abs().min()) > 0.01
    for i in range(3):
        assert abs(unit_integrated_gradients(model, x[i : i + 1], y[i : i + 1], ["inner"]).residual) < 0.002


def test_a_table_without_a_row_per_sample_has_no_units():
    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places, self.head = nn.Embedding(7, 4), nn.Embedding(5, 4), nn.Linear(4, 7)

        def forward(self, ids):
            return self.head(self.words(ids) + self.places(torch.arange(ids.shape[1])))

    ids = torch.ones(3, 5).long()
    assert list(unit_integrated_gradients(Placed(), ids, ids, steps=1).values) == ["words", "head"]
    with pytest.raises(UserError, match="row per sample"):
        unit_integrated_gradients(Placed(), ids, ids, ["places"])


def test_the_worst_layer_gives_the_residual():
    model, x, y = skip()
    each = [unit_integrated_gradients(model, x, y, [layer], steps=3).residual for layer in ("stem", "inner", "head")]
    together = unit_integrated_gradients(model, x, y, steps=3)
    assert list(together.values) == ["stem", "inner", "head"]
    assert together.residual == max(each, key=abs)


def test_units_of_a_sequence_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7)).double()
    ids = torch.randint(1, 7, (3, 5))
    scores = unit_integrated_gradients(model, ids, ids, steps=2)
    table, head = model[0].weight.detach(), model[1].weight.detach()
    right = ((table[ids] - table[0]) * head[ids]).sum(1).mean(0)
    torch.testing.assert_close(scores.values["0"], right, rtol=CAPTUM, atol=CAPTUM)


def test_units_can_become_a_mask():
    model, x, y = skip()
    mask = unit_integrated_gradients(model, x, y, ["inner", "head"], steps=2).top(1 / 7)
    assert mask.count in {3 * 3 * 3 + 1, 3 + 1}


@pytest.mark.parametrize("compute", [pixel_integrated_gradients, unit_integrated_gradients])
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_the_model_is_left_as_it_was(compute, guard):
    model, x, y = skip()
    right = compute(copy.deepcopy(model), x, y, steps=3)
    model.train()
    model.stem.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    torch.rand(1)
    state = torch.random.get_rng_state()
    with guard():
        scores = compute(model, x + 0, y, steps=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, right.values[n]) for n, v in scores.values.items())
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [False, False] + [True] * 6
    assert not any(m._forward_hooks for m in model.modules())


def test_user_errors():
    model, x, y = skip()
    with pytest.raises(UserError, match="at least 1 step"):
        pixel_integrated_gradients(model, x, y, steps=0)
    with pytest.raises(UserError, match="at least 1 step"):
        unit_integrated_gradients(model, x, y, steps=0)
    with pytest.raises(UserError, match="baseline"):
        pixel_integrated_gradients(model, x, y, baseline=torch.zeros(4, 4))
    with pytest.raises(UserError, match="token ids"):
        pixel_integrated_gradients(nn.Embedding(3, 3), torch.zeros(2, 2).long(), torch.zeros(2, 2).long())
    with pytest.raises(UserError, match="no layer 'middle'"):
        unit_integrated_gradients(model, x, y, ["middle"])
    with pytest.raises(UserError, match="Label 4"):
        unit_integrated_gradients(model, x, y + 1)
    with pytest.raises(UserError, match="several times"):
        unit_integrated_gradients(nn.Sequential(*[nn.Linear(4, 4)] * 2), torch.zeros(2, 4), torch.tensor([0, 1]))
    with pytest.raises(UserError, match="no layer with weights"):
        unit_integrated_gradients(nn.Flatten(), torch.zeros(2, 4), torch.tensor([0, 1]))
    with torch.no_grad():
        model.stem.weight[0] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        pixel_integrated_gradients(model, x, y)
