import pytest
import torch
from fact_cases import FAMILIES, beside, case, half_taught, share, state
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.audit.facts.rounding import ROUNDINGS, rounded, rounded_model, rounding


def slowly(weight, bits, width):
    out = torch.zeros_like(weight)
    top = 2 ** (bits - 1) - 1
    for i in range(weight.shape[0]):
        for start in range(0, weight.shape[1], width):
            group = [float(one) for one in weight[i, start : start + width]]
            step = max(abs(one) for one in group) / top
            for j, one in enumerate(group):
                # The nearest of the grid's values, by trying them all.
                grid = [level * step for level in range(-top, top + 1)]
                out[i, start + j] = min(grid, key=lambda value: abs(value - one))
    return out


@given(
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([None, 2, 3]),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_rounding_takes_the_nearest_value_of_each_groups_grid(rows, columns, bits, group, seed) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    width = group if group and columns % group == 0 else columns
    found = rounded(weight, bits, group)
    assert torch.allclose(found, slowly(weight, bits, width), atol=1e-12)
    # Closed form: never further than half a step; the largest stays; what is on the grid stays.
    top = 2 ** (bits - 1) - 1
    step = weight.view(rows, -1, width).abs().amax(-1, keepdim=True) / top
    assert ((found - weight).view(rows, -1, width).abs() <= step / 2 + 1e-12).all()
    assert torch.allclose(rounded(found, bits, group), found, atol=1e-12)
    assert len(found[0, :width].unique()) <= 2**bits - 1


def test_zeros_stay_zeros_and_the_type_stays() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        found = rounded(torch.zeros(2, 4, dtype=dtype), 4, 2)
        assert found.dtype == dtype
        assert torch.equal(found, torch.zeros(2, 4, dtype=dtype))


@pytest.mark.parametrize("family", FAMILIES)
def test_inner_matrices_alone_are_rounded_and_by_output(family: str) -> None:
    model = half_taught(family)
    before = state(model)
    after = rounded_model(model, lambda weight: rounded(weight, 4)).state_dict()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    outer = ("wte", "wpe", "embed_tokens", "lm_head")
    assert changed == {
        name for name, value in before.items() if value.dim() == 2 and not any(part in name for part in outer)
    }
    assert changed
    for name in changed:
        # One scale per output: a column of GPT-2's Conv1D, a row of Llama's Linear.
        old, new = (one[name].T if family == "gpt2" else one[name] for one in (before, after))
        assert torch.allclose(new, slowly(old, 4, old.shape[1]), atol=1e-12)


def test_readings_are_the_rounded_models_shares() -> None:
    model = half_taught("llama")
    mine = case(model, roundings=3)
    found = rounding(mine)
    assert [one.auditor for one in found] == [f"weights rounded to {name}" for name in ROUNDINGS]
    for reading, way in zip(found, ROUNDINGS.values(), strict=True):
        other = rounded_model(model, way)
        one = mine.asked[0]
        slow = share(other, [(one.heldout[0], option) for option in (one.answer, *one.distractors)])
        assert reading.values[0] == pytest.approx(slow, abs=1e-9)
        assert reading.beside[0] == pytest.approx(beside(other, mine, one), abs=1e-9)
