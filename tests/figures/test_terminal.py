"""What a terminal is told of runs, good and bad; the tables themselves are read in the command line's tests."""

import json
from pathlib import Path

import pytest

from analysis.errors import UserError
from analysis.files import write_text
from figures.terminal import print_run, print_runs, progress_bars
from unlearn.documents import RunReport, read_run


def run(folder: Path, method: str | None, verdict: str | None) -> Path:
    report = RunReport(
        name="digit-6",
        config={"method": method},
        verdict=verdict,
        sentence="",
        changed=1,
        total=2,
        versions={},
        stages={},
    )
    write_text(folder / "run.json", report.model_dump_json())
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    run(tmp_path / "a", "regrow", "erased")
    write_text(tmp_path / "b" / "run.json", "no json")
    run(tmp_path / "c", None, None)
    (tmp_path / "no run").mkdir()
    return tmp_path


def test_a_run_that_cannot_be_read_hides_no_other(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs)
    print_runs(Path(), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0] == "a  regrow  erased"
    assert lines[1].startswith("b  b/run.json is corrupted")
    assert lines[2] == "c  audited checkpoint  not audited"
    print_runs(Path(), as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [(row["run"], row["method"], row["verdict"]) for row in rows] == [
        ("a", "regrow", "erased"),
        ("b", None, None),
        ("c", None, None),
    ]
    assert [bool(row["problem"]) for row in rows] == [False, True, False]


@pytest.mark.parametrize(("place", "words"), [("a", "is itself a run"), ("no run", "start with: yesterday run")])
def test_a_folder_without_runs(runs: Path, capsys: pytest.CaptureFixture[str], place: str, words: str) -> None:
    print_runs(runs / place, as_json=False)
    assert words in " ".join(capsys.readouterr().out.split())
    print_runs(runs / place, as_json=True)
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(("audit", "words"), [(None, r"a has no audit\.json; make it"), ("{}", "is damaged")])
def test_a_run_whose_audit_is_gone(runs: Path, audit: str | None, words: str) -> None:
    if audit is not None:
        write_text(runs / "a" / "audit.json", audit)
    with pytest.raises(UserError, match=words):
        print_run(runs / "a", read_run(runs / "a"), quiet=False, as_json=False)


def test_a_stage_with_a_long_name_still_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with progress_bars(hidden=False) as report:
        for end in ("restored=0", "restored=1"):
            report(f"seed 0: stranger_lr=0.001_steps=600_retain_rows=32_other_rows=16_states=1_warm=0_{end}", 1.0)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("seed 0: stranger")]
    assert [any(end in line for line in lines) for end in ("restored=0", "restored=1")] == [True, True]
    assert all("100%" in line and "left: 0:00:00" in line for line in lines)
