"""Masked optimisation with real freezing: outside the mask a model stays bit-identical, buffers included.

Masked training leaks through weight decay, momentum and running statistics. So the model runs in evaluation mode
(normalisation statistics and dropout stand still, or are folded away in the end: `unlearn.normalisation`), gradients
outside the mask are zeroed, and after every step whatever lies outside is put back from the original.
"""

import copy
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import nn

from analysis.attribution.running import widened
from analysis.errors import UserError
from analysis.scores import Mask
from unlearn.normalisation import adaptable, fold
from unlearn.prefix import remembered_below

Watch = Callable[[int, nn.Module], None]
"""Called with the number of steps taken and the model as it is then; it must not change the model."""

Batch = TypeVar("Batch")
Rate = float | Callable[[int], float]

WATCH_EVERY = 10


class Diverged(UserError):
    """Loss or weights left the finite numbers; the last good model is kept.

    Attributes:
        model: The model at the last step at which loss and gradients were finite.
        step: How many steps that model has taken.
    """

    def __init__(self, model: nn.Module, step: int) -> None:
        """Keep what there is.

        Args:
            model: The last good model.
            step: Its steps.
        """
        super().__init__(
            f"The edit diverged after {step} steps: the loss or the weights are no longer finite numbers; "
            "lower the learning rate or the number of steps, and check the model and the images for NaN."
        )
        self.model = model
        self.step = step


def falling(lr: float, steps: int, warm: int = 0) -> Callable[[int], float]:
    """Let the learning rate fall linearly to zero, perhaps after a rise.

    Adam's first steps move every weight by the full rate, however small its gradient; a rise keeps that noise small.

    Args:
        lr: Where the fall begins.
        steps: How many there will be.
        warm: At the first steps, as many as this, the rate is the first 1/warm, 2/warm, ... of what it falls through.

    Returns:
        The learning rate by step, counted from 0.
    """
    return lambda step: lr * max(0.0, 1 - step / steps) * min(1.0, (step + 1) / max(1, warm))


def batches(tensors: Sequence[torch.Tensor], size: int, steps: int, seed: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Draw batches for a fixed number of steps, shuffling anew for every pass over the data.

    Args:
        tensors: Aligned along their first dimension, e.g. images and targets.
        size: Rows a batch (all rows when there are fewer).
        steps: How many batches; the end of a pass is filled from the next one.
        seed: Of the order.

    Yields:
        One tensor each of `size` rows, in the order of `tensors`.

    Raises:
        UserError: There are no rows, or `size` or `steps` is below 1.
    """
    total = len(tensors[0])
    if total == 0:
        raise UserError("There are no images to train on; check the data and the classes to forget.")
    if size < 1 or steps < 1:
        raise UserError(f"Batch size and number of steps must be at least 1, not {size} and {steps}.")
    generator = torch.Generator().manual_seed(seed)
    size = min(size, total)
    waiting = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(total, generator=generator)])
        chosen, waiting = waiting[:size], waiting[size:]
        yield tuple(tensor.index_select(0, chosen) for tensor in tensors)


def check_mask(model: nn.Module, mask: Mask) -> None:
    """Check that a mask fits a model and allows something.

    Args:
        model: The model to be edited.
        mask: What may change.

    Raises:
        UserError: The mask names other parameters, has other shapes, or is empty.
    """
    parameters = dict(model.named_parameters())
    for name, bits in mask.bits.items():
        if name not in parameters or parameters[name].shape != bits.shape:
            raise UserError(
                f"The mask's {name!r} does not fit the model; take a mask that was located in a model of the same "
                "architecture."
            )
    if mask.count == 0:
        raise UserError("The mask is empty, so nothing could be edited; locate with a larger fraction.")


def _allowed(mask: Mask | None, name: str, parameter: nn.Parameter) -> torch.Tensor:
    # The mask's bits for one parameter; a tensor without dimensions stands for all entries alike.
    bits = torch.tensor(True) if mask is None else mask.bits.get(name, torch.tensor(False))
    return bits.to(parameter.device)


@torch.no_grad()
def restore_outside(model: nn.Module, original: nn.Module, mask: Mask | None) -> None:
    """Put back, in place and bit by bit, everything that an edit may not touch.

    Args:
        model: The edited model.
        original: The model it was before.
        mask: What may differ; None allows every parameter. Buffers never may.
    """
    for mine, theirs in zip(model.buffers(), original.buffers(), strict=True):
        mine.copy_(theirs)
    if mask is not None:
        before = dict(original.named_parameters())
        for name, parameter in model.named_parameters():
            if parameter.data_ptr() != before[name].data_ptr():
                parameter.copy_(torch.where(_allowed(mask, name, parameter), parameter, before[name]))


def _working_copy(model: nn.Module, start: nn.Module | None, mask: Mask | None) -> nn.Module:
    # Parameters that stay are the original's own memory until the edit is finished: what is copied for a mask of few
    # weights is few weights.
    source = model if start is None else start
    kept: dict[int, nn.Parameter] = {}
    for (name, mine), theirs in zip(source.named_parameters(), model.parameters(), strict=True):
        if not _allowed(mask, name, mine).any():
            kept[id(mine)] = nn.Parameter(theirs.detach(), requires_grad=False)
    return copy.deepcopy(source, dict(kept)).eval()


@dataclass(frozen=True)
class _Slot:
    # The entries of one parameter that the mask allows. The optimiser knows these alone: what it never sees it can't
    # move, and a mask of few weights costs it next to nothing. Of parameters in half precision it moves a copy in
    # float32: there small steps would be rounded away, one by one.
    parameter: nn.Parameter
    places: torch.Tensor | None  # in the flattened parameter; None for all
    values: nn.Parameter

    def gradient(self) -> torch.Tensor:
        found, self.parameter.grad = self.parameter.grad, None
        if found is None:
            return torch.zeros_like(self.values)
        return widened(found if self.places is None else found.take(self.places))

    @torch.no_grad()
    def write(self, values: torch.Tensor) -> None:
        if self.places is None:
            self.parameter.copy_(values)
        else:
            self.parameter.put_(self.places, values.to(self.parameter.dtype))


def _slots(model: nn.Module, mask: Mask | None) -> Iterator[_Slot]:
    for name, parameter in model.named_parameters():
        bits = _allowed(mask, name, parameter)
        parameter.requires_grad_(bool(bits.any()))
        if not parameter.requires_grad:
            continue
        places = None if bool(bits.all()) else bits.flatten().nonzero().squeeze(1)
        inside = widened(parameter.detach() if places is None else parameter.detach().take(places))
        yield _Slot(parameter, places, nn.Parameter(inside))


def _stepper(slots: Sequence[_Slot], optimizer: str, weight_decay: float) -> torch.optim.Optimizer:
    decaying = [slot.values for slot in slots if slot.parameter.dim() > 1]
    others = [slot.values for slot in slots if slot.parameter.dim() <= 1]
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9) if optimizer == "sgd" else torch.optim.AdamW(groups, lr=0.0)


def descend(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Callable[[nn.Module, Batch], torch.Tensor],
    mask: Mask | None = None,
    lr: Rate = 1e-3,
    optimizer: Literal["adam", "sgd"] = "adam",
    weight_decay: float = 0.0,
    maximise: bool = False,
    clip: float | None = None,
    watch: Watch | None = None,
    start: nn.Module | None = None,
    adapt: bool = False,
) -> nn.Module:
    """Take one optimisation step per batch, changing nothing outside the mask.

    Args:
        model: The original; it is not changed, and what lies outside the mask stays as it is there.
        batches: Whatever `loss` understands, one item a step.
        loss: Gives the scalar loss of the working model, in evaluation mode, on one item.
        mask: What may change; None allows every parameter. Buffers never change.
        lr: Learning rate, or a function of the step (from 0).
        optimizer: "adam" (decoupled weight decay) or "sgd" (momentum 0.9).
        weight_decay: Strength of the decay, on what the mask allows of matrices and kernels only: biases and
            normalisations' scale and shift don't decay, as is usual.
        maximise: Climb instead of descend.
        clip: Largest norm of the gradient inside the mask; longer ones are shortened to it. None: as it comes.
        watch: Called with (0, model) first, every `WATCH_EVERY` steps, and after the last one. Setting out from
            `start` counts as the first step.
        start: Where to begin if not at `model`, e.g. with re-initialised weights; it is not changed.
        adapt: Let batch normalisations whose scale and shift the mask allows learn with the statistics of the batch,
            and fold what those become into scale and shift; the buffers stay the original's.

    Returns:
        The edited copy, in evaluation mode, with `model`'s requires_grad flags.

    Raises:
        Diverged: Loss, gradients or weights are no longer finite; its `model` is the last good one.
    """
    if mask is not None:
        check_mask(model, mask)
    work = _working_copy(model, start, mask)
    restore_outside(work, model, mask)
    live = adaptable(work, mask) if adapt else ()
    slots = list(_slots(work, mask))
    trained = [slot.values for slot in slots]
    stepper = _stepper(slots, optimizer, weight_decay)
    good = [values.detach().clone() for values in trained]
    held = {name: copy.deepcopy(work.get_submodule(name).state_dict()) for name in live}
    taken = watched = 0 if start is None else 1

    def show(step: int) -> None:
        nonlocal watched
        if watch:
            watch(step, _folded(work, model, live) if live else work)
            watched = step

    if watch:
        watch(0, work if start is None else copy.deepcopy(model).eval())
    if taken:
        show(taken)
    edited = [name for name, parameter in work.named_parameters() if parameter.requires_grad]
    buffered = any(True for _ in work.buffers())
    with remembered_below((work, model), edited):
        for step, batch in enumerate(batches):
            for name in live:
                work.get_submodule(name).train()
            stepper.zero_grad(set_to_none=True)
            value = loss(work, batch)
            (-value if maximise else value).backward()
            gradients = [slot.gradient() for slot in slots]
            if not _finite((value, *gradients)):
                raise Diverged(_last_good(work, model, slots, good, held), max(0, step - 1))
            for values, gradient, last in zip(trained, gradients, good, strict=True):
                last.copy_(values.detach())
                values.grad = gradient
            held = {name: copy.deepcopy(work.get_submodule(name).state_dict()) for name in live}
            if clip is not None:
                nn.utils.clip_grad_norm_(trained, clip)
            for group in stepper.param_groups:
                group["lr"] = lr(step) if callable(lr) else lr
            stepper.step()
            for slot in slots:
                slot.write(slot.values)
            if buffered:  # to look for them at every step would take a twentieth of a small net's
                _restore_buffers(work, model, live)
            taken += 1
            if taken % WATCH_EVERY == 0:
                show(taken)
    if not _finite(trained):
        raise Diverged(_last_good(work, model, slots, good, held), max(0, taken - 1))
    if watched != taken:
        show(taken)
    return _finished(work, model, slots, trained, live)


def _finite(tensors: Sequence[torch.Tensor]) -> bool:
    # A sum that is finite has finite parts, and takes one pass.
    sums = [tensor.detach().sum(dtype=torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]
    return all(math.isfinite(float(one)) for one in sums)


def _restore_buffers(work: nn.Module, original: nn.Module, live: Collection[str]) -> None:
    # A forward pass of the loss or of the watcher may have moved them.
    theirs = dict(original.named_buffers())
    for name, mine in work.named_buffers():
        if name.rpartition(".")[0] not in live:
            mine.copy_(theirs[name])


def _folded(work: nn.Module, original: nn.Module, live: Collection[str]) -> nn.Module:
    shown = copy.deepcopy(work).eval()
    fold(shown, original, live)
    return shown


def _last_good(
    work: nn.Module,
    original: nn.Module,
    slots: Sequence[_Slot],
    values: Sequence[torch.Tensor],
    held: Mapping[str, dict[str, torch.Tensor]],
) -> nn.Module:
    for name, state in held.items():
        work.get_submodule(name).load_state_dict(state)
    return _finished(work, original, slots, values, tuple(held))


def _finished(
    work: nn.Module,
    original: nn.Module,
    slots: Sequence[_Slot],
    values: Sequence[torch.Tensor],
    live: Collection[str],
) -> nn.Module:
    for slot, mine in zip(slots, values, strict=True):
        slot.write(mine)
    for mine, theirs in zip(work.parameters(), original.parameters(), strict=True):
        if mine.data_ptr() == theirs.data_ptr():
            mine.data = mine.detach().clone()
        mine.requires_grad_(theirs.requires_grad)
        mine.grad = None
    fold(work, original, live)
    _restore_buffers(work, original, ())
    return work.eval()
