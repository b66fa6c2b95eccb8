import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.errors import UserError
from analysis.files import write_text
from unlearn.stages import Stages, locked


def _stages(folder: Path) -> Stages:
    return Stages(folder, lambda *_: None)


def _writer(folder: Path, name: str, text: str, calls: list[str]) -> Callable[[object], dict[str, str]]:
    def work(_: object) -> dict[str, str]:
        calls.append(name)
        write_text(folder / name, text)
        return {"wrote": text}

    return work


def test_a_finished_stage_is_skipped_and_its_facts_are_kept(tmp_path: Path) -> None:
    calls: list[str] = []
    for _ in range(2):
        facts = _stages(tmp_path).run("one", {"a": 1}, [], ["x.txt"], _writer(tmp_path, "x.txt", "x", calls))
        assert facts == {"wrote": "x"}
    assert calls == ["x.txt"]


def test_other_settings_or_other_inputs_do_it_again(tmp_path: Path) -> None:
    calls: list[str] = []

    def chain(setting: int) -> None:
        stages = _stages(tmp_path)
        stages.run("one", {"a": setting}, [], ["x.txt"], _writer(tmp_path, "x.txt", str(setting), calls))
        stages.run("two", {}, ["x.txt"], ["y.txt"], _writer(tmp_path, "y.txt", "y", calls))

    chain(1)
    chain(2)
    chain(2)
    assert calls == ["x.txt", "y.txt", "x.txt", "y.txt"]


def test_a_missing_file_is_made_again(tmp_path: Path) -> None:
    calls: list[str] = []
    for _ in range(2):
        _stages(tmp_path).run("one", {}, [], ["x.txt"], _writer(tmp_path, "x.txt", "x", calls))
        (tmp_path / "x.txt").unlink()
    assert calls == ["x.txt", "x.txt"]


@pytest.mark.parametrize("victim", ["x.txt", "stages/one.json"])
def test_a_damaged_file_is_refused_and_stays(tmp_path: Path, victim: str) -> None:
    calls: list[str] = []
    _stages(tmp_path).run("one", {}, [], ["x.txt"], _writer(tmp_path, "x.txt", "x", calls))
    (tmp_path / victim).write_text("{damaged")
    with pytest.raises(UserError, match="corrupted"):
        _stages(tmp_path).run("one", {}, [], ["x.txt"], _writer(tmp_path, "x.txt", "x", calls))
    assert (tmp_path / victim).read_text() == "{damaged"
    assert calls == ["x.txt"]


def test_a_stage_that_fails_leaves_no_record_and_the_earlier_ones_intact(tmp_path: Path) -> None:
    calls: list[str] = []
    stages = _stages(tmp_path)
    stages.run("one", {}, [], ["x.txt"], _writer(tmp_path, "x.txt", "x", calls))

    def fail(_: object) -> None:
        raise UserError("no")

    with pytest.raises(UserError):
        stages.run("two", {}, ["x.txt"], ["y.txt"], fail)
    assert not (tmp_path / "stages/two.json").exists()
    assert json.loads((tmp_path / "stages/one.json").read_text())["facts"] == {"wrote": "x"}
    assert (tmp_path / "x.txt").read_text() == "x"


def test_who_waits_gets_a_folder_when_it_is_free(tmp_path: Path) -> None:
    order = []

    def other() -> None:
        with locked(tmp_path, wait=True):
            order.append("second")

    thread = threading.Thread(target=other)
    with locked(tmp_path):
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_folder_is_locked_for_one_run(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match="Another run"), locked(tmp_path):
        pass
    with locked(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="--out"), locked(tmp_path / "file" / "run"):
        pass
