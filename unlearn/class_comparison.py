"""One seed of a comparison on classes: original, golds, cheats, every cell's edit, and one audit of them all."""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from analysis.ablation import CausalScore
from analysis.audit.bench import Bench
from analysis.audit.verdict import audit
from analysis.errors import UserError
from analysis.files import write_text
from analysis.localization import MEASURES, LocalizationReport
from unlearn.cells import AUDIT, NONE, RANDOM, Cell, CellNote, SeedNotes, attempt, cross, gains
from unlearn.documents import RunConfig
from unlearn.edit import Edit
from unlearn.judging import OVERFORGETTING, cheat, checkpoints
from unlearn.methods import METHODS
from unlearn.run import Run, save_model
from unlearn.stages import Report, locked
from unlearn.table import GOLD

FRESH = "fresh gold"


def class_cells(
    config: RunConfig, methods: Sequence[str], places: Sequence[str], fractions: Sequence[float]
) -> list[Cell]:
    """Cross methods with places, as far as they can go there.

    Args:
        config: Says whether a class is forgotten or replaced.
        methods: Names, as `unlearn.methods.named` reads them.
        places: "none" for every weight, "random", or measures that locate.
        fractions: How much each may change.

    Returns:
        The cells.

    Raises:
        UserError: There is no such method or measure, or a method can do nothing at any of the places.
    """
    everything = cross(methods, METHODS, places, fractions)
    elsewhere = {*places, *(cell.place for cell in everything)} - {*MEASURES, NONE, RANDOM}
    if elsewhere or not places:
        known = ", ".join([*MEASURES, NONE, RANDOM])
        raise UserError(f"There is no measure {next(iter(elsewhere), '')!r}; give some of {known} with --locate.")
    task = "forget" if config.subject.replace_with is None else "replace"
    retraining = METHODS["retrain"].run
    cells = [
        cell
        for cell in everything
        if cell.method.task in {task, "both"} and (cell.method.run is not retraining or cell.place == NONE)
    ]
    idle = {cell.method.name for cell in everything} - {cell.method.name for cell in cells}
    if idle:
        raise UserError(
            f"The method {min(idle)!r} can't do this at {', '.join(places)}; leave it out, or give --replace-with to "
            "replace a class and --locate none to change every weight."
        )
    return cells


def read_classes(
    config: RunConfig,
    folder: Path,
    methods: Sequence[str],
    places: Sequence[str],
    fractions: Sequence[float],
    fresh: int,
    report: Report,
) -> None:
    """Do one subject with one seed and leave its `cells.Outcome` in the folder.

    Args:
        config: Subject, seed and golds; its method makes the cheats, its measure is what "random" places are like.
        folder: The run folder.
        methods: See `class_cells`.
        places: See `class_cells`; of more than one measure the causal check is made too.
        fractions: See `class_cells`.
        fresh: Golds beside the band, for the audit to be tested on.
        report: Called with what is running and the share done.
    """
    cells = class_cells(config, methods, places, fractions)
    measures = [measure for measure in MEASURES if measure in {*places, *(cell.place for cell in cells)}]
    several = len(measures) > 1
    run = Run(config, folder, report)
    with locked(folder):
        run.original()
        run.locate(measures, check_causes=several)
        run.train_golds()
        never = run.train_fresh_golds(fresh)
        cheat(run)
        found = gains(_causal(folder)) if several else {}
        notes = [_edit(run, cell, found.get(cell.place)) for cell in cells]
        _audit(run, [note.key for note in notes if not note.failed], never)
        alone = [run.stages.records[f"fresh gold {i + 1} of {fresh}"]["seconds"] for i in range(fresh)]
        seconds = fmean(alone) if alone else None
        SeedNotes(subject=run.subject.name, seed=config.seed, never=GOLD, retraining=seconds, cells=notes).save(folder)


def _edit(run: Run, cell: Cell, gain: float | None) -> CellNote:
    settings = {**run.task, **run.config.sight, **cell.method.identity, "place": cell.place, "fraction": cell.fraction}
    settings |= {"scope": run.config.scope}
    path = f"cells/{cell.key}.safetensors"

    def edit() -> dict[str, float]:
        before = run.model("models/original.safetensors")
        mask = None if cell.fraction is None else run.cut(cell.place, cell.fraction)
        started = time.perf_counter()
        after = cell.method.run(before, run.seen, mask, run.config.seed, cell.method.settings, None)
        seconds = time.perf_counter() - started
        made = Edit.between(before.state_dict(), after.state_dict())
        save_model(run.folder / path, after)
        return {"changed": made.count / made.total, "seconds": round(seconds, 2)}

    def work(_: object) -> dict[str, float | str]:
        facts = attempt(edit)
        if "failed" in facts:
            save_model(run.folder / path, run.model("models/original.safetensors"))
        return facts

    needs = ["models/original.safetensors", "mask.safetensors"]
    needs += [f"scores/{cell.place}.safetensors"] if cell.place in MEASURES else []
    facts = run.stages.run(cell.key, settings, needs, [path], work)
    return cell.note(facts, gain)


def _audit(run: Run, cells: Sequence[str], fresh: Sequence[str]) -> None:
    files = {name: path for name, path in checkpoints(run).items() if name != "edited"}
    files |= {f"{FRESH} {i}": path for i, path in enumerate(fresh)}
    files |= {cell: f"cells/{cell}.safetensors" for cell in cells}

    def judge(_: object) -> None:
        models = {name: run.model(path) for name, path in files.items()}
        bench = Bench(run.subject, models, run.golds, overforgetting=OVERFORGETTING, seed=run.config.seed)
        report = audit(bench, lambda _, share: run.report("comparing", share))
        write_text(run.folder / AUDIT, report.model_dump_json(indent=1))

    settings = {**run.task, "points": run.subject.network.points}
    run.stages.run("comparing", settings, list(files.values()), [AUDIT], judge)


def _causal(folder: Path) -> list[CausalScore]:
    return LocalizationReport.model_validate_json((folder / "localization.json").read_text(encoding="utf-8")).causal
