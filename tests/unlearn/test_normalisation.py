"""Statistics that move inside an edit are folded into scale and shift."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from analysis.scores import Mask
from unlearn.normalisation import adaptable, fold
from unlearn.optimize import Diverged, batches, descend


class Net(nn.Module):
    """Two normalisations in a row, so that the second depends on how the first is folded, and one without scale."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm1 = nn.BatchNorm2d(4)
        self.inner = nn.Linear(4 * 16, 6)
        self.norm2 = nn.BatchNorm1d(6)
        self.plain = nn.BatchNorm1d(6, affine=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        hidden = torch.relu(self.norm1(self.conv(x))).flatten(1)
        return self.head(self.plain(torch.tanh(self.norm2(self.inner(hidden)))))


@pytest.fixture
def made():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net().double()
        x, y = 3 + 2 * torch.randn(60, 1, 6, 6, dtype=torch.float64), torch.randint(3, (60,))
        model(x)
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval(), x, y


def loss(model, item):
    return functional.cross_entropy(model(item[0]), item[1])


def everything_but(model, *names):
    return Mask({n: torch.full(p.shape, n not in names) for n, p in model.named_parameters()})


def test_folding_keeps_the_output_and_brings_back_the_buffers(made):
    model, x, _ = made
    moved = copy.deepcopy(model).train()
    for _ in range(3):
        moved(x + 1)
    moved.eval()
    names = adaptable(model, None)
    assert names == ("norm1", "norm2")
    moved.plain.load_state_dict(model.plain.state_dict())
    before = moved(x)
    assert (before - model(x)).abs().max() > 0.1
    fold(moved, model, names)
    torch.testing.assert_close(moved(x), before, rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(moved.buffers(), model.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_only_normalisations_that_are_wholly_free_adapt(made):
    model, _, _ = made
    assert adaptable(model, everything_but(model, "norm1.bias")) == ("norm2",)
    assert adaptable(model, Mask({"head.weight": torch.ones(3, 6, dtype=torch.bool)})) == ()


def plain_training(model, drawn, names, lr):
    # The same edit as anybody would write it: training mode for these layers, and no folding.
    work = copy.deepcopy(model).eval()
    adam = torch.optim.AdamW(work.parameters(), lr=lr, weight_decay=0.0)
    for item in drawn:
        for name in names:
            work.get_submodule(name).train()
        adam.zero_grad()
        loss(work, item).backward()
        adam.step()
    return work.eval()


def test_an_adapting_edit_computes_what_plain_training_gives(made):
    model, x, y = made
    seen = []

    def watch(step, m):
        seen.append((step, m(x).detach()))

    edited = descend(model, batches((x, y), 20, 25, 3), loss, None, 0.01, watch=watch, adapt=True)
    expected = plain_training(model, batches((x, y), 20, 25, 3), ("norm1", "norm2"), 0.01)
    torch.testing.assert_close(edited(x), expected(x), rtol=1e-8, atol=1e-8)
    assert (edited(x) - descend(model, batches((x, y), 20, 25, 3), loss, None, 0.01)(x)).abs().max() > 0.01
    for mine, theirs in zip(edited.buffers(), model.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    assert [step for step, _ in seen] == [0, 10, 20, 25]
    torch.testing.assert_close(seen[-1][1], edited(x))


def test_an_adapting_edit_stays_inside_its_mask(made):
    model, x, y = made
    mask = everything_but(model, "norm1.weight", "conv.weight", "inner.bias")
    edited = descend(model, batches((x, y), 20, 12, 0), loss, mask, 0.01, weight_decay=0.1, adapt=True)
    for (name, mine), theirs in zip(edited.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs) != bool(mask.bits[name].all())
    for mine, theirs in zip(edited.buffers(), model.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_diverged_leaves_the_last_good_function(made):
    model, x, y = made
    drawn = list(batches((x, y), 20, 6, 3))
    bad = [*drawn[:4], (drawn[4][0] * float("nan"), drawn[4][1])]
    with pytest.raises(Diverged) as caught:
        descend(model, bad, loss, None, 0.01, adapt=True)
    left = caught.value.model
    assert caught.value.step == 3
    assert all(parameter.isfinite().all() for parameter in left.parameters())
    expected = descend(model, drawn[:3], loss, None, 0.01, adapt=True)
    # The statistics are one batch ahead of the weights, as running statistics are.
    assert (left(x) - expected(x)).abs().max() < 0.5
    for mine, theirs in zip(left.buffers(), model.buffers(), strict=True):
        assert torch.equal(mine, theirs)
