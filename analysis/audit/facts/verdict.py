"""From readings of cases to the verdict: calibrated on planted facts, judged by what never having known looks like."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev

from scipy import stats

from analysis.audit.bench import Reading
from analysis.audit.facts.case import Case, FactReading
from analysis.audit.facts.inside import lens, truth_probe
from analysis.audit.facts.prompting import in_context, leak, soft_prompt
from analysis.audit.facts.recall import recall
from analysis.audit.facts.relearning import benign_relearning, relearning
from analysis.audit.facts.retained import drawn_again, retained
from analysis.audit.facts.rounding import rounding
from analysis.audit.report import AuditReport, Calibration
from analysis.audit.verdict import Words, judge, measured

Job = Callable[[Case], FactReading | list[FactReading] | None]
CaseReadings = Mapping[str, Sequence[FactReading]]
CALIBRATED_LEVEL = 0.01
NOT_MEASURED = (
    "a model trained from scratch without the subject: none exists for a pretrained model, twins stand in for it",
    "attackers with more facts, steps or another optimiser than the budget printed in run.json",
    "reconstruction of training texts, membership inference on them, and other languages",
)


def read_case(
    case: Case, keeps: bool = True, attacks: bool = True, progress: Callable[[float], None] | None = None
) -> list[FactReading]:
    """Let every auditor look at one case.

    Args:
        case: The model and the facts.
        keeps: Also read what must stay; the twins of one model share that with it.
        attacks: Also attack and look inside, instead of only asking.
        progress: Called with the share done, 0 to 1.

    Returns:
        The readings, in a fixed order; an auditor for which the budget leaves nothing is absent.
    """
    budget = case.budget
    inner: list[tuple[bool, Job]] = [
        (True, lens),
        (budget.probe, truth_probe),
        (budget.taught > 0, in_context),
        (budget.roundings > 0, rounding),
        (budget.samples > 0, leak),
        (budget.soft_steps > 0, soft_prompt),
        (budget.benign_steps > 0, benign_relearning),
        (budget.steps > 0, relearning),
    ]
    jobs: list[Job] = [recall, *(job for wanted, job in inner if wanted and attacks), *([retained] if keeps else [])]
    out: list[FactReading] = []
    for done, job in enumerate(jobs):
        if progress:
            progress(done / len(jobs))
        found = job(case)
        out += found if isinstance(found, list) else [found] if found else []
    return out


def calibrate(knows: Sequence[FactReading], never: Sequence[FactReading]) -> list[Calibration]:
    """Measure how well each auditor parts planted facts from the same facts never planted.

    Args:
        knows: Readings of the model into which the facts were planted.
        never: Of the model into which they were not, with the same auditors on the same facts.

    Returns:
        For each auditor of knowledge the AUC over facts, and whether it is above one half beyond chance (one-sided
        Mann-Whitney test at 1%); an auditor that is not stays out of the verdict.
    """
    other = {reading.auditor: reading for reading in never}
    out = []
    for reading in knows:
        if reading.role == "damage" or reading.telling != "original" or reading.auditor not in other:
            continue
        mine, theirs = reading.values, other[reading.auditor].values
        test = stats.mannwhitneyu(mine, theirs, alternative="greater" if reading.outside == "above" else "less")
        auc = float(test.statistic) / (len(mine) * len(theirs))
        out.append(
            Calibration(
                auditor=reading.auditor,
                auc=auc if reading.outside == "above" else 1 - auc,
                p=float(test.pvalue),
                facts=len(mine),
                separates=bool(test.pvalue < CALIBRATED_LEVEL),
            )
        )
    return out


def gather(cases: CaseReadings, golds: Sequence[str], original: str = "original", seed: int = 0) -> list[Reading]:
    """Put the cases side by side, one reading per auditor.

    Args:
        cases: Readings by the name of the case.
        golds: Names of the cases that never knew. One that did not read what must stay gets the original's readings
            drawn again.
        original: Name of the case that knows.
        seed: Of these draws.

    Returns:
        Means over facts, with their standard errors as spread; auditors that the original lacks are left out.
    """
    readings = []
    for model in cases[original]:
        per_case = {name: {one.auditor: one for one in found} for name, found in cases.items()}
        values: dict[str, FactReading] = {}
        for number, name in enumerate(cases):
            mine = per_case[name].get(model.auditor)
            if mine is None and name in golds and model.role == "damage":
                mine = drawn_again(model, 1000 * seed + number)
            if mine is not None:
                values[name] = mine
        if not all(gold in values for gold in golds):
            continue
        readings.append(
            Reading(
                auditor=model.auditor,
                group=model.group,
                role=model.role,
                unit=model.unit,
                outside=model.outside,
                scale=model.scale,
                values={name: fmean(one.values) for name, one in values.items()},
                spread={
                    name: stdev(one.values) / math.sqrt(len(one.values)) if len(one.values) > 1 else 0.0
                    for name, one in values.items()
                },
                examples=len(model.values),
                telling=model.telling,
                resolution=1e-3,
                curve_x=model.curve_x,
                curves={name: one.curve for name, one in values.items() if one.curve},
            )
        )
    return readings


def audit_facts(
    name: str,
    forgotten: str,
    cases: CaseReadings,
    golds: Sequence[str],
    words: Words,
    planted: tuple[str, str] | None = None,
    seed: int = 0,
) -> AuditReport:
    """Judge every case by those that never knew.

    Args:
        name: Of the subject.
        forgotten: What was to be forgotten, readable.
        cases: Readings by the name of the case; "original" and the golds among them.
        golds: Names of the cases that never knew.
        words: How the verdict speaks of it.
        planted: Names of the case that knows planted facts, and of the one that was never shown them.
        seed: Of the draws.

    Returns:
        The report, as written to `audit.json`.
    """
    found = gather(cases, golds, seed=seed)
    calibration = calibrate(cases[planted[0]], cases[planted[1]]) if planted else []
    left_out = {
        one.auditor: f"does not part planted facts from never planted ones (AUC {one.auc:.2f}, {one.facts} facts)"
        for one in calibration
        if not one.separates
    }
    measurements = measured(found, golds, left_out)
    audits = {case: judge(case, measurements, found, words) for case in cases if case not in golds}
    return AuditReport(
        subject=name,
        forgotten=forgotten,
        seed=seed,
        golds=list(golds),
        measurements=measurements,
        audits=audits,
        not_measured=[*NOT_MEASURED, *(f"{m.auditor}: {m.why_not}" for m in measurements if m.why_not)],
        calibration=calibration,
        yardstick=words.yardstick,
    )
