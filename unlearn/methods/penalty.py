"""Penalty: loss (b) of mich1803, "Yesterday", 2024 (MNIST notebook).

    min_theta  E_retain CE(f_theta(x), y) + tau * E_(retain + forget) sigmoid(z_theta(x)_6),   tau = 1e5

z_6 is the forgotten class's logit. Deviations, with accuracies on 6 / on the rest measured for the 784-128-64-10 net
(original .925 / .922, validation images, one seed):

- The notebook also has CE(f_theta(x), 6) on the forgotten images. Its loss is lowest for a net that still answers 6, by
  lowering all other logits even further than 6's (.90 / .91 when it is optimised as below). It forgets only because
  Adam remembers the huge first gradients and hardly moves after them (0 / .89). So forgotten images have the penalty
  alone here (0 / .93); `natural` puts their cross-entropy back.
- Gradients are clipped to norm 1, or Adam's memory of 1e5 keeps the cross-entropy from repairing anything.
- A fixed number of steps, the learning rate falls to zero, evaluation mode. Several classes: their sigmoids are summed.

Replacing: every output that no gold model uses is penalised on all images. With the old slot the forgotten class's
output means the incoming class now, so there it is penalised on forgotten images only, and `natural` does nothing.
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
        batch: Images a step, of all classes as they come.
        lr: Adam's learning rate at the first step.
        tau: Weight of the penalty.
        clip: Largest norm of a step's gradient; None as in the notebook.
        natural: Keep the forgotten images' own labels in the cross-entropy, as in the notebook.
    """

    steps: int = 500
    batch: int = 64
    lr: float = 3e-3
    tau: float = 1e5
    clip: float | None = 1.0
    natural: bool = False


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Punish the forgotten outputs while training on the retained images.

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
    forgotten = torch.cat([torch.zeros(len(kept), dtype=torch.bool), torch.ones(len(gone), dtype=torch.bool)])
    unused, reused = list(subject.gone), [label for label in subject.forget if label not in subject.gone]
    natural = settings.natural and not reused

    def loss(work: nn.Module, item: tuple[torch.Tensor, ...]) -> torch.Tensor:
        images, labels, theirs = item
        logits = work(images)
        counted = torch.ones_like(theirs) if natural else ~theirs
        each = functional.cross_entropy(logits, labels, reduction="none") * counted
        squashed = logits.sigmoid()
        penalty = squashed[:, unused].sum(1) + squashed[:, reused].sum(1) * theirs
        return each.sum() / counted.sum().clamp(min=1) + settings.tau * penalty.mean()

    both = kept + gone
    drawn = batches((both.images, both.labels, forgotten), settings.batch, settings.steps, seed)
    return descend(model, drawn, loss, mask, falling(settings.lr, settings.steps), clip=settings.clip, watch=watch)
