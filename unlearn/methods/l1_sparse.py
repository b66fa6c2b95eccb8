"""l1-sparse: fine-tune on the retained images while small weights are drawn to zero.

Jia et al. 2023, "Model Sparsity Can Simplify Machine Unlearning" (NeurIPS, arXiv:2304.04934):

    min_theta  E_retain CE(f_theta(x), y) + a_t * ||theta||_1,   a_t = a * (1 - t / T)

What is shrunk without being asked for by the retained images is what only the forgotten class needed; towards the end
the penalty fades, so that the retained classes recover. T are all the steps.

The authors: SGD with momentum 0.9 and weight decay 5e-4, 10 epochs at learning rate 0.01, batches of 256; a falls once
an epoch. Their a is given at every call and has no default of its own (that of their code's option, 0.2, is another
method's).

Deviations: a falls every step; Adam with a learning rate that falls to zero, no weight decay, evaluation mode. Learning
rate and a are ours: under Adam a penalty acts on another scale than under SGD, and at a = 5e-4 the class is gone from
both built-in nets and nothing else is (forgetting 6: 0 / .93 and 0 / .98, original .93 / .92 and .99 / .97), while 1e-4
leaves .25 of it in the conv net. The norm goes over every weight, but outside a mask none moves. Replacing: the
incoming class joins the retained data.
"""

from collections.abc import Iterator
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
        lr: Adam's learning rate at the first step.
        alpha: Weight of the norm at the first step.
    """

    steps: int = 500
    batch: int = 64
    lr: float = 3e-3
    alpha: float = 5e-4


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Train on the retained images under a penalty on the size of the weights.

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
    kept, strength = subject.gold_train, falling(settings.alpha, settings.steps)

    def drawn() -> Iterator[tuple[float, torch.Tensor, torch.Tensor]]:
        for step, (images, labels) in enumerate(
            batches((kept.images, kept.labels), settings.batch, settings.steps, seed)
        ):
            yield strength(step), images, labels

    def loss(work: nn.Module, item: tuple[float, torch.Tensor, torch.Tensor]) -> torch.Tensor:
        alpha, images, labels = item
        size = torch.stack([parameter.abs().sum() for parameter in work.parameters()]).sum()
        return functional.cross_entropy(work(images), labels) + alpha * size

    return descend(model, drawn(), loss, mask, falling(settings.lr, settings.steps), watch=watch)
