"""Integrated gradients (Sundararajan et al., 2017) of a causal language model's MLP neurons and token embeddings.

What is attributed is log p of the asked-for tokens, summed over a sequence. Logits are computed at the asked positions
only, and what comes after the last of them is not run at all.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from analysis.attribution.anatomy import Anatomy, anatomy
from analysis.attribution.integrated import check_steps, gauss_legendre
from analysis.attribution.onward import Arguments, entering, first_row, onward
from analysis.attribution.running import place, prepare, undisturbed, widened
from analysis.attribution.targets import IGNORED
from analysis.errors import UserError
from analysis.scores import Scores

Baseline = Literal["zero", "mean"]

TOKENS = 1024
"""Tokens per pass: so many copies of sequences as fit run at once. Bounds memory; doesn't change results."""


def ready(
    model: nn.Module, ids: torch.Tensor, labels: torch.Tensor, steps: int, usual: int = 8
) -> tuple[Anatomy, torch.Tensor, torch.Tensor]:
    """Check what an attribution along a path is asked about.

    Args:
        model: A Hugging Face causal language model.
        ids: int64 [n, t].
        labels: int64 [n, t].
        steps: On the path.
        usual: Steps to advise.

    Returns:
        Where the model's parts are, and ids and labels on its device.

    Raises:
        UserError: No step, or no token asked for.
    """
    check_steps(steps, usual)
    parts = anatomy(model)
    ids, labels = prepare(model, ids, labels)
    if not (labels != IGNORED).any():
        raise UserError("No token is asked for; give labels that are not all -100.")
    return parts, ids, labels


def batches(labels: torch.Tensor, copies: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Group sequences of alike length, so many as fit into a pass.

    Args:
        labels: int64 [n, t].
        copies: Of each sequence in a pass.

    Yields:
        Rows, and how many tokens it takes to reach their last asked position.
    """
    position = torch.arange(1, labels.shape[1] + 1, device=labels.device)
    lengths = ((labels != IGNORED) * position).amax(1).clamp_min(1)
    order = lengths.argsort(descending=True, stable=True)
    start = 0
    while start < len(order):
        width = int(lengths[order[start]])
        rows = order[start : start + max(1, TOKENS // (width * copies))]
        yield rows, width
        start += len(rows)


def asked_of(model: nn.Module, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum log p of each sequence's asked tokens; logits are computed at these positions only.

    Args:
        model: A Hugging Face causal language model; only its head runs.
        hidden: Normed states [copies * n, t, width].
        labels: int64 [n, t].

    Returns:
        [copies, n], in nats; differentiable.
    """
    states = hidden.unflatten(0, (-1, len(labels)))
    rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
    logits = model.get_output_embeddings()(states[:, rows, columns])  # type: ignore[operator]
    wanted = labels[rows, columns].expand(len(states), -1)
    logits = widened(logits)
    found = logits.gather(2, wanted[..., None]).squeeze(2) - logits.logsumexp(2)
    return found.new_zeros(len(states), len(labels)).index_add(1, rows, found)


@dataclass(frozen=True)
class _Recorded:
    # One run: what entered each block [n, t, width], the neurons [n, t, neurons], the blocks' further arguments (for
    # one row, so that they broadcast to any number of copies), and the normed states [n, t, width].
    streams: list[torch.Tensor]
    neurons: list[torch.Tensor]
    arguments: list[Arguments]
    normed: torch.Tensor


@torch.no_grad()
def _record(model: nn.Module, parts: Anatomy, ids: torch.Tensor) -> _Recorded:
    neurons: list[torch.Tensor] = []

    def note(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        neurons.append(given[0])

    with ExitStack() as stack:
        streams, arguments = stack.enter_context(entering([model.get_submodule(block) for block in parts.blocks]))
        for down in parts.down:
            stack.callback(model.get_submodule(down).register_forward_pre_hook(note).remove)
        normed = model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # type: ignore[operator]
    return _Recorded(streams, neurons, [first_row(one) for one in arguments], normed)


def _resumed(
    model: nn.Module, parts: Anatomy, run: _Recorded, layer: int, neurons: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    # The target [copies, n] when one layer's neurons are as given, [copies * n, t, neurons]. Starts at that layer's
    # block: nothing below it changes.
    states = run.streams[layer].repeat(len(neurons) // len(labels), 1, 1)
    blocks = [model.get_submodule(one) for one in parts.blocks[layer:]]
    norm = model.get_submodule(parts.final_norm)
    with ExitStack() as stack:
        handle = model.get_submodule(parts.down[layer]).register_forward_pre_hook(lambda *_: (neurons,))
        stack.callback(handle.remove)
        return asked_of(model, onward(blocks, norm, states, run.arguments[layer:]), labels)


def first_held(start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Leave a sequence's first position, which holds the attention sink, where it is.

    Args:
        start: Where a path begins, [n, t, ...].
        end: Where it ends, of the same shape.

    Returns:
        The beginning, with the first position of the end.
    """
    start = start.clone()
    start[:, 0] = end[:, 0]
    return start


def _layer_shares(
    model: nn.Module,
    parts: Anatomy,
    run: _Recorded,
    layer: int,
    start: torch.Tensor,
    labels: torch.Tensor,
    steps: int,
) -> tuple[torch.Tensor, float]:
    # One layer's attributions [neurons], summed over positions and rows, and their residual, summed over rows.
    end = run.neurons[layer]
    start = first_held(start.expand_as(end), end)
    places, weights = gauss_legendre(steps, end)
    points = torch.lerp(start, end, places.view(-1, 1, 1, 1)).flatten(0, 1).requires_grad_()
    (gradients,) = torch.autograd.grad(_resumed(model, parts, run, layer, points, labels).sum(), points)
    mean = torch.einsum("k,kntu->ntu", weights, gradients.unflatten(0, (steps, -1)))
    shares = ((end - start) * mean).sum((0, 1))
    with torch.no_grad():
        gain = asked_of(model, run.normed, labels) - _resumed(model, parts, run, layer, start, labels)
    return shares, float(shares.double().sum() - gain.double().sum())


def _means(model: nn.Module, parts: Anatomy, ids: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    # Each layer's neurons [neurons], averaged over the sequences' tokens up to the last asked position.
    sums: list[torch.Tensor] = []
    count = 0
    for rows, width in batches(labels, 1):
        asked = (labels[rows, :width] != IGNORED).flip(1).cumsum(1).flip(1) > 0
        found = [values[asked].sum(0) for values in _record(model, parts, ids[rows, :width]).neurons]
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
        count += int(asked.sum())
    return [one / count for one in sums]


def neuron_residuals(
    scores: Scores, model: nn.Module, ids: torch.Tensor, labels: torch.Tensor, baseline: Baseline = "zero"
) -> dict[str, float]:
    """Check completeness layer by layer: which layers had enough steps.

    Args:
        scores: What `neuron_integrated_gradients` gave for the other arguments.
        model: As there.
        ids: As there.
        labels: As there.
        baseline: As there.

    Returns:
        By the down projection's name, in nats and averaged over sequences: sum of the layer's attributions - (target
        as it is - target with the layer's neurons at the baseline).
    """
    parts, ids, labels = ready(model, ids, labels, 1)
    gains = dict.fromkeys(scores.values, 0.0)
    with undisturbed(model, parameters=False), torch.no_grad():
        means = _means(model, parts, ids, labels) if baseline == "mean" else None
        for rows, width in batches(labels, 1):
            asked = labels[rows, :width]
            run = _record(model, parts, ids[rows, :width])
            for name in gains:
                layer = parts.down.index(name)
                start = torch.zeros_like(run.neurons[layer])
                if means is not None:
                    start += means[layer]
                start = first_held(start, run.neurons[layer])
                gain = asked_of(model, run.normed, asked) - _resumed(model, parts, run, layer, start, asked)
                gains[name] += float(gain.double().sum()) / len(ids)
    return {name: float(scores.values[name].double().sum()) - gain for name, gain in gains.items()}


def neuron_integrated_gradients(
    model: nn.Module,
    ids: torch.Tensor,
    labels: torch.Tensor,
    steps: int = 8,
    layers: Sequence[str] | None = None,
    baseline: Baseline = "zero",
) -> Scores:
    """Share of each MLP neuron in the mean log-probability of the asked tokens, signed.

    Dai et al. (2022), "Knowledge Neurons in Pretrained Transformers", equation 2, with three deviations: log p instead
    of p, so that answers of several tokens and rare ones count; all positions of the sequence are moved, not only the
    last, but the first stays: it holds the attention sink (Xiao et al. 2024, arXiv:2309.17453), without which there is
    another model (measured: residuals of tens of nats); Gauss-Legendre nodes instead of a Riemann sum, so that a few
    steps do. One layer at a time: its neurons (the input of its down projection) go on a straight line from the
    baseline to what they are, while the layer's own residual stream stays. Positive means that the neuron makes the
    answer likelier. The residual compares with the same patched ends of the path. First layers, without which a model
    breaks down, can need many more steps than the others: look at `neuron_residuals` before ranking across layers.

    `Scores.top` gives a mask with one truth value per neuron by the down projection's name; `neuron_mask_rows` turns
    its bits into a mask over weights.

    Args:
        model: A Hugging Face causal language model; run in evaluation mode and left as it was.
        ids: int64 [n, t], padded on the right.
        labels: int64 [n, t]; the token asked for after each position, -100 where none is.
        steps: Nodes on the path; each costs a forward and a backward pass from the layer on.
        layers: Names from `Anatomy.down`; all of them if not given.
        baseline: Where paths start: "zero", or "mean": each neuron's mean over all tokens up to the last asked ones.

    Returns:
        Scores of kind "unit": by the down projection's name [neurons] in nats, summed over positions and averaged over
        sequences. The residual is that of the layer where it is largest.

    Raises:
        UserError: Fewer than one step, an unknown layer or baseline, labels that don't fit, or no token asked for.
    """
    if baseline not in {"zero", "mean"}:
        raise UserError(f"There is no baseline {baseline!r}; choose zero or mean.")
    parts, ids, labels = ready(model, ids, labels, steps)
    unknown = [name for name in layers or () if name not in parts.down]
    if unknown:
        raise UserError(f"The model has no down projection {unknown[0]!r}; name one such as {parts.down[0]!r}.")
    chosen = [i for i, name in enumerate(parts.down) if layers is None or name in layers]
    shares: dict[int, list[torch.Tensor]] = {layer: [] for layer in chosen}
    residuals = dict.fromkeys(chosen, 0.0)
    with undisturbed(model, parameters=False):
        means = _means(model, parts, ids, labels) if baseline == "mean" else None
        for rows, width in batches(labels, steps):
            asked = labels[rows, :width]
            run = _record(model, parts, ids[rows, :width])
            for layer in chosen:
                start = run.neurons[layer].new_zeros(()) if means is None else means[layer]
                found, residual = _layer_shares(model, parts, run, layer, start, asked, steps)
                shares[layer].append(widened(found))
                residuals[layer] += residual / len(ids)
    values = {parts.down[layer]: (torch.stack(shares[layer]).sum(0) / len(ids)).cpu() for layer in chosen}
    shapes = dict.fromkeys(values, (parts.neurons,))
    return Scores(values, "unit", "neuron-ig", "nats", max(residuals.values(), key=abs), shapes)


def token_integrated_gradients(
    model: nn.Module,
    ids: torch.Tensor,
    labels: torch.Tensor,
    baseline_ids: torch.Tensor | None = None,
    steps: int = 32,
) -> Scores:
    """Share of each token of the input in the log-probability of its sequence's asked tokens, signed.

    Token embeddings go on a straight line from the baseline's to their own; positions stay. From the mean embedding
    the first token stays too, and so gets 0: it holds the attention sink, without which there is another model (see
    `neuron_integrated_gradients`). To see its share, give a baseline with another first token.

    Args:
        model: A Hugging Face causal language model; run in evaluation mode and left as it was.
        ids: int64 [n, t], padded on the right.
        labels: int64 [n, t]; the token asked for after each position, -100 where none is.
        baseline_ids: int64 [n, t], tokens where the paths start; the mean embedding of the vocabulary if not given.
        steps: Gauss-Legendre nodes; each costs a forward and a backward pass.

    Returns:
        Scores of kind "input": "input" holds [n, t] in nats, summed over the embedding's width; 0 behind a sequence's
        last asked position. The residual is that of the sequence where it is largest.

    Raises:
        UserError: Fewer than one step, labels or a baseline that don't fit, or no token asked for.
    """
    parts, ids, labels = ready(model, ids, labels, steps)
    if baseline_ids is not None and baseline_ids.shape != ids.shape:
        raise UserError(
            f"Baseline ids of shape {tuple(baseline_ids.shape)} don't fit ids of shape {tuple(ids.shape)}; "
            "give one baseline token per token."
        )
    embedding = model.get_submodule(parts.embedding)
    others = None if baseline_ids is None else place(model, baseline_ids)

    def target(points: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        hidden = model.base_model(inputs_embeds=points, use_cache=False).last_hidden_state  # type: ignore[operator]
        return asked_of(model, hidden, asked)

    residuals: list[float] = []
    with undisturbed(model, parameters=False):
        mean = embedding.weight.mean(0)  # type: ignore[operator]
        values = mean.new_zeros(ids.shape)
        for rows, width in batches(labels, steps):
            asked, end = labels[rows, :width], embedding(ids[rows, :width])
            start = first_held(mean.expand_as(end), end) if others is None else embedding(others[rows, :width])
            places, weights = gauss_legendre(steps, end)
            points = torch.lerp(start, end, places.view(-1, 1, 1, 1)).flatten(0, 1).requires_grad_()
            (gradients,) = torch.autograd.grad(target(points, asked).sum(), points)
            path = torch.einsum("k,ntkw->ntw", weights, gradients.unflatten(0, (steps, -1)).movedim(0, 2))
            found = ((end - start) * path).sum(2)
            values[rows, :width] = found
            with torch.no_grad():
                at_end, at_start = target(torch.cat([end, start]), asked).double()
            residuals += (found.double().sum(1) - (at_end - at_start)).tolist()
    return Scores({"input": values.cpu()}, "input", "token-ig", "nats", max(residuals, key=abs))
