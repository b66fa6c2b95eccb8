"""SSD: shrink the weights that matter more for the forgotten classes than for the rest.

Foster et al. 2024, "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening" (AAAI,
arXiv:2308.07707):

    theta_i <- min(lambda * D_i / F_i, 1) * theta_i   where F_i > alpha * D_i

F and D are diagonals of the empirical Fisher information, on the forgotten images and on all the model was trained on.

The authors: alpha = 10 and lambda = 1 (alpha = 5 for a vision transformer; 50 and 0.1 on a set of faces), no repair.

Deviations: the squares are per image (the authors' code squares the mean gradient of a batch, which is near zero
wherever the model has converged, and averages over batches). D contains F's share, so F / D can't exceed n / n_forget
(10 for one of ten classes) and the authors' alpha of 10 would select nothing: `alpha` None takes the largest alpha, on
a ladder from there down to 1, at which training accuracy on the forgotten classes is at most `target` (in the spirit of
Schoepf et al. 2024, arXiv:2402.10098). lambda is 0.1, not 1: with 1 no alpha makes the 784-128-64-10 net forget 6. In
the conv net some classes take others with them (forgetting 3 leaves .57 of .97 on the rest), so a short repair on
retained images follows; `repair_steps` 0 is the paper. Replacing needs the repair: it teaches the incoming class, in
either slot.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from analysis.attribution.fisher import fisher_diagonal
from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from analysis.training import accuracy
from unlearn.methods.targets import repair
from unlearn.optimize import Watch, check_mask, restore_outside

RUNGS = 20


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        alpha: How many times more important for the forgotten classes than for all a weight must be to be dampened;
            None chooses it.
        dampening: The paper's lambda; the lower, the closer to zero.
        target: Training accuracy on the forgotten classes that ends the choice of alpha.
        repair_steps: Optimisation steps on retained (and incoming) images afterwards; 0 is the paper.
        batch: Images a step.
        lr: Adam's learning rate at the first of them.
    """

    alpha: float | None = None
    dampening: float = 0.1
    target: float = 0.01
    repair_steps: int = 150
    batch: int = 64
    lr: float = 3e-3


def dampened(
    model: nn.Module,
    everything: Mapping[str, torch.Tensor],
    forgotten: Mapping[str, torch.Tensor],
    alpha: float,
    strength: float,
    mask: Mask | None = None,
) -> nn.Module:
    """Shrink the weights that matter more for the forgotten classes than for the rest.

    Args:
        model: The original; not changed.
        everything: Fisher diagonal on all training images, by parameter name.
        forgotten: The same on the forgotten ones.
        alpha: Threshold of selection.
        strength: The paper's lambda.
        mask: What may change.

    Returns:
        The dampened copy.
    """
    work = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, parameter in work.named_parameters():
            known, mine = (found[name].to(parameter.device) for found in (everything, forgotten))
            ratio = known / mine.clamp(min=torch.finfo(torch.float32).tiny)
            selected = mine > alpha * known
            parameter.copy_(torch.where(selected, parameter * (strength * ratio).clamp(max=1), parameter))
    restore_outside(work, model, mask)
    return work


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Dampen the forgotten classes' weights, then repair.

    Args:
        model: The original; not changed.
        subject: What to forget.
        mask: What may change; None allows every parameter.
        seed: Of the order of the images in the repair.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`; the dampening is the first step.

    Returns:
        The edited model, in evaluation mode.
    """
    if mask is not None:
        check_mask(model, mask)
    known, gone = subject.original_train, subject.forget_train
    everything = fisher_diagonal(model, known.images, known.labels, kind="empirical").values
    forgotten = fisher_diagonal(model, gone.images, gone.labels, kind="empirical").values
    highest = len(known) / len(gone)
    ladder = [highest ** (1 - rung / RUNGS) for rung in range(1, RUNGS + 1)]
    work = model
    for alpha in ladder if settings.alpha is None else [settings.alpha]:
        work = dampened(model, everything, forgotten, alpha, settings.dampening, mask)
        if accuracy(work, gone) <= settings.target:
            break
    steps, batch = settings.repair_steps, settings.batch
    return repair(model, work, subject, mask, steps, batch, settings.lr, seed, watch)
