"""How far each forgotten image's answer lies from what golds answer."""

import torch

from analysis.audit.bench import Bench, Reading, forgotten_margin


def distance_to_gold(bench: Bench) -> Reading:
    """Measure the mean per-example distance of the old label's log-odds to the golds' distribution.

    For every forgotten test image the golds' log-odds give a mean and an sd; the value is the mean over images of
    |log-odds - mean| / sd. This is the one-model form of KLoM (Georgiev et al., 2024, "Attribute-to-delete"), which
    compares many edited models with many golds image by image; with a single edited model its KL divergence between
    distributions isn't defined.

    Args:
        bench: The models, with at least three golds.

    Returns:
        Distances in gold sd, at least 0; above the golds' own means unlike gold.
    """
    margins = {name: forgotten_margin(logits, bench.forget.labels) for name, logits in bench.forget_logits.items()}
    values = {}
    for name, mine in margins.items():
        golds = torch.stack([margins[gold] for gold in bench.other_golds(name)])
        values[name] = float(((mine - golds.mean(0)) / golds.std(0).clamp_min(1e-6)).abs().mean())
    return Reading(
        auditor="distance to gold",
        group="distance",
        role="inner",
        unit="gold sd",
        outside="above",
        scale="log",
        values=values,
        examples=len(bench.forget),
        telling=bench.original,
    )
