from pathlib import Path

import pytest
from matplotlib.colors import to_hex

from analysis.errors import UserError
from figures import pareto
from figures.artefacts import Missing
from figures.pareto import FACT_AXES, FILE, draw, open_comparison
from figures.render import render
from figures.style import CONTROL, EDITED, FAINT, GOLD, ORIGINAL
from unlearn.table import TWINS_MEAN, Comparison, Row


def row(name: str, where: str, forget: float, keep: float, axes: tuple[str, str] = FACT_AXES) -> Row:
    means = dict(zip(axes, (forget, keep), strict=True))
    return Row(name=name, where=where, changed=None, seconds=None, mean=means, sd=dict.fromkeys(axes, 0.01),
               verdicts=["hidden"] * 3, outside={}, control=" at random" in where or " in block" in where)  # fmt: skip


ROWS = [
    row("original", "", 0.7, 0.8),
    row(TWINS_MEAN, "", 0.3, 0.8),
    row("output-filter", "", 0.1, 0.78),
    row("npo", "all", 0.5, 0.77),
    row("npo", "1% gradient-ratio", 0.4, 0.79),
    row("rmu", "1% at random", 0.55, 0.76),
    row("rmu", "1% in block 6", 0.6, 0.75),
    row("neuron-ablation", "1% gradient-ratio", 0.2, 0.3),
]


def written(folder: Path, rows: list[Row] = ROWS) -> Path:
    found = Comparison(subjects=["beatles"], seeds=[0, 1, 2], golds=10, rows=rows)
    (folder / FILE).write_text(found.model_dump_json())
    return folder


def points(folder: Path) -> dict[tuple[float, float], str]:
    (axes,) = draw(open_comparison(folder)).figure.axes
    found = [(line.get_xdata(), line.get_ydata(), to_hex(line.get_color())) for line in axes.lines]
    return {(float(x[0]), float(y[0])): colour.upper() for x, y, colour in found if len(x) == 1}


def test_every_row_is_a_point_in_the_colour_of_what_it_might_change(tmp_path: Path) -> None:
    assert points(written(tmp_path)) == {
        (0.7, 0.8): ORIGINAL,
        (0.3, 0.8): GOLD,
        (0.1, 0.78): CONTROL,
        (0.5, 0.77): FAINT,
        (0.4, 0.79): EDITED,
        (0.55, 0.76): CONTROL,
        (0.6, 0.75): CONTROL,
    }


def test_what_lies_far_below_is_named_instead(tmp_path: Path) -> None:
    drawing = draw(open_comparison(written(tmp_path)))
    assert "neuron-ablation (1% gradient-ratio) 20.0% and 30.0%" in drawing.caption
    assert "3 seeds (0, 1, 2), 10 twins each" in drawing.caption
    assert all(f"{one.name} ({one.where})" in drawing.alt for one in ROWS if one.where)


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (("accuracy on the rest", "5-shot probe, hidden 1", "5-shot probe, hidden 2"), "5-shot probe, hidden 2"),
        (("accuracy on the rest", "accuracy on the forgotten"), "accuracy on the forgotten"),
    ],
)
def test_classes_are_drawn_by_their_deepest_probe(tmp_path: Path, measured: tuple[str, ...], expected: str) -> None:
    rows = [one.model_copy(update={"mean": dict.fromkeys(measured, 0.5), "sd": dict.fromkeys(measured, 0.1)})
            for one in ROWS[:1]]  # fmt: skip
    (axes,) = draw(open_comparison(written(tmp_path, rows))).figure.axes
    assert axes.get_xlabel().startswith(expected)


def test_a_comparison_is_rendered_like_a_run(tmp_path: Path) -> None:
    paths = render(written(tmp_path))
    assert [path.name for path in paths] == ["pareto.svg", "pareto.png"]
    assert "Points for 8 rows" in paths[0].read_text()
    with pytest.raises(UserError, match="no figure 'overview'; choose from leaderboard"):
        render(tmp_path, ["overview"])


def test_what_is_missing_or_damaged_is_said(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="yesterday compare"):
        open_comparison(tmp_path)
    (tmp_path / FILE).write_text('{"rows": 3}')
    with pytest.raises(UserError, match=r"comparison\.json is damaged"):
        open_comparison(tmp_path)


def test_a_method_with_many_settings_stays_inside_and_off_the_panel(tmp_path: Path) -> None:
    long = (
        "stranger:lr=0.001:steps=600:retain_rows=32:other_rows=16:retain_weight=20:"
        "states=1:warm=0:retain_states=10:restored=0"
    )
    figure = draw(open_comparison(written(tmp_path, [*ROWS, row(long, "all", 0.5, 0.8)]))).figure
    (legend,) = figure.legends
    assert long in [text.get_text().replace("\n", "") for text in legend.get_texts()]
    box = legend.get_window_extent()
    assert box.x0 > figure.axes[0].get_window_extent().x1
    assert box.x1 <= figure.bbox.x1
    assert box.y0 >= 0


def test_there_are_marks_for_more_methods_than_shapes(tmp_path: Path) -> None:
    many = [row(f"method-{i}", "all", 0.5, 0.8) for i in range(40)]
    marks = pareto._marks(many)
    assert len(marks) >= 40
    draw(open_comparison(written(tmp_path, [*ROWS, *many])))
