"""Draws all figures of a run, on classes or on facts, or of a comparison."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from analysis.errors import UserError

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

Progress = Callable[[str, float], None]


def render(run_folder: Path, names: Sequence[str] | None = None, progress: Progress | None = None) -> list[Path]:
    """Draw figures of a run into its figures/ folder; each file is written atomically.

    Args:
        run_folder: E.g. runs/digit-6, or the folder of a comparison.
        names: Which figures, from `NAMES`, from `FACT_NAMES` for a run on facts, or from `COMPARISON_NAMES`; when not
            given, all for which the run has the artefacts.
        progress: Called with the figure being drawn and the share done, 0 to 1.

    Returns:
        The files, an SVG and a PNG for each figure, in the order of the names.

    Raises:
        UserError: A name is unknown.
        Missing: The run lacks an artefact that a named figure (or every figure) needs.
    """
    from figures.artefacts import Missing
    from figures.save import FOLDER, save

    every, package, opened = _kind(run_folder)
    chosen = list(names or every)
    unknown = [name for name in chosen if name not in every]
    if unknown:
        raise UserError(f"There is no figure {unknown[0]!r}; choose from {', '.join(every)}.")

    run = opened(run_folder)
    paths: list[Path] = []
    lacking: list[UserError] = []
    for done, name in enumerate(chosen):
        if progress:
            progress(name, done / len(chosen))
        try:
            drawing = importlib.import_module(f"{package}.{name}").draw(run)
        except Missing as error:
            if names:
                raise
            lacking.append(error)
            continue
        paths += save(drawing, run_folder / FOLDER, name)
    if lacking and not paths:
        raise lacking[0]
    if progress:
        progress("", 1.0)
    return paths


def _kind(folder: Path) -> tuple[tuple[str, ...], str, Callable[[Path], Any]]:
    # The figures that a folder may have, where they are drawn, and what opens it.
    from figures.artefacts import Run, existing, open_run
    from figures.pareto import FILE, open_comparison

    if (existing(folder) / FILE).is_file():
        return COMPARISON_NAMES, "figures", open_comparison
    if Run(folder).family == "facts":
        from figures.facts.artefacts import open_facts

        return FACT_NAMES, "figures.facts", open_facts
    return NAMES, "figures", open_run
