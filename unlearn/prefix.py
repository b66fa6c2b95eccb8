"""What lies below an edit, computed once: a language model's states where its lowest edited block begins.

An edit of upper blocks leaves everything below them as it is, so for one row of tokens what enters the lowest edited
block is the same at every step, and the same in the working model and in the original that a loss compares it with.
While `remembered_below` lasts, both begin there.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import nn

from analysis.attribution.anatomy import Anatomy, anatomy
from analysis.attribution.onward import Arguments, entering, onward
from analysis.errors import UserError

ROOM = 2**26
"""Numbers that are remembered at most, 256 MB in float32; rows beyond are computed each time."""


def lowest_edited(model: nn.Module, parts: Anatomy, edited: Sequence[str]) -> int:
    """Find the first block that an edit may change.

    Args:
        model: A causal language model.
        parts: Its anatomy.
        edited: Names of the parameters that may change, as `named_parameters` has them.

    Returns:
        Its number, from 0; the number of blocks where only what comes after them is edited.
    """
    places = {name: number for number, name in enumerate(parts.blocks)}
    after = {id(p) for m in (model.get_submodule(parts.final_norm), _head(model)) for p in m.parameters()}
    after -= {id(p) for p in model.get_submodule(parts.embedding).parameters()}
    lowest = len(parts.blocks)
    named = dict(model.named_parameters())
    for name in edited:
        number = next((n for block, n in places.items() if name.startswith(f"{block}.")), None)
        if number is None and id(named[name]) not in after:
            return 0
        lowest = min(lowest, len(parts.blocks) if number is None else number)
    return lowest


def _head(model: nn.Module) -> nn.Module:
    return model.get_output_embeddings()  # type: ignore[operator]


@dataclass
class _Prefix:
    # States by row of ids, as wide as they were last asked for, and the blocks' further arguments by width.
    first: int
    parts: Anatomy
    states: dict[bytes, torch.Tensor] = field(default_factory=dict)
    arguments: dict[int, list[Arguments]] = field(default_factory=dict)
    held: int = 0

    def _blocks(self, base: nn.Module) -> list[nn.Module]:
        # From the first edited one on.
        return [self._inside(base, name) for name in self.parts.blocks[self.first :]]

    def _inside(self, base: nn.Module, name: str) -> nn.Module:
        # Names are those of the whole model, and a base model is one of its children.
        return base.get_submodule(name.partition(".")[2])

    def applies(self, base: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> bool:
        ids = named.get("input_ids")
        plain = not given and set(named) <= {"input_ids", "use_cache"} and not named.get("use_cache", True)
        return plain and isinstance(ids, torch.Tensor) and not base.training and not self._watched(base)

    def _watched(self, base: nn.Module) -> bool:
        # Somebody looks at, or changes, what would not be run.
        run = (*self._blocks(base), self._norm(base))
        runs = {id(base)} | {id(module) for part in run for module in part.modules()}
        return any(id(m) not in runs and (m._forward_hooks or m._forward_pre_hooks) for m in base.modules())

    @torch.no_grad()
    def entering(self, base: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        width = ids.shape[1]
        if width not in self.arguments:
            self.arguments[width] = self._arguments(base, ids[:1])
        keys = [row.tobytes() for row in _bare(ids)]
        missing = [i for i, key in enumerate(keys) if key not in self.states or len(self.states[key]) < width]
        found = dict(zip(missing, self._run(base, ids[missing]), strict=True)) if missing else {}
        states = torch.stack([found[i] if i in found else self.states[key][:width] for i, key in enumerate(keys)])
        for i in missing:
            room = found[i].numel() - (self.states[keys[i]].numel() if keys[i] in self.states else 0)
            if self.held + room <= ROOM:
                self.states[keys[i]] = found[i].clone()
                self.held += room
        return states

    def _arguments(self, base: nn.Module, ids: torch.Tensor) -> list[Arguments]:
        # Those of a single row, which broadcast to any number.
        with unwatched(base), entering(self._blocks(base)) as (_, arguments):
            type(base).forward(base, input_ids=ids, use_cache=False)
        return arguments

    def _run(self, base: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        # Up to the first edited block and no further.
        caught: list[torch.Tensor] = []

        def stop(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            caught.append(given[0])
            raise _ReachedError

        where = next(iter(self._blocks(base)), self._norm(base))
        with unwatched(base), suppress(_ReachedError):
            where.register_forward_pre_hook(stop)
            type(base).forward(base, input_ids=ids, use_cache=False)
        return caught[0]

    def _norm(self, base: nn.Module) -> nn.Module:
        return self._inside(base, self.parts.final_norm)

    def onward(self, base: nn.Module, states: torch.Tensor) -> torch.Tensor:
        return onward(self._blocks(base), self._norm(base), states, self.arguments[states.shape[1]])


@contextmanager
def unwatched(model: nn.Module) -> Iterator[None]:
    """Let nobody see a run that is for us alone: who watches a module would take it for one of theirs.

    Args:
        model: Its modules have no hooks meanwhile; those registered meanwhile are gone afterwards.

    Yields:
        Nothing.
    """
    noted = [(m, m._forward_hooks, m._forward_pre_hooks) for m in model.modules()]
    try:
        for module, _, _ in noted:
            module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()
        yield
    finally:
        for module, after, before in noted:
            module._forward_hooks, module._forward_pre_hooks = after, before


class _ReachedError(Exception):
    """The block is reached: what comes after it is of no interest."""


def _bare(ids: torch.Tensor) -> list[Any]:
    # Rows without the zeros at their end, which are padding or may be. Wider rows of the same text hold what narrower
    # ones do, for attention is causal.
    rows = ids.cpu().numpy()
    return [row[: int(row.nonzero()[0][-1]) + 1 if row.any() else 1] for row in rows]


@contextmanager
def remembered_below(models: Sequence[nn.Module], edited: Sequence[str]) -> Iterator[int]:
    """Let causal language models that are alike below an edit begin where it begins.

    Only plain runs on token ids are shortened; a run with other inputs, in training mode, or with hooks on what lies
    below goes as it always did. Results differ by rounding alone, as those of batches of other sizes do. Other models
    pass through unchanged.

    Args:
        models: The working model and the one it came from; as before afterwards. What lies below the edit must not
            change meanwhile.
        edited: Names of the parameters that may change.

    Yields:
        How many blocks are passed over; 0 if none.
    """
    try:
        parts = anatomy(models[0])
    except UserError:
        yield 0
        return
    first = lowest_edited(models[0], parts, edited)
    if not first:
        yield 0
        return
    from transformers.modeling_outputs import BaseModelOutputWithPast

    prefix = _Prefix(first, parts)

    def forward(base: nn.Module, *given: Any, **named: Any) -> Any:
        if not prefix.applies(base, given, named):
            return type(base).forward(base, *given, **named)
        states = prefix.onward(base, prefix.entering(base, named["input_ids"]))
        return BaseModelOutputWithPast(last_hidden_state=states)

    bases = list({id(base): base for base in (model.base_model for model in models)}.values())
    if any("forward" in base.__dict__ for base in bases):
        # Somebody has put a forward of their own there, as libraries that spread a model over devices do.
        yield 0
        return
    try:
        for base in bases:
            # A method bound to the module, so that copies of the module get one of their own.
            base.forward = MethodType(forward, base)  # type: ignore[union-attr]
        yield first
    finally:
        for base in bases:
            base.__dict__.pop("forward", None)
