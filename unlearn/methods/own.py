"""A method of the user's own: one function in one file, held to what every method promises.

    def forget(model, subject, mask, seed, *, lr=1e-3):
        ...
        return edited

`model` is a copy of the original that the function may change, `subject` a `ClassSubject` or `FactSubject`, `mask` what
may change (None: everything). Keyword arguments with defaults are its settings: `./mine.py:forget:lr=0.01`. What it
returns has to be of the same architecture, finite, and the original outside the mask, or it is refused.
"""

import copy
import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analysis.errors import UserError
from analysis.files import sha256
from analysis.finite import all_finite
from analysis.own_code import find, reason
from analysis.scores import Mask
from unlearn.optimize import Watch

PLACES = ("model", "subject", "mask", "seed")
FORM = re.compile(r"(?P<file>.*\.py):(?P<function>\w+)(?P<settings>(?::.*)?)")


@dataclasses.dataclass(frozen=True)
class Own:
    """What a file of the user's holds.

    Attributes:
        spec: "path/to/file.py:function".
        run: As `Method.run`.
        settings: The function's keyword arguments, as an instance of a dataclass.
        source: SHA-256 of the file.
        summary: First line of the function's docstring.
    """

    spec: str
    run: Callable[..., nn.Module]
    settings: Any
    source: str
    summary: str


def parse(name: str) -> tuple[str, str] | None:
    """Tell a file's function from the name of a method.

    Args:
        name: As given, perhaps with settings behind it.

    Returns:
        "path/to/file.py:function" and what follows it ("" or ":lr=0.1"); None where no file is meant.
    """
    match = FORM.fullmatch(name)
    return (f"{match['file']}:{match['function']}", match["settings"]) if match else None


def load(spec: str) -> Own:
    """Find a user's function; this runs the file.

    Args:
        spec: "path/to/file.py:function".

    Returns:
        The method.
    """
    path = Path(spec.rpartition(":")[0]).expanduser()
    return _load(spec, sha256(path) if path.is_file() else "")


@functools.cache
def _load(spec: str, source: str) -> Own:
    # Once for every state of the file.
    file, _, name = spec.rpartition(":")
    function = find(file, name, f"a function {name}({', '.join(PLACES)})")
    if not inspect.isfunction(function):
        raise UserError(f"{spec} is no function; define {name}({', '.join(PLACES)}).")
    parameters = inspect.signature(function).parameters
    more = [p for n, p in parameters.items() if n not in PLACES]
    if tuple(parameters)[: len(PLACES)] != PLACES or any(p.default is p.empty for p in more):
        raise UserError(
            f"{spec} takes ({', '.join(parameters)}); it must take ({', '.join(PLACES)}) and may take settings with "
            "defaults behind them."
        )
    fields = [(p.name, type(p.default), dataclasses.field(default=p.default)) for p in more]
    settings = dataclasses.make_dataclass("Settings", fields, frozen=True)()

    def run(
        model: nn.Module, subject: Any, mask: Mask | None, seed: int, settings: Any, watch: Watch | None = None
    ) -> nn.Module:
        # Called as it is, without `descend`, so what happens on the way can't be watched: begin and end are.
        if watch:
            watch(0, model)
        try:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                edited = function(copy.deepcopy(model), subject, mask, seed, **vars(settings))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"The method {spec} failed ({reason(error)}); mend the function.") from error
        _check(spec, model, edited, mask)
        for mine, theirs in zip(edited.parameters(), model.parameters(), strict=True):
            mine.requires_grad_(theirs.requires_grad)
            mine.grad = None
        if watch:
            watch(1, edited.eval())
        return edited.eval()

    summary = (inspect.getdoc(function) or "the user's own").splitlines()[0]
    return Own(spec, run, settings, source, summary)


def _check(spec: str, before: nn.Module, after: object, mask: Mask | None) -> None:
    if not isinstance(after, nn.Module):
        raise UserError(f"The method {spec} returned {type(after).__name__}; let it return the edited model.")
    mine, theirs = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (after, before))
    differing = sorted(
        name
        for name in mine.keys() | theirs.keys()
        if name not in mine or name not in theirs or mine[name].shape != theirs[name].shape
    )
    if differing:
        raise UserError(f"The method {spec} changed the architecture ({differing[0]}); only weights may change.")
    broken = next((n for n, t in mine.items() if not all_finite(t)), None)
    if broken is not None:
        raise UserError(f"The method {spec} left NaN or infinity in {broken}; lower its learning rate or its steps.")
    parameters = {name for name, _ in before.named_parameters()}
    moved = 0
    for name, value in theirs.items():
        changed = mine[name] != value
        if name in parameters:
            changed &= torch.tensor(False) if mask is None else ~mask.bits.get(name, torch.zeros_like(changed))
        moved += int(changed.sum())
    if moved:
        raise UserError(
            f"The method {spec} moved {moved:,} numbers outside its mask; put them back before returning "
            "(`unlearn.optimize.restore_outside`), or train with `unlearn.optimize.descend`."
        )
