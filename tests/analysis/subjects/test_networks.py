import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from analysis.representations.capture import hidden
from analysis.subjects.networks import builtin, cnn, hidden_points, mlp, parametric_layers


def test_the_mlp_is_the_first_seeds():
    shapes = {name: tuple(p.shape) for name, p in mlp((1, 28, 28), 10).named_parameters()}
    assert shapes == {
        "hidden1.weight": (128, 784),
        "hidden1.bias": (128,),
        "hidden2.weight": (64, 128),
        "hidden2.bias": (64,),
        "head.weight": (10, 64),
        "head.bias": (10,),
    }


@given(st.sampled_from(["mlp", "cnn"]), st.integers(1, 4), st.integers(4, 19), st.integers(4, 19), st.integers(2, 12))
@settings(max_examples=30, deadline=None)
def test_builtin_networks_take_any_shape_from_four_by_four(name, channels, height, width, outputs):
    network = builtin(name, (channels, height, width), outputs)
    images = torch.zeros(3, channels, height, width)
    model = network.make().eval()
    assert model(images).shape == (3, outputs)
    caught = hidden(model, network.points, images)
    assert list(caught) == list(network.points)
    assert model.get_submodule(network.head).out_features == outputs
    assert caught[network.head].shape[1] == model.get_submodule(network.head).in_features


def test_the_mlp_computes_what_its_definition_says():
    model = mlp((2, 3, 3), 4).double()
    x = torch.randn(5, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    state = model.state_dict()
    a = (x.reshape(5, 18) @ state["hidden1.weight"].T + state["hidden1.bias"]).clamp(min=0)
    b = (a @ state["hidden2.weight"].T + state["hidden2.bias"]).clamp(min=0)
    assert torch.allclose(model(x), b @ state["head.weight"].T + state["head.bias"])


class Backwards(nn.Module):
    """Runs its layers in another order than it defines them, one of them twice and one never."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.twice = nn.Linear(4, 4)
        self.never = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.first = nn.Linear(3, 4)

    def forward(self, x):
        return self.last(self.twice(self.twice(self.norm(self.first(x)))))


@pytest.mark.parametrize("training", [False, True])
def test_layers_are_listed_as_they_run_and_nothing_is_left_behind(training):
    model = Backwards().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert parametric_layers(model, torch.ones(2, 3)) == ["first", "twice", "last"]
    assert model.training is training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_go_even_when_the_model_fails():
    model = Backwards()
    with pytest.raises(RuntimeError):
        parametric_layers(model, torch.ones(2, 5))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(("depth", "points"), [(1, ("0",)), (2, ("1",)), (4, ("1", "2", "3")), (8, ("1", "4", "7"))])
def test_hidden_points_are_few_spread_and_end_with_the_head(depth, points):
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(depth)))
    assert hidden_points(model, torch.ones(1, 3)) == points


def test_hidden_points_of_the_builtin_networks_hold_their_own():
    for make, name in ((mlp, "mlp"), (cnn, "cnn")):
        found = hidden_points(make((1, 8, 8), 3), torch.zeros(1, 1, 8, 8))
        assert found[-1] == builtin(name, (1, 8, 8), 3).head
        assert len(found) <= 3
