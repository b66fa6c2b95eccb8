"""One seed of a comparison on facts: what it is compared with, and every cell's edit and readings."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from analysis.attribution.anatomy import anatomy
from analysis.audit.facts.verdict import audit_facts, read_case
from analysis.errors import UserError
from analysis.fact_causal_check import layer_mask
from analysis.fact_localization import MEASURES, candidates, mask_of, score
from analysis.files import write_text
from analysis.scores import Mask, check_fraction
from unlearn.cells import AUDIT, BLOCK, LAYERS, NONE, RANDOM, Cell, CellNote, SeedNotes, attempt, cross, gains
from unlearn.edit import Edit, state_of
from unlearn.language.config import FactRunConfig
from unlearn.language.prepare import is_lab, words_of
from unlearn.language.references import load_readings, save_readings
from unlearn.language.run import FactRun
from unlearn.methods.language import LANGUAGE_METHODS, LOCATED
from unlearn.stages import Report, locked
from unlearn.table import GOLD, TWINS_MEAN

SWEEP = 6


def fact_cells(methods: Sequence[str], places: Sequence[str], fractions: Sequence[float]) -> list[Cell]:
    """Cross methods with places, as far as they can go there.

    Args:
        methods: Names, as `unlearn.methods.named` reads them.
        places: "none" for every weight, "random", "layers" (every sixth block by itself), or measures that locate.
        fractions: Shares of all weights.

    Returns:
        The cells, "layers" still as one place.

    Raises:
        UserError: There is no such method or place, controls stand without a measure whose mask they are as large as,
            or a method that needs a mask gets none.
    """
    cells = cross(methods, LANGUAGE_METHODS, places, fractions)
    known = [*MEASURES, NONE, RANDOM, LAYERS]
    used = dict.fromkeys([*places, *(cell.place for cell in cells)])
    elsewhere = [place for place in used if place not in known]
    if elsewhere or not places:
        raise UserError(
            f"There is no measure {elsewhere[0] if places else ''!r}; give some of {', '.join(known)} with --locate."
        )
    if {RANDOM, LAYERS} & {*used} and not {*MEASURES} & {*used}:
        raise UserError(
            "Random places and layers are as large as what a measure locates; give one with --locate too, for example "
            "fisher,random."
        )
    masked = {LANGUAGE_METHODS[name].run for name in LOCATED}
    kept = [cell for cell in cells if cell.place != NONE or cell.method.run not in masked]
    idle = {cell.method.name for cell in cells} - {cell.method.name for cell in kept}
    if idle:
        raise UserError(f"The method {min(idle)!r} needs located weights; leave it out, or give a measure to --locate.")
    return kept


def read_facts(
    config: FactRunConfig,
    folder: Path,
    methods: Sequence[str],
    places: Sequence[str],
    fractions: Sequence[float],
    report: Report,
) -> None:
    """Do one bank with one seed and leave its `cells.Outcome` in the folder.

    Beside the methods stand the original, the twins' (in the lab: golds') mean, the cheats and, unless the run is
    quick, the planted world.

    Args:
        config: Bank, model, seed and budget.
        folder: The run folder.
        methods: Names, as `unlearn.methods.named` reads them.
        places: See `fact_cells`.
        fractions: Shares of all weights.
        report: Called with what is running and the share done.
    """
    asked = fact_cells(methods, places, fractions)
    run = FactRun(config, folder, report)
    run.check()
    blocks = [f"{BLOCK}{i}" for i in range(0, len(anatomy(run.language.model).blocks), SWEEP)]
    cells = [
        replace(cell, place=place) for cell in asked for place in (blocks if cell.place == LAYERS else [cell.place])
    ]
    measures = [place for place in dict.fromkeys([*places, *(cell.place for cell in cells)]) if place in MEASURES]
    with locked(run.references.folder, wait=True):
        cases = run.compared()
    with locked(folder):
        for measure in measures:
            _locate(run, measure, fractions)
        found = gains(run.check_causes(measures).causal) if len(measures) > 1 else {}
        notes = [_read(run, cell, next(iter(measures), ""), found.get(cell.place)) for cell in cells]
        mine = {note.key: load_readings(folder / f"cells/{note.key}.json") for note in notes if not note.failed}
        audit = audit_facts(
            run.subject.name,
            run.subject.forget_names,
            {**cases, **mine},
            run.references.golds,
            words_of(config, run.subject.forget_names),
            run.planted,
            config.seed,
        )
        write_text(folder / AUDIT, audit.model_dump_json(indent=1))
        never = GOLD if is_lab(config) else TWINS_MEAN
        SeedNotes(subject=run.subject.name, seed=config.seed, never=never, retraining=None, cells=notes).save(folder)


def _path(measure: str, fraction: float | None) -> str:
    return f"masks/{measure}-{fraction:g}.safetensors"


def _locate(run: FactRun, measure: str, fractions: Sequence[float]) -> None:
    # All shares from one set of scores, which are as large as the model and not kept.
    paths = {check_fraction(fraction): _path(measure, fraction) for fraction in fractions}

    def work(progress: Callable[[float], None]) -> None:
        scores = score(run.language.model, run.seen, measure, run.config.within, run.config.seed)
        progress(0.8)
        for fraction, path in paths.items():
            mask_of(run.language.model, scores, fraction).save(run.folder / path)

    settings = {**run.references.base, **run.config.sight, "within": run.config.within, "fractions": list(paths)}
    run.stages.run(f"locate by {measure}", settings, [], list(paths.values()), work)


def _mask(run: FactRun, cell: Cell, like: str) -> Mask | None:
    if cell.fraction is None:
        return None
    located = Mask.load(run.folder / _path(like if cell.control else cell.place, cell.fraction))
    if not cell.control:
        return located
    if cell.place == RANDOM:
        return located.random_like(run.config.seed)
    model = run.language.model
    block = cell.place.removeprefix(BLOCK)
    matrices = candidates(model, run.config.within)
    swept = layer_mask(model, matrices, anatomy(model).blocks[int(block)], located.count, run.config.seed)
    if swept is None:
        raise UserError(f"Block {block} has fewer candidates than the mask has weights; take a smaller fraction.")
    return swept


def _read(run: FactRun, cell: Cell, like: str, gain: float | None) -> CellNote:
    # One cell: edit and read; the edited model itself is not kept.
    path = f"cells/{cell.key}.json"

    def work(progress: Callable[[float], None]) -> dict[str, float | str]:
        before = run.language.model

        def edit() -> dict[str, float]:
            started = time.perf_counter()
            mask = _mask(run, cell, like)
            after = cell.method.run(before, run.seen, mask, run.config.seed, cell.method.settings, None)
            after.requires_grad_(False)
            spent = time.perf_counter() - started
            progress(0.5)
            made = Edit.between(state_of(before), state_of(after))
            case = run.references.case(after, run.subject, run.references.benign(after))
            save_readings(run.folder / path, read_case(case, progress=lambda share: progress(0.5 + share / 2)))
            return {"changed": made.count / made.total, "seconds": round(spent, 2)}

        facts = attempt(edit)
        if "failed" in facts:
            save_readings(run.folder / path, [])
        return facts

    settings = {**run.references.base, **run.config.sight, **cell.method.identity, "within": run.config.within}
    settings |= {"place": cell.place, "fraction": cell.fraction}
    needs = [] if cell.fraction is None else [_path(like if cell.control else cell.place, cell.fraction)]
    facts = run.stages.run(cell.key, settings, needs, [path], work)
    return cell.note(facts, gain)
