"""The gold band: where one more model that never knew is expected."""

import math
from collections.abc import Sequence
from typing import Literal

from scipy import stats

from analysis.audit.report import Band

Scale = Literal["identity", "log", "logit"]
FAMILY_LEVEL = 0.05
MARGIN = 1e-3


def to_scale(value: float, scale: Scale, resolution: float = 0.0) -> float:
    """Map a value to the scale on which golds scatter evenly.

    Counts and distances scatter in proportion ("log"), shares near 0 or 1 are squeezed against the end ("logit").

    Args:
        value: On the measured scale.
        scale: Which map.
        resolution: Smallest step that the measurement can see, in the measured units; values closer than half of it
            to the end of a scale are moved there, so that 0 and 1 have finite logits.

    Returns:
        The mapped value; monotone in `value`.
    """
    if scale == "identity":
        return value
    margin = max(resolution / 2, MARGIN if scale == "logit" else 1e-9)
    if scale == "log":
        return math.log(max(value, margin))
    inside = min(max(value, margin), 1 - margin)
    return math.log(inside / (1 - inside))


def from_scale(value: float, scale: Scale) -> float:
    """Undo `to_scale` (up to its margins).

    Args:
        value: On the mapped scale.
        scale: Which map.

    Returns:
        On the measured scale.
    """
    if scale == "identity":
        return value
    if scale == "log":
        return math.exp(min(value, 700.0))
    return 1 / (1 + math.exp(-max(min(value, 700.0), -700.0)))


def deviation(value: float, band: Band, scale: Scale, side: Literal["above", "below"], resolution: float) -> float:
    """Measure how far a value lies from the gold mean on the telling side.

    Args:
        value: On the measured scale.
        band: Of the golds.
        scale: Of the band.
        side: The side that tells.
        resolution: See `to_scale`.

    Returns:
        Distance in gold standard deviations; negative on the harmless side.
    """
    offset = to_scale(value, scale, resolution) - to_scale(band.mean, scale, resolution)
    return (offset if side == "above" else -offset) / band.sd


def gold_band(
    golds: Sequence[float], scale: Scale, side: Literal["above", "below"], level: float, resolution: float
) -> Band:
    """Compute the one-sided prediction interval for one more gold.

    mean + t * sd * sqrt(1 + 1/n) on the mapped scale (Student t with n - 1 degrees of freedom). Min..max of the golds
    would be wrong: among many auditors nearly every honest gold would fall outside somewhere. Where all golds agree
    more closely than the measurement can resolve, the sd is taken as half its resolution.

    Args:
        golds: One value per gold model, at least two.
        scale: On which golds scatter evenly.
        side: On which side a model is called different from gold.
        level: Chance that an honest gold lies outside, in (0, 1).
        resolution: Smallest step that the measurement can see.

    Returns:
        The band.

    Raises:
        ValueError: Fewer than two golds.
    """
    n = len(golds)
    if n < 2:
        raise ValueError("a band needs at least two golds")
    mapped = [to_scale(value, scale, resolution) for value in golds]
    mean = sum(mapped) / n
    sd = math.sqrt(sum((value - mean) ** 2 for value in mapped) / (n - 1))
    centre = from_scale(mean, scale)
    step = abs(
        to_scale(centre + resolution / 2, scale, resolution) - to_scale(centre - resolution / 2, scale, resolution)
    )
    sd = max(sd, step / 2, 1e-12)
    reach = float(stats.t.ppf(1 - level, n - 1)) * sd * math.sqrt(1 + 1 / n)
    edge = mean + reach if side == "above" else mean - reach
    return Band(mean=centre, sd=sd, n=n, edge=from_scale(edge, scale), level=level)
