"""UNDIAL: learn from oneself, with the right answer's logit turned down.

Dong et al. 2024, "UNDIAL: Self-Distillation with Adjusted Logits for Robust Unlearning in Large Language Models"
(NAACL 2025, arXiv:2402.10052):

    min_theta  E_forget mean_t CE(softmax(z_0(t) - gamma * onehot(y_t)), p_theta( . | x, y_<t)) + w * R(theta)

z_0 are the original's logits, gamma is the strength. Unlike ascent the target is fixed and bounded: the answer's odds
fall to exp(-gamma) of what they were, and whatever else was likely takes its place in proportion.

The authors' code: strength 5 where none is given, 3 in its README, 3, 10 and 30 tried; AdamW, half precision, 10 epochs
at a learning rate of 1e-6 for GPT-Neo 125M, up to 100 at 5e-6 with LoRA for 1.3B.

Deviations: the teacher is the original itself. In the authors' code it is `--teacher_model`, whose default is GPT-Neo
125M, and none of its experiments sets another: larger models are taught by that small one. Taught are the answers'
tokens; the authors teach whole memorised texts, padding included, and the port to OpenUnlearning also prompts and
padding, where the ignored label -100 turns down an unrelated token of the vocabulary. The paper keeps nothing else
(w = 0); here w is 1, and R the KL(p_0 || p_theta) on retained facts and texts, as in the methods this stands beside.
"""

from dataclasses import dataclass

import torch
from torch import nn

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.language.encoding import IGNORED, Encoded
from analysis.subjects.language.facts import FactSubject
from unlearn.methods.language.batches import Batch, Keep, asked_logits, fact_batches, kept_loss, masked_rate
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
        strength: By how much the right token's logit is turned down, above 0.
        retain_weight: Weight of what must stay; 0 is the paper.
        keep: How it is kept, "kl" or "ce".
    """

    steps: int = 30
    lr: float = 2e-5
    forget_rows: int = 6
    retain_rows: int = 4
    text_rows: int = 2
    strength: float = 5.0
    retain_weight: float = 1.0
    keep: Keep = "kl"


@torch.no_grad()
def turned_down(original: nn.Module, answers: Encoded, strength: float) -> torch.Tensor:
    """Ask the teacher, with the right tokens' logits turned down.

    Args:
        original: The teacher.
        answers: Forgotten prompts with their answers.
        strength: By how much.

    Returns:
        Probabilities [m, vocabulary], one row for each asked token in reading order, without graph.
    """
    logits = asked_logits(original, answers)
    right = answers.labels[answers.labels != IGNORED][:, None].to(logits.device)
    return logits.scatter_add(1, right, torch.full_like(logits[:, :1], -strength)).softmax(1)


def run(
    model: nn.Module,
    subject: FactSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Teach the model its own predictions without the forgotten answers.

    Args:
        model: The original and teacher; not changed.
        subject: What to forget and what to keep.
        mask: What may change; None allows every parameter.
        seed: Of the order of facts and texts.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.

    Raises:
        UserError: The strength is not above 0.
    """
    s = settings
    if not s.strength > 0:
        raise UserError(f"The strength must be above 0, not {s.strength:g}, or the answers would stay as they are.")

    def loss(work: nn.Module, batch: Batch) -> torch.Tensor:
        target = turned_down(model, batch.forget, s.strength)
        taught = -(target * asked_logits(work, batch.forget)).sum(1).mean()
        return taught + s.retain_weight * kept_loss(work, model, batch, s.keep)

    drawn = fact_batches(subject, s.forget_rows, s.retain_rows, s.text_rows, s.steps, seed)
    return descend(model, drawn, loss, mask, falling(masked_rate(s.lr, mask, model), s.steps), watch=watch)
