"""Random labels: Graves et al. 2021, "Amnesiac Machine Learning" (AAAI, arXiv:2010.10981), section 3.

    min_theta  E_retain CE(f_theta(x), y) + E_forget CE(f_theta(x), u),   u ~ uniform over retained labels

Deviations: u is drawn anew at every step instead of once per image, so the optimum on forgotten images is the uniform
distribution and no label is memorised. Replacing: the incoming class joins the retained data; u is never its slot, so
with the old slot forgotten images are taught away from it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from unlearn.optimize import Watch, batches, descend, falling


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps.
        batch: Images a step, of all classes as they come.
        lr: Adam's learning rate at the first step.
    """

    steps: int = 500
    batch: int = 64
    lr: float = 3e-3


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Teach a random retained label for every forgotten image, together with everything retained.

    Args:
        model: The original; not changed.
        subject: What to forget.
        mask: What may change; None allows every parameter.
        seed: Of the order of the images and of the labels.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.
    """
    unknown = -1
    data = subject.gold_train + subject.forget_train.relabelled(unknown)
    choices = torch.tensor(subject.retain)
    generator = torch.Generator().manual_seed(seed)

    def drawn() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in batches((data.images, data.labels), settings.batch, settings.steps, seed):
            guesses = choices[torch.randint(len(choices), labels.shape, generator=generator)]
            yield images, torch.where(labels == unknown, guesses, labels)

    def loss(work: nn.Module, item: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(work(item[0]), item[1])

    return descend(model, drawn(), loss, mask, falling(settings.lr, settings.steps), watch=watch)
