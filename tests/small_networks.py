"""Small networks for images that more than one test needs, randomly initialised."""

import torch
from torch import nn


class Skip(nn.Module):
    """A convolution that a skip connection goes round, with ReLUs that work in place."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.relu, self.head = nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Linear(3, 4)

    def forward(self, x):
        h = self.relu(self.stem(x))
        return self.head(self.relu(self.norm(self.inner(h)) + h).mean((2, 3)))


def skip():
    """Such a network in float64, three images and their labels."""
    torch.manual_seed(1)
    return Skip().double(), torch.randn(3, 1, 5, 5, dtype=torch.float64), torch.tensor([0, 3, 1])
