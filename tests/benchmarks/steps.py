"""One unlearning step of a language model under a mask, against the same step of a full-model trainer loop.

The loss is gradient difference (raise the loss on forgotten answers to a ceiling, lower it on what must stay). The
trainer loop is what people write: the whole model's logits, all gradients, gradients outside the mask set to zero,
AdamW over all parameters. A step's time is that of a run of twice as many steps less that of a run, so that neither
side is charged for copying the model; the second half sees the same rows again, as every pass after the first does.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional

from analysis.attribution.anatomy import anatomy
from analysis.scores import Mask
from analysis.subjects.language.encoding import IGNORED, Encoded
from tests.benchmarks.subjects import beatles, close, smollm2
from tests.benchmarks.timing import Row, row_of
from unlearn.methods.language.batches import Batch, fact_batches, kept_loss
from unlearn.methods.language.gradient_ascent import raised
from unlearn.optimize import descend

Side = Callable[[nn.Module, Sequence[Batch], Mask], nn.Module]

STEPS = 4
ROUNDS = 3
LR = 1e-4
CEILING = 6.9
SHARE = 0.01
SIZES = 6, 4, 2
"""Rows a step: forgotten facts, retained facts, texts (the method's own)."""


def _answers(model: nn.Module, rows: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
    # What a trainer computes: logits everywhere, then the loss where labels are.
    logits = model(input_ids=rows.ids).logits
    losses = functional.cross_entropy(logits.transpose(1, 2), rows.labels, ignore_index=IGNORED, reduction="none")
    return -losses.sum(1), losses.sum() / (rows.labels != IGNORED).sum()


def trainer_loop(model: nn.Module, batches: Sequence[Batch], mask: Mask) -> nn.Module:
    """Take the steps as a full-model trainer does.

    Args:
        model: The original; not changed.
        batches: One a step.
        mask: What may change.

    Returns:
        The edited copy.
    """
    work = copy.deepcopy(model).eval().requires_grad_(True)
    optimizer = torch.optim.AdamW(work.parameters(), lr=LR, weight_decay=0.0)
    bits = {name: mask.bits.get(name, torch.zeros_like(p)).float() for name, p in work.named_parameters()}
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        forgotten = _answers(work, batch.forget)[0].clamp(min=-CEILING).mean()
        kept = (_answers(work, batch.retain)[1] + _answers(work, batch.texts)[1]) / 2
        (forgotten + kept).backward()
        for name, parameter in work.named_parameters():
            parameter.grad *= bits[name]
        optimizer.step()
    return work


def ours(model: nn.Module, batches: Sequence[Batch], mask: Mask) -> nn.Module:
    """Take the same steps with `descend`.

    Args:
        model: The original; not changed.
        batches: One a step.
        mask: What may change.

    Returns:
        The edited copy.
    """

    def loss(work: nn.Module, batch: Batch) -> torch.Tensor:
        return raised(work, batch.forget, CEILING) + kept_loss(work, model, batch, "ce")

    return descend(model, batches, loss, mask, LR)


def random_mask(model: nn.Module, blocks: range) -> Mask:
    """Draw a mask: the share of all weights that an edit usually changes, in the down projections of some blocks.

    Args:
        model: A causal language model.
        blocks: Numbers of the blocks.

    Returns:
        The mask.
    """
    generator = torch.Generator().manual_seed(0)
    parts, named = anatomy(model), dict(model.named_parameters())
    shapes = {f"{parts.down[i]}.weight": named[f"{parts.down[i]}.weight"].shape for i in blocks}
    share = SHARE * sum(p.numel() for p in named.values()) / sum(shape.numel() for shape in shapes.values())
    return Mask({name: torch.rand(shape, generator=generator) < share for name, shape in shapes.items()})


def _moved(model: nn.Module, original: nn.Module, mask: Mask) -> torch.Tensor:
    before = dict(original.named_parameters())
    found = dict(model.named_parameters())
    return torch.cat([(found[name] - before[name]).detach()[bits] for name, bits in mask.bits.items()])


def _step(run: Side, model: nn.Module, batches: Sequence[Batch], mask: Mask) -> float:
    times = []
    for some in (batches, [*batches, *batches]):
        begun = time.perf_counter()
        run(model, some, mask)
        times.append(time.perf_counter() - begun)
    return (times[1] - times[0]) / len(batches)


def rows() -> Iterator[Row]:
    """Measure.

    Yields:
        One row for each place of the mask.
    """
    model, subject = smollm2().model, beatles()
    exact = copy.deepcopy(model).double()
    batches = fact_batches(subject, *SIZES, STEPS, 0)
    count = len(anatomy(model).blocks)
    for where, blocks, reach in (
        ("the last sixth of the blocks", range(count - count // 6, count), 8),
        ("the last third of the blocks", range(count - count // 3, count), 8),
        ("all blocks", range(count), 2),
    ):
        mask = random_mask(model, blocks)
        # In float64: Adam divides by the gradient's own size, so that rounding alone can turn a next to nothing around.
        mine, theirs = (_moved(run(exact, batches[:2] * 2, mask), exact, mask) for run in (ours, trainer_loop))
        equal = close(mine, theirs, 1e-5)
        times: list[tuple[float, float]] = []
        for turn in range(ROUNDS):
            sides = [ours, trainer_loop] if turn % 2 == 0 else [trainer_loop, ours]
            found = {side: _step(side, model, batches, mask) for side in sides}
            times.append((found[ours], found[trainer_loop]))
        yield row_of(
            f"one unlearning step, SmolLM2, mask in {where}",
            "full-model trainer loop",
            [a for a, _ in times],
            [b for _, b in times],
            f"updates in float64 {equal}",
            reach=reach,
        )
