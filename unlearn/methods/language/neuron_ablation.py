"""Set the located weights to zero: knowledge-neuron ablation.

Dai et al. 2022, "Knowledge Neurons in Pretrained Transformers" (ACL, arXiv:2104.08696), section 5: value slots of the
located neurons are set to zero.

    theta_i <- 0   where the mask allows it

A neuron's value slot is its column of the MLP's down projection (its row in GPT-2, whose weight is transposed), so a
mask of such columns is the paper's erasure. Deviation: any mask is taken as it is, so that single weights and other
matrices can be ablated too. Nothing is trained, and there is nothing to set. `depn` finds its neurons itself; `needle`
buries them in noise instead.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.language.facts import FactSubject
from unlearn.optimize import Watch, check_mask


@dataclass(frozen=True)
class Settings:
    """Nothing can be set; how much is ablated is up to the mask."""


@torch.no_grad()
def overwritten(
    model: nn.Module,
    mask: Mask | None,
    write: Callable[[torch.Tensor], torch.Tensor],
    watch: Watch | None = None,
) -> nn.Module:
    """Overwrite what a mask holds.

    Args:
        model: The original; not changed.
        mask: What is overwritten.
        write: Gives a parameter's new values, all of them, by its old ones; called in the model's order, where
            the mask holds something.
        watch: See `unlearn.optimize.descend`; this is the only step.

    Returns:
        The edited model, in evaluation mode.

    Raises:
        UserError: There is no mask.
    """
    if mask is None:
        raise UserError("Ablation without a mask would empty the whole model; locate first, or choose another method.")
    check_mask(model, mask)
    work = copy.deepcopy(model).eval()
    for name, parameter in work.named_parameters():
        bits = mask.bits.get(name, torch.tensor(False)).to(parameter.device)
        if bits.any():
            parameter.copy_(torch.where(bits, write(parameter), parameter))
    if watch:
        watch(0, model)
        watch(1, work)
    return work


def run(
    model: nn.Module,
    subject: FactSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Set the masked weights to zero.

    Args:
        model: The original; not changed.
        subject: Not looked at: what to forget is in the mask.
        mask: What is set to zero; without one there is nothing to do, and a UserError.
        seed: Not used: nothing is drawn.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`; the ablation is the only step.

    Returns:
        The edited model, in evaluation mode.
    """
    return overwritten(model, mask, torch.zeros_like, watch)
