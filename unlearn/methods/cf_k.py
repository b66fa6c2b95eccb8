"""CF-k: fine-tune the last k layers alone on the retained images, and hope that they forget.

Goel et al. 2022, "Towards Adversarial Evaluations for Inexact Machine Unlearning" (arXiv:2201.06640), catastrophic
forgetting of the k last layers:

    min_theta_k  E_retain CE(f_theta(x), y),   theta_k the weights of the last k layers, the others as they are

As with fine-tuning of everything, the class often stays: nothing asks for it to go, and what the earlier layers make of
its images isn't touched at all.

The authors: k from 1 to 3 by their script's default, SGD with warm restarts between 0.1 and 0.005, 62 epochs. A layer
is a linear or convolutional one; a normalisation between two of them goes with the later ones.

Deviations: k = 2 (the built-in nets have three and six such layers); Adam with a learning rate that falls to zero and
is ours, evaluation mode. With a mask, what lies both in it and in the last k layers may change. Replacing: the incoming
class joins the retained data.
"""

from dataclasses import dataclass

import torch
from torch import nn

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from analysis.subjects.networks import parametric_layers
from unlearn.methods import finetune
from unlearn.optimize import Watch, check_mask


@dataclass(frozen=True)
class Settings(finetune.Settings):
    """What can be set, besides what fine-tuning has.

    Attributes:
        k: How many of the last layers may change.
    """

    k: int = 2

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"The number of last layers, k, must be at least 1, not {self.k}.")


def last_layers(model: nn.Module, images: torch.Tensor, k: int, mask: Mask | None = None) -> Mask:
    """Cover the last k layers, by the order in which they run.

    Args:
        model: Any network; left as it was.
        images: What to run it on, to see that order.
        k: How many linear or convolutional (or embedding) layers; more than there are means all.
        mask: What may change anyway; None allows every parameter.

    Returns:
        Their part of `mask`, with the normalisations that run after the first of them.

    Raises:
        UserError: The mask has no weight there.
    """
    if mask is not None:
        check_mask(model, mask)
    first = parametric_layers(model, images)[-k:][0]
    everything = parametric_layers(model, images, dimensions=1)
    last = set(everything[everything.index(first) :])
    ones = Mask.everything(model).bits
    found = Mask({name: ones[name] for name in ones if name.rpartition(".")[0] in last}) & (mask or Mask(ones))
    if found.count == 0:
        raise UserError(f"The mask has no weight in the last {k} layers; raise k, or locate with a larger fraction.")
    return found


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Train the last layers on the retained images.

    Args:
        model: The original; not changed.
        subject: What to forget.
        mask: What may change, as far as it lies in the last layers; None allows all of those.
        seed: Of the order of the images.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.
    """
    tail = last_layers(model, subject.retain_train.images[:1], settings.k, mask)
    return finetune.run(model, subject, tail, seed, settings, watch)
