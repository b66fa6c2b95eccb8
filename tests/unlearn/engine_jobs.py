"""Jobs that processes of their own can import."""

import os
import signal
import time
from pathlib import Path

from analysis.errors import UserError
from unlearn.stages import Report


def write(folder: Path, name: str, report: Report) -> None:
    report("writing", 0.5)
    (folder / name).write_text(f"{os.getpid()} {os.getcwd()}")


def refuse(folder: Path, name: str, report: Report) -> None:
    raise UserError(f"{name} can't be done; leave it out.")


def fault(folder: Path, name: str, report: Report) -> None:
    raise ValueError("a fault of ours")


def die(folder: Path, name: str, times: int, report: Report) -> None:
    """Be killed in the middle so many times."""
    starts = len(list(folder.glob(f"{name}.start-*")))
    (folder / f"{name}.start-{starts}").touch()
    if starts < times:
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / name).write_text("done")


def wait(folder: Path, name: str, report: Report) -> None:
    (folder / name).write_text(str(os.getpid()))
    time.sleep(600)
