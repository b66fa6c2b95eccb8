import pytest
import torch
from sklearn.linear_model import LogisticRegression

from analysis.representations.probes import fit_probes, standardised


@pytest.mark.parametrize(("rows", "features"), [(12, 40), (200, 8), (50, 50)])
def test_probes_reach_the_optimum_that_scikit_learn_reaches(rows: int, features: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(3, rows, features, generator=generator, dtype=torch.float64)
    y = torch.rand(3, rows, generator=generator) < 0.3
    y[:, 0], y[:, 1] = True, False
    weights, biases = fit_probes(x, y)
    for i in range(3):
        slow = LogisticRegression(class_weight="balanced", tol=1e-12, max_iter=100_000)
        slow.fit(x[i].numpy(), y[i].numpy())
        torch.testing.assert_close(weights[i], torch.from_numpy(slow.coef_[0]), atol=2e-5, rtol=0)
        assert float(biases[i]) == pytest.approx(float(slow.intercept_[0]), abs=2e-5)


def test_separable_rows_with_large_features_converge() -> None:
    x = torch.tensor([[[1000.0], [900.0], [-1000.0], [-800.0]]], dtype=torch.float64)
    weights, biases = fit_probes(x, torch.tensor([[True, True, False, False]]))
    assert bool(torch.isfinite(weights).all())
    assert bool(torch.isfinite(biases).all())
    assert float(weights[0, 0]) > 0


def test_shrinking_a_layer_does_not_fool_a_probe() -> None:
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = torch.tensor([1e-6, 1.0, 1e3, 1e-3, 1.0, 0.0], dtype=torch.float64)
    shrunk = standardised(x * scale + 5)
    torch.testing.assert_close(shrunk[:, :5], standardised(x)[:, :5], atol=1e-6, rtol=0)
    assert bool((shrunk[:, 5] == 0).all())
