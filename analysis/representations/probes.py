"""Linear probes: how well a logistic regression reads a class off a hidden layer.

Our own Newton solver, because an audit trains thousands of probes on a few dozen rows each: batched over draws it
takes a hundredth of the time of one scikit-learn fit after another, and reaches the same optimum (tested).
"""

import torch

ITERATIONS = 50
TOLERANCE = 1e-9


def standardised(features: torch.Tensor) -> torch.Tensor:
    """Scale every feature to mean 0 and sd 1 over all rows, so that no probe can be fooled by shrinking a layer.

    Args:
        features: [n, d].

    Returns:
        float64 [n, d]; features without any spread become 0.
    """
    rows = features.double()
    spread = rows.std(0)
    alive = spread > 1e-12 * rows.abs().amax().clamp_min(1e-300)
    return torch.where(alive, (rows - rows.mean(0)) / torch.where(alive, spread, 1.0), 0.0)


def _objective(
    rows: torch.Tensor, signs: torch.Tensor, weight: torch.Tensor, w: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    margins = signs * (rows @ w[..., None]).squeeze(-1)
    loss = (weight * torch.nn.functional.softplus(-margins)).sum(-1) + 0.5 * w[..., :-1].square().sum(-1)
    return loss, margins


def fit_probes(features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit one L2-regularised logistic regression per draw, both classes weighted equally.

    Minimises |w|^2 / 2 + sum_i s_i log(1 + exp(-y_i (w x_i + b))) with s_i = n / (2 * size of i's class): what
    scikit-learn's LogisticRegression(C=1, class_weight="balanced") minimises. Newton's method with step halving, in
    the span of the rows when there are fewer rows than features.

    Args:
        features: float64 [draws, n, d].
        labels: bool [draws, n]; both classes must occur in every draw.

    Returns:
        Weights [draws, d] and biases [draws].
    """
    draws, n, d = features.shape
    basis = None
    if n < d:
        basis = torch.linalg.qr(features.transpose(1, 2)).Q
        features = features @ basis
    rows = torch.cat([features, torch.ones(draws, n, 1, dtype=features.dtype)], -1)
    signs = labels.to(rows) * 2 - 1
    positive = labels.double().sum(1, keepdim=True)
    weight = torch.where(labels, n / (2 * positive), n / (2 * (n - positive)))
    penalty = torch.ones(rows.shape[-1], dtype=rows.dtype)
    penalty[-1] = 0.0
    w = rows.new_zeros(draws, rows.shape[-1])
    loss, margins = _objective(rows, signs, weight, w)
    for _ in range(ITERATIONS):
        doubt = torch.sigmoid(-margins)
        gradient = penalty * w - ((weight * doubt * signs)[:, None] @ rows).squeeze(1)
        curvature = (weight * doubt * (1 - doubt))[..., None] * rows
        hessian = rows.transpose(1, 2) @ curvature + torch.diag(penalty + 1e-10)
        step = torch.linalg.solve(hessian, gradient)
        size = torch.ones(draws, 1, dtype=rows.dtype)
        for _ in range(30):
            trial, trial_margins = _objective(rows, signs, weight, w - size * step)
            worse = trial > loss + 1e-12
            if not bool(worse.any()):
                break
            size = torch.where(worse[:, None], size / 2, size)
        w, loss, margins = w - size * step, trial, trial_margins
        if float((size * step).abs().max()) < TOLERANCE:
            break
    found = w[:, :-1]
    return (found if basis is None else (basis @ found[..., None]).squeeze(-1)), w[:, -1]
