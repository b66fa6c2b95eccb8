"""The front door: the command line.

Options become a `RunConfig`, `unlearn.pipeline` does the work, `figures` draws it; heavy imports wait for commands.
"""

import contextlib
import errno
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from analysis.errors import UserError
from yesterday_options import (
    COMPARE_OPTIONS,
    FACT_OPTIONS,
    GOLD_OPTIONS,
    LOCATE_OPTIONS,
    MACHINE,
    MACHINE_OPTIONS,
    METHOD_OPTIONS,
    SEEN_OPTIONS,
    SUBJECT_OPTIONS,
    with_options,
)

if TYPE_CHECKING:
    from unlearn.documents import RunConfig
    from unlearn.language.config import FactRunConfig
    from unlearn.pipeline import Stage

INTERRUPTED = 130
"""Exit code with which the command line leaves on Ctrl-C."""

app = typer.Typer(
    name="yesterday",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Locate the weights that carry a piece of knowledge, edit only those, audit whether it was erased or only "
    "hidden, and show it.\n\nStart with `yesterday run digit-6` or `yesterday run beatles --quick`.",
)


def _config(subject: str, options: dict[str, Any], **more: Any) -> "RunConfig | FactRunConfig":
    from unlearn.requests import about_facts, class_config, fact_config

    return (
        fact_config(subject, options, **more)
        if about_facts(subject, options)
        else class_config(subject, options, **more)
    )


def _threads(count: int) -> None:
    import torch

    from analysis.memory import keep_freed_memory

    if count < 1:
        raise UserError(f"--threads must be at least 1, not {count}.")
    torch.set_num_threads(count)
    keep_freed_memory()


def _execute(subject: str, options: dict[str, Any], until: "Stage", draw: bool, prefix: str = "", **more: Any) -> None:
    from figures.render import render
    from figures.report.build import write_report
    from figures.terminal import print_run, progress_bars
    from unlearn.language.config import FactRunConfig
    from unlearn.language.pipeline import execute_facts
    from unlearn.pipeline import execute
    from unlearn.requests import run_folder

    config = _config(subject, options, **more)
    usual = 2 if isinstance(config, FactRunConfig) else 1
    _threads(usual if options["threads"] is None else options["threads"])
    folder = run_folder(config, options["out"], prefix)
    with progress_bars(options["quiet"] or options["as_json"]) as report:
        if isinstance(config, FactRunConfig):
            done = execute_facts(config, folder, report, until)
        else:
            done = execute(config, folder, report, until)
        if draw:
            render(folder, progress=lambda _, share: report("figures", share))
    if done.verdict:
        write_report([folder])
    print_run(folder, done, options["quiet"], options["as_json"])


SubjectName = Annotated[
    str,
    typer.Argument(
        help="digit-6, digit-N, class-NAME (other data), beatles, einstein, shakespeare; comparing: lab, lab:BAND too.",
        metavar="SUBJECT",
    ),
]
RunFolder = Annotated[Path, typer.Argument(help="Folder of a run, e.g. runs/digit-6.", metavar="RUN")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]


@app.command()
@with_options(
    SUBJECT_OPTIONS, FACT_OPTIONS, LOCATE_OPTIONS, METHOD_OPTIONS, GOLD_OPTIONS, SEEN_OPTIONS, MACHINE_OPTIONS
)
def run(
    options: dict[str, Any],
    subject: SubjectName = "digit-6",
    figures: Annotated[bool, typer.Option(help="Draw the figures.", rich_help_panel=MACHINE)] = True,
) -> None:
    """Do it all: train, locate, edit, audit, draw.

    An interrupted run goes on where it stopped; what is already there and unchanged isn't done again.

    Examples: `yesterday run digit-6`, `yesterday run digit-6 --model cnn`, `yesterday run --forget 6 --replace-with 3`.
    """
    _execute(subject, options, "audit", figures)


@app.command()
@with_options(SUBJECT_OPTIONS, FACT_OPTIONS, LOCATE_OPTIONS, SEEN_OPTIONS, MACHINE_OPTIONS)
def locate(options: dict[str, Any], subject: SubjectName = "digit-6") -> None:
    """Find the weights that carry a class: scores, their causal check, and a mask.

    Example: `yesterday locate digit-6 --locate weight-ig --fraction 0.01`.
    """
    _execute(subject, options, "locate", False)


@app.command()
@with_options(SUBJECT_OPTIONS, FACT_OPTIONS, LOCATE_OPTIONS, METHOD_OPTIONS, SEEN_OPTIONS, MACHINE_OPTIONS)
def forget(options: dict[str, Any], subject: SubjectName = "digit-6") -> None:
    """Locate and edit, without the audit.

    Example: `yesterday forget digit-6 --method salun`.
    """
    _execute(subject, options, "edit", False)


@app.command()
@with_options(SUBJECT_OPTIONS, FACT_OPTIONS, GOLD_OPTIONS, MACHINE_OPTIONS)
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
    from unlearn.requests import about_facts, refuse

    if about_facts(subject, options):
        refuse({"gold": gold, "model": options["model"]}, ("gold", "model"), "an audit of facts")
        options = {**options, "model": str(original)}
        _execute(subject, options, "audit", False, prefix="audit-", candidate=str(candidate))
        return
    options = {**options, "weights": original}
    golds = tuple(str(path) for path in gold or ())
    _execute(subject, options, "audit", False, prefix="audit-", candidate=str(candidate), gold_weights=golds)


@app.command()
@with_options(SUBJECT_OPTIONS, FACT_OPTIONS, COMPARE_OPTIONS, GOLD_OPTIONS, SEEN_OPTIONS, MACHINE_OPTIONS)
def compare(options: dict[str, Any], subject: SubjectName = "digit-6") -> None:
    """Cross methods with places and shares over seeds; print the table and the leaderboard, and draw them.

    Beside the methods stand the original, the golds, fresh golds outside the band, and the cheats; `--methods none`
    leaves only these and so tests the audit itself. Settings can be written behind a method's name; a method of your
    own is path/to/file.py:function. What fails stays in the table with the reason.

    Examples: `yesterday compare digit-6 --seeds 3`, `yesterday compare --all-digits --methods regrow,ssd`,
    `yesterday compare beatles --quick --methods npo,rmu --locate fisher,random,none --fractions 0.001,0.01`.
    """
    from figures.render import render
    from figures.terminal import progress_bars
    from unlearn.comparison import compare as compared
    from unlearn.comparison import with_methods
    from unlearn.leaderboard import leaderboard
    from unlearn.requests import comparison_request, run_folder
    from unlearn.table import markdown
    from unlearn.tuning import tuned

    request = comparison_request(subject, options)
    _threads(request.threads)
    prefix = "compare-all-" if len(request.configs) > 1 else "compare-"
    folder = run_folder(next(iter(request.configs.values())), options["out"], prefix)
    with progress_bars(options["quiet"] or options["as_json"]) as report:
        request.check()
        if options["tune"] is not None:
            request = with_methods(request, tuned(request, options["tune"], folder, report))
        found = compared(request, folder, report)
        render(folder, progress=lambda _, share: report("figures", share))
    print(found.model_dump_json() if options["as_json"] else f"{markdown(found)}\n{leaderboard(found)}")


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


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, e.g. runs/digit-6.", metavar="RUN...")],
    out: Annotated[
        Path | None, typer.Option(help="File to write [report.html in the run, or beside the first of several].")
    ] = None,
) -> None:
    """Write one self-contained page on a run, or on several side by side.

    Example: `yesterday report runs/digit-6 runs/digit-6-seed1`.
    """
    from figures.report.build import write_report

    Console().print(f"Wrote {write_report(runs, out)}.", highlight=False)


@app.command()
def explore(
    run: Annotated[
        Path | None, typer.Argument(help="Folder of a run [the newest under runs].", metavar="[RUN]")
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Where to listen [a free one].")] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Open a run as a page to play with, on this machine only: draw, ask, slide the edit, click on neurons.

    Example: `yesterday explore runs/digit-6`; Ctrl-C ends it.
    """
    from figures.explorer.app import newest_run, serve

    _threads(1)
    say = functools.partial(Console().print, highlight=False, soft_wrap=True)
    serve(run or newest_run(Path("runs")), port, browser, say)


EditFile = Annotated[Path, typer.Argument(help="An edit.safetensors.", metavar="EDIT")]


def _apply(edit: Path, to: str, out: Path, revert: bool) -> None:
    from unlearn.edit import apply_to_file
    from unlearn.language.output import apply_to_model

    if Path(to).is_file() or Path(to).suffix in {".safetensors", ".pt", ".pth"}:
        apply_to_file(edit, Path(to), out, revert)
    else:
        apply_to_model(edit, to, out, revert)
    Console().print(f"Wrote {out}.", highlight=False)


@app.command()
def apply(
    edit: EditFile,
    to: Annotated[str, typer.Option(help="Checkpoint, model folder or hub name that the edit was made for.")],
    out: Annotated[Path, typer.Option(help="Where to write the edited checkpoint or model folder.")],
) -> None:
    """Apply an edit to the model it was made for; any other is refused."""
    _apply(edit, to, out, revert=False)


@app.command()
def revert(
    edit: EditFile,
    to: Annotated[str, typer.Option(help="The edited checkpoint or model folder.")],
    out: Annotated[Path, typer.Option(help="Where to write the original, byte for byte.")],
) -> None:
    """Undo an edit exactly."""
    _apply(edit, to, out, revert=True)


@app.command()
def chat(
    run: RunFolder,
    prompt: Annotated[list[str] | None, typer.Option(help="Ask this and leave; may be given several times.")] = None,
    threads: Threads = 2,
) -> None:
    """Ask the original and the edited language model the same thing, side by side.

    Example: `yesterday chat runs/beatles --prompt "John Lennon was"`; without --prompt it asks you.
    """
    from figures.terminal import print_continuations
    from unlearn.language.output import ask_both

    _threads(threads)
    talk = ask_both(run)
    with contextlib.suppress(EOFError):
        for text in prompt or iter(functools.partial(Console().input, "you: "), ""):
            print_continuations(text, talk(text))


bank_commands = typer.Typer(no_args_is_help=True, help="Fact banks: what a language model is asked about.")
app.add_typer(bank_commands, name="bank")


@bank_commands.command("check")
def bank_check(
    bank: Annotated[str, typer.Argument(help="A file, or the name of a built-in bank.", metavar="BANK")],
    model: Annotated[str, typer.Option(help="smollm2, a hub name, or a folder.")] = "smollm2",
    threads: Threads = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")] = False,
) -> None:
    """Check a bank against its schema, and say which of its facts a model knows.

    Example: `yesterday bank check my.jsonl --model ./folder`.
    """
    from figures.terminal import print_bank, progress_bars
    from unlearn.language.output import check_bank

    _threads(threads)
    with progress_bars(as_json) as report:
        found = check_bank(bank, model, report)
    print_bank(bank, found, as_json)


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
    folder: Annotated[Path, typer.Argument(help="Where the runs are.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")] = False,
) -> None:
    """List the runs in a folder with their verdicts."""
    from figures.terminal import print_runs

    print_runs(folder, as_json)


@app.command()
def methods() -> None:
    """List the methods that `--method` knows."""
    from unlearn.methods import METHODS
    from unlearn.methods.language import LANGUAGE_METHODS

    for family, known in (("classifiers", METHODS), ("language models", LANGUAGE_METHODS)):
        Console().print(f"For {family}:", highlight=False)
        for name, method in known.items():
            Console().print(f"  [bold]{name}[/bold]  {method.summary}", highlight=False)


def main() -> None:
    """Run the command line; what the user can mend ends with one sentence and exit code 2.

    Raises:
        OSError: Anything else than a full or read-only disk, which is a fault of ours.
        SystemExit: As the command line ends.
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
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            print("Interrupted; the same command goes on where it stopped.", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
