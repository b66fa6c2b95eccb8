"""Activation patching in causal language models: what each place carries, exactly and to first order.

Heimersheim and Nanda (2024), "How to use and interpret activation patching"; Nanda (2023), "Attribution patching:
activation patching at industrial scale".
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from analysis.attribution.anatomy import Anatomy, anatomy
from analysis.attribution.patching import Direction
from analysis.attribution.running import place, undisturbed
from analysis.errors import UserError

Site = Literal["resid", "attn", "mlp", "head"]

SITES: tuple[Site, ...] = ("resid", "attn", "mlp", "head")
POINTS: Mapping[str, str] = {
    "resid": "hook_resid_pre",
    "attn": "hook_attn_out",
    "mlp": "hook_mlp_out",
    "head": "attn.hook_z",
}
"""transformer-lens' hook of each site within a block."""

CELLS = 64
SMALLEST = 1e-6


@dataclass(frozen=True)
class PatchingMap:
    """What single places of a model restore (denoising) or break (noising), for one pair of prompts.

    0 means no effect and 1 the whole difference between the two runs; values can be negative or above 1.

    Attributes:
        values: By site. "resid" (the residual stream entering a block), "attn" (attention output) and "mlp" (MLP
            output): [layers, positions]; "head" (a head's output before the output projection, at all positions):
            [layers, heads].
        direction: "denoising": the corrupt run with one clean place; "noising": the clean run with one corrupt place.
        method: "exact", or "first-order" from gradients.
        clean: log p(answer) - log p(wrong) of the clean prompt, in nats.
        corrupt: The same of the corrupt prompt.
    """

    values: Mapping[str, torch.Tensor]
    direction: Direction
    method: Literal["exact", "first-order"]
    clean: float
    corrupt: float


def equal_length_pairs(
    clean: Sequence[Sequence[int]], variants: Sequence[Sequence[Sequence[int]]]
) -> list[tuple[int, int]]:
    """Find the pairs of prompts that can be patched: equally long, and not the same.

    Args:
        clean: Ids of the clean prompts.
        variants: For each clean prompt, the ids of its corrupt variants.

    Returns:
        For each usable pair the numbers of the clean prompt and of its variant, in order.

    Raises:
        UserError: There is none.
    """
    found = [
        (number, i)
        for number, (prompt, others) in enumerate(zip(clean, variants, strict=True))
        for i, other in enumerate(others)
        if len(other) == len(prompt) and list(other) != list(prompt)
    ]
    if not found:
        raise UserError("No corrupt prompt has as many tokens as its clean one; give variants of the same length.")
    return found


def _prepare(
    model: nn.Module, clean: torch.Tensor, corrupt: torch.Tensor, answer: int, wrong: int, sites: Iterable[str],
    direction: str,
) -> tuple[Anatomy, torch.Tensor, torch.Tensor]:  # fmt: skip
    parts = anatomy(model)
    if direction not in {"denoising", "noising"}:
        raise UserError(f"There is no patching direction {direction!r}; choose denoising or noising.")
    unknown = [site for site in sites if site not in SITES]
    if unknown:
        raise UserError(f"There is no patching site {unknown[0]!r}; choose from {', '.join(SITES)}.")
    if clean.dim() != 1 or clean.shape != corrupt.shape or not len(clean):
        raise UserError(
            f"Prompts of shape {tuple(clean.shape)} and {tuple(corrupt.shape)} can't be patched; "
            "give the ids of two single prompts of the same length."
        )
    if answer == wrong:
        raise UserError(
            "The right and the wrong answer begin with the same token; choose a wrong answer that begins otherwise."
        )
    return parts, place(model, clean), place(model, corrupt)


def _alike(clean: float, corrupt: float) -> bool:
    return not abs(clean - corrupt) > SMALLEST * (abs(clean) + abs(corrupt))


def _nothing(lead: float) -> str:
    return (
        f"The answer leads by {lead:.3g} nats after the clean and the corrupt prompt alike, so nothing can be "
        "restored; choose another pair."
    )


def _lead(logits: torch.Tensor, answer: int, wrong: int) -> torch.Tensor:
    # log p(answer) - log p(wrong) after the last position: the normaliser cancels.
    return logits[:, -1, answer] - logits[:, -1, wrong]


def _bridge(model: nn.Module) -> Any:
    # On a copy, since the bridge replaces modules of what it wraps.
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    name = type(model).__name__
    if name not in SUPPORTED_ARCHITECTURES:
        raise UserError(f"transformer-lens doesn't know a {name}; use attribution_patching, which needs no bridge.")
    wrapped = copy.deepcopy(model).eval().requires_grad_(False)
    return build_bridge_from_module(wrapped, name, hf_config=wrapped.config, tokenizer=None)


def _patch(site: str, source: torch.Tensor, rows: list[int], places: list[int]) -> Callable[..., torch.Tensor]:
    # A hook that gives copy rows[i] of the prompt the source's value at place places[i] (head, or position).
    def hook(activation: torch.Tensor, hook: object) -> torch.Tensor:
        new = activation.clone()
        if site == "head":
            new[rows, :, places] = source[0, :, places].transpose(0, 1)
        else:
            new[rows, places] = source[0, places]
        return new

    return hook


def activation_patching(
    model: nn.Module,
    clean_ids: torch.Tensor,
    corrupt_ids: torch.Tensor,
    answer: int,
    wrong: int,
    sites: Sequence[Site] = SITES,
    direction: Direction = "denoising",
    cells: int = CELLS,
) -> PatchingMap:
    """Exact causal effect of every place of a model, one at a time, on one pair of prompts.

    With F = log p(answer) - log p(wrong) after the prompt's last token: denoising gives (F(corrupt with the place's
    clean value) - F(corrupt)) / (F(clean) - F(corrupt)), noising (F(clean) - F(clean with the place's corrupt value)) /
    (F(clean) - F(corrupt)).

    Args:
        model: A Hugging Face causal language model that transformer-lens knows; not changed, a copy is wrapped.
        clean_ids: int64 [t], a prompt that the model continues with the answer.
        corrupt_ids: int64 [t], an equally long one about something else.
        answer: First token of the right answer to the clean prompt.
        wrong: First token of another answer, usually the right one to the corrupt prompt.
        sites: Any of "resid", "attn", "mlp" and "head".
        direction: "denoising" or "noising".
        cells: Patched copies of the prompt per forward pass. Doesn't change the result.

    Returns:
        One map per site.

    Raises:
        UserError: Prompts of different length, an unknown site or direction, answers that begin alike, a model that
            transformer-lens doesn't know, or the same F on both sides.
    """
    parts, clean, corrupt = _prepare(model, clean_ids, corrupt_ids, answer, wrong, sites, direction)
    bridge = _bridge(model)
    base, other = (corrupt, clean) if direction == "denoising" else (clean, corrupt)
    layers = len(parts.blocks)
    points = {(site, layer): f"blocks.{layer}.{POINTS[site]}" for site in sites for layer in range(layers)}
    values: dict[str, torch.Tensor] = {}
    # Attention is causal, so the head is needed at the last position only.
    keep = {"logits_to_keep": 1}
    with torch.inference_mode(False), torch.no_grad():
        at_base = _lead(bridge(base[None], **keep), answer, wrong).double()
        out, source = bridge.run_with_cache(other[None], names_filter=list(points.values()), **keep)
        gain = _lead(out, answer, wrong).double() - at_base
        if _alike(float(at_base + gain), float(at_base)):
            raise UserError(_nothing(float(at_base)))
        for site in sites:
            across = parts.heads if site == "head" else len(base)
            found = []
            for some in torch.arange(layers * across).split(cells):
                where: dict[int, tuple[list[int], list[int]]] = {}
                for row, cell in enumerate(some.tolist()):
                    rows, places = where.setdefault(cell // across, ([], []))
                    rows.append(row)
                    places.append(cell % across)
                hooks = [
                    (points[site, layer], _patch(site, source[points[site, layer]], *mine))
                    for layer, mine in where.items()
                ]
                out = bridge.run_with_hooks(base.repeat(len(some), 1), fwd_hooks=hooks, **keep)
                found.append((_lead(out, answer, wrong).double() - at_base) / gain)
            values[site] = torch.cat(found).view(layers, across).to(out.dtype).cpu()
    first, second = float(at_base), float(at_base + gain)
    ends = (second, first) if direction == "denoising" else (first, second)
    return PatchingMap(values, direction, "exact", *ends)


def _watched(
    model: nn.Module, parts: Anatomy, ids: torch.Tensor, answer: int, wrong: int
) -> tuple[torch.Tensor, dict[str, list[torch.Tensor]]]:
    # The lead and, by site, each layer's activations [1, t, ...], all part of one graph.
    caught: dict[str, list[torch.Tensor]] = {site: [] for site in SITES}

    def root(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        return output.detach().requires_grad_()

    def entering(site: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            caught[site].append(given[0])

        return hook

    def leaving(site: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            caught[site].append(output if isinstance(output, torch.Tensor) else output[0])

        return hook

    with ExitStack() as stack:
        handles = [model.get_submodule(parts.embedding).register_forward_hook(root)]
        for names, site in ((parts.blocks, "resid"), (parts.attention_out, "head")):
            handles += [model.get_submodule(name).register_forward_pre_hook(entering(site)) for name in names]
        for names, site in ((parts.attention, "attn"), (parts.mlp, "mlp")):
            handles += [model.get_submodule(name).register_forward_hook(leaving(site)) for name in names]
        for handle in handles:
            stack.callback(handle.remove)
        hidden = model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state  # type: ignore[operator]
    logits = model.get_output_embeddings()(hidden[:, -1:])  # type: ignore[operator]
    return _lead(logits, answer, wrong).squeeze(0), caught


def attribution_patching(
    model: nn.Module,
    clean_ids: torch.Tensor,
    corrupt_ids: torch.Tensor,
    answer: int,
    wrong: int,
    sites: Sequence[Site] = SITES,
    direction: Direction = "denoising",
) -> PatchingMap:
    """Guess what `activation_patching` would give, to first order: two forward passes and one backward pass in all.

    Each place's change of activation times the gradient of F, taken on the run that would be patched (Nanda 2023).
    Reliable for small changes such as a head's, poor for large ones such as the residual stream's: compare with
    `rank_correlation`.

    Args:
        model: A Hugging Face causal language model; run in evaluation mode and left as it was.
        clean_ids: As for `activation_patching`.
        corrupt_ids: As there.
        answer: As there.
        wrong: As there.
        sites: As there.
        direction: As there.

    Returns:
        One map per site.

    Raises:
        UserError: As `activation_patching`, but any model goes that `anatomy` knows.
    """
    parts, clean, corrupt = _prepare(model, clean_ids, corrupt_ids, answer, wrong, sites, direction)
    base, other = (corrupt, clean) if direction == "denoising" else (clean, corrupt)
    with undisturbed(model, parameters=False):
        at_base, here = _watched(model, parts, base, answer, wrong)
        flat = [activation for site in sites for activation in here[site]]
        gradients = iter(torch.autograd.grad(at_base, flat))
        with torch.no_grad():
            at_other, there = _watched(model, parts, other, answer, wrong)
            at_base = at_base.detach()
            gain = at_other - at_base
            if _alike(float(at_other), float(at_base)):
                raise UserError(_nothing(float(at_base)))
            values: dict[str, torch.Tensor] = {}
            for site in sites:
                pairs = zip(here[site], there[site], strict=True)
                effects = torch.stack([((b - a) * next(gradients))[0] for a, b in pairs]) / gain
                if site == "head":
                    values[site] = effects.unflatten(2, (parts.heads, parts.head_width)).sum((1, 3)).cpu()
                else:
                    values[site] = effects.sum(2).cpu()
    ends = (float(at_other), float(at_base)) if direction == "denoising" else (float(at_base), float(at_other))
    return PatchingMap(values, direction, "first-order", *ends)


def rank_correlation(exact: PatchingMap, approximate: PatchingMap) -> dict[str, float]:
    """Compare two maps of one pair by rank.

    Args:
        exact: One map.
        approximate: The other.

    Returns:
        Spearman's rho over all cells, by site that both have, in [-1, 1]; NaN where a map is constant.
    """
    from scipy.stats import spearmanr

    found = {}
    for site, values in exact.values.items():
        if site in approximate.values:
            first, second = values.flatten().numpy(), approximate.values[site].flatten().numpy()
            flat = (first == first[0]).all() or (second == second[0]).all()
            found[site] = float("nan") if flat else float(spearmanr(first, second).statistic)
    return found
