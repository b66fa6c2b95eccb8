"""The bench on which models are audited side by side: the same images, the same seeds, the same budgets for all."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import nn

from analysis.audit.bands import Scale
from analysis.audit.report import Role
from analysis.representations.capture import hidden
from analysis.subjects.classes import ClassSubject, Split
from analysis.training import logits_of

MOST_FORGET, MOST_RETAIN = 1000, 4000
OUTPUTS = "outputs"


@dataclass(frozen=True)
class Reading:
    """One auditor's raw numbers for all models, before any band is drawn; fields as in `report.Measurement`.

    Attributes:
        resolution: Smallest step that the measurement can see, in its unit; 0 where it is continuous.
        telling: Name of the model that the auditor must tell from gold to count ("original", or a control).
        yardstick: Values that span the band instead of the golds', where none can be had of those.
    """

    auditor: str
    group: str
    role: Role
    unit: str
    outside: Literal["above", "below"]
    scale: Scale
    values: Mapping[str, float]
    examples: int
    telling: str
    resolution: float = 0.0
    layer: str | None = None
    shots: int | None = None
    spread: Mapping[str, float] = field(default_factory=dict)
    repeats: int = 1
    curve_x: tuple[float, ...] = ()
    curves: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    yardstick: tuple[float, ...] = ()


@dataclass(frozen=True)
class Bench:
    """Models of one architecture and the images they are audited on.

    Images are the subject's test split, which nothing was trained or chosen on (at most 1,000 forgotten and 4,000
    retained ones, drawn by the seed), and for membership inference as many of the forgotten training images.

    Attributes:
        subject: What was to be forgotten.
        models: By name; never changed.
        golds: Names of the gold models.
        original: Name of the model that knows.
        untrained: Name of a freshly initialised model, for reference and as the damage auditor's control.
        overforgetting: Name of the control whose loss on the forgotten class was driven up, or None.
        seed: Of all draws and attacks.
    """

    subject: ClassSubject
    models: Mapping[str, nn.Module]
    golds: tuple[str, ...]
    original: str = "original"
    untrained: str = "untrained"
    overforgetting: str | None = None
    seed: int = 0

    @cached_property
    def forget(self) -> Split:
        """Test images of the forgotten classes, natural labels."""
        return self.subject.forget_test.sample(MOST_FORGET, self.seed)

    @cached_property
    def retain(self) -> Split:
        """Test images of all that must stay (incoming class included, under the label it is taught with)."""
        return self.subject.retain_test.sample(MOST_RETAIN, self.seed)

    @cached_property
    def members(self) -> Split:
        """Training images of the forgotten classes."""
        return self.subject.forget_train.sample(MOST_FORGET, self.seed)

    @cached_property
    def forget_logits(self) -> dict[str, torch.Tensor]:
        """Logits [n, outputs] on `forget`, by model."""
        return {name: logits_of(model, self.forget.images) for name, model in self.models.items()}

    @cached_property
    def retain_logits(self) -> dict[str, torch.Tensor]:
        """Logits [n, outputs] on `retain`, by model."""
        return {name: logits_of(model, self.retain.images) for name, model in self.models.items()}

    @cached_property
    def member_logits(self) -> dict[str, torch.Tensor]:
        """Logits [n, outputs] on `members`, by model."""
        return {name: logits_of(model, self.members.images) for name, model in self.models.items()}

    @cached_property
    def features(self) -> dict[str, dict[str, torch.Tensor]]:
        """Representations of `forget` then `retain`, [n, features] by layer (outputs are one), by model."""
        images = torch.cat([self.forget.images, self.retain.images])
        found = {name: hidden(model, self.subject.network.points, images) for name, model in self.models.items()}
        for name, layers in found.items():
            layers[OUTPUTS] = torch.cat([self.forget_logits[name], self.retain_logits[name]])
        return found

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers in `features`, first to last."""
        return (*self.subject.network.points, OUTPUTS)

    def describe(self, layer: str) -> str:
        """Name a layer for people.

        Args:
            layer: A key of `features`.

        Returns:
            "hidden 1", "hidden 2", ... or "outputs".
        """
        return OUTPUTS if layer == OUTPUTS else f"hidden {self.subject.network.points.index(layer) + 1}"

    def other_golds(self, name: str) -> list[str]:
        """List the golds to compare a model with: all but itself, so that a gold is judged as any other model is.

        Args:
            name: Of the model.

        Returns:
            Names of golds.
        """
        return [gold for gold in self.golds if gold != name]


def forgotten_margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute the log-odds of each image's natural label.

    Args:
        logits: [n, outputs].
        labels: int64 [n].

    Returns:
        log(p / (1 - p)) [n], float64, computed without cancellation.
    """
    logits = logits.double()
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return own - others.logsumexp(1)
