"""SatImp: gradient ascent on the tokens that are neither forgotten yet nor plain to everybody.

Yang et al. 2025, "Exploring Criteria of Loss Reweighting to Enhance LLM Unlearning" (ICML, arXiv:2505.11953):

    min_theta  E_forget w_t log p(y_t | x, y_<t) + w * R(theta),   w_t = p_t^beta1 * (1 - p_t)^beta2

w_t stands still in the gradient. The first factor is saturation (what is unlikely by now is left alone, as in `wga`),
the second stands for importance: a token that is certain, such as the rest of a word, tells little. R is the
cross-entropy of retained facts and texts (the authors' "satimp_gd") or, by `keep` = "kl", their KL(p_0 || p_theta).

The authors recommend beta1 5 and beta2 0.1 in their README, for models fine-tuned on the answers until they are nearly
certain; weight of R 0.1, AdamW 2e-5, batches of 4 times 4, 5 epochs, no decay (Phi-1.5); the port to OpenUnlearning has
beta2 1. Their "satimp" has no R, and both fail where no beta1 is given, since the word "None" is then the exponent.

Deviations: beta1 is 1, because a pretrained model's facts are seldom near certain and p^5 would leave most of them
alone; w is 1, as in the other methods here; R looks at the answers' and texts' own tokens, and at both alike.
"""

from dataclasses import dataclass

import torch
from torch import nn

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.language.facts import FactSubject
from unlearn.methods.language.batches import Batch, Keep, fact_batches, kept_loss, masked_rate
from unlearn.methods.language.wga import weighted
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
        beta1: The paper's power of saturation, at least 0.
        beta2: The paper's power of importance, at least 0; 0 is `wga` with alpha = beta1.
        retain_weight: Weight of what must stay.
        keep: How it is kept, "ce" or "kl".
    """

    steps: int = 30
    lr: float = 2e-5
    forget_rows: int = 6
    retain_rows: int = 4
    text_rows: int = 2
    beta1: float = 1.0
    beta2: float = 0.1
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
    """Raise the loss on those tokens of the forgotten answers that are worth it.

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
        UserError: One of the powers is below 0.
    """
    s = settings
    if min(s.beta1, s.beta2) < 0:
        raise UserError(
            f"beta1 and beta2 must be at least 0, not {s.beta1:g} and {s.beta2:g}; the paper has 5 and 0.1."
        )

    def loss(work: nn.Module, batch: Batch) -> torch.Tensor:
        lowered = weighted(work, batch.forget, lambda p: p**s.beta1 * (1 - p) ** s.beta2)
        return lowered + s.retain_weight * kept_loss(work, model, batch, s.keep)

    drawn = fact_batches(subject, s.forget_rows, s.retain_rows, s.text_rows, s.steps, seed)
    return descend(model, drawn, loss, mask, falling(masked_rate(s.lr, mask, model), s.steps), watch=watch)
