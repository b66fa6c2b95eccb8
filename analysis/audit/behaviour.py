"""What a model does: accuracy on what was to be forgotten and kept, what it calls the forgotten, and how loudly.

Over-forgetting is the "Streisand effect" (Golatkar et al., CVPR 2020): a loss on the forgotten class far above that of
a model that never knew marks the class as plainly as knowing it would.
"""

import torch
from torch.nn import functional

from analysis.audit.bench import Bench, Reading


def _accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())


def forget_accuracy(bench: Bench) -> Reading:
    """Measure how often forgotten images still get their old label.

    Args:
        bench: The models.

    Returns:
        Shares in [0, 1]; more than gold means remembered.
    """
    values = {name: _accuracy(logits, bench.forget.labels) for name, logits in bench.forget_logits.items()}
    return Reading(
        auditor="accuracy on the forgotten",
        group="forget accuracy",
        role="behaviour",
        unit="share",
        outside="above",
        scale="identity",
        values=values,
        examples=len(bench.forget),
        resolution=1 / len(bench.forget),
        telling=bench.original,
    )


def retain_accuracy(bench: Bench) -> Reading:
    """Measure how often the rest is right.

    Args:
        bench: The models.

    Returns:
        Shares in [0, 1]; less than gold means damaged.
    """
    values = {name: _accuracy(logits, bench.retain.labels) for name, logits in bench.retain_logits.items()}
    return Reading(
        auditor="accuracy on the rest",
        group="retain accuracy",
        role="damage",
        unit="share",
        outside="below",
        scale="identity",
        values=values,
        examples=len(bench.retain),
        resolution=1 / len(bench.retain),
        telling=bench.untrained,
    )


def incoming_accuracy(bench: Bench) -> Reading | None:
    """Measure how well the class that replaces the forgotten one was learned.

    Args:
        bench: The models.

    Returns:
        Shares in [0, 1], less than gold means damaged; None where nothing was to be learned.
    """
    slot = bench.subject.incoming_slot
    if slot is None:
        return None
    chosen = bench.retain.labels == slot
    values = {
        name: _accuracy(logits[chosen], bench.retain.labels[chosen]) for name, logits in bench.retain_logits.items()
    }
    examples = int(chosen.sum())
    return Reading(
        auditor="accuracy on the new class",
        group="incoming accuracy",
        role="damage",
        unit="share",
        outside="below",
        scale="identity",
        values=values,
        examples=examples,
        resolution=1 / examples,
        telling=bench.original,
    )


def confusion(bench: Bench) -> Reading:
    """Compare what forgotten images are called with what golds call them.

    Total variation distance between the model's distribution of outputs over the forgotten images and the golds'
    mean. A model that calls every six a 3 has not forgotten what a six is.

    Args:
        bench: The models.

    Returns:
        Distances in [0, 1]; above the golds' own means unlike gold.
    """
    outputs = len(bench.subject.classes)
    share = {
        name: torch.bincount(logits.argmax(1), minlength=outputs).double() / len(logits)
        for name, logits in bench.forget_logits.items()
    }
    values = {}
    for name, mine in share.items():
        mean = torch.stack([share[gold] for gold in bench.other_golds(name)]).mean(0)
        values[name] = float((mine - mean).abs().sum() / 2)
    return Reading(
        auditor="confusion of the forgotten",
        group="confusion",
        role="inner",
        unit="total variation",
        outside="above",
        scale="identity",
        values=values,
        examples=len(bench.forget),
        resolution=1 / len(bench.forget),
        telling=bench.original,
    )


def over_forgetting(bench: Bench) -> Reading:
    """Measure how strongly a model denies the forgotten class.

    Args:
        bench: The models.

    Returns:
        Mean cross-entropy of the old label on forgotten images, in nats; above gold means it gives itself away.
    """
    values = {
        name: float(functional.cross_entropy(logits.double(), bench.forget.labels))
        for name, logits in bench.forget_logits.items()
    }
    return Reading(
        auditor="over-forgetting",
        group="over-forgetting",
        role="inner",
        unit="nats",
        outside="above",
        scale="log",
        values=values,
        examples=len(bench.forget),
        telling=bench.overforgetting or "",
    )
