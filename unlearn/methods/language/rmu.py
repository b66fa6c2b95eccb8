"""RMU: steer what the model thinks at the subject into a random direction, leave the rest where it was.

Li et al. 2024, "The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning" (ICML, arXiv:2403.03218),
section 4. With h(t) the output of block l at token t, h_0 the original's, u a random unit vector with entries >= 0:

    min_theta  E_forget mean_t |h(t) - c * u|^2 + alpha * E_retain mean_t |h(t) - h_0(t)|^2

Without a mask the MLP down projections of blocks l-2, l-1 and l are edited, as in the paper; with one, the mask.

The authors' run (Zephyr-7B, 32 blocks): l 7, so blocks 5 to 7, c 6.5, alpha 1200, AdamW 5e-5, 150 batches of 4, two
forget sets in turn, each with its own u; their code has c 20 and alpha 100 where none is given.

Deviations: c is a multiple of the original's mean norm at the steered tokens instead of a number to be found anew for
each model, and alpha, which has to fit it, is 10. A prompt's tokens are steered from the end of its subject on: what
stands before cannot know of whom it speaks. First tokens are left out on both sides, since models of the Llama kind
keep a far larger norm there. Padding is left out; the authors average over it. There is one u, the rate falls linearly,
and squares are summed over the width (theirs: averaged), which weighs both terms alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.language.encoding import Encoded
from analysis.subjects.language.facts import FactSubject
from unlearn.methods.language.batches import ROWS, Batch, fact_batches, joined, lengths_of, subject_ends
from unlearn.methods.language.blocks import blocks_of, check_layer, down_mask, down_projection, flowing
from unlearn.optimize import Watch, check_mask, descend, falling

EDITED = 3


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps.
        lr: Adam's learning rate at the first step.
        forget_rows: Prompts of forgotten facts a step.
        retain_rows: Prompts of retained facts a step.
        text_rows: Texts a step.
        layer: The block whose output is steered, from 0; None takes the one after a quarter of all, as in the paper.
        strength: Length of the vector steered to, in mean norms of the original's forgotten tokens.
        alpha: Weight of what must stay.
    """

    steps: int = 40
    lr: float = 1e-3
    forget_rows: int = 8
    retain_rows: int = 6
    text_rows: int = 4
    layer: int | None = None
    strength: float = 2.0
    alpha: float = 10.0


def chosen_layer(model: nn.Module, layer: int | None) -> int:
    """Choose the block whose output is steered.

    Args:
        model: The original.
        layer: The user's choice, or None.

    Returns:
        Its number; by default a quarter of the way up, high enough for three blocks.
    """
    count = len(blocks_of(model))
    default = min(max(EDITED - 1, round(count / 4)), count - 1)
    return check_layer(model, default if layer is None else layer)


def direction(width: int, seed: int) -> torch.Tensor:
    """Draw the direction to steer to.

    Args:
        width: Of the hidden states.
        seed: Of the draw.

    Returns:
        float64 [width], of length 1, entries at least 0, as in the paper's code.
    """
    drawn = torch.rand(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn / drawn.norm()


def between(encoded: Encoded, starts: torch.Tensor) -> torch.Tensor:
    """Mark tokens from a start to the end of their row.

    Args:
        encoded: The sequences.
        starts: int64 [n], the first token of each row that counts; a row's very first token never does.

    Returns:
        bool [n, t], False on padding.
    """
    place = torch.arange(encoded.ids.shape[1])
    return (place >= starts.clamp(min=1)[:, None]) & (place < lengths_of(encoded)[:, None])


def _mean_norm(model: nn.Module, block: nn.Module, encoded: Encoded, starts: torch.Tensor) -> float:
    norms = []
    with torch.no_grad():
        for at in range(0, len(encoded), ROWS):
            part = encoded.take(slice(at, at + ROWS))
            norms.append(flowing(model, block, part.ids, "out")[between(part, starts[at : at + ROWS])].norm(dim=1))
    return float(torch.cat(norms).mean())


def _check_reach(model: nn.Module, layer: int, mask: Mask) -> None:
    # Weights above the steered block have no influence on its output.
    above = {id(p) for block in list(blocks_of(model))[layer + 1 :] for p in block.parameters()}
    below = {name for name, p in model.named_parameters() if id(p) not in above}
    if not any(bool(bits.any()) for name, bits in mask.bits.items() if name in below):
        raise UserError(f"The mask allows nothing up to layer {layer}, where RMU steers; choose a higher layer.")


Item = tuple[Batch, Encoded, torch.Tensor]


def run(
    model: nn.Module,
    subject: FactSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Steer the subject's hidden states away, keep the others.

    Args:
        model: The original; not changed.
        subject: What to forget and what to keep.
        mask: What may change; None allows the down projections of three blocks.
        seed: Of the direction and of the order of facts and texts.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.
    """
    layer = chosen_layer(model, settings.layer)
    if mask is None:
        mask = down_mask(model, range(max(0, layer - EDITED + 1), layer + 1))
    check_mask(model, mask)
    _check_reach(model, layer, mask)
    ends, block = subject_ends(subject), blocks_of(model)[layer]
    length = settings.strength * _mean_norm(model, block, subject.forget_encoded, ends)
    like, width = next(model.parameters()), down_projection(model, layer)[2].shape[0]
    target = (length * direction(width, seed)).to(like)
    sizes = settings.forget_rows, settings.retain_rows, settings.text_rows

    def drawn() -> Iterator[Item]:
        for batch in fact_batches(subject, *sizes, settings.steps, seed):
            kept = joined(batch.retain, batch.texts)
            with torch.no_grad():  # ends before the yield, or the step itself would run without gradients
                before = flowing(model, block, kept.ids, "out")
            yield batch, kept, before

    def loss(work: nn.Module, item: Item) -> torch.Tensor:
        batch, kept, before = item
        mine = blocks_of(work)[layer]
        steered = between(batch.forget, ends[batch.forget_rows])
        away = (flowing(work, mine, batch.forget.ids, "out")[steered] - target).square().sum(1).mean()
        held = between(kept, torch.zeros(len(kept), dtype=torch.long))
        moved = functional.mse_loss(flowing(work, mine, kept.ids, "out")[held], before[held], reduction="sum")
        return away + settings.alpha * moved / held.sum()

    return descend(model, drawn(), loss, mask, falling(settings.lr, settings.steps), watch=watch)
