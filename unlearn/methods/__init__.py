"""The methods: one file each, all called alike, all bit-exact outside the mask."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from analysis.scores import Mask
from unlearn.methods import (
    gradient_ascent,
    penalty,
    random_labels,
    regrow,
    relabel,
    replace,
    retrain,
    salun,
    scrub,
    soft_targets,
    ssd,
)
from unlearn.optimize import Watch

Run = Callable[[nn.Module, Any, Mask | None, int, Any, Watch | None], nn.Module]
Task = Literal["forget", "replace", "both"]


@dataclass(frozen=True)
class Method:
    """One way to edit a model.

    Attributes:
        name: What the command line calls it.
        run: `run(model, subject, mask, seed, settings, watch)`, the subject being a `ClassSubject` here and a
            `FactSubject` in `unlearn.methods.language`, gives the edited model, a new one in evaluation mode;
            outside the mask it is bit-identical to `model`, buffers included.
        settings: Its settings, an instance of the file's `Settings`; `dataclasses.replace` changes some.
        task: What it is for: to forget a class, to replace one by another, or both.
        summary: One line.
    """

    name: str
    run: Run
    settings: Any
    task: Task
    summary: str


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("relabel", relabel.run, relabel.Settings(), "both", "teach another label for it (first seed's loss a)"),
        Method("penalty", penalty.run, penalty.Settings(), "both", "punish its logit (first seed's loss b)"),
        Method(
            "gradient-ascent",
            gradient_ascent.run,
            gradient_ascent.Settings(),
            "both",
            "raise the loss on it, keep it low on the rest",
        ),
        Method("random-labels", random_labels.run, random_labels.Settings(), "both", "teach random labels for it"),
        Method("salun", salun.run, salun.Settings(), "both", "random labels on the weights its gradient points at"),
        Method("ssd", ssd.run, ssd.Settings(), "both", "dampen the weights that matter more for it, then repair"),
        Method("scrub", scrub.run, scrub.Settings(), "both", "disobey the original on it, obey it on the rest"),
        Method(
            "regrow",
            regrow.run,
            regrow.Settings(),
            "both",
            "draw what carries it afresh and grow it again from the rest (ours)",
        ),
        Method(
            "soft-targets", soft_targets.run, soft_targets.Settings(), "both", "teach the original's second thoughts"
        ),
        Method(
            "replace",
            replace.run,
            replace.Settings(),
            "replace",
            "favour the new class, punish the old one (second seed)",
        ),
        Method("retrain", retrain.run, retrain.Settings(), "both", "train from scratch without it; takes no mask"),
    )
}
