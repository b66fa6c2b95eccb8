"""WGA: gradient ascent whose tokens count the less, the less likely they have become.

Wang et al. 2025, "Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond" (ICLR,
arXiv:2502.19301):

    min_theta  E_forget w_t log p_theta(y_t | x, y_<t) + w * R(theta),   w_t = p_theta(y_t | x, y_<t)^alpha

w_t stands still in the gradient. That of log p is 1/p times that of p, so plain ascent pushes hardest where nothing is
left to forget; alpha 1 cancels the 1/p, and a higher one fades sooner. R is KL(p_0 || p_theta) on retained facts and
texts (the authors' "wga_kl") or, by `keep` = "ce", their cross-entropy.

The authors' code: alpha 5 where none is given, weight of R 1, AdamW 2e-5, batches of 4 times 4, 5 epochs, no decay
(Phi-1.5). Deviations: alpha is 1, as in the port to OpenUnlearning: of a pretrained model's facts most tokens are far
from certain, and p^5 would leave only those that are. R looks at the retained answers' and texts' own tokens; in the
authors' code prompts and padding count too.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.language.encoding import Encoded
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.scoring import token_log_probabilities
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
        alpha: Power of a token's probability in its weight, at least 0; 0 is gradient ascent without a ceiling.
        retain_weight: Weight of what must stay.
        keep: How it is kept, "kl" or "ce".
    """

    steps: int = 30
    lr: float = 2e-5
    forget_rows: int = 6
    retain_rows: int = 4
    text_rows: int = 2
    alpha: float = 1.0
    retain_weight: float = 1.0
    keep: Keep = "kl"


def weighted(model: nn.Module, answers: Encoded, weight: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Give what a reweighted ascent minimises; differentiable.

    Args:
        model: The working model.
        answers: Forgotten prompts with their answers.
        weight: Gives a token's weight by its probability; its gradient is not taken.

    Returns:
        Mean over asked tokens of weight times log p, a scalar in nats.
    """
    found, _ = token_log_probabilities(model, answers)
    return (weight(found.detach().exp()) * found).mean()


def run(
    model: nn.Module,
    subject: FactSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Raise the loss on the forgotten answers, most where they are likely.

    Args:
        model: The original; not changed.
        subject: What to forget and what to keep.
        mask: What may change; None allows every parameter.
        seed: Of the order of facts and texts.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.

    Raises:
        UserError: alpha is below 0.
    """
    if settings.alpha < 0:
        raise UserError(f"alpha must be at least 0, not {settings.alpha:g}: below, unlikely tokens would count more.")
    sizes = settings.forget_rows, settings.retain_rows, settings.text_rows

    def loss(work: nn.Module, batch: Batch) -> torch.Tensor:
        lowered = weighted(work, batch.forget, lambda p: p**settings.alpha)
        return lowered + settings.retain_weight * kept_loss(work, model, batch, settings.keep)

    drawn = fact_batches(subject, *sizes, settings.steps, seed)
    lr = masked_rate(settings.lr, mask, model)
    return descend(model, drawn, loss, mask, falling(lr, settings.steps), watch=watch)
