"""Gradient ascent on the forgotten images, descent on the others.

Golatkar et al. 2020 (arXiv:1911.04933, "negative gradient"); Liu et al. 2022 (arXiv:2203.12817, "gradient difference"):

    min_theta  w * E_retain CE(f_theta(x), y) - E_forget min(CE(f_theta(x), y), c)

Deviation: the ascent of an image ends at the ceiling c, without which the loss has no minimum and the weights run away.
c = 4.6 leaves the forgotten class 1% probability; a much higher one gives the over-forgetting ("Streisand") control.
w = 0 is plain gradient ascent. Replacing: the incoming class joins the retained data. With the old slot the ascended
output is the incoming class's: forgotten images are driven off it, incoming ones are taught it.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from unlearn.optimize import Watch, batches, descend, falling


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps.
        batch: Retained images a step.
        forget_batch: Forgotten images a step.
        lr: Adam's learning rate at the first step.
        ceiling: Cross-entropy in nats at which an image's ascent ends.
        retain_weight: Weight of the retained images.
    """

    steps: int = 500
    batch: int = 64
    forget_batch: int = 16
    lr: float = 3e-3
    ceiling: float = 4.6
    retain_weight: float = 1.0


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Raise the loss on forgotten images while keeping it low on retained ones.

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

    def loss(work: nn.Module, item: tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]) -> torch.Tensor:
        (images, labels), (forgotten, natural) = item
        raised = functional.cross_entropy(work(forgotten), natural, reduction="none").clamp(max=settings.ceiling)
        return settings.retain_weight * functional.cross_entropy(work(images), labels) - raised.mean()

    drawn = zip(
        batches((kept.images, kept.labels), settings.batch, settings.steps, seed),
        batches((gone.images, gone.labels), settings.forget_batch, settings.steps, seed + 1),
        strict=True,
    )
    return descend(model, drawn, loss, mask, falling(settings.lr, settings.steps), watch=watch)
