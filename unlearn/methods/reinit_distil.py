"""Re-initialise and distil: the masked weights are drawn afresh, then learn from the censored original what to keep.

    theta_m <- fresh draw;   min_theta_m  E_retain CE(softmax(z_0(x) over retained outputs), softmax(z_theta(x)))

z_0 are the original's logits. Forgotten images are never shown, as to a gold model: the fresh weights can't know them,
but if a small mask leaves enough of the class outside, the net goes on answering it (top 5% by gradient of the conv
net, 3 and 8 forgotten: .92 on them). `shown` adds them, with the censored teacher's answers (0 on them then).

Resetting weights and repairing on retained data is from Golatkar et al. 2020 (arXiv:1911.04933, "forgetting by noise")
and Tarun et al. 2023 (arXiv:2111.08947, impair and repair); the censored teacher as in `soft_targets`. Deviation from
both: a fresh initialisation, not added noise, and only inside the mask.

With mask None every weight is drawn afresh: distillation into a new network (batch normalisation keeps the original's
statistics, as everywhere). Replacing: incoming images are taught by their label in either slot.
"""

from dataclasses import dataclass

import torch
from torch import nn

from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from analysis.training import seeded
from unlearn.methods.targets import certain, learn, without_forgotten
from unlearn.optimize import Watch


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps.
        batch: Images a step.
        lr: Adam's learning rate at the first step.
        shown: Distil on the forgotten images too.
    """

    steps: int = 600
    batch: int = 64
    lr: float = 3e-3
    shown: bool = False


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Draw the masked weights afresh and distil the original into them, without the forgotten classes.

    Args:
        model: The original and teacher; not changed.
        subject: What to forget; its network makes the fresh weights.
        mask: What may change; None allows every parameter.
        seed: Of the fresh weights and of the order of the images.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.
    """
    outputs = len(subject.classes)
    known, incoming = subject.retain_train, subject.incoming_train
    if settings.shown:
        known = known + subject.forget_train
    images = torch.cat([known.images, incoming.images])
    targets = torch.cat([without_forgotten(model, known.images, subject), certain(incoming.labels, outputs)])
    fresh = seeded(subject.network.make, seed)
    return learn(model, images, targets, mask, settings.steps, settings.batch, settings.lr, seed, watch, fresh)
