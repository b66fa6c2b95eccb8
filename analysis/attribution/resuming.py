"""Running a causal language model from any block and any position on, many variants of some prompts at once.

Attention is causal: what changes at one position of one block changes nothing in the blocks below and at the positions
before. So a variant of a prompt needs to be run from that block and that position on only, if what the prompt itself
has there was kept. The tokens of all variants that are under way lie side by side in one row, from whatever prompts
and positions they come, so that a block's matrices are read once for all of them and nothing is padded; attention
alone looks at each variant by itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from analysis.attribution.anatomy import Anatomy
from analysis.attribution.onward import Arguments, entering, leaving
from analysis.errors import UserError

Site = Literal["resid", "attn", "mlp", "head"]

SITES: tuple[Site, ...] = ("resid", "attn", "mlp", "head")
"""The stream entering a block, attention's output, the MLP's output, the heads' outputs side by side."""

RESUMED = "resumed"
"""The name under which transformers knows the attention of variants."""

Seen = Callable[[torch.Tensor], None]
Kept = tuple[torch.Tensor, torch.Tensor]


def at_site(model: nn.Module, parts: Anatomy, site: Site, layer: int, see: Seen) -> RemovableHandle:
    """Look at what passes a site in every forward pass.

    Args:
        model: A causal language model.
        parts: Its anatomy.
        site: Which site.
        layer: Of which block, counted from 0.
        see: Is given the activation [n, t, width], and may change it in place where no gradients are wanted.

    Returns:
        The hook's handle.
    """
    if site in {"resid", "head"}:
        names = parts.blocks if site == "resid" else parts.attention_out
        return model.get_submodule(names[layer]).register_forward_pre_hook(lambda _, given: see(given[0]))
    names = parts.attention if site == "attn" else parts.mlp
    return model.get_submodule(names[layer]).register_forward_hook(lambda _, __, output: see(leaving(output)))


@dataclass(frozen=True)
class Recorded:
    """One run of some prompts.

    Attributes:
        values: By site, each block's activations [n, t, width].
        streams: What enters each block, and behind the last one the final norm, [n, t, width].
        arguments: What else each block was given.
        kept: Each block's keys and values [n, heads, t, width], if wanted.
        leaving: The normed states before the head, [n, t, width].
    """

    values: Mapping[Site, list[torch.Tensor]]
    streams: list[torch.Tensor]
    arguments: list[Arguments]
    kept: list[Kept]
    leaving: torch.Tensor


def record(model: nn.Module, parts: Anatomy, ids: torch.Tensor, sites: Sequence[Site], keys: bool = False) -> Recorded:
    """Run prompts once and keep what passes the sites; with gradients on, all of it is one graph from the embedding on.

    Args:
        model: A causal language model in evaluation mode.
        parts: Its anatomy.
        ids: int64 [n, t], padded on the right.
        sites: Which sites.
        keys: Whether to keep keys and values, which takes `resumable`.

    Returns:
        What was recorded.
    """
    values: dict[Site, list[torch.Tensor]] = {site: [] for site in sites}
    kept: list[Kept] = []

    def root(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        return output.detach().requires_grad_(torch.is_grad_enabled())

    with ExitStack() as stack:
        streams, arguments = stack.enter_context(entering([model.get_submodule(block) for block in parts.blocks]))
        handles = [model.get_submodule(parts.embedding).register_forward_hook(root)]
        for layer in range(len(parts.blocks)):
            handles += [at_site(model, parts, site, layer, found.append) for site, found in values.items()]
        norm = model.get_submodule(parts.final_norm)
        handles.append(norm.register_forward_pre_hook(lambda _, given: streams.append(given[0])))
        for handle in handles:
            stack.callback(handle.remove)
        more = {"keep": kept.append} if keys else {}
        normed = model.base_model(input_ids=ids, use_cache=False, **more).last_hidden_state  # type: ignore[operator]
    return Recorded(values, streams, arguments, kept, normed)


@contextmanager
def resumable(model: nn.Module, parts: Anatomy) -> Iterator[None]:
    """Let a model's attention keep its keys and take variants in one row; everything is as it was afterwards.

    Args:
        model: A causal language model.
        parts: Its anatomy.

    Yields:
        Nothing.

    Raises:
        UserError: Its attention can't be exchanged.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if not getattr(model, "_supports_attention_backend", False):
        raise UserError(
            f"The attention of a {type(model).__name__} can't be resumed, since it doesn't go through transformers' "
            "AttentionInterface; use attribution_patching, which runs the model as it is."
        )
    AttentionInterface.register(RESUMED, _attention)
    AttentionMaskInterface.register(RESUMED, sdpa_mask)
    configs: dict[int, Any] = {}
    for name in parts.attention:
        config = model.get_submodule(name).config
        configs[id(config)] = config
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = RESUMED
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name


@dataclass(frozen=True)
class Variant:
    """A recorded prompt with one activation of another one.

    Attributes:
        prompt: Row of the recording that is varied.
        source: Row from which the activation is.
        site: Which activation.
        layer: Of which block.
        start: First position that has it.
        stop: One behind the last position that has it.
        head: Which head, for the site "head".
    """

    prompt: int
    source: int
    site: Site
    layer: int
    start: int
    stop: int
    head: int = 0


@dataclass(frozen=True)
class _Group:
    # Variants that are run at the same positions of equally long prompts, one after the other in the row of tokens:
    # their numbers, and the recorded prompts that they continue.
    start: int
    stop: int
    length: int
    members: list[int]
    prompts: list[int]

    @property
    def width(self) -> int:
        return self.stop - self.start

    @property
    def tokens(self) -> int:
        return len(self.members) * self.width


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    keep: Callable[[Kept], None] | None = None,
    resumed: tuple[Sequence[_Group], Kept] | None = None,
    **named: Any,
) -> tuple[torch.Tensor, None]:
    # Plain attention, or that of each variant over its prompt's tokens before its own, and its own: then all variants
    # come in one row, [1, heads, tokens, head width].
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if keep is not None:
        keep((key, value))
    if resumed is None:
        return attend(module, query, key, value, attention_mask, **named)
    groups, kept = resumed
    found, begin = [], 0
    for group in groups:
        mine = slice(begin, begin := begin + group.tokens)
        q, k, v = (one[0, :, mine].unflatten(1, (-1, group.width)).transpose(0, 1) for one in (query, key, value))
        if group.start:
            before = [one[group.prompts, :, : group.start] for one in kept]
            k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
        if attention_mask is None:
            mask = torch.ones(group.width, group.stop, dtype=torch.bool, device=q.device).tril(group.start)[None, None]
        else:
            mask = attention_mask[:1, :, group.start : group.stop, : group.stop]
        out, _ = attend(module, q, k, v, mask, **named)
        found.append(out.flatten(0, 1))
    return torch.cat(found)[None], None


def _placed(argument: Any, places: torch.Tensor) -> Any:
    # A block's argument for one row of tokens from those positions; four dimensions are a mask's, which attention cuts.
    if isinstance(argument, tuple):
        return tuple(_placed(one, places) for one in argument)
    if isinstance(argument, dict):
        return {name: _placed(one, places) for name, one in argument.items()}
    if isinstance(argument, torch.Tensor) and argument.dim() in {2, 3}:
        return argument[:1].index_select(1, places)
    return argument


def _arrange(
    groups: Sequence[_Group],
    row: torch.Tensor,
    entering: torch.Tensor,
    lengths: Sequence[int],
    joining: Mapping[int, Variant],
) -> tuple[list[_Group], torch.Tensor]:
    # The row of tokens [tokens, width] before a block: those under way, up to their prompts' ends now, and those that
    # join, with what the prompts have, at those positions at which the block makes a difference to them.
    found: dict[tuple[int, int, int], list[tuple[list[int], list[int], torch.Tensor]]] = {}
    for group, streams in zip(groups, row.split([group.tokens for group in groups]), strict=True):
        streams = streams.unflatten(0, (-1, group.width))
        if group.stop < group.length:
            streams = torch.cat([streams, entering[group.prompts, group.stop : group.length]], 1)
        found.setdefault((group.start, group.length, group.length), []).append((group.members, group.prompts, streams))
    new: dict[tuple[int, int, int], list[int]] = {}
    for number, one in joining.items():
        length = lengths[one.prompt]
        new.setdefault((one.start, length if one.site == "resid" else one.stop, length), []).append(number)
    for (start, stop, length), members in new.items():
        prompts = [joining[number].prompt for number in members]
        found.setdefault((start, stop, length), []).append((members, prompts, entering[prompts, start:stop]))
    groups = [
        _Group(*key, [number for one in pieces for number in one[0]], [prompt for one in pieces for prompt in one[1]])
        for key, pieces in found.items()
    ]
    return groups, torch.cat([streams.flatten(0, 1) for pieces in found.values() for _, _, streams in pieces])


def _swap(source: torch.Tensor, heads: int, patches: Sequence[tuple[int, int, int, int]]) -> Seen:
    # Gives tokens of the row, or one head of each, what a recording [n, t, width] has: (token, prompt, position, head).
    tokens, prompts, positions, which = torch.tensor(patches, device=source.device).unbind(1)
    values = source.unflatten(2, (heads, -1))[prompts, positions, which]

    def see(row: torch.Tensor) -> None:
        row.unflatten(2, (heads, -1))[0, tokens, which] = values

    return see


def _swaps(
    groups: Sequence[_Group], joining: Mapping[int, Variant], run: Recorded, layer: int, heads: int
) -> dict[Site, Seen]:
    # What the variants that join at a block have from elsewhere, by site.
    found: dict[Site, list[tuple[int, int, int, int]]] = {}
    begin = 0
    for group in groups:
        for place, number in enumerate(group.members):
            if number in joining:
                one = joining[number]
                token = begin + place * group.width - one.start
                found.setdefault(one.site, []).extend(
                    (token + position, one.source, position, one.head) for position in range(one.start, one.stop)
                )
        begin += group.tokens
    return {
        site: _swap(run.values[site][layer], heads if site == "head" else 1, patches) for site, patches in found.items()
    }


def _lasts(groups: Sequence[_Group]) -> torch.Tensor:
    # The token of the row with which each variant ends, group by group.
    widths = [group.width for group in groups for _ in group.members]
    return torch.tensor(widths).cumsum(0) - 1


def _narrow(module: nn.Module, tokens: torch.Tensor, size: int) -> list[RemovableHandle]:
    # Runs a module that looks at each token by itself on some tokens of the row only, and gives the others 0. What
    # already looks at what enters or leaves the module still sees the whole row.
    def some(_: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (given[0][:, tokens], *given[1:])

    def whole(_: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        new = output.new_zeros(1, size, output.shape[2])
        new[:, tokens] = output
        return new

    return [module.register_forward_pre_hook(some), module.register_forward_hook(whole, prepend=True)]


def resume(
    model: nn.Module, parts: Anatomy, run: Recorded, lengths: Sequence[int], variants: Sequence[Variant]
) -> torch.Tensor:
    """Run variants of recorded prompts, each from its own block and position on; within `resumable`, without gradients.

    Args:
        model: A causal language model in evaluation mode.
        parts: Its anatomy.
        run: Has the variants' prompts, their sources and their sites, and keys and values.
        lengths: Tokens of each recorded prompt, what it is padded with not counted.
        variants: At least one. All of them are under way together in the last block.

    Returns:
        Normed state after the last token of each, [variants, width].
    """
    groups: list[_Group] = []
    row = run.streams[0].new_empty(0, run.streams[0].shape[2])
    places = torch.empty(0)
    depth = len(parts.blocks)
    for layer in range(min(one.layer for one in variants), depth):
        joining = {number: one for number, one in enumerate(variants) if one.layer == layer}
        if joining or any(group.stop < group.length for group in groups):
            groups, row = _arrange(groups, row, run.streams[layer], lengths, joining)
            positions = [torch.arange(group.start, group.stop).repeat(len(group.members)) for group in groups]
            places = torch.cat(positions).to(row.device)
        given, named = (_placed(arguments, places) for arguments in run.arguments[layer])
        with ExitStack() as stack:
            for site, swap in _swaps(groups, joining, run, layer, parts.heads).items():
                stack.callback(at_site(model, parts, site, layer, swap).remove)
            if layer == depth - 1:
                # Behind the last attention only the variants' last tokens count.
                lasts = _lasts(groups).to(row.device)
                for name in (parts.attention_out[layer], parts.mlp[layer]):
                    for handle in _narrow(model.get_submodule(name), lasts, len(row)):
                        stack.callback(handle.remove)
            block = model.get_submodule(parts.blocks[layer])
            output = block(row[None], *given, **named | {"keep": None, "resumed": (groups, run.kept[layer])})
        row = leaving(output)[0]
    groups, row = _arrange(groups, row, run.streams[depth], lengths, {})
    order = torch.tensor([number for group in groups for number in group.members]).argsort()
    return model.get_submodule(parts.final_norm)(row[_lasts(groups)[order].to(row.device)])
