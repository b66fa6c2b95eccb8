"""Builds folders of runs on facts for the figure tests: the real documents with numbers drawn from a fixed seed."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from analysis.ablation import Curve, causal_scores
from analysis.audit.facts.case import FactReading
from analysis.audit.facts.verdict import HARMLESS, audit_facts
from analysis.audit.verdict import fact_words
from analysis.fact_causal_check import FRACTIONS, FactLocalization
from analysis.files import save_tensors, write_text
from analysis.scores import Scores
from unlearn.edit import Edit
from unlearn.language.pictures import Lens, Patching, Pictures, Survival, Touched, touched

LLAMA = {
    "self_attn.q_proj": (12, 12), "mlp.gate_proj": (48, 12), "mlp.up_proj": (48, 12), "mlp.down_proj": (12, 48),
}  # fmt: skip
GPT2 = {"attn.c_attn": (8, 24), "mlp.c_fc": (8, 32), "mlp.c_proj": (32, 8)}
RELATIONS = ("birth_city", "a_relation_with_a_very_long_name", "spouse", "founder", "song_content", "death_year")
WORDS = (
    " Liverpool",
    " the",
    "\n",
    " unbelievably-long-token",
    " Ringo",
    "\u4e2d\u6587",
    " ",
    "$x_1$",
    " John",
    "1969",
)
CONTROLS = ("random-mask", "output-filter", "last-block", "refusal", "over-forgetting")
PLANTED = ("planted", "planted-filtered", "never-planted")
# Of original, edited, the five controls, the planted world, and a twin: shares of the right answer before logit noise.
ASKED = (0.85, 0.12, 0.7, 0.1, 0.2, 0.15, 0.02, 0.95, 0.4, 0.15, 0.16)
INSIDE = (0.9, 0.6, 0.85, 0.8, 0.7, 0.75, 0.1, 0.95, 0.8, 0.16, 0.17)
KEPT = (0.9, 0.86, 0.85, 0.9, 0.8, 0.82, 0.3, 0.88, 0.87, 0.89, 0.9)
STEPS = (0.0, 4.0, 8.0, 12.0)


def readings(index: int, rng: np.random.Generator, keeps: bool, samples: bool) -> list[FactReading]:
    def shares(centre: float, n: int, noise: float = 0.5) -> tuple[float, ...]:
        raised = math.log(centre / (1 - centre)) + noise * rng.standard_normal(n)
        return tuple((1 / (1 + np.exp(-raised))).tolist())

    def one(auditor: str, group: str, role: str, values: tuple[float, ...], **more: object) -> FactReading:
        facts = tuple(f"fact-{i}" for i in range(len(values)))
        return FactReading(auditor=auditor, group=group, role=role, facts=facts, values=values,
                           **{"unit": "share", **more})  # fmt: skip

    asked, inside, kept = ASKED[index], INSIDE[index], KEPT[index]
    taught = shares((asked + inside) / 2, 20)
    start = float(np.mean(shares(asked, 20)))
    curve = tuple(start + (float(np.mean(taught)) - start) * (1 - math.exp(-x / 4)) for x in STEPS)
    loud = tuple((8 * (asked - 0.15) + rng.standard_normal(40)).tolist())
    found = [
        one("right answer, facts shown to the method", "recall", "behaviour", shares(asked, 20)),
        one("right answer, facts held out", "recall", "behaviour", shares(asked, 20)),
        one("right answer ranked first", "recall", "behaviour", shares(asked, 20), unit="share of prompts"),
        one("strongest wording", "paraphrase", "inner", shares((asked + inside) / 2, 20)),
        one("over-forgetting", "over-forgetting", "inner", loud,
            unit="nats", outside="below", telling="over-forgetting"),
        one("asked the other way round", "reverse", "inner", shares(0.5, 9)),
        one("logit lens, best layer", "lens", "inner", shares(inside, 20)),
        one("probe for true statements", "probe", "inner", shares(0.7, 40), unit="accuracy"),
        one("weights rounded to 4 bits", "rounding", "inner", shares((2 * asked + inside) / 3, 20)),
        one("after tuning on unrelated text", "benign", "inner", shares((asked + inside) / 2, 20)),
        one("relearn some facts, test others", "relearn", "inner", taught, curve_x=STEPS, curve=curve),
    ]  # fmt: skip
    if samples:
        found.append(one("said in 8 samples", "leak", "inner", shares(0.3 * inside, 20), unit="share of samples"))
    if keeps:
        more = {"outside": "below", "telling": "over-forgetting"}
        found += [
            one("right answer, kept facts", "retained", "damage", shares(kept, 60), **more),
            one("loss on plain text", "retained", "damage", tuple((4 - kept + 0.3 * rng.standard_normal(60)).tolist()),
                unit="nats per token", outside="above", telling="over-forgetting"),
        ]  # fmt: skip
    return found


def curves(rng: np.random.Generator, measures: list[str], prefix: str, blocks: list[int]) -> list[Curve]:
    def one(measure: str, control: str | None, layer: str | None, at: float) -> Curve:
        def rows(where: float) -> list[list[float]]:
            return [np.clip(0.9 / (1 + f / where) + 0.02 * rng.standard_normal(2), 0, 1).tolist() for f in FRACTIONS]

        return Curve(
            measure=measure, control=control, layer=layer, x=list(FRACTIONS), forget=rows(at), retain=rows(0.2)
        )

    found = [one(m, control, None, at) for m in measures for control, at in ((None, 0.002), ("random", 0.2))]
    return found + [one("all", "layer", f"{prefix}.{block}", 0.05) for block in blocks]


def pictures(
    folder: Path, rng: np.random.Generator, counted: dict[str, Touched], blocks: int, tokens: int, patched: bool,
    name: str,
) -> None:  # fmt: skip
    def text(number: int) -> str:
        return WORDS[number % len(WORDS)]

    def noise(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape)).float()

    tensors, patching = {}, None
    if patched:
        shapes = {"resid": (blocks, tokens), "attn": (blocks, tokens), "mlp": (blocks, tokens), "head": (blocks, 9)}
        for site, shape in shapes.items():
            tensors[f"exact.{site}"] = 0.2 * noise(*shape)
            tensors[f"guess.{site}"] = tensors[f"exact.{site}"] + 0.05 * noise(*shape)
        clean = [text(i) for i in range(tokens)]
        patching = Patching(
            clean=clean, corrupt=[" Stones" if i == 2 else one for i, one in enumerate(clean)], answer=" Liverpool",
            wrong=" London", lead_clean=4.2, lead_corrupt=-1.3,
            rank_correlation={"resid": 0.93, "attn": 0.71, "mlp": -0.2, "head": math.nan},
        )  # fmt: skip
    grid = {m: [[text(7 * i + 3 * j + k) for j in range(tokens)] for i in range(blocks + 1)]
            for k, m in enumerate(("original", "edited"))}  # fmt: skip
    for m in grid:
        tensors[f"lens.{m}"] = torch.from_numpy(rng.random((blocks + 1, tokens)) ** 2).float()
    sizes = (20, 15, 12)
    groups = torch.tensor([i for i, n in enumerate(sizes) for _ in range(n)])
    tensors["map.original"] = noise(len(groups), 2) + 3 * groups[:, None]
    tensors["map.edited"] = tensors["map.original"] + noise(len(groups), 2)
    tensors["map.group"] = groups
    shares = [sorted(rng.random(3)) for _ in RELATIONS]
    told = Pictures(
        touched=counted,
        patching=patching,
        lens=Lens(tokens=[text(i) for i in range(tokens)], **grid),
        survival=Survival(
            relations=list(RELATIONS), facts=[9, 7, 4, 4, 2, 1], original=[s[2] for s in shares],
            edited=[s[1] for s in shares], twin=[s[0] for s in shares],
        ),
        groups=[name, "neighbours", "far facts"], cka=[0.41, 0.93, 0.97], layer=max(1, 3 * blocks // 4), layers=blocks,
    )  # fmt: skip
    write_text(folder / "pictures.json", told.model_dump_json(indent=1))
    save_tensors(folder / "pictures.safetensors", tensors)


def make_fact_run(
    folder: Path, blocks: int = 30, quick: bool = False, name: str = "the Beatles", measure: str = "gradient-ratio",
    matrices: dict[str, tuple[int, int]] = LLAMA, prefix: str = "model.layers", tokens: int = 11, twins: int = 6,
) -> Path:  # fmt: skip
    rng = np.random.default_rng(5)
    controls = CONTROLS[1:2] + CONTROLS[-1:] if quick else CONTROLS
    golds = [f"twin-{i:02d}" for i in range(twins)]
    every = ("original", "edited", *CONTROLS, *PLANTED)
    kept = ["original", "edited", *controls, *(() if quick else PLANTED)]
    cases = {one: readings(every.index(one), rng, True, not quick) for one in kept}
    cases |= {gold: readings(len(every), rng, False, not quick) for gold in golds}
    if twins > 3:  # the last was only asked
        cases[golds[-1]] = [one for one in cases[golds[-1]] if one.group not in {"relearn", "rounding", "benign"}]
    cases[HARMLESS] = [one for one in readings(0, rng, True, not quick) if one.role == "damage"]
    planted = None if quick else ("planted", "never-planted")
    audit = audit_facts("test", name, cases, golds, fact_words(name, "twins that never existed"), planted, 0)
    write_text(folder / "audit.json", audit.model_dump_json(indent=1))

    generator = torch.Generator().manual_seed(1)
    sizes = {
        f"{prefix}.{block}.{matrix}.weight": shape for block in range(blocks) for matrix, shape in matrices.items()
    }
    weights = {n: torch.randn(shape, generator=generator) for n, shape in sizes.items()}
    strength = {n: (place % 7 + 1) * w.abs() for place, (n, w) in enumerate(weights.items())}
    scores = Scores({n: s for n, s in strength.items() if "attn" not in n}, "parameter", measure)
    mask = scores.top(0.02)
    mask.save(folder / "mask.safetensors")
    if measure == "neuron-ig":
        downs = [n.removesuffix(".weight") for n in weights if "down_proj" in n or "mlp.c_proj" in n]
        values = {n: torch.rand(32, generator=generator) for n in downs}
        Scores(values, "unit", measure, "nats", 0.1, sizes).save(folder / "scores" / f"{measure}.safetensors")
    else:
        scores.per_unit().save(folder / "scores" / f"{measure}.safetensors")
    after = {n: torch.where(mask.bits[n] & (w > 0), w + 1, w) if n in mask.bits else w for n, w in weights.items()}
    edit = Edit.between(weights, after)
    edit.save(folder / "edit.safetensors")

    if not quick:
        measures = ["gradient", "gradient-ratio", "fisher", "fisher-ratio", "neuron-ig"]
        found = curves(rng, measures, prefix, list(range(0, blocks, 5)))
        document = FactLocalization(
            measures=measures, within="mlp", fraction=0.02, iou={a: dict.fromkeys(measures, 1.0) for a in measures},
            curves=found, causal=causal_scores(found), n_forget=16, n_retain=16, forget_before=0.9, retain_before=0.88,
            layers={m: [1 / blocks] * blocks for m in measures}, seeds=[0, 1],
        )  # fmt: skip
        write_text(folder / "localization.json", document.model_dump_json())
    counted = touched({n: w.numel() for n, w in weights.items()}, mask, edit)
    pictures(folder, rng, counted, blocks, tokens, not quick, name)
    total = sum(w.numel() for w in weights.values()) + 5000
    config = {"family": "facts", "measure": measure, "method": "rmu", "seed": 0, "twins": twins}
    report = {"schema_version": 1, "name": "test", "config": config, "total": total, "changed": 1}
    write_text(folder / "run.json", json.dumps(report))
    return folder


def changed(folder: Path, to: Path, name: str, change: Callable[[dict], None]) -> Path:
    """A copy of a run folder, without its figures, in which one document says something else."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("figures"))
    document = json.loads((to / name).read_text())
    change(document)
    (to / name).write_text(json.dumps(document))
    return to
