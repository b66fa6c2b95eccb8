"""Jobs side by side, in processes and on a local Ray: done once each, killed and started again, refused."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.errors import UserError
from unlearn import engines
from unlearn.engines import STARTS, Engine, Job, perform, workers

sys.path.insert(0, str(Path(__file__).parent))  # for the processes' sake: they import the jobs by name
import engine_jobs


@pytest.fixture(autouse=True)
def two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    monkeypatch.setattr(engines, "workers", lambda jobs, threads: min(jobs, 2))


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """One local Ray for all tests; starting it takes seconds."""
    os.environ.update(engines.RAY | engines.RAY_ALONE)
    import ray

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(params=["local", "ray"])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "ray":
        request.getfixturevalue("ray")
    return request.param


def test_every_job_is_done_in_a_process_of_its_own(engine: Engine, tmp_path: Path) -> None:
    said: list[tuple[str, float]] = []
    jobs = [Job(name, engine_jobs.write, (tmp_path, name), cwd=str(tmp_path)) for name in ("a", "b", "c")]
    perform(jobs, engine, 1, lambda stage, share: said.append((stage, share)))
    written = [(tmp_path / name).read_text().split() for name in ("a", "b", "c")]
    assert all(int(pid) != os.getpid() for pid, _ in written)
    assert {Path(cwd) for _, cwd in written} == {tmp_path}
    assert {stage.partition(":")[0] for stage, _ in said} == {"a", "b", "c"}


def test_a_killed_worker_is_started_again(engine: Engine, tmp_path: Path) -> None:
    jobs = [Job("a", engine_jobs.die, (tmp_path, "a", 1)), Job("b", engine_jobs.write, (tmp_path, "b"))]
    perform(jobs, engine, 1, lambda stage, share: None)
    assert (tmp_path / "a").read_text() == "done"
    assert len(list(tmp_path.glob("a.start-*"))) == 2
    assert (tmp_path / "b").is_file()


def test_a_worker_that_always_dies_is_given_up(engine: Engine, tmp_path: Path) -> None:
    jobs = [Job("the job", engine_jobs.die, (tmp_path, "a", 99)), Job("b", engine_jobs.write, (tmp_path, "b"))]
    with pytest.raises(UserError, match=r"worker of the job died 3 times .*--threads"):
        perform(jobs, engine, 1, lambda stage, share: None)
    assert len(list(tmp_path.glob("a.start-*"))) == STARTS


def test_what_a_user_can_mend_arrives_as_one_sentence(engine: Engine, tmp_path: Path) -> None:
    jobs = [Job(name, engine_jobs.refuse, (tmp_path, name)) for name in ("this", "this")]
    with pytest.raises(UserError, match=r"^this can't be done; leave it out\.$"):
        perform(jobs, engine, 1, lambda stage, share: None)


def test_a_fault_of_ours_keeps_its_traceback(engine: Engine, tmp_path: Path) -> None:
    jobs = [Job(name, engine_jobs.fault, (tmp_path, name)) for name in ("this", "that")]
    with pytest.raises(Exception, match="a fault of ours") as caught:
        perform(jobs, engine, 1, lambda stage, share: None)
    assert not isinstance(caught.value, UserError)
    assert "engine_jobs.py" in str(caught.value)


def test_an_unknown_engine(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no engine 'slurm'; give one of local, ray"):
        perform([], "slurm", 1, lambda stage, share: None)  # type: ignore[arg-type]


def test_no_more_processes_than_cores_for_their_threads() -> None:
    cores = len(os.sched_getaffinity(0))
    assert workers(100, 1) == cores
    assert workers(1, 1) == 1
    assert workers(100, 2 * cores) == 1


PARENT = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from unlearn import engines
import engine_jobs
if __name__ == "__main__":
    engines.workers = lambda jobs, threads: 2
    jobs = [engines.Job(n, engine_jobs.wait, (Path({folder!r}), n)) for n in ("a", "b")]
    engines.perform(jobs, "local", 1, lambda stage, share: None)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(path=[str(Path(__file__).parent), *sys.path], folder=str(tmp_path)))
    parent = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not all((tmp_path / name).is_file() and (tmp_path / name).read_text() for name in "ab"):
        assert parent.poll() is None, parent.stderr.read() if parent.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = [int((tmp_path / name).read_text()) for name in "ab"]
    parent.send_signal(how)
    parent.wait(60)
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "a worker is still there"
        time.sleep(0.1)
