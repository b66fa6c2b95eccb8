"""UNDO: suppress, then damage the weights and distil the suppressed model back into them.

Lee et al. 2025, "Distillation Robustifies Unlearning" (NeurIPS, arXiv:2506.06278), unlearn - noise - distil on outputs:

    t = unlearn(theta_0);   theta <- (1 - a) * t + a * b * fresh;   min_theta  E_retain KL( p_t(x) || p_theta(x) )

A model that was only taught to hide something hands on what it says and not what it hides, as far as its own weights
are worn down first. a is the trade: 0 copies the suppressed model, 1 with b = 1 distils it into a new one.

The authors, on language models: maximum entropy, gradient difference or RMU as the first step; a from 0.1 to 0.8, b =
0.1; matrices are noised by Xavier's uniform draw and vectors by zeros; distilled until the loss on what is kept comes
within 5% of the teacher's, AdamW without decay at 9e-4. Their noise is drawn from the global random state, whatever the
function's own `seed` says.

Deviations: the first step is `random_labels`, whose optimum on forgotten images is the highest entropy over retained
labels; `fresh` is a draw by the network itself, biases and normalisations included; normalisations learn with the
statistics of the batch, folded into scale and shift (as in `regrow`); a fixed number of steps. Those, the learning rate
and a = 0.6 are ours (anything from 0.3 to 0.8 forgets 6 and keeps the rest in the built-in net). Beside `regrow`: a
model that was taught to hide it is the teacher, labels have no part, and every weight is worn down a little instead of
few wholly. Replacing: the teacher has learned the incoming class, and hands it on like the retained ones.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from analysis.training import logits_of, seeded
from unlearn.methods import random_labels
from unlearn.methods.targets import FRESH
from unlearn.normalisation import check_batch
from unlearn.optimize import Watch, batches, descend, falling, restore_outside


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps, of the suppression and of the distillation each.
        batch: Images a step.
        lr: Adam's learning rate at the first step of either.
        alpha: How far the weights are moved towards the noise, in [0, 1].
        beta: Size of the noise, as a share of a fresh draw.
    """

    steps: int = 500
    batch: int = 64
    lr: float = 3e-3
    alpha: float = 0.6
    beta: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"undo:alpha is a share, from 0 to 1, not {self.alpha:g}; 0.6 is usual.")


def damaged(model: nn.Module, fresh: nn.Module, alpha: float, beta: float) -> nn.Module:
    """Shrink a model's weights and add noise.

    Args:
        model: What is to be damaged; not changed.
        fresh: The noise, a network of the same architecture.
        alpha: See `Settings`.
        beta: See `Settings`.

    Returns:
        (1 - alpha) * model + alpha * beta * fresh, with the model's buffers.
    """
    work = copy.deepcopy(model)
    with torch.no_grad():
        for mine, noise in zip(work.parameters(), fresh.parameters(), strict=True):
            mine.mul_(1 - alpha).add_(alpha * beta * noise)
    return work


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Teach the original to hide the class, damage that, and distil it on retained images.

    Args:
        model: The original; not changed.
        subject: What to forget; its network makes the noise.
        mask: What may change, in suppression, damage and distillation; None allows every parameter.
        seed: Of labels, noise and the order of the images.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`; suppression and damage are the first step.

    Returns:
        The edited model, in evaluation mode.
    """
    kept = subject.gold_train
    check_batch(model, mask, min(settings.batch, len(kept)))
    suppression = random_labels.Settings(settings.steps, settings.batch, settings.lr)
    teacher = random_labels.run(model, subject, mask, seed, suppression)
    start = damaged(teacher, seeded(subject.network.make, FRESH + seed), settings.alpha, settings.beta)
    restore_outside(start, model, mask)
    opinion = logits_of(teacher, kept.images).log_softmax(1)

    def loss(work: nn.Module, item: tuple[torch.Tensor, ...]) -> torch.Tensor:
        images, wanted = item
        return (wanted.exp() * (wanted - work(images).log_softmax(1))).sum(1).mean()

    return descend(
        model,
        batches((kept.images, opinion), settings.batch, settings.steps, seed),
        loss,
        mask,
        falling(settings.lr, settings.steps),
        watch=watch,
        start=start,
        adapt=True,
    )
