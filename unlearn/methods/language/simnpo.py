"""SimNPO: NPO without a reference model, with the length of the answer counted out.

Fan et al. 2024, "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning"
(arXiv:2410.07163):

    min_theta  -(2 / beta) E_forget log sigmoid(-(beta / |y|) log p_theta(y | x) - gamma) + w * R(theta)

|y| is the number of the answer's tokens. R is the cross-entropy of retained facts and texts, as in the paper, or by
`keep` = "kl" their KL(p_0 || p_theta).

The authors' code (TOFU, Llama-2-7B): for forget05 beta 2.5, gamma 0, forgetting weighted 0.1375 and R 1; for forget10
beta 4.5 and 0.125; AdamW 1e-5, weight decay 0.01, batches of 1 times 4 on 8 devices, 10 epochs. It puts gamma inside:
beta * (-log p / |y| - gamma), which is the equation with beta * gamma in gamma's place.

Deviations: both weights are 1, so forgetting weighs 7 times as much as theirs (`retain_weight` 7.3 is forget05's share,
since Adam sees shares only); gamma is the equation's; no weight decay; a rate that falls linearly, and under a mask is
raised (see `masked_rate`); retained data is facts and texts, half and half.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from analysis.scores import Mask
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.scoring import answer_means
from unlearn.methods.language.batches import Batch, Keep, fact_batches, kept_loss, masked_rate
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
        beta: The paper's inverse temperature, above 0.
        gamma: The paper's margin; the higher, the less likely an answer must be before its ascent fades.
        retain_weight: Weight of what must stay.
        keep: How it is kept, "ce" or "kl".
    """

    steps: int = 30
    lr: float = 2e-5
    forget_rows: int = 6
    retain_rows: int = 4
    text_rows: int = 2
    beta: float = 2.5
    gamma: float = 0.0
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
    """Make every token of the forgotten answers unlikely.

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
        per_token = answer_means(work, batch.forget)
        avoided = functional.logsigmoid(-settings.beta * per_token - settings.gamma).mean() * (-2 / settings.beta)
        return avoided + settings.retain_weight * kept_loss(work, model, batch, settings.keep)

    drawn = fact_batches(subject, *sizes, settings.steps, seed)
    lr = masked_rate(settings.lr, mask, model)
    return descend(model, drawn, loss, mask, falling(lr, settings.steps), watch=watch)
