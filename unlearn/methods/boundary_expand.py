"""Boundary Expanding: Chen et al. 2023, "Boundary Unlearning" (CVPR, arXiv:2303.11570), section 4.2.

    min_theta,s  E_forget CE( [f_theta(x), f_s(x)], shadow )      then  f_s is pruned

The head gets one more output, a shadow class, drawn afresh; the forgotten images are taught to it, and then it is cut
off. What is left of their answers is what the old outputs, all pushed down, happen to say.

The authors: SGD with momentum 0.9 at 1e-5, 10 epochs, on the forgotten images alone (as copies of their code have it).
SalUn's copy of the method widens the head and never prunes it, so that the shadow goes on answering.

Deviations: evaluation mode; Adam, whose learning rate falls to zero. Learning rates and numbers of steps are ours, and
so is the repair on retained images that follows (`repair_steps` 0 is the paper): nothing in the paper's loss holds the
retained classes, whose outputs are pushed down as well, and before it .44 of .92 is left on the rest in the
784-128-64-10 net. Replacing needs the repair: it teaches the incoming class. With the old slot some forgotten images
lead there again afterwards, because the repair never sees them.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import skip_init

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from unlearn.methods.targets import repair
from unlearn.optimize import Watch, batches, check_mask, descend, falling


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps on forgotten images.
        expand_lr: Adam's learning rate at the first of them.
        repair_steps: Optimisation steps on retained (and incoming) images afterwards; 0 is the paper.
        lr: Adam's learning rate at the first of those.
        batch: Images a step.
    """

    steps: int = 50
    expand_lr: float = 1e-3
    repair_steps: int = 150
    lr: float = 3e-3
    batch: int = 64


def widened(model: nn.Module, subject: ClassSubject, seed: int) -> nn.Module:
    """Give a model's head one more output.

    Args:
        model: Any classifier whose head is linear; not changed.
        subject: Says where the head is.
        seed: Of the new output's weights.

    Returns:
        The wider copy; its other outputs are the model's.

    Raises:
        UserError: The head is not the linear layer that gives the logits.
    """
    name, outputs = subject.network.head, len(subject.classes)
    head = model.get_submodule(name)
    if not isinstance(head, nn.Linear) or head.out_features != outputs:
        raise UserError(
            f"boundary-expand widens a linear head with {outputs} outputs, and {name!r} is none; use boundary-shrink."
        )
    work = copy.deepcopy(model)
    reach = 1 / math.sqrt(head.in_features)  # PyTorch's own for a linear layer
    row = torch.rand((1, head.in_features + 1), generator=torch.Generator().manual_seed(seed)).mul(2 * reach).sub(reach)
    row = row.to(head.weight)
    # Without drawing weights of its own, which would move the global random state.
    wide: nn.Linear = skip_init(nn.Linear, head.in_features, outputs + 1, bias=head.bias is not None)
    wide.weight = nn.Parameter(torch.cat([head.weight.detach(), row[:, 1:]]))
    if head.bias is not None:
        wide.bias = nn.Parameter(torch.cat([head.bias.detach(), row[:, 0]]))
    work.set_submodule(name, wide)
    return work


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Teach forgotten images an output of their own, cut it off, then repair.

    Args:
        model: The original; not changed.
        subject: What to forget.
        mask: What may change; None allows every parameter.
        seed: Of the shadow output and of the order of the images.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`; expanding and pruning are the first step.

    Returns:
        The edited model, in evaluation mode.
    """
    if mask is not None:
        check_mask(model, mask)
    gone, shadow, wide = subject.forget_train, len(subject.classes), widened(model, subject, seed)
    head = {f"{subject.network.head}.{part}" for part, _ in wide.get_submodule(subject.network.head).named_parameters()}
    if mask is not None:
        bits = dict(mask.bits)
        for name in head:
            old = bits.get(name, torch.zeros_like(model.get_parameter(name), dtype=torch.bool))
            bits[name] = torch.cat([old, torch.ones_like(old[:1])])
        mask_of_wide = Mask(bits)

    def loss(work: nn.Module, item: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return functional.cross_entropy(work(item[0]), item[1])

    drawn = batches((gone.images, gone.relabelled(shadow).labels), settings.batch, settings.steps, seed)
    lr = falling(settings.expand_lr, settings.steps)
    found = dict(descend(wide, drawn, loss, None if mask is None else mask_of_wide, lr).named_parameters())
    pruned = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, parameter in pruned.named_parameters():
            parameter.copy_(found[name][:-1] if name in head else found[name])
    return repair(model, pruned, subject, mask, settings.repair_steps, settings.batch, settings.lr, seed, watch)
