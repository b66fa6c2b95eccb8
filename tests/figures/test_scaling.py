import math
from pathlib import Path

import numpy as np
import pytest

from analysis.errors import UserError
from figures.artefacts import Missing
from figures.save import script_for
from figures.scaling import FILE, Peak, Scaling, Series, draw, growth, open_scaling


def series(stage: str, power: float, sizes: tuple[float, ...] = (1.0, 4.0, 16.0, 64.0)) -> Series:
    return Series(stage=stage, by="samples", unit="images", x=list(sizes), seconds=[0.01 * n**power for n in sizes],
                  slope=power, tail=power)  # fmt: skip


def peak(stage: str, ratio: float) -> Peak:
    size = 500_000_000
    return Peak(stage=stage, model_bytes=size, bound_bytes=int(1.5 * size), peak_bytes=int(ratio * size), ratio=ratio,
                holds={"like weights, by clone": size})  # fmt: skip


def written(folder: Path, found: list[Series], memory: list[Peak]) -> Path:
    whole = Scaling(machine={"processor": "A Processor", "threads": 2}, series=found, memory=memory)
    (folder / FILE).write_text(whole.model_dump_json())
    return folder


def test_every_series_is_a_panel_with_its_points_and_its_power(tmp_path: Path) -> None:
    found = [series(f"stage {i}", power) for i, power in enumerate((0.0, 0.5, 1.0, 2.0))]
    drawing = draw(open_scaling(written(tmp_path, found, [])))
    panels = drawing.figure.subfigs[0].axes
    assert len(panels) == len(found)
    for axes, one in zip(panels, found, strict=True):
        line, points = axes.lines
        assert list(points.get_xdata()) == one.x
        assert list(points.get_ydata()) == one.seconds
        # The power is exact here, so that the line runs through the points.
        np.testing.assert_allclose(line.get_ydata(), one.seconds)
        assert axes.get_xscale() == axes.get_yscale() == "log"
        low, high = axes.get_ylim()
        assert low < min(one.seconds) <= max(one.seconds) < high
        assert high / low >= 10
        assert axes.get_title(loc="left") == f"{one.stage}\nby samples: power {one.slope:.2f} ({one.tail:.2f})"
    assert "stage 3 by samples: power 2.00, with the square" in drawing.alt
    assert "A Processor, 2 threads" in drawing.caption
    assert len(drawing.figure.subfigs) == 1


def test_memory_peaks_are_bars_that_tell_whether_the_aim_is_reached(tmp_path: Path) -> None:
    peaks = [peak("locate", 1.2), peak("edit", 2.4)]
    drawing = draw(open_scaling(written(tmp_path, [series("a", 1.0)], peaks)))
    (axes,) = drawing.figure.subfigs[1].axes
    bars = axes.patches
    assert [bar.get_width() for bar in bars] == [1.2, 2.4]
    assert bars[0].get_facecolor() != bars[1].get_facecolor()
    assert [text.get_text() for text in axes.texts] == ["1.20", "2.40"]
    assert "edit: memory peak 2.40" in drawing.alt
    assert "model of 500 MB" in drawing.caption


@pytest.mark.parametrize("sizes", [(1.0, 16.0), tuple(2.0**n for n in range(11)), (0.4, 1.6, 6.3, 25.0, 100.0)])
def test_the_largest_size_stands_on_the_axis_and_ticks_stay_few(tmp_path: Path, sizes: tuple[float, ...]) -> None:
    drawing = draw(open_scaling(written(tmp_path, [series("a", 1.0, sizes)], [])))
    ticks = list(drawing.figure.subfigs[0].axes[0].get_xticks())
    assert set(ticks) <= set(sizes)
    assert ticks[-1] == sizes[-1]
    assert 2 <= len(ticks) <= 5


@pytest.mark.parametrize(
    ("slope", "said"),
    [
        (0.05, "hardly grows"), (0.6, "slower than in proportion"), (0.9, "in proportion"), (1.1, "in proportion"),
        (1.5, "faster than in proportion"), (1.9, "with the square"), (2.6, "faster than in proportion"),
    ],
)  # fmt: skip
def test_what_a_power_means(slope: float, said: str) -> None:
    assert growth(slope) == said


def test_labels_do_not_overlap(tmp_path: Path) -> None:
    names = ("edit of a language model, 10 steps", "locate (Fisher), language model", "exact patching")
    found = [series(name, 1.2, (55_050.0, 118_282.0, 269_322.0, 669_706.0, 1_863_690.0)) for name in names * 2]
    figure = draw(
        open_scaling(written(tmp_path, found, [peak("edit: 1.0% of the weights, in the last sixth", 2)]))
    ).figure
    figure.draw_without_rendering()
    boxes = []
    for axes in (axes for part in figure.subfigs for axes in part.axes):
        shown = []
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            marks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
            shown += [label for at, label in marks if min(limits) <= at <= max(limits)]
        titles = [axes._left_title, axes.xaxis.label]  # type: ignore[attr-defined]
        boxes += [text.get_window_extent() for text in (*titles, *shown) if text.get_text()]
    assert len(boxes) > 6 * 9
    width, height = figure.bbox.width, figure.bbox.height
    for i, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= width
        assert box.y0 >= 0
        assert box.y1 <= height
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_it_is_written_by_its_command(tmp_path: Path) -> None:
    folder = written(tmp_path, [series("a", 1.0)], [])
    assert script_for(open_scaling, "figures.scaling", draw, [str(folder)]) == 0
    assert {path.name for path in (folder / "figures").iterdir()} == {"scaling.svg", "scaling.png"}


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"tests\.benchmarks\.scaling"):
        open_scaling(tmp_path)
    with pytest.raises(Missing, match="no series"):
        open_scaling(written(tmp_path, [], []))
    (tmp_path / FILE).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        open_scaling(tmp_path)


def test_the_fitted_power_is_that_of_the_seconds() -> None:
    from tests.benchmarks.scaling import exponent

    sizes = [3.0, 6.0, 12.0, 48.0]
    assert exponent(sizes, [0.2 * size**1.7 for size in sizes]) == pytest.approx(1.7)
    noisy = [0.2 * size**1.7 * math.exp(e) for size, e in zip(sizes, (0.1, -0.1, -0.1, 0.1), strict=True)]
    logs = np.log(sizes) - np.log(sizes).mean()
    assert exponent(sizes, noisy) == pytest.approx(float(logs @ np.log(noisy) / (logs @ logs)))
