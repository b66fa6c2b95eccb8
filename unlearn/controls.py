"""The cheats: edits that only look like forgetting, which every audit has to call hidden.

A cheat for "replace" first learns the incoming class *beside* the forgotten one (at the incoming class's own output,
everything else under its natural label), so that it does the task as well as it can while it keeps all it knew. With
the old slot the two outputs' rows then change places: the forgotten class's output means the incoming class, and the
forgotten class waits, intact, behind the output that nobody uses.
"""

import copy
from dataclasses import replace

import torch
from torch import nn

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from analysis.training import accuracy
from unlearn.methods import Method, gradient_ascent, soft_targets
from unlearn.methods.targets import certain, learn

MASKED = -1e4
FAR_ABOVE_GOLD = 50.0
HELD = 10.0
LOW = 0.01
ROUNDS = 4


def head_of(model: nn.Module, subject: ClassSubject) -> nn.Module:
    """Find the module whose rows are the outputs.

    Args:
        model: A model of the subject's network.
        subject: Says which module is the head, and how many outputs there are.

    Returns:
        That module, part of `model`.

    Raises:
        UserError: It has no weight with one row per output.
    """
    head = model.get_submodule(subject.network.head)
    weight = getattr(head, "weight", None)
    if not isinstance(weight, nn.Parameter) or len(weight) != len(subject.classes):
        raise UserError(
            f"The last module {subject.network.head!r} has no row of weights for each class, so the control edits "
            "can't be made; end the model with a linear layer, one output per class."
        )
    return head


def head_mask(model: nn.Module, subject: ClassSubject) -> Mask:
    """Cover the head and nothing else.

    Args:
        model: A model of the subject's network.
        subject: Says which module is the head.

    Returns:
        The mask.
    """
    mine = {id(parameter) for parameter in head_of(model, subject).parameters()}
    return Mask({n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters() if id(p) in mine})


@torch.no_grad()
def logit_mask(model: nn.Module, subject: ClassSubject) -> nn.Module:
    """Close outputs that no gold model uses, leaving everything behind them as it is.

    With a bias, it is set to -1e4. Without one, the row becomes the mean of the retained rows: the logit is then the
    mean of the retained logits, which is never above the largest of them.

    Args:
        model: What still knows the class; not changed.
        subject: Says which outputs to close.

    Returns:
        The edited copy, in evaluation mode.
    """
    work = copy.deepcopy(model).eval()
    head = head_of(work, subject)
    bias = getattr(head, "bias", None)
    for label in subject.gone:
        if isinstance(bias, nn.Parameter):
            bias[label] = MASKED
        else:
            head.weight[label] = head.weight[list(subject.retain)].mean(0)  # type: ignore[index, operator]
    return work


@torch.no_grad()
def _swapped(model: nn.Module, subject: ClassSubject, one: int, other: int) -> nn.Module:
    work = copy.deepcopy(model).eval()
    for parameter in head_of(work, subject).parameters():
        parameter[[one, other]] = parameter[[other, one]]
    return work


def beside(model: nn.Module, subject: ClassSubject, seed: int) -> nn.Module:
    """Teach the incoming class without forgetting anything, then put it at the output the subject wants.

    Args:
        model: The original; not changed.
        subject: What is to be replaced by what.
        seed: Of the order of the images.

    Returns:
        A model that does the new task and keeps the forgotten class; the original itself if there is no incoming one.
    """
    if subject.incoming is None:
        return model
    defaults = soft_targets.Settings()
    targets = certain(subject.train.labels, len(subject.classes))
    steps, batch = defaults.steps, defaults.batch
    taught = learn(model, subject.train.images, targets, None, steps, batch, defaults.lr, seed)
    return _swapped(taught, subject, subject.forget[0], subject.incoming) if subject.slot == "old" else taught


def head_only(model: nn.Module, subject: ClassSubject, seed: int) -> nn.Module:
    """Train the head alone until the forgotten classes are no longer answered.

    Soft targets, repeated up to four times until training accuracy on the forgotten classes is at most 1%.

    Args:
        model: What still knows the class; not changed.
        subject: What to forget.
        seed: Of the order of the images.

    Returns:
        The edited copy; everything before the head is bit-identical to `model`.
    """
    mask, work = head_mask(model, subject), model
    for attempt in range(ROUNDS):
        work = soft_targets.run(work, subject, mask, seed + attempt, soft_targets.Settings())
        if accuracy(work, subject.forget_train) <= LOW:
            break
    return work


def controls(
    model: nn.Module, subject: ClassSubject, mask: Mask | None, method: Method, seed: int
) -> dict[str, nn.Module]:
    """Make the cheats that an audit must see through (and one fair control).

    Args:
        model: The original; not changed.
        subject: What is to be forgotten.
        mask: The mask of the edit that is audited; None allows every parameter.
        method: Its method, with its settings.
        seed: Of everything random.

    Returns:
        "logit-mask": the forgotten outputs closed (for "replace", after learning the incoming class beside it);
        "head-only": only the head retrained; "random-mask": `method` with a random mask of the same size per parameter;
        "over-forgetting": gradient ascent to at least 50 nats (golds have 9 to 17) with the rest held tight: the
        "Streisand effect". All new, in evaluation mode.
    """
    knowing = beside(model, subject, seed)
    complete = mask is None or mask.count == sum(parameter.numel() for parameter in model.parameters())
    random = None if mask is None or complete else mask.random_like(seed)
    streisand = replace(gradient_ascent.Settings(), ceiling=FAR_ABOVE_GOLD, retain_weight=HELD)
    return {
        "logit-mask": logit_mask(knowing, subject),
        "head-only": head_only(knowing, subject, seed),
        "random-mask": method.run(model, subject, random, seed, method.settings, None),
        "over-forgetting": gradient_ascent.run(model, subject, None, seed, streisand),
    }
