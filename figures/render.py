"""Draws all figures of a run, on classes or on facts, of a comparison, or of the scaling study."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.errors import UserError

if TYPE_CHECKING:
    from figures.style import Drawing

NAMES = (
    "overview",
    "mask_map",
    "attribution",
    "ablation",
    "overlap",
    "forgetting",
    "weight_change",
    "misclassified",
    "confusion",
    "umap",
    "probes",
    "relearning",
    "bands",
)
FACT_NAMES = (
    "overview",
    "mask_layers",
    "neurons",
    "patching",
    "lens",
    "causal",
    "survival",
    "tradeoff",
    "fact_map",
    "relearn",
    "fact_bands",
)
COMPARISON_NAMES = ("leaderboard", "pareto", "places")
SCALING_NAMES = ("scaling",)

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Drawn:
    """One figure of a run.

    Attributes:
        name: Of the figure.
        about: One sentence on what figures of this name show.
        drawing: The figure itself, of this run.
    """

    name: str
    about: str
    drawing: "Drawing"


def drawn(run_folder: Path, names: Sequence[str] | None = None, progress: Progress | None = None) -> Iterator[Drawn]:
    """Draw figures of a run, one at a time.

    Args:
        run_folder: E.g. runs/digit-6, or the folder of a comparison.
        names: Which figures, from `NAMES`, from `FACT_NAMES` for a run on facts, or from `COMPARISON_NAMES`; when not
            given, all for which the run has the artefacts.
        progress: Called with the figure being drawn and the share done, 0 to 1.

    Yields:
        The figures, in the order of the names.

    Raises:
        UserError: A name is unknown.
        Missing: The run lacks an artefact that a named figure (or every figure) needs.
    """
    from figures.artefacts import Missing

    every, package, opened = _kind(run_folder)
    chosen = list(names or every)
    unknown = [name for name in chosen if name not in every]
    if unknown:
        raise UserError(f"There is no figure {unknown[0]!r}; choose from {', '.join(every)}.")

    run = opened(run_folder)
    lacking: list[UserError] = []
    for done, name in enumerate(chosen):
        if progress:
            progress(name, done / len(chosen))
        module = importlib.import_module(f"{package}.{name}")
        try:
            drawing = module.draw(run)
        except Missing as error:
            if names:
                raise
            lacking.append(error)
            continue
        yield Drawn(name, (module.__doc__ or "").partition("\n")[0], drawing)
    if len(lacking) == len(chosen):
        raise lacking[0]
    if progress:
        progress("", 1.0)


def render(run_folder: Path, names: Sequence[str] | None = None, progress: Progress | None = None) -> list[Path]:
    """Draw figures of a run into its figures/ folder; each file is written atomically.

    Args:
        run_folder: As for `drawn`, which also tells what is raised.
        names: Likewise.
        progress: Likewise.

    Returns:
        The files, an SVG and a PNG for each figure, in the order of the names.
    """
    from figures.save import FOLDER, save

    return [
        path for one in drawn(run_folder, names, progress) for path in save(one.drawing, run_folder / FOLDER, one.name)
    ]


def _kind(folder: Path) -> tuple[tuple[str, ...], str, Callable[[Path], Any]]:
    # The figures that a folder may have, where they are drawn, and what opens it.
    from figures import pareto, scaling
    from figures.artefacts import Run, existing, open_run

    if (existing(folder) / pareto.FILE).is_file():
        return COMPARISON_NAMES, "figures", pareto.open_comparison
    if (folder / scaling.FILE).is_file():
        return SCALING_NAMES, "figures", scaling.open_scaling
    if Run(folder).family == "facts":
        from figures.facts.artefacts import open_facts

        return FACT_NAMES, "figures.facts", open_facts
    return NAMES, "figures", open_run
