"""Cells: what is crossed with what, how they are called, and what becomes of an edit that fails."""

from pathlib import Path

import pytest
import torch

from analysis.errors import UserError
from unlearn.cells import Outcome, attempt, cross, own_place
from unlearn.class_comparison import class_cells
from unlearn.documents import RunConfig
from unlearn.language.comparison import fact_cells
from unlearn.methods import METHODS
from unlearn.methods.language import LOCATED
from unlearn.optimize import Diverged


def test_every_method_meets_every_place_and_share_but_all_the_weights_only_once() -> None:
    cells = cross(["ssd", "regrow:decay=0"], METHODS, ["none", "random", "contrast"], [0.01, 0.2])
    assert [(cell.method.name, cell.where) for cell in cells] == [
        (name, where)
        for name in ("ssd", "regrow:decay=0")
        for where in ("all", "1% at random", "20% at random", "1% contrast", "20% contrast")
    ]
    assert [cell.control for cell in cells[:5]] == [False, True, True, False, False]
    assert len({cell.key for cell in cells}) == 10


@pytest.mark.parametrize(
    ("name", "spec", "place"),
    [
        ("regrow", "regrow", ""),
        ("regrow@random", "regrow", "random"),
        ("regrow:labels=1@fisher-ratio", "regrow:labels=1", "fisher-ratio"),
        ("./a@b/mine.py:forget", "./a@b/mine.py:forget", ""),
        ("./a@b/mine.py:forget:lr=1e-3@none", "./a@b/mine.py:forget:lr=1e-3", "none"),
    ],
)
def test_a_place_of_its_own_stands_behind_a_name(name: str, spec: str, place: str) -> None:
    assert own_place(name) == (spec, place)


def test_a_place_of_its_own_replaces_the_others_and_nothing_comes_twice() -> None:
    cells = cross(["ssd@contrast", "ssd", "ssd"], METHODS, ["none", "contrast"], [0.1])
    assert [cell.where for cell in cells] == ["10% contrast", "all"]


def test_what_a_method_can_not_do_at_a_place_is_left_out_and_refused_where_nothing_is_left() -> None:
    cells = class_cells(RunConfig(), ["retrain", "ssd"], ["none", "gradient"], [0.1])
    assert [(cell.method.name, cell.where) for cell in cells] == [
        ("retrain", "all"),
        ("ssd", "all"),
        ("ssd", "10% gradient"),
    ]
    with pytest.raises(UserError, match="'replace' can't do this"):
        class_cells(RunConfig(), ["replace", "ssd"], ["none"], [0.1])
    name = min(LOCATED)
    located = fact_cells([name, "npo"], ["none", "gradient"], [0.1])
    assert [(cell.method.name, cell.where) for cell in located] == [
        (name, "10% gradient"),
        ("npo", "all"),
        ("npo", "10% gradient"),
    ]
    with pytest.raises(UserError, match="needs located weights"):
        fact_cells([f"{name}@none", "npo"], ["gradient"], [0.1])


def test_a_failure_is_noted_and_a_fault_is_not_hidden() -> None:
    def edit(error: Exception) -> dict[str, float]:
        raise error

    assert attempt(lambda: {"changed": 0.5}) == {"changed": 0.5}
    assert attempt(lambda: edit(UserError("No."))) == {"failed": "No."}
    assert attempt(lambda: edit(Diverged(torch.nn.Identity(), 7))) == {"failed": "diverged after 7 steps"}
    with pytest.raises(ValueError, match="a fault"):
        attempt(lambda: edit(ValueError("a fault")))


def test_an_unfinished_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the same `yesterday compare` again"):
        Outcome.load(tmp_path)
