"""Which connections tell samples to forget from samples to keep, by what flows through them; no gradient needed.

A probe on a hidden layer reads the class from what the layer's connections carry, whether or not the output uses it.
Gradients of the output can't see that part; the difference between the mean inputs of a connection can.
"""

from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import nn

from analysis.attribution.running import place, run, undisturbed
from analysis.errors import UserError
from analysis.scores import Scores

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CHUNK = 1024


def _weighted(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    # Parametrised layers (weight norm) have no weight of their own to score.
    plain = (nn.Linear, *CONVOLUTIONS)
    return ((n, m) for n, m in model.named_modules() if isinstance(m, plain) and "weight" in m._parameters)


@torch.no_grad()
def _mean_inputs(model: nn.Module, images: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    # Mean input over samples of every call of every layer.
    sums: dict[str, list[torch.Tensor]] = {}
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model, parameters=False))
        for part in place(model, images).split(CHUNK):
            calls: dict[str, list[torch.Tensor]] = {}
            with ExitStack() as hooks:
                for name, module in _weighted(model):

                    def hook(
                        _: nn.Module,
                        inputs: tuple[torch.Tensor, ...],
                        named: dict[str, torch.Tensor],
                        name: str = name,
                        calls: dict[str, list[torch.Tensor]] = calls,
                    ) -> None:
                        calls.setdefault(name, []).append((*inputs, *named.values())[0].sum(0) / len(images))

                    hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
                with torch.no_grad():
                    run(model, part)
            for name, found in calls.items():
                before = sums.get(name)
                sums[name] = found if before is None else [a + b for a, b in zip(before, found, strict=True)]
    return sums


def _apart(module: nn.Module, gone: list[torch.Tensor], kept: list[torch.Tensor]) -> torch.Tensor:
    # Root mean square, over positions and calls, of the difference of each input's means.
    axis = 0 if isinstance(module, CONVOLUTIONS) else -1
    moved = [(a - b).square().movedim(axis, 0) for a, b in zip(gone, kept, strict=True)]
    squares = [one.reshape(len(one), -1) for one in moved]
    return torch.cat(squares, 1).mean(1).sqrt()


def contrast(model: nn.Module, forget: torch.Tensor, retain: torch.Tensor) -> Scores:
    """Rank connections by how differently they are fed by samples to forget and samples to keep.

    |w_ij| * rms_p |E_forget x_jp - E_retain x_jp|, x_jp being input j of the layer at position p (of a feature map
    or sequence; there is one for plain vectors). Like the pruning score |w| * ||x|| (Wanda, Sun et al. 2024,
    arXiv:2306.11695), with the norm of the difference between two sets in the place of the norm on one.

    Args:
        model: Any module; run in evaluation mode and left as it was. Linear layers and convolutions are scored.
        forget: Inputs to forget [n, ...].
        retain: Inputs to keep [m, ...], of the same shape.

    Returns:
        Scores of kind "parameter" in units of the layer's output, at least 0; 0 for biases, which are fed alike,
        and for parameters of other layers.

    Raises:
        UserError: One of the sets is empty.
    """
    if not (len(forget) and len(retain)):
        raise UserError("A contrast needs samples to forget and samples to keep; give at least one of each.")
    gone, kept = _mean_inputs(model, forget), _mean_inputs(model, retain)
    values = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    owners = {id(p): name for name, p in model.named_parameters()}
    for name, module in _weighted(model):
        if name in gone:
            weight = module.get_parameter("weight")
            each = _apart(module, gone[name], kept[name])
            if isinstance(module, CONVOLUTIONS):
                each = each.view(module.groups, -1).repeat_interleave(len(weight) // module.groups, 0)
                each = each.view(*weight.shape[:2], *[1] * (weight.dim() - 2))
            values[owners[id(weight)]] += weight.detach().abs() * each
    return Scores({name: value.cpu() for name, value in values.items()}, "parameter", "contrast", "output")


def rank_sum(first: Scores, second: Scores, measure: str) -> Scores:
    """Combine two scores whose units can't be compared: the sum of each entry's ranks (Borda count).

    Args:
        first: Of kind "parameter".
        second: Of the same parameters.
        measure: Name of the combination.

    Returns:
        Sums of ranks over all entries, each from 0 (lowest) to 1; ties are ranked in the order of the entries.

    Raises:
        UserError: The two belong to different models.
    """
    if {n: v.shape for n, v in first.values.items()} != {n: v.shape for n, v in second.values.items()}:
        raise UserError("The two scores belong to different models; compute both on the same one.")
    ranks = [_ranks(scores) for scores in (first, second)]
    return Scores({name: ranks[0][name] + ranks[1][name] for name in first.values}, "parameter", measure, "1")


def _ranks(scores: Scores) -> dict[str, torch.Tensor]:
    flat = torch.cat([value.flatten() for value in scores.values.values()])
    place_of = torch.empty(len(flat), dtype=torch.float64)
    place_of[flat.argsort(stable=True)] = torch.linspace(0, 1, len(flat), dtype=torch.float64)
    parts = place_of.split([value.numel() for value in scores.values.values()])
    return {name: part.view(scores.values[name].shape) for name, part in zip(scores.values, parts, strict=True)}
