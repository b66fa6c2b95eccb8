"""What an edit needs room for, whatever was located."""

import torch
from torch import nn

from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from unlearn.normalisation import Normalisation


def always_free(model: nn.Module, subject: ClassSubject) -> Mask:
    """Find the weights that must be free in any mask.

    These are the output at which a new class is to be taught, since what carries the old one need not reach it, and
    scale and shift of batch normalisations, without which their statistics stay those of a network that has seen the
    class (`unlearn.normalisation`).

    Args:
        model: The network to be edited.
        subject: What is to be forgotten, and maybe learnt.

    Returns:
        The mask, over all parameters; empty for most networks and tasks.
    """
    slot, outputs = subject.incoming_slot, len(subject.classes)
    bits = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    for name, chosen in bits.items():
        if isinstance(model.get_submodule(name.rpartition(".")[0]), Normalisation):
            chosen.fill_(True)
        if slot is not None and name.startswith(f"{subject.network.head}.") and len(chosen) == outputs:
            chosen[slot] = True
    return Mask(bits)
