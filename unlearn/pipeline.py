"""A whole run, or the part of it that is wanted."""

from pathlib import Path
from typing import Literal

from analysis.localization import MEASURES, check_measures
from unlearn.documents import RunConfig, RunReport
from unlearn.judging import cheat, judge
from unlearn.run import Run
from unlearn.stages import Report, locked

Stage = Literal["original", "locate", "edit", "audit"]


def execute(config: RunConfig, folder: Path, report: Report, until: Stage = "audit") -> RunReport:
    """Do a run, or what is missing of it.

    Args:
        config: What to do.
        folder: Where to keep it.
        report: Called with what is running and the share done, 0 to 1.
        until: The last stage wanted.

    Returns:
        What `run.json` holds.
    """
    run = Run(config, folder, report)
    _ = run.subject, run.measure, run.method, run.golds
    if not config.candidate and until != "original":
        check_measures(run.seen, MEASURES)
    with locked(folder):
        run.original()
        found = None
        if not config.candidate and until != "original":
            run.locate()
        if until in {"edit", "audit"}:
            run.edit()
        if until == "audit":
            run.train_golds()
            cheat(run)
            found = judge(run)
        return run.note(found)
