import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.audit.bands import deviation, from_scale, gold_band, to_scale


def test_band_is_the_textbook_prediction_interval() -> None:
    golds = [0.93, 0.94, 0.945, 0.95, 0.935]
    band = gold_band(golds, "identity", "below", 0.01, 0.0)
    t = stats.t.ppf(0.99, 4)
    expected = np.mean(golds) - t * np.std(golds, ddof=1) * math.sqrt(1 + 1 / 5)
    assert band.edge == pytest.approx(expected, abs=1e-12)
    assert band.mean == pytest.approx(np.mean(golds))


def test_with_five_golds_the_band_is_about_five_sd_wide_and_with_twenty_about_three() -> None:
    for n, low, high in ((5, 4.5, 6.0), (20, 2.7, 3.3)):
        golds = list(np.linspace(-1, 1, n))
        band = gold_band(golds, "identity", "above", 0.05 / 10, 0.0)
        assert low < (band.edge - band.mean) / band.sd < high


def test_a_fresh_gold_lies_outside_as_often_as_the_level_says() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(0.9, 0.01, (4000, 9))
    outside = sum(row[8] > gold_band(list(row[:8]), "identity", "above", 0.05, 0.0).edge for row in draws)
    # Binomial(4000, .05) has sd 14.
    assert abs(outside - 200) < 60


@pytest.mark.parametrize("scale", ["identity", "log", "logit"])
def test_golds_that_all_agree_still_leave_room_for_one_step_of_the_measurement(scale: str) -> None:
    band = gold_band([0.0] * 20, scale, "above", 0.0025, 1 / 100)  # type: ignore[arg-type]
    assert band.edge > 0.0
    assert 0.01 < gold_band([0.0] * 20, "identity", "above", 0.0025, 1 / 100).edge < 0.02


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_scales_keep_order_and_come_back(a: float, b: float) -> None:
    for scale in ("identity", "log", "logit"):
        x, y = to_scale(a, scale), to_scale(b, scale)  # type: ignore[arg-type]
        assert (a < b) == (x < y)
        assert from_scale(x, scale) == pytest.approx(a, abs=1e-9)  # type: ignore[arg-type]


@given(st.lists(st.floats(0.05, 0.95), min_size=3, max_size=30), st.floats(0.0, 1.0))
def test_deviation_and_edge_agree_on_what_is_outside(golds: list[float], value: float) -> None:
    for side in ("above", "below"):
        band = gold_band(golds, "logit", side, 0.01, 1e-4)  # type: ignore[arg-type]
        reach = deviation(band.edge, band, "logit", side, 1e-4)  # type: ignore[arg-type]
        far = deviation(value, band, "logit", side, 1e-4)  # type: ignore[arg-type]
        if abs(far - reach) > 1e-3:
            outside = value > band.edge if side == "above" else value < band.edge
            assert outside == (far > reach)


def test_a_single_gold_makes_no_band() -> None:
    with pytest.raises(ValueError, match="two golds"):
        gold_band([0.5], "identity", "above", 0.05, 0.0)
