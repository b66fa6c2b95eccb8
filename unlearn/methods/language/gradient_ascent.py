"""Gradient ascent on the forgotten answers alone.

Jang et al. 2023, "Knowledge Unlearning for Mitigating Privacy Risks in Language Models" (ACL, arXiv:2210.01504):

    min_theta  E_forget sum_t log p_theta(y_t | x, y_<t)

Deviations: the sum goes over the answer's tokens, not over the prompt's, which tell nothing about the subject. The
ascent of an answer ends at the ceiling c, max(log p, -c); the paper stops the whole run when extraction gets as hard
as on unseen text. Without either the weights run away. c = 6.9 leaves an answer 0.1%; a much higher one gives the
over-forgetting ("Streisand") control. Nothing keeps the rest: see `gradient_difference`.
"""

from dataclasses import dataclass

import torch
from torch import nn

from analysis.scores import Mask
from analysis.subjects.language.encoding import Encoded
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.scoring import answer_log_probabilities
from unlearn.methods.language.batches import drawn_rows, masked_rate
from unlearn.optimize import Watch, descend, falling


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps.
        lr: Adam's learning rate at the first step, for all weights; see `masked_rate`.
        forget_rows: Prompts of forgotten facts a step.
        ceiling: -log p of a whole answer, in nats, at which its ascent ends.
    """

    steps: int = 30
    lr: float = 1e-5
    forget_rows: int = 8
    ceiling: float = 6.9


def raised(model: nn.Module, answers: Encoded, ceiling: float) -> torch.Tensor:
    """Give what ascent minimises; differentiable.

    Args:
        model: The working model.
        answers: Forgotten prompts with their answers.
        ceiling: See `Settings`.

    Returns:
        Mean over answers of max(log p, -ceiling), a scalar in nats.
    """
    return answer_log_probabilities(model, answers).clamp(min=-ceiling).mean()


def run(
    model: nn.Module,
    subject: FactSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Raise the loss on the forgotten answers.

    Args:
        model: The original; not changed.
        subject: What to forget.
        mask: What may change; None allows every parameter.
        seed: Of the order of the facts.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.
    """
    gone = subject.forget_encoded
    drawn = drawn_rows(len(gone), settings.forget_rows, settings.steps, seed)

    def loss(work: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        return raised(work, gone.take(rows), settings.ceiling)

    lr = masked_rate(settings.lr, mask, model)
    return descend(model, drawn, loss, mask, falling(lr, settings.steps), watch=watch)
