"""What the Fisher diagonal costs, counted in operations and live bytes, and that saving them changes nothing."""

import pytest
import torch
from live_memory import peak_bytes
from small_models import small_gpt2, small_llama
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from analysis.attribution import per_sample
from analysis.attribution.fisher import fisher_diagonal, fisher_diagonal_vmap

WIDTH = 12


def sequences(n, longest=WIDTH):
    """Ids and labels; what is asked for ends at different places, and real tokens follow."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1, 400, (n, longest), generator=generator)
    labels = torch.cat([ids[:, 1:], torch.full((n, 1), -100)], 1)
    for row in range(n):
        labels[row, 2 + row % (longest - 3) :] = -100
    return ids, labels


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 49, 10),
    ).eval()


def one_by_one(model, ids, labels):
    """Squares of plain gradients, a sequence at a time, as long as it came."""
    named = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    for x, y in zip(ids, labels, strict=True):
        out = model(x[None])
        loss = functional.cross_entropy(getattr(out, "logits", out)[0], y, reduction="sum", ignore_index=-100)
        for value, g in zip(total.values(), torch.autograd.grad(loss, list(named.values())), strict=True):
            value += g.square() / len(ids)
    return total


def assert_same(found, right, rtol=1e-6):
    assert list(found) == list(right)
    for name, value in right.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=rtol * float(value.max()))


def flops(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def plain_pass(model, ids, labels, chunk, names=None):
    for name, p in model.named_parameters():
        p.requires_grad_(names is None or name in names)
    for x, y in zip(ids.split(chunk), labels.split(chunk), strict=True):
        functional.cross_entropy(model(x).logits.flatten(0, 1), y.flatten()).backward()
    model.zero_grad()
    model.requires_grad_(True)


@pytest.mark.parametrize("make", [small_gpt2, small_llama])
@pytest.mark.parametrize("cache", [2**17, 100])
def test_whole_language_models_one_sequence_at_a_time(make, cache, monkeypatch):
    """Tied head, Conv1D, norms; gradients squared whole or in blocks of a few rows."""
    monkeypatch.setattr(per_sample, "CACHE", cache)
    model = make(dtype=torch.float64)
    model.set_attn_implementation("sdpa")
    ids, labels = sequences(5)
    # Llama's norm computes in float32.
    rtol = 1e-9 if make is small_gpt2 else 1e-4
    assert_same(fisher_diagonal(model, ids, labels, chunk=2).values, one_by_one(model, ids, labels), rtol)


def test_one_forward_and_backward_of_flops():
    """Without padding, as many products as a plain pass has; the check on two samples comes on top."""
    model = small_llama()
    ids = torch.randint(1, 400, (64, WIDTH), generator=torch.Generator().manual_seed(0))
    right = flops(lambda: plain_pass(model, ids, ids, 16))
    ours = flops(lambda: fisher_diagonal(model, ids, ids, chunk=16))
    assert right < ours < 1.1 * right


def test_padding_costs_nothing():
    model = small_llama()
    ids, labels = sequences(64)
    padded = [functional.pad(one, (0, WIDTH), value=fill) for one, fill in ((ids, 0), (labels, -100))]
    right = flops(lambda: plain_pass(model, *padded, 16))
    assert flops(lambda: fisher_diagonal(model, *padded, chunk=16)) < 0.5 * right
    assert_same(
        fisher_diagonal(model, *padded, chunk=16).values, fisher_diagonal(model, ids, labels, chunk=16).values, 1e-4
    )


def test_only_the_asked_parameters_are_gone_back_to():
    model = small_llama()
    ids = torch.randint(1, 400, (64, WIDTH), generator=torch.Generator().manual_seed(0))
    name = "model.layers.2.mlp.down_proj.weight"
    some = flops(lambda: fisher_diagonal(model, ids, ids, chunk=16, names=[name]))
    assert some < 1.1 * flops(lambda: plain_pass(model, ids, ids, 16, [name]))
    assert some < 0.7 * flops(lambda: plain_pass(model, ids, ids, 16))
    every = fisher_diagonal(model, ids, ids, chunk=16).values[name]
    found = fisher_diagonal(model, ids, ids, chunk=16, names=[name]).values
    assert_same(found, {name: every}, 1e-5)


def test_memory_is_that_of_one_chunk():
    model, images, labels = cnn(), torch.randn(128, 1, 14, 14), torch.randint(10, (128,))
    few, many = (peak_bytes(lambda n=n: fisher_diagonal(model, images[:n], labels[:n], chunk=16)) for n in (32, 128))
    assert few > 16 * 8 * 14 * 14 * 4
    assert many - few <= labels.nbytes
    whole = peak_bytes(lambda: fisher_diagonal(model, images, labels, chunk=128))
    assert whole > 4 * few


def test_memory_of_a_language_model_is_that_of_one_chunk():
    model = small_llama()
    ids, labels = sequences(64)
    few, many = (peak_bytes(lambda n=n: fisher_diagonal(model, ids[:n], labels[:n], chunk=8)) for n in (16, 64))
    assert few > 8 * WIDTH * 400 * 4
    assert many - few <= 8 * labels.nbytes


def test_no_gradient_of_a_matrix_is_held():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(700, 700), nn.Tanh(), nn.Linear(700, 5))
    x, y = torch.randn(16, 4, 700), torch.randint(5, (16, 4))
    weights = sum(p.nbytes for p in model.parameters())
    # The sums, plain autograd's gradient on the first two samples and what is compared with it; not 16 gradients.
    assert weights < peak_bytes(lambda: fisher_diagonal(model, x, y, chunk=16)) < 6 * weights


class Averaged(nn.Module):
    """Every position sees the mean of all, later ones included."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(400, 6), nn.Linear(6, 400)

    def forward(self, ids):
        h = self.words(ids)
        return self.head(torch.tanh(h + h.mean(1, keepdim=True)))


class Masked(Averaged):
    """The same, but padding is not seen."""

    def forward(self, ids):
        seen = (ids != 0).unsqueeze(-1)
        h = self.words(ids)
        return self.head(torch.tanh(h + (h * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True)))


class Fixed(Averaged):
    """For sequences of one length."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids):
        return self.head(torch.tanh(self.mix(self.words(ids).transpose(1, 2)).transpose(1, 2)))


@pytest.mark.parametrize("kind", [Averaged, Masked, Fixed])
def test_models_that_look_ahead_see_everything(kind):
    torch.manual_seed(0)
    model = kind().double()
    ids, labels = sequences(6)
    # The sequence that most follows on is padded, others are not.
    shortest = int((labels != -100).sum(1).argmin())
    ids[shortest, int((labels[shortest] != -100).sum()) :] = 0
    assert_same(fisher_diagonal(model, ids, labels, chunk=2).values, one_by_one(model, ids, labels), 1e-9)


def test_samples_that_change_each_other_without_gradients_are_left_to_vmap():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            h = self.inner(x)
            return self.head(torch.tanh(h - 0.5 * h.mean(0).detach()))

    torch.manual_seed(0)
    model, x, y = Centred().double(), torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))
    assert_same(fisher_diagonal(model, x, y).values, fisher_diagonal_vmap(model, x, y).values, 1e-9)
