"""Methods side by side: subjects, seeds, methods, places and shares crossed, run as jobs, and summed up in one folder.

Every subject and seed is a job with a run folder of its own (`class_comparison`, `language.comparison`); this module
starts them, and makes of what they leave `comparison.json`, `comparison.md`, `leaderboard.md` and `cells.csv`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.errors import UserError
from analysis.files import write_text
from analysis.scores import check_fraction
from unlearn.cells import Outcome
from unlearn.class_comparison import class_cells, read_classes
from unlearn.documents import RunConfig
from unlearn.engines import Engine, Job, perform
from unlearn.language.comparison import fact_cells, read_facts
from unlearn.language.config import FactRunConfig
from unlearn.language.prepare import twins_of
from unlearn.leaderboard import leaderboard
from unlearn.stages import Report, locked
from unlearn.table import Comparison, markdown, tabulate, tidy


@dataclass(frozen=True)
class Request:
    """What is to be compared.

    Attributes:
        configs: One for each subject, all of one family, by its name.
        seeds: Each with draws, masks, attacks and edits of its own; for classes with its own original and golds too.
        methods: Names, as `unlearn.methods.named` reads them; none for the references alone.
        places: What each may change: "none" for every weight, "random", measures that locate; for facts also "layers".
        fractions: Shares of all weights.
        fresh: Classes: golds beside the band for each subject and seed, to test the audit on.
        engine: Where the jobs run.
        threads: CPU threads of each.
    """

    configs: dict[str, RunConfig | FactRunConfig]
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    places: tuple[str, ...]
    fractions: tuple[float, ...]
    fresh: int = 1
    engine: Engine = "local"
    threads: int = 1

    def check(self) -> None:
        """Look at everything that can be wrong before anything long begins.

        Raises:
            UserError: Something is.
        """
        if not self.seeds:
            raise UserError("A comparison needs at least one seed; give --seeds 1 or more.")
        if not self.fractions:
            raise UserError("A comparison needs at least one share of the weights; give --fractions, for example 0.2.")
        for fraction in self.fractions:
            check_fraction(fraction)
        for config in self.configs.values():
            if isinstance(config, RunConfig):
                class_cells(config, self.methods, self.places, self.fractions)
            else:
                fact_cells(self.methods, self.places, self.fractions)
                twins_of(config)


def compare(request: Request, folder: Path, report: Report) -> Comparison:
    """Make the table; whatever is there already and unchanged is used again.

    Args:
        request: What to compare.
        folder: Holds a run folder `seed-N` for each seed (of several subjects, under the subject's name), and then
            the documents.
        report: Called with what is running and the share done.

    Returns:
        The table, as written.
    """
    request.check()
    with locked(folder):
        outcomes = gather(request, folder, report)
        found = tabulate(outcomes)
        write_text(folder / "comparison.json", found.model_dump_json(indent=1))
        write_text(folder / "comparison.md", markdown(found))
        write_text(folder / "leaderboard.md", leaderboard(found))
        write_text(folder / "cells.csv", tidy(outcomes))
    return found


def gather(request: Request, folder: Path, report: Report) -> list[Outcome]:
    """Do every subject and seed.

    Args:
        request: What to compare.
        folder: See `compare`.
        report: See `compare`.

    Returns:
        What they left, subject by subject.
    """
    jobs, folders = [], []
    for name, config in request.configs.items():
        for seed in request.seeds:
            place = (folder / name if len(request.configs) > 1 else folder) / f"seed-{seed}"
            label = f"{name}, seed {seed}" if len(request.configs) > 1 else f"seed {seed}"
            jobs.append(_job(request, label, config, seed, place.resolve()))
            folders.append(place)
    perform(jobs, request.engine, request.threads, report)
    return [Outcome.load(place) for place in folders]


def _job(request: Request, label: str, config: RunConfig | FactRunConfig, seed: int, folder: Path) -> Job:
    what: tuple[Any, ...] = (request.methods, request.places, request.fractions)
    work: Callable[..., None] = read_facts
    if isinstance(config, RunConfig):
        work, what = read_classes, (*what, request.fresh)
    return Job(label, work, (config.model_copy(update={"seed": seed}), folder, *what))


def with_methods(request: Request, methods: Sequence[str]) -> Request:
    """Ask the same of other methods.

    Args:
        request: What was to be compared.
        methods: The names.

    Returns:
        The new request.
    """
    return dataclasses.replace(request, methods=tuple(methods))
