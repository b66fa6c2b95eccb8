"""Task-vector negation: learn the forgotten answers even better, then walk as far the other way.

Ilharco et al. 2023, "Editing Models with Task Arithmetic" (ICLR, arXiv:2212.04089), section 3, forgetting via negation:

    theta = theta_0 - scale * (theta_ft - theta_0),   theta_ft = argmin_theta E_forget CE(theta), from theta_0

Only the fine-tuning looks at data, and at nothing that must stay.

The authors' code applies a negated vector with scale 0.5 in its example (MNIST out of a CLIP ViT-L/14) and 1 where none
is given; the baseline of MUSE (Shi et al. 2024, arXiv:2407.06460) has 1. How far to fine-tune is up to the user there.

Deviations: the fine-tuned model moves within the mask only, so that its vector does; cross-entropy is that of the
answers' tokens. A watcher sees what negation would give after each step, never the fine-tuned model.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.scoring import mean_loss
from unlearn.methods.language.batches import drawn_rows, masked_rate
from unlearn.optimize import Diverged, Watch, descend, falling


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps of the fine-tuning.
        lr: Adam's learning rate at the first step, for all weights; see `masked_rate`.
        forget_rows: Prompts of forgotten facts a step.
        scale: How far to walk back, in task vectors, above 0.
    """

    steps: int = 30
    lr: float = 2e-5
    forget_rows: int = 8
    scale: float = 1.0


@torch.no_grad()
def negated(model: nn.Module, tuned: nn.Module, scale: float) -> nn.Module:
    """Walk from a model away from its fine-tuned copy.

    Args:
        model: The original; not changed.
        tuned: The copy; not changed.
        scale: How far, in differences between the two.

    Returns:
        A new model, in evaluation mode; what both have alike it has too, bit by bit.
    """
    work = copy.deepcopy(model).eval()
    for mine, learnt in zip(work.parameters(), tuned.parameters(), strict=True):
        mine.copy_(torch.where(learnt == mine, mine, mine - scale * (learnt - mine)))
    return work


def run(
    model: nn.Module,
    subject: FactSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Fine-tune on the forgotten answers and negate what that changed.

    Args:
        model: The original; not changed.
        subject: What to forget.
        mask: What may change; None allows every parameter.
        seed: Of the order of the facts.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.

    Raises:
        UserError: The scale is not above 0.
        Diverged: The fine-tuning left the finite numbers; its `model` is the negation of the last good one.
    """
    if not settings.scale > 0:
        raise UserError(f"The scale must be above 0, not {settings.scale:g}; 1 walks as far back as tuning went ahead.")
    gone = subject.forget_encoded
    drawn = drawn_rows(len(gone), settings.forget_rows, settings.steps, seed)

    def loss(work: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        return mean_loss(work, gone.take(rows))

    def show(step: int, tuned: nn.Module) -> None:
        if watch:
            watch(step, negated(model, tuned, settings.scale))

    lr = masked_rate(settings.lr, mask, model)
    try:
        tuned = descend(model, drawn, loss, mask, falling(lr, settings.steps), watch=show)
    except Diverged as error:
        raise Diverged(negated(model, error.model, settings.scale), error.step) from error
    return negated(model, tuned, settings.scale)
