"""Audits and localisations for the figure tests: whole documents whose numbers are drawn from a fixed seed."""

import math

import numpy as np

from analysis.ablation import CausalScore, Curve
from analysis.audit.bands import deviation, gold_band
from analysis.audit.report import Audit, AuditReport, Finding, Measurement
from analysis.localization import LocalizationReport

CONTROLS = ("logit mask", "head only", "random mask", "over-forgetting")
LEVEL = 0.05


def measurement(
    rng: np.random.Generator,
    auditor: str,
    group: str,
    role: str,
    centre: float,
    scatter: float,
    away: dict[str, float],
    golds: list[str],
    *,
    outside: str = "above",
    scale: str = "identity",
    counted: bool = True,
    unit: str = "share",
    examples: int = 500,
    curves: dict[str, list[float]] | None = None,
    **more: object,
) -> Measurement:
    values = {**{name: float(centre + scatter * rng.standard_normal()) for name in golds}, **away}
    band = gold_band([values[name] for name in golds], scale, outside, LEVEL / 10, 1 / examples)
    return Measurement(
        auditor=auditor,
        group=group,
        role=role,
        unit=unit,
        outside=outside,
        scale=scale,
        values=values,
        spread=dict.fromkeys(values, 0.01),
        repeats=3,
        examples=examples,
        band=band,
        power=12.0,
        counted=counted,
        why_not="" if counted else "no power: it puts the original model at +0.4 gold sd, inside the band",
        curve_x=[float(x) for x in range(41)] if curves else [],
        curves=curves or {},
        **more,
    )


def curve(steps: float, longest: int = 40) -> list[float]:
    if not math.isfinite(steps):
        return [0.0] * (longest + 1)
    return [
        float(1 / (1 + np.exp(-(x - steps) / (0.35 * steps)))) - (0.054 if x == 0 else 0) for x in range(longest + 1)
    ]


def report(
    behaviour: dict[str, dict[str, float]],
    golds: list[str],
    layers: list[str],
    forgotten: str,
    incoming: bool,
    counts: tuple[int, int],
) -> AuditReport:
    rng = np.random.default_rng(0)
    names = ["original", "edited", "untrained", *CONTROLS]

    def away(*numbers: float) -> dict[str, float]:
        return dict(zip(names, numbers, strict=True))

    def golden(values: dict[str, float], group: str, role: str, outside: str, auditor: str) -> Measurement:
        examples = counts[0 if role == "behaviour" else 1]
        return measurement(rng, auditor, group, role, 0, 0, values, golds, outside=outside, examples=examples)

    def measurement_(*args: object, **more: object) -> Measurement:
        return measurement(rng, *args, golds=golds, **more)

    found = [
        golden(behaviour["forget"], "forget accuracy", "behaviour", "above", "accuracy on the forgotten"),
        golden(behaviour["retain"], "retain accuracy", "damage", "below", "accuracy on the rest"),
    ]
    if incoming:
        found.append(golden(behaviour["retain"], "incoming accuracy", "damage", "below", "accuracy on the new class"))
    found += [
        measurement_(
            "confusion of the forgotten", "confusion", "inner", 0.1, 0.02, away(0.9, 0.12, 0.7, 0.3, 0.2, 0.9, 0.4)
        ),
        measurement_(
            "over-forgetting",
            "over-forgetting",
            "inner",
            8,
            0.5,
            away(0.1, 9, 2.3, 1e300, 11, 0.2, 60),
            scale="log",
            unit="nats",
        ),
        measurement_(
            "membership, one threshold",
            "membership",
            "inner",
            0.53,
            0.01,
            away(0.54, 0.52, 0.5, 0.53, 0.53, 0.53, 0.52),
            counted=False,
            unit="AUC",
        ),
    ]
    for i, layer in enumerate(layers):
        where = "outputs" if layer == "outputs" else f"hidden {i + 1}"
        found.append(
            measurement_(
                f"CKA to gold, {where}",
                "similarity",
                "inner",
                0.97,
                0.005,
                away(0.9, 0.94, 0.6, 0.9, 0.91, 0.9, 0.92),
                outside="below",
                layer=layer,
                unit="CKA",
            )
        )
        for shots in (1, 5, 20, 0):
            found.append(
                measurement_(
                    f"{f'{shots}-shot' if shots else 'full'} probe, {where}",
                    "probe",
                    "inner",
                    0.78 + 0.04 * i,
                    0.012,
                    away(0.96, 0.93, 0.75, 0.96, 0.95, 0.96, 0.88),
                    scale="logit",
                    unit="balanced accuracy" if shots else "AUC",
                    layer=layer,
                    shots=shots,
                    counted=i > 0,
                )
            )
    for fresh, hard in ((False, math.inf), (True, 2.4)):
        steps = away(1.0, 3.5, 2.0, hard, 2.0, 1.0, 5.0)
        gold_steps = {name: 8 + 2 * float(rng.random()) for name in golds}
        curves = {name: curve(x) for name, x in {**steps, **gold_steps}.items()}
        found.append(
            measurement_(
                "relearning, fresh head" if fresh else "relearning",
                "relearn",
                "inner",
                0,
                0,
                {k: min(v, 40) for k, v in {**steps, **gold_steps}.items()},
                outside="below",
                scale="log",
                unit="steps",
                curves=curves,
            )
        )

    def judged(model: str) -> Audit:
        findings = []
        for m in found:
            far = deviation(m.values[model], m.band, m.scale, m.outside, 1 / m.examples)
            beyond = m.values[model] > m.band.edge if m.outside == "above" else m.values[model] < m.band.edge
            findings.append(
                Finding(
                    auditor=m.auditor,
                    role=m.role,
                    value=m.values[model],
                    distance=far,
                    inside=not beyond,
                    counted=m.counted,
                )
            )
        verdict = "remembered" if model in {"original", "random mask"} else "hidden"
        sentence = (
            f'Hidden, not erased: the model no longer answers "{forgotten}", but 7 of 12 auditors still see it '
            "(most plainly: "
            f"5-shot probe, outputs, 11.2 sd from {len(golds)} models that never knew)."
        )
        return Audit(model=model, verdict=verdict, damaged=False, sentence=sentence, findings=findings)

    return AuditReport(
        subject="test",
        forgotten=forgotten,
        seed=0,
        golds=golds,
        measurements=found,
        audits={name: judged(name) for name in names},
        not_measured=["the weather"],
    )


def localization(layers: list[str], measures: list[str]) -> LocalizationReport:
    rng = np.random.default_rng(1)
    n = len(measures)
    table = np.clip(0.35 * rng.random((n, n)), 0, 1)
    table = np.tril(table, -1) + np.tril(table, -1).T + np.eye(n)
    x = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3]

    def rows(start: float, at: float) -> list[list[float]]:
        falling = [start / (1 + (f / at) ** 1.5) for f in x]
        return [np.clip(value + 0.02 * rng.standard_normal(3), 0, 1).tolist() for value in falling]

    def both(measure: str, control: str | None, layer: str | None, at: float, most: int = len(x)) -> Curve:
        forget, retain = rows(0.95, at)[:most], rows(0.94, 0.2)[:most]
        return Curve(measure=measure, control=control, layer=layer, x=x[:most], forget=forget, retain=retain)

    curves = []
    for i, measure in enumerate(measures):
        curves += [both(measure, None, None, 0.004 * (i + 1)), both(measure, "random", None, 0.2)]
    curves += [both("all", "layer", layer, 0.02, 3 + i % 4) for i, layer in enumerate(layers)]
    return LocalizationReport(
        measures=measures,
        fraction=0.05,
        iou={a: {b: float(table[i, j]) for j, b in enumerate(measures)} for i, a in enumerate(measures)},
        curves=curves,
        causal=[CausalScore(measure=m, mean=0.4, sd=0.02, n=3, low=0.3, better_than_chance=True) for m in measures],
        n_forget=100,
        n_retain=900,
        forget_before=0.95,
        retain_before=0.94,
        scored_forget=200,
        scored_retain=1000,
        seeds=[0, 1, 2],
    )
