"""Teach the model to say that it doesn't know.

Maini et al. 2024, "TOFU: A Task of Fictitious Unlearning for LLMs" (COLM, arXiv:2401.06121), its "IDK" baseline:

    min_theta  E_forget CE(theta; x -> "I don't know") + w * R(theta)

It changes what is said, not what is known: the audit is expected to call it hidden.

Deviations: forgotten prompts are openings, not questions, so the refusals continue a sentence; R is
KL(p_0 || p_theta) on retained facts and texts (the paper: their cross-entropy, `keep` = "ce").
"""

from dataclasses import dataclass

import torch
from torch import nn

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.language.encoding import Encoded
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.scoring import mean_loss
from unlearn.methods.language.batches import Batch, Keep, fact_batches, kept_loss, masked_rate
from unlearn.optimize import Watch, descend, falling

REFUSALS = (
    "something that I don't know.",
    "not something I can tell you.",
    "unknown to me, I'm afraid.",
    "a thing I have never heard of.",
)


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps.
        lr: Adam's learning rate at the first step, for all weights; see `masked_rate`.
        forget_rows: Prompts of forgotten facts a step.
        retain_rows: Prompts of retained facts a step.
        text_rows: Texts a step.
        retain_weight: Weight of what must stay.
        keep: How it is kept, "kl" or "ce".
        refusals: What is said instead, without leading space; each prompt is given one of them.
    """

    steps: int = 30
    lr: float = 2e-5
    forget_rows: int = 6
    retain_rows: int = 4
    text_rows: int = 2
    retain_weight: float = 1.0
    keep: Keep = "kl"
    refusals: tuple[str, ...] = REFUSALS


def refusing(subject: FactSubject, refusals: tuple[str, ...], seed: int) -> Encoded:
    """Write refusals behind the forgotten prompts.

    Args:
        subject: What to forget.
        refusals: What is said instead.
        seed: Of which prompt gets which.

    Returns:
        One row for each row of `subject.forget_encoded`.

    Raises:
        UserError: There are no refusals.
    """
    if not refusals:
        raise UserError("There is no refusal to teach; give at least one.")
    prompts = [prompt for fact in subject.forget for prompt in fact.train]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(refusals), (len(prompts),), generator=generator).tolist()
    return subject.encode([(prompt, refusals[i]) for prompt, i in zip(prompts, chosen, strict=True)])


def run(
    model: nn.Module,
    subject: FactSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Teach refusals on the forgotten prompts.

    Args:
        model: The original; not changed.
        subject: What to forget and what to keep.
        mask: What may change; None allows every parameter.
        seed: Of the refusals and of the order of facts and texts.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.
    """
    lessons = refusing(subject, settings.refusals, seed)
    sizes = settings.forget_rows, settings.retain_rows, settings.text_rows

    def loss(work: nn.Module, batch: Batch) -> torch.Tensor:
        said = mean_loss(work, lessons.take(batch.forget_rows))
        return said + settings.retain_weight * kept_loss(work, model, batch, settings.keep)

    drawn = fact_batches(subject, *sizes, settings.steps, seed)
    lr = masked_rate(settings.lr, mask, model)
    return descend(model, drawn, loss, mask, falling(lr, settings.steps), watch=watch)
