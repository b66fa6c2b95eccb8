"""What the methods teach instead: labels and distributions without the forgotten classes.

Wherever a method needs "what should be answered now", it comes from here, so that forgetting one class, several, or
replacing one (in its own or the old output slot) is decided in one place. The outputs that both the original and the
edited model know are `subject.retain`; the incoming class is always taught by its label in `subject.gold_train`.
"""

import torch
from torch import nn
from torch.nn import functional

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from analysis.training import logits_of
from unlearn.optimize import Watch, batches, descend, falling

PREFERRED = 3
FRESH = 700_000
"""Added to the seed of a fresh draw: an original trained from the same seed began with that seed's own draw."""


def substitute(subject: ClassSubject, label: int | None) -> int:
    """Choose the label that forgotten images get instead.

    Args:
        subject: What is forgotten.
        label: The user's choice, or None: 3 where that is retained, else the first retained label.

    Returns:
        A retained label.

    Raises:
        UserError: The choice is not a retained label.
    """
    if label is None:
        return PREFERRED if PREFERRED in subject.retain else subject.retain[0]
    if label not in subject.retain:
        raise UserError(f"Forgotten images can't be relabelled {label}; choose one of the labels that are kept.")
    return label


def certain(labels: torch.Tensor, outputs: int) -> torch.Tensor:
    """Write labels as distributions.

    Args:
        labels: int64 [n].
        outputs: Number of outputs.

    Returns:
        float32 [n, outputs], one 1 a row.
    """
    return functional.one_hot(labels, outputs).float()


def without_forgotten(model: nn.Module, images: torch.Tensor, subject: ClassSubject) -> torch.Tensor:
    """Ask a model, with all outputs but the retained ones struck out: softmax over `subject.retain` alone.

    Args:
        model: The teacher, usually the original.
        images: [n, ...].
        subject: Says which outputs are retained.

    Returns:
        Probabilities [n, outputs], 0 for the forgotten and the incoming class.
    """
    logits = logits_of(model, images)
    keep = torch.zeros(logits.shape[1], dtype=torch.bool)
    keep[list(subject.retain)] = True
    return logits.masked_fill(~keep, -torch.inf).softmax(1)


def learn(
    model: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    mask: Mask | None,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    watch: Watch | None = None,
    start: nn.Module | None = None,
) -> nn.Module:
    """Train towards given distributions: cross-entropy, Adam, learning rate falling linearly to zero.

    Args:
        model: The original; not changed.
        images: [n, ...].
        targets: Probabilities [n, outputs].
        mask: What may change.
        steps: How many steps.
        batch: Images a step.
        lr: Learning rate at the first step.
        seed: Of the order of the images.
        watch: See `descend`.
        start: See `descend`.

    Returns:
        The edited copy.
    """

    def loss(work: nn.Module, item: tuple[torch.Tensor, ...]) -> torch.Tensor:
        logits = work(item[0])
        return functional.cross_entropy(logits, item[1].to(logits.dtype))

    drawn = batches((images, targets), batch, steps, seed)
    return descend(model, drawn, loss, mask, falling(lr, steps), watch=watch, start=start)


def repair(
    model: nn.Module,
    work: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    watch: Watch | None = None,
) -> nn.Module:
    """Train what a method has made of a model on the retained (and incoming) images; the end of several methods.

    Args:
        model: The original; not changed.
        work: What was made of it, bit-identical to it outside the mask; not changed.
        subject: Says what must stay.
        mask: What may change.
        steps: How many steps; 0 leaves it at `work`.
        batch: Images a step.
        lr: Learning rate at the first step.
        seed: Of the order of the images.
        watch: See `descend`; all that led to `work` counts as the first step.

    Returns:
        The repaired model.
    """
    if steps == 0:
        if watch:
            watch(0, model)
            watch(1, work)
        return work
    kept = subject.gold_train
    targets = certain(kept.labels, len(subject.classes))
    return learn(model, kept.images, targets, mask, steps, batch, lr, seed, watch, start=work)
