"""Conductance of units and neurons against captum's, against closed forms, and what it costs whatever the layers."""

import copy

import pytest
import torch
from small_models import exact, sequences, small_gpt2, small_llama
from small_networks import skip
from torch import nn

from analysis.attribution import conductance, language_ig
from analysis.attribution.anatomy import anatomy, neuron_mask_rows
from analysis.attribution.conductance import neuron_conductance, unit_conductance
from analysis.attribution.targets import log_probability, logit
from analysis.errors import UserError

MAKERS = {"gpt2": small_gpt2, "llama": small_llama}


def chain():
    """Everything passes through every layer."""
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 5)
    ).double()
    return model, torch.randn(4, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 3, 1, 4])


def captums(forward, layer, inputs, baselines, steps, into=False):
    """captum takes the gradient at each step's beginning; with the ends swapped, at what was its end. The mean of both.

    captum holds places in float32: a power of two of steps makes them exact.
    """
    from captum.attr import LayerConductance

    method = LayerConductance(forward, layer)
    options = {"n_steps": steps, "method": "riemann_trapezoid", "attribute_to_layer_input": into}
    there, back = (method.attribute(a, b, **options) for a, b in ((inputs, baselines), (baselines, inputs)))
    return (there - back).detach() / 2


@pytest.mark.parametrize("target", [logit, log_probability])
def test_units_of_all_layers_same_as_captums_layer_by_layer(target):
    model, x, y = skip()
    base = torch.full((1, 5, 5), -0.5)
    scores = unit_conductance(model, x, y, baseline_images=base, target=target, steps=8)
    assert (scores.kind, scores.measure) == ("unit", "unit-conductance")
    assert list(scores.values) == ["stem", "inner", "head"]
    # ReLUs in place would break captum's own hook.
    plain = copy.deepcopy(model).eval()
    plain.relu = nn.ReLU()
    for layer, values in scores.values.items():
        mine = plain.get_submodule(layer)
        right = captums(lambda a: target(plain(a), y.repeat(len(a) // 3)), mine, x, base.expand_as(x) + 0.0 * x, 8)
        right = right.flatten(2).sum(2) if right.dim() == 4 else right
        torch.testing.assert_close(values, right.mean(0), rtol=1e-9, atol=1e-12)


def test_units_of_a_linear_net_by_closed_form():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 1, 0])
    base = torch.randn(6, 4, dtype=torch.float64)
    scores = unit_conductance(model, x, y, baseline_images=base, steps=1)
    moved = (x - base) @ model[0].weight.detach().T
    torch.testing.assert_close(scores.values["0"], (moved * model[1].weight.detach()[y]).mean(0))
    assert abs(scores.residual) < 1e-12


def test_units_of_a_product_by_closed_form():
    # F = a b^2 with a = x, b = 2x + 1 from x = 0 to 1: a gets the integral of b^2, b that of 2 a b times 2.
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.both = nn.Linear(1, 2)

        def forward(self, x):
            a, b = self.both(x).unbind(1)
            return (a * b**2).unsqueeze(1)

    model = Product().double()
    with torch.no_grad():
        model.both.weight.copy_(torch.tensor([[1.0], [2.0]]))
        model.both.bias.copy_(torch.tensor([0.0, 1.0]))
    scores = unit_conductance(model, torch.ones(1, 1), torch.zeros(1).long(), steps=1000)
    right = torch.tensor([4 / 3 + 2 + 1, 4 * (2 / 3 + 1 / 2)], dtype=torch.float64)
    torch.testing.assert_close(scores.values["both"], right, rtol=1e-5, atol=0.0)


def test_layers_that_everything_passes_through_share_out_the_whole_gain():
    model, x, y = chain()
    base = torch.full_like(x, -1.0)
    gain = float((logit(model(x), y) - logit(model(base), y)).mean().detach())
    missed = []
    for steps in (4, 32, 256):
        scores = unit_conductance(model, x, y, baseline_images=base, steps=steps)
        missed.append([abs(float(values.sum()) - gain) for values in scores.values.values()])
    for layer in range(3):
        # The trapezoid rule: eight times as many steps, a sixty-fourth of the error. The head's units are the target.
        few, some, many = (one[layer] for one in missed)
        assert many < 1e-12 if layer == 2 else many < some / 40 < few / 1600
    assert abs(scores.residual) < 1e-4


def test_residual_is_that_of_the_input():
    model, x, y = skip()
    scores = unit_conductance(model, x, y, steps=2)
    total = 0.0
    for a, weight in ((0.0, 0.25), (0.5, 0.5), (1.0, 0.25)):
        point = (a * x).requires_grad_()
        (g,) = torch.autograd.grad(logit(copy.deepcopy(model).eval()(point), y).sum(), point)
        total += weight * float((x * g).sum()) / 3
    still = copy.deepcopy(model).eval()
    gain = float((logit(still(x), y) - logit(still(0 * x), y)).mean().detach())
    assert scores.residual == pytest.approx(total - gain, rel=1e-9)
    assert abs(scores.residual) > 1e-4


def test_a_module_that_runs_twice_gets_both_calls():
    class Twice(nn.Module):
        def __init__(self, apart):
            super().__init__()
            self.one, self.two, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.apart = apart

        def forward(self, x):
            return self.head(torch.tanh((self.two if self.apart else self.one)(torch.tanh(self.one(x)))))

    torch.manual_seed(0)
    shared, split = Twice(False).double(), Twice(True).double()
    split.load_state_dict(shared.state_dict())
    split.two.load_state_dict(split.one.state_dict())
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.randint(3, (5,))
    together = unit_conductance(shared, x, y, ["one"], steps=5).values["one"]
    calls = unit_conductance(split, x, y, ["one", "two"], steps=5).values
    torch.testing.assert_close(together, calls["one"] + calls["two"])


def test_chunks_dont_matter(monkeypatch):
    model, x, y = skip()
    whole = unit_conductance(model, x, y, steps=6)
    monkeypatch.setattr(conductance, "PASSES", 1)
    single = unit_conductance(model, x, y, steps=6)
    for layer, values in whole.values.items():
        torch.testing.assert_close(single.values[layer], values)
    assert single.residual == pytest.approx(whole.residual)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("other", [False, True])
def test_neurons_of_all_layers_same_as_captums_layer_by_layer(name, other):
    model = exact(MAKERS[name]())
    ids, labels = sequences()
    scores = neuron_conductance(model, ids, labels, ids.flip(0) if other else None, steps=8)
    assert (scores.kind, scores.measure, scores.units) == ("unit", "neuron-conductance", "nats")
    assert tuple(scores.values) == anatomy(model).down
    embed = model.get_input_embeddings()
    end = embed(ids).detach()
    start = embed(ids.flip(0)).detach() if other else embed.weight.detach().mean(0).repeat(3, 7, 1)
    start[:, 0] = end[:, 0]

    def target(points):
        logp = model(inputs_embeds=points).logits.log_softmax(2)
        wanted = labels.repeat(len(points) // 3, 1)
        return logp.gather(2, wanted.clamp_min(0)[..., None]).squeeze(2).masked_fill(wanted == -100, 0.0).sum(1)

    for down, values in scores.values.items():
        right = captums(target, model.get_submodule(down), end, start, 8, into=True)
        torch.testing.assert_close(values, right.sum(1).mean(0), rtol=1e-9, atol=1e-12)


def test_neurons_and_residual_stream_share_out_the_gain():
    """What flows through a block's MLP and what goes round it add up to what flows through the embeddings."""
    model = exact(small_llama())
    ids, labels = sequences()
    block = model.model.layers[2]
    steps = 400
    scores = neuron_conductance(model, ids, labels, steps=steps)
    end = model.get_input_embeddings()(ids).detach()
    start = model.get_input_embeddings().weight.detach().mean(0).repeat(3, 7, 1)
    start[:, 0] = end[:, 0]
    seen = []

    class Beside(nn.Module):
        """The last MLP's norm, through which no gradient goes: what is left is the stream beside the MLP."""

        def forward(self, h):
            seen.append(h)
            return norm(h.detach())

    norm, block.post_attention_layernorm = block.post_attention_layernorm, Beside()
    points = torch.cat([torch.lerp(start, end, k / steps) for k in range(steps + 1)]).requires_grad_()
    logp = model(inputs_embeds=points).logits.log_softmax(2)
    wanted = labels.repeat(steps + 1, 1)
    totals = logp.gather(2, wanted.clamp_min(0)[..., None]).squeeze(2).masked_fill(wanted == -100, 0.0).sum(1)
    (gradient,) = torch.autograd.grad(totals.sum(), seen[0])
    y, g = (one.detach().unflatten(0, (steps + 1, 3)) for one in (seen[0], gradient))
    beside = float((y.diff(dim=0) * (g[1:] + g[:-1]) / 2).sum()) / 3
    ends = totals.detach().view(steps + 1, 3)
    gain = float((ends[-1] - ends[0]).mean())
    inside = float(scores.values["model.layers.2.mlp.down_proj"].sum())
    assert abs(inside) > 0.1 * abs(gain)
    assert inside + beside == pytest.approx(gain, abs=0.01 * abs(gain))


@pytest.mark.parametrize("name", MAKERS)
def test_batches_and_padding_change_nothing(name, monkeypatch):
    model = exact(MAKERS[name]())
    ids, labels = sequences()
    whole = neuron_conductance(model, ids, labels, steps=4)
    monkeypatch.setattr(language_ig, "TOKENS", 1)
    padded, more = nn.functional.pad(ids, (0, 4)), nn.functional.pad(labels, (0, 4), value=-100)
    single = neuron_conductance(model, padded, more, steps=4)
    for down, values in whole.values.items():
        torch.testing.assert_close(single.values[down], values)
    assert single.residual == pytest.approx(whole.residual)


def test_embeddings_miss_the_gain_by_the_residual():
    """The trapezoid rule of the path: eight times as many steps, a sixty-fourth of the error."""
    model = exact(small_gpt2())
    ids, labels = sequences()
    some, many = (neuron_conductance(model, ids, labels, steps=steps).residual for steps in (50, 400))
    assert abs(some) > 1e-5
    assert many == pytest.approx(some / 64, rel=0.2)


class Passes:
    """Counts forward passes of a model and backward passes of anything."""

    def __init__(self, model, monkeypatch):
        self.forward = self.backward = 0
        self.handle = model.register_forward_pre_hook(lambda *_: self._more("forward"))
        grad = torch.autograd.grad

        def counted(*args, **kwargs):
            self._more("backward")
            return grad(*args, **kwargs)

        monkeypatch.setattr(torch.autograd, "grad", counted)

    def _more(self, which):
        setattr(self, which, getattr(self, which) + 1)


@pytest.mark.parametrize("steps", [3, 9])
def test_all_neurons_cost_the_passes_of_one_layer(steps, monkeypatch):
    model = small_llama()
    ids, labels = sequences()
    passes = Passes(model.model, monkeypatch)
    neuron_conductance(model, ids, labels, steps=steps, layers=["model.layers.0.mlp.down_proj"])
    one = passes.forward, passes.backward
    neuron_conductance(model, ids, labels, steps=steps)
    assert (passes.forward, passes.backward) == (2 * one[0], 2 * one[1])
    assert passes.backward == 2


def test_all_units_cost_the_passes_of_one_layer(monkeypatch):
    model, x, y = skip()
    passes = Passes(model, monkeypatch)
    unit_conductance(model, x, y, ["stem"], steps=5)
    one = passes.forward, passes.backward
    unit_conductance(model, x, y, steps=5)
    assert (passes.forward, passes.backward) == (2 * one[0], 2 * one[1])
    assert passes.backward == 2


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_the_models_are_left_as_they_were(guard):
    model, x, y = skip()
    language = exact(small_llama()).train()
    model.train()
    model.stem.requires_grad_(False)
    before = [copy.deepcopy(one.state_dict()) for one in (model, language)]
    with guard():
        units = unit_conductance(model, x + 0, y, steps=3)
        neurons = neuron_conductance(language, *sequences(), steps=2)
    for one, state in zip((model, language), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
        assert all(m.training for m in one.modules())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in one.modules())
        assert all(p.grad is None for p in one.parameters())
    assert [p.requires_grad for p in model.parameters()] == [False, False] + [True] * 6
    assert not any(v.requires_grad for v in [*units.values.values(), *neurons.values.values()])


def test_masks_can_be_made_of_both():
    model, x, y = skip()
    assert unit_conductance(model, x, y, ["inner", "head"], steps=2).top(1 / 7).count in {3 * 3 * 3 + 1, 3 + 1}
    language = exact(small_gpt2())
    bits = neuron_conductance(language, *sequences(), steps=2).top(0.05).bits
    masks = neuron_mask_rows(language, bits)
    assert (
        sum(int(mask.sum()) for mask in masks.values()) == 32 * sum(int(chosen.sum()) for chosen in bits.values()) > 0
    )


def test_user_errors():
    model, x, y = skip()
    with pytest.raises(UserError, match="at least 1 step"):
        unit_conductance(model, x, y, steps=0)
    with pytest.raises(UserError, match="token ids"):
        unit_conductance(nn.Embedding(3, 3), torch.zeros(2, 2).long(), torch.zeros(2, 2).long())
    with pytest.raises(UserError, match="baseline"):
        unit_conductance(model, x, y, baseline_images=torch.zeros(4, 4))
    with pytest.raises(UserError, match="no layer 'middle'"):
        unit_conductance(model, x, y, ["middle"])
    language = small_gpt2()
    ids, labels = sequences()
    with pytest.raises(UserError, match="64 is usual"):
        neuron_conductance(language, ids, labels, steps=0)
    with pytest.raises(UserError, match=r"no down projection 'h\.9'"):
        neuron_conductance(language, ids, labels, layers=["h.9"])
    with pytest.raises(UserError, match="Baseline ids"):
        neuron_conductance(language, ids, labels, ids[:, :3])
    with pytest.raises(UserError, match="No token is asked for"):
        neuron_conductance(language, ids, torch.full_like(labels, -100))
