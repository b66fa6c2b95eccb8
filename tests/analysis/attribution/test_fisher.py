"""The Fisher diagonal against plain autograd, one sample at a time, in float64."""

import copy
import itertools

import pytest
import torch
from fisher_cases import CASES, Language, Residual, classes, images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from analysis.attribution.fisher import brain_damage, fisher_diagonal, fisher_diagonal_vmap, fisher_ratio
from analysis.attribution.per_sample import Use, gradient
from analysis.attribution.recording import plan
from analysis.attribution.running import undisturbed
from analysis.errors import UserError
from analysis.scores import Scores


@pytest.fixture(params=CASES)
def case(request):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model, x, y, left = CASES[request.param]()
        model = model.double()
        with torch.no_grad():
            model(x)
            for name, buffer in model.named_buffers():
                if name.endswith("running_mean"):
                    buffer.normal_()
                if name.endswith("running_var"):
                    buffer.uniform_(0.5, 2)
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
    return model, x, y, left


def one_by_one(model, x, y, scalars):
    """Mean over samples of the squared gradients of some scalars of each sample: the obvious way."""
    model = copy.deepcopy(model).eval()
    names, weights = zip(*model.named_parameters(), strict=True)
    total = {n: torch.zeros_like(p) for n, p in zip(names, weights, strict=True)}
    for i in range(len(x)):
        for scalar in scalars(model(x[i : i + 1])[0], y[i]):
            grads = torch.autograd.grad(scalar, weights, retain_graph=True, allow_unused=True)
            for n, g in zip(names, grads, strict=True):
                if g is not None:
                    total[n] += g.detach() ** 2
    return {n: t / len(x) for n, t in total.items()}


def loss(logits, label):
    return [functional.cross_entropy(logits.view(-1, logits.shape[-1]), label.view(-1), reduction="sum")]


def expected(logits, _):
    log_p = logits.log_softmax(-1)
    return [log_p[c].detach().exp().sqrt() * log_p[c] for c in range(len(log_p))]


def assert_same(found, right):
    assert list(found) == list(right)
    for name, value in right.items():
        torch.testing.assert_close(
            found[name], value.detach(), rtol=1e-9, atol=1e-14, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_empirical_fisher_is_the_mean_of_squared_per_sample_gradients(case):
    model, x, y, _ = case
    right = one_by_one(model, x, y, loss)
    scores = fisher_diagonal(model, x, y, chunk=3)
    assert (scores.kind, scores.measure) == ("parameter", "fisher")
    assert_same(scores.values, right)
    assert_same(fisher_diagonal_vmap(model, x, y).values, right)


def test_only_the_odd_parameters_are_left_to_the_fallback(case):
    model, x, _, left = case
    with undisturbed(model, parameters=True):
        assert {n for n, _ in model.named_parameters()} - plan(model, x, model(x[:1])).good == left


@pytest.mark.parametrize(
    "case",
    [k for k in CASES if "language" not in k and "positions" not in k and k != "tied without a module"],
    indirect=True,
)
def test_true_fisher_is_the_expectation_over_predicted_classes(case):
    model, x, y, _ = case
    right = one_by_one(model, x, y, expected)
    scores = fisher_diagonal(model, x, y, kind="true", chunk=3)
    assert scores.measure == "fisher-true"
    assert_same(scores.values, right)


def test_true_fisher_by_vmap():
    torch.manual_seed(0)
    model, x, y, _ = CASES["cnn"]()
    assert_same(fisher_diagonal_vmap(model.double(), x, y, kind="true").values, one_by_one(model, x, y, expected))


@pytest.mark.parametrize("compute", [fisher_diagonal, fisher_diagonal_vmap])
def test_true_fisher_of_a_sequence_is_the_expectation_over_all_label_sequences(compute):
    torch.manual_seed(1)
    model = Language().double()
    ids = torch.randint(9, (2, 3))
    labels = torch.tensor([[1, 2, -100], [-100, 3, 4]])
    right = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for i in range(2):
        log_p = model(ids[i : i + 1])[0].log_softmax(-1)[labels[i] != -100]
        for drawn in itertools.product(range(9), repeat=2):
            chosen = log_p[0, drawn[0]] + log_p[1, drawn[1]]
            grads = torch.autograd.grad(chosen, list(model.parameters()), retain_graph=True)
            for value, g in zip(right.values(), grads, strict=True):
                value += (chosen.exp() * g**2).detach() / 2
    assert_same(compute(model, ids, labels, kind="true").values, right)


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    seed=st.integers(0, 99),
)
def test_conv_rule_for_any_geometry(groups, widths, kernel, stride, padding, dilation, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = nn.Conv2d(widths[0] * groups, widths[1] * groups, kernel, stride, padding, dilation, groups).double()
        a = torch.randn(3, widths[0] * groups, 6, 7, dtype=torch.float64)
        g = torch.randn(2, *module(a).shape, dtype=torch.float64)
    for own, p in module.named_parameters():
        found = gradient([Use(module, own, a, g)], p.shape)
        for d, i in itertools.product(range(2), range(3)):
            (right,) = torch.autograd.grad((module(a[i : i + 1]) * g[d, i : i + 1]).sum(), p)
            torch.testing.assert_close(found[d, i], right)


def test_squaring_the_batch_gradient_is_another_quantity():
    torch.manual_seed(0)
    model, x, y, _ = CASES["cnn"]()
    model = model.double().eval()
    fisher = fisher_diagonal(model, x, y).values
    batch = torch.autograd.grad(functional.cross_entropy(model(x), y), list(model.parameters()))
    ours, wrong = (torch.cat([v.flatten() for v in one]) for one in (fisher.values(), [g**2 for g in batch]))
    # Jensen: the square of the mean is never above the mean of squares, and here it is far below.
    assert (wrong <= ours * (1 + 1e-12)).all()
    assert wrong.sum() < 0.6 * ours.sum()


def test_sum_over_positions_comes_before_the_square():
    torch.manual_seed(0)
    module = nn.Conv2d(1, 2, 3).double()
    model = nn.Sequential(module, nn.Flatten(), nn.LazyLinear(3)).double()
    x, y = images(1, 5, 5), classes(3)
    model(x)
    h = module(x).detach().requires_grad_()
    (g,) = torch.autograd.grad(functional.cross_entropy(model[2](h.flatten(1)), y, reduction="sum"), h)
    shortcut = (g.flatten(2) ** 2 @ functional.unfold(x, 3).transpose(1, 2) ** 2).mean(0).view_as(module.weight)
    assert not torch.allclose(fisher_diagonal(model, x, y).values["0.weight"], shortcut, rtol=0.05)


def test_chunks_dont_matter(case):
    model, x, y, _ = case
    assert_same(fisher_diagonal(model, x, y, chunk=2).values, fisher_diagonal(model, x, y, chunk=100).values)


def test_one_sample():
    torch.manual_seed(0)
    model, x, y, _ = CASES["cnn"]()
    model = model.double()
    assert_same(fisher_diagonal(model, x[:1], y[:1]).values, one_by_one(model, x[:1], y[:1], loss))


def test_float32_model_takes_float64_images():
    torch.manual_seed(0)
    model, x, y, _ = CASES["mlp"]()
    found = fisher_diagonal(model, x, y).values
    right = fisher_diagonal(copy.deepcopy(model).double(), x, y).values
    for name in right:
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name].double(), right[name], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_model_is_left_as_it_was(guard):
    torch.manual_seed(0)
    model = Residual().double()
    model.train()
    model.norm.eval()
    model.stem.weight.requires_grad_(False)
    x, y = images(2, 5, 5), classes(3)
    right = one_by_one(copy.deepcopy(model).requires_grad_(), x, y, loss)
    before = copy.deepcopy(model.state_dict())
    torch.rand(1)
    state = torch.random.get_rng_state()
    with guard():
        scores = fisher_diagonal(model, x, y)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_same(scores.values, right)
    assert not any(v.requires_grad for v in scores.values.values())
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert [m.training for m in (model, model.stem, model.norm)] == [True, True, False]
    assert not model.stem.weight.requires_grad
    assert model.head.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_an_object_with_logits_is_an_output_too():
    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Wrapped(Language):
        def forward(self, ids):
            return Output(super().forward(ids))

    torch.manual_seed(0)
    model, ids, labels = Wrapped().double(), torch.randint(9, (3, 4)), torch.randint(9, (3, 4))
    plain = Language().double()
    plain.load_state_dict(model.state_dict())
    assert_same(fisher_diagonal(model, ids, labels).values, one_by_one(plain, ids, labels, loss))
    assert_same(fisher_diagonal_vmap(model, ids, labels).values, one_by_one(plain, ids, labels, loss))


def nan_model():
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("model", "x", "y", "kind", "words"),
    [
        (nn.Linear(4, 3), torch.zeros(0, 4), torch.zeros(0).long(), "empirical", "no samples"),
        (nn.Linear(4, 3), torch.zeros(2, 4), torch.zeros(3).long(), "empirical", "3 labels"),
        (nn.Linear(4, 3), torch.zeros(2, 4), torch.tensor([0, 3]), "empirical", "Label 3"),
        (nn.Linear(4, 3), torch.zeros(2, 4), torch.tensor([-100, 0]), "empirical", "Label -100"),
        (nn.Linear(4, 3), torch.zeros(2, 5, 4), torch.zeros(2).long(), "empirical", "one label per output row"),
        (nn.Linear(4, 3), torch.zeros(2, 5, 6, 4), torch.zeros(2).long(), "empirical", r"\[n, k\]"),
        (nn.Linear(4, 3), torch.zeros(2, 4), torch.zeros(2), "empirical", "class labels"),
        (nn.Linear(4, 3), torch.zeros(2, 4), torch.zeros(2).long(), "monte carlo", "monte carlo"),
        (nn.Linear(4, 9000), torch.zeros(1, 5, 4), torch.zeros(1, 5).long(), "true", "45000 backward"),
        (nan_model(), torch.zeros(2, 4), torch.zeros(2).long(), "empirical", "NaN"),
        (
            nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)),
            torch.zeros(2, 4),
            torch.zeros(2).long(),
            "empirical",
            "running statistics",
        ),
    ],
)
def test_user_errors(model, x, y, kind, words):
    with pytest.raises(UserError, match=words):
        fisher_diagonal(model, x, y, kind=kind)


def test_ratio_by_hand():
    forget = Scores({"a": torch.tensor([4.0, 1.0]), "b": torch.tensor([0.0, 3.0])}, "parameter", "fisher")
    retain = Scores({"a": torch.tensor([2.0, 0.0]), "b": torch.tensor([1.0, 5.0])}, "parameter", "fisher")
    ratio = fisher_ratio(forget, retain, damping=0.5)
    torch.testing.assert_close(ratio.values["a"], torch.tensor([4 / 3, 1.0]))
    torch.testing.assert_close(ratio.values["b"], torch.tensor([0.0, 0.5]))
    assert ratio.measure == "fisher-ratio"


def test_ratio_of_nothing_is_finite():
    zero = Scores({"a": torch.zeros(3)}, "parameter", "fisher")
    assert torch.equal(fisher_ratio(zero, zero).values["a"], torch.zeros(3))


def test_ratio_refuses_other_models_and_no_damping():
    one = Scores({"a": torch.ones(3)}, "parameter", "fisher")
    with pytest.raises(UserError, match="different models"):
        fisher_ratio(one, Scores({"a": torch.ones(4)}, "parameter", "fisher"))
    with pytest.raises(UserError, match="above 0"):
        fisher_ratio(one, one, damping=0.0)


def test_brain_damage_is_the_second_order_cost_of_deleting_a_weight() -> None:
    # Of logistic regression the true Fisher is the Hessian, exactly.
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    model = nn.Linear(3, 2, dtype=torch.float64)
    labels = torch.randint(2, (40,), generator=generator)
    found = brain_damage(model, fisher_diagonal(model, inputs, labels, "true"))
    assert (found.kind, found.measure, found.units) == ("parameter", "brain-damage", "nats")

    def loss(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(inputs @ weight.T + bias, labels)

    weight, bias = model.weight.detach(), model.bias.detach()
    hessian = torch.autograd.functional.hessian(loss, (weight, bias))
    for which, (name, value) in enumerate((("weight", weight), ("bias", bias))):
        diagonal = hessian[which][which].reshape(value.numel(), value.numel()).diagonal().view_as(value)
        torch.testing.assert_close(found.values[name].to(value), diagonal * value.square() / 2)


def test_brain_damage_of_another_model_is_refused() -> None:
    small, large = nn.Linear(3, 2), nn.Linear(4, 2)
    fisher = fisher_diagonal(small, torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1]), "true")
    with pytest.raises(UserError, match="another model"):
        brain_damage(large, fisher)
