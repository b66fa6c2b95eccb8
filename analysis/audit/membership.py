"""Membership inference: can one tell which forgotten images were once trained on?

On well-generalising nets these auditors often have no power: the original itself treats training and test images alike.
On digit 6 the AUC of `mlp`'s original is .539 with one threshold and .556 per example, against .502 to .546 and .500
to .554 among 20 golds (1.4 and 2.1 gold sd). The verdict then leaves them out, by the rule that holds for every
auditor, and says so.
"""

import torch
from scipy.stats import rankdata

from analysis.audit.bench import Bench, Reading, forgotten_margin


def auc(positive: torch.Tensor, negative: torch.Tensor) -> float:
    """Compute the area under the ROC curve (Mann-Whitney), ties counted half.

    Args:
        positive: Scores [n] of what should score higher.
        negative: Scores [m] of the rest.

    Returns:
        In [0, 1].
    """
    ranks = torch.from_numpy(rankdata(torch.cat([positive, negative]).double().numpy()))
    n, m = len(positive), len(negative)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def _reading(bench: Bench, auditor: str, values: dict[str, float]) -> Reading:
    return Reading(
        auditor=auditor,
        group="membership",
        role="inner",
        unit="AUC",
        outside="above",
        scale="identity",
        values=values,
        examples=len(bench.members) + len(bench.forget),
        telling=bench.original,
    )


def population_membership(bench: Bench) -> Reading:
    """Attack with one threshold for all images (Yeom et al., 2018).

    The AUC with which the loss on the old label parts forgotten training from forgotten test images, folded to at
    least 0.5, since training images that stand out as worse give themselves away too.

    Args:
        bench: The models.

    Returns:
        AUCs in [0.5, 1].
    """
    values = {}
    for name in bench.models:
        member = forgotten_margin(bench.member_logits[name], bench.members.labels)
        other = forgotten_margin(bench.forget_logits[name], bench.forget.labels)
        found = auc(member, other)
        values[name] = max(found, 1 - found)
    return _reading(bench, "membership, one threshold", values)


def example_membership(bench: Bench) -> Reading:
    """Attack with a threshold of its own for every image (difficulty calibration, Watson et al., 2022).

    Each image's log-odds are compared with those that golds, which never saw it, give to the same image: how easy an
    image is drops out, and what training on it left stays.

    Args:
        bench: The models.

    Returns:
        AUCs in [0.5, 1], folded as for one threshold.
    """
    member = {n: forgotten_margin(logits, bench.members.labels) for n, logits in bench.member_logits.items()}
    other = {n: forgotten_margin(logits, bench.forget.labels) for n, logits in bench.forget_logits.items()}
    values = {}
    for name in bench.models:
        golds = bench.other_golds(name)
        member_mean = torch.stack([member[gold] for gold in golds]).mean(0)
        other_mean = torch.stack([other[gold] for gold in golds]).mean(0)
        found = auc(member[name] - member_mean, other[name] - other_mean)
        values[name] = max(found, 1 - found)
    return _reading(bench, "membership, per example", values)
