"""Relabelling as in the paper on amnesiac learning: one random wrong label per forgotten image, for good.

Graves et al. 2021, "Amnesiac Machine Learning" (AAAI, arXiv:2010.10981), the method that the paper calls *unlearning*
and that later comparisons list as "amnesiac":

    min_theta  E_retain CE(f_theta(x), y) + E_forget CE(f_theta(x), u_x),   u_x drawn once from all other labels

*Amnesiac unlearning* itself, subtracting the recorded updates of every batch that held a forgotten image, is not here
and can't be: it needs those records from the original's training, which no checkpoint has. (With one class of ten in
batches of 64, as in the authors' own notebooks, 999 of 1000 batches hold one, and the subtraction is nearly everything
that was learned; they show 100 images of the class to keep that down.)

The authors: 10 epochs, batches of 64, Adam at PyTorch's default 1e-3. In their membership-inference notebook the
relabelling compares a whole list with one label and so changes none.

Deviations: evaluation mode, a number of steps instead of epochs (10 epochs of the built-in nets' data), labels from the
retained classes. `random_labels` is the same idea with the label drawn anew at every step, so that none is memorised,
and with a learning rate that falls; here it stays constant, as theirs. Replacing: the incoming class joins the retained
data; a forgotten image is never given its slot.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject, Split
from unlearn.optimize import Watch, batches, descend


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps.
        batch: Images a step, of all classes as they come.
        lr: Adam's learning rate, the same at every step.
    """

    steps: int = 625
    batch: int = 64
    lr: float = 1e-3


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Give every forgotten image a random retained label once, and train on all of them.

    Args:
        model: The original; not changed.
        subject: What to forget.
        mask: What may change; None allows every parameter.
        seed: Of the labels and of the order of the images.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.
    """
    gone, choices = subject.forget_train, torch.tensor(subject.retain)
    generator = torch.Generator().manual_seed(seed)
    wrong = choices[torch.randint(len(choices), gone.labels.shape, generator=generator)]
    data = subject.gold_train + Split(gone.images, wrong)

    def loss(work: nn.Module, item: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return functional.cross_entropy(work(item[0]), item[1])

    drawn = batches((data.images, data.labels), settings.batch, settings.steps, seed)
    return descend(model, drawn, loss, mask, settings.lr, watch=watch)
