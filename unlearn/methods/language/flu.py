"""FLU: train only the MLPs that look facts up, so that the fact is gone before anything can read it.

Guo et al. 2025, "Mechanistic Unlearning: Robust Knowledge Unlearning and Editing via Mechanistic Localization" (ICML,
arXiv:2410.12949), fact lookup localisation:

    min_theta(lookup)  F(theta) + w * (CE_retain(theta) + CE_text(theta)) / 2
    F = -E_forget mean_t log(1 - p_theta(y_t | x, y_<t))   or, by `inject`, CE of one wrong answer for each fact

theta(lookup) are all weights of the MLPs in the early blocks that enrich a subject with its attributes. Weights that
are located by what they do to the output tend to lie where facts are read out: the edit then hides more than it erases.
The losses alone are nothing new, the place is the method, so a mask is cut to it.

The authors' code: blocks 2 to 7 of 28 in Gemma-7B, 2 to 6 of 42 in Gemma-2-9B and 1 to 4 of 32 in Llama-3-8B; weights
1, 1 and 1 (which is w = 2), AdamW without decay, 1e-5 falling as a cosine over 50 steps of 64 prompts, gradients
clipped at 1, tokens with log p below -5 left alone in log(1 - p).

Deviations: they looked for the lookup in each model; here its place is taken over from theirs, untested, as the means
of where it began and ended (shares .05 and .17 of the depth, `first` and `last`). All tokens of an answer count, not
its first alone. The rate falls linearly, nothing is clipped, and under a mask it is raised (see `masked_rate`).
"""

from dataclasses import dataclass

import torch
from torch import nn

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.language.encoding import IGNORED, Encoded
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.scoring import mean_loss
from unlearn.methods.language.batches import Batch, asked_logits, fact_batches, kept_loss, masked_rate
from unlearn.methods.language.blocks import blocks_of, mlp_mask
from unlearn.optimize import Watch, check_mask, descend, falling

LEAST = -5.0


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps.
        lr: Adam's learning rate at the first step, for all weights; see `masked_rate`.
        forget_rows: Prompts of forgotten facts a step.
        retain_rows: Prompts of retained facts a step.
        text_rows: Texts a step.
        first: Where lookup begins, as a share of the depth, 0 to 1.
        last: Where it ends, as a share of the depth; the block there belongs to it.
        inject: Teach one wrong answer for each fact instead of making the right one unlikely.
        retain_weight: Weight of what must stay.
    """

    steps: int = 30
    lr: float = 2e-5
    forget_rows: int = 6
    retain_rows: int = 4
    text_rows: int = 2
    first: float = 0.05
    last: float = 0.17
    inject: bool = False
    retain_weight: float = 2.0


def lookup_layers(count: int, first: float, last: float) -> range:
    """Say which blocks look facts up.

    Args:
        count: Blocks there are.
        first: See `Settings`.
        last: See `Settings`.

    Returns:
        Their numbers, at least one; never the first block, if there is another: it makes the embeddings what they are.

    Raises:
        UserError: The shares are in the wrong order or outside of 0 and 1.
    """
    if not 0 <= first <= last <= 1:
        raise UserError(
            f"Lookup can't lie between shares {first:g} and {last:g} of the depth; 0.05 and 0.17 are usual."
        )
    start = min(max(1, round(first * count)), count - 1)
    return range(start, max(start, min(round(last * count), count - 1)) + 1)


def unlikely(model: nn.Module, answers: Encoded) -> torch.Tensor:
    """Measure how likely answers are by log(1 - p); differentiable.

    Args:
        model: The working model.
        answers: Forgotten prompts with their answers.

    Returns:
        Mean over asked tokens of -log(1 - p), a scalar in nats; 0 for those that are unlikely enough.
    """
    logits = asked_logits(model, answers)
    right = answers.labels[answers.labels != IGNORED][:, None].to(logits.device)
    # The others' sum, not 1 - p: that is 0 to the last digit where the answer is certain.
    others = logits.scatter(1, right, -torch.inf).logsumexp(1)
    return -torch.where(logits.gather(1, right).squeeze(1) < LEAST, 0.0, others).mean()


def wrong_answers(subject: FactSubject, seed: int) -> Encoded:
    """Write a wrong answer behind the forgotten prompts, the same for all prompts of a fact.

    Args:
        subject: What to forget.
        seed: Of which distractor.

    Returns:
        One row for each row of `subject.forget_encoded`.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for fact in subject.forget:
        wrong = fact.distractors[int(torch.randint(len(fact.distractors), (), generator=generator))]
        pairs += [(prompt, wrong) for prompt in fact.train]
    return subject.encode(pairs)


def run(
    model: nn.Module,
    subject: FactSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Unlearn in the MLPs that look facts up.

    Args:
        model: The original; not changed.
        subject: What to forget and what to keep.
        mask: What may change; None allows all of these MLPs, and of a mask only its part of them is used.
        seed: Of the wrong answers and of the order of facts and texts.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.

    Raises:
        UserError: The mask allows nothing of these MLPs.
    """
    s = settings
    layers = lookup_layers(len(blocks_of(model)), s.first, s.last)
    place = mlp_mask(model, layers)
    if mask is not None:
        check_mask(model, mask)
        place = place & mask
        if not place.count:
            raise UserError(
                f"The mask allows nothing of the MLPs in blocks {layers[0]} to {layers[-1]}, which look up."
            )
    wrong = wrong_answers(subject, seed) if s.inject else None

    def loss(work: nn.Module, batch: Batch) -> torch.Tensor:
        gone = unlikely(work, batch.forget) if wrong is None else mean_loss(work, wrong.take(batch.forget_rows))
        return gone + s.retain_weight * kept_loss(work, model, batch, "ce")

    drawn = fact_batches(subject, s.forget_rows, s.retain_rows, s.text_rows, s.steps, seed)
    return descend(model, drawn, loss, place, falling(masked_rate(s.lr, place, model), s.steps), watch=watch)
