"""What a classifier's page shows, computed: answers, pixel attributions and the edit by degrees."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import nn
from torch.func import functional_call

from analysis.ablation import watched_images
from analysis.attribution.integrated import pixel_integrated_gradients
from analysis.errors import UserError
from analysis.localization import dark
from analysis.representations.pictures import few_of_each
from analysis.subjects.classes import ClassSubject, Split
from analysis.training import logits_of
from figures import artefacts
from figures.explorer.strokes import Frame, frame_of
from unlearn.documents import RunConfig
from unlearn.edit import Edit
from unlearn.run import Run

STRENGTHS = 21
STEPS = 64
MOST_WATCHED = 500
BATCH = 500


@dataclass(frozen=True)
class Explored:
    """A run's models and images, in memory.

    Attributes:
        run: What the run says of itself.
        subject: Its data and classes.
        original: The model before the edit, in evaluation mode.
        edited: The model after it.
        golds: Models that never knew; maybe none.
        edit: What lies between original and edited.
        seed: The run's, for draws of images.
    """

    run: artefacts.Run
    subject: ClassSubject
    original: nn.Module
    edited: nn.Module
    golds: tuple[nn.Module, ...]
    edit: Edit
    seed: int

    @cached_property
    def frame(self) -> Frame | None:
        """How drawings are fitted to the data; None where they can't be."""
        return frame_of(self.subject.test.images)

    @cached_property
    def baseline(self) -> torch.Tensor:
        """The picture of nothing, from which attributions start."""
        return dark(self.subject.train.images)

    @cached_property
    def some(self) -> Split:
        """About equally many test images of each class, on which neurons are looked at."""
        return few_of_each(self.subject.test, len(self.subject.classes), self.seed)

    @property
    def models(self) -> dict[str, nn.Module]:
        """Original, edited and, where there are any, the first gold."""
        return {"original": self.original, "edited": self.edited} | dict(zip(["gold"], self.golds, strict=False))

    @cached_property
    def fading(self) -> "Fading":
        """Accuracies along the edit's strength."""
        return fading(self)


def open_classes(folder: Path) -> Explored:
    """Load what a run on classes left behind.

    Args:
        folder: The run, edited at least.

    Returns:
        Models and images.

    Raises:
        UserError: The run is on facts, unfinished or damaged, or its data is gone.
    """
    noted = artefacts.open_run(folder)
    asked = {name: value for name, value in noted.config.items() if name in RunConfig.model_fields}
    try:
        run = Run(RunConfig.model_validate(asked), folder, lambda *_: None)
    except ValidationError as error:
        raise UserError(noted.complaint("run.json", error)) from error
    if not (folder / "models/edited.safetensors").is_file():
        raise UserError(f"{folder} has no edited model yet; finish the run with: yesterday run {folder.name}")
    golds = sorted((folder / "models").glob("gold-*.safetensors"))
    return Explored(
        noted,
        run.subject,
        run.model("models/original.safetensors"),
        run.model("models/edited.safetensors"),
        tuple(run.model(f"models/{path.name}") for path in golds),
        noted.edit,
        run.config.seed,
    )


@dataclass(frozen=True)
class Answer:
    """What a model, or several in the mean, says of one image.

    Attributes:
        shares: [classes], probabilities.
        low: [classes], the lowest over the models.
        high: [classes], the highest.
        models: How many.
    """

    shares: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    models: int

    @property
    def best(self) -> int:
        """The likeliest output."""
        return int(self.shares.argmax())


def answer(models: tuple[nn.Module, ...], image: torch.Tensor) -> Answer:
    """Ask models about one image.

    Args:
        models: At least one, in evaluation mode.
        image: [1, channels, height, width].

    Returns:
        Their probabilities in the mean, with the spread over the models.
    """
    shares = torch.cat([logits_of(model, image).softmax(1) for model in models])
    return Answer(shares.mean(0), shares.amin(0), shares.amax(0), len(models))


def answers(explored: Explored, image: torch.Tensor) -> dict[str, Answer]:
    """Ask original, edited and all golds about one image.

    Args:
        explored: The run.
        image: [1, channels, height, width].

    Returns:
        By role; "gold" only where there are golds.
    """
    found = {"original": answer((explored.original,), image), "edited": answer((explored.edited,), image)}
    return found | ({"gold": answer(explored.golds, image)} if explored.golds else {})


@dataclass(frozen=True)
class Pixels:
    """Which pixels speak for one output of one model.

    Attributes:
        values: [height, width], signed, in logits; channels summed.
        label: The output.
        total: Sum over pixels: the logit less what it is for the picture of nothing, but for the quadrature's error.
    """

    values: torch.Tensor
    label: int
    total: float


def attributions(explored: Explored, image: torch.Tensor, label: int | None = None) -> dict[str, Pixels]:
    """Attribute one image's answers to its pixels, by integrated gradients from the picture of nothing.

    Args:
        explored: The run.
        image: [1, channels, height, width].
        label: The output to explain; if not given, each model's own answer.

    Returns:
        For original, edited and the first gold.
    """
    found = {}
    for name, model in explored.models.items():
        toward = int(logits_of(model, image).argmax()) if label is None else label
        labels = torch.tensor([toward])
        scores = pixel_integrated_gradients(model, image, labels, baseline=explored.baseline, steps=STEPS)
        values = scores.values["input"][0].sum(0)
        found[name] = Pixels(values, toward, float(values.sum()))
    return found


@torch.no_grad()
def _logits(explored: Explored, images: torch.Tensor, strength: float) -> torch.Tensor:
    # Of the original with so much of the edit.
    changed = explored.edit.partly(explored.original.state_dict(), strength)
    return torch.cat([functional_call(explored.original, changed, (part,)) for part in images.split(BATCH)])


def at_strength(explored: Explored, image: torch.Tensor, strength: float) -> Answer:
    """Ask the original with a part of the edit about one image.

    Args:
        explored: The run.
        image: [1, channels, height, width].
        strength: 0 for the original, 1 for the edited model.

    Returns:
        Its answer.
    """
    shares = _logits(explored, image, strength).softmax(1)[0]
    return Answer(shares, shares, shares, 1)


@dataclass(frozen=True)
class Fading:
    """Accuracies along the edit's strength.

    Attributes:
        strengths: Rising from 0 to 1.
        curves: Accuracy, 0 to 1, at each strength: on the "forgotten" classes, the "rest" and, where a class was
            learned instead, the "new" one.
        examples: Test images behind each curve.
    """

    strengths: tuple[float, ...]
    curves: Mapping[str, tuple[float, ...]]
    examples: Mapping[str, int]


def fading(explored: Explored) -> Fading:
    """Test the model at many strengths of the edit.

    Args:
        explored: The run.

    Returns:
        Accuracies on at most 500 test images of each kind.
    """
    subject = explored.subject
    forgotten, rest = watched_images(subject, MOST_WATCHED, explored.seed)
    splits = {"forgotten": forgotten, "rest": rest}
    if subject.incoming is not None and subject.incoming_slot is not None:
        new = subject.test.only([subject.incoming]).relabelled(subject.incoming_slot)
        splits["new"] = new.sample(MOST_WATCHED, explored.seed)
    images = torch.cat([split.images for split in splits.values()])
    labels = torch.cat([split.labels for split in splits.values()])
    sizes = {name: len(split) for name, split in splits.items()}
    strengths = tuple(i / (STRENGTHS - 1) for i in range(STRENGTHS))
    right = [_logits(explored, images, strength).argmax(1) == labels for strength in strengths]
    parts = [row.float().split(list(sizes.values())) for row in right]
    curves = {name: tuple(float(row[i].mean()) for row in parts) for i, name in enumerate(sizes)}
    return Fading(strengths, curves, sizes)


def fading_of(explored: Explored, image: torch.Tensor, labels: tuple[int, ...]) -> tuple[float, ...]:
    """Follow one image's probability of some outputs along the edit's strength.

    Args:
        explored: The run.
        image: [1, channels, height, width].
        labels: The outputs, e.g. those of the forgotten classes.

    Returns:
        Their probability in sum at each of the strengths of `fading`.
    """
    strengths = (i / (STRENGTHS - 1) for i in range(STRENGTHS))
    return tuple(float(_logits(explored, image, one).softmax(1)[0, list(labels)].sum()) for one in strengths)
