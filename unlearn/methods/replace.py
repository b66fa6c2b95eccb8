"""Replacing a class: the baseline of the task behind StefanoMagriniAlunno, "Machine_Unlearning" (public on GitHub).

"Train with a loss that favours the 3 while penalizing the 6":

    min_theta  w * E_retain CE(f_theta(x), y) + a * E_incoming CE(f_theta(x), s) - b * E_forget log(1 - p_theta(r | x))

s is the incoming class's slot and r the forgotten class's own output; the penalty is unlikelihood (Welleck et al. 2020,
arXiv:1908.04319). With the old slot s = r: the same output is favoured on incoming and penalised on forgotten images.
w = 0 is the task's text to the letter, and one of its pitfalls: nothing holds the other classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject, Split
from unlearn.optimize import Watch, batches, descend, falling

Batch = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps.
        batch: Retained images a step.
        class_batch: Incoming, and forgotten, images a step.
        lr: Adam's learning rate at the first step.
        retain_weight: Weight of the retained images.
        favour: Weight of the incoming images.
        penalty: Weight of the penalty on forgotten images.
    """

    steps: int = 500
    batch: int = 64
    class_batch: int = 16
    lr: float = 3e-3
    retain_weight: float = 1.0
    favour: float = 0.3
    penalty: float = 0.3


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Teach the incoming class and punish the forgotten one's output on its own images.

    Args:
        model: The original; not changed.
        subject: What to replace by what.
        mask: What may change; None allows every parameter.
        seed: Of the order of the images.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.

    Raises:
        UserError: The subject has no incoming class.
    """
    if subject.incoming is None:
        raise UserError("The method 'replace' needs a class to learn instead; give one with --replace-with.")

    def drawn(split: Split, size: int, offset: int) -> Iterator[Batch]:
        return batches((split.images, split.labels), size, settings.steps, seed + offset)

    def loss(work: nn.Module, item: tuple[Batch, Batch, Batch]) -> torch.Tensor:
        kept, incoming, forgotten = item
        favour = functional.cross_entropy(work(incoming[0]), incoming[1])
        hold = functional.cross_entropy(work(kept[0]), kept[1])
        # log(1 - p) from logits: the log-sum-exp over the other outputs, against that over all.
        logits = work(forgotten[0])
        others = logits.scatter(1, forgotten[1][:, None], -torch.inf)
        punish = (logits.logsumexp(1) - others.logsumexp(1)).mean()
        return settings.retain_weight * hold + settings.favour * favour + settings.penalty * punish

    items = zip(
        drawn(subject.retain_train, settings.batch, 0),
        drawn(subject.incoming_train, settings.class_batch, 1),
        drawn(subject.forget_train, settings.class_batch, 2),
        strict=True,
    )
    return descend(model, items, loss, mask, falling(settings.lr, settings.steps), watch=watch)
