from pathlib import Path

import pytest
from scipy import stats

from figures.artefacts import Missing
from figures.pareto import FILE, open_comparison
from figures.places import draw
from figures.render import render
from unlearn.table import Comparison, Row

GAINS = {"gradient": (0.5, 12), "fisher": (0.4, 9), "contrast": (0.05, 6), "damage": (0.3, 3), "at random": (0.0, 17)}


def row(name: str, where: str, outside: int, gain: float | None) -> Row:
    means = {"accuracy on the forgotten": 0.0, "accuracy on the rest": 0.9}
    return Row(name=name, where=where, changed=0.2, seconds=1.0, mean=means, sd=dict.fromkeys(means, 0.0),
               verdicts=["hidden"] * 3, outside={"probe": 3 * outside - 1, "relearning": 1}, gain=gain,
               distance=(outside / 4, outside / 4 + 0.1, outside / 4 + 0.5),
               control="random" in where)  # fmt: skip


def written(folder: Path, places: dict[str, tuple[float, int]]) -> Path:
    rows = [row("original", "", 19, None), row("regrow", "all", 0, None)]
    rows += [row("regrow", f"20% {place}", outside, gain) for place, (gain, outside) in places.items()]
    rows += [row("npo", "20% gradient", 15, 0.5)]
    found = Comparison(subjects=["digit-6"], seeds=[0, 1, 2], golds=20, rows=rows)
    (folder / FILE).write_text(found.model_dump_json())
    return folder


def test_every_place_of_the_most_tried_method_is_a_point(tmp_path: Path) -> None:
    drawing = draw(open_comparison(written(tmp_path, GAINS)))
    (axes,) = drawing.figure.axes
    points = sorted((float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.lines)
    for found, (gain, outside) in zip(points, sorted(GAINS.values()), strict=True):
        assert found == (gain, pytest.approx(outside / 4 + 0.2))
    assert {text.get_text() for text in axes.texts} >= set(GAINS)
    measured = [pair for place, pair in GAINS.items() if place != "at random"]
    rho = stats.spearmanr(*zip(*measured, strict=True)).statistic
    assert f"over 4 measures: {rho:+.2f}" in drawing.caption
    assert "20% damage gain 0.30, distance 0.95, 3.0 auditors outside" in drawing.alt


def test_too_few_places_are_no_figure(tmp_path: Path) -> None:
    few = {place: GAINS[place] for place in ("gradient", "fisher", "at random")}
    with pytest.raises(Missing, match="at 4 or more places"):
        draw(open_comparison(written(tmp_path, few)))
    assert [path.name for path in render(tmp_path)] == ["pareto.svg", "pareto.png"]
    assert len(render(written(tmp_path, GAINS))) == 4
