"""Numbers and names, written for people."""

import math
from collections.abc import Sequence


def shorten(name: str, longest: int) -> str:
    """Cut a long name.

    Args:
        name: E.g. of a class.
        longest: Characters to keep at most.

    Returns:
        The name, with an ellipsis at its end where it was cut.
    """
    return name if len(name) <= longest else name[: max(1, longest - 1)].rstrip() + "…"


def squeeze(name: str, longest: int) -> str:
    """Cut a long name in its middle, since names of many classes often begin alike.

    Args:
        name: E.g. of a class.
        longest: Characters to keep at most, at least 3.

    Returns:
        The name, with an ellipsis where something is missing.
    """
    end = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[: longest - 1 - end].rstrip()}…{name[-end:].lstrip()}"


def percent(share: float) -> str:
    """Write a share for people.

    Args:
        share: 0 to 1.

    Returns:
        E.g. "94.2%", "0.35%" or "not a number".
    """
    if not math.isfinite(share):
        return "not a number"
    value = 100 * share
    return f"{value:.0f}%" if value in {0, 100} else f"{value:.1f}%" if abs(value) >= 1 else f"{value:.2g}%"


def tick_percent(share: float) -> str:
    """Write a round share for an axis.

    Args:
        share: 0 to 1.

    Returns:
        E.g. "0.1%" or "10%".
    """
    return f"{100 * share:g}%"


def plural(count: int, one: str, many: str | None = None) -> str:
    """Write a count with its noun.

    Args:
        count: How many.
        one: The noun for one.
        many: The noun for several; `one` with an s when not given.

    Returns:
        E.g. "1 seed" or "1,200 images".
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def seeds_in_words(seeds: Sequence[int]) -> str:
    """Write seeds for a caption.

    Args:
        seeds: At least one.

    Returns:
        E.g. "seed 0", "seeds 0 to 4" or "seeds 0, 7".
    """
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds))}"
