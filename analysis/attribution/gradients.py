"""Which weights the target depends on: plain gradients, and gradients integrated along a path of weights."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from analysis.attribution.running import prepare, undisturbed
from analysis.attribution.targets import Target, cross_entropy, logit
from analysis.errors import UserError
from analysis.scores import Scores

Weights = dict[str, torch.Tensor]


def _mean_target(
    model: nn.Module, weights: Weights, images: torch.Tensor, labels: torch.Tensor, target: Target, chunk: int
) -> Iterator[torch.Tensor]:
    # The mean target with other weights, in parts that add up to it: one per chunk, each with a graph of its own.
    for x, y in zip(images.split(chunk), labels.split(chunk), strict=True):
        output = functional_call(model, weights, (x,))
        yield target(getattr(output, "logits", output), y).sum() / len(images)


def _value(
    model: nn.Module, weights: Weights, images: torch.Tensor, labels: torch.Tensor, target: Target, chunk: int
) -> float:
    with torch.no_grad():
        return sum(float(part) for part in _mean_target(model, weights, images, labels, target, chunk))


def _gradient(
    model: nn.Module, weights: Weights, images: torch.Tensor, labels: torch.Tensor, target: Target, chunk: int
) -> Weights:
    leaves = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    for part in _mean_target(model, leaves, images, labels, target, chunk):
        grads = torch.autograd.grad(part, list(leaves.values()), allow_unused=True)
        for name, grad in zip(leaves, grads, strict=True):
            if grad is not None:
                total[name] += grad.to_dense() if grad.is_sparse else grad
    return total


def saliency(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, target: Target = cross_entropy, chunk: int = 256
) -> Scores:
    """Absolute gradient of the mean target with respect to each weight.

    This is what SalUn (Fan et al., 2024, eq. 3) ranks weights by.

    Args:
        model: Any module; run in evaluation mode and left as it was.
        images: Inputs [n, ...].
        labels: int64 [n], or [n, t] for sequence models.
        target: The per-sample scalar.
        chunk: Samples per forward pass; bounds memory and doesn't change the result.

    Returns:
        Scores of kind "parameter", all at least 0.
    """
    images, labels = prepare(model, images, labels)
    with undisturbed(model, parameters=True):
        grads = _gradient(model, dict(model.named_parameters()), images, labels, target, chunk)
    return Scores({n: g.abs().cpu() for n, g in grads.items()}, "parameter", "gradient", "target per weight")


def _start(weights: Weights, baseline: Mapping[str, torch.Tensor] | None) -> Weights:
    if baseline is None:
        return {name: torch.zeros_like(w) for name, w in weights.items()}
    wrong = [name for name, w in weights.items() if name not in baseline or baseline[name].shape != w.shape]
    if wrong:
        raise UserError(
            f"The baseline has no weights of the right shape for {', '.join(wrong)}; "
            "give a state dict of the same model."
        )
    return {name: baseline[name].detach().to(w) for name, w in weights.items()}


def weight_integrated_gradients(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    target: Target = logit,
    baseline: Mapping[str, torch.Tensor] | None = None,
    steps: int = 64,
    signed: bool = True,
    chunk: int = 256,
) -> Scores:
    """Integrated gradients of weights: each weight's share in what the trained weights add to the mean target.

    Along the straight path from the baseline b to the trained weights w, weight i gets
    (w_i - b_i) * integral over a in [0, 1] of dF/dw_i(b + a (w - b)), F being the mean target (Sundararajan et al.,
    2017, eq. 1, with weights in the place of inputs). Buffers, BatchNorm's running statistics among them, stay the
    trained ones all along the path.

    The integral is a Gauss-Legendre sum. On this path a ReLU net is piecewise polynomial in a (without biases and
    with the zero baseline a single power of it), which the rule integrates exactly between kinks with as few as
    (depth + 1) / 2 nodes, and it never evaluates the ends, where at the zero baseline every ReLU is at its kink.

    Args:
        model: Any module; run in evaluation mode and left as it was.
        images: Inputs [n, ...].
        labels: int64 [n], or [n, t] for sequence models.
        target: The per-sample scalar.
        baseline: Weights at the start of the path by parameter name, e.g. an untrained model's state dict; zeros if
            not given.
        steps: Nodes of the quadrature; each costs a forward and a backward pass over all samples.
        signed: Whether to keep the sign (positive: the weight raises the target) or give magnitudes, for ranking
            weights whichever way they push.
        chunk: Samples per forward pass; bounds memory and doesn't change the result.

    Returns:
        Scores of kind "parameter" in the target's units, whose residual is sum(attributions) - (F(w) - F(b)), taken
        before any signs are dropped.

    Raises:
        UserError: Fewer than one step, or a baseline of another model.
    """
    if steps < 1:
        raise UserError(f"The path needs at least 1 step, not {steps}; 64 is usual.")
    images, labels = prepare(model, images, labels)
    nodes, shares = np.polynomial.legendre.leggauss(steps)
    with undisturbed(model, parameters=True):
        end = {name: p.detach() for name, p in model.named_parameters()}
        start = _start(end, baseline)
        mean = {name: torch.zeros_like(w) for name, w in end.items()}
        for node, share in zip(nodes.tolist(), shares.tolist(), strict=True):
            here = {name: torch.lerp(start[name], end[name], (node + 1) / 2) for name in end}
            for name, grad in _gradient(model, here, images, labels, target, chunk).items():
                mean[name].add_(grad, alpha=share / 2)
        values = {name: (end[name] - start[name]) * mean[name] for name in end}
        gain = _value(model, end, images, labels, target, chunk) - _value(model, start, images, labels, target, chunk)
    residual = sum(float(v.double().sum()) for v in values.values()) - gain
    kept = {name: (v if signed else v.abs()).cpu() for name, v in values.items()}
    return Scores(kept, "parameter", "weight-ig", "target", residual)
