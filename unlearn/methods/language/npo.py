"""NPO: negative preference optimisation, an ascent that fades where an answer is already unlikely.

Zhang et al. 2024, "Negative Preference Optimization" (COLM, arXiv:2404.05868), eq. 3:

    min_theta  -(2 / beta) E_forget log sigmoid(-beta log(p_theta(y | x) / p_0(y | x))) + w * R(theta)

p_0 is the original and p(y | x) the probability of the whole answer. R keeps the rest: KL(p_0 || p_theta) on retained
facts and texts (the paper's NPO+KL, default) or their cross-entropy (NPO+RT).

The authors' code (TOFU, Llama-2-7B): beta 0.1, weights 1 of both losses, NPO+RT where nothing is chosen; AdamW 1e-5,
weight decay 0.01, batches of 4 times 4, 10 epochs, the first of them warm-up.

Deviations: no weight decay, no warm-up, a rate that falls linearly and is raised under a mask (see `masked_rate`); the
original is a pretrained model, not one fine-tuned on what it shall forget; retained data is facts and texts, half and
half; the KL is taken where their answers and texts are predicted (in the authors' code prompts and padding count too).
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from analysis.scores import Mask
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.scoring import answer_log_probabilities
from unlearn.methods.language.batches import Batch, Keep, answers_before, fact_batches, kept_loss, masked_rate
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
        beta: The paper's inverse temperature, above 0; towards 0 it becomes gradient ascent.
        retain_weight: Weight of what must stay.
        keep: How it is kept, "kl" or "ce".
    """

    steps: int = 30
    lr: float = 2e-5
    forget_rows: int = 6
    retain_rows: int = 4
    text_rows: int = 2
    beta: float = 0.1
    retain_weight: float = 1.0
    keep: Keep = "kl"


def run(
    model: nn.Module,
    subject: FactSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Make the forgotten answers less likely than the original found them.

    Args:
        model: The original and reference; not changed.
        subject: What to forget and what to keep.
        mask: What may change; None allows every parameter.
        seed: Of the order of facts and texts.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.
    """
    before = answers_before(model, subject.forget_encoded)
    sizes = settings.forget_rows, settings.retain_rows, settings.text_rows

    def loss(work: nn.Module, batch: Batch) -> torch.Tensor:
        ratio = answer_log_probabilities(work, batch.forget) - before[batch.forget_rows]
        avoided = -2 / settings.beta * functional.logsigmoid(-settings.beta * ratio).mean()
        return avoided + settings.retain_weight * kept_loss(work, model, batch, settings.keep)

    drawn = fact_batches(subject, *sizes, settings.steps, seed)
    lr = masked_rate(settings.lr, mask, model)
    return descend(model, drawn, loss, mask, falling(lr, settings.steps), watch=watch)
