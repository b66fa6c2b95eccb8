"""Contrast against a slow loop over connections, and rank sums against sorting."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from analysis.attribution.contrast import contrast, rank_sum
from analysis.errors import UserError
from analysis.scores import Scores


class Net(nn.Module):
    """A grouped convolution, a layer called twice, and one that never runs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.twice = nn.Linear(3, 3)
        self.head = nn.Linear(6 * 2 * 3, 3)
        self.idle = nn.Linear(2, 2)

    def forward(self, x):
        hidden = self.twice(torch.tanh(self.twice(self.norm(self.conv(x)))))
        return self.head(hidden.flatten(1))


@pytest.fixture
def made():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net().double()
        return model, torch.randn(7, 4, 4, 5, dtype=torch.float64), 1 + torch.randn(9, 4, 4, 5, dtype=torch.float64)


def slow_inputs(model, images):
    x = images
    conv = model.norm.eval()(model.conv(x))
    once = model.twice(conv)
    return {"conv": [x], "twice": [conv, torch.tanh(once)], "head": [model.twice(torch.tanh(once)).flatten(1)]}


@torch.no_grad()
def test_contrast_equals_a_loop_over_connections(made):
    model, forget, retain = made
    model.train()
    found = contrast(model, forget, retain)
    assert model.training
    model.eval()
    gone, kept = slow_inputs(model, forget), slow_inputs(model, retain)
    for name in ("conv", "twice", "head"):
        weight = model.get_submodule(name).weight
        for i, j in [(0, 0), (1, 1), (2, 0), (len(weight) - 1, weight.shape[1] - 1)]:
            channel = (i // 3) * 2 + j if name == "conv" else j
            squares = []
            for one, other in zip(gone[name], kept[name], strict=True):
                difference = one.mean(0) - other.mean(0)
                squares += (difference[channel] if name == "conv" else difference[..., channel]).flatten().tolist()
            expected = weight[i, j].abs() * (sum(s**2 for s in squares) / len(squares)) ** 0.5
            torch.testing.assert_close(found.values[f"{name}.weight"][i, j], expected, rtol=1e-10, atol=1e-12)
    for name in ("conv.bias", "norm.weight", "idle.weight", "head.bias"):
        assert not found.values[name].any()


def test_contrast_does_not_depend_on_how_the_images_are_cut(made, monkeypatch):
    model, forget, retain = made
    whole = contrast(model, forget, retain)
    monkeypatch.setattr("analysis.attribution.contrast.CHUNK", 2)
    for name, value in contrast(model, forget, retain).values.items():
        torch.testing.assert_close(value, whole.values[name])


def test_alike_sets_have_no_contrast(made):
    model, forget, _ = made
    found = contrast(model, forget, forget.flip(0))
    assert max(float(value.max()) for value in found.values.values()) == pytest.approx(0.0, abs=1e-12)


class Odd(nn.Module):
    """A layer at two sizes of feature map, one called by keyword, and one whose weight is made by another."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        hidden = self.conv(self.conv(x)).flatten(1)
        return self.head(input=self.normed(hidden))


def test_odd_layers_are_scored_or_left_out():
    model = Odd()
    found = contrast(model, torch.rand(5, 1, 6, 6), torch.rand(6, 1, 6, 6))
    assert found.values["conv.weight"].all()
    assert found.values["head.weight"].all()
    assert not any(value.any() for name, value in found.values.items() if name.startswith("normed"))


def test_an_empty_set_is_refused(made):
    model, forget, retain = made
    with pytest.raises(UserError, match="at least one of each"):
        contrast(model, forget[:0], retain)


def scores(values):
    values = torch.tensor(values, dtype=torch.float64)
    return Scores({"a": values[:2], "b": values[2:].view(1, -1)}, "parameter", "x", "1")


@given(
    st.lists(
        st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
        min_size=4,
        max_size=12,
        unique_by=(lambda p: p[0], lambda p: p[1]),
    )
)
def test_rank_sums_equal_counting_what_lies_below(pairs):
    first, second = ([p[k] for p in pairs] for k in (0, 1))
    found = rank_sum(scores(first), scores(second), "both")
    flat = torch.cat([value.flatten() for value in found.values.values()]).tolist()
    top = len(pairs) - 1
    expected = [(sum(x < a for x in first) + sum(y < b for y in second)) / top for a, b in pairs]
    assert flat == pytest.approx(expected)
    assert found.measure == "both"


def test_ranks_of_different_models_are_not_added():
    with pytest.raises(UserError, match="different models"):
        rank_sum(scores([1.0, 2, 3, 4]), scores([1.0, 2, 3, 4, 5]), "both")
