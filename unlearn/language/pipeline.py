"""A whole run on facts, or the part of it that is wanted."""

from pathlib import Path

from analysis.errors import UserError
from unlearn.documents import RunReport
from unlearn.language.config import FactRunConfig
from unlearn.language.prepare import is_lab
from unlearn.language.run import FactRun
from unlearn.pipeline import Stage
from unlearn.stages import Report, locked


def execute_facts(config: FactRunConfig, folder: Path, report: Report, until: Stage = "audit") -> RunReport:
    """Do a run, or what is missing of it.

    Args:
        config: What to do.
        folder: Where to keep it.
        report: Called with what is running and the share done, 0 to 1.
        until: The last stage wanted.

    Returns:
        What `run.json` holds.

    Raises:
        UserError: The subject is the lab's, which is there to compare methods with.
    """
    if is_lab(config):
        raise UserError("The lab is there to compare methods by models that never knew: yesterday compare lab.")
    run = FactRun(config, folder, report)
    run.check()
    with locked(run.references.folder):
        _ = run.subject  # before there is a folder: a model may know too little
    with locked(run.references.folder), locked(folder):
        found = None
        if until != "original" and config.candidate is None:
            run.locate()
        if until in {"edit", "audit"}:
            run.edit()
        if until == "audit":
            run.speak()
            found = run.judge()
            run.picture()
        if until == "locate" or (until == "audit" and not config.quick and config.candidate is None):
            run.check_causes()
        return run.note(found)
