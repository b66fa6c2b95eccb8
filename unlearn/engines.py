"""Independent jobs, side by side: in processes of this machine, or on a Ray cluster. Same jobs, same results.

A job is a function of a module with arguments that can be pickled; it leaves its results in files, stage by stage, so
one whose worker dies is simply started again and goes on. On a cluster every machine needs this package and sees the
same folders.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from analysis.errors import UserError
from analysis.memory import keep_freed_memory
from unlearn.stages import Report

Engine = Literal["local", "ray"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
STARTS = 3
"""Times that a job is started before a worker that dies is taken for the job's fault."""
PAUSE = 0.5
RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_IGNORE_UNHANDLED_ERRORS": "1"}
RAY_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's switch between all of a machine's addresses and loopback alone; its name tells where it is off by itself."""


@dataclass(frozen=True)
class Job:
    """Something to do.

    Attributes:
        label: For people.
        work: Called as `work(*args, report)`.
        args: Everything but the last argument.
        cwd: Working directory, to which relative paths refer.
    """

    label: str
    work: Callable[..., None]
    args: tuple[Any, ...]
    cwd: str = field(default_factory=os.getcwd)


def workers(jobs: int, threads: int) -> int:
    """Decide how many jobs run at once: as many as there are cores for their threads.

    Args:
        jobs: How many there are.
        threads: CPU threads of each.

    Returns:
        At least 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(jobs, cores // threads))


def perform(jobs: Sequence[Job], engine: Engine, threads: int, report: Report) -> None:
    """Do all jobs.

    Args:
        jobs: In the order in which they are started.
        engine: Where.
        threads: CPU threads of each job.
        report: Called with what is running and the share of it that is done.

    Raises:
        UserError: A job raised it, a job's worker died again and again, or there is no such engine.
    """
    if engine not in ENGINES:
        raise UserError(f"There is no engine {engine!r}; give one of {', '.join(ENGINES)} with --engine.")
    if engine == "ray":
        _on_ray(jobs, threads, report)
    elif workers(len(jobs), threads) == 1:
        for job in jobs:
            job.work(*job.args, _prefixed(report, job.label))
    else:
        _in_processes(jobs, workers(len(jobs), threads), threads, report)


def _prefixed(report: Report, label: str) -> Report:
    return lambda stage, share: report(f"{label}: {stage}", share)


def _set_up(job: Job, threads: int) -> None:
    os.chdir(job.cwd)
    torch.set_num_threads(threads)
    keep_freed_memory()


def _child(job: Job, threads: int, parent: int, channel: Connection) -> None:
    # Ctrl-C goes to the parent, which ends its children; a parent that was killed can't, so they watch it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PAUSE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _set_up(job, threads)
    try:
        job.work(*job.args, lambda stage, share: channel.send(("at", stage, share)))
        channel.send(("done", "", 1.0))
    except UserError as error:
        channel.send(("wrong", str(error), 0.0))
    except Exception:
        channel.send(("fault", traceback.format_exc(), 0.0))
    channel.close()


def _in_processes(jobs: Sequence[Job], count: int, threads: int, report: Report) -> None:
    context = multiprocessing.get_context("spawn")
    waiting = deque((job, 1) for job in jobs)
    running: dict[Connection, tuple[BaseProcess, Job, int]] = {}
    child: BaseProcess
    try:
        while waiting or running:
            while waiting and len(running) < count:
                job, start = waiting.popleft()
                mine, theirs = context.Pipe(duplex=False)
                child = context.Process(target=_child, args=(job, threads, os.getpid(), theirs), daemon=True)
                child.start()
                theirs.close()
                running[mine] = child, job, start
            for channel in wait(list(running), PAUSE):
                assert isinstance(channel, Connection)
                child, job, start = running[channel]
                try:
                    what, text, share = channel.recv()
                except EOFError:
                    what, text, share = "dead", "", 0.0
                if what == "at":
                    report(f"{job.label}: {text}", share)
                    continue
                del running[channel]
                child.join()
                if what == "wrong":
                    raise UserError(text)
                if what == "fault":
                    raise RuntimeError(f"{job.label} failed:\n{text}")
                if what == "dead" and start == STARTS:
                    raise UserError(_died(job, f"exit code {child.exitcode}"))
                if what == "dead":
                    waiting.appendleft((job, start + 1))
    finally:
        for child, _, _ in running.values():
            child.kill()
            child.join()


def _died(job: Job, how: str) -> str:
    return (
        f"The worker of {job.label} died {STARTS} times ({how}), perhaps for lack of memory; give --threads the "
        "number of cores to run one job at a time. What was finished is kept."
    )


def _on_ray(jobs: Sequence[Job], threads: int, report: Report) -> None:
    address = os.environ.get("RAY_ADDRESS")
    for name, value in (RAY if address else RAY | RAY_ALONE).items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "The engine 'ray' needs Ray; install it with: pip install 'yesterday-unlearning[cluster]'."
        ) from error
    ours = not ray.is_initialized()
    if ours and address:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    elif ours:
        cores = max(threads, os.cpu_count() or 1)
        ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        remote = ray.remote(num_cpus=threads, max_retries=STARTS - 1)(_remotely)
        left = {remote.remote(job, threads, sys.path): job for job in jobs}
        for job in jobs:
            report(job.label, 0.0)
        while left:
            for one in ray.wait(list(left), num_returns=1, timeout=PAUSE)[0]:
                job = left.pop(one)
                try:
                    said = ray.get(one)
                except ray.exceptions.WorkerCrashedError as error:
                    raise UserError(_died(job, "Ray says that it crashed")) from error
                if said is not None:
                    raise UserError(said)
                report(job.label, 1.0)
    finally:
        if ours:
            ray.shutdown()


def _remotely(job: Job, threads: int, path: Sequence[str]) -> str | None:
    sys.path.extend(one for one in path if one not in sys.path and Path(one).exists())
    _set_up(job, threads)
    try:
        job.work(*job.args, lambda stage, share: None)
    except UserError as error:
        return str(error)
    return None
