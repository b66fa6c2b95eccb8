"""What is attributed: one number per sample, read off the model's output."""

from collections.abc import Callable

import torch
from torch.nn import functional

IGNORED = -100

Target = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps outputs [n, k] and labels [n] (or [n, t, k] and [n, t] of a sequence model) to one scalar per sample, [n]."""


def _per_sample(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    # Sums a sequence's positions, without those that don't count.
    return values.masked_fill(labels == IGNORED, 0.0).flatten(1).sum(1) if values.dim() > 1 else values


def logit(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Read the raw output of each sample's label.

    Args:
        logits: [n, k], or [n, t, k] for sequences.
        labels: int64 [n] in [0, k), or [n, t] where -100 marks positions that don't count.

    Returns:
        [n]: the label's logit; for sequences its sum over the positions that count.
    """
    chosen = logits.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return _per_sample(chosen, labels)


def log_probability(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probability of each sample's label.

    Args:
        logits: [n, k], or [n, t, k] for sequences.
        labels: int64 [n] in [0, k), or [n, t] where -100 marks positions that don't count.

    Returns:
        [n] in nats, at most 0; for sequences the log-probability of the whole sequence.
    """
    return logit(functional.log_softmax(logits, -1), labels)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each sample: minus the log-probability of its label.

    Args:
        logits: [n, k], or [n, t, k] for sequences.
        labels: int64 [n] in [0, k), or [n, t] where -100 marks positions that don't count.

    Returns:
        [n] in nats, at least 0; for sequences the sum (not the mean) over the positions that count.
    """
    return -log_probability(logits, labels)


def margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-odds of each sample's label: its logit minus the logsumexp of all others.

    Unlike the probability it doesn't saturate, and unlike the logit it doesn't change when all logits shift.

    Args:
        logits: [n, k] with k of at least 2, or [n, t, k] for sequences.
        labels: int64 [n] in [0, k), or [n, t] where -100 marks positions that don't count.

    Returns:
        [n] in nats, positive where the label is more likely than all others together; for sequences summed over the
        positions that count.
    """
    index = labels.clamp_min(0).unsqueeze(-1)
    mine = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, True)
    others = logits.masked_fill(mine, -torch.inf).logsumexp(-1)
    return _per_sample(logits.gather(-1, index).squeeze(-1) - others, labels)
