"""Regrow (ours): what carries the class is pulled out and grown again from what must stay.

    theta_m <- fresh draw;   min_theta_m  E_retain CE(label, z_theta)

theta_m are the masked weights. Forgotten images are never shown, as to a gold model: a weight that was drawn afresh
can't know them. What can are the weights outside, so the mask has to hold those that are large *and* carry the class
(`damage-contrast`): small ones are still near their own initialisation. It is another draw than the original's own, as
a gold's is: going back to that would be rewinding, not drawing.

The masked weights learn as the whole network once did: its own batch and learning rate, and labels alone. A little
decay is there so that few weights do not grow sharper than a whole net's would. Where a batch normalisation's scale and
shift lie in the mask it learns with the statistics of the batch, as a gold does, and what becomes of them is folded
into scale and shift: with the original's statistics a regrown network learns the class back faster than a gold.

Resetting weights and repairing on retained data is from Golatkar et al. 2020 (arXiv:1911.04933, "forgetting by noise"),
Tarun et al. 2023 (arXiv:2111.08947, impair and repair) and Lee et al. 2025 (arXiv:2506.06278, UNDO: noise, then
distil); new here are the place, the fresh draw instead of noise, the decay and the statistics. `docs/erasing.md`
derives it. With mask None every weight is drawn afresh. Replacing: incoming images are taught in either slot.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from analysis.training import seeded
from unlearn.methods.targets import FRESH
from unlearn.normalisation import check_batch
from unlearn.optimize import Watch, batches, descend, falling


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps.
        batch: Images a step; None takes the network's own.
        rate: Adam's learning rate at the first step, in units of the network's own.
        decay: Weight decay (decoupled) of matrices and kernels inside the mask.
        fresh: Draw the masked weights afresh; without, they go on from the original's (to see what the draw does).
    """

    steps: int = 1000
    batch: int | None = None
    rate: float = 1.0
    decay: float = 0.1
    fresh: bool = True


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
        model: The original; not changed.
        subject: What to forget; its network makes the fresh weights.
        mask: What may change; None allows every parameter.
        seed: Of the fresh weights and of the order of the images.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.
    """
    known, incoming, own = subject.retain_train, subject.incoming_train, subject.network.recipe
    images = torch.cat([known.images, incoming.images])
    labels = torch.cat([known.labels, incoming.labels])
    batch = own.batch if settings.batch is None else settings.batch
    check_batch(model, mask, min(batch, len(labels)))

    def loss(work: nn.Module, item: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return functional.cross_entropy(work(item[0]), item[1])

    return descend(
        model,
        batches((images, labels), batch, settings.steps, seed),
        loss,
        mask,
        falling(settings.rate * own.lr, settings.steps),
        weight_decay=settings.decay,
        watch=watch,
        start=seeded(subject.network.make, FRESH + seed) if settings.fresh else None,
        adapt=True,
    )
