"""Gradient ascent on the forgotten answers, descent on what must stay.

Liu et al. 2022, "Continual Learning and Private Unlearning" (CoLLAs, arXiv:2203.12817), as TOFU (Maini et al.
2024, arXiv:2401.06121) writes it for language models:

    min_theta  E_forget log p_theta(y | x) + w * E_retain CE(theta)

With `keep` = "kl" the rest is held by E_retain KL(p_0 || p_theta) instead: TOFU's "KL minimisation", registered as
`kl`. The authors' code: w 1 for both, AdamW 1e-5, weight decay 0.01, batches of 16 times 4, 5 epochs (Llama-2-7B).

Deviations: the ascent of an answer ends at a ceiling, as in `gradient_ascent`, and is that of the whole answer, not of
its mean token; no weight decay; retained data is the subject's retained facts and its texts, half and half; their KL is
taken where their answers and texts are predicted (in TOFU's code prompts and padding count as much).
"""

from dataclasses import dataclass

import torch
from torch import nn

from analysis.scores import Mask
from analysis.subjects.language.facts import FactSubject
from unlearn.methods.language.batches import Batch, Keep, fact_batches, kept_loss, masked_rate
from unlearn.methods.language.gradient_ascent import raised
from unlearn.optimize import Watch, descend, falling


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps.
        lr: Adam's learning rate at the first step, for all weights; see `masked_rate`.
        forget_rows: Prompts of forgotten facts a step.
        retain_rows: Prompts of retained facts a step.
        text_rows: Texts a step.
        ceiling: -log p of a whole answer, in nats, at which its ascent ends.
        retain_weight: Weight of what must stay.
        keep: How it is kept, "ce" or "kl".
    """

    steps: int = 30
    lr: float = 2e-5
    forget_rows: int = 6
    retain_rows: int = 4
    text_rows: int = 2
    ceiling: float = 6.9
    retain_weight: float = 1.0
    keep: Keep = "ce"


def run(
    model: nn.Module,
    subject: FactSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Raise the loss on the forgotten answers while keeping it low on what must stay.

    Args:
        model: The original; not changed.
        subject: What to forget and what to keep.
        mask: What may change; None allows every parameter.
        seed: Of the order of facts and texts.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.
    """
    sizes = settings.forget_rows, settings.retain_rows, settings.text_rows

    def loss(work: nn.Module, batch: Batch) -> torch.Tensor:
        kept = kept_loss(work, model, batch, settings.keep)
        return raised(work, batch.forget, settings.ceiling) + settings.retain_weight * kept

    drawn = fact_batches(subject, *sizes, settings.steps, seed)
    lr = masked_rate(settings.lr, mask, model)
    return descend(model, drawn, loss, mask, falling(lr, settings.steps), watch=watch)
