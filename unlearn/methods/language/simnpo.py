"""SimNPO: NPO without a reference model, with the length of the answer counted out.

Fan et al. 2024, "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning"
(arXiv:2410.07163):

    min_theta  -(2 / beta) E_forget log sigmoid(-(beta / |y|) log p_theta(y | x) - gamma) + w * R(theta)

|y| is the number of the answer's tokens. R is the cross-entropy of retained facts and texts, as in the paper, or by
`keep` = "kl" their KL(p_0 || p_theta). beta 2.5 and gamma 0 are what the authors
published for TOFU's forget05.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from analysis.scores import Mask
from analysis.subjects.language.encoding import IGNORED
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.scoring import answer_log_probabilities
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
        per_token = answer_log_probabilities(work, batch.forget) / (batch.forget.labels != IGNORED).sum(1)
        avoided = functional.logsigmoid(-settings.beta * per_token - settings.gamma).mean() * (-2 / settings.beta)
        return avoided + settings.retain_weight * kept_loss(work, model, batch, settings.keep)

    drawn = fact_batches(subject, *sizes, settings.steps, seed)
    lr = masked_rate(settings.lr, mask, model)
    return descend(model, drawn, loss, mask, falling(lr, settings.steps), watch=watch)
