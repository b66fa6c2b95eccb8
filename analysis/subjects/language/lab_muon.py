"""Muon in float32: momentum whose every update is made orthogonal, which learns in half the passes that AdamW needs.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". `torch.optim.Muon` differs in the
arithmetic: it orthogonalises in bfloat16, which takes many times as long on CPUs that have no such arithmetic.
"""

from collections.abc import Sequence

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
MOMENTUM = 0.95


def orthogonal(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Bring all singular values of matrices near 1 by Newton-Schulz iteration.

    Args:
        matrices: [n, rows, columns].
        steps: Iterations.

    Returns:
        Matrices of the same singular vectors; the singular values lie in about 0.7 to 1.2, whatever they were.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Muon:
    """The optimiser of hidden matrices; those of one shape are orthogonalised together."""

    def __init__(self, matrices: Sequence[torch.nn.Parameter]) -> None:
        """Begin with no momentum.

        Args:
            matrices: Parameters of two dimensions, inputs first, as in GPT-2's Conv1D.
        """
        shapes = dict.fromkeys(matrix.shape for matrix in matrices)
        self._groups = [[matrix for matrix in matrices if matrix.shape == shape] for shape in shapes]
        self._momenta = [torch.zeros(len(group), *group[0].shape) for group in self._groups]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Take one step along the gradients that the parameters hold.

        Args:
            lr: Length of the step: the spectral norm of the update of a matrix with no more outputs than inputs.
        """
        for group, momentum in zip(self._groups, self._momenta, strict=True):
            gradient = torch.stack([torch.zeros_like(one) if one.grad is None else one.grad for one in group])
            momentum.lerp_(gradient, 1 - MOMENTUM)
            inputs, outputs = group[0].shape
            update = orthogonal(gradient.lerp(momentum, MOMENTUM)) * max(1.0, outputs / inputs) ** 0.5
            for one, change in zip(group, update, strict=True):
                one.sub_(change, alpha=lr)
