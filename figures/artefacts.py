"""Reads what a run left behind: each part once, when a figure first asks for it, checked and typed."""

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from analysis.audit.report import AuditReport, Measurement
from analysis.errors import UserError
from analysis.files import load_tensors
from analysis.localization import LocalizationReport
from analysis.scores import Mask
from unlearn.edit import Edit

MADE_BY = {
    "run.json": "run",
    "models": "run",
    "pictures.safetensors": "run",
    "pictures.json": "run",
    "scores": "locate",
    "mask.safetensors": "locate",
    "localization.json": "locate",
    "history.csv": "forget",
    "edit.safetensors": "forget",
    "audit.json": "run",
}
MOST_LETTERS = 16
NOT_WEIGHTS = ("running_mean", "running_var", "num_batches_tracked")


class Missing(UserError):
    """The run has not made this artefact, or never will: an audit of a given checkpoint locates nothing."""


@dataclass(frozen=True)
class History:
    """Test accuracies while the edit ran.

    Attributes:
        steps: Optimiser steps done; the first is 0, the original.
        overall: Accuracy on all test images, 0 to 1.
        retain: On the retained ones.
        forget: On the forgotten ones.
    """

    steps: np.ndarray
    overall: np.ndarray
    retain: np.ndarray
    forget: np.ndarray


@dataclass(frozen=True)
class Run:
    """A run folder; its parts are read when first used and kept.

    Attributes:
        folder: Where the run's artefacts are.
    """

    folder: Path

    def _path(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            command = MADE_BY[name.partition("/")[0]]
            raise Missing(
                f"{self.folder} has no {name}; make it with `yesterday {command}`, giving this run's options again."
            )
        return path

    def complaint(self, name: str, why: object) -> str:
        """Word what is to be said of an artefact that can't be used.

        Args:
            name: Relative to the run folder.
            why: What is wrong with it; only the first line is told.

        Returns:
            One sentence.
        """
        command = MADE_BY[name.partition("/")[0]]
        short = str(why).splitlines()[0] if str(why) else "unreadable"
        return (
            f"{self.folder / name} is damaged ({short}); delete it and make it with `yesterday {command}`, giving this "
            "run's options again."
        )

    def _text(self, name: str) -> str:
        try:
            return self._path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(self.complaint(name, error)) from error

    @cached_property
    def document(self) -> Mapping[str, object]:
        """What `run.json` says.

        Raises:
            UserError: The folder holds no run, or the file is damaged.
        """
        if not (self.folder / "run.json").is_file():
            raise UserError(
                f"There is no run and no comparison in {self.folder}; `yesterday list` shows the runs there are."
            )
        try:
            found = json.loads(self._text("run.json"))
        except ValueError as error:
            raise UserError(self.complaint("run.json", error)) from error
        if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
            raise UserError(self.complaint("run.json", "it has no configuration"))
        return found

    @property
    def config(self) -> Mapping[str, object]:
        """The run's configuration."""
        config = self.document["config"]
        return config if isinstance(config, dict) else {}

    @property
    def family(self) -> str:
        """What was forgotten: "facts" of a language model, or "classes" of a classifier."""
        return str(self.config.get("family", "classes"))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the outputs.

        Raises:
            UserError: The file is damaged.
        """
        found = self.config.get("classes")
        if not isinstance(found, list) or not found:
            raise UserError(self.complaint("run.json", "its configuration lists no classes"))
        return tuple(str(name) for name in found)

    @cached_property
    def forget(self) -> tuple[int, ...]:
        """Labels of the forgotten classes.

        Raises:
            UserError: The file is damaged.
        """
        found = self.config.get("forget_labels")
        if not isinstance(found, list) or not found or not all(0 <= int(c) < len(self.classes) for c in found):
            raise UserError(self.complaint("run.json", "its configuration names no class to forget"))
        return tuple(int(label) for label in found)

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """What each output of edited and gold means: its class, or with a star the new class that took its place."""
        subject, incoming = self.config.get("subject"), self.config.get("incoming_label")
        names = list(self.classes)
        if isinstance(subject, dict) and subject.get("slot") == "old" and isinstance(incoming, int):
            names[self.forget[0]] = f"{names[incoming]}*"
        return tuple(names)

    @property
    def slot_note(self) -> str:
        """A sentence for captions on the output that a new class has taken over; empty where none has."""
        taken = [label for label in self.forget if label not in self.old_answers]
        return f' "{self.answers[taken[0]]}": the new class, at the old output.' if taken else ""

    @cached_property
    def old_answers(self) -> tuple[int, ...]:
        """Outputs of the edited model that still mean a forgotten class."""
        return tuple(label for label in self.forget if self.answers[label] == self.classes[label])

    @property
    def forgotten(self) -> str:
        """The forgotten classes for sentences, e.g. '"6"' or '"4" and "9"'."""
        quoted = [f'"{self.classes[label]}"' for label in self.forget]
        return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + f" and {quoted[-1]}"

    @property
    def briefly(self) -> str:
        """The forgotten classes for legends and headings, where a long list would not fit."""
        if len(self.forgotten) <= MOST_LETTERS:
            return self.forgotten
        return "the forgotten class" if len(self.forget) == 1 else "the forgotten classes"

    @property
    def seed(self) -> str:
        """The run's seed, for captions."""
        return str(self.config.get("seed", "not recorded"))

    @cached_property
    def mask(self) -> Mask:
        """Which weights the edit was allowed to change."""
        return Mask.load(self._path("mask.safetensors"))

    @cached_property
    def edit(self) -> Edit:
        """Which weights changed, and by how much."""
        return Edit.load(self._path("edit.safetensors"))

    @cached_property
    def localization(self) -> LocalizationReport:
        """Overlaps and ablation curves.

        Raises:
            UserError: The file is damaged.
        """
        try:
            return LocalizationReport.model_validate_json(self._text("localization.json"))
        except ValidationError as error:
            raise UserError(self.complaint("localization.json", error)) from error

    @cached_property
    def audit(self) -> AuditReport:
        """What all auditors say of all models.

        Raises:
            UserError: The file is damaged.
        """
        try:
            return AuditReport.model_validate_json(self._text("audit.json"))
        except ValidationError as error:
            raise UserError(self.complaint("audit.json", error)) from error

    def measurements(self, group: str) -> list[Measurement]:
        """Pick the audit's measurements of one kind.

        Args:
            group: As in `Measurement.group`.

        Returns:
            In the audit's order; maybe none.
        """
        return [one for one in self.audit.measurements if one.group == group]

    @cached_property
    def history(self) -> History:
        """Accuracies while the edit ran.

        Raises:
            UserError: The file is damaged.
        """
        columns: dict[str, list[float]] = {"step": [], "overall": [], "retain": [], "forget": []}
        try:
            for row in csv.DictReader(self._text("history.csv").splitlines()):
                for name, values in columns.items():
                    values.append(float(row[name]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(self.complaint("history.csv", f"no number in {error}")) from error
        if not columns["step"]:
            raise UserError(self.complaint("history.csv", "it has no rows"))
        return History(*(np.array(columns[name]) for name in ("step", "overall", "retain", "forget")))

    @cached_property
    def _pictures(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        return load_tensors(self._path("pictures.safetensors"))

    def picture(self, name: str) -> np.ndarray:
        """Take one array out of `pictures.safetensors`.

        Args:
            name: E.g. "six.images".

        Returns:
            The array, float64 if it was of a floating type.

        Raises:
            UserError: There is no such file, or nothing of that name in it.
        """
        tensors, _ = self._pictures
        if name not in tensors:
            raise UserError(self.complaint("pictures.safetensors", f"it has no {name}"))
        tensor = tensors[name]
        return (tensor.double() if tensor.is_floating_point() else tensor).numpy()

    def picture_note(self, name: str) -> str:
        """Read a number that was noted in the header of `pictures.safetensors`.

        Args:
            name: E.g. "cka.edited".

        Returns:
            The number, with two decimals if it has any, or "not measured".
        """
        text = self._pictures[1].get(name, "")
        try:
            value = float(text)
        except ValueError:
            return text or "not measured"
        return str(int(value)) if value == int(value) and "." not in text else f"{value:.2f}"

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        """The original model's parameters in the order in which the network runs, running statistics left out."""
        tensors, _ = load_tensors(self._path("models/original.safetensors"))
        kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(NOT_WEIGHTS)}
        points = self.config.get("points")
        head = str(points[-1]) if isinstance(points, list) and points else None
        return {name: kept[name] for name in in_order(kept, head, len(self.classes))}

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Names of the modules that own parameters, in the order in which the network runs."""
        return tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in self.weights))

    @property
    def total(self) -> int:
        """How many weights the model has."""
        return sum(tensor.numel() for tensor in self.weights.values())


def natural(name: str) -> list[tuple[int, int, str]]:
    """Make a sorting key under which "layer10" follows "layer9".

    Args:
        name: Any name.

    Returns:
        The key.
    """
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def in_order(weights: Mapping[str, torch.Tensor], head: str | None, outputs: int) -> list[str]:
    """Sort parameters as the network runs, as far as their names and shapes tell: safetensors forgets their order.

    Args:
        weights: Parameters by name.
        head: Name of the last module, where it is known.
        outputs: Number of classes; where the head is not known, a matrix with as many rows is taken for it.

    Returns:
        All names, once: modules by name with numbers counted, weight before bias, the head last.
    """
    heads = {n.rpartition(".")[0] for n, w in weights.items() if w.dim() == 2 and w.shape[0] == outputs}
    last = heads if head is None else {head}

    def key(name: str) -> tuple[bool, list[tuple[int, int, str]], bool, str]:
        module, _, parameter = name.rpartition(".")
        return module in last, natural(module), parameter == "bias", name

    return sorted(weights, key=key)


def existing(folder: Path) -> Path:
    """Check that there is a run folder.

    Args:
        folder: E.g. runs/digit-6.

    Returns:
        The same folder.

    Raises:
        UserError: There is no such folder.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file; give the folder of a run, such as runs/digit-6.")
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; `yesterday list` shows the runs there are.")
    return folder


def open_run(folder: Path) -> Run:
    """Open the folder of a run on classes.

    Args:
        folder: E.g. runs/digit-6.

    Returns:
        The run; nothing but `run.json` has been read yet.

    Raises:
        UserError: There is no such folder, it holds no run, or one on facts.
    """
    run = Run(existing(folder))
    if run.family == "facts":
        raise UserError(f"{folder} is a run on facts; draw it with `yesterday figures {folder}`.")
    _ = run.classes
    return run
