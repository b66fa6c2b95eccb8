"""From readings to a verdict: remembered, hidden, damaged, erased, or undecided where nothing can tell."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from analysis.audit.bands import FAMILY_LEVEL, deviation, gold_band
from analysis.audit.behaviour import confusion, forget_accuracy, incoming_accuracy, over_forgetting, retain_accuracy
from analysis.audit.bench import Bench, Reading
from analysis.audit.distance import distance_to_gold
from analysis.audit.membership import example_membership, population_membership
from analysis.audit.probing import probes
from analysis.audit.relearning import relearning
from analysis.audit.report import Audit, AuditReport, Band, Finding, Measurement, Verdict
from analysis.audit.similarity import similarity_to_gold

AuditProgress = Callable[[str, float], None]

NOT_MEASURED = (
    "attackers with more than half of the test images of the forgotten class",
    "distributions over many edited models (KLoM's divergence, the NeurIPS-2023 epsilon): one edited model was seen",
    "reconstruction of training images from the weights",
)


def readings(bench: Bench, progress: AuditProgress | None = None) -> list[Reading]:
    """Let every auditor look at all models.

    Args:
        bench: The models.
        progress: Called with what is running and the share done, 0 to 1.

    Returns:
        The raw numbers, in a fixed order.
    """

    def tell(what: str, share: float) -> None:
        if progress:
            progress(what, share)

    tell("behaviour", 0.0)
    found = [forget_accuracy(bench), retain_accuracy(bench)]
    incoming = incoming_accuracy(bench)
    found += [incoming] if incoming else []
    found += [confusion(bench), over_forgetting(bench), distance_to_gold(bench)]
    found += [population_membership(bench), example_membership(bench)]
    tell("similarity to gold", 0.05)
    found += similarity_to_gold(bench)
    tell("probes", 0.1)
    found += probes(bench, lambda share: tell("probes", 0.1 + 0.2 * share))
    found += relearning(bench, lambda share: tell("relearning", 0.3 + 0.7 * share))
    return found


def _band(reading: Reading, golds: Sequence[str], level: float) -> Band:
    values = reading.yardstick or [reading.values[gold] for gold in golds if gold in reading.values]
    return gold_band(values, reading.scale, reading.outside, level, reading.resolution)


def _distance(reading: Reading, band: Band, model: str) -> float:
    return deviation(reading.values[model], band, reading.scale, reading.outside, reading.resolution)


def _beyond(reading: Reading, band: Band, model: str) -> bool:
    value = reading.values[model]
    return value > band.edge if reading.outside == "above" else value < band.edge


def measured(
    found: Sequence[Reading], golds: Sequence[str], left_out: Mapping[str, str] | None = None, retrained: bool = True
) -> list[Measurement]:
    """Draw the gold bands and decide, from golds and controls alone, which auditors have the power to count.

    The family level of 5% is divided equally, first among all readings to see which of them put the model that they
    must tell apart outside the band, then among those only.

    Args:
        found: What the auditors read.
        golds: Names of the gold models, at least two.
        left_out: Auditors that can't count for another reason, and the reason.
        retrained: Whether the golds are models of their own. Then what they kept is where one more of them is
            expected, and damage counts whether or not a control shows it: an edit can break more than the control did.

    Returns:
        One measurement per reading, in the same order.
    """
    wide = FAMILY_LEVEL / len(found)
    why: list[str] = []
    for reading in found:
        if left_out and reading.auditor in left_out:
            why.append(left_out[reading.auditor])
            continue
        if retrained and reading.role == "damage":
            why.append("")
            continue
        if reading.telling not in reading.values:
            why.append("no control to measure its power with")
            continue
        band = _band(reading, golds, wide)
        if _beyond(reading, band, reading.telling):
            why.append("")
        else:
            far = _distance(reading, band, reading.telling)
            why.append(f"no power: it puts the {reading.telling} model at {far:+.1f} gold sd, inside the band")
    level = FAMILY_LEVEL / max(1, sum(not reason for reason in why))
    out = []
    for reading, reason in zip(found, why, strict=True):
        band = _band(reading, golds, level if not reason else wide)
        power = _distance(reading, band, reading.telling) if reading.telling in reading.values else None
        out.append(
            Measurement(
                auditor=reading.auditor,
                group=reading.group,
                layer=reading.layer,
                shots=reading.shots,
                role=reading.role,
                unit=reading.unit,
                outside=reading.outside,
                scale=reading.scale,
                values=dict(reading.values),
                spread=dict(reading.spread),
                repeats=reading.repeats,
                examples=reading.examples,
                band=band,
                power=power,
                counted=not reason,
                why_not=reason,
                curve_x=list(reading.curve_x),
                curves={name: list(curve) for name, curve in reading.curves.items()},
            )
        )
    return out


@dataclass(frozen=True)
class Words:
    """How a verdict speaks.

    Attributes:
        knows: What a model that knows does, after "the model".
        knew_not: What one that forgot does, likewise.
        gone: What is gone.
        yardstick: What it is compared with, in the plural.
        harmless: What the band of the rest is of, where that is something else.
    """

    knows: str
    knew_not: str
    gone: str
    yardstick: str = "models that never knew"
    harmless: str = ""


def class_words(forgotten: str) -> Words:
    """Speak of a class.

    Args:
        forgotten: The forgotten classes, readable.

    Returns:
        The words.
    """
    return Words(f'still answers "{forgotten}"', f'no longer answers "{forgotten}"', f'"{forgotten}" is gone')


def fact_words(forgotten: str, yardstick: str, harmless: str = "") -> Words:
    """Speak of facts.

    Args:
        forgotten: Whom they are about.
        yardstick: What the model is compared with, in the plural.
        harmless: See `Words`.

    Returns:
        The words.
    """
    return Words(
        f"still knows {forgotten}",
        f"no longer answers questions about {forgotten}",
        f"what was known of {forgotten} is gone",
        yardstick,
        harmless,
    )


def _sentence(
    words: Words,
    verdict: Verdict,
    damaged: bool,
    seen: Sequence[Finding],
    told: Sequence[Finding],
    n: Mapping[str, int],
) -> str:
    # `seen`: inner findings outside the band; `told`: all on what is known; `n`: golds behind each band.
    counted = [f for f in told if f.counted]
    sizes = sorted({n[f.auditor] for f in counted or told})
    never = f"{' to '.join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))} {words.yardstick}"
    below = f"the rest is below the band of {words.harmless or never}"
    tail = f" It is also damaged: {below}." if damaged else ""
    if verdict == "remembered":
        return f"Remembered: the model {words.knows}." + tail
    if verdict == "undecided":
        return "Undecided: no auditor here can tell a model that knows from one that never knew." + tail
    if verdict == "hidden":
        worst = max(seen, key=lambda f: f.distance)
        judged = any(f.role == "behaviour" for f in counted)
        answers = f"the model {words.knew_not}" if judged else "what the model answers can't be judged here"
        how_many = "1 auditor still sees" if len(seen) == 1 else f"{len(seen)} of {len(counted)} auditors still see"
        return (
            f"Hidden, not erased: {answers}, but {how_many} it (most plainly: {worst.auditor}, {worst.distance:.1f} sd "
            f"from {n[worst.auditor]} {words.yardstick}).{tail}"
        )
    if verdict == "damaged":
        return f"Damaged: {words.gone}, but {below}."
    few = 2 * len(counted) < len(told)
    but = f" But only {len(counted)} of {len(told)} auditors have the power to tell here." if few else ""
    return f"Erased: all {len(counted)} auditors that can tell see it among {never}.{but}"


def judge(model: str, measurements: Sequence[Measurement], found: Sequence[Reading], words: Words) -> Audit:
    """Judge one model by where it lies.

    Args:
        model: Its name.
        measurements: From `measured`.
        found: The readings behind them, in the same order; those that the model has no part in are passed over.
        words: How the verdict speaks.

    Returns:
        The verdict: "remembered" when behaviour is beyond the band, else "hidden" when an inner auditor is, else
        "undecided" when no auditor of either kind counts, else "damaged" when retained behaviour is below the band,
        else "erased".

    Raises:
        ValueError: A measurement has no band.
    """
    findings = []
    for measurement, reading in zip(measurements, found, strict=True):
        if measurement.band is None:
            raise ValueError(f"{measurement.auditor} has no band")
        if model not in measurement.values:
            continue
        findings.append(
            Finding(
                auditor=measurement.auditor,
                role=measurement.role,
                value=measurement.values[model],
                distance=_distance(reading, measurement.band, model),
                inside=not _beyond(reading, measurement.band, model),
                counted=measurement.counted,
            )
        )
    outside = {role: [f for f in findings if f.counted and not f.inside and f.role == role] for role in _ROLES}
    told = [f for f in findings if f.role != "damage"]
    damaged = bool(outside["damage"])
    if outside["behaviour"]:
        verdict: Verdict = "remembered"
    elif outside["inner"]:
        verdict = "hidden"
    elif not any(f.counted for f in told):
        verdict = "undecided"
    else:
        verdict = "damaged" if damaged else "erased"
    golds = {m.auditor: m.band.n for m in measurements if m.band}
    sentence = _sentence(words, verdict, damaged and verdict != "damaged", outside["inner"], told, golds)
    return Audit(model=model, verdict=verdict, damaged=damaged, sentence=sentence, findings=findings)


_ROLES = ("behaviour", "inner", "damage")


def audit(bench: Bench, progress: AuditProgress | None = None) -> AuditReport:
    """Audit every model on the bench against the golds among them.

    Args:
        bench: The models.
        progress: Called with what is running and the share done, 0 to 1.

    Returns:
        The whole report, as written to `audit.json`.
    """
    found = readings(bench, progress)
    measurements = measured(found, bench.golds)
    forgotten = bench.subject.forget_names
    return AuditReport(
        subject=bench.subject.name,
        forgotten=forgotten,
        seed=bench.seed,
        golds=list(bench.golds),
        measurements=measurements,
        audits={
            name: judge(name, measurements, found, class_words(forgotten))
            for name in bench.models
            if name not in bench.golds
        },
        not_measured=[*NOT_MEASURED, *(f"{m.auditor}: {m.why_not}" for m in measurements if m.why_not)],
    )
