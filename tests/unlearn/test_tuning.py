"""What is searched: positive fractions, evenly, around what is usual, the same for the same seed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn.methods import METHODS, named
from unlearn.table import Row
from unlearn.tuning import SPAN, SPAN_OF_RATES, _distance, proposals, searched


def test_fractions_are_searched_rates_further_and_counts_not() -> None:
    usual, own = METHODS["l1-sparse"].settings, METHODS["regrow"].settings
    assert searched(METHODS["l1-sparse"]) == {
        "lr": (usual.lr / SPAN_OF_RATES, usual.lr * SPAN_OF_RATES),
        "alpha": (usual.alpha / SPAN, usual.alpha * SPAN),
    }
    assert searched(named("regrow:decay=0", METHODS)).keys() == {"rate", "alike"}
    # In units of what the network is usually trained at, a rate has no need of the long reach.
    assert searched(METHODS["regrow"])["rate"] == (own.rate / SPAN, own.rate * SPAN)
    assert searched(METHODS["retrain"]) == {}


@given(trials=st.integers(2, 9), seed=st.integers(0, 50))
def test_proposals_cover_each_range_evenly_and_keep_the_place(trials: int, seed: int) -> None:
    found = proposals("moment-matching@random", METHODS, trials, seed)
    assert found[0] == "moment-matching@random"
    assert len(found) == trials
    assert found == proposals("moment-matching@random", METHODS, trials, seed)
    assert all(text.endswith("@random") for text in found)
    settings = [named(text.removesuffix("@random"), METHODS).settings for text in found[1:]]
    for name, (low, high) in searched(METHODS["moment-matching"]).items():
        shares = [math.log(getattr(one, name) / low) / math.log(high / low) for one in settings]
        cells = sorted(min(trials - 2, max(0, math.floor(share * (trials - 1) + 1e-9))) for share in shares)
        # Rounded to three digits a value may fall just across a border.
        assert all(abs(cell - i) <= 1 for i, cell in enumerate(cells))
        assert -0.01 <= min(shares) <= max(shares) <= 1.01


def test_what_a_method_refuses_is_replaced_and_what_has_no_settings_is_left_as_it_is() -> None:
    # alpha is a share: much of the range above the usual .6 is beyond 1.
    found = proposals("undo", METHODS, 9, 0)
    assert len(set(found)) == 9
    assert all(0.14 <= named(text, METHODS).settings.alpha <= 1 for text in found)
    assert proposals("retrain", METHODS, 9, 0) == ["retrain"]
    assert proposals("undo", METHODS, 1, 0) == ["undo"]


def row(name: str, place: str, distance: tuple[float, ...], failed: tuple[str, ...] = ()) -> Row:
    return Row(name=name, place=place, where=place, changed=None, seconds=None, mean={}, sd={}, verdicts=[], outside={},
               distance=distance, ranks=(1.0,), failed=failed)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a", 2.5), ("a@none", 2.0), ("a@random", 3.0), ("a@gradient", math.inf), ("b", math.inf), ("c", math.inf)],
)
def test_a_methods_distance_is_the_mean_over_the_places_it_was_asked_for(text: str, expected: float) -> None:
    rows = [row("a", "none", (1.0, 3.0)), row("a", "random", (3.0,)), row("b", "none", (1.0,), ("diverged",))]
    assert _distance(rows, text) == expected
