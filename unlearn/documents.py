"""What a run is asked for and what it says, as documents: the schema of `run.json` (version 1)."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from analysis.audit.report import Document, Verdict
from analysis.errors import UserError
from analysis.scores import Scope
from analysis.subjects.build import SubjectConfig

PACKAGES = (
    "yesterday-unlearning", "torch", "torchvision", "transformers", "tokenizers", "captum", "scikit-learn",
    "umap-learn", "numpy", "scipy",
)  # fmt: skip


class Sight(Document):
    """How much of the training data locating and editing may see; golds and the audit see all of it.

    Attributes:
        seen_forget: Share of what is to be forgotten, in (0, 1].
        seen_retain: Share of what must stay, in [0, 1].
    """

    seen_forget: Annotated[float, Field(gt=0, le=1)] = 1.0
    seen_retain: Annotated[float, Field(ge=0, le=1)] = 1.0

    @property
    def sight(self) -> dict[str, list[float]]:
        """What stages depend on that see less; empty where nothing is held back."""
        shares = [self.seen_forget, self.seen_retain]
        return {} if shares == [1, 1] else {"seen": shares}


class RunConfig(Sight):
    """All that decides a run's numbers, besides the versions of the libraries.

    Attributes:
        subject: Data, model and classes.
        method: Name in `unlearn.methods.METHODS`, settings behind it ("regrow:decay=0"); None takes the default.
        measure: Attribution that locates, in `analysis.localization.MEASURES`, or "none" to allow every weight.
        fraction: Share of all weights that the edit may change, in (0, 1].
        scope: Whether weights are ranked over the whole model or layer by layer.
        golds: Number of gold models to train; None takes 20 for `mlp` and 8 for others.
        seed: Decides everything random.
        choosing: Play the test split with a fifth of the training images, so that settings can be chosen by the
            result and the true test images stay unseen.
        candidate: Checkpoint to audit instead of making an edit.
        gold_weights: Checkpoints of gold models to use instead of training some.
    """

    subject: SubjectConfig = SubjectConfig()
    method: str | None = None
    measure: str = "damage-contrast"
    fraction: float = 0.2
    scope: Scope = "global"
    golds: int | None = None
    seed: int = 0
    choosing: bool = False
    candidate: str | None = None
    gold_weights: tuple[str, ...] = ()


class RunReport(Document):
    """Everything in `run.json`.

    Attributes:
        schema_version: Of this document.
        name: Of the subject.
        config: The full configuration, with what was left to defaults filled in, the names of the `classes`, the
            `forget_labels` among them and the size of the splits.
        verdict: Of the audit; None until there is one.
        sentence: The verdict in words.
        changed: Weights that the edit changed.
        total: Weights of the model.
        versions: Of Python and the libraries.
        stages: Seconds, peak memory of the process in MB, and facts by stage.
    """

    schema_version: Literal[1] = 1
    name: str
    config: dict[str, Any]
    verdict: Verdict | None
    sentence: str
    changed: int | None
    total: int
    versions: dict[str, str]
    stages: dict[str, dict[str, Any]]


def versions() -> dict[str, str]:
    """Note what a run's numbers depend on besides its configuration.

    Returns:
        Versions of Python and the libraries by name.
    """
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def read_run(folder: Path) -> RunReport:
    """Read a run's `run.json`.

    Args:
        folder: The run folder.

    Returns:
        The document.

    Raises:
        UserError: There is none, or it is damaged.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise UserError(f"There is no run in {folder}; `yesterday list` shows the runs there are.")
    try:
        return RunReport.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is corrupted; run the same command again to make it anew.") from error
