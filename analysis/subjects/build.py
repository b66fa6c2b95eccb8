"""From what the user asked for to a checked subject."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import nn

from analysis.errors import UserError
from analysis.representations.capture import hidden
from analysis.subjects.checkpoints import load_factory, load_model
from analysis.subjects.classes import ClassSubject, Network, Recipe, Slot, Split
from analysis.subjects.data import Images, load_images
from analysis.subjects.networks import builtin, hidden_points
from analysis.training import logits_of, seeded

MODELS = ("mlp", "cnn")
DIGIT_SETS = ("mnist-5k", "mnist")
SMALLEST = 4
MOST_LISTED = 20


class SubjectConfig(BaseModel):
    """Which classes of which data set are to be forgotten by which network.

    Attributes:
        data: Name of a data set or path of a folder, see `analysis.subjects.data.load_images`.
        data_root: Folder with files that are on disk already.
        model: "mlp", "cnn", "package.module:factory" or "path/to/file.py:factory".
        weights: Checkpoint of the original model; without one it is trained.
        mean: Per channel, or one for all; subtracted from pixels in [0, 1]. 0.5 when not given.
        std: Per channel, or one for all; divides after that. 0.5 when not given.
        size: Height and width in pixels to scale images to; None keeps them.
        forget: Classes to forget, by name (upper or lower case) or number.
        replace_with: Class to learn instead, which the original never saw.
        slot: With `replace_with`: its "own" output or the "old" one of the first forgotten class.
        layers: Modules whose inputs are looked at as hidden representations, instead of the network's own choice; the
            head is always added.
        epochs: Passes over the training data, instead of the network's own number.
        batch: Images a step, likewise.
        lr: Learning rate, likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = "mnist-5k"
    data_root: str | None = None
    model: str = "mlp"
    weights: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    forget: tuple[str, ...] = ("6",)
    replace_with: str | None = None
    slot: Slot = "own"
    layers: tuple[str, ...] | None = None
    epochs: int | None = None
    batch: int | None = None
    lr: float | None = None

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        # UserError is no ValueError, so pydantic lets it through with its sentence as it is.
        if self.mean is not None and not all(0 <= value <= 1 for value in self.mean):
            raise UserError("--mean must lie between 0 and 1, as pixels do; divide values for 0..255 by 255.")
        if self.std is not None and not all(0 < value < float("inf") for value in self.std):
            raise UserError("--std must be above 0; it divides pixels between 0 and 1.")
        if self.size is not None and self.size < SMALLEST:
            raise UserError(f"--size must be at least {SMALLEST} pixels, not {self.size}.")
        if self.slot == "old" and self.replace_with is None:
            raise UserError("--slot old says where a new class goes, but none was given; add --replace-with.")
        for name, value in (("epochs", self.epochs), ("batch", self.batch), ("lr", self.lr)):
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"--{name} must be above 0, not {value:g}.")
        return self


def class_label(text: str, classes: Sequence[str], data: str) -> int:
    """Find the class that a user means.

    Args:
        text: An exact name, a name in other case if that is unambiguous, or a number; tried in this order.
        classes: The names in order.
        data: Name of the data set, for the message.

    Returns:
        The label, in [0, len(classes)).

    Raises:
        UserError: No class or several are meant.
    """
    wanted = text.strip()
    if wanted in classes:
        return list(classes).index(wanted)
    alike = [label for label, name in enumerate(classes) if name.casefold() == wanted.casefold()]
    if len(alike) == 1:
        return alike[0]
    if wanted.isascii() and wanted.isdecimal() and int(wanted) < len(classes):
        return int(wanted)
    lowered = {name.casefold(): name for name in classes}
    near = difflib.get_close_matches(wanted.casefold(), list(lowered), n=1)
    if near and not alike:
        hint = f"did you mean {lowered[near[0]]!r}?"
    elif len(classes) <= MOST_LISTED:
        hint = f"give one of {', '.join(classes)}, or a number from 0 to {len(classes) - 1}."
    else:
        hint = f"give one of {', '.join(classes[:MOST_LISTED])} ... or a number from 0 to {len(classes) - 1}."
    raise UserError(f"{data} has {'several classes' if alike else 'no class'} {wanted!r}; {hint}")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _class_slug(label: int, classes: Sequence[str]) -> str:
    # Names such as "a" and "A", or without any Latin letter, must not share a folder.
    slugs = [_slug(name) for name in classes]
    return slugs[label] if slugs[label] and slugs.count(slugs[label]) == 1 else f"{slugs[label]}-{label}".strip("-")


def _subject_name(config: SubjectConfig, images: Images, forget: Sequence[int], incoming: int | None) -> str:
    parts = ["digit" if config.data in DIGIT_SETS else _slug(images.name) or "folder"]
    # The full data set is another subject than its sample, and gets another run folder.
    parts += ["mnist"] if config.data == "mnist" else []
    parts += [_class_slug(label, images.classes) for label in forget]
    if incoming is not None:
        parts += ["by", _class_slug(incoming, images.classes)]
        parts += ["old-slot"] if config.slot == "old" else []
    if config.model != "mlp":
        where, _, factory = config.model.rpartition(":")
        parts.append(_slug(f"{where.removesuffix('.py').replace('/', '.').rpartition('.')[2]}-{factory}"))
    return "-".join(parts)


def _per_channel(values: tuple[float, ...] | None, channels: int, option: str) -> torch.Tensor:
    values = values or (0.5,)
    if len(values) not in {1, channels}:
        raise UserError(
            f"{option} has {len(values)} values but the images have {channels} channel{'s'[: channels - 1]}; "
            f"give {'one' if channels == 1 else f'one or {channels}'}."
        )
    return torch.tensor(values).view(1, -1, 1, 1)


def _normalised(split: Split, mean: torch.Tensor, std: torch.Tensor) -> Split:
    return Split((split.images - mean).div_(std), split.labels)


def _check_factory(network: Network, example: torch.Tensor, classes: Sequence[str], seed: int) -> nn.Module:
    model = seeded(network.make, seed)
    shape = "x".join(str(side) for side in example.shape[1:])
    try:
        logits = logits_of(model, example)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{network.name} can't run on images of {shape} (channels x height x width: {reason}); "
            "give the --size it was made for, or a model for these images."
        ) from error
    if logits.dim() != 2 or len(logits) != len(example):
        raise UserError(
            f"{network.name} gives {tuple(logits.shape)} for {len(example)} images; it must give one row of "
            f"{len(classes)} class scores per image."
        )
    if logits.shape[1] != len(classes):
        raise UserError(
            f"{network.name} has {logits.shape[1]} outputs but the data has {len(classes)} classes; "
            f"build it with {len(classes)} outputs."
        )
    return model


def _own_network(spec: str, example: torch.Tensor, classes: Sequence[str], seed: int) -> Network:
    network = Network(spec, load_factory(spec), (), Recipe())
    model = _check_factory(network, example, classes, seed)
    points = hidden_points(model, example)
    if not points:
        raise UserError(f"{spec} has no layer with a weight matrix, so there is nothing to locate; give another model.")
    other = seeded(network.make, seed + 1)
    if all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)):
        raise UserError(
            f"{spec} builds the same weights each time, but the models to compare with must start afresh; "
            "remove its fixed seed or trained weights (give those with --weights)."
        )
    return replace(network, points=points)


def _with_layers(network: Network, layers: tuple[str, ...], example: torch.Tensor, seed: int) -> Network:
    model = seeded(network.make, seed)
    names = [name for name, _ in model.named_modules() if name]
    for layer in layers:
        if layer not in names:
            near = difflib.get_close_matches(layer, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"give some of {', '.join(names[:MOST_LISTED])}."
            raise UserError(f"{network.name} has no layer {layer!r}; {hint}")
        try:
            hidden(model, (layer,), example)
        except Exception as error:
            raise UserError(f"The input of layer {layer!r} can't be captured; give another to --layers.") from error
    chosen = tuple(layer for layer in dict.fromkeys(layers) if layer != network.head)
    return replace(network, points=(*chosen, network.head))


def _network(config: SubjectConfig, example: torch.Tensor, classes: Sequence[str], seed: int) -> Network:
    channels, height, width = example.shape[1:]
    if config.model in MODELS:
        if min(height, width) < SMALLEST:
            raise UserError(
                f"The images are {height}x{width}, but {config.model} needs at least {SMALLEST}x{SMALLEST}; "
                "give --size."
            )
        network = builtin(config.model, (channels, height, width), len(classes))
    elif ":" in config.model:
        network = _own_network(config.model, example, classes, seed)
    else:
        near = difflib.get_close_matches(config.model.lower(), MODELS, n=1)
        hint = f"did you mean {near[0]}?" if near else "give mlp, cnn, package.module:factory or file.py:factory."
        raise UserError(f"There is no model {config.model!r}; {hint}")
    if config.layers:
        network = _with_layers(network, config.layers, example, seed)
    own = network.recipe
    recipe = Recipe(config.epochs or own.epochs, config.batch or own.batch, config.lr or own.lr)
    return replace(network, recipe=recipe)


def _images(config: SubjectConfig) -> Images:
    root = None if config.data_root is None else Path(config.data_root).expanduser()
    return load_images(config.data, root, config.size)


def every_class(config: SubjectConfig) -> dict[str, SubjectConfig]:
    """Ask for each class of the data to be forgotten in turn.

    Args:
        config: Data and model; what it says of classes is not looked at.

    Returns:
        One configuration for each class, by the name that its subject will have.
    """
    images = _images(config)
    forgetting = [config.model_copy(update={"forget": (name,), "replace_with": None}) for name in images.classes]
    return {_subject_name(one, images, (label,), None): one for label, one in enumerate(forgetting)}


def build_subject(config: SubjectConfig, seed: int = 0) -> ClassSubject:
    """Load the data, find the classes and check the model, all before anything is trained.

    Args:
        config: What the user asked for.
        seed: Of the initial weights with which a user's factory is tried out. Neither the data nor its split into
            training and test depends on it.

    Returns:
        The subject, with images normalised by (pixel - mean) / std.

    Raises:
        UserError: Data, classes, preprocessing and model can't be found or don't fit together.
    """
    images = _images(config)
    forget = tuple(dict.fromkeys(class_label(text, images.classes, images.name) for text in config.forget))
    incoming = None
    if config.replace_with is not None:
        incoming = class_label(config.replace_with, images.classes, images.name)
        if incoming in forget:
            raise UserError(
                f"Class {images.classes[incoming]!r} can't be both forgotten and learned instead, the model already "
                "knows it; give another class to --replace-with."
            )
    channels = images.train.images.shape[1]
    mean, std = _per_channel(config.mean, channels, "--mean"), _per_channel(config.std, channels, "--std")
    train, test = (_normalised(split, mean, std) for split in (images.train, images.test))
    network = _network(config, train.images[:2], images.classes, seed)
    name = _subject_name(config, images, forget, incoming)
    return ClassSubject(
        name, images.name, images.classes, train, test, forget, network, incoming=incoming, slot=config.slot
    )


def load_original(config: SubjectConfig, subject: ClassSubject) -> nn.Module | None:
    """Load the user's trained model.

    Args:
        config: With or without `weights`.
        subject: Built from `config`.

    Returns:
        The model in evaluation mode, or None if it has yet to be trained. A UserError says so when the checkpoint
        can't be read, is of another architecture, or holds values that are not finite.
    """
    if config.weights is None:
        return None
    return load_model(subject.network.make, Path(config.weights).expanduser())
