"""SSD: shrink the weights that matter more for the forgotten facts than for what must stay.

Foster et al. 2024, "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening" (AAAI,
arXiv:2308.07707):

    theta_i <- min(lambda * D_i / F_i, 1) * theta_i   where F_i > alpha * D_i

F and D are diagonals of the empirical Fisher information: of whole answers to forgotten prompts, and of retained
answers and texts.

Deviations: squares are per sequence (the authors' code squares batch gradients). What the model was trained on isn't
at hand, so D comes from the retained facts and texts alone. `alpha` None takes the largest alpha, each half the
last, at which the mean probability of the forgotten training answers is at most `target` of what it was (in the spirit
of Schoepf et al. 2024, arXiv:2402.10098).
"""

from dataclasses import dataclass

import torch
from torch import nn

from analysis.attribution.fisher import fisher_diagonal
from analysis.scores import Mask
from analysis.subjects.language.encoding import Encoded
from analysis.subjects.language.facts import FactSubject
from unlearn.methods.language.batches import answers_before, drawn_rows
from unlearn.methods.ssd import dampened
from unlearn.optimize import Watch, check_mask

LADDER = tuple(2.0**power for power in range(16, -4, -1))
CHUNK = 4


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        alpha: How many times more important for the forgotten facts than for the rest a weight must be to be
            dampened; None chooses it.
        dampening: The paper's lambda; the lower, the closer to zero.
        target: Share of the original's mean probability of the forgotten training answers that ends the choice.
        rows: Prompts of forgotten facts, of retained facts, and texts, at most, that the Fisher informations are
            taken from.
    """

    alpha: float | None = None
    dampening: float = 1.0
    target: float = 0.1
    rows: int = 16


def _fisher(model: nn.Module, encoded: Encoded, rows: int, seed: int) -> tuple[dict[str, torch.Tensor], int]:
    part = encoded.take(drawn_rows(len(encoded), rows, 1, seed)[0])
    return dict(fisher_diagonal(model, part.ids, part.labels, chunk=CHUNK).values), len(part)


def run(
    model: nn.Module,
    subject: FactSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Dampen the weights of the forgotten facts.

    Args:
        model: The original; not changed.
        subject: What to forget and what to keep.
        mask: What may change; None allows every parameter.
        seed: Of which facts and texts the Fisher informations are taken from.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`; the dampening is the only step.

    Returns:
        The edited model, in evaluation mode.
    """
    if mask is not None:
        check_mask(model, mask)
    forgotten, _ = _fisher(model, subject.forget_encoded, settings.rows, seed)
    facts, many = _fisher(model, subject.retain_encoded, settings.rows, seed)
    texts, more = _fisher(model, subject.texts_encoded, settings.rows, seed)
    kept = {name: (facts[name] * many + texts[name] * more) / (many + more) for name in facts}
    enough = settings.target * float(answers_before(model, subject.forget_encoded).exp().mean())
    work = model
    for alpha in LADDER if settings.alpha is None else (settings.alpha,):
        work = dampened(model, kept, forgotten, alpha, settings.dampening, mask)
        if float(answers_before(work, subject.forget_encoded).exp().mean()) <= enough:
            break
    if watch:
        watch(0, model)
        watch(1, work)
    return work
