"""Bad teaching: Chundawat et al. 2023, "Can Bad Teaching Induce Forgetting?" (AAAI, arXiv:2205.08096).

    min_theta  E_(retain + forget)  KL( (1 - l) * p_0(x) + l * p_d(x)  ||  p_theta(x) ),   l = 1 where x is forgotten

p_0 is the original, the competent teacher; p_d is a network of the same architecture that was never trained. So a
forgotten image is to be answered as by someone who knows nothing, and a retained one as before.

The authors: both at temperature 1, Adam at 1e-4, batches of 256, one pass over the forgotten images and a random 30% of
the retained ones (their function's own defaults, 10 epochs at 0.01, are not what their experiment uses). Their
divergence is averaged over outputs as well as images (PyTorch's "mean"), so it is KL divided by the number of classes,
which their Adam hardly notices.

Deviations: KL per image; all retained images; a fixed number of steps with a learning rate that falls to zero, which is
ours; evaluation mode. An untrained network answers nearly alike whatever it is shown: where its favourite happens to be
the forgotten class the paper's recipe would keep the class, so its opinion of the forgotten outputs is struck out
(`outputs` "all" is the paper). Replacing: the incoming class, which neither teacher knows, is taught by its label.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from analysis.training import logits_of, seeded
from unlearn.methods.targets import FRESH, certain, learn, without_forgotten
from unlearn.optimize import Watch


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps.
        batch: Images a step, of all classes as they come.
        lr: Adam's learning rate at the first step.
        outputs: Which outputs the untrained teacher speaks of, "retained" ones or "all".
    """

    steps: int = 500
    batch: int = 64
    lr: float = 3e-3
    outputs: Literal["retained", "all"] = "retained"

    def __post_init__(self) -> None:
        if self.outputs not in {"retained", "all"}:
            raise UserError(f"bad-teacher:outputs is retained or all, not {self.outputs!r}.")


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Answer forgotten images as an untrained network does, and retained ones as the original.

    Args:
        model: The original and competent teacher; not changed.
        subject: What to forget; its network makes the untrained teacher.
        mask: What may change; None allows every parameter.
        seed: Of the untrained teacher and of the order of the images.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.
    """
    kept, gone, incoming = subject.retain_train, subject.forget_train, subject.incoming_train
    bad = seeded(subject.network.make, FRESH + seed)
    if settings.outputs == "retained":
        nothing = without_forgotten(bad, gone.images, subject)
    else:
        nothing = logits_of(bad, gone.images).softmax(1)
    images = torch.cat([kept.images, gone.images, incoming.images])
    # Cross-entropy with a teacher's distribution is KL plus what doesn't depend on the student.
    targets = torch.cat([
        logits_of(model, kept.images).softmax(1),
        nothing,
        certain(incoming.labels, len(subject.classes)),
    ])
    return learn(model, images, targets, mask, settings.steps, settings.batch, settings.lr, seed, watch)
