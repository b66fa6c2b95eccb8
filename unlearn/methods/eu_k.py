"""EU-k: draw the last k layers afresh and train them on the retained images.

Goel et al. 2022, "Towards Adversarial Evaluations for Inexact Machine Unlearning" (arXiv:2201.06640), exact unlearning
of the k last layers:

    theta_k <- fresh draw;   min_theta_k  E_retain CE(f_theta(x), y),   the weights of earlier layers as they are

Nothing of the class is left in the last k layers, and everything in those before. With k all layers it is retraining.

The authors: see `cf_k`. Theirs draws linear and convolutional layers afresh (Kaiming's normal, biases zero) but lets a
normalisation among the last layers go on from what it was, and SCRUB's copy of the method resets the normalisations of
its ResNets alone; here everything in the last k layers is drawn afresh, as the network itself draws it.

Deviations: as in `cf_k`; and normalisations that lie wholly in what may change learn with the statistics of the batch,
which are folded into scale and shift (as in `regrow`), because the original's are those of other weights. Beside
`regrow`: the place is chosen by depth instead of by what carries the class, labels alone teach, and there is no decay.
With a mask, what lies both in it and in the last k layers is drawn afresh. Replacing: the incoming class joins the
retained data.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from analysis.training import seeded
from unlearn.methods import cf_k
from unlearn.methods.cf_k import last_layers
from unlearn.methods.targets import FRESH
from unlearn.normalisation import check_batch
from unlearn.optimize import Watch, batches, descend, falling


@dataclass(frozen=True)
class Settings(cf_k.Settings):
    """What can be set: the same as for CF-k."""


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Draw the last layers afresh and train them on the retained images.

    Args:
        model: The original; not changed.
        subject: What to forget; its network makes the fresh weights.
        mask: What may change, as far as it lies in the last layers; None allows all of those.
        seed: Of the fresh weights and of the order of the images.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`; the draw is the first step.

    Returns:
        The edited model, in evaluation mode.
    """
    kept = subject.gold_train
    tail = last_layers(model, kept.images[:1], settings.k, mask)
    check_batch(model, tail, min(settings.batch, len(kept)))

    def loss(work: nn.Module, item: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return functional.cross_entropy(work(item[0]), item[1])

    return descend(
        model,
        batches((kept.images, kept.labels), settings.batch, settings.steps, seed),
        loss,
        tail,
        falling(settings.lr, settings.steps),
        watch=watch,
        start=seeded(subject.network.make, FRESH + seed),
        adapt=True,
    )
