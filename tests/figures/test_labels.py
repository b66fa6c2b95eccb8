import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.labels import RADIUS, Label, write_labels
from figures.style import INK, canvas


def panel() -> tuple[Figure, Axes]:
    figure = canvas(height=4.0)
    axes = figure.subplots()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    return figure, axes


def boxes(figure: Figure, axes: Axes) -> dict[str, np.ndarray]:
    renderer = figure.canvas.get_renderer()
    found = {text.get_text(): text.get_window_extent(renderer).get_points() for text in axes.texts if text.get_text()}
    return {text: box.ravel() for text, box in found.items()}


def meet(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(min(a[2], b[2]) - max(a[0], b[0]) > 0.5 and min(a[3], b[3]) - max(a[1], b[1]) > 0.5)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 0.9), st.floats(0.1, 0.9)), min_size=1, max_size=9), st.booleans())
def test_names_stand_clear_of_one_another_and_of_all_points(places: list[tuple[float, float]], crowded: bool) -> None:
    places = [(0.5 + (x - 0.5) / 8, 0.5 + (y - 0.5) / 8) for x, y in places] if crowded else places
    figure, axes = panel()
    others = [(0.2, 0.2), (0.52, 0.5)]
    write_labels(figure, axes, [Label(x, y, f"name {i}", INK) for i, (x, y) in enumerate(places)], others)
    found = boxes(figure, axes)
    assert len(found) == len(places)
    assert not any(meet(a, b) for a, b in itertools.combinations(found.values(), 2))
    radius = (RADIUS - 0.5) * figure.dpi / 72
    marks = [np.concatenate([at - radius, at + radius]) for at in axes.transData.transform([*places, *others])]
    assert not any(meet(box, mark) for box in found.values() for mark in marks)
    frame = axes.get_window_extent()
    assert all(frame.x0 <= b[0] and b[2] <= frame.x1 and frame.y0 <= b[1] and b[3] <= frame.y1 for b in found.values())


@pytest.mark.parametrize(("x", "side"), [(0.5, 1), (0.995, -1)])
def test_a_name_alone_stands_to_the_right_and_at_the_edge_to_the_left(x: float, side: int) -> None:
    figure, axes = panel()
    write_labels(figure, axes, [Label(x, 0.5, "name", INK)])
    (box,) = boxes(figure, axes).values()
    ((at, height),) = axes.transData.transform([(x, 0.5)])
    assert np.sign((box[0] + box[2]) / 2 - at) == side
    assert (box[1] + box[3]) / 2 == pytest.approx(height, abs=1)
    assert len(axes.texts) == 1


def test_a_name_far_off_has_a_line_to_its_point() -> None:
    figure, axes = panel()
    around = [(0.5 + 0.03 * i, 0.5 + 0.045 * j) for i in range(-2, 3) for j in range(-2, 3) if i or j]
    write_labels(figure, axes, [Label(0.5, 0.5, "name", INK)], around)
    assert [text.get_text() for text in axes.texts] == ["name", ""]
