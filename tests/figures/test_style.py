import base64
import io
import itertools
import math

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.formatters import DisplayFormatter
from PIL import Image

from figures.style import (
    EDITED,
    GOLD,
    ORIGINAL,
    WIDTH,
    canvas,
    centred,
    finish,
    inches,
    picture,
    styled,
    wrap,
)
from figures.words import percent, plural, seeds_in_words, shorten, squeeze, tick_percent


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_original_edited_and_gold_differ_in_lightness_too() -> None:
    light = sorted(luminance(c) for c in (ORIGINAL, EDITED, GOLD))
    assert all(b / a > 1.25 for a, b in itertools.pairwise(light))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0.5, 1))
def test_signed_scales_are_centred_on_zero_and_never_empty(values: list[float], quantile: float) -> None:
    norm = centred(np.array(values), quantile=quantile)
    assert norm.vmin == -norm.vmax
    assert norm.vmax > 0
    assert float(norm(0.0)) == pytest.approx(0.5)
    if quantile == 1:
        assert norm.vmax == (np.abs(values).max() or 1.0)


def test_signed_scales_ignore_what_is_not_finite() -> None:
    assert centred(np.array([math.nan, math.inf, -2.0, 1.0])).vmax == 2.0


@given(st.lists(st.text(alphabet="abcdefgWi$", min_size=1, max_size=12), min_size=1, max_size=40))
def test_wrapping_keeps_every_word_and_the_width(words: list[str]) -> None:
    figure = canvas(1.0)
    lines = wrap(figure, " ".join(words), 8.5, 2.0)
    assert " ".join(lines).split(" ") == words
    renderer = figure.canvas.get_renderer()
    font = matplotlib.font_manager.FontProperties(family="DejaVu Sans", size=8.5)
    wide = [renderer.get_text_width_height_descent(line, font, False)[0] / figure.dpi for line in lines]
    assert all(w <= 2.0 for w, line in zip(wide, lines, strict=True) if " " in line)


@given(st.lists(st.text(alphabet="abcdefgWi=", min_size=1, max_size=8), min_size=1, max_size=20))
def test_a_word_longer_than_a_line_is_broken_after_its_colons(settings: list[str]) -> None:
    figure = canvas(1.0)
    name = ":".join(settings)
    lines = wrap(figure, f"by {name}", 8.5, 1.5)
    assert "".join(lines).replace(" ", "") == f"by{name}"
    assert all(inches(figure, line, 8.5) <= 1.5 for line in lines)
    assert all(line.endswith((":", "by")) for line in lines[:-1])
    assert (len(lines) == 1) == (inches(figure, f"by {name}", 8.5) <= 1.5)


def test_a_long_caption_makes_the_figure_higher_and_not_wider() -> None:
    heights = []
    for caption in ("n = 1.", "many words " * 80):
        figure = canvas(1.0)
        figure.subplots()
        drawing = finish(figure, "Title", caption, "alt")
        assert drawing.figure.get_size_inches()[0] == pytest.approx(WIDTH)
        heights.append(drawing.figure.get_size_inches()[1])
    assert heights[1] > heights[0] + 0.5


def test_a_notebook_shows_a_drawing_with_its_words() -> None:
    figure = canvas(1.0)
    figure.subplots().plot([0, 1])
    drawing = finish(figure, "Title", "n = 1.", "A line that rises.")
    data, metadata = DisplayFormatter().format(drawing)
    assert data["text/plain"] == metadata["image/png"]["alt"] == "A line that rises."
    with Image.open(io.BytesIO(base64.b64decode(data["image/png"], validate=True))) as image:
        assert image.info["Description"] == "A line that rises."
        # Two pixels for each CSS pixel, so that it is sharp on any screen.
        for side, pixels in zip(("width", "height"), image.size, strict=True):
            assert abs(2 * metadata["image/png"][side] - pixels) <= 1
        assert np.asarray(image.convert("L"), float).std() > 10
    (again, _) = DisplayFormatter().format(drawing)
    assert again == data


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    before = dict(matplotlib.rcParams)

    @styled
    def fails() -> None:
        assert matplotlib.rcParams["svg.hashsalt"] == "yesterday"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0%"), (1, "100%"), (0.942, "94.2%"), (0.0035, "0.35%"), (math.nan, "not a number")]
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


def test_words() -> None:
    assert tick_percent(0.001) == "0.1%"
    assert plural(1, "seed") == "1 seed"
    assert plural(1200, "image") == "1,200 images"
    assert seeds_in_words([3]) == "seed 3"
    assert seeds_in_words([0, 1, 2]) == "seeds 0 to 2"
    assert seeds_in_words([0, 7]) == "seeds 0, 7"
    assert shorten("Ankle boot", 10) == "Ankle boot"
    assert len(shorten("a very long name", 10)) <= 10
    assert squeeze("Ankle boot", 10) == "Ankle boot"
    assert [squeeze(f"the class number {i}", 10) for i in (7, 12)] == ["the c…er 7", "the c…r 12"]


def test_pictures_are_rgb_between_zero_and_one() -> None:
    grey = picture(np.array([[[-1.0, 1.0]]]), -1, 1)
    assert grey.tolist() == [[[0, 0, 0], [1, 1, 1]]]
    assert picture(np.zeros((5, 2, 2)), 0, 0).shape == (2, 2, 3)
