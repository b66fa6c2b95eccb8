"""Fine-tuning: go on training on the retained images alone and hope that the rest is forgotten.

    min_theta  E_retain CE(f_theta(x), y)

The baseline of Golatkar et al. 2020 (arXiv:1911.04933), of Kurmanji et al. 2023 (arXiv:2302.09880) and of Jia et al.
2023 (arXiv:2304.04934, "FT": SGD with momentum 0.9 and weight decay 5e-4 for 10 epochs at 0.01, batches of 256). It
relies on catastrophic forgetting, and often leaves the class where it was: what retained images never ask about does
not have to change.

Deviations: Adam with a learning rate that falls to zero and no weight decay, evaluation mode, a fixed number of steps
(eight to nine passes over what the built-in nets are trained on), as in this folder's other methods, so that they can
be compared; the learning rate is ours. Replacing: the incoming class joins the retained data.
"""

from dataclasses import dataclass

from torch import nn

from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from unlearn.methods.targets import certain, learn
from unlearn.optimize import Watch


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps.
        batch: Retained images a step.
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
    """Train on the retained images and never show the forgotten ones.

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
    kept = subject.gold_train
    targets = certain(kept.labels, len(subject.classes))
    return learn(model, kept.images, targets, mask, settings.steps, settings.batch, settings.lr, seed, watch)
