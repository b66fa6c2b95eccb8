"""Alignment against known rotations; projections: deterministic, silent and honest about what moved."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.errors import UserError
from analysis.representations.projection import align, project


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def orthonormal(seed: int, rows: int, columns: int) -> torch.Tensor:
    return torch.linalg.qr(random(seed, rows, columns).double())[0].float()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), extra=st.integers(0, 5), scale=st.floats(0.01, 100))
def test_alignment_recovers_a_rotated_scaled_shifted_copy(seed: int, extra: int, scale: float) -> None:
    here = random(seed, 60, 4) * torch.tensor([3.0, 1, 0.5, 2]) + 1
    # Columns of an orthonormal matrix: the copy may live in more dimensions than the reference.
    there = here @ orthonormal(seed + 1, 4 + extra, 4).T * scale - 7
    back = align(there[40:], there[:40], here[:40])
    assert torch.allclose(back, here[40:], atol=1e-4)


def test_alignment_into_more_dimensions_is_that_of_the_padded_features() -> None:
    here, there = random(0, 50, 6), random(1, 50, 4)
    padded = torch.cat([there, torch.zeros(50, 2)], 1)
    assert torch.allclose(align(there, there, here), align(padded, padded, here), atol=1e-5)


def test_alignment_is_the_best_of_all_rotations() -> None:
    here = random(0, 40, 3)
    there = here @ orthonormal(1, 3, 3) + 0.4 * random(2, 40, 3)
    best = (align(there, there, here) - here).norm()
    centred = there - there.mean(0)
    scale = (here - here.mean(0)).norm() / centred.norm()
    for seed in range(300):
        other = centred @ orthonormal(seed, 3, 3) * scale + here.mean(0)
        assert (other - here).norm() >= best - 1e-4


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_alignment_keeps_proportions_and_never_collapses(seed: int) -> None:
    here, there = random(seed, 30, 5), 9 * random(seed + 1, 30, 5)
    moved = align(there, there, here)
    ratios = torch.pdist(moved) / torch.pdist(there)
    assert torch.allclose(ratios, ratios[0].expand_as(ratios), rtol=1e-3)
    assert float((moved - moved.mean(0)).norm()) == pytest.approx(float((here - here.mean(0)).norm()), rel=1e-4)


def test_alignment_leaves_in_its_place_what_lies_where_it_should() -> None:
    # Two of the six directions aren't those of anchors.
    features, anchors = random(0, 20, 6), random(1, 30, 4) @ random(2, 4, 6)
    assert torch.equal(align(features, anchors, anchors.clone()), features)


def test_alignment_of_features_that_do_not_vary() -> None:
    assert torch.allclose(
        align(torch.ones(3, 4), torch.ones(5, 4), random(0, 5, 2)), random(0, 5, 2).mean(0).expand(3, 2)
    )


@pytest.mark.parametrize("count", [0, 4])
def test_alignment_needs_the_same_anchors(count: int) -> None:
    with pytest.raises(ValueError, match="same images"):
        align(torch.ones(3, 2), torch.ones(count, 2), torch.ones(5 if count else 0, 2))


LABELS = torch.arange(4).repeat_interleave(30)


@pytest.fixture(scope="module")
def blobs() -> torch.Tensor:
    return 12 * random(5, 4, 8)[LABELS] + random(6, 120, 8)


@pytest.fixture(scope="module")
def placed(blobs: torch.Tensor) -> dict[str, torch.Tensor]:
    moved = blobs.clone()
    moved[LABELS == 0] += blobs[LABELS == 1].mean(0) - blobs[LABELS == 0].mean(0)
    others = {"same": blobs.clone(), "near": blobs + 0.01 * random(7, 120, 8), "moved": moved, "one": blobs[:1] + 0.01}
    return project(blobs, others, seed=3)


def centre(points: torch.Tensor, label: int) -> torch.Tensor:
    return points[label == LABELS].mean(0)


def test_projection_has_a_point_for_every_row(placed: dict[str, torch.Tensor]) -> None:
    shapes = {name: (tuple(points.shape), points.dtype) for name, points in placed.items()}
    whole = ((120, 2), torch.float32)
    assert shapes == {"before": whole, "same": whole, "near": whole, "moved": whole, "one": ((1, 2), torch.float32)}
    assert all(points.isfinite().all() for points in placed.values())


def test_what_did_not_move_stays(placed: dict[str, torch.Tensor]) -> None:
    spread = (placed["before"] - placed["before"].mean(0)).norm(dim=1).mean()
    assert torch.equal(placed["same"], placed["before"])
    assert (placed["near"] - placed["before"]).norm(dim=1).mean() < 0.15 * spread


def test_a_class_that_moved_onto_another_is_shown_there(placed: dict[str, torch.Tensor]) -> None:
    before, moved = placed["before"], placed["moved"]
    apart = (centre(before, 0) - centre(before, 1)).norm()
    assert (centre(moved, 0) - centre(before, 1)).norm() < 0.2 * apart
    assert (centre(moved, 2) - centre(before, 2)).norm() < 0.2 * apart


def test_projection_depends_on_its_seed_alone(blobs: torch.Tensor, placed: dict[str, torch.Tensor]) -> None:
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    again = project(blobs, {"near": blobs + 0.01 * random(7, 120, 8)}, seed=3)
    assert torch.equal(again["before"], placed["before"])
    assert torch.equal(again["near"], placed["near"])
    assert not torch.equal(project(blobs, {}, seed=4)["before"], placed["before"])
    assert np.array_equal(state[0], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(state[1], torch.get_rng_state())


def test_projection_says_nothing(blobs: torch.Tensor, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        project(blobs[:7].requires_grad_(), {"a": blobs[:2]}, seed=0)
    assert capfd.readouterr() == ("", "")


def test_projection_leaves_the_number_of_threads_alone() -> None:
    # In a fresh process, because numba interferes only when it starts its own threads.
    code = (
        "import torch; from analysis.representations.projection import project; torch.set_num_threads(1); "
        "project(torch.randn(30, 3), {'a': torch.randn(9, 3)}, 0); print(torch.get_num_threads())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("1\n", "")


def test_projection_refuses_what_can_not_be_placed() -> None:
    with pytest.raises(ValueError, match="at least 5"):
        project(torch.ones(4, 2), {}, 0)
    with pytest.raises(ValueError, match="columns"):
        project(random(0, 9, 2), {"a": random(1, 9, 3)}, 0)
    with pytest.raises(ValueError, match="before"):
        project(random(0, 9, 2), {"before": random(1, 9, 2)}, 0)
    with pytest.raises(UserError, match="same for all images"):
        project(torch.ones(9, 2), {}, 0)
