import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from analysis.errors import UserError
from analysis.scores import Mask
from unlearn.optimize import Diverged, batches, descend, falling, restore_outside


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small only lose time to a second one
    yield
    torch.set_num_threads(before)


class Odd(nn.Module):
    """Everything that leaks: normalisation, dropout, a buffer written even in evaluation mode, tied weights."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.tied = nn.Linear(6, 6, bias=False)
        self.again = nn.Linear(6, 6, bias=False)
        self.again.weight = self.tied.weight
        self.head = nn.Linear(6, 3)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        self.calls += 1
        hidden = self.drop(self.norm(torch.tanh(self.inner(x))))
        return self.head(torch.relu(self.again(self.tied(hidden))))


def made(seed=0, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Odd().to(dtype)
        x, y = torch.randn(40, 4, dtype=dtype), torch.randint(3, (40,))
        model(x)  # statistics that are not the initial ones
    return model, x, y


def loss(model, item):
    return functional.cross_entropy(model(item[0]), item[1])


def random_mask(model, share, seed):
    generator = torch.Generator().manual_seed(seed)
    return Mask({n: torch.rand(p.shape, generator=generator) < share for n, p in model.named_parameters()})


def snapshot(model):
    return {n: t.clone() for n, t in model.state_dict().items()}


def equal(one, other):
    return all(torch.equal(one[n], other[n]) for n in one)


def bytes_outside(model, mask):
    outside = {n: p.detach()[~mask.bits[n]] for n, p in model.named_parameters() if n in mask.bits}
    rest = {n: t for n, t in model.state_dict().items() if n not in mask.bits and n != "again.weight"}
    return {n: t.contiguous().view(-1).view(torch.uint8).tolist() for n, t in {**outside, **rest}.items()}


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.02, 0.3, 0.9]), st.sampled_from(["adam", "sgd"]), st.booleans())
def test_outside_the_mask_every_bit_stays(seed, share, optimizer, few):
    model, x, y = made(seed, torch.float32)
    model.train()
    mask = random_mask(model, share, seed)
    if few:
        mask = Mask({"inner.weight": mask.bits["inner.weight"], "head.bias": torch.tensor([True, False, True])})
    if not mask.count:
        mask = Mask({"head.bias": torch.tensor([True, False, False])})
    before = bytes_outside(model, mask)
    drawn = batches((x, y), 8, 12, seed)
    edited = descend(model, drawn, loss, mask, 0.1, optimizer, weight_decay=0.3)
    assert bytes_outside(edited, mask) == before
    changed = sum(int((a != b).sum()) for a, b in zip(edited.parameters(), model.parameters(), strict=True))
    assert 0 < changed <= mask.count
    assert not edited.training


def test_masking_gradients_alone_leaks_where_descend_does_not():
    # The everyday recipe: zero the gradient outside, let AdamW and the running statistics do as they like.
    model, x, y = made()
    mask = random_mask(model, 0.1, 0)
    naive = copy.deepcopy(model).train()
    stepper = torch.optim.AdamW(naive.parameters(), lr=0.01, weight_decay=0.1)
    for item in batches((x, y), 8, 5, 0):
        stepper.zero_grad()
        loss(naive, item).backward()
        for name, parameter in naive.named_parameters():
            parameter.grad[~mask.bits[name]] = 0
        stepper.step()
    assert bytes_outside(naive, mask) != bytes_outside(model, mask)
    careful = descend(model, batches((x, y), 8, 5, 0), loss, mask, 0.01, weight_decay=0.1)
    assert bytes_outside(careful, mask) == bytes_outside(model, mask)


@given(st.floats(1e-6, 1.0), st.integers(1, 200), st.integers(0, 50))
def test_rates_rise_and_fall(lr, steps, warm):
    rates = [falling(lr, steps, warm)(step) for step in range(steps + 1)]
    line = [lr * (steps - step) / steps for step in range(steps + 1)]
    # By hand: a straight line, and below it while warming, step by step a bigger part of it.
    assert rates[-1] == 0
    for step, (rate, whole) in enumerate(zip(rates, line, strict=True)):
        part = (step + 1) / warm if step + 1 < warm else 1
        assert rate == pytest.approx(part * whole)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_it_equals_an_optimiser_that_only_knows_the_masked_entries(optimizer, clip):
    model, x, y = made()
    model.eval()
    mask = random_mask(model, 0.2, 3)
    rate = falling(0.05, 20)
    edited = descend(model, batches((x, y), 8, 20, 1), loss, mask, rate, optimizer, weight_decay=0.1, clip=clip)

    base = {n: p.detach() for n, p in model.named_parameters()}
    loose = {n: base[n][mask.bits[n]].clone().requires_grad_() for n in base}
    kinds = {
        "adam": lambda ps, decay: torch.optim.AdamW(ps, lr=0.0, weight_decay=decay),
        "sgd": lambda ps, decay: torch.optim.SGD(ps, lr=0.0, momentum=0.9, weight_decay=decay),
    }
    # Biases don't decay.
    steppers = [kinds[optimizer]([p], 0.1 if base[n].dim() > 1 else 0.0) for n, p in loose.items()]
    for step, item in enumerate(batches((x, y), 8, 20, 1)):
        whole = {n: base[n].masked_scatter(mask.bits[n], loose[n]) for n in base}
        for p in loose.values():
            p.grad = None
        functional.cross_entropy(functional_call(model, whole, (item[0],)), item[1]).backward()
        if clip is not None:
            length = torch.sqrt(sum((p.grad**2).sum() for p in loose.values()))
            for p in loose.values():
                p.grad *= min(1.0, clip / (float(length) + 1e-6))
        for stepper in steppers:
            stepper.param_groups[0]["lr"] = 0.05 * (1 - step / 20)
            stepper.step()
    for name, parameter in edited.named_parameters():
        expected = base[name].masked_scatter(mask.bits[name], loose[name].detach())
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-10, atol=1e-12)


def test_the_seeds_top_250_of_six_tensors_freezes_nothing():
    # First seed: gradients are collected per *tensor*, sorted by their sum, and "the top 250" are set free.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(64, 20), torch.randint(3, (64,))
    functional.cross_entropy(model(x), y).backward()
    gradients = [(name, p.grad.abs().sum().item(), p.grad.clone()) for name, p in model.named_parameters()]
    chosen = sorted(gradients, key=lambda entry: entry[1], reverse=True)[:250]
    model.zero_grad()
    assert len(chosen) == 6  # six tensors, all of them

    seeds = copy.deepcopy(model)
    for name, parameter in seeds.named_parameters():
        parameter.requires_grad = name in {entry[0] for entry in chosen}
    free = [p for p in seeds.parameters() if p.requires_grad]
    stepper = torch.optim.Adam(free, lr=1e-3)
    for item in batches((x, y), 32, 30, 0):
        stepper.zero_grad()
        loss(seeds, item).backward()
        stepper.step()
    moved = {
        n: p.detach() != q.detach() for (n, p), q in zip(seeds.named_parameters(), model.parameters(), strict=True)
    }
    total = sum(m.numel() for m in moved.values())
    assert sum(int(m.sum()) for m in moved.values()) >= 0.99 * total
    assert all(bool(m.any()) for m in moved.values())

    # What was meant: the 250 entries with the largest gradient.
    flat = torch.cat([g.abs().flatten() for _, _, g in gradients])
    bits = torch.zeros_like(flat, dtype=torch.bool)
    bits[flat.argsort(descending=True)[:250]] = True
    parts = bits.split([g.numel() for _, _, g in gradients])
    mask = Mask({name: part.view(g.shape) for (name, _, g), part in zip(gradients, parts, strict=True)})
    edited = descend(model, batches((x, y), 32, 30, 0), loss, mask, 1e-3)
    for (name, p), q in zip(edited.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(p.detach()[~mask.bits[name]], q.detach()[~mask.bits[name]])
    changed = sum(int((p != q).sum()) for p, q in zip(edited.parameters(), model.parameters(), strict=True))
    assert 200 < changed <= 250


def test_the_model_given_and_the_global_random_state_stay_as_they_were():
    model, x, y = made()
    model.train()
    model.head.bias.requires_grad_(False)
    model.norm.eval()
    before, state = snapshot(model), torch.get_rng_state()
    modes = [m.training for m in model.modules()]
    edited = descend(model, batches((x, y), 8, 5, 0), loss)
    assert equal(before, snapshot(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in edited.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in [*model.parameters(), *edited.parameters()])
    assert not torch.equal(edited.head.bias, model.head.bias)


def test_the_same_seed_gives_the_same_bits():
    model, x, y = made()
    one, other = (descend(model, batches((x, y), 8, 20, 4), loss, None, 0.01) for _ in range(2))
    assert equal(snapshot(one), snapshot(other))
    assert not equal(snapshot(one), snapshot(descend(model, batches((x, y), 8, 20, 5), loss, None, 0.01)))


def test_maximising_climbs():
    model, x, y = made()
    model.eval()
    start = float(loss(model, (x, y)).detach())
    up = descend(model, batches((x, y), 8, 20, 0), loss, None, 0.01, maximise=True)
    down = descend(model, batches((x, y), 8, 20, 0), loss, None, 0.01)
    ends = [float(loss(end, (x, y)).detach()) for end in (up, down)]
    assert ends[0] > start + 0.05 > start > ends[1] + 0.05


def test_the_watcher_sees_the_start_every_tenth_step_and_the_end():
    model, x, y = made()
    seen = []
    edited = descend(model, batches((x, y), 8, 25, 0), loss, watch=lambda s, m: seen.append((s, snapshot(m))))
    assert [step for step, _ in seen] == [0, 10, 20, 25]
    assert equal(seen[0][1], snapshot(model))
    assert equal(seen[-1][1], snapshot(edited))
    seen.clear()
    descend(model, batches((x, y), 8, 20, 0), loss, watch=lambda s, m: seen.append((s, None)))
    assert [step for step, _ in seen] == [0, 10, 20]


def test_a_start_elsewhere_counts_as_a_step_and_only_reaches_inside_the_mask():
    model, x, y = made()
    model.eval()
    start = made(1)[0]
    mask = random_mask(model, 0.3, 0)
    seen = []
    watch = lambda s, m: seen.append((s, snapshot(m)))  # noqa: E731
    edited = descend(model, batches((x, y), 8, 9, 0), loss, mask, watch=watch, start=start)
    assert [step for step, _ in seen] == [0, 1, 10]
    assert equal(seen[0][1], snapshot(model))
    bits, first = mask.bits["inner.weight"], seen[1][1]["inner.weight"]
    assert torch.equal(first[bits], start.inner.weight[bits])
    assert torch.equal(first[~bits], model.inner.weight[~bits])
    assert bytes_outside(edited, mask) == bytes_outside(model, mask)


@pytest.mark.parametrize("poison", [1, 2, 5])
def test_not_a_number_stops_with_the_last_good_model(poison):
    model, x, y = made()
    good = list(batches((x, y), 8, 10, 0))
    bad = [(a * torch.nan, b) if i == poison else (a, b) for i, (a, b) in enumerate(good)]
    with pytest.raises(Diverged, match="lower the learning rate") as caught:
        descend(model, bad, loss, None, 0.01)
    # The weights before the poisoned step were never tried on a good batch, so one step back is the last good model.
    assert caught.value.step == poison - 1
    expected = descend(model, good[: poison - 1], loss, None, 0.01)
    assert equal(snapshot(caught.value.model), snapshot(expected))


def test_an_absurd_learning_rate_is_reported_and_leaves_finite_weights_and_the_mask():
    model, x, y = made(dtype=torch.float32)
    mask = random_mask(model, 0.3, 0)
    with pytest.raises(UserError) as caught:
        descend(model, batches((x, y), 8, 10, 0), loss, mask, 1e38, "sgd")
    last = caught.value.model
    assert all(bool(torch.isfinite(p).all()) for p in last.parameters())
    assert bytes_outside(last, mask) == bytes_outside(model, mask)
    assert not last.training


def test_a_last_step_to_infinity_is_noticed_too():
    model, x, y = made(dtype=torch.float32)
    with pytest.raises(Diverged) as caught:
        descend(model, batches((x, y), 8, 1, 0), lambda m, item: 1e4 * loss(m, item), None, 1e38, "sgd")
    assert caught.value.step == 0
    assert equal(snapshot(caught.value.model), snapshot(model))


def test_masks_that_do_not_fit_are_refused():
    model, x, y = made()
    for bits, message in (
        ({"nothing.weight": torch.ones(2, dtype=torch.bool)}, "does not fit"),
        ({"head.bias": torch.ones(4, dtype=torch.bool)}, "does not fit"),
        ({"head.bias": torch.zeros(3, dtype=torch.bool)}, "empty"),
    ):
        with pytest.raises(UserError, match=message):
            descend(model, batches((x, y), 8, 2, 0), loss, Mask(bits))


def test_restoring_puts_back_negative_zero_and_nan():
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    with torch.no_grad():
        other.weight.copy_(torch.tensor([[-0.0, torch.nan], [1.0, 2.0]]))
        one.weight.copy_(torch.tensor([[0.0, 5.0], [6.0, 7.0]]))
    restore_outside(one, other, Mask({"weight": torch.tensor([[False, False], [False, True]])}))
    bits = one.weight.detach().view(torch.int32)
    expected = torch.tensor([[-0.0, torch.nan], [1.0, 7.0]]).view(torch.int32)
    assert torch.equal(bits, expected)
    assert torch.equal(one.bias, other.bias)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 8), st.integers(1, 12), st.integers(0, 99))
def test_batches_cover_every_row_equally(rows, size, steps, seed):
    drawn = list(batches((torch.arange(rows), torch.arange(rows) * 10), size, steps, seed))
    assert len(drawn) == steps
    assert all(len(a) == min(size, rows) and torch.equal(a * 10, b) for a, b in drawn)
    counts = torch.bincount(torch.cat([a for a, _ in drawn]), minlength=rows)
    assert int(counts.max() - counts.min()) <= 1
    again = list(batches((torch.arange(rows),), size, steps, seed))
    assert all(torch.equal(a, b) for (a, _), (b,) in zip(drawn, again, strict=True))


def test_batches_refuse_nothing_and_nonsense():
    for rows, size, steps in ((0, 4, 4), (4, 0, 4), (4, 4, 0)):
        with pytest.raises(UserError):
            next(batches((torch.arange(rows),), size, steps, 0))


def test_an_edit_shares_no_memory_with_the_original_and_copies_what_it_may_change_only_while_it_lasts():
    model, x, y = made()
    mask = Mask({"head.weight": torch.ones_like(model.head.weight, dtype=torch.bool)})
    shared = []

    def watch(_, work):
        mine, theirs = dict(work.named_parameters()), dict(model.named_parameters())
        shared.append({n for n in mine if mine[n].data_ptr() == theirs[n].data_ptr()})

    after = descend(model, [(x, y)] * 10, loss, mask, 0.1, watch=watch)
    assert shared[0] == {n for n, _ in model.named_parameters()} - {"head.weight"}
    before = {n: p.clone() for n, p in model.named_parameters()}
    for p in after.parameters():
        p.data.add_(1.0)
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n])
    assert after.again.weight is after.tied.weight
