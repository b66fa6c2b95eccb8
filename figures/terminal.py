"""What a run looks like in a terminal: progress bars, the table and the verdict."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from analysis.audit.report import AuditReport
from analysis.errors import UserError
from figures.artefacts import Run
from figures.words import squeeze
from unlearn.documents import RunReport, read_run

LONGEST = 44
"""Letters of a stage's name, so that the time left has room in a terminal 80 wide."""


@contextmanager
def progress_bars(hidden: bool) -> Iterator[Callable[[str, float], None]]:
    """Show a bar for every stage on the terminal's error stream: what is running and how long it may take.

    Args:
        hidden: Show nothing.

    Yields:
        To be called with a stage's name and the share done, 0 to 1.
    """
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=Console(stderr=True), disable=hidden)
    tasks: dict[str, TaskID] = {}

    def report(stage: str, share: float) -> None:
        # Started with the first stage, so that a mistake found before it is one line and nothing else.
        bars.start()
        if stage not in tasks:
            tasks[stage] = bars.add_task(squeeze(stage, LONGEST), total=1.0)
        bars.update(tasks[stage], completed=share)

    try:
        yield report
    finally:
        if tasks:
            bars.stop()


def print_run(folder: Path, report: RunReport, quiet: bool, as_json: bool) -> None:
    """Print what a run found.

    Args:
        folder: The run folder.
        report: Its `run.json`.
        quiet: Print the verdict only.
        as_json: Print one JSON document instead.
    """
    console = Console()
    found = Run(folder).audit if report.verdict else None
    if as_json:
        document = {"run": str(folder), **report.model_dump(mode="json")}
        document["audit"] = found.audits["edited"].model_dump(mode="json") if found else None
        print(json.dumps(document))
        return
    if found and not quiet:
        _print_table(console, found)
    if report.changed is not None and not quiet:
        share = 100 * report.changed / report.total
        console.print(f"Changed {report.changed:,} of {report.total:,} numbers ({share:.2g}%).", highlight=False)
    console.print(report.sentence or f"Done; everything is in {folder}.", style="bold", highlight=False)
    if report.sentence and not quiet:
        console.print(f"Everything is in {folder}.", highlight=False)


def print_runs(folder: Path, as_json: bool) -> None:
    """Print which runs are in a folder, each with its verdict or with why it can't be read.

    Args:
        folder: Where the runs are.
        as_json: Print one JSON document instead.
    """
    rows: list[dict[str, str | None]] = []
    for path in sorted(folder.glob("*/run.json")):
        row = {"run": str(path.parent), "method": None, "verdict": None, "problem": None}
        try:
            run = read_run(path.parent)
        except UserError as error:
            rows.append({**row, "problem": str(error)})
        else:
            rows.append({**row, "method": run.config["method"], "verdict": run.verdict})
    if as_json:
        print(json.dumps(rows))
        return
    console = Console()
    for row in rows:
        says = row["problem"] or f"{row['method'] or 'audited checkpoint'}  {row['verdict'] or 'not audited'}"
        console.print(f"{row['run']}  {says}", highlight=False)
    if (folder / "run.json").is_file():
        console.print(f"{folder} is itself a run; see it with: yesterday show {folder}", highlight=False)
    elif not rows:
        console.print(f"There are no runs in {folder}; start with: yesterday run digit-6", highlight=False)


def _print_table(console: Console, found: AuditReport) -> None:
    golds = f"{len(found.golds)} {found.yardstick}"
    title = f"{found.subject}: does the edited model still know {found.forgotten!r}? ({golds}, seed {found.seed})"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("auditor", overflow="fold")
    never = "gold" if not found.calibration and found.golds[0].startswith("gold") else "twins"
    for name in ("original", "edited", never, "band", "sd"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("gold?", no_wrap=True)
    mine = {finding.auditor: finding for finding in found.audits["edited"].findings}
    for measurement in found.measurements:
        finding, band = mine[measurement.auditor], measurement.band
        if not measurement.counted or band is None:
            continue
        sign = "<" if measurement.outside == "above" else ">"
        table.add_row(
            measurement.auditor,
            f"{measurement.values['original']:.3g}",
            f"{finding.value:.3g}",
            f"{band.mean:.3g}",
            f"{sign} {band.edge:.3g}",
            f"{finding.distance:+.1f}",
            "[green]yes[/green]" if finding.inside else "[red]NO[/red]",
        )
    console.print(table, highlight=False)
    if found.calibration:
        aucs = ", ".join(f"{one.auditor} {one.auc:.2f}" for one in found.calibration)
        console.print(f"AUC on planted facts: {aucs}.", highlight=False)
    others = ", ".join(f"{name}: {audit.verdict}" for name, audit in found.audits.items() if name != "edited")
    console.print(f"Controls: {others}.", highlight=False)
    left_out = [m.auditor for m in found.measurements if not m.counted]
    if left_out:
        console.print(f"Without power here, so not counted: {', '.join(left_out)}.", highlight=False)


def print_continuations(prompt: str, both: tuple[str, str]) -> None:
    """Print what two models say, side by side.

    Args:
        prompt: What they were asked.
        both: The original's continuation and the edited model's.
    """
    table = Table(title=prompt, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("original", ratio=1)
    table.add_column("edited", ratio=1)
    table.add_row(*(Text(text.strip()) for text in both))
    Console().print(table, highlight=False)


def print_bank(bank: str, rows: Sequence[Mapping[str, object]], as_json: bool) -> None:
    """Print which facts of a bank are known.

    Args:
        bank: Its name.
        rows: From `unlearn.language.output.check_bank`.
        as_json: Print one JSON document instead.
    """
    if as_json:
        print(json.dumps({"bank": bank, "facts": list(rows)}))
        return
    console = Console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("fact", "kind", "split", "P(answer)", "known"):
        table.add_column(name, justify="right" if name == "P(answer)" else "left", no_wrap=True)
    for row in rows:
        known = "[green]yes[/green]" if row["known"] else "no"
        table.add_row(str(row["id"]), str(row["kind"]), str(row["split"]), f"{row['probability']:.3f}", known)
    console.print(table, highlight=False)
    for kind in dict.fromkeys(row["kind"] for row in rows):
        mine = [row for row in rows if row["kind"] == kind]
        known_now = sum(bool(row["known"]) for row in mine)
        console.print(f"{known_now} of {len(mine)} of kind {kind} are known.", highlight=False)
