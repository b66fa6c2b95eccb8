"""Which devices PyTorch can compute on here."""

import torch

from analysis.errors import UserError


def check_device(name: str) -> str:
    """Check that tensors can be made and summed on a device.

    Args:
        name: As PyTorch calls it, such as "cpu", "cuda" or "cuda:1".

    Returns:
        The same name.

    Raises:
        UserError: There is no such device, this build or machine can't use it, or it has no double precision, in which
            residuals and differences are summed.
    """
    try:
        torch.ones(1, dtype=torch.float64, device=name).sum().item()
    except (RuntimeError, TypeError, AssertionError) as error:
        raise UserError(
            f"This PyTorch can't use {name} here, with the double precision that some sums need; leave out --device, "
            "or install a build that can."
        ) from error
    return name
