"""Builds run folders for the figure tests: real networks and images, audit numbers drawn from a fixed seed."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

from analysis.ablation import CausalScore, Curve
from analysis.audit.bands import deviation, gold_band
from analysis.audit.report import Audit, AuditReport, Finding, Measurement
from analysis.files import save_tensors, write_text
from analysis.localization import LocalizationReport
from analysis.representations.capture import hidden
from analysis.scores import Mask, Scores
from analysis.subjects.classes import Recipe, Split
from analysis.subjects.data import load_images
from analysis.subjects.networks import builtin
from analysis.training import accuracy, fit, logits_of, seeded
from unlearn.edit import Edit

MEASURES = [
    "gradient",
    "weight-ig",
    "fisher",
    "fisher-true",
    "fisher-ratio",
    "brain-damage",
    "unit-ig",
    "patching-denoising",
    "patching-noising",
]
CONTROLS = ("logit mask", "head only", "random mask", "over-forgetting")
LEVEL = 0.05


def mnist(per_class: int = 40) -> tuple[Split, Split]:
    images = load_images("mnist-5k")

    def few(split: Split) -> Split:
        every = torch.cat([(split.labels == c).nonzero().flatten()[:per_class] for c in range(10)])
        return Split((split.images[every] - 0.5) / 0.5, split.labels[every])

    return few(images.train), few(images.test)


def noise(classes: int, channels: int, side: int, per_class: int = 6) -> tuple[Split, Split]:
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(classes, channels, side, side, generator=generator)
    labels = torch.arange(classes).repeat_interleave(per_class)
    images = centres[labels] + 0.5 * torch.randn(len(labels), channels, side, side, generator=generator)
    return Split(images, labels), Split(images.flip(0), labels.flip(0))


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


def located(model: nn.Module, split: Split, fraction: float) -> Mask:
    logits = model(split.images)
    gradients = torch.autograd.grad(nn.functional.cross_entropy(logits, split.labels), list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    return Scores({n: g.abs() for n, g in zip(names, gradients, strict=True)}, "parameter", "gradient").top(fraction)


def make_run(
    folder: Path,
    network: str = "mlp",
    classes: tuple[str, ...] = tuple("0123456789"),
    forget: tuple[int, ...] = (6,),
    incoming: int | None = None,
    slot: str = "own",
    channels: int = 1,
    side: int = 28,
    golds: int = 5,
    epochs: int = 3,
) -> Path:
    real = channels == 1 and side == 28 and len(classes) == 10
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train, test = mnist() if real else noise(len(classes), channels, side)
    net = builtin(network, (channels, side, side), len(classes))
    recipe = Recipe(epochs=epochs, batch=32 if real else 16, lr=3e-3)
    original = fit(net.make, train, recipe, [0])[0]
    gold_models = fit(net.make, train.without(forget), recipe, list(range(100, 100 + golds)))
    untrained = seeded(net.make, 999).eval()
    mask = located(original, train.only(forget), 0.05)

    edited = seeded(net.make, 0).eval()
    state = {k: v.clone() for k, v in original.state_dict().items()}
    fresh = seeded(net.make, 77).state_dict()
    for name, bits in mask.bits.items():
        state[name][bits] += 0.3 * fresh[name][bits]
    state[next(reversed(state))][list(forget)] = -20.0
    mask.bits[next(reversed(mask.bits))][list(forget)] = True
    edited.load_state_dict(state)

    gold_names = [f"gold-{i:02d}" for i in range(golds)]
    models = {
        "original": original,
        "edited": edited,
        "untrained": untrained,
        **dict(zip(gold_names, gold_models, strict=True)),
    }
    for name, model in models.items():
        save_tensors(folder / "models" / f"{name}.safetensors", model.state_dict())
    mask.save(folder / "mask.safetensors")
    Edit.between(original.state_dict(), state).save(folder / "edit.safetensors")

    forget_test, retain_test = test.only(forget), test.without(forget)
    behaviour = {
        what: {name: accuracy(model, split) for name, model in models.items()} | dict.fromkeys(CONTROLS, 0.5)
        for what, split in (("forget", forget_test), ("retain", retain_test))
    }
    words = ", ".join(classes[c] for c in forget)
    layers = [*net.points, "outputs"]
    counts = (len(forget_test), len(retain_test))
    audit = report(behaviour, gold_names, layers, words, incoming is not None, counts)
    write_text(folder / "audit.json", audit.model_dump_json(indent=1))
    owners = list(dict.fromkeys(n.rpartition(".")[0] for n, p in original.named_parameters() if p.dim() > 1))
    write_text(folder / "localization.json", localization(owners, MEASURES).model_dump_json())

    with (folder / "history.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "overall", "retain", "forget"])
        before, after = ((behaviour["retain"][m], behaviour["forget"][m]) for m in ("original", "edited"))
        for step in range(0, 101, 10):
            share = 1 - math.exp(-step / 15)
            kept, lost = (b + (a - b) * share for a, b in zip(after, before, strict=True))
            writer.writerow([step, 0.9 * kept + 0.1 * lost, kept, lost])

    write_text(
        folder / "run.json",
        json.dumps({
            "schema_version": 1,
            "config": {
                "classes": list(classes),
                "forget_labels": list(forget),
                "incoming_label": incoming,
                "subject": {"slot": slot},
                "points": list(net.points),
                "method": "regrow",
                "measure": "fisher-ratio",
                "fraction": 0.05,
                "seed": 0,
            },
            "verdict": "hidden",
            "sentence": audit.audits["edited"].sentence,
            "versions": {},
            "stages": {},
        }),
    )
    pictures(folder, models, test, forget, len(classes), net.points[-1])
    torch.set_num_threads(threads)
    return folder


def pictures(
    folder: Path, models: dict[str, nn.Module], test: Split, forget: tuple[int, ...], classes: int, head: str
) -> None:
    shown = {"original": models["original"], "edited": models["edited"], "gold": models["gold-00"]}
    mine = test.only(forget)
    tensors = {"six.images": mine.images[:6]}
    for name, model in shown.items():
        images = mine.images[:6].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(images)[torch.arange(len(images)), mine.labels[:6]].sum(), images)
        tensors[f"six.ig.{name}"] = (gradient * (images - images.min())).detach()
        tensors[f"six.residual.{name}"] = torch.full((len(images),), 1e-4)
        called = logits_of(model, test.images).argmax(1)
        tensors[f"confusion.{name}"] = torch.bincount(test.labels * classes + called, minlength=classes**2).view(
            classes, -1
        )
        features = hidden(model, [head], test.images)[head]
        base = hidden(shown["original"], [head], test.images)[head]
        axes = torch.linalg.svd(base - base.mean(0), full_matrices=False)[2][:2].T
        tensors[f"umap.{name}"] = (features - base.mean(0)) @ axes
    tensors["miss.images"] = mine.images
    tensors["miss.predicted"] = logits_of(shown["edited"], mine.images).argmax(1)
    tensors["umap.labels"] = test.labels
    notes = {
        "cka.edited": "0.9312",
        "cka.gold": "0.8701",
        "shift.edited": "1.25",
        "shift.gold": "2.5",
        "shift.edited.retain": "0.2",
        "shift.gold.retain": "0.3",
        "n": str(len(test)),
        "seed": "0",
    }
    save_tensors(folder / "pictures.safetensors", tensors, notes)
