"""Soft targets: learn the original's own answers with the forgotten class struck out.

    min_theta  E_x~(retain + forget)  CE(softmax(z_0(x) over retained outputs), softmax(z_theta(x)))

z_0 are the original's logits. So a forgotten image is answered with whatever the original thought second, as if the
class had never been an option. The idea is knowledge distillation (Hinton et al. 2015, arXiv:1503.02531) with a
censored teacher, as in Baumhauer et al. 2022 (arXiv:2002.02730, linear filtration); deviation: gradient descent on
chosen weights instead of a linear filter on the logits.

Replacing: incoming images are taught by their label. The teacher's old slot is struck out too, so with the old slot
only incoming images lead there.
"""

from dataclasses import dataclass

import torch
from torch import nn

from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from unlearn.methods.targets import certain, learn, without_forgotten
from unlearn.optimize import Watch


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps.
        batch: Images a step, of all classes as they come.
        lr: Adam's learning rate at the first step.
    """

    steps: int = 500
    batch: int = 64
    lr: float = 3e-3


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Teach the original's answers without the forgotten classes, on forgotten and retained images.

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
    known = torch.cat([subject.retain_train.images, subject.forget_train.images])
    incoming = subject.incoming_train
    images = torch.cat([known, incoming.images])
    targets = torch.cat(
        [without_forgotten(model, known, subject), certain(incoming.labels, len(subject.classes))],
    )
    return learn(model, images, targets, mask, settings.steps, settings.batch, settings.lr, seed, watch)
