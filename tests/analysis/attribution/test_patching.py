"""Activation patching against one unit at a time, and against a closed form."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from analysis.attribution.patching import activation_patching, matched_pairs
from analysis.attribution.targets import cross_entropy, logit, margin
from analysis.errors import UserError


class Net(nn.Module):
    """Convolution, a skip connection, a linear layer run twice, and ReLUs that work in place."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.twice, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.relu(self.stem(x))
        h = self.relu(self.norm(self.inner(h)) + h).mean((2, 3))
        return self.head(self.relu(self.twice(self.relu(self.twice(h)))))


def pairs(n=5):
    torch.manual_seed(2)
    model = Net().double()
    clean, corrupted = (torch.randn(n, 1, 6, 6, dtype=torch.float64) for _ in range(2))
    return model, clean, corrupted + 0.5, torch.randint(3, (n,))


def one_at_a_time(model, layer, base, other, labels, target, channels_first):
    """Mean targets [units] of `base` with one unit of one layer from `other`: a fresh pair of runs for each unit."""
    module, means = model.get_submodule(layer), []
    units = module.weight.shape[0]
    for unit in range(units):
        source = []
        handle = module.register_forward_hook(lambda _, __, out, source=source: source.append(out.clone()))
        model(other)
        handle.remove()

        def swap(_, __, out, unit=unit, source=source):
            out = out.clone()
            if channels_first:
                out[:, unit] = source.pop(0)[:, unit]
            else:
                out[..., unit] = source.pop(0)[..., unit]
            return out

        handle = module.register_forward_hook(swap)
        means.append(target(model(base), labels).mean())
        handle.remove()
    return torch.stack(means)


@pytest.mark.parametrize("target", [logit, cross_entropy, margin])
@pytest.mark.parametrize("chunk", [1, 12, 2048])
def test_same_as_one_unit_at_a_time(target, chunk):
    model, clean, corrupted, labels = pairs()
    slow = copy.deepcopy(model).eval()
    with torch.no_grad():
        top, bottom = target(slow(clean), labels).mean(), target(slow(corrupted), labels).mean()
        for direction in ("denoising", "noising"):
            scores = activation_patching(model, clean, corrupted, labels, target, direction, chunk=chunk)
            assert scores.measure == f"patching-{direction}"
            assert list(scores.values) == ["stem", "inner", "twice", "head"]
            for layer, found in scores.values.items():
                conv = layer in {"stem", "inner"}
                if direction == "denoising":
                    means = one_at_a_time(slow, layer, corrupted, clean, labels, target, conv)
                    right = (means - bottom) / (top - bottom)
                else:
                    means = one_at_a_time(slow, layer, clean, corrupted, labels, target, conv)
                    right = (top - means) / (top - bottom)
                torch.testing.assert_close(found, right)


def test_closed_form_of_a_linear_net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).double()
    clean, corrupted = torch.randn(2, 5, 4, dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 1, 0])
    steps = ((clean - corrupted) @ model[0].weight.T * model[1].weight[labels]).detach().mean(0)
    for direction in ("denoising", "noising"):
        scores = activation_patching(model, clean, corrupted, labels, direction=direction)
        torch.testing.assert_close(scores.values["0"], steps / steps.sum())
        assert float(scores.values["0"].sum()) == pytest.approx(1)
        assert float(scores.values["1"].sum()) == pytest.approx(1)


def test_sequence_units_are_patched_at_all_positions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 7)).double()
    clean, corrupted = torch.randint(7, (2, 3, 6))
    labels = torch.randint(7, (3, 6))
    scores = activation_patching(model, clean, corrupted, labels, chunk=7)
    with torch.no_grad():
        top, bottom = logit(model(clean), labels).mean(), logit(model(corrupted), labels).mean()
        for layer, found in scores.values.items():
            if layer == "0":
                continue
            right = one_at_a_time(model, layer, corrupted, clean, labels, logit, False)
            torch.testing.assert_close(found, (right - bottom) / (top - bottom))
        table = model[0].weight
        mixed = table[corrupted]
        mixed[..., 2] = table[clean][..., 2]
        right = logit(model[1:](mixed), labels).mean()
    assert float(scores.values["0"][2]) == pytest.approx(float((right - bottom) / (top - bottom)))


def test_one_pair_with_hardly_any_difference_doesnt_decide():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    clean, corrupted = torch.randn(2, 4, 3, dtype=torch.float64)
    corrupted[0] = clean[0] + 1e-12
    scores = activation_patching(model, clean, corrupted, torch.zeros(4).long())
    assert float(scores.values[""].abs().max()) == pytest.approx(1)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 7), m=st.integers(1, 7), seed=st.integers(0, 999), chunk=st.integers(1, 4))
def test_pairs_are_nearest_neighbours(n, m, seed, chunk):
    generator = torch.Generator().manual_seed(seed)
    mine, others = (torch.randn(k, 1, 2, 3, generator=generator) for k in (n, m))
    found = matched_pairs(mine, others, chunk)
    assert found.shape == (n,)
    for i in range(n):
        distances = [float((mine[i] - other).square().sum()) for other in others]
        assert distances[found[i]] == pytest.approx(min(distances), rel=1e-6)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_the_model_is_left_as_it_was(guard):
    model, clean, corrupted, labels = pairs()
    right = activation_patching(copy.deepcopy(model), clean, corrupted, labels)
    model.train()
    model.head.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    torch.rand(1)
    state = torch.random.get_rng_state()
    with guard():
        scores = activation_patching(model, clean + 0, corrupted + 0, labels)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, right.values[n]) for n, v in scores.values.items())
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [True] * 8 + [False] * 2
    assert not any(m._forward_hooks for m in model.modules())


def test_user_errors():
    model, clean, corrupted, labels = pairs()
    with pytest.raises(UserError, match="direction"):
        activation_patching(model, clean, corrupted, labels, direction="both")
    with pytest.raises(UserError, match="not pairs"):
        activation_patching(model, clean, corrupted[1:], labels)
    with pytest.raises(UserError, match="alike"):
        activation_patching(model, clean, clean, labels)
    with pytest.raises(UserError, match="no samples"):
        activation_patching(model, clean[:0], corrupted[:0], labels[:0])
    with pytest.raises(UserError, match="Label 3"):
        activation_patching(model, clean, corrupted, labels + 3)
    with pytest.raises(UserError, match="no layer 'middle'"):
        activation_patching(model, clean, corrupted, labels, layers=["middle"])
    with pytest.raises(UserError, match="Pairs need images"):
        matched_pairs(clean[:0], corrupted)
    with pytest.raises(UserError, match="can't be paired"):
        matched_pairs(clean, corrupted[..., 1:])
    with torch.no_grad():
        model.stem.weight[0] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        activation_patching(model, clean, corrupted, labels)
