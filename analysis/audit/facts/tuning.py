"""Plain fine-tuning of a copy: what attackers do, and what plants facts."""

import copy
from collections.abc import Iterable

import torch
from torch import nn

from analysis.subjects.language.encoding import Encoded
from analysis.subjects.language.scoring import mean_loss


@torch.enable_grad()
def fine_tuned(model: nn.Module, batches: Iterable[Encoded], lr: float) -> nn.Module:
    """Fine-tune all weights of a copy: AdamW without decay, constant learning rate, gradient norm at most 1.

    Args:
        model: Where to begin; not changed.
        batches: One a step.
        lr: Learning rate.

    Returns:
        The tuned copy, in evaluation mode (no dropout while tuning either) and in float32 at least.
    """
    # In half precision small steps would be rounded away, and an attacker would look harmless.
    kind = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    work = copy.deepcopy(model).to(kind).eval().requires_grad_(True)
    parameters = list(work.parameters())
    stepper = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0, fused=True)
    for batch in batches:
        stepper.zero_grad(set_to_none=True)
        mean_loss(work, batch).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        stepper.step()
    work.zero_grad(set_to_none=True)
    return work.requires_grad_(False)


def rotating(encoded: Encoded, rows: int, steps: int, seed: int) -> Iterable[Encoded]:
    """Draw batches, shuffling anew for every pass.

    Args:
        encoded: What to draw from.
        rows: A batch's size; all when there are fewer.
        steps: How many batches.
        seed: Of the order.

    Yields:
        The batches.
    """
    generator = torch.Generator().manual_seed(seed)
    waiting = torch.empty(0, dtype=torch.long)
    rows = min(rows, len(encoded))
    for _ in range(steps):
        if len(waiting) < rows:
            waiting = torch.cat([waiting, torch.randperm(len(encoded), generator=generator)])
        yield encoded.take(waiting[:rows])
        waiting = waiting[rows:]
