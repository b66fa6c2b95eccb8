"""NegGrad+: Kurmanji et al. 2023, "Towards Unbounded Machine Unlearning" (NeurIPS, arXiv:2302.09880), the baseline.

    min_theta  b * E_retain CE(f_theta(x), y) - (1 - b) * E_forget CE(f_theta(x), y)

Beside `gradient_ascent`: the two sides' weights add up to 1, and the ascent has no ceiling. So the loss has no minimum,
and an image that is long forgotten still pulls at the weights: the loss on forgotten images ends far above what a model
that never knew them has. `gradient_ascent` is the same with the pull ended where 1% of the probability is left.

The authors: SGD without momentum at 0.01, 10 epochs, the forgotten images repeated as often as the retained need them;
b = 0.95 in the small experiments and 0.9999 in the large ones. In the small ones b also weighs a pull back to the
original's weights (their weight decay, half the squared distance).

Deviations: Adam with a learning rate that falls to zero, evaluation mode (theirs too in the small experiments, training
mode in the large), no pull back to the original, fewer forgotten than retained images a step. The learning rate is
ours. Under Adam, which makes the steps no shorter where b makes the loss small, only the larger b leaves the rest
alone: forgetting 6 in the built-in nets, 0.95 leaves .79 of .92 and .11 of .97 on it and a loss of a million nats on
the class, and 0.999 still .91 and .67. Replacing: the incoming class joins the retained data; with the old slot the
forgotten images are driven off its output.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from analysis.errors import UserError
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
        beta: Weight of the retained images, in [0, 1]; the forgotten ones have the rest.
    """

    steps: int = 500
    batch: int = 64
    forget_batch: int = 16
    lr: float = 3e-3
    beta: float = 0.9999

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise UserError(
                f"neggrad-plus:beta is a share, from 0 to 1, not {self.beta:g}; the authors' are 0.95 and 0.9999."
            )


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Raise the loss on forgotten images without end, and keep it low on retained ones.

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
    kept, gone, beta = subject.gold_train, subject.forget_train, settings.beta

    def loss(work: nn.Module, item: tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]) -> torch.Tensor:
        (images, labels), (forgotten, natural) = item
        low, high = functional.cross_entropy(work(images), labels), functional.cross_entropy(work(forgotten), natural)
        return beta * low - (1 - beta) * high

    drawn = zip(
        batches((kept.images, kept.labels), settings.batch, settings.steps, seed),
        batches((gone.images, gone.labels), settings.forget_batch, settings.steps, seed + 1),
        strict=True,
    )
    return descend(model, drawn, loss, mask, falling(settings.lr, settings.steps), watch=watch)
