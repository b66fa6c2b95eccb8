"""From readings of cases to the verdict: calibrated on planted facts, judged by what never having known looks like."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev

from scipy import stats

from analysis.audit.bands import to_scale
from analysis.audit.bench import Reading
from analysis.audit.facts.case import Case, FactReading
from analysis.audit.facts.inside import lens, truth_probe
from analysis.audit.facts.prompting import in_context, leak, soft_prompt
from analysis.audit.facts.recall import recall, reverse
from analysis.audit.facts.relearning import benign_relearning, relearning
from analysis.audit.facts.retained import drawn_again, retained
from analysis.audit.facts.rounding import rounding
from analysis.audit.report import AuditReport, Calibration
from analysis.audit.verdict import Words, judge, measured

Job = Callable[[Case], FactReading | list[FactReading] | None]
CaseReadings = Mapping[str, Sequence[FactReading]]
ATTACKS: Mapping[str, Job] = {
    "reverse": reverse,
    "probe": truth_probe,
    "context": in_context,
    "rounding": rounding,
    "sampling": leak,
    "soft prompt": soft_prompt,
    "unrelated text": benign_relearning,
    "relearning": relearning,
}
CALIBRATED_LEVEL = 0.01
FEWEST_FACTS = math.ceil(-math.log2(CALIBRATED_LEVEL))
"""With fewer, not even facts that are all parted reach that level."""
FEWEST_GOLDS = 3
DRAWS = 40
HARMLESS = "harmless"
"""Name of the original after a moment of tuning on unrelated text: how far one that is no worse may differ from it."""
NEVER_TRAINED = "a model trained from scratch without the subject: none exists here, twins stand in for it"
NOT_MEASURED = (
    "attackers with more facts, steps or another optimiser than the audit's budget",
    "reconstruction of training texts, membership inference on them, and other languages",
)


def read_case(
    case: Case, keeps: bool = True, attacks: bool = True, progress: Callable[[float], None] | None = None
) -> list[FactReading]:
    """Let every auditor look at one case.

    Args:
        case: The model and the facts.
        keeps: Also read what must stay; the twins of one model share that with it.
        attacks: Also attack, instead of only asking and looking inside.
        progress: Called with the share done, 0 to 1.

    Returns:
        The readings, in a fixed order.
    """
    wanted = case.budget.attacks if attacks else ()
    jobs: list[Job] = [recall, lens, *(ATTACKS[name] for name in wanted), *([retained] if keeps else [])]
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
        For each auditor of knowledge the AUC over facts, and whether the first model is ahead beyond chance (one-sided
        Wilcoxon signed-rank test at 1%: both are asked about the same facts); an auditor for which it is not stays out
        of the verdict.
    """
    other = {reading.auditor: reading for reading in never}
    out = []
    for reading in knows:
        if reading.role == "damage" or reading.telling != "original" or reading.auditor not in other:
            continue
        sign = 1 if reading.outside == "above" else -1
        mine, theirs = ([sign * value for value in one.values] for one in (reading, other[reading.auditor]))
        apart = [a - b for a, b in zip(mine, theirs, strict=True)]
        # Ties of all pairs leave nothing to test.
        p = float(stats.wilcoxon(apart, alternative="greater").pvalue) if any(apart) else 1.0
        auc = float(stats.mannwhitneyu(mine, theirs).statistic) / (len(mine) * len(theirs))
        out.append(Calibration(auditor=reading.auditor, auc=auc, p=p, facts=len(mine), separates=p < CALIBRATED_LEVEL))
    return out


def _beside(reading: FactReading) -> FactReading:
    if not reading.beside:
        return reading
    return reading.model_copy(
        update={"values": reading.beside, "curve": reading.beside_curve, "unit": f"{reading.unit} beside a stranger"}
    )


def sharpened(
    cases: CaseReadings,
    golds: Sequence[str],
    planted: tuple[str, str] | None = None,
    original: str = "original",
) -> dict[str, list[FactReading]]:
    """Choose for each auditor between its values and the same beside a stranger.

    What tells the original from those that never knew by more of their standard deviations is taken, for all cases
    alike; no edited model has a say. In a large model the strangers take off most of the noise; in one so small that a
    name it has not seen says nothing, it adds some. What does not part planted facts from never planted ones is taken
    only when the other does not either.

    Args:
        cases: Readings by the name of the case.
        golds: Names of the cases that never knew.
        planted: Names of the case that knows planted facts, and of the one that was never shown them.
        original: Name of the case that knows.

    Returns:
        The cases, with one kind of values an auditor.
    """
    plain = {name: {one.auditor: one for one in found} for name, found in cases.items()}
    beside = {name: {one.auditor: _beside(one) for one in found} for name, found in cases.items()}

    def power(kind: Mapping[str, Mapping[str, FactReading]], auditor: str) -> tuple[bool, float]:
        model = kind[original][auditor]
        means = [to_scale(fmean(model.values), model.scale)]
        means += [to_scale(fmean(kind[gold][auditor].values), model.scale) for gold in golds if auditor in kind[gold]]
        separates = True
        if planted:
            found = calibrate(*([kind[name][auditor]] if auditor in kind[name] else [] for name in planted))
            separates = all(one.separates for one in found)
        if len(means) < 1 + FEWEST_GOLDS:
            return separates, 0.0
        far = (means[0] - fmean(means[1:])) / max(stdev(means[1:]), 1e-9)
        return separates, far if model.outside == "above" else -far

    better = {one.auditor for one in cases[original] if power(beside, one.auditor) > power(plain, one.auditor)}
    return {
        name: [beside[name][one.auditor] if one.auditor in better else one for one in found]
        for name, found in cases.items()
    }


def _harmless_means(reading: FactReading, harmless: FactReading, seed: int) -> tuple[float, ...]:
    return tuple(fmean(drawn_again(reading, harmless, DRAWS * seed + draw).values) for draw in range(DRAWS))


def gather(cases: CaseReadings, golds: Sequence[str], original: str = "original", seed: int = 0) -> list[Reading]:
    """Put the cases side by side, one reading per auditor.

    Args:
        cases: Readings by the name of the case.
        golds: Names of the cases that never knew. One that did not read what must stay gets the original's readings
            drawn again, as far apart as the case `HARMLESS` is from it. One that was only asked takes no part where
            others were attacked.
        original: Name of the case that knows.
        seed: Of these draws.

    Returns:
        Means over facts, with their standard errors as spread; auditors that the original lacks, or that fewer than
        three of those that never knew have, are left out.
    """
    readings = []
    per_case = {name: {one.auditor: one for one in found} for name, found in cases.items()}
    for model in cases[original]:
        values: dict[str, FactReading] = {}
        drawn = False
        for number, name in enumerate(cases):
            mine = per_case[name].get(model.auditor)
            if mine is None and name in golds and model.role == "damage":
                mine = drawn_again(model, per_case[HARMLESS][model.auditor], 1000 * seed + number)
                drawn = True
            if mine is not None:
                values[name] = mine
        if sum(gold in values for gold in golds) < min(FEWEST_GOLDS, len(golds)):
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
                resolution=max(1e-3, model.step / len(model.values)),
                curve_x=model.curve_x,
                curves={name: one.curve for name, one in values.items() if one.curve},
                yardstick=_harmless_means(model, per_case[HARMLESS][model.auditor], seed) if drawn else (),
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
        cases: Readings by the name of the case; "original", `HARMLESS` and the golds among them.
        golds: Names of the cases that never knew.
        words: How the verdict speaks of it; without `harmless` the golds are models of their own.
        planted: Names of the case that knows planted facts, and of the one that was never shown them.
        seed: Of the draws.

    Returns:
        The report, as written to `audit.json`.
    """
    cases = sharpened(cases, golds, planted)
    found = gather(cases, golds, seed=seed)
    calibration = calibrate(cases[planted[0]], cases[planted[1]]) if planted else []
    left_out = {
        one.auditor: f"does not part planted facts from never planted ones (AUC {one.auc:.2f}, {one.facts} facts)"
        if one.facts >= FEWEST_FACTS
        else f"{one.facts} planted facts are too few to calibrate it, {FEWEST_FACTS} would do"
        for one in calibration
        if not one.separates
    }
    measurements = measured(found, golds, left_out, retrained=not words.harmless)
    audits = {case: judge(case, measurements, found, words) for case in cases if case not in {*golds, HARMLESS}}
    return AuditReport(
        subject=name,
        forgotten=forgotten,
        seed=seed,
        golds=list(golds),
        measurements=measurements,
        audits=audits,
        not_measured=[
            *([NEVER_TRAINED] if HARMLESS in cases else []),
            *NOT_MEASURED,
            *(f"{m.auditor}: {m.why_not}" for m in measurements if m.why_not),
        ],
        calibration=calibration,
        yardstick=words.yardstick,
    )
