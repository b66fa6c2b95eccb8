"""Fisher forgetting: noise on every weight, large where the retained images don't mind.

Golatkar et al. 2020, "Eternal Sunshine of the Spotless Net" (CVPR, arXiv:1911.04933), as in their code:

    theta_i <- mu_i + sqrt(v_i) * n_i,   v_i = a * min(1 / (F_i + 1e-8), c),   n_i ~ N(0, 1)

F is the diagonal of the true Fisher information on the retained images (expected over the model's own answers). mu is
theta, but the head's weights and bias of a forgotten class, which get mu = 0 and a fixed variance of 1e-4.

The authors: a = 1e-6, c = 1e3 (1e2 in the last layer), the variance averaged over the inputs of each unit, then tenfold
in the last layer and in vectors. They know the last layer by its first size, which is the number of classes; any layer
of that size is treated so.

Deviations: every weight has its own variance and one c for all, without the factors of ten; the head is known by name.
Their a suits the built-in nets: 1e-5 costs the 784-128-64-10 net 9 points on the rest, and nearly all the forgetting is
the head's reset, with or without noise. It leaves .23 of 6 in the conv net, where an output of zero still wins at
times, so a repair on retained images follows, which is ours; `repair_steps` 0 is the paper. Replacing needs the repair:
it teaches the incoming class, in either slot.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from analysis.attribution.fisher import fisher_diagonal
from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from unlearn.methods.targets import repair
from unlearn.optimize import Watch, check_mask, restore_outside

SMALLEST = 1e-8
OUTPUT_VARIANCE = 1e-4


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        alpha: Scale of the variances; 0 only resets the forgotten classes' outputs.
        cap: Largest inverse of the Fisher information, before that scale.
        repair_steps: Optimisation steps on retained (and incoming) images afterwards; 0 is the paper.
        batch: Images a step.
        lr: Adam's learning rate at the first of them.
    """

    alpha: float = 1e-6
    cap: float = 1e3
    repair_steps: int = 150
    batch: int = 64
    lr: float = 3e-3


def noised(model: nn.Module, subject: ClassSubject, seed: int, settings: Settings) -> nn.Module:
    """Draw weights around a model's, wide where the retained images' Fisher information is small.

    Args:
        model: The original; not changed.
        subject: What is forgotten and what must stay.
        seed: Of the noise.
        settings: See `Settings`.

    Returns:
        The noisy copy.
    """
    kept, gone = subject.retain_train, list(subject.forget)
    fisher = fisher_diagonal(model, kept.images, kept.labels, kind="true").values
    generator = torch.Generator().manual_seed(seed)
    work = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, parameter in work.named_parameters():
            variance = settings.alpha / (fisher[name] + SMALLEST).clamp(min=1 / settings.cap)
            if name.rpartition(".")[0] == subject.network.head and len(parameter) == len(subject.classes):
                parameter[gone], variance[gone] = 0.0, OUTPUT_VARIANCE
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(variance.sqrt() * noise)
    return work


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Add noise where retained images don't mind, then repair.

    Args:
        model: The original; not changed.
        subject: What to forget.
        mask: What may change; None allows every parameter.
        seed: Of the noise and of the order of the images.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`; the noise is the first step.

    Returns:
        The edited model, in evaluation mode.
    """
    if mask is not None:
        check_mask(model, mask)
    work = noised(model, subject, seed, settings)
    restore_outside(work, model, mask)
    return repair(model, work, subject, mask, settings.repair_steps, settings.batch, settings.lr, seed, watch)
