"""Boundary Shrink: Chen et al. 2023, "Boundary Unlearning" (CVPR, arXiv:2303.11570), section 4.1.

    x' = x + e * sign(grad_x CE(f_theta_0(x), y)),   min_theta  E_forget CE(f_theta(x), argmax f_theta_0(x'))

Every forgotten image gets the label of the class on the other side of the nearest boundary, found by one step against
the original (FGSM), and so the forgotten class's region is shared out among its neighbours.

The authors: e = 0.1 of pixels in [0, 1], SGD with momentum 0.9 at 1e-5, 10 epochs in batches of 64, on the forgotten
images alone (as copies of their code have it). That code steps five times from a random start, which is PGD, and takes
whatever label it ends at: where the step doesn't cross a boundary that is the image's own, which is then taught anew.

Deviations: one step, as in the paper; the label is the best of the retained outputs, so never a forgotten or an
incoming class; labels are found once; evaluation mode. Learning rates and numbers of steps are ours, and so is the
repair on retained images that follows (`repair_steps` 0 is the paper): nothing in the paper's loss holds the retained
classes, and before it .86 of .92 is left on the rest in the 784-128-64-10 net. Replacing needs the repair: it teaches
the incoming class. With the old slot some forgotten images lead there again afterwards, because the repair never sees
them.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from unlearn.methods.targets import certain, learn, repair, without_forgotten
from unlearn.optimize import Watch


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        bound: Size of the step, as a share of the range of the images' pixels.
        steps: Optimisation steps on forgotten images.
        shrink_lr: Adam's learning rate at the first of them.
        repair_steps: Optimisation steps on retained (and incoming) images afterwards; 0 is the paper.
        lr: Adam's learning rate at the first of those.
        batch: Images a step.
    """

    bound: float = 0.1
    steps: int = 50
    shrink_lr: float = 1e-3
    repair_steps: int = 150
    lr: float = 3e-3
    batch: int = 64


def neighbours(model: nn.Module, subject: ClassSubject, bound: float) -> torch.Tensor:
    """Find the retained class across the nearest boundary of each forgotten image.

    Args:
        model: The original; not changed.
        subject: What is forgotten.
        bound: See `Settings`.

    Returns:
        int64, one retained label per forgotten image.
    """
    gone = subject.forget_train
    lowest, highest = gone.images.min(), gone.images.max()
    inputs = gone.images.clone().requires_grad_()
    was = model.training
    model.eval()
    (slope,) = torch.autograd.grad(functional.cross_entropy(model(inputs), gone.labels, reduction="sum"), [inputs])
    model.train(was)
    crossed = (gone.images + bound * (highest - lowest) * slope.sign()).clamp(lowest, highest)
    return without_forgotten(model, crossed, subject).argmax(1)


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Teach every forgotten image the class across its nearest boundary, then repair.

    Args:
        model: The original; not changed.
        subject: What to forget.
        mask: What may change; None allows every parameter.
        seed: Of the order of the images.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`; the shrinking is the first step.

    Returns:
        The edited model, in evaluation mode.
    """
    targets = certain(neighbours(model, subject, settings.bound), len(subject.classes))
    images, batch = subject.forget_train.images, settings.batch
    shrunk = learn(model, images, targets, mask, settings.steps, batch, settings.shrink_lr, seed)
    return repair(model, shrunk, subject, mask, settings.repair_steps, batch, settings.lr, seed, watch)
