"""SalUn: random labels on the weights that the forgotten images' gradient points at.

Fan et al. 2024, "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification
and Generation" (ICLR, arXiv:2310.12508), equations 3 to 5:

    m = 1[ |grad_theta E_forget CE(f_theta_0(x), y)| >= gamma ],   theta = m * (theta_0 + delta) + (1 - m) * theta_0

with gamma the median, so half of the weights move, and delta learned by random labels on forgotten and true labels on
retained images.

The authors: half of the weights; 10 epochs of SGD with momentum 0.9 and weight decay 5e-4, batches of 256, 0.013 in
their example (ResNet-18, CIFAR-10, a tenth of the data forgotten). On CIFAR-10 every epoch first goes through the
forgotten images, with labels drawn anew from all classes, the true one among them, and then through the retained ones.
The mask has to be applied to weights and momentum as well as to gradients: with gradients alone weight decay moves what
is outside.

Deviations: random labels as in `random_labels`, from retained classes and mixed with retained images, Adam with a
learning rate that falls to zero and is ours, evaluation mode; `descend` keeps what is outside bit by bit. The median is
taken by rank, so ties, such as the zeros of dead units, don't let more than half through. Where a mask is given, the
saliency ranks the entries inside it only, and the top share of those may change (an intersection of two masks could be
empty, this never is).
"""

from dataclasses import dataclass

import torch
from torch import nn

from analysis.attribution.gradients import saliency
from analysis.scores import Mask, Scores
from analysis.subjects.classes import ClassSubject
from unlearn.methods import random_labels
from unlearn.optimize import Watch, check_mask


@dataclass(frozen=True)
class Settings(random_labels.Settings):
    """What can be set, besides what random labels have.

    Attributes:
        fraction: Share of the weights (of the mask's, where one is given) that may change.
    """

    fraction: float = 0.5


def top_within(scores: Scores, fraction: float, within: Mask) -> Mask:
    """Take the highest-scored share of a mask's entries.

    Args:
        scores: One number per parameter entry.
        fraction: Share to take, in (0, 1].
        within: The candidates.

    Returns:
        A part of `within`.
    """
    candidates = {name: bits for name, bits in within.bits.items() if name in scores.values}
    inside = {name: scores.values[name][bits] for name, bits in candidates.items()}
    taken = Scores(inside, "parameter", scores.measure, scores.units).top(fraction).bits
    return Mask({n: torch.zeros_like(bits).masked_scatter(bits, taken[n]) for n, bits in candidates.items()})


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Teach random labels, but only to the weights that the forgotten images' gradient points at.

    Args:
        model: The original; not changed.
        subject: What to forget.
        mask: What may change; the saliency chooses inside it. None lets it choose anywhere.
        seed: Of the order of the images and of the labels.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.
    """
    if mask is not None:
        check_mask(model, mask)
    scores = saliency(model, subject.forget_train.images, subject.forget_train.labels)
    chosen = top_within(scores, settings.fraction, mask or Mask.everything(model))
    return random_labels.run(model, subject, chosen, seed, settings, watch)
