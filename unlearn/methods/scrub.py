"""SCRUB: Kurmanji et al. 2023, "Towards Unbounded Machine Unlearning" (NeurIPS, arXiv:2302.09880), algorithm 1.

    min_theta  E_retain [ a * KL(p_0(x) || p_theta(x)) + g * CE(f_theta(x), y) ] - E_forget KL(p_0(x) || p_theta(x))

p_0 is the original, the teacher: obey it on retained images, disobey it on forgotten ones. Max steps (forgotten images
alone) and min steps (retained alone) alternate; after `max_share` of the steps only min steps follow, which repair.

The authors, in their small experiments: 10 epochs, in the first 3 of which a pass of max steps comes before the pass of
min steps; a = 0.5, g = 1, temperature 2 (with KL times 4); Adam at 5e-4 with weight decay 0.1, the rate cut to a tenth
after epochs 5, 8 and 9; training mode.

Deviations: one max step in `every` steps instead of an epoch of each kind; a = 1; temperature 1; a learning rate that
falls to zero and is ours, no weight decay, evaluation mode; the distance of a forgotten image counts up to a ceiling,
without which the conv net falls apart (.16 on the rest) and the other net's loss on forgotten images ends a hundred
times above a gold model's. Replacing: the incoming class, which the teacher never saw, has the cross-entropy only. The
teacher's opinion of its slot counts on retained images alone, where it is right in either slot: no.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from analysis.training import logits_of
from unlearn.optimize import Watch, batches, descend, falling


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps, of both kinds.
        batch: Images a step.
        lr: Adam's learning rate at the first step.
        every: Every so many steps one is a max step.
        max_share: Part of the steps among which there are max steps, in (0, 1].
        alpha: Weight of the teacher on retained images.
        gamma: Weight of the labels on retained images.
        ceiling: KL divergence in nats from which on a forgotten image no longer counts in the max steps.
    """

    steps: int = 500
    batch: int = 64
    lr: float = 3e-3
    every: int = 5
    max_share: float = 0.7
    alpha: float = 1.0
    gamma: float = 1.0
    ceiling: float = 10.0

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(
                f"scrub:every says which steps are max steps and must be at least 1, not {self.every}; 1 makes all of "
                "them max steps until max_share."
            )
        if not 0 < self.max_share <= 1:
            raise UserError(f"scrub:max_share is a share, above 0 and at most 1, not {self.max_share:g}; 0.7 is usual.")


Item = tuple[bool, tuple[torch.Tensor, ...]]


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Disobey the original on forgotten images, obey it on retained ones.

    Args:
        model: The original and teacher; not changed.
        subject: What to forget.
        mask: What may change; None allows every parameter.
        seed: Of the order of the images.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.
    """
    kept, gone = subject.gold_train, subject.forget_train
    taught = torch.arange(len(kept)) < len(subject.retain_train)
    teacher = {
        "kept": logits_of(model, kept.images).log_softmax(1),
        "gone": logits_of(model, gone.images).log_softmax(1),
    }
    last = round(settings.max_share * settings.steps)

    def drawn() -> Iterator[Item]:
        retain = batches((kept.images, teacher["kept"], kept.labels, taught), settings.batch, settings.steps, seed)
        forget = batches((gone.images, teacher["gone"]), settings.batch, settings.steps, seed + 1)
        for step in range(settings.steps):
            climbing = step < last and step % settings.every == 0
            yield climbing, next(forget if climbing else retain)

    def loss(work: nn.Module, item: Item) -> torch.Tensor:
        climbing, (images, opinion, *rest) = item
        answers = work(images).log_softmax(1)
        distance = functional.kl_div(answers, opinion, reduction="none", log_target=True).sum(1)
        if climbing:
            return -distance.clamp(max=settings.ceiling).mean()
        labels, knows = rest
        return settings.alpha * (distance * knows).mean() + settings.gamma * functional.nll_loss(answers, labels)

    return descend(model, drawn(), loss, mask, falling(settings.lr, settings.steps), watch=watch)
