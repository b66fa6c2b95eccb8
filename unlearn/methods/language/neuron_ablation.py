"""Set the located weights to zero: knowledge-neuron ablation.

Dai et al. 2022, "Knowledge Neurons in Pretrained Transformers" (ACL, arXiv:2104.08696), section 5: value slots of the
located neurons are set to zero; Wu et al. 2023, "DEPN" (EMNLP, arXiv:2310.20138): the same for private data.

    theta_i <- 0   where the mask allows it

A neuron's value slot is its column of the MLP's down projection (its row in GPT-2, whose weight is transposed), so a
mask of such columns is the paper's erasure. Deviation: any mask is taken as it is, so that single weights and other
matrices can be ablated too. Nothing is trained, and there is nothing to set.
"""

import copy
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
        mask: What is set to zero.
        seed: Not used: nothing is drawn.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`; the ablation is the only step.

    Returns:
        The edited model, in evaluation mode.

    Raises:
        UserError: There is no mask.
    """
    if mask is None:
        raise UserError("Ablation without a mask would empty the whole model; locate first, or choose another method.")
    check_mask(model, mask)
    work = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, parameter in work.named_parameters():
            if name in mask.bits:
                parameter.masked_fill_(mask.bits[name].to(parameter.device), 0)
    if watch:
        watch(0, model)
        watch(1, work)
    return work
