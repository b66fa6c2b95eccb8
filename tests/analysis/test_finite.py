import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.finite import all_finite


@given(st.lists(st.floats(width=32), max_size=20))
def test_the_same_as_asking_each_element(numbers: list[float]) -> None:
    values = torch.tensor(numbers, dtype=torch.float32)
    assert all_finite(values) == bool(torch.isfinite(values).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.complex64])
def test_one_bad_number_is_seen_wherever_it_stands(bad: float, dtype: torch.dtype) -> None:
    for place in (0, 57, 119):
        values = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
        assert all_finite(values)
        values.view(-1)[place] = bad
        assert not all_finite(values)
        assert not all_finite(values.t())


def test_whole_numbers_and_nothing_are_finite() -> None:
    assert all_finite(torch.tensor([1, 2]))
    assert all_finite(torch.tensor([True]))
    assert all_finite(torch.empty(0, 4))


def test_a_weight_that_needs_gradients_can_be_asked() -> None:
    assert all_finite(torch.nn.Parameter(torch.ones(3)))
