"""Side by side in one run: the peer and ours take turns, results are compared first, and ratios are reported."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

ROUNDS = 5
LEAST = 0.2
"""Seconds that one reading lasts at least: quicker work is repeated within it."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: What is timed, with its size.
        against: What it is compared with.
        sense: "faster": the ratio is peer / ours and has to be at least `reach`; "cost": ours / peer, at most `reach`.
        reach: The aim; None where there is none and the row is only shown.
        ratios: One for each round, both sides timed one after the other in it.
        ours: Median seconds.
        peer: Median seconds of what it is compared with.
        equal: How the results were compared and how far they lie apart.
        note: What else one has to know, such as what the limit is where the aim is missed.
    """

    what: str
    against: str
    sense: Literal["faster", "cost"]
    reach: float | None
    ratios: tuple[float, ...]
    ours: float
    peer: float
    equal: str
    note: str = ""

    @property
    def ratio(self) -> float:
        """The median ratio."""
        return statistics.median(self.ratios)

    @property
    def reached(self) -> bool | None:
        """Whether the aim is reached; None where there is none."""
        if self.reach is None:
            return None
        return self.ratio >= self.reach if self.sense == "faster" else self.ratio <= self.reach


def seconds(work: Callable[[], Any], least: float = LEAST) -> float:
    """Time one call, repeated until it has lasted long enough to be read off the clock.

    Args:
        work: What to do.
        least: Seconds that all repeats together take at least.

    Returns:
        Seconds per call.
    """
    count, begun = 0, time.perf_counter()
    while (passed := time.perf_counter() - begun) < least or not count:
        work()
        count += 1
    return passed / count


def side_by_side(
    what: str,
    against: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    equal: str,
    sense: Literal["faster", "cost"] = "faster",
    reach: float | None = None,
    rounds: int = ROUNDS,
    note: str = "",
) -> Row:
    """Time ours and the peer in turn.

    Args:
        what: See `Row`.
        against: See `Row`.
        ours: Our side; called once before anything is timed, as the peer is.
        peer: The other side.
        equal: See `Row`; the caller has compared the results.
        sense: See `Row`.
        reach: See `Row`.
        rounds: Pairs of readings. The side that goes first changes with every round.
        note: See `Row`.

    Returns:
        The row.
    """
    ours()
    peer()
    mine: list[float] = []
    theirs: list[float] = []
    for turn in range(rounds):
        gc.collect()
        sides = [(mine, ours), (theirs, peer)]
        for found, work in sides if turn % 2 == 0 else sides[::-1]:
            found.append(seconds(work))
    return row_of(what, against, mine, theirs, equal, sense, reach, note)


def row_of(
    what: str,
    against: str,
    mine: Sequence[float],
    theirs: Sequence[float],
    equal: str,
    sense: Literal["faster", "cost"] = "faster",
    reach: float | None = None,
    note: str = "",
) -> Row:
    """Make a row of readings that were taken in pairs.

    Args:
        what: See `Row`.
        against: See `Row`.
        mine: Our seconds.
        theirs: The peer's, as many.
        equal: See `Row`.
        sense: See `Row`.
        reach: See `Row`.
        note: See `Row`.

    Returns:
        The row.
    """
    pairs = zip(mine, theirs, strict=True)
    ratios = tuple(b / a if sense == "faster" else a / b for a, b in pairs)
    return Row(what, against, sense, reach, ratios, statistics.median(mine), statistics.median(theirs), equal, note)
