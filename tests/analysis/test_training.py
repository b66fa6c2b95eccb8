import pytest
import torch
from torch import nn
from torch.nn import functional

from analysis import training
from analysis.errors import UserError
from analysis.subjects.classes import Recipe, Split
from analysis.subjects.networks import cnn, mlp
from analysis.training import Stack, accuracy, epochs, fit, logits_of, seeded

SEEDS = (3, 5, 8)


def data(n=90, classes=4, shape=(1, 5, 5)):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    means = torch.randn(classes, *shape, generator=generator)
    return Split((means[labels] + torch.randn(n, *shape, generator=generator)).double(), labels)


def small_mlp():
    return mlp((1, 5, 5), 4).double()


def small_cnn():
    return cnn((1, 5, 5), 4).double()


def normed():
    return nn.Sequential(nn.Flatten(), nn.Linear(25, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)).double()


def dropping():
    return nn.Sequential(nn.Flatten(), nn.Linear(25, 30), nn.Dropout(0.5), nn.ReLU(), nn.Linear(30, 4)).double()


class Branching(nn.Module):
    """vmap can't map this: it looks at its values to decide what to do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(25, 4)

    def forward(self, x):
        out = self.linear(x.flatten(1))
        return out * 2 if float(out.detach().sum()) > 0 else out


def branching():
    return Branching().double()


class Odd(nn.Module):
    """A parameter without a gradient, one whose gradient is a single number for all, and one that is a table."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(25, 4)
        self.unused = nn.Parameter(torch.ones(3))
        self.added = nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3))
        self.table = nn.Parameter(torch.linspace(0.5, 1, 20).view(4, 5))

    def forward(self, x):
        tilted = x.view(-1, 5, 5) @ self.table.T
        return self.linear(x.flatten(1)) * self.added.sum() + tilted.sum(1)


def odd():
    return Odd().double()


def trained_alone(make, split, recipe, seed):
    """One model, the plain way."""
    torch.manual_seed(seed)
    model = make().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    order = torch.Generator().manual_seed(seed)
    per_epoch = len(split) // recipe.batch
    step = 0
    for _ in range(recipe.epochs):
        shuffled = torch.randperm(len(split), generator=order)
        for batch in shuffled[: per_epoch * recipe.batch].view(per_epoch, recipe.batch):
            optimizer.param_groups[0]["lr"] = recipe.lr * (1 - step / (recipe.epochs * per_epoch))
            optimizer.zero_grad()
            functional.cross_entropy(model(split.images[batch]), split.labels[batch]).backward()
            optimizer.step()
            step += 1
    return model.eval()


@pytest.mark.parametrize("make", [small_mlp, small_cnn, normed, branching, odd])
def test_a_stack_trains_each_model_as_if_alone(make):
    split, recipe = data(), Recipe(epochs=3, batch=16, lr=1e-2)
    together = fit(make, split, recipe, SEEDS)
    for seed, model in zip(SEEDS, together, strict=True):
        alone = trained_alone(make, split, recipe, seed)
        for name, value in alone.state_dict().items():
            assert torch.allclose(model.state_dict()[name].double(), value.double(), rtol=1e-6, atol=1e-9), name


@pytest.mark.parametrize("make", [small_mlp, small_cnn, normed])
def test_a_model_does_not_depend_on_its_company(make):
    split, recipe = data(), Recipe(epochs=2, batch=16, lr=1e-2)
    alone = fit(make, split, recipe, [5])[0].state_dict()
    among = fit(make, split, recipe, SEEDS)[1].state_dict()
    assert all(torch.allclose(alone[name].double(), among[name].double(), rtol=1e-6, atol=1e-9) for name in alone)


@pytest.mark.parametrize("make", [small_mlp, small_cnn, dropping])
def test_training_repeats_bit_for_bit_and_leaves_the_global_random_state(make):
    split, recipe = data(), Recipe(epochs=2, batch=16)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = fit(make, split, recipe, SEEDS)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = fit(make, split, recipe, SEEDS)
    for one, two in zip(first, second, strict=True):
        assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    assert not torch.equal(next(first[0].parameters()), next(first[1].parameters()))


@pytest.mark.parametrize("make", [small_mlp, small_cnn])
def test_training_learns(make):
    split = data()
    models = fit(make, split, Recipe(epochs=15, batch=16, lr=1e-2), SEEDS)
    assert all(accuracy(model, split) > 0.9 for model in models)
    assert not any(model.training for model in models)


@pytest.mark.parametrize("make", [small_mlp, small_cnn, normed, branching])
@pytest.mark.parametrize("shared", [True, False])
def test_stacked_logits_equal_each_models_own(make, shared):
    models = [seeded(make, seed).eval() for seed in SEEDS]
    images = torch.randn(3, 7, 1, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = Stack(models).logits(images[0] if shared else images, shared)
    assert ours.shape == (3, 7, 4)
    for i, model in enumerate(models):
        assert torch.allclose(ours[i], model(images[0 if shared else i]))


def test_a_stack_never_changes_the_models_it_was_given():
    models = [seeded(normed, seed) for seed in SEEDS]
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    stack = Stack(models, lr=0.1)
    split = data(12)
    stack.step(split.images.expand(3, -1, -1, -1, -1), split.labels.expand(3, -1))
    for model, state in zip(models, before, strict=True):
        assert model.training
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    out = stack.models()
    assert not torch.equal(out[0].state_dict()["1.weight"], before[0]["1.weight"])
    with torch.no_grad():
        out[0][1].weight.zero_()
    assert not torch.equal(out[0][1].weight, stack.models()[0][1].weight)


def test_models_that_are_kept_go_on_as_if_nothing_happened():
    models = [seeded(normed, seed) for seed in SEEDS]
    split = data(16)
    every, some = Stack(models, lr=0.01), Stack(models, lr=0.01)
    images, labels = split.images.expand(3, -1, -1, -1, -1), split.labels.expand(3, -1)
    for _ in range(3):
        every.step(images, labels)
        some.step(images, labels)
    some.keep(torch.tensor([True, False, True]))
    for _ in range(3):
        every.step(images, labels)
        some.step(images[:2], labels[:2])
    for one, other in zip(some.models(), (every.models()[0], every.models()[2]), strict=True):
        assert all(torch.allclose(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("make", [small_mlp, small_cnn, normed])
def test_a_shared_batch_is_each_models_own(make):
    models = [seeded(make, seed) for seed in SEEDS]
    split = data(16)
    together, apart = Stack(models, lr=0.01), Stack(models, lr=0.01)
    for _ in range(3):
        together.step(split.images, split.labels, shared=True)
        apart.step(split.images.expand(3, -1, -1, -1, -1), split.labels.expand(3, -1))
    for one, other in zip(together.models(), apart.models(), strict=True):
        assert all(torch.allclose(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert not torch.equal(next(together.models()[0].parameters()), next(models[0].parameters()))


def test_momentum_that_is_nothing_slows_nothing_down(monkeypatch):
    def run(every):
        monkeypatch.setattr(training, "SETTLED_EVERY", every)
        models = [seeded(lambda: mlp((1, 5, 5), 4), seed) for seed in SEEDS]
        for model in models:
            model.hidden1.bias.data[:40] = -100.0  # never wakes up
        stack = Stack(models, lr=0.01)
        split = data(16)
        split = Split(split.images.float(), split.labels)
        stack.step(split.images, split.labels, shared=True)
        dead = stack._moments["hidden1.weight"].first[:, :40]
        assert bool((dead == 0).all())
        dead.fill_(1e-33)
        for _ in range(120):
            stack.step(split.images, split.labels, shared=True)
        found = stack._moments["hidden1.weight"].first
        subnormal = (found != 0) & (found.abs() < torch.finfo(torch.float32).tiny)
        return stack.models(), int(subnormal.sum()), int((found[:, 40:] != 0).sum())

    models, none, awake = run(100)
    others, many, _ = run(10**9)
    assert none == 0
    assert many == 3 * 40 * 25
    assert awake > 3 * 40 * 25
    for one, other in zip(models, others, strict=True):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_one_step_follows_adam_in_closed_form():
    model = seeded(small_mlp, 0)
    split = data(12)
    stack = Stack([model], lr=0.01)
    stack.step(split.images[None], split.labels[None], lr=0.02)
    functional.cross_entropy(model(split.images), split.labels).backward()
    for name, parameter in model.named_parameters():
        # Adam's first step, bias-corrected: lr * g / (|g| + eps)
        expected = parameter - 0.02 * parameter.grad / (parameter.grad.abs() + 1e-8)
        assert torch.allclose(stack.parameters[name][0], expected)


def test_epochs_show_every_image_once_and_drop_a_short_last_batch():
    split = Split(torch.arange(10.0), torch.arange(10))
    batches = list(epochs(split, Recipe(epochs=2, batch=3), SEEDS))
    assert len(batches) == 6
    for images, labels in batches:
        assert images.shape == labels.shape == (3, 3)
        assert torch.equal(images.long(), labels)
    for epoch in (batches[:3], batches[3:]):
        seen = torch.cat([labels for _, labels in epoch], dim=1)
        assert all(len(row.unique()) == 9 for row in seen)
    assert not torch.equal(batches[0][1][0], batches[0][1][1])
    assert not torch.equal(batches[0][1], batches[3][1])


def test_a_batch_larger_than_the_data_is_all_of_it():
    batches = list(epochs(Split(torch.arange(4.0), torch.arange(4)), Recipe(epochs=3, batch=64), [0]))
    assert len(batches) == 3
    assert all(labels.sort().values.tolist() == [[0, 1, 2, 3]] for _, labels in batches)


def test_progress_grows_to_at_most_one():
    told = []
    fit(small_mlp, data(), Recipe(epochs=12, batch=16), [0, 1], told.append)
    assert told
    assert told == sorted(told)
    assert 0 < told[0] < told[-1] <= 1


def test_seeded_depends_on_the_seed_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one = seeded(small_mlp, 1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert torch.equal(seeded(small_mlp, 1).head.weight, one.head.weight)
    assert not torch.equal(seeded(small_mlp, 2).head.weight, one.head.weight)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_logits_in_chunks_are_those_of_evaluation_mode(training, chunk):
    model = seeded(normed, 0).train(training)
    split = data(20)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = logits_of(model, split.images, chunk)
    assert model.training is training
    assert not found.requires_grad
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.allclose(found, model.eval()(split.images))


def test_the_mode_is_restored_when_a_model_fails():
    model = seeded(normed, 0).train()
    with pytest.raises(RuntimeError):
        logits_of(model, torch.zeros(2, 1, 3, 3))
    assert model.training


def test_accuracy_counts_hits():
    identity = nn.Identity()
    logits = torch.eye(4)
    assert accuracy(identity, Split(logits, torch.tensor([0, 1, 2, 0]))) == 0.75


def test_nothing_to_learn_is_said():
    with pytest.raises(UserError, match="no images to train on"):
        fit(small_mlp, data().take(torch.tensor([], dtype=torch.long)), Recipe(), [0])
