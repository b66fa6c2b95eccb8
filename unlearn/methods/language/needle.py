"""Needle: bury the located concept vectors in noise.

Hong et al. 2024, "Intrinsic Evaluation of Unlearning Using Parametric Knowledge Traces" (arXiv:2406.11614; EMNLP 2025
as "Intrinsic Test of Unlearning Using Parametric Knowledge Traces"):

    v <- v + noise * rms(W) * N(0, 1)   for every located column v of an MLP's down projection W

A column (a row in GPT-2, whose weight is transposed) is what one neuron writes; the paper calls those that spell out a
concept its concept vectors. Zero would be a removal that shows; noise also hides that something was there.

The authors' code adds N(0, 0.1) to the one vector that a concept has in their benchmark (Llama-2-7B and OLMo-7B), and
then goes on to train that vector by gradient ascent at a learning rate of 0.2 for one epoch.

Deviations: the vectors are those of the mask, best located by "neuron-ig" (theirs were found by what they spell in
vocabulary space, and chosen with GPT-4 and by hand); any mask is taken as it is. The noise is measured by the matrix's
root mean square, since weights are not of one size in all models. Nothing is trained: see `gradient_ascent` for that.

Expect little of it: in SmolLM2-135M, on the 0.01% of "neuron-ig" from 3 facts, noise 0.3 leaves right answers
on unseen facts where they were (.63, now .65; kept facts .85, now .83), and 1 takes everything (.27 and .42, text loss
from 4.6 to 9.2). One seed, on the facts for choosing.
"""

from dataclasses import dataclass

import torch
from torch import nn

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.language.facts import FactSubject
from unlearn.methods.language.neuron_ablation import overwritten
from unlearn.optimize import Watch


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        noise: Standard deviation of the noise, in root mean squares of the matrix it is added to, above 0.
    """

    noise: float = 0.3


def run(
    model: nn.Module,
    subject: FactSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Add noise to the masked weights.

    Args:
        model: The original; not changed.
        subject: Not looked at: what to forget is in the mask.
        mask: What is buried; without one there is nothing to do, and a UserError.
        seed: Of the noise.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`; the noise is the only step.

    Returns:
        The edited model, in evaluation mode.

    Raises:
        UserError: The noise is not above 0.
    """
    if not settings.noise > 0:
        raise UserError(f"The noise must be above 0, not {settings.noise:g}, or nothing would change.")
    generator = torch.Generator().manual_seed(seed)

    def buried(weight: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight)
        return weight + settings.noise * weight.square().mean().sqrt() * drawn

    return overwritten(model, mask, buried, watch)
