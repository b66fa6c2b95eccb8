"""Per-sample targets against their definitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from analysis.attribution.targets import cross_entropy, log_probability, logit, margin

ALL = [cross_entropy, log_probability, logit, margin]


def by_hand(name, row, label):
    if name == "logit":
        return row[label]
    p = row.exp() / row.exp().sum()
    if name == "margin":
        return (p[label] / (1 - p[label])).log()
    return p[label].log() if name == "log_probability" else -p[label].log()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 4), k=st.integers(2, 6), seed=st.integers(0, 999))
def test_definitions(n, k, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=generator, dtype=torch.float64)
    labels = torch.randint(k, (n,), generator=generator)
    for target in ALL:
        right = torch.stack([by_hand(target.__name__, logits[i], labels[i]) for i in range(n)])
        torch.testing.assert_close(target(logits, labels), right)


@pytest.mark.parametrize("target", ALL)
def test_sequences_are_summed_over_the_positions_that_count(target):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[4, -100, 0], [-100, -100, 2]])
    right = torch.stack([
        target(logits[0, [0]], labels[0, [0]]).sum() + target(logits[0, [2]], labels[0, [2]]).sum(),
        target(logits[1, [2]], labels[1, [2]]).sum(),
    ])
    torch.testing.assert_close(target(logits, labels), right)


def test_cross_entropy_is_torchs():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(4, 5, generator=generator), torch.tensor([0, 4, 2, 2])
    torch.testing.assert_close(
        cross_entropy(logits, labels), functional.cross_entropy(logits, labels, reduction="none")
    )


def test_gradients_of_the_margin_are_finite_and_right():
    logits = torch.tensor([[30.0, -30.0, 0.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: margin(x, torch.tensor([0])), logits)
