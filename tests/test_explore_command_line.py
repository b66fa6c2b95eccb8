"""`yesterday explore` as a command: where it listens, how it ends, and what it says when it can't start."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from classes_explored import explored

WITHOUT_GRADIO = "import sys; sys.modules['gradio'] = None; import yesterday; yesterday.main()"
ROOT = Path(__file__).parent.parent
# A proxy that isn't there: whoever asks it for a page of this machine's own is refused.
PROXY = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")


def command(*arguments: object, where: Path | None = None, code: str | None = None) -> subprocess.Popen[str]:
    start = ["-c", code] if code else ["-m", "yesterday"]
    environment = {**os.environ, **PROXY, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, *start, "explore", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=where or ROOT, env=environment,
    )  # fmt: skip


def refused(*arguments: object, where: Path | None = None, code: str | None = None) -> str:
    out, complaint = (running := command(*arguments, where=where, code=code)).communicate(timeout=120)
    assert (running.returncode, out) == (2, "")
    assert complaint.startswith("Error: ")
    assert complaint.count("\n") == 1
    return complaint


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explored(tmp_path_factory.mktemp("work") / "runs" / "digit-6", golds=0)


@pytest.fixture
def running(run: Path) -> Iterator[subprocess.Popen[str]]:
    started = command("--no-browser", where=run.parent.parent)
    yield started
    started.kill()
    started.communicate()


def test_the_newest_run_is_served_here_alone_until_ctrl_c(running: subprocess.Popen[str], run: Path) -> None:
    assert running.stdout is not None
    said = running.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:(\d+)/", said)
    assert found, said
    assert str(run.relative_to(run.parent.parent)) in said
    straight = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with straight.open(found[0], timeout=60) as answer:
        assert b"Yesterday: digit-6" in answer.read()
    port = int(found[1])
    with socket.socket() as other, pytest.raises(OSError):
        # Every address of this machine but the loopback's own is refused.
        other.connect(("127.0.0.2", port))

    complaint = refused(run, "--port", port, "--no-browser")
    assert f"Port {port} is in use" in complaint

    running.send_signal(signal.SIGINT)
    out, complaint = running.communicate(timeout=60)
    assert (running.returncode, out, complaint) == (0, "", "")


def test_without_runs_it_says_how_to_make_one(tmp_path: Path) -> None:
    assert "make one with: yesterday run digit-6" in refused(where=tmp_path)
    assert "There is no folder nowhere" in refused("nowhere", where=tmp_path)
    (tmp_path / "empty").mkdir()
    assert "There is no run in empty" in refused("empty", where=tmp_path)


def test_without_gradio_it_says_how_to_install_it(run: Path) -> None:
    assert "pip install 'gradio>=6'" in refused(run, code=WITHOUT_GRADIO)
