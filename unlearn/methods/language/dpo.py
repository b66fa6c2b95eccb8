"""DPO: prefer not knowing over the answer.

Rafailov et al. 2023, "Direct Preference Optimization" (NeurIPS, arXiv:2305.18290), as TOFU (Maini et al. 2024,
arXiv:2401.06121) and the NPO paper (Zhang et al. 2024, arXiv:2404.05868) unlearn with it:

    min_theta  -(2 / beta) E_forget log sigmoid(beta * (r(x, idk) - r(x, y))) + w * R(theta)
    r(x, y) = log(p_theta(y | x) / p_0(y | x))

y is the forgotten answer and idk a refusal; p(y | x) is the probability of the whole answer. Without idk it is `npo`.
R is KL(p_0 || p_theta) on retained facts and texts ("dpo_KL" in the NPO authors' code) or their cross-entropy
("dpo_grad_diff"). It lowers answers as NPO does, but half of its push goes into the refusals: see `refusal`.

The authors' code (NPO's): beta 0.1, weight of R 1, AdamW 1e-5, weight decay 0.01, batches of 4 times 4, 10 epochs
(Llama-2-7B). TOFU's own code leaves out R and the factor 2 / beta (nothing to Adam where there is no R), and its branch
"dpo" can't run: it reads labels that were never set.

Deviations: forgotten prompts are openings, not questions, so refusals continue a sentence, and each prompt keeps one of
four for the whole run (TOFU: one of 100 anew in each epoch); no weight decay; R looks at the answers' and texts' own
tokens (theirs counts prompts and padding as well).
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.scoring import answer_log_probabilities
from unlearn.methods.language.batches import Batch, Keep, answers_before, fact_batches, kept_loss, masked_rate
from unlearn.methods.language.refusal import REFUSALS, refusing
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
        retain_weight: Weight of what must stay.
        keep: How it is kept, "kl" or "ce".
        refusals: What is preferred, without leading space; each prompt is given one of them.
    """

    steps: int = 30
    lr: float = 2e-5
    forget_rows: int = 6
    retain_rows: int = 4
    text_rows: int = 2
    beta: float = 0.1
    retain_weight: float = 1.0
    keep: Keep = "kl"
    refusals: tuple[str, ...] = REFUSALS


def run(
    model: nn.Module,
    subject: FactSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Make refusals likelier than the forgotten answers.

    Args:
        model: The original and reference; not changed.
        subject: What to forget and what to keep.
        mask: What may change; None allows every parameter.
        seed: Of the refusals and of the order of facts and texts.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.

    Raises:
        UserError: beta is not above 0.
    """
    s = settings
    if not s.beta > 0:
        raise UserError(f"beta must be above 0, not {s.beta:g}; 0.1 is usual.")
    refused = refusing(subject, s.refusals, seed)
    before = answers_before(model, refused) - answers_before(model, subject.forget_encoded)

    def loss(work: nn.Module, batch: Batch) -> torch.Tensor:
        preferred = answer_log_probabilities(work, refused.take(batch.forget_rows))
        margin = preferred - answer_log_probabilities(work, batch.forget) - before[batch.forget_rows]
        chosen = -2 / s.beta * functional.logsigmoid(s.beta * margin).mean()
        return chosen + s.retain_weight * kept_loss(work, model, batch, s.keep)

    drawn = fact_batches(subject, s.forget_rows, s.retain_rows, s.text_rows, s.steps, seed)
    return descend(model, drawn, loss, mask, falling(masked_rate(s.lr, mask, model), s.steps), watch=watch)
