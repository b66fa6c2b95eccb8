"""Two-dimensional pictures of representations: one map, fitted on *before*, on which every model is placed."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from analysis.errors import UserError

NEIGHBOURS = 15
FEWEST = 5
MIN_DIST = 0.1


def align(features: torch.Tensor, anchors: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Bring another model's features into the basis of a reference model.

    Networks trained from different seeds use unrelated bases, so their features can't share a map as they are.
    Orthogonal Procrustes (Schönemann 1966): the shift, rotation or reflection, and one scale that best carry `anchors`
    onto `reference`; distances within `features` keep their proportions. Two deviations: the scale equates the
    total variance of both sides, because the least-squares scale shrinks the worse the fit is, which would look like a
    collapse; and where the numbers of features differ, the smaller side is padded with zeros (what the
    rotation turns into padding is dropped). Directions in which the anchors don't vary are carried arbitrarily:
    take anchors (the retained classes) that vary richly. Anchors that lie where they should leave everything in its
    place, to the bit.

    Args:
        features: [n, d] of the other model, to be moved.
        anchors: [m, d] of the other model, on which the alignment is fitted.
        reference: [m, e] of the reference model for the same images as `anchors`.

    Returns:
        float32 [n, e] in the reference's basis.

    Raises:
        ValueError: The numbers of anchors differ or there are none.
    """
    if not len(anchors) or len(anchors) != len(reference):
        raise ValueError(f"alignment needs the same images on both sides, not {len(anchors)} and {len(reference)}")
    if torch.equal(anchors, reference):
        return features.detach().float()
    moving, fixed = anchors.detach().double(), reference.detach().double()
    centre, target = moving.mean(0), fixed.mean(0)
    moving, fixed = moving - centre, fixed - target
    # The thin SVD of the rectangular product is the padded square problem without the padding.
    left, _, right = torch.linalg.svd(moving.T @ fixed, full_matrices=False)
    size = float(moving.norm())
    scale = float(fixed.norm()) / size if size else 1.0
    return ((features.detach().double() - centre) @ (left @ right) * scale + target).float()


def _umap() -> Any:
    """Import umap with its compiled functions kept on disk.

    umap-learn compiles most of itself anew in every process (15-20 s on a slow core for work that takes one); numba
    can keep the machine code between processes. Where no cache folder can be written, it compiles as before.

    Returns:
        The umap module.
    """
    import umap
    import umap.layouts
    import umap.umap_
    import umap.utils
    from numba.core.dispatcher import Dispatcher

    for module in (umap.umap_, umap.utils, umap.layouts):
        for function in vars(module).values():
            if isinstance(function, Dispatcher):
                with contextlib.suppress(RuntimeError):
                    function.enable_caching()
    return umap


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Silence umap's warnings and undo what numba does to torch: it sets the number of threads for both.

    Yields:
        Nothing.
    """
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def project(before: torch.Tensor, others: Mapping[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Place representations on one plane: UMAP fitted on `before`, all others transformed by the same map.

    Only so does a changed picture mean a changed representation (fitted separately, UMAP would move everything
    anyway). Points that lie where a point of `before` lay come out at or near its place (within about 5% of the
    picture's spread, measured: the transform is itself an optimisation). UMAP (McInnes et al. 2018, arXiv:1802.03426)
    keeps neighbourhoods, not distances: print CKA and centroid shift of the original space beside the picture.
    Deterministic for a seed on one machine. 600 points and two others take 3 s, the first process after
    installation about 30 s longer (see `_umap`).

    Args:
        before: [n, d] features on which the map is fitted, n >= 5.
        others: Further [m, d] features by name, in the basis of `before` (see `align`).
        seed: Of UMAP's random choices.

    Returns:
        float32 [n, 2] as "before", and [m, 2] by the names of `others`.

    Raises:
        UserError: All points of `before` are the same.
        ValueError: There are too few points, or one of `others` is called "before" or has other features.
    """
    if len(before) < FEWEST:
        raise ValueError(f"a projection needs at least {FEWEST} points, not {len(before)}")
    if "before" in others or any(other.shape[1:] != before.shape[1:] for other in others.values()):
        raise ValueError('other features need a name that isn\'t "before" and as many columns as before')
    if before.isfinite().all() and (before == before[0]).all():
        raise UserError("The original model's hidden layer is the same for all images, so there is nothing to project.")
    with _unheard():
        umap = _umap()
        mapper = umap.UMAP(
            n_neighbors=min(NEIGHBOURS, len(before) - 1),
            min_dist=MIN_DIST,
            # The spectral start needs a connected graph, which well-separated classes don't make.
            init="pca",
            random_state=seed,
            transform_seed=seed,
            n_jobs=1,
        )
        placed = {"before": torch.from_numpy(mapper.fit_transform(before.detach().float().numpy()))}
        for name, other in others.items():
            placed[name] = torch.from_numpy(mapper.transform(other.detach().float().numpy()))
    return {name: points.float().contiguous() for name, points in placed.items()}
