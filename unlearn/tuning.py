"""An equal budget for everybody: settings of every method searched on data that the audit never sees.

Every method gets as many trials: its usual settings, and points of a Latin hypercube around them, which cover the range
of each setting evenly however few they are. All are compared on the subject that plays its test split with training
data (`choosing`), and the one that comes nearest to gold there goes into the comparison proper. Searched are the
positive fractional settings: weights and temperatures from a quarter to four times the usual value, and learning rates,
whose right value depends on the model more than on the method, from a thirtieth to thirty times.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from scipy.stats import qmc

from analysis.errors import UserError
from analysis.files import write_text
from unlearn.cells import own_place
from unlearn.comparison import Request, gather, with_methods
from unlearn.documents import RunConfig
from unlearn.methods import METHODS, Method, named
from unlearn.methods.language import LANGUAGE_METHODS
from unlearn.stages import Report, locked
from unlearn.table import Row, tabulate

SPAN, SPAN_OF_RATES = 4.0, 30.0
DIGITS = 3
DRAWS = 8
"""Hypercubes that are drawn to fill up for points that a method refuses."""


def searched(method: Method) -> dict[str, tuple[float, float]]:
    """Say where which settings are searched.

    Args:
        method: With the settings that it is given.

    Returns:
        Lowest and highest value by name.
    """
    settings = {field.name: getattr(method.settings, field.name) for field in dataclasses.fields(method.settings)}
    usual = {name: value for name, value in settings.items() if isinstance(value, float) and value > 0}
    reach = {name: SPAN_OF_RATES if name == "lr" or name.endswith("_lr") else SPAN for name in usual}
    return {name: (value / reach[name], value * reach[name]) for name, value in usual.items()}


def proposals(name: str, known: Mapping[str, Method], trials: int, seed: int) -> list[str]:
    """Propose settings for a method.

    Args:
        name: As it was asked for, perhaps with settings and a place.
        known: The methods of the family.
        trials: How many; one where nothing is searched.
        seed: Of the hypercube.

    Returns:
        Names with settings behind them, the given one first; in the place of what the method refuses stand others.
    """
    spec, place = own_place(name)
    ranges = searched(named(spec, known))
    if not ranges or trials < 2:
        return [name]
    found = [name]
    for again in range(DRAWS):
        for point in qmc.LatinHypercube(len(ranges), rng=[seed, again]).random(trials - 1):
            values = [low * (high / low) ** share for share, (low, high) in zip(point, ranges.values(), strict=True)]
            text = spec + "".join(f":{n}={value:.{DIGITS}g}" for n, value in zip(ranges, values, strict=True))
            if len(found) < trials and _accepted(text, known):
                found.append(f"{text}@{place}" if place else text)
    return found


def _accepted(text: str, known: Mapping[str, Method]) -> bool:
    try:
        named(text, known)
    except UserError:
        return False
    return True


def tuned(request: Request, trials: int, folder: Path, report: Report) -> tuple[str, ...]:
    """Search the settings of every method with the same number of trials.

    The search looks at the first subject and the first seed only.

    Args:
        request: What is to be compared.
        trials: Settings tried of each method, the usual ones among them.
        folder: Of the comparison; `choosing` in it keeps the trials, `tuning.json` what was tried and how far from gold
            it came (None where it failed).
        report: Called with what is running and the share done.

    Returns:
        The methods' names with the best settings behind them.

    Raises:
        UserError: There are no trials to make, or the request itself is about choosing.
    """
    name, config = next(iter(request.configs.items()))
    if trials < 1 or config.choosing:
        raise UserError("Tuning needs at least one trial, and a comparison that is not itself --choosing.")
    seed = request.seeds[0]
    known = METHODS if isinstance(config, RunConfig) else LANGUAGE_METHODS
    asked = {each: proposals(each, known, trials, seed) for each in request.methods}
    choosing = {name: config.model_copy(update={"choosing": True})}
    on = dataclasses.replace(request, configs=choosing, seeds=(seed,), fresh=0)
    with locked(folder / "choosing"):
        everything = with_methods(on, [text for found in asked.values() for text in found])
        rows = tabulate(gather(everything, folder / "choosing", _prefixed(report))).rows
    far = {each: {text: _distance(rows, text) for text in found} for each, found in asked.items()}
    shown = {
        each: {text: value if math.isfinite(value) else None for text, value in found.items()}
        for each, found in far.items()
    }
    write_text(folder / "tuning.json", json.dumps(shown, indent=1))
    return tuple(min(found, key=lambda text: found[text]) for found in far.values())


def _prefixed(report: Report) -> Report:
    return lambda stage, share: report(f"tuning: {stage}", share)


def _distance(rows: Sequence[Row], text: str) -> float:
    # Mean over the places of a method as it was asked for; one that failed anywhere is out.
    spec, place = own_place(text)
    mine = [row for row in rows if row.ranks and row.name == spec and place in {"", row.place}]
    if not mine or any(row.failed or not row.distance for row in mine):
        return math.inf
    return fmean(fmean(row.distance) for row in mine)
