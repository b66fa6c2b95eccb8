"""What finished runs on language models reach of what was aimed at: a table for people, and results/aims/ as JSON.

`python -m tests.benchmarks.aims runs/beatles` asks the original and the edited model about facts of the audit's share,
which no method saw, and reads the rest from the run's own documents. Where a model that never knew can be imagined, as
invented twins of the subject, the original is asked about these too: an aim below what they get could only be reached
by denying.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import ValidationError

from analysis.audit.report import AuditReport
from analysis.errors import UserError
from analysis.files import write_text
from analysis.memory import keep_freed_memory
from tests.benchmarks.aims_rows import Asked, rows
from tests.benchmarks.aims_table import table
from tests.benchmarks.report import machine
from unlearn.documents import RunReport, read_run
from unlearn.language.config import FactRunConfig
from unlearn.language.references import load_readings
from unlearn.language.run import READS, FactRun

RESULTS = Path(__file__).parent / "results" / "aims"


def opened(folder: Path, seed: int) -> tuple[Asked, RunReport, AuditReport]:
    """Load what a run left behind.

    Args:
        folder: Of a finished run on facts; nothing is written there.
        seed: Of everything drawn.

    Raises:
        UserError: There is no such run, it is of another family or unfinished, or its facts are not known any more.
    """
    report = read_run(folder)
    asked = report.config
    if asked.get("family") != "facts":
        raise UserError(f"The run in {folder} is not on a language model; give one such as runs/beatles.")
    needed = [folder / name for name in ("audit.json", f"{READS}/edited.json", "model/config.json")]
    missing = [path.name for path in needed if not path.is_file()]
    if missing:
        raise UserError(f"The run in {folder} has no {missing[0]} yet; run the same command again to finish it.")
    try:
        config = FactRunConfig.model_validate({k: asked[k] for k in FactRunConfig.model_fields if k in asked})
        audit = AuditReport.model_validate_json(needed[0].read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{folder} holds a damaged run; run the same command again to make it anew.") from error
    run = FactRun(config, folder, lambda *_: None)
    subject = run.subject
    then = {fact for reading in load_readings(needed[1]) if reading.role != "damage" for fact in reading.facts}
    if not then <= {fact.id for fact in (*subject.forget, *subject.forget_test)}:
        raise UserError(f"The bank or the code changed since the run in {folder}, so other facts count as known now; "
                        "make the run again.")  # fmt: skip
    twins = tuple(run.references.about(number) for number in range(run.references.twins))
    models = run.language.model, run.edited
    return Asked(subject, run.bank, *models, twins, run.references.budget, seed), report, audit


def measure(folder: Path, seed: int, results: Path) -> None:
    """Measure one run, print its table and write `results`/NAME.json, NAME being the folder's.

    Args:
        folder: Of the run.
        seed: Of everything drawn.
        results: Where to write.
    """
    begun = time.perf_counter()
    asked, report, audit = opened(folder, seed)
    found = []
    for row in rows(asked, report, audit):
        found.append(row)
        print(f"{time.perf_counter() - begun:5.0f} s  {row.what}", file=sys.stderr, flush=True)
    config = report.config
    print(f"{folder.name}: {config['method']}, located by {config['measure']}, quick: {config['quick']}; seed {seed}. "
          "In brackets: 95% of draws of as many facts, of leak@8 the least and most of the seeds, of twins the least "
          f"and most.\n\n{table(found)}", flush=True)  # fmt: skip
    document = {
        "run": folder.name,
        "config": config,
        "seed": seed,
        "machine": machine(),
        "rows": [r.told for r in found],
    }
    write_text(results / f"{folder.name}.json", json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for.

    Args:
        arguments: In place of the command line's.

    Returns:
        The exit code; 2 where something has to be mended, which one sentence says.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.aims", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs on language models")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON files")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()
    folders = [folder.resolve() for folder in chosen.runs]
    try:
        if len({folder.name for folder in folders}) < len(folders):
            raise UserError(
                "Two of these folders have the same name, and so would their results; give them one a time."
            )
        for folder in folders:
            measure(folder, chosen.seed, chosen.results)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
