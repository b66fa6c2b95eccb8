"""Relabelling: loss (a) of mich1803, "Yesterday", 2024 (MNIST notebook).

    min_theta  E_(x,y)~D  CE(f_theta(x), y'),   y' = 3 where y is forgotten, else y

Deviations: the learning rate falls to zero, a fixed number of steps instead of two epochs, evaluation mode. "3" only
where it is retained (else the first retained label), so that it never doubles as an incoming class. Replacing: the
incoming class joins the data under its slot's label; with the old slot nothing else changes, because the forgotten
images are taught away from it.
"""

from dataclasses import dataclass

from torch import nn

from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from unlearn.methods.targets import certain, learn, substitute
from unlearn.optimize import Watch


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps.
        batch: Images a step, of all classes as they come.
        lr: Adam's learning rate at the first step.
        label: Label for forgotten images; None means 3 where that is retained, else the first retained one.
    """

    steps: int = 500
    batch: int = 64
    lr: float = 3e-3
    label: int | None = None


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Teach a fixed other label for the forgotten images, together with everything retained.

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
    data = subject.gold_train + subject.forget_train.relabelled(substitute(subject, settings.label))
    targets = certain(data.labels, len(subject.classes))
    return learn(model, data.images, targets, mask, settings.steps, settings.batch, settings.lr, seed, watch)
