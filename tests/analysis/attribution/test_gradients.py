"""Saliency against finite differences; weight integrated gradients against closed forms."""

import copy

import pytest
import torch
from torch import nn

from analysis.attribution.gradients import saliency, weight_integrated_gradients
from analysis.attribution.targets import cross_entropy, log_probability, logit, margin
from analysis.errors import UserError


def net():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 5), nn.ReLU(), nn.Linear(5, 3)
    )
    model.double()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return model, torch.randn(6, 1, 5, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0])


@pytest.mark.parametrize("target", [cross_entropy, logit, margin])
def test_saliency_is_the_absolute_finite_difference(target):
    model, x, y = net()
    scores = saliency(model, x, y, target, chunk=4)
    probe = copy.deepcopy(model).eval()
    assert (scores.kind, scores.measure) == ("parameter", "gradient")
    with torch.no_grad():
        for name, p in probe.named_parameters():
            for at in range(0, p.numel(), 5):
                flat = p.view(-1)
                was, step = float(flat[at]), 1e-6
                flat[at] = was + step
                up = target(probe(x), y).mean()
                flat[at] = was - step
                down = target(probe(x), y).mean()
                flat[at] = was
                slope = abs(float(up - down)) / (2 * step)
                assert float(scores.values[name].view(-1)[at]) == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_unused_parameters_score_zero():
    class Idle(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.idle = nn.Parameter(torch.ones(2))

    x, y = torch.ones(2, 4), torch.tensor([0, 1])
    assert torch.equal(saliency(Idle(), x, y).values["idle"], torch.zeros(2))
    assert torch.equal(weight_integrated_gradients(Idle(), x, y, steps=2).values["idle"], torch.zeros(2))


def test_weights_of_a_linear_model_get_weight_times_input():
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([1, 1, 0, 2, 1])
    base = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    scores = weight_integrated_gradients(model, x, y, baseline=base, steps=1, chunk=2)
    for row in range(3):
        mine = (y == row).double()
        right = (model.weight - base["weight"])[row] * (mine.unsqueeze(1) * x).sum(0) / 5
        torch.testing.assert_close(scores.values["weight"][row], right.detach())
        torch.testing.assert_close(scores.values["bias"][row], (model.bias - base["bias"])[row].detach() * mine.mean())
    assert abs(scores.residual) < 1e-12


def test_two_linear_layers_share_by_the_quadratic_closed_form():
    # F = v (W x): on the path from zero both factors grow as a, so that every layer gets half of F.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)).double()
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([1, 1, 0, 1, 0])
    scores = weight_integrated_gradients(model, x, y, steps=1)
    inner, head = model[0].weight.detach(), model[1].weight.detach()
    right = torch.stack([0.5 * inner * torch.outer(head[label], image) for image, label in zip(x, y, strict=True)])
    torch.testing.assert_close(scores.values["0.weight"], right.mean(0))
    assert scores.values["1.weight"].sum() == pytest.approx(float(scores.values["0.weight"].sum()))
    assert abs(scores.residual) < 1e-12


@pytest.mark.parametrize(("smooth", "close"), [(True, 1e-12), (False, 2e-3)])
@pytest.mark.parametrize("target", [logit, log_probability])
def test_residual_is_the_completeness_gap_and_vanishes_with_more_steps(target, smooth, close):
    model, x, y = net()
    if smooth:
        model[5] = nn.Tanh()
    base = {n: 0.3 * torch.randn_like(p) for n, p in model.named_parameters()}
    start, end = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    start.load_state_dict(base, strict=False)
    gain = float((target(end(x), y) - target(start(x), y)).mean().detach())
    gaps = []
    for steps in (2, 8, 128):
        scores = weight_integrated_gradients(model, x, y, target, base, steps=steps)
        gap = sum(float(v.sum()) for v in scores.values.values()) - gain
        assert scores.residual == pytest.approx(gap, abs=1e-12)
        gaps.append(abs(gap))
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < close


def test_homogeneous_net_needs_few_steps():
    # Without biases F(a w) = a^depth F(w): a polynomial that two nodes integrate exactly up to depth 4.
    torch.manual_seed(0)
    layers = [
        nn.Linear(4, 6, bias=False),
        nn.ReLU(),
        nn.Linear(6, 6, bias=False),
        nn.ReLU(),
        nn.Linear(6, 3, bias=False),
    ]
    model = nn.Sequential(*layers).double()
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([1, 1, 0, 2, 0])
    assert abs(weight_integrated_gradients(model, x, y, steps=2).residual) < 1e-12
    assert abs(weight_integrated_gradients(model, x, y, steps=1).residual) > 1e-4


def test_unsigned_values_are_magnitudes_with_the_same_residual():
    model, x, y = net()
    signed = weight_integrated_gradients(model, x, y, steps=4)
    unsigned = weight_integrated_gradients(model, x, y, steps=4, signed=False)
    assert unsigned.residual == signed.residual
    assert all(torch.equal(unsigned.values[n], v.abs()) for n, v in signed.values.items())
    assert any((v < 0).any() for v in signed.values.values())


def test_tied_weights_count_once_and_complete():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    model[2].weight = model[0].weight
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([1, 1, 0, 2, 3])
    scores = weight_integrated_gradients(model, x, y, steps=32)
    assert list(scores.values) == ["0.weight", "0.bias", "2.bias"]
    assert abs(scores.residual) < 1e-12


def test_buffers_stay_the_trained_ones():
    model, x, y = net()
    state = {n: torch.full_like(v, 7) for n, v in model.state_dict().items()}
    base = {**state, **{n: torch.zeros_like(p) for n, p in model.named_parameters()}}
    one, other = (weight_integrated_gradients(model, x, y, baseline=b, steps=3) for b in (base, None))
    assert all(torch.equal(v, other.values[n]) for n, v in one.values.items())


@pytest.mark.parametrize("compute", [saliency, weight_integrated_gradients])
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_the_model_is_left_as_it_was(compute, guard):
    model, x, y = net()
    right = compute(copy.deepcopy(model), x, y)
    model.train().requires_grad_(False)
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    torch.rand(1)
    state = torch.random.get_rng_state()
    with guard():
        scores = compute(model, x + 0, y + 0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, right.values[n]) for n, v in scores.values.items())
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert [m.training for m in model] == [True, False, True, True, True, True, True]
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_user_errors():
    model, x, y = net()
    with pytest.raises(UserError, match="at least 1 step"):
        weight_integrated_gradients(model, x, y, steps=0)
    with pytest.raises(UserError, match="same model"):
        weight_integrated_gradients(model, x, y, baseline={"0.weight": torch.zeros(2)})
    with pytest.raises(UserError, match="Label 3"):
        saliency(model, x, y + 1)
    with pytest.raises(UserError, match="no samples"):
        saliency(model, x[:0], y[:0])
    with torch.no_grad():
        model[0].weight[0] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        saliency(model, x, y)
