"""How alike two representations of the same images are, and how far a class has moved."""

import torch
from torch.nn import functional

from analysis.attribution.running import widened

FEWEST = 4


def _centred(features: torch.Tensor) -> torch.Tensor:
    flat = features.detach().flatten(1).double()
    return flat - flat.mean(0)


def _hsic_by_features(a: torch.Tensor, b: torch.Tensor) -> float:
    """Unbiased HSIC of linear kernels without ever forming them: O(n d_a d_b) instead of O(n^2 (d_a + d_b)).

    With k_ii = |a_i|^2, l_ii = |b_i|^2 and centred rows (whose kernels sum to zero) the zeroed diagonal leaves
    sum(K~ * L~) = ||a'b||^2 - k'l, 1'K~ = -k' and 1'K~L~1 = k'l.

    Args:
        a: Centred, [n, d_a].
        b: Centred, [n, d_b].

    Returns:
        HSIC_1 of Song et al. times n(n - 3).
    """
    n = len(a)
    k, l = a.square().sum(1), b.square().sum(1)  # noqa: E741
    both = float(k @ l)
    trace = float((a.T @ b).square().sum()) - both
    return trace + float(k.sum() * l.sum()) / ((n - 1) * (n - 2)) - 2 * both / (n - 2)


def _hsic_by_gram(a: torch.Tensor, b: torch.Tensor) -> float:
    """The same number through [n, n] kernels, cheaper when there are more features than images.

    Args:
        a: Centred, [n, d_a].
        b: Centred, [n, d_b].

    Returns:
        HSIC_1 of Song et al. times n(n - 3).
    """
    n = len(a)
    k, l = a @ a.T, b @ b.T  # noqa: E741
    k.fill_diagonal_(0)
    l.fill_diagonal_(0)
    total = float(k.sum() * l.sum()) / ((n - 1) * (n - 2))
    return float((k * l).sum()) + total - 2 * float(k.sum(0) @ l.sum(0)) / (n - 2)


def linear_cka(a: torch.Tensor, b: torch.Tensor) -> float:
    """Compare two representations of the same images by debiased linear CKA.

    Kornblith et al. 2019 (arXiv:1905.00414) with the unbiased HSIC estimator of Song et al. 2012 (JMLR 13, eq. 5) in
    place of the biased one, as in Nguyen et al. 2021 (arXiv:2010.15327, eq. 3). The plain estimator is inflated when
    there are about as many features as images: for independent Gaussian features (100 images, 128 features) it
    says .56, this one 0 on average. Invariant to shift, isotropic scale and rotation of either side, so models with
    different bases and widths can be compared. float64; works on features or on Gram matrices, whichever is cheaper.

    Args:
        a: [n, ...], one row an image; flattened.
        b: [n, ...], the same images in the same order, any number of features.

    Returns:
        1 for equal up to the invariances; around 0 for unrelated, where it can be slightly negative. Exactly 0 when
        one side doesn't vary beyond noise (a collapsed layer): a constant shares nothing with anything.

    Raises:
        ValueError: The numbers of images differ or are below 4, where the estimator doesn't exist.
    """
    if len(a) != len(b) or len(a) < FEWEST:
        raise ValueError(f"CKA needs the same {FEWEST} or more images on both sides, not {len(a)} and {len(b)}")
    a, b = _centred(a), _centred(b)
    # Only ratios matter: unit scale keeps the fourth powers below away from the ends of the floating-point range.
    scales = float(a.norm()), float(b.norm())
    if not all(scales):
        return 0.0
    a, b = a / scales[0], b / scales[1]
    hsic = _hsic_by_features if max(a.shape[1], b.shape[1]) <= len(a) else _hsic_by_gram
    own = hsic(a, a), hsic(b, b)
    if min(own) <= torch.finfo(torch.float64).eps:
        return 0.0
    return min(1.0, hsic(a, b) / (own[0] * own[1]) ** 0.5)


def likeness(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compare two representations of the same images as `linear_cka` does, for a loss: on few images, differentiably.

    The cosine of the two centred kernels off their diagonals. Unlike the debiased estimate it has no square root of a
    number that is negative on an unlucky batch; with few images it is a little above it for unrelated features.

    Args:
        a: [n, ...], one row an image; flattened.
        b: [n, ...], the same images in the same order, any number of features.

    Returns:
        A number between -1 and 1, 1 for equal up to shift, isotropic scale and rotation; 0 where a side doesn't vary.
    """

    def relations(features: torch.Tensor) -> torch.Tensor:
        flat = widened(features).flatten(1)
        flat = flat - flat.mean(0)
        kernel = flat @ flat.T
        return functional.normalize((kernel - kernel.diagonal().diag()).flatten(), dim=0)

    return relations(a) @ relations(b)


def centroid_shift(before: torch.Tensor, after: torch.Tensor) -> float:
    """Measure how far a class has moved, in units of its own spread before.

    The distance of the two centroids over the root mean square distance of `before` to its centroid. It is not
    invariant to the basis: bring another model's features into the basis of `before` first (`projection.align`).

    Args:
        before: [n, ...] features of one class.
        after: [m, ...] features of the class afterwards, as many features each.

    Returns:
        0 when the centroid stayed, 1 when it moved by one spread; infinity when `before` is a single point and the
        centroid moved.
    """
    first, second = (features.detach().flatten(1).double() for features in (before, after))
    centre = first.mean(0)
    moved = float((second.mean(0) - centre).norm())
    spread = float((first - centre).square().sum(1).mean().sqrt())
    if spread:
        return moved / spread
    return float("inf") if moved else 0.0
