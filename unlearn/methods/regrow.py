"""Regrow (ours): what carries the class is pulled out and grown again from what must stay.

    theta_m <- fresh draw;   min_theta_m  E_retain CE(label, z_theta) + a sum_l (1 - likeness(h_l, h_l of a teacher))

theta_m are the masked weights. Forgotten images are never shown, as to a gold model: a weight that was drawn afresh
can't know them. What can are the weights outside, so the mask has to hold those that are large *and* carry the class
(`damage-contrast`): small ones are still near their own initialisation. It is another draw than the original's own, as
a gold's is: going back to that would be rewinding, not drawing.

The masked weights learn as the whole network once did: labels, its own batch, nearly its own learning rate. A little
decay is there besides. But few weights that learn alone grow sharp, and make layers that no whole network makes. So a
whole one is drawn afresh as well, taught the same images for fewer steps and thrown away; in the second half of its
steps, when layers grow sharp, what is regrown has to find the same images alike as it does (`likeness` of each layer,
which no rotation of the units changes). Where a batch normalisation's scale and shift lie in the mask it learns with
the statistics of the batch, as a gold does, and what becomes of them is folded into scale and shift: with the
original's statistics a regrown network learns the class back faster than a gold.

Resetting weights and repairing on retained data is from Golatkar et al. 2020 (arXiv:1911.04933, "forgetting by noise"),
Tarun et al. 2023 (arXiv:2111.08947, impair and repair) and Lee et al. 2025 (arXiv:2506.06278, UNDO: noise, then
distil); comparing kernels with a teacher's is similarity-preserving distillation (Tung & Mori 2019, arXiv:1907.09682,
there with a teacher that knows everything). New here are the place, the fresh draw instead of noise, a teacher that
never knew, the decay and the statistics. `docs/erasing.md` derives it. With mask None every weight is drawn afresh.
Replacing: incoming images are taught in either slot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from analysis.representations.capture import caught
from analysis.representations.similarity import likeness
from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from analysis.training import seeded
from unlearn.methods.targets import FRESH
from unlearn.normalisation import check_batch
from unlearn.optimize import Watch, batches, descend, falling

Models = Sequence[nn.Module]

SINCE = 0.5
"""Layers are compared from this share of the steps on: they grow sharp at the end, and what is earlier is forgotten."""
EVERY = 8
"""And then at every so manieth step, where they count as many times: as good as at each, and cheaper."""
TEACHER = 1000
"""Between the seeds of one run's draws."""


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps.
        batch: Images a step; None takes the network's own.
        rate: Adam's learning rate at the first step, in units of the network's own; the teachers' as well.
        decay: Weight decay (decoupled) of matrices and kernels inside the mask.
        fresh: Draw the masked weights afresh; without, they go on from the original's (to see what the draw does).
        teachers: Whole networks that are drawn afresh and taught what must stay, to be like inside.
        teacher_steps: Their optimisation steps.
        alike: Weight of being like them; 0 leaves them out.
    """

    steps: int = 1000
    batch: int | None = None
    rate: float = 1.2
    decay: float = 0.1
    fresh: bool = True
    teachers: int = 1
    teacher_steps: int = 300
    alike: float = 0.5


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
    kept, network = subject.gold_train, subject.network
    batch = network.recipe.batch if settings.batch is None else settings.batch
    others = [seed + TEACHER * (number + 1) for number in range(settings.teachers if settings.alike else 0)]
    check_batch(model, None if others else mask, min(batch, len(kept)))

    def grow(
        draw: int, start: nn.Module | None, allowed: Mask | None, steps: int, like: Models, watch: Watch | None = None
    ) -> nn.Module:
        def loss(work: nn.Module, item: tuple[int, tuple[torch.Tensor, ...]]) -> torch.Tensor:
            number, (some, said) = item
            if not like or number < SINCE * steps or number % EVERY:
                return functional.cross_entropy(work(some), said)
            with caught(work, network.points) as mine:
                value = functional.cross_entropy(work(some), said)
            return value + EVERY * settings.alike * _unlike(mine, like, some)

        return descend(
            model,
            enumerate(batches((kept.images, kept.labels), batch, steps, draw)),
            loss,
            allowed,
            falling(settings.rate * network.recipe.lr, steps),
            weight_decay=settings.decay,
            watch=watch,
            start=start,
            adapt=True,
        )

    teachers = [grow(draw, seeded(network.make, FRESH + draw), None, settings.teacher_steps, ()) for draw in others]
    start = seeded(network.make, FRESH + seed) if settings.fresh else None
    return grow(seed, start, mask, settings.steps, teachers, watch)


def _unlike(mine: Mapping[str, torch.Tensor], teachers: Models, images: torch.Tensor) -> torch.Tensor:
    # How far the layers are from the teachers', summed over layers and averaged over teachers.
    apart = []
    for teacher in teachers:
        with torch.no_grad(), caught(teacher, tuple(mine)) as theirs:
            teacher(images)
        apart += [1 - likeness(mine[point], theirs[point]) for point in mine]
    return torch.stack(apart).sum() / len(teachers)
