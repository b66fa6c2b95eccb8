"""Method x auditor for facts: every method under the located mask and none; one also at random places and by layer."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from analysis.attribution.anatomy import anatomy
from analysis.audit.facts.verdict import audit_facts, read_case
from analysis.audit.report import AuditReport
from analysis.errors import UserError
from analysis.fact_localization import candidates, layer_mask
from analysis.files import write_text
from analysis.scores import Mask
from unlearn.comparison import GOLD, TWINS_MEAN, Comparison, check_seeds, markdown, row_of
from unlearn.edit import Edit
from unlearn.language.config import FactRunConfig
from unlearn.language.prepare import is_lab, words_of
from unlearn.language.references import load_readings, save_readings
from unlearn.language.run import FactRun, state_of
from unlearn.methods import named, slug
from unlearn.methods.language import LANGUAGE_METHODS, LOCATED
from unlearn.stages import Report, locked

WHERE = ("all", "mask")
CONTROLS = ("random", "layers")
SWEEP = 6


def _cells(run: FactRun, methods: Sequence[str], wheres: Collection[str]) -> dict[str, tuple[str, str]]:
    c = run.config
    words = {"all": "all", "mask": f"{100 * c.fraction:g}% {c.measure}"}
    cells = {
        f"{slug(name)}-{where}": (name, words[where])
        for name in methods
        for where in WHERE
        if where in wheres and not (name.partition(":")[0] in LOCATED and where == "all")
    }
    if not methods:
        return cells
    name = run.method.name if run.method.name in methods else methods[0]
    if "random" in wheres:
        cells |= {f"{slug(name)}-random": (name, f"{100 * c.fraction:g}% at random")}
    if "layers" in wheres:
        blocks = range(0, len(anatomy(run.language.model).blocks), SWEEP)
        cells |= {f"{slug(name)}-block-{block}": (name, f"{100 * c.fraction:g}% in block {block}") for block in blocks}
    return cells


def _mask(run: FactRun, cell: str) -> Mask | None:
    located = Mask.load(run.folder / "mask.safetensors")
    where = cell.rpartition("-")[2]
    if where == "all":
        return None
    if where == "mask":
        return located
    if where == "random":
        return located.random_like(run.config.seed)
    model = run.language.model
    block = anatomy(model).blocks[int(where)]
    swept = layer_mask(model, candidates(model, run.config.within), block, located.count, run.config.seed)
    if swept is None:
        raise UserError(f"Block {where} has fewer candidates than the mask has weights; take a smaller --fraction.")
    return swept


def _read(run: FactRun, cell: str, name: str) -> dict[str, float]:
    # One cell: edit and read; the edited model itself is not kept.
    method = named(name, LANGUAGE_METHODS)
    path = f"cells/{cell}.json"

    def work(progress: Callable[[float], None]) -> dict[str, float]:
        before = run.language.model
        try:
            after = method.run(before, run.subject, _mask(run, cell), run.config.seed, method.settings, None)
        except UserError as error:
            save_readings(run.folder / path, [])
            return {"changed": 0.0, "failed": str(error)}  # type: ignore[dict-item]
        after.requires_grad_(False)
        progress(0.5)
        edit = Edit.between(state_of(before), state_of(after))
        case = run.references.case(after, run.subject, run.references.benign(after))
        save_readings(run.folder / path, read_case(case, progress=lambda share: progress(0.5 + share / 2)))
        return {"changed": edit.count / edit.total}

    settings = {**run.task, "method": name, "settings": vars(method.settings), "cell": cell}
    facts = run.stages.run(cell, settings, ["mask.safetensors"], [path], work)
    return {**facts, "seconds": run.stages.records[cell]["seconds"]}


def compare_facts(
    config: FactRunConfig,
    folder: Path,
    seeds: Sequence[int],
    methods: Sequence[str],
    wheres: Collection[str],
    report: Report,
) -> Comparison:
    """Make the table; whatever is there already and unchanged is used again.

    Beside the methods stand the original, the twins' mean, the cheats and, unless the run is quick, the planted world.
    A method that fails on a mask is left out of the table and named in the returned `failed`. The controls, random
    places and single blocks, are of the run's own method, or of the first given one where that is not among them.

    Args:
        config: Bank, model, measure, fraction, budget and the controls' method; its seed is not used.
        folder: Holds a run folder for each seed, `seed-N`, and then `comparison.json`.
        seeds: Each decides twins, masks, attacks and order anew.
        methods: Which, as `unlearn.methods.named` reads them.
        wheres: Of "all", "mask", "random" and "layers".
        report: Called with what is running and the share done.

    Returns:
        The table, as written.

    Raises:
        UserError: There is no such method or place, no seed, or nothing is located.
    """
    methods = list(dict.fromkeys(methods))
    for name in methods:
        named(name, LANGUAGE_METHODS)
    elsewhere = [where for where in wheres if where not in WHERE + CONTROLS]
    if elsewhere:
        raise UserError(f"There is no place {elsewhere[0]!r}; give some of {', '.join(WHERE + CONTROLS)} with --where.")
    if config.measure == "none":
        raise UserError(
            "A comparison needs located weights; take another --locate than none (`all` is a place of --where)."
        )
    check_seeds(seeds)
    reports: list[AuditReport] = []
    noted: list[dict[str, dict[str, float]]] = []
    cells: dict[str, tuple[str, str]] = {}
    for seed in seeds:
        # One at a time: each holds a model.
        run = FactRun(config.model_copy(update={"seed": seed}), folder / f"seed-{seed}", _prefixed(report, seed))
        run.check()
        cells = _cells(run, methods, wheres)
        with locked(run.references.folder), locked(run.folder):
            run.locate()
            cases = run.compared()
            noted.append({cell: _read(run, cell, name) for cell, (name, _) in cells.items()})
            mine = {cell: load_readings(run.folder / f"cells/{cell}.json") for cell in cells}
            found = audit_facts(
                run.subject.name,
                run.subject.forget_names,
                {**cases, **{cell: readings for cell, readings in mine.items() if readings}},
                run.references.golds,
                words_of(config, run.subject.forget_names),
                run.planted,
                run.config.seed,
            )
            write_text(run.folder / "comparison-audit.json", found.model_dump_json(indent=1))
            reports.append(found)
    failed = {
        f"{cells[cell][0]} ({cells[cell][1]})": str(facts["failed"])
        for one in noted
        for cell, facts in one.items()
        if "failed" in facts
    }
    references = [name for name in reports[0].audits if name not in cells]
    whole = {cell: spec for cell, spec in cells.items() if all("failed" not in one[cell] for one in noted)}
    never = GOLD if is_lab(config) else TWINS_MEAN
    rows = [row_of("original", "", ["original"], reports, noted), row_of(never, "", [never], reports, noted)]
    rows += [row_of(name, "", [name], reports, noted) for name in references if name != "original"]
    rows += [row_of(name, where, [cell], reports, noted) for cell, (name, where) in whole.items()]
    table = Comparison(
        subject=reports[0].subject, seeds=list(seeds), golds=len(reports[0].golds), rows=rows, failed=failed
    )
    write_text(folder / "comparison.json", table.model_dump_json(indent=1))
    write_text(folder / "comparison.md", markdown(table))
    return table


def _prefixed(report: Report, seed: int) -> Report:
    return lambda stage, share: report(f"seed {seed}: {stage}", share)
