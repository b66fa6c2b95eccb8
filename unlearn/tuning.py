"""An equal budget for everybody: settings of every method searched on data that the audit never sees.

Each round, every method proposes one setting (optuna's TPE, the usual settings first), all are compared on the subject
that plays its test split with training data (`choosing`), and each is told how far it was from gold there. After as
many rounds for every method the nearest one goes into the comparison proper. Searched are the positive fractional
settings: weights and temperatures from a quarter to four times the usual value, and learning rates, whose right value
depends on the model more than on the method, from a thirtieth to thirty times.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from analysis.errors import UserError
from analysis.files import write_text
from unlearn.cells import own_place
from unlearn.comparison import Request, gather, with_methods
from unlearn.documents import RunConfig
from unlearn.methods import METHODS, Method, named
from unlearn.methods.language import LANGUAGE_METHODS
from unlearn.stages import Report, locked
from unlearn.table import Row, tabulate

if TYPE_CHECKING:
    import optuna

SPAN, SPAN_OF_RATES = 4.0, 30.0
DIGITS = 3


def searched(method: Method) -> dict[str, float]:
    """List the settings that are searched.

    Args:
        method: With the settings that it is given.

    Returns:
        Usual values by name.
    """
    settings = {field.name: getattr(method.settings, field.name) for field in dataclasses.fields(method.settings)}
    return {name: value for name, value in settings.items() if isinstance(value, float) and value > 0}


def spans(usual: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Say where settings are searched.

    Args:
        usual: Usual values by name.

    Returns:
        Lowest and highest value by name.
    """
    reach = {name: SPAN_OF_RATES if name == "lr" or name.endswith("_lr") else SPAN for name in usual}
    return {name: (value / reach[name], value * reach[name]) for name, value in usual.items()}


def tuned(request: Request, trials: int, folder: Path, report: Report) -> tuple[str, ...]:
    """Search the settings of every method with the same number of trials.

    The search looks at the first subject and the first seed only.

    Args:
        request: What is to be compared.
        trials: Settings tried of each method, the usual ones among them.
        folder: Of the comparison; `choosing` in it keeps the trials, `tuning.json` all that was tried.
        report: Called with what is running and the share done.

    Returns:
        The methods' names with the best settings behind them.

    Raises:
        UserError: There are no trials to make, or the request itself is about choosing.
    """
    import optuna

    name, config = next(iter(request.configs.items()))
    if trials < 1 or config.choosing:
        raise UserError("Tuning needs at least one trial, and a comparison that is not itself --choosing.")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    on = dataclasses.replace(
        request,
        configs={name: config.model_copy(update={"choosing": True})},
        seeds=request.seeds[:1],
        fresh=0,
    )
    known = METHODS if isinstance(config, RunConfig) else LANGUAGE_METHODS
    methods = {each: named(own_place(each)[0], known) for each in request.methods}
    studies = {each: optuna.create_study(sampler=_sampler(request.seeds[0], trials)) for each in methods}
    tried: dict[str, list[tuple[str, float]]] = {each: [] for each in methods}
    with locked(folder / "choosing"):
        for number in range(trials):
            asked = {}
            for each, study in studies.items():
                usual = searched(methods[each])
                if number == 0:
                    study.enqueue_trial(usual)
                places: dict[str, optuna.distributions.BaseDistribution] = {
                    n: optuna.distributions.FloatDistribution(*ends, log=True) for n, ends in spans(usual).items()
                }
                trial = study.ask(places)
                asked[each] = trial, _named(each, trial.params, usual)
            valid = [text for _, text in asked.values() if _valid(text, known)]
            outcomes = gather(
                with_methods(on, list(dict.fromkeys(valid))), folder / "choosing", _prefixed(report, number, trials)
            )
            far = functools.partial(_distance, tabulate(outcomes).rows)
            for each, (trial, text) in asked.items():
                value = far(text)
                tried[each].append((text, value))
                if math.isfinite(value):
                    studies[each].tell(trial, value)
                else:
                    studies[each].tell(trial, state=optuna.trial.TrialState.FAIL)
            write_text(folder / "tuning.json", json.dumps(tried, indent=1))
    return tuple(min(found, key=lambda one: one[1])[0] for found in tried.values())


def _sampler(seed: int, trials: int) -> "optuna.samplers.BaseSampler":
    import optuna

    # Half of a small budget at random, then by what was found.
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(2, trials // 2))


def _prefixed(report: Report, number: int, trials: int) -> Report:
    return lambda stage, share: report(f"tuning {number + 1} of {trials}: {stage}", share)


def _named(each: str, params: Mapping[str, float], usual: Mapping[str, float]) -> str:
    spec, place = own_place(each)
    changed = {n: float(f"{v:.{DIGITS}g}") for n, v in params.items()}
    spec += "".join(f":{n}={v:g}" for n, v in changed.items() if not math.isclose(v, usual[n]))
    return f"{spec}@{place}" if place else spec


def _valid(text: str, known: Mapping[str, Method]) -> bool:
    try:
        named(own_place(text)[0], known)
    except UserError:
        return False
    return True


def _distance(rows: Sequence[Row], text: str) -> float:
    # Mean over the places of a method as it was asked for; one that failed anywhere is out.
    spec, place = own_place(text)
    mine = [row for row in rows if row.ranks and row.name == spec and place in {"", row.place}]
    if not mine or any(row.failed or not row.distance for row in mine):
        return math.inf
    return fmean(fmean(row.distance) for row in mine)
