"""What a run looks like in a terminal: progress bars, the table and the verdict."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from analysis.audit.report import AuditReport
from unlearn.documents import RunReport


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
            tasks[stage] = bars.add_task(stage, total=1.0)
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
    path = folder / "audit.json"
    found = AuditReport.model_validate_json(path.read_text(encoding="utf-8")) if report.verdict else None
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


def _print_table(console: Console, found: AuditReport) -> None:
    golds = len(found.golds)
    title = f"{found.subject}: does the edited model still know {found.forgotten!r}? ({golds} golds, seed {found.seed})"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("auditor", no_wrap=True)
    for name in ("original", "edited", "gold", "band", "sd"):
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
    others = ", ".join(f"{name}: {audit.verdict}" for name, audit in found.audits.items() if name != "edited")
    console.print(f"Controls: {others}.", highlight=False)
    left_out = [m.auditor for m in found.measurements if not m.counted]
    if left_out:
        console.print(f"Without power here, so not counted: {', '.join(left_out)}.", highlight=False)
