"""WAGLE's attribution against plain loops over single weights, and what its gamma does."""

import pytest
import torch

from analysis.attribution.guided import guided_attribution
from analysis.errors import UserError


def some(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(shape, generator=generator, dtype=torch.float64) for n, shape in (("a", (3, 4)), ("b", (5,)))
    }


def test_every_weight_by_itself():
    weights, forget, retain = some(0), some(1), some(2)
    found = guided_attribution(weights, forget, retain, 0.3)
    assert (found.kind, found.measure, found.units) == ("parameter", "wagle", "nats")
    for name, values in found.values.items():
        rows = zip(
            values.flatten(), weights[name].flatten(), forget[name].flatten(), retain[name].flatten(), strict=True
        )
        for value, weight, gone, kept in rows:
            assert float(value) == pytest.approx(abs(float(weight * gone) - float(kept * gone) / 0.3), abs=1e-12)


def test_gamma_weighs_pruning_against_repair():
    weights, forget, retain = some(0), some(1), some(2)
    pruning = guided_attribution(weights, forget, retain, 1e9).values["a"]
    repair = guided_attribution(weights, forget, retain, 1e-9).values["a"]
    torch.testing.assert_close(pruning, (weights["a"] * forget["a"]).abs(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(repair * 1e-9, (retain["a"] * forget["a"]).abs(), rtol=1e-6, atol=1e-8)


def test_what_makes_no_sense_is_named():
    weights, forget, retain = some(0), some(1), some(2)
    with pytest.raises(UserError, match="gamma must be above 0"):
        guided_attribution(weights, forget, retain, 0.0)
    with pytest.raises(UserError, match="different parameters"):
        guided_attribution(weights, forget, {"a": retain["a"]})
