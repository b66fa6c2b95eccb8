"""CKA and likeness against their definitions over quadruples and pairs, and centroid shifts against closed forms."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.representations.similarity import centroid_shift, likeness, linear_cka


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(seed: int, size: int) -> torch.Tensor:
    return torch.linalg.qr(random(seed, size, size))[0]


def slow_hsic(a: torch.Tensor, b: torch.Tensor) -> float:
    """The U-statistic itself: mean of k_ij (l_ij + l_qr - 2 l_iq) over all ordered quadruples of different images."""
    k, l = (a @ a.T).tolist(), (b @ b.T).tolist()  # noqa: E741
    terms = [k[i][j] * (l[i][j] + l[q][r] - 2 * l[i][q]) for i, j, q, r in itertools.permutations(range(len(a)), 4)]
    return sum(terms) / len(terms)


def slow_cka(a: torch.Tensor, b: torch.Tensor) -> float:
    return slow_hsic(a, b) / math.sqrt(slow_hsic(a, a) * slow_hsic(b, b))


def biased_cka(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a - a.mean(0), b - b.mean(0)
    return float((a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm()))


@pytest.mark.parametrize("widths", [(3, 2), (3, 20), (20, 2), (20, 11)], ids=str)
def test_cka_is_the_ratio_of_u_statistics(widths: tuple[int, int]) -> None:
    base = random(0, 8, 2)
    a = base @ random(1, 2, widths[0]) + 0.3 * random(2, 8, widths[0]) + 5
    b = base @ random(3, 2, widths[1]) + 0.3 * random(4, 8, widths[1]) - 2
    assert linear_cka(a, b) == pytest.approx(slow_cka(a, b), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    width=st.integers(1, 40),
    other=st.integers(1, 40),
    scale=st.floats(1e-6, 1e6),
    shift=st.floats(-10, 10),
)
def test_cka_ignores_basis_scale_and_shift(seed: int, width: int, other: int, scale: float, shift: float) -> None:
    a, b = random(seed, 20, width), random(seed + 1, 20, other)
    b[:, 0] += 3 * a[:, 0]
    plain = linear_cka(a, b)
    assert linear_cka(a @ rotation(seed, width) * scale + shift, b) == pytest.approx(plain, abs=1e-6)
    assert linear_cka(b, a) == pytest.approx(plain, abs=1e-12)
    assert -1 <= plain <= 1


def test_cka_sees_what_is_not_a_rotation() -> None:
    a = random(0, 200, 5)
    stretched = a * torch.tensor([10.0, 1, 1, 1, 1], dtype=torch.float64)
    assert linear_cka(a, a) == pytest.approx(1)
    assert linear_cka(a, stretched) < 0.7


def test_cka_of_unrelated_features_is_zero_on_average_where_the_biased_one_is_inflated() -> None:
    pairs = [(random(2 * seed, 100, 128), random(2 * seed + 1, 100, 128)) for seed in range(60)]
    mine = torch.tensor([linear_cka(a, b) for a, b in pairs])
    assert abs(float(mine.mean())) < 4 * float(mine.std()) / len(pairs) ** 0.5
    assert float(mine.std()) < 0.03
    assert biased_cka(*pairs[0]) > 0.5


def test_cka_of_few_images_estimates_that_of_many() -> None:
    mixing = [random(seed, 10, 60) for seed in (1, 2)]

    def both(seed: int, n: int) -> list[torch.Tensor]:
        base = random(seed, n, 10)
        return [base @ mixing[i] + 4 * random(seed + 1 + i, n, 60) for i in (0, 1)]

    truth = biased_cka(*both(10, 50_000))
    few = torch.tensor([linear_cka(*both(100 + 3 * i, 50)) for i in range(60)])
    assert float(few.mean()) == pytest.approx(truth, abs=0.03)
    assert biased_cka(*both(100, 50)) > truth + 0.1


def test_cka_with_a_collapsed_layer_is_zero() -> None:
    a = random(0, 10, 4)
    flat = torch.full((10, 3), 0.1, dtype=torch.float64)
    assert linear_cka(a, flat) == 0
    assert linear_cka(flat, flat) == 0


def test_cka_takes_maps_single_precision_and_extreme_scales() -> None:
    a = random(0, 30, 2, 3, 3).float()
    assert linear_cka(a * 1e-15, a.flatten(1) * 1e15) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("sizes", [(5, 6), (3, 3), (0, 0)], ids=str)
def test_cka_refuses_unpaired_or_too_few_images(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="4 or more"):
        linear_cka(torch.ones(sizes[0], 2), torch.ones(sizes[1], 2))


def test_shift_counts_in_spreads() -> None:
    before = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]) * 2 + 7
    assert centroid_shift(before, before + torch.tensor([3.0, 4.0])) == pytest.approx(5 / 2)
    assert centroid_shift(before, before.mean(0, keepdim=True)) == pytest.approx(0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_shift_ignores_a_basis_and_a_scale_that_both_share(seed: int, scale: float) -> None:
    before, after, turn = random(seed, 12, 5), random(seed + 1, 9, 5) + 1, rotation(seed, 5) * scale
    assert centroid_shift(before @ turn - 3, after @ turn - 3) == pytest.approx(centroid_shift(before, after))


def test_shift_of_a_single_point() -> None:
    assert centroid_shift(torch.ones(1, 2), torch.zeros(1, 2)) == math.inf
    assert centroid_shift(torch.ones(1, 2), torch.ones(3, 2)) == 0


def slow_likeness(a: torch.Tensor, b: torch.Tensor) -> float:
    """Cosine of the centred kernels over all ordered pairs of different images."""
    a, b = a - a.mean(0), b - b.mean(0)
    pairs = [(float(a[i] @ a[j]), float(b[i] @ b[j])) for i in range(len(a)) for j in range(len(a)) if i != j]
    both, mine, theirs = (sum(p[x] * p[y] for p in pairs) for x, y in ((0, 1), (0, 0), (1, 1)))
    return both / math.sqrt(mine * theirs)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    width=st.integers(1, 20),
    other=st.integers(1, 20),
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-10, 10),
)
def test_likeness_is_the_cosine_of_kernels_and_ignores_basis_scale_and_shift(
    seed: int, width: int, other: int, scale: float, shift: float
) -> None:
    a, b = random(seed, 7, width), random(seed + 1, 7, other)
    plain = likeness(a, b)
    assert float(plain) == pytest.approx(slow_likeness(a, b), abs=1e-9)
    assert float(likeness(a @ rotation(seed, width) * scale + shift, b)) == pytest.approx(float(plain), abs=1e-6)
    assert float(likeness(a, a)) == pytest.approx(1)


def test_likeness_can_be_climbed() -> None:
    a, b = random(0, 6, 3).requires_grad_(), random(1, 6, 4)
    assert torch.autograd.gradcheck(lambda x: likeness(x, b), (a,))
    before = likeness(a, b)
    (gradient,) = torch.autograd.grad(before, a)
    assert likeness(a + 0.01 * gradient, b) > before


def test_likeness_of_a_layer_that_does_not_vary_is_nothing_and_pulls_nowhere() -> None:
    dead, other = torch.zeros(6, 3, requires_grad=True), torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    value = likeness(dead, other)
    value.backward()
    assert value == 0
    assert torch.equal(dead.grad, torch.zeros_like(dead))


def test_likeness_has_the_digits_of_float32_in_half_precision() -> None:
    a = random(0, 8, 4).bfloat16()
    assert likeness(a, a).dtype == torch.float32
