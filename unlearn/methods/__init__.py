"""The methods: one file each, all called alike, all bit-exact outside the mask."""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import nn

from analysis.errors import UserError
from analysis.scores import Mask
from unlearn.methods import (
    amnesiac,
    bad_teacher,
    boundary_expand,
    boundary_shrink,
    cf_k,
    eu_k,
    finetune,
    fisher_forgetting,
    gradient_ascent,
    l1_sparse,
    moment_matching,
    neggrad_plus,
    own,
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
    undo,
    unsir,
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
        source: SHA-256 of the user's file that it is from; "" for the built-in ones.
    """

    name: str
    run: Run
    settings: Any
    task: Task
    summary: str
    source: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides what it does, for the stages that depend on it."""
        return {"method": self.name, "settings": vars(self.settings), "source": self.source}


def _method(name: str, module: Any, summary: str, task: Task = "both") -> Method:
    return Method(name, module.run, module.Settings(), task, summary)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _method("relabel", relabel, "teach another label for it"),
        _method("penalty", penalty, "punish its logit"),
        _method("gradient-ascent", gradient_ascent, "raise the loss on it, keep it low on the rest"),
        _method("random-labels", random_labels, "teach random labels for it"),
        _method("salun", salun, "random labels on the weights its gradient points at"),
        _method("ssd", ssd, "dampen the weights that matter more for it, then repair"),
        _method("scrub", scrub, "disobey the original on it, obey it on the rest"),
        _method("regrow", regrow, "draw what carries it afresh and grow it again from the rest (ours)"),
        _method("soft-targets", soft_targets, "teach the original's second thoughts"),
        _method("replace", replace, "favour the new class, punish the old one; needs a new class", task="replace"),
        _method("finetune", finetune, "go on training on the rest and hope"),
        _method("l1-sparse", l1_sparse, "the same, with small weights drawn to zero"),
        _method("neggrad-plus", neggrad_plus, "raise the loss on it without end, keep it low on the rest"),
        _method("bad-teacher", bad_teacher, "answer it as an untrained network does"),
        _method("unsir", unsir, "teach noise as it, then repair"),
        _method("amnesiac", amnesiac, "teach one random label for each of its images, for good"),
        _method("boundary-shrink", boundary_shrink, "teach the class across the nearest boundary, then repair"),
        _method("boundary-expand", boundary_expand, "teach an output of its own and cut that off, then repair"),
        _method("moment-matching", moment_matching, "spread its answers as the rest's"),
        _method("cf-k", cf_k, "fine-tune the last layers on the rest and hope"),
        _method("eu-k", eu_k, "draw the last layers afresh and train them on the rest"),
        _method("fisher-forgetting", fisher_forgetting, "noise where the rest doesn't mind, then repair"),
        _method("undo", undo, "hide it, wear the weights down, distil the rest back"),
        _method("retrain", retrain, "train from scratch without it; takes no mask"),
    )
}


def named(name: str, known: Mapping[str, Method]) -> Method:
    """Find a method, with or without settings of the user's own.

    Args:
        name: As in "regrow", with settings behind it, "regrow:decay=0:rate=0.5", or the user's own function,
            "path/to/file.py:function".
        known: The methods of one family.

    Returns:
        The method; its name is `name` as it was given.

    Raises:
        UserError: There is no such method or setting, or the value doesn't fit.
    """
    if mine := own.parse(name):
        loaded = own.load(mine[0])
        base, changes = loaded.spec, mine[1].split(":")[1:]
        method = Method(base, loaded.run, loaded.settings, "both", loaded.summary, loaded.source)
    else:
        base, *changes = name.split(":")
        method = _builtin(base, known)
    usual = {field.name: getattr(method.settings, field.name) for field in dataclasses.fields(method.settings)}
    changed = {}
    for change in changes:
        setting, equals, text = change.partition("=")
        if not equals or setting not in usual:
            known_ = f"write {base}:NAME=VALUE with one of {', '.join(usual)}" if usual else "it has none at all"
            raise UserError(f"{base!r} has no setting {setting!r}; {known_}.")
        changed[setting] = _value(f"{base}:{setting}", text, _kind(type(method.settings), setting))
    settings = dataclasses.replace(method.settings, **changed)
    return dataclasses.replace(method, name=name, settings=settings)


def _builtin(name: str, known: Mapping[str, Method]) -> Method:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(known)}, or path/to/file.py:function."
        raise UserError(f"There is no method {name!r}; {hint}")
    return known[name]


def _kind(settings: type, setting: str) -> type:
    # What a setting is declared as; where it may also be None, what else it may be.
    declared = get_type_hints(settings)[setting]
    if get_origin(declared) is Literal:
        return str
    others = [each for each in get_args(declared) if each is not type(None)]
    kind = others[0] if len(others) == 1 and type(None) in get_args(declared) else declared
    return kind if isinstance(kind, type) else object


def _value(name: str, text: str, kind: type) -> Any:
    words = {bool: "true or false", int: "a whole number of at least 0", float: "a number of at least 0", str: "text"}
    if kind not in words:
        raise UserError(f"{name} can't be set on the command line; leave it out.")
    try:
        value = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        value = None
    if value is None or (kind in {int, float} and not 0 <= value < math.inf):
        raise UserError(f"{name} takes {words[kind]}, not {text!r}.")
    return value


def slug(name: str) -> str:
    """Make a file name of a method's name with its settings.

    Args:
        name: As given.

    Returns:
        Letters, digits, and `-`, `.`, `=`, `_` in the place of everything else.
    """
    return re.sub(r"[^\w.=-]", "_", name)
