"""Retraining from scratch: the exact way, and what a gold model is.

    theta <- train(fresh draw, everything but the forgotten classes)

The network's own recipe is used, so an edited model made by this method is one more gold model. It has no mask: a
network with some weights kept from the original is not retrained (see `regrow` for that). The draw is another than
the original's. Replacing: the incoming class is in the training data.
"""

from dataclasses import dataclass

from torch import nn

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject
from analysis.training import fit
from unlearn.methods.targets import FRESH
from unlearn.optimize import Watch


@dataclass(frozen=True)
class Settings:
    """Nothing can be set: the network's recipe says how it is trained."""


def run(
    model: nn.Module,
    subject: ClassSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Train a new network on what a gold model is trained on.

    Args:
        model: The original; shown to `watch` as step 0 and not used otherwise.
        subject: What to forget.
        mask: Must be None.
        seed: Of the initial weights and of the order of the images.
        settings: None there are.
        watch: Called with the original (step 0) and with the finished network.

    Returns:
        The new network, in evaluation mode.

    Raises:
        UserError: A mask was given.
    """
    if mask is not None:
        raise UserError("Retraining changes every weight; leave the mask out or choose another method.")
    if watch:
        watch(0, model)
    split, recipe = subject.gold_train, subject.network.recipe
    fresh = fit(subject.network.make, split, recipe, [FRESH + seed])[0]
    if watch:
        watch(recipe.epochs * (len(split) // min(recipe.batch, len(split))), fresh)
    return fresh
