"""Method x auditor: every method on one subject, with and without the mask, over several seeds, as one table."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

from analysis.audit.bench import Bench
from analysis.audit.report import AuditReport, Document
from analysis.audit.verdict import audit
from analysis.errors import UserError
from analysis.files import write_text
from analysis.localization import MEASURES, LocalizationReport
from unlearn.documents import RunConfig
from unlearn.edit import Edit
from unlearn.judging import CHEATS, OVERFORGETTING, cheat, checkpoints
from unlearn.methods import METHODS, Method, named, slug
from unlearn.run import Run, save_model
from unlearn.stages import Report, locked

REFERENCES = ("original", "untrained", *CHEATS)
FRESH = "fresh gold"
GOLD = "gold (mean)"
TWINS_MEAN = "twins (mean)"
NEVER_KNEW = {GOLD, TWINS_MEAN}
MOST = 0.5
"""A method that might change everything and changed less than this share gets the share written beside it."""


class Row(Document):
    """One method, or reference, over all seeds.

    Attributes:
        name: Of the method or model.
        where: What it might change: "all", e.g. "20% damage-contrast", or "" for references.
        changed: Share of the weights that it changed, mean over seeds; None for references.
        seconds: Time of the edit, mean over seeds; None for references.
        mean: By auditor, mean over seeds.
        sd: By auditor, standard deviation over seeds (for golds: within a seed, mean over seeds).
        verdicts: One per seed (and, for fresh golds, per model).
        outside: By auditor that counts in that seed: how many seeds put it outside the band.
        gain: How much better than chance what located it does in the causal check, mean over seeds
            (`ablation.CausalScore`); None where that was not checked.
    """

    name: str
    where: str
    changed: float | None
    seconds: float | None
    mean: dict[str, float]
    sd: dict[str, float]
    verdicts: list[str]
    outside: dict[str, int]
    gain: float | None = None

    @property
    def beyond(self) -> float:
        """Auditors outside the band, mean over seeds."""
        return sum(self.outside.values()) / max(1, len(self.verdicts))


class Comparison(Document):
    """Everything in `comparison.json`.

    Attributes:
        schema_version: Of this document.
        subject: Its name.
        seeds: Of the draws, masks, attacks and edits; for classes each trains its own original and golds too.
        golds: Gold models, or twins, per seed.
        rows: References, then methods.
        failed: Methods that could not be run, and why.
    """

    schema_version: Literal[1] = 1
    subject: str
    seeds: list[int]
    golds: int
    rows: list[Row]
    failed: dict[str, str]


@dataclass(frozen=True)
class Cell:
    """One method at one place.

    Attributes:
        method: Which, settings included.
        place: "none" for every weight, "random", or the measure that locates.
        where: The same for people.
    """

    method: Method
    place: str
    where: str

    @property
    def key(self) -> str:
        """A name for its stage and file."""
        return f"{slug(self.method.name)}-{self.place}"


def _cells(run: Run, methods: Sequence[Method], places: Sequence[str]) -> list[Cell]:
    task = "forget" if run.subject.incoming is None else "replace"
    share = f"{100 * run.config.fraction:g}%"
    words = {"none": "all", "random": f"{share} at random"}
    retraining = METHODS["retrain"].run
    return [
        Cell(method, place, words.get(place, f"{share} {place}"))
        for method in methods
        for place in places
        if method.task in {task, "both"} and (method.run is not retraining or place == "none")
    ]


def _edits(run: Run, cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """Make every method's model; gives what each stage noted, by cell.

    Args:
        run: With original, scores, mask and golds in place.
        cells: Which.

    Returns:
        Facts and seconds by cell.
    """
    noted = {}
    for cell in cells:
        method = cell.method
        settings = {**run.task, "method": method.name, "settings": vars(method.settings), "place": cell.place}
        settings |= {"fraction": run.config.fraction, "scope": run.config.scope}

        def work(_: object, cell: Cell = cell, method: Method = method) -> dict[str, float]:
            before = run.model("models/original.safetensors")
            mask = None if cell.place == "none" else run.cut(cell.place)
            after = method.run(before, run.subject, mask, run.config.seed, method.settings, None)
            edit = Edit.between(before.state_dict(), after.state_dict())
            save_model(run.folder / f"cells/{cell.key}.safetensors", after)
            return {"changed": edit.count / edit.total}

        needs = ["models/original.safetensors", "mask.safetensors"]
        needs += [f"scores/{cell.place}.safetensors"] if cell.place in MEASURES else []
        facts = run.stages.run(cell.key, settings, needs, [f"cells/{cell.key}.safetensors"], work)
        noted[cell.key] = {**facts, "seconds": run.stages.records[cell.key]["seconds"]}
    return noted


def _audit(run: Run, cells: Sequence[Cell], fresh: Sequence[str]) -> AuditReport:
    files = {name: path for name, path in checkpoints(run).items() if name != "edited"}
    files |= {f"{FRESH} {i}": path for i, path in enumerate(fresh)}
    files |= {cell.key: f"cells/{cell.key}.safetensors" for cell in cells}

    def judge(_: object) -> None:
        models = {name: run.model(path) for name, path in files.items()}
        bench = Bench(run.subject, models, run.golds, overforgetting=OVERFORGETTING, seed=run.config.seed)
        report = audit(bench, lambda _, share: run.report("comparing", share))
        write_text(run.folder / "comparison-audit.json", report.model_dump_json(indent=1))

    settings = {**run.task, "points": run.subject.network.points}
    run.stages.run("comparing", settings, list(files.values()), ["comparison-audit.json"], judge)
    return AuditReport.model_validate_json((run.folder / "comparison-audit.json").read_text(encoding="utf-8"))


def row_of(
    name: str,
    where: str,
    models: Sequence[str],
    reports: Sequence[AuditReport],
    noted: Sequence[dict[str, dict[str, float]]],
) -> Row:
    """Sum up one line of the table.

    Args:
        name: Of the method or model.
        where: What it might change, readable.
        models: Names of its models in each report.
        reports: One per seed.
        noted: What the edits' stages noted, by model, one per seed.

    Returns:
        The line; auditors that did not look at the model in every seed are absent.
    """
    values = {
        m.auditor: [_value(report, m.auditor, model) for report in reports for model in models]
        for m in reports[0].measurements
        if all(_has(report, m.auditor, model) for report in reports for model in models)
    }
    mine = [report.audits[model] for report in reports for model in models if model not in NEVER_KNEW]
    facts = [one[model] for one in noted for model in models if model in one]
    return Row(
        name=name,
        where=where,
        changed=fmean(f["changed"] for f in facts) if facts else None,
        seconds=fmean(f["seconds"] for f in facts) if facts else None,
        mean={auditor: fmean(found) for auditor, found in values.items()},
        sd={
            auditor: fmean(_gold_sd(report, auditor) for report in reports)
            if name in NEVER_KNEW
            else (stdev(found) if len(found) > 1 else 0.0)
            for auditor, found in values.items()
        },
        verdicts=[each.verdict for each in mine],
        outside={
            auditor: sum(f.counted and not f.inside for each in mine for f in each.findings if f.auditor == auditor)
            for auditor in values
        },
    )


def _has(report: AuditReport, auditor: str, model: str) -> bool:
    found = next((m for m in report.measurements if m.auditor == auditor), None)
    return found is not None and (model in NEVER_KNEW or model in found.values)


def _value(report: AuditReport, auditor: str, model: str) -> float:
    measurement = next(m for m in report.measurements if m.auditor == auditor)
    if model in NEVER_KNEW:
        return fmean(measurement.values[gold] for gold in report.golds if gold in measurement.values)
    return measurement.values[model]


def _gold_sd(report: AuditReport, auditor: str) -> float:
    measurement = next(m for m in report.measurements if m.auditor == auditor)
    return stdev(measurement.values[gold] for gold in report.golds if gold in measurement.values)


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse a comparison without seeds.

    Args:
        seeds: Of the comparison.

    Raises:
        UserError: There are none.
    """
    if not seeds:
        raise UserError("A comparison needs at least one seed; give --seeds 1 or more.")


def compare(
    config: RunConfig,
    folder: Path,
    seeds: Sequence[int],
    methods: Sequence[str],
    places: Sequence[str],
    fresh: int,
    report: Report,
) -> Comparison:
    """Make the table; whatever is there already and unchanged is used again.

    Beside the methods stand the references: the original, the golds' mean, fresh golds that are not in the band (the
    audit must call them erased), an untrained model, and the cheats (which it must call out).

    Args:
        config: Subject, measure, fraction and golds; its method makes the cheats, its seed is not used.
        folder: Holds a run folder for each seed, `seed-N`, and then `comparison.json`.
        seeds: Each trains its own original and golds, and decides everything else random.
        methods: Which, as `unlearn.methods.named` reads them; none for the references alone.
        places: What each may change: "none" for every weight, "random", or measures that locate; of more than one
            measure the causal check is made too.
        fresh: Fresh golds per seed.
        report: Called with what is running and the share done.

    Returns:
        The table, as written.

    Raises:
        UserError: There is no such method or measure.
    """
    check_seeds(seeds)
    asked = [named(name, METHODS) for name in dict.fromkeys(methods)]
    places = list(dict.fromkeys(places))
    elsewhere = [place for place in places if place not in {*MEASURES, "none", "random"}]
    if elsewhere or not places:
        known = ", ".join([*MEASURES, "none", "random"])
        raise UserError(f"There is no measure {elsewhere[0] if places else ''!r}; give some of {known} with --locate.")
    reports, noted = [], []
    runs = [Run(config.model_copy(update={"seed": s}), folder / f"seed-{s}", _prefixed(report, s)) for s in seeds]
    cells = _cells(runs[0], asked, places)
    idle = next((method.name for method in asked if all(cell.method is not method for cell in cells)), None)
    if idle is not None:
        raise UserError(
            f"The method {idle!r} can't do this at {', '.join(places)}; leave it out, or give --replace-with to "
            "replace a class and --locate none to change every weight."
        )
    several = len({*places} - {"none", "random"}) > 1
    for run in runs:
        with locked(run.folder):
            run.original()
            run.locate(places, check_causes=several)
            run.edit()
            run.train_golds()
            never = run.train_fresh_golds(fresh)
            cheat(run)
            noted.append(_edits(run, cells))
            reports.append(_audit(run, cells, never))
    shown = {REFERENCES[0]: REFERENCES[:1], GOLD: [GOLD], FRESH: [f"{FRESH} {i}" for i in range(fresh)]}
    shown |= {name: [name] for name in REFERENCES[1:]}
    rows = [row_of(name, "", models, reports, noted) for name, models in shown.items() if models]
    gains = _gains(runs) if several else {}
    for cell in cells:
        row = row_of(cell.method.name, cell.where, [cell.key], reports, noted)
        rows.append(row.model_copy(update={"gain": gains.get(cell.place)}))
    found = Comparison(subject=runs[0].subject.name, seeds=list(seeds), golds=len(runs[0].golds), rows=rows, failed={})
    write_text(folder / "comparison.json", found.model_dump_json(indent=1))
    write_text(folder / "comparison.md", markdown(found))
    return found


def _gains(runs: Sequence[Run]) -> dict[str, float]:
    # By measure, over seeds; the random control is what gains are counted from.
    reports = [
        LocalizationReport.model_validate_json((run.folder / "localization.json").read_text(encoding="utf-8"))
        for run in runs
    ]
    found = [{score.measure: score.mean for score in report.causal} for report in reports]
    return {"random": 0.0} | {measure: fmean(one[measure] for one in found) for measure in found[0]}


def _prefixed(report: Report, seed: int) -> Report:
    return lambda stage, share: report(f"seed {seed}: {stage}", share)


def markdown(found: Comparison) -> str:
    """Write the table for people.

    Args:
        found: The comparison.

    Returns:
        A Markdown table: mean +- sd over seeds, * where some seed puts the value outside the gold band.
    """
    auditors = [a for a in COLUMNS if a in found.rows[0].mean]
    head = ["model", "may change", *(COLUMNS[a] for a in auditors), "auditors outside", "verdict"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in found.rows:
        where = row.where
        if where == "all" and row.changed is not None and row.changed < MOST:
            where = f"all (changed {100 * row.changed:.2g}%)"
        cells = [row.name, where]
        for auditor in auditors:
            if auditor not in row.mean:
                cells.append("")
                continue
            star = "*" if row.outside.get(auditor) else ""
            cells.append(f"{row.mean[auditor]:.3g} ± {row.sd[auditor]:.2g}{star}")
        counted = Counter(row.verdicts)
        said = ", ".join(
            f"{verdict} {n}x" if len(row.verdicts) > 1 else verdict for verdict, n in counted.most_common()
        )
        cells += [f"{row.beyond:.1f}" if row.verdicts else "", said]
        lines.append("| " + " | ".join(cells) + " |")
    never = "twins" if any(row.name == TWINS_MEAN for row in found.rows) else "golds"
    n = f"{len(found.seeds)} seeds ({', '.join(map(str, found.seeds))}), {found.golds} {never} each"
    one = never.removesuffix("s")
    note = (
        f"{found.subject}: mean ± sd over {n}; {one}: sd among {never}. * outside the {one} band in at least one seed."
    )
    failures = [f"{name} failed: {why}" for name, why in found.failed.items()]
    return "\n".join([*lines, "", note, *failures, ""])


COLUMNS = {
    "accuracy on the forgotten": "forgotten",
    "accuracy on the rest": "rest",
    "5-shot probe, hidden 1": "5-shot 1",
    "5-shot probe, hidden 2": "5-shot 2",
    "5-shot probe, hidden 3": "5-shot 3",
    "full probe, outputs": "full probe, outputs",
    "CKA to gold, hidden 1": "CKA 1",
    "CKA to gold, hidden 2": "CKA 2",
    "CKA to gold, hidden 3": "CKA 3",
    "distance to gold": "distance",
    "over-forgetting": "loss",
    "relearning": "relearn",
    "relearning, fresh output": "relearn, fresh output",
    "right answer, facts shown to the method": "shown",
    "right answer, facts held out": "held out",
    "right answer ranked first": "first",
    "beside a stranger, facts held out": "held out, beside a stranger",
    "strongest wording": "strongest wording",
    "asked the other way round": "reverse",
    "logit lens, best layer": "lens",
    "4 other facts in the prompt": "in context",
    "extraction strength": "extraction",
    "weights rounded to 4 bits, groups of 32": "4 bits",
    "soft prompt trained on other facts": "soft prompt",
    "after tuning on unrelated text": "benign",
    "relearn some facts, test others": "relearn",
    "right answer, kept facts": "kept facts",
    "loss on plain text": "text loss",
}
