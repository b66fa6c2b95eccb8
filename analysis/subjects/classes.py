"""Subjects that are classes of an image classifier: which class to forget, which to keep, and how gold is made."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from analysis.errors import UserError

Slot = Literal["own", "old"]


@dataclass(frozen=True)
class Split:
    """Labelled images.

    Attributes:
        images: float32 [n, channels, height, width], already normalised for the model.
        labels: int64 [n], the output slot that is right for each image.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: torch.Tensor) -> "Split":
        """Pick by position or boolean mask.

        Args:
            indices: int64 positions or a bool mask [n].

        Returns:
            The chosen images, in that order.
        """
        # Whole images are copied at once this way, which indexing doesn't do.
        chosen = indices.nonzero().flatten() if indices.dtype == torch.bool else indices
        return Split(self.images.index_select(0, chosen), self.labels.index_select(0, chosen))

    def only(self, labels: Sequence[int]) -> "Split":
        """Keep what has one of the labels.

        Args:
            labels: The labels to keep.

        Returns:
            The images with these labels.
        """
        return self.take(torch.isin(self.labels, torch.tensor(list(labels), dtype=torch.long)))

    def without(self, labels: Sequence[int]) -> "Split":
        """Keep what has none of the labels.

        Args:
            labels: The labels to drop.

        Returns:
            The images with other labels.
        """
        return self.take(~torch.isin(self.labels, torch.tensor(list(labels), dtype=torch.long)))

    def relabelled(self, label: int) -> "Split":
        """Give every image the same label.

        Args:
            label: The new label.

        Returns:
            The same images under that label.
        """
        return Split(self.images, torch.full_like(self.labels, label))

    def __add__(self, other: "Split") -> "Split":
        if not len(other):
            return self
        return Split(torch.cat([self.images, other.images]), torch.cat([self.labels, other.labels]))

    def sample(self, count: int, seed: int) -> "Split":
        """Draw without replacement.

        Args:
            count: At most how many.
            seed: Of the draw.

        Returns:
            `count` images, or all of them (shuffled) when there are fewer.
        """
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.take(order[:count])


@dataclass(frozen=True)
class Recipe:
    """How originals and golds are trained: Adam with a learning rate that falls linearly to zero.

    Attributes:
        epochs: Passes over the training data.
        batch: Images a step.
        lr: Learning rate at the first step.
    """

    epochs: int = 10
    batch: int = 64
    lr: float = 1e-3


@dataclass(frozen=True)
class Network:
    """An architecture: how to build it and where to look inside.

    Attributes:
        name: "mlp", "cnn" or the user's "module:factory".
        make: Builds a freshly initialised network that maps [n, channels, height, width] to logits [n, outputs].
        points: Names of the modules whose *inputs* are the hidden representations, first to last; the last one is
            the head.
        recipe: How it is trained.
    """

    name: str
    make: Callable[[], nn.Module]
    points: tuple[str, ...]
    recipe: Recipe

    @property
    def head(self) -> str:
        """Name of the module that maps the last hidden representation to logits."""
        return self.points[-1]


@dataclass(frozen=True)
class ClassSubject:
    """One or several classes of a classifier, to be forgotten or replaced.

    `train` and `test` keep every class with its natural label; the properties below cut them up. When a class is
    learned in place of a forgotten one ("replace"), the original model never saw that class.

    Attributes:
        name: For folders and captions, e.g. "digit-6".
        data: Name of the data set.
        classes: Class names; their order is the order of the model's outputs.
        train: All training images, natural labels.
        test: All test images, natural labels; never trained on, never used to choose anything.
        forget: Labels to forget.
        network: The architecture and its training recipe.
        incoming: Label to learn instead ("replace"), or None ("forget").
        slot: With `incoming`: "own" teaches it at its own output, "old" at the first forgotten class's output.
    """

    name: str
    data: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    forget: tuple[int, ...]
    network: Network
    incoming: int | None = None
    slot: Slot = "own"

    def __post_init__(self) -> None:
        if not self.forget:
            raise UserError("No class to forget was given; name at least one with --forget.")
        if self.incoming in self.forget:
            raise UserError(
                f"Can't replace class {self.classes[self.forget[0]]!r} by itself; give another class to --replace-with."
            )
        if not self.retain:
            raise UserError("Every class is to be forgotten and none is left to keep; forget fewer classes.")
        for label in (*self.forget, *(() if self.incoming is None else (self.incoming,))):
            for where, split in (("training", self.train), ("test", self.test)):
                if not int((split.labels == label).sum()):
                    raise UserError(
                        f"Class {self.classes[label]!r} of {self.data} has no {where} images; choose another class."
                    )

    @property
    def retain(self) -> tuple[int, ...]:
        """Labels that original and edited model both know."""
        return tuple(c for c in range(len(self.classes)) if c not in self.forget and c != self.incoming)

    @property
    def incoming_slot(self) -> int | None:
        """Output at which the incoming class is taught."""
        return self.forget[0] if self.incoming is not None and self.slot == "old" else self.incoming

    @property
    def gone(self) -> tuple[int, ...]:
        """Outputs that no gold model ever uses: nobody should be able to fill them again quickly."""
        taught = {*self.retain, *(() if self.incoming_slot is None else (self.incoming_slot,))}
        return tuple(c for c in range(len(self.classes)) if c not in taught)

    @property
    def relearn_slots(self) -> dict[int, int]:
        """Output at which an attacker re-teaches each forgotten label: its own, unless that has been taken over."""
        if self.incoming is not None and self.slot == "old":
            return {label: self.incoming if label == self.forget[0] else label for label in self.forget}
        return {label: label for label in self.forget}

    def _incoming(self, split: Split) -> Split:
        if self.incoming is None or self.incoming_slot is None:
            return split.only([])
        return split.only([self.incoming]).relabelled(self.incoming_slot)

    @property
    def original_train(self) -> Split:
        """What the original model was trained on."""
        return self.train if self.incoming is None else self.train.without([self.incoming])

    @property
    def forget_train(self) -> Split:
        """Training images to forget, natural labels."""
        return self.train.only(self.forget)

    @property
    def retain_train(self) -> Split:
        """Training images to keep, without the incoming class."""
        return self.train.only(self.retain)

    @property
    def incoming_train(self) -> Split:
        """Training images of the incoming class under the label it is taught with; empty for "forget"."""
        return self._incoming(self.train)

    @property
    def gold_train(self) -> Split:
        """What a model that never knew is trained on: retained classes and the incoming one."""
        return self.retain_train + self.incoming_train

    @property
    def forget_test(self) -> Split:
        """Test images of the forgotten classes, natural labels."""
        return self.test.only(self.forget)

    @property
    def retain_test(self) -> Split:
        """Test images of what must stay (and, for "replace", of what must have been learned)."""
        return self.test.only(self.retain) + self._incoming(self.test)

    @property
    def forget_names(self) -> str:
        """The forgotten classes, readable, e.g. "6" or "4, 9"."""
        return ", ".join(self.classes[label] for label in self.forget)

    def seen(self, forget: float, retain: float, seed: int) -> "ClassSubject":
        """Show only a part of the training images, as to a locator and an editor that don't have them all.

        Args:
            forget: Share of each forgotten class's images; at least one image stays.
            retain: Share of each retained class's images, 0 for none. A class that is to be learned stays whole.
            seed: Of the draw.

        Returns:
            The same task with fewer training images.
        """
        generator = torch.Generator().manual_seed(seed)
        shown = torch.ones(len(self.train), dtype=torch.bool)
        shares = {**dict.fromkeys(self.forget, (forget, 1)), **dict.fromkeys(self.retain, (retain, 0))}
        for label, (share, fewest) in shares.items():
            mine = (self.train.labels == label).nonzero().flatten()
            count = max(fewest, round(share * len(mine)))
            shown[mine[torch.randperm(len(mine), generator=generator)[count:]]] = False
        return replace(self, train=self.train.take(shown))

    def for_choosing(self, seed: int = 0, share: float = 0.2) -> "ClassSubject":
        """Carve a subject out of the training data alone, on which settings may be chosen.

        Args:
            seed: Of the stratified cut.
            share: Part of the training data that plays the test set.

        Returns:
            The same task with `test` taken from `train`; the true test images are not in it.
        """
        generator = torch.Generator().manual_seed(seed)
        held = torch.zeros(len(self.train), dtype=torch.bool)
        for label in range(len(self.classes)):
            mine = (self.train.labels == label).nonzero().flatten()
            held[mine[torch.randperm(len(mine), generator=generator)[: max(1, round(share * len(mine)))]]] = True
        return replace(self, name=f"{self.name}-choosing", train=self.train.take(~held), test=self.train.take(held))


def digest(subject: ClassSubject) -> str:
    """Hash a subject's images and labels.

    Args:
        subject: Any.

    Returns:
        SHA-256 over both splits, hexadecimal.
    """
    found = hashlib.sha256()
    for split in (subject.train, subject.test):
        for tensor in (split.images, split.labels):
            found.update(str(tuple(tensor.shape)).encode())
            found.update(tensor.contiguous().numpy().data)
    return found.hexdigest()
