"""Small networks with every kind of layer and weight sharing that the Fisher diagonal meets."""

import torch
from torch import nn
from torch.nn import functional

N = 7


class Pooled(nn.Module):
    """Linear layers on a sequence, averaged over positions."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x)).mean(1))


class Words(nn.Module):
    """Embedding with padding, LayerNorm, averaged over positions."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 5, padding_idx=0)
        self.norm, self.head = nn.LayerNorm(5), nn.Linear(5, 4)

    def forward(self, ids):
        return self.head(self.norm(torch.tanh(self.words(ids))).mean(1))


class Language(nn.Module):
    """A next-token model: tied embedding and head, LayerNorm, mixing of earlier positions."""

    def __init__(self, tie="module", positions="none"):
        super().__init__()
        self.tie, self.positions = tie, positions
        self.words = nn.Embedding(9, 5)
        self.norm, self.inner, self.last = nn.LayerNorm(5), nn.Linear(5, 5), nn.LayerNorm(5)
        if tie == "module":
            self.head = nn.Linear(5, 9, bias=False)
            self.head.weight = self.words.weight
        if positions != "none":
            self.places = nn.Embedding(6, 5)

    def forward(self, ids):
        h = self.words(ids)
        if self.positions == "flat":
            h = h + self.places(torch.arange(ids.shape[1]))
        if self.positions == "row":
            h = h + self.places(torch.arange(ids.shape[1]).unsqueeze(0))
        before = h.cumsum(1) / torch.arange(1, h.shape[1] + 1).view(1, -1, 1)
        h = self.last(h + torch.tanh(self.inner(self.norm(before))))
        return self.head(h) if self.tie == "module" else functional.linear(h, self.words.weight)


class Twice(nn.Module):
    """One module called twice, and a scale that belongs to no layer."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x):
        h = torch.tanh(self.inner(torch.tanh(self.inner(x)) * self.scale))
        return self.head(h)


class Rms(nn.Module):
    """A custom normalisation, as in Llama."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(5) + 0.5)

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class TimeFirst(nn.Module):
    """Swaps samples and positions inside; with two positions and two samples no shape tells."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.tanh(self.inner(x.transpose(0, 1)))
        return self.head(h.sum(0))


class Residual(nn.Module):
    """Two convolutions, BatchNorm, a skip connection and ReLUs that work in place."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.relu, self.head = (
            nn.Conv2d(4, 4, 3, padding=1, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(4, 3),
        )

    def forward(self, x):
        h = self.relu(self.norm(self.stem(x)))
        return self.head(self.relu(self.inner(h) + h).mean((2, 3)))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.idle, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x)


def images(*shape):
    return torch.randn(N, *shape, dtype=torch.float64)


def classes(k):
    return torch.randint(k, (N,))


def language(**options):
    ids = torch.randint(9, (N, 6))
    labels = torch.cat([ids[:, 1:], torch.full((N, 1), -100)], 1)
    labels[0, :3] = -100
    return Language(**options), ids, labels


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.LeakyReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


def grouped():
    return nn.Sequential(
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2),
        nn.Tanh(),
        nn.Conv2d(6, 6, 3, dilation=2, padding=2, groups=6),
        nn.Tanh(),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def padded():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding="same"),
        nn.Tanh(),
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


# Each: model, inputs, labels, and the parameters that only the whole model can be differentiated for.
CASES = {
    "mlp": lambda: (nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), images(4), classes(3), set()),
    "in place": lambda: (
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)),
        images(4),
        classes(3),
        set(),
    ),
    "sequence": lambda: (Pooled(), images(5, 4), classes(3), set()),
    "cnn": lambda: (cnn(), images(2, 8, 8), classes(3), set()),
    "grouped": lambda: (grouped(), images(4, 7, 6), classes(3), set()),
    "padding modes": lambda: (padded(), images(2, 5, 5), classes(3), set()),
    "batch norm": lambda: (
        nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)),
        images(4),
        classes(3),
        set(),
    ),
    "layer norm": lambda: (
        nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)),
        images(4),
        classes(3),
        set(),
    ),
    "layer norm 2-D": lambda: (
        nn.Sequential(nn.LayerNorm([3, 4]), nn.Flatten(), nn.Linear(12, 3)),
        images(3, 4),
        classes(3),
        set(),
    ),
    "group norm": lambda: (
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)),
        images(2, 5, 5),
        classes(3),
        set(),
    ),
    "conv 1-D": lambda: (
        nn.Sequential(nn.Conv1d(2, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)),
        images(2, 7),
        classes(3),
        set(),
    ),
    "embedding": lambda: (Words(), torch.randint(9, (N, 6)), classes(4), set()),
    "tied language model": lambda: (*language(), set()),
    "tied without a module": lambda: (*language(tie="function"), {"words.weight"}),
    "positions": lambda: (*language(positions="flat"), set()),
    "positions with a row": lambda: (*language(positions="row"), set()),
    "twice": lambda: (Twice(), images(4), classes(3), set()),
    "custom layer": lambda: (nn.Sequential(nn.Linear(4, 5), Rms(), nn.Linear(5, 3)), images(4), classes(3), set()),
    "time first": lambda: (TimeFirst(), images(2, 4), classes(3), {"inner.weight", "inner.bias"}),
    "residual": lambda: (Residual(), images(2, 5, 5), classes(3), set()),
    "unused": lambda: (Unused(), images(4), classes(3), set()),
    "recurrent": lambda: (Recurrent(), images(5, 4), classes(3), {f"inner.{n}_l0" for n in LSTM_NAMES}),
}
LSTM_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.inner(x)[0][:, -1])
