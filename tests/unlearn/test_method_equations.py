"""The methods' equations, written out again slowly, in float64: what a method does must be what its docstring says."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject, Network, Recipe, Split
from analysis.training import seeded
from unlearn.methods import METHODS
from unlearn.methods.boundary_expand import widened
from unlearn.methods.boundary_shrink import neighbours
from unlearn.methods.fisher_forgetting import noised
from unlearn.methods.targets import FRESH
from unlearn.methods.undo import damaged
from unlearn.methods.unsir import noise_of

CLOSE = {"rtol": 0.0, "atol": 1e-6}
ALL = 10**6  # more images than there are: every batch is everything


def make() -> nn.Module:
    net = nn.Sequential()
    net.add_module("flatten", nn.Flatten())
    net.add_module("hidden", nn.Linear(6, 5))
    net.add_module("squash", nn.Tanh())
    net.add_module("middle", nn.Linear(5, 5))
    net.add_module("squash2", nn.Tanh())
    net.add_module("head", nn.Linear(5, 4))
    return net.double()


@pytest.fixture(scope="module")
def tiny() -> tuple[ClassSubject, nn.Module]:
    """Four classes, the second forgotten; a net that has learned a little, in float64."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 4
    centres = torch.randn(4, 1, 2, 3, generator=generator, dtype=torch.double)
    images = centres[labels] + 0.5 * torch.randn(40, 1, 2, 3, generator=generator, dtype=torch.double)
    data = Split(images, labels)
    network = Network("tiny", make, ("middle", "head"), Recipe())
    subject = ClassSubject("tiny", "tiny", tuple("abcd"), data, data, (1,), network)
    model = seeded(make, 1)
    descent = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(25):
        descent.zero_grad()
        mean([cross_entropy(model, x, int(y)) for x, y in zip(images, labels, strict=True)]).backward()
        descent.step()
    model.zero_grad()
    return subject, model.eval()


def mean(values):
    return sum(values) / len(values)


def log_p(model, image):
    """Logarithms of the probabilities of one image, as a list."""
    logits = model(image.unsqueeze(0))[0]
    whole = sum(torch.exp(z) for z in logits)
    return [z - torch.log(whole) for z in logits]


def cross_entropy(model, image, label):
    return -log_p(model, image)[label]


def mean_ce(model, split):
    return mean([cross_entropy(model, x, int(y)) for x, y in zip(split.images, split.labels, strict=True)])


def kl(wanted, model, image):
    """KL(wanted || model's answer), `wanted` a list of probabilities."""
    return sum(float(p) * (math.log(float(p)) - q) for p, q in zip(wanted, log_p(model, image), strict=True) if p > 0)


def probabilities(model, image, outputs=(0, 1, 2, 3)):
    """A teacher's opinion over some outputs, the others 0."""
    with torch.no_grad():
        logits = [float(z) for z in model(image.unsqueeze(0))[0]]
    whole = sum(math.exp(logits[k]) for k in outputs)
    return [math.exp(z) / whole if k in outputs else 0.0 for k, z in enumerate(logits)]


def copied(model):
    work = make()
    work.load_state_dict(model.state_dict())
    return work


def adam(work, losses, rates, names=None):
    """Adam by the book (beta 0.9 and 0.999, epsilon 1e-8), one loss a step; in place."""
    moving = {n: p for n, p in work.named_parameters() if names is None or n in names}
    first = {n: torch.zeros_like(p) for n, p in moving.items()}
    second = {n: torch.zeros_like(p) for n, p in moving.items()}
    for step, (loss, rate) in enumerate(zip(losses, rates, strict=True), 1):
        gradients = torch.autograd.grad(loss(work), list(moving.values()))
        with torch.no_grad():
            for (n, p), g in zip(moving.items(), gradients, strict=True):
                first[n] = 0.9 * first[n] + 0.1 * g
                second[n] = 0.999 * second[n] + 0.001 * g * g
                p -= rate * (first[n] / (1 - 0.9**step)) / ((second[n] / (1 - 0.999**step)).sqrt() + 1e-8)
    return work


def same(mine, theirs):
    for (name, p), q in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), msg=lambda m, name=name: f"{name}: {m}", **CLOSE)


def edited(tiny, name, seed=0, mask=None, **changes):
    subject, model = tiny
    known = {"batch": ALL, "forget_batch": ALL, "lr": 0.01}
    has = vars(METHODS[name].settings)
    settings = replace(METHODS[name].settings, **{k: v for k, v in known.items() if k in has} | changes)
    return METHODS[name].run(model, subject, mask, seed, settings, None)


def test_fine_tuning_descends_the_retained_images_cross_entropy(tiny):
    subject, model = tiny

    def loss(work):
        return mean_ce(work, subject.retain_train)

    same(edited(tiny, "finetune", steps=2), adam(copied(model), [loss, loss], [0.01, 0.005]))


def test_the_sparsity_penalty_falls_to_zero(tiny):
    subject, model = tiny

    def loss(alpha):
        def at(work):
            return mean_ce(work, subject.retain_train) + alpha * sum(
                abs(w) for p in work.parameters() for w in p.flatten()
            )

        return at

    expected = adam(copied(model), [loss(0.3), loss(0.2), loss(0.1)], [0.01, 0.02 / 3, 0.01 / 3])
    same(edited(tiny, "l1-sparse", steps=3, alpha=0.3), expected)


def test_neggrad_plus_weighs_both_sides_and_has_no_ceiling(tiny):
    subject, model = tiny
    far = copied(model)
    with torch.no_grad():
        far.head.bias[1] -= 9  # past any ceiling, and still climbing

    def loss(work):
        return 0.9 * mean_ce(work, subject.retain_train) - 0.1 * mean_ce(work, subject.forget_train)

    same(edited((subject, far), "neggrad-plus", steps=2, beta=0.9), adam(copied(far), [loss] * 2, [0.01, 0.005]))


@pytest.mark.parametrize("outputs", ["retained", "all"])
def test_bad_teaching_follows_two_teachers(tiny, outputs):
    subject, model = tiny
    bad = seeded(make, FRESH + 4)
    spoken = (0, 2, 3) if outputs == "retained" else (0, 1, 2, 3)

    def loss(work):
        kept = [kl(probabilities(model, x), work, x) for x in subject.retain_train.images]
        gone = [kl(probabilities(bad, x, spoken), work, x) for x in subject.forget_train.images]
        return mean([*kept, *gone])

    mine = edited(tiny, "bad-teacher", seed=4, steps=2, outputs=outputs)
    same(mine, adam(copied(model), [loss, loss], [0.01, 0.005]))


def test_unsirs_noise_raises_the_class_own_loss_and_stays_small(tiny):
    subject, model = tiny
    settings = replace(METHODS["unsir"].settings, noise_images=3, noise_steps=3)
    made = noise_of(model, subject, 5, settings)
    noise = torch.randn(3, 1, 2, 3, generator=torch.Generator().manual_seed(5)).double()
    first, second = torch.zeros_like(noise), torch.zeros_like(noise)
    for step in range(1, 4):
        noise = noise.detach().requires_grad_()
        loss = mean([0.1 * sum(v * v for v in x.flatten()) - cross_entropy(model, x, 1) for x in noise])
        (g,) = torch.autograd.grad(loss, [noise])
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        noise = noise.detach() - 0.1 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    torch.testing.assert_close(made.images, noise, **CLOSE)
    assert made.labels.tolist() == [1, 1, 1]


def test_unsir_impairs_with_noise_and_then_repairs(tiny):
    subject, model = tiny
    changes = {"noise_images": 4, "impair_steps": 2, "repair_steps": 2, "impair_lr": 0.02}
    noise = noise_of(model, subject, 6, replace(METHODS["unsir"].settings, **changes))

    def impair(work):
        return mean_ce(work, subject.retain_train + noise)

    def heal(work):
        return mean_ce(work, subject.retain_train)

    expected = adam(adam(copied(model), [impair] * 2, [0.02, 0.02]), [heal] * 2, [0.01, 0.005])
    same(edited(tiny, "unsir", seed=6, **changes), expected)


def test_amnesiac_labels_are_drawn_once(tiny):
    subject, model = tiny
    generator = torch.Generator().manual_seed(2)
    wrong = torch.tensor([0, 2, 3])[torch.randint(3, (10,), generator=generator)]
    data = subject.retain_train + Split(subject.forget_train.images, wrong)

    def loss(work):
        return mean_ce(work, data)

    same(edited(tiny, "amnesiac", seed=2, steps=3), adam(copied(model), [loss] * 3, [0.01] * 3))


def test_shrinking_takes_the_retained_class_across_the_nearest_boundary(tiny):
    subject, model = tiny
    gone = subject.forget_train.images
    low, high = float(gone.min()), float(gone.max())
    expected = []
    for image in gone:
        x = image.clone().requires_grad_()
        (slope,) = torch.autograd.grad(cross_entropy(model, x, 1), [x])
        crossed = torch.tensor(
            [min(max(float(v) + 0.3 * (high - low) * math.copysign(1, float(g)), low), high)
             for v, g in zip(image.flatten(), slope.flatten(), strict=True)]
        ).double()  # fmt: skip
        answers = probabilities(model, crossed.view(1, 2, 3))
        expected.append(max((0, 2, 3), key=lambda k, answers=answers: answers[k]))
    assert neighbours(model, subject, 0.3).tolist() == expected
    assert len(set(expected)) > 1

    def loss(work):
        return mean_ce(work, Split(gone, torch.tensor(expected)))

    mine = edited(tiny, "boundary-shrink", bound=0.3, steps=2, shrink_lr=0.01, repair_steps=0)
    same(mine, adam(copied(model), [loss, loss], [0.01, 0.005]))


@pytest.mark.parametrize("masked", [False, True])
def test_expanding_teaches_a_shadow_output_and_prunes_it(tiny, masked):
    subject, model = tiny
    wide = widened(model, subject, 3)
    images = subject.forget_train.images
    torch.testing.assert_close(wide(images)[:, :4], model(images), **CLOSE)
    row, bias = wide.head.weight[4].detach().clone(), wide.head.bias[4].detach().clone()
    start = torch.cat([p.detach().flatten() for p in model.parameters()] + [row, bias.view(1)])
    allowed = torch.arange(len(start)) % 3 == 0 if masked else torch.ones(len(start), dtype=torch.bool)
    allowed[-6:] = True  # the shadow is nobody's, so no mask holds it

    class Plain(nn.Module):  # all weights in one row, so that a mask over them is one too
        def __init__(self):
            super().__init__()
            self.free = nn.Parameter(start[allowed].clone())

        def forward(self, x):
            flat = start.clone().masked_scatter(allowed, self.free)
            sizes = [30, 5, 25, 5, 20, 4, 5, 1]
            w1, b1, w2, b2, w3, b3, row, bias = flat.split(sizes)
            h = torch.tanh(x.flatten(1) @ w1.view(5, 6).T + b1)
            h = torch.tanh(h @ w2.view(5, 5).T + b2)
            return torch.cat([h @ w3.view(4, 5).T + b3, (h @ row + bias).unsqueeze(1)], 1)

    def loss(work):
        return mean([cross_entropy(work, x, 4) for x in images])

    plain = adam(Plain(), [loss, loss], [0.01, 0.005])
    expected = start.masked_scatter(allowed, plain.free.detach())[:-6]
    bits = allowed[:-6].split([p.numel() for p in model.parameters()])
    mask = Mask({n: b.view(p.shape) for (n, p), b in zip(model.named_parameters(), bits, strict=True)})
    changes = {"steps": 2, "expand_lr": 0.01, "repair_steps": 0}
    mine = edited(tiny, "boundary-expand", seed=3, mask=mask if masked else None, **changes)
    torch.testing.assert_close(torch.cat([p.detach().flatten() for p in mine.parameters()]), expected, **CLOSE)
    assert mine(images).shape[1] == 4


def test_moments_are_matched_as_the_seed_does(tiny):
    subject, model = tiny

    def moments(work, images):
        rows = [[torch.exp(v) for v in log_p(work, x)] for x in images]
        middle = [mean([row[k] for row in rows]) for k in range(4)]
        spread = [[mean([(r[i] - middle[i]) * (r[j] - middle[j]) for r in rows]) for j in range(4)] for i in range(4)]
        return middle, spread

    def loss(work):
        (m, c), (n, d) = (moments(work, s.images) for s in (subject.forget_train, subject.retain_train))
        means = sum((a - b) ** 2 for a, b in zip(m, n, strict=True))
        frobenius = sum((c[i][j] - d[i][j]) ** 2 for i in range(4) for j in range(4)) ** 0.5
        return mean_ce(work, subject.retain_train) + 0.7 * (means + frobenius)

    same(edited(tiny, "moment-matching", steps=2, weight=0.7), adam(copied(model), [loss, loss], [0.01, 0.005]))


@pytest.mark.parametrize(("k", "names"), [(1, ["head"]), (2, ["middle", "head"]), (9, ["hidden", "middle", "head"])])
def test_the_last_layers_train_and_no_other(tiny, k, names):
    subject, model = tiny
    parts = [f"{name}.{part}" for name in names for part in ("weight", "bias")]

    def loss(work):
        return mean_ce(work, subject.retain_train)

    same(edited(tiny, "cf-k", steps=2, k=k), adam(copied(model), [loss, loss], [0.01, 0.005], parts))
    start, fresh = copied(model), dict(seeded(make, FRESH + 8).named_parameters())
    with torch.no_grad():
        for name in parts:
            start.get_parameter(name).copy_(fresh[name])
    same(edited(tiny, "eu-k", seed=8, steps=2, k=k), adam(start, [loss, loss], [0.01, 0.005], parts))


def test_fisher_noise_is_large_where_the_retained_images_do_not_mind(tiny):
    subject, model = tiny
    settings = replace(METHODS["fisher-forgetting"].settings, alpha=0.01, cap=50.0)
    mine = noised(model, subject, 9, settings)
    names = [n for n, _ in model.named_parameters()]
    fisher = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for image in subject.retain_train.images:
        for k, p in enumerate(probabilities(model, image)):
            gradients = torch.autograd.grad(cross_entropy(model, image, k), list(model.parameters()))
            for name, g in zip(names, gradients, strict=True):
                fisher[name] += p * g * g / len(subject.retain_train)
    generator, capped = torch.Generator().manual_seed(9), 0
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.double)
        found = mine.get_parameter(name).detach().flatten().tolist()
        rows = zip(found, parameter.detach().flatten(), fisher[name].flatten(), noise.flatten(), strict=True)
        for place, (value, old, f, n) in enumerate(rows):
            variance = 0.01 * min(1 / (float(f) + 1e-8), 50.0)
            capped += variance == 0.5
            if name in {"head.weight", "head.bias"} and place // (5 if name == "head.weight" else 1) == 1:
                old, variance = 0.0, 1e-4
            assert value == pytest.approx(float(old) + math.sqrt(variance) * float(n), abs=1e-6)
    assert 0 < capped < sum(p.numel() for p in model.parameters())


def test_undo_wears_the_suppressed_model_down_and_distils_it(tiny):
    subject, _ = tiny
    teacher = edited(tiny, "random-labels", seed=7, steps=2)
    fresh = seeded(make, FRESH + 7)
    start = damaged(teacher, fresh, 0.6, 0.1)
    for mine, old, new in zip(start.parameters(), teacher.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(mine, 0.4 * old + 0.6 * 0.1 * new, **CLOSE)

    def loss(work):
        return mean([kl(probabilities(teacher, x), work, x) for x in subject.retain_train.images])

    same(edited(tiny, "undo", seed=7, steps=2), adam(copied(start), [loss, loss], [0.01, 0.005]))


def per_image_squares(model, split):
    total = [torch.zeros_like(p) for p in model.parameters()]
    for image, label in zip(split.images, split.labels, strict=True):
        gradients = torch.autograd.grad(cross_entropy(model, image, int(label)), list(model.parameters()))
        for sum_, g in zip(total, gradients, strict=True):
            sum_ += g * g / len(split)
    return total


def test_ssd_dampens_by_the_ratio_of_two_fishers(tiny):
    subject, model = tiny
    mine = edited(tiny, "ssd", alpha=1.3, dampening=2.0, repair_steps=0)
    everything, forgotten = (per_image_squares(model, s) for s in (subject.train, subject.forget_train))
    shrunk = capped = 0
    for new, old, d_, f_ in zip(mine.parameters(), model.parameters(), everything, forgotten, strict=True):
        rows = zip(*(t.detach().flatten().tolist() for t in (new, old, d_, f_)), strict=True)
        for value, weight, d, f in rows:
            factor = min(2.0 * d / f, 1.0) if f > 1.3 * d else 1.0
            assert value == pytest.approx(factor * weight, abs=1e-6)
            shrunk += factor < 1
            capped += f > 1.3 * d and factor == 1
    assert shrunk > 5
    assert capped > 5


def test_salun_moves_the_weights_whose_gradient_is_at_least_the_median(tiny):
    subject, model = tiny
    gradients = torch.autograd.grad(mean_ce(model, subject.forget_train), list(model.parameters()))
    sizes = torch.cat([g.abs().flatten() for g in gradients])
    threshold = sorted(sizes.tolist())[len(sizes) // 2]
    mine = edited(tiny, "salun", steps=1, lr=1e-4)
    moved = torch.cat([(p != q).flatten() for p, q in zip(mine.parameters(), model.parameters(), strict=True)])
    assert moved.tolist() == [size >= threshold for size in sizes.tolist()]


def test_scrub_steps_up_and_down_by_turns(tiny):
    subject, model = tiny

    def most(work):
        ceiling = [kl(probabilities(model, x), work, x) for x in subject.forget_train.images]
        return -mean([each if each < 10 else 0 * each + 10 for each in ceiling])

    def least(work):
        obey = mean([kl(probabilities(model, x), work, x) for x in subject.retain_train.images])
        return 0.6 * obey + 0.3 * mean_ce(work, subject.retain_train)

    # At the original itself the divergence has no slope, so it takes a second step up to see one.
    mine = edited(tiny, "scrub", steps=4, every=2, max_share=1.0, alpha=0.6, gamma=0.3)
    expected = adam(copied(model), [most, least, most, least], [0.01, 0.0075, 0.005, 0.0025])
    same(mine, expected)
