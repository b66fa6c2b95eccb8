"""Moment matching: the loss of StefanoMagriniAlunno, "Machine_Unlearning" (public on GitHub).

    min_theta  E_retain CE(f_theta(x), y) + w * ( ||m_f - m_r||^2 + ||C_f - C_r||_F )

m and C are mean and covariance (divided by n) of softmax(f_theta(x)) over a batch of forgotten and of retained images:
what is said of forgotten images is to be spread as what is said of the others, so that nobody tells by it that they
were treated apart. The mean's distance is squared, the covariance's is not. Gradients flow through both sides.

There: w = 0.1, 10 epochs of Adam at PyTorch's default 1e-3, and every epoch trains two tensors of parameters drawn
at random. Its batches mix forgotten and retained images as they come; one without any retained would give NaN.

Deviations: all the mask's weights at every step; batches of a set number of forgotten and of retained images; a
learning rate that falls to zero, and evaluation mode. Learning rate, w and sizes of batches are ours: w = 3 costs a
point on the rest, and 0.3 leaves .06 of the class in the conv net. Replacing: the incoming class has the cross-entropy
only and no part in the moments: in the old slot they would ask that some forgotten images still lead there.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from unlearn.optimize import Watch, batches, descend, falling

Batch = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps.
        batch: Retained images a step.
        forget_batch: Forgotten images a step.
        lr: Adam's learning rate at the first step.
        weight: Weight of the moments beside the cross-entropy.
    """

    steps: int = 500
    batch: int = 64
    forget_batch: int = 64
    lr: float = 3e-3
    weight: float = 1.0


def apart(forgotten: torch.Tensor, retained: torch.Tensor) -> torch.Tensor:
    """Measure how far the first two moments of two sets of answers are apart.

    Args:
        forgotten: Probabilities [n, outputs].
        retained: Probabilities [m, outputs].

    Returns:
        Squared distance of the means plus Frobenius distance of the covariances.
    """
    means = (forgotten.mean(0) - retained.mean(0)).square().sum()
    covariances = torch.cov(forgotten.T, correction=0) - torch.cov(retained.T, correction=0)
    return means + torch.linalg.matrix_norm(covariances)


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Spread the answers to forgotten images as those to retained ones are spread.

    Args:
        model: The original; not changed.
        subject: What to forget.
        mask: What may change; None allows every parameter.
        seed: Of the order of the images.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.
    """
    kept, gone = subject.gold_train, subject.forget_train
    known = torch.arange(len(kept)) < len(subject.retain_train)

    def loss(work: nn.Module, item: tuple[Batch, Batch]) -> torch.Tensor:
        (images, labels, counts), (forgotten,) = item
        logits = work(images)
        distance = apart(work(forgotten).softmax(1), logits[counts].softmax(1))
        return functional.cross_entropy(logits, labels) + settings.weight * distance

    drawn = zip(
        batches((kept.images, kept.labels, known), settings.batch, settings.steps, seed),
        batches((gone.images,), settings.forget_batch, settings.steps, seed + 1),
        strict=True,
    )
    return descend(model, drawn, loss, mask, falling(settings.lr, settings.steps), watch=watch)
