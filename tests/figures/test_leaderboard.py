import itertools
from pathlib import Path

import pytest
from matplotlib.colors import to_hex

from figures.artefacts import Missing
from figures.leaderboard import draw
from figures.pareto import FILE, MEANINGS, open_comparison
from figures.style import CONTROL, EDITED, FAINT, GOLD
from unlearn.table import GOLD as GOLDS
from unlearn.table import TWINS_MEAN, Comparison, Row

MEANS = {"accuracy on the forgotten": 0.0, "accuracy on the rest": 0.9}


def row(name: str, where: str, distance: tuple[float, ...], ranks: tuple[float, ...], control: bool = False) -> Row:
    return Row(name=name, where=where, changed=0.2, seconds=1.0, mean=MEANS, sd=dict.fromkeys(MEANS, 0.0),
               verdicts=["erased", "hidden"][: len(distance)], outside={}, distance=distance, ranks=ranks,
               control=control, failed=() if len(distance) == 2 else ("diverged",) * (2 - len(distance)))  # fmt: skip


LONG = (
    "stranger:lr=0.001:steps=600:retain_rows=32:other_rows=16:retain_weight=20:"
    "states=1:warm=0:retain_states=10:restored=0"
)
ROWS = [
    row(GOLDS, "", (), ()),
    row("fresh gold", "", (0.3, 0.5), ()),
    row("far", "all", (5.0, 7.0), (3.0, 3.0)),
    row("near", "20% contrast", (0.5, 0.7), (1.0, 1.0)),
    row("near", "20% at random", (2.0, 4.0), (2.0, 2.0), control=True),
    row("broken", "all", (), (4.0, 4.0)),
]


def written(folder: Path, rows: list[Row]) -> Path:
    found = Comparison(subjects=["digit-6"], seeds=[0, 1], golds=20, rows=rows)
    (folder / FILE).write_text(found.model_dump_json())
    return folder


def test_methods_stand_in_order_and_what_failed_everywhere_is_left_out(tmp_path: Path) -> None:
    drawing = draw(open_comparison(written(tmp_path, ROWS)))
    (axes,) = drawing.figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "near: 20% contrast",
        "near: 20% at random",
        "far: all (changed 20%)",
        "fresh gold",
    ]
    points = {float(line.get_ydata()[0]): (float(line.get_xdata()[0]), to_hex(line.get_color()).upper())
              for line in axes.lines if len(line.get_xdata()) == 1}  # fmt: skip
    assert points == {
        0.0: (pytest.approx(0.6), EDITED),
        1.0: (pytest.approx(3.0), CONTROL),
        2.0: (pytest.approx(6.0), FAINT),
        3.0: (pytest.approx(0.4), GOLD),
    }
    assert [text.get_text() for text in axes.texts] == ["1 of 2"] * 4 + ["erased"]
    assert "2 seeds (0, 1), 20 golds each" in drawing.caption
    assert "bars: standard deviation" in drawing.caption
    (legend,) = drawing.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(MEANINGS.values())
    assert axes.get_xlabel().startswith("distance to the golds")


def test_one_seed_has_no_bars_to_explain_and_twins_are_called_twins(tmp_path: Path) -> None:
    rows = [row(TWINS_MEAN, "", (), ()), row("near", "1% stranger", (0.5,), (1.0,))]
    drawing = draw(open_comparison(written(tmp_path, rows)))
    assert "bars" not in drawing.caption
    assert drawing.figure.axes[0].get_xlabel().startswith("distance to the twins")


def test_a_method_with_many_settings_takes_several_lines_and_stays_inside(tmp_path: Path) -> None:
    drawing = draw(open_comparison(written(tmp_path, [*ROWS, row(LONG, "all", (1.0, 2.0), (2.0, 2.0))])))
    labels = drawing.figure.axes[0].get_yticklabels()
    told = [text.get_text().replace("\n", "") for text in labels]
    assert told[2] == f"{LONG}: all (changed 20%)"
    boxes = [text.get_window_extent() for text in labels]
    assert all(box.x0 >= 0 for box in boxes)
    assert all(upper.y0 > lower.y1 for upper, lower in itertools.pairwise(boxes))


def test_without_methods_there_is_no_board(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="--methods"):
        draw(open_comparison(written(tmp_path, ROWS[:2])))
