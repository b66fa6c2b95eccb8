"""Regrow (ours): what carries the class is pulled out and grown again from what must stay.

    theta_m <- fresh draw;   min_theta_m  E_retain CE(a * label + (1 - a) * softmax(z_0 over retained outputs), z_theta)

theta_m are the masked weights, z_0 the original's logits, a is `labels`. Forgotten images are never shown, as to a gold
model: a weight that was drawn afresh can't know them. What can are the weights outside, so the mask has to hold those
that are large *and* carry the class (`damage-contrast`): small ones are still near their own initialisation. It is
another draw than the original's own, as a gold's is: going back to that would be rewinding, not drawing.

Weight decay inside the mask and the half-soft teacher are there so that few weights do not grow sharper than a whole
net's would; they helped while settings were chosen, and the ablation in the page below hardly sees them. Where a batch
normalisation's scale and shift lie in the mask it learns with the statistics of the batch, as a gold does, and what
becomes of them is folded into scale and shift: with the original's statistics a regrown network learns the class back
faster than a gold.

Resetting weights and repairing on retained data is from Golatkar et al. 2020 (arXiv:1911.04933, "forgetting by noise"),
Tarun et al. 2023 (arXiv:2111.08947, impair and repair) and Lee et al. 2025 (arXiv:2506.06278, UNDO: noise, then
distil); new here are the place, the fresh draw instead of noise, the decay and the statistics. `docs/erasing.md`
derives it. With mask None every weight is drawn afresh. Replacing: incoming images are taught by their label in either
slot.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from analysis.training import seeded
from unlearn.methods.targets import FRESH, certain, without_forgotten
from unlearn.normalisation import check_batch
from unlearn.optimize import Watch, batches, descend, falling


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps.
        batch: Images a step.
        lr: Adam's learning rate at the first step.
        labels: Share of the true label in the target, in [0, 1]; the rest is the original's opinion.
        decay: Weight decay (decoupled) inside the mask.
        fresh: Draw the masked weights afresh; without, they go on from the original's (to see what the draw does).
    """

    steps: int = 900
    batch: int = 96
    lr: float = 3e-3
    labels: float = 0.5
    decay: float = 0.5
    fresh: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.labels <= 1:
            raise UserError(f"regrow:labels is a share, from 0 to 1, not {self.labels:g}; 0.5 is usual.")


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Draw the masked weights afresh and teach them what must stay.

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
    check_batch(model, mask, min(settings.batch, len(known) + len(incoming)))
    opinion = without_forgotten(model, known.images, subject)
    mixed = settings.labels * certain(known.labels, outputs) + (1 - settings.labels) * opinion
    images = torch.cat([known.images, incoming.images])
    targets = torch.cat([mixed, certain(incoming.labels, outputs)])

    def loss(work: nn.Module, item: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return functional.cross_entropy(work(item[0]), item[1])

    return descend(
        model,
        batches((images, targets), settings.batch, settings.steps, seed),
        loss,
        mask,
        falling(settings.lr, settings.steps),
        weight_decay=settings.decay,
        watch=watch,
        start=seeded(subject.network.make, FRESH + seed) if settings.fresh else None,
        adapt=True,
    )
