"""Conductance (Dhamdhere et al. 2018, "How important is a neuron?"): what flows through the neurons of all layers.

The input alone moves, on a straight line from the baseline to what it is, and everything behind it follows. A neuron's
conductance of the target F is the integral of dF/dy dy along that path, y being the neuron. With y at all points of the
path at hand, no derivative of it is needed (Shrikumar et al. 2018, "Computationally efficient measures of internal
neuron importance"): steps of y times gradients at y, which one forward and one backward pass per point give for every
neuron of every layer. Here a step is taken times the mean of the gradients at its ends, at no further cost.

Integrated gradients of a layer (`integrated`, `language_ig`) ask something else: there the layer's neurons move and all
that bypasses them stays, so that each layer is a path of its own and has to be run by itself.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from analysis.attribution.integrated import PASSES, check_steps, path_start
from analysis.attribution.language_ig import asked_of, batches, first_held, ready
from analysis.attribution.layers import unit_axis, unit_layers
from analysis.attribution.running import place, prepare, run, undisturbed
from analysis.attribution.targets import Target, logit
from analysis.errors import UserError
from analysis.scores import Scores

Caught = dict[str, list[torch.Tensor]]


def _points(start: torch.Tensor, end: torch.Tensor, steps: int) -> torch.Tensor:
    # Both ends and what lies between them, [(steps + 1) * n, ...].
    places = torch.linspace(0, 1, steps + 1, dtype=end.dtype, device=end.device)
    return torch.lerp(start, end, places.view(-1, *[1] * end.dim())).flatten(0, 1).requires_grad_()


def _flows(values: torch.Tensor, gradients: torch.Tensor, steps: int) -> torch.Tensor:
    # What flows through each entry of a state: its steps times the gradient on either side of them, [n, ...].
    values, gradients = (one.detach().unflatten(0, (steps + 1, -1)) for one in (values, gradients))
    return (values.diff(dim=0) * (gradients[1:] + gradients[:-1])).sum(0) / 2


@contextmanager
def _caught(model: nn.Module, layers: Sequence[str], entering: bool) -> Iterator[Caught]:
    # What enters layers, or comes out of them, while the model runs, with its graph.
    found: Caught = {layer: [] for layer in layers}

    def before(layer: str) -> Callable[..., None]:
        return lambda _, given: found[layer].append(given[0])

    def behind(layer: str) -> Callable[..., torch.Tensor]:
        def hook(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
            found[layer].append(output)
            # A copy goes on, because a ReLU that works in place may follow.
            return output.clone()

        return hook

    with ExitStack() as stack:
        for layer in layers:
            module = model.get_submodule(layer)
            stack.callback(
                module.register_forward_pre_hook(before(layer)).remove
                if entering
                else module.register_forward_hook(behind(layer)).remove
            )
        yield found


def _passed(
    totals: torch.Tensor, points: torch.Tensor, caught: Caught, steps: int
) -> tuple[dict[str, list[torch.Tensor]], torch.Tensor]:
    # Flows through what was caught, call by call, and how far those through the input miss the target's gain [n].
    calls = [(layer, call) for layer, mine in caught.items() for call in mine]
    wanted = [points, *(call for _, call in calls)]
    gradients = torch.autograd.grad(totals.sum(), wanted, allow_unused=True, materialize_grads=True)
    flows: dict[str, list[torch.Tensor]] = {layer: [] for layer in caught}
    for (layer, call), gradient in zip(calls, gradients[1:], strict=True):
        flows[layer].append(_flows(call, gradient, steps))
    ends = totals.detach().view(steps + 1, -1)
    gap = _flows(points, gradients[0], steps).flatten(1).double().sum(1) - (ends[-1] - ends[0]).double()
    return flows, gap


def unit_conductance(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    layers: Sequence[str] | None = None,
    baseline_images: torch.Tensor | None = None,
    target: Target = logit,
    steps: int = 64,
) -> Scores:
    """Conductance of each neuron and channel in the mean target, signed; all layers in the same passes.

    The units of a layer that everything passes through share out what the target gains from the baseline to the images;
    those of a layer that something bypasses share out what flows through it.

    Args:
        model: Any module; run in evaluation mode and left as it was.
        images: Floating-point inputs [n, ...].
        labels: int64 [n], or [n, t] for sequence models.
        layers: Names of modules; every one with weights of two or more dimensions if not given.
        baseline_images: Inputs where the paths start, of a shape that expands to that of `images`; zeros if not given.
        target: The per-sample scalar.
        steps: Of the path; it has one point more, and each costs a forward and a backward pass, whatever the number of
            layers.

    Returns:
        Scores of kind "unit": by layer [units] in the target's units, mean over samples and sum over positions and
        calls. The residual is that of the input: the mean of what flows through it, less the target's gain.

    Raises:
        UserError: Fewer than one step, integer inputs, an unknown layer, or a baseline that doesn't fit.
    """
    check_steps(steps)
    if not images.is_floating_point():
        raise UserError("Integers such as token ids have no path; `neuron_conductance` moves embeddings instead.")
    images, labels = prepare(model, images, labels)
    start = path_start(model, images, baseline_images)
    size = max(1, PASSES // (steps + 1))
    gap = 0.0
    with undisturbed(model, parameters=False):
        chosen = unit_layers(model, images, layers)
        axes = {layer: unit_axis(model.get_submodule(layer)) for layer in chosen}
        values: dict[str, torch.Tensor] = {}
        for x, b, y in zip(images.split(size), start.split(size), labels.split(size), strict=True):
            points = _points(b, x, steps)
            with _caught(model, chosen, entering=False) as caught:
                totals = target(run(model, points), y.repeat(steps + 1, *[1] * (y.dim() - 1)))
            flows, gaps = _passed(totals, points, caught, steps)
            gap += float(gaps.sum()) / len(images)
            for layer, calls in flows.items():
                found = torch.stack([flow.movedim(axes[layer], 0).flatten(1).sum(1) for flow in calls]).sum(0)
                values[layer] = values.get(layer, 0) + found / len(images)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    values = {layer: value.cpu() for layer, value in values.items()}
    return Scores(values, "unit", "unit-conductance", "target", gap, shapes)


def neuron_conductance(
    model: nn.Module,
    ids: torch.Tensor,
    labels: torch.Tensor,
    baseline_ids: torch.Tensor | None = None,
    steps: int = 64,
    layers: Sequence[str] | None = None,
) -> Scores:
    """Conductance of each MLP neuron in the mean log-probability of the asked tokens, signed; all layers at once.

    Token embeddings go on a straight line from the baseline's to their own, and all layers' neurons (the inputs of down
    projections) follow. The first position stays, as in `neuron_integrated_gradients`: it holds the attention sink, and
    a path along which that goes is far too rough (measured on SmolLM2 with 64 steps: a residual of 19 nats, 0.08 with
    the sink in place). The residual stream bypasses every MLP, so that a layer's neurons share out only what flows
    through them. `Scores.top` and `neuron_mask_rows` make a mask of them.

    Args:
        model: A Hugging Face causal language model; run in evaluation mode and left as it was.
        ids: int64 [n, t], padded on the right.
        labels: int64 [n, t]; the token asked for after each position, -100 where none is.
        baseline_ids: int64 [n, t], tokens where the paths start; the mean embedding of the vocabulary if not given.
        steps: Of the path; it has one point more, and each costs a forward and a backward pass, whatever the number of
            layers.
        layers: Names from `Anatomy.down`; all of them if not given.

    Returns:
        Scores of kind "unit": by the down projection's name [neurons] in nats, summed over positions and averaged over
        sequences. The residual is that of the sequence where what flows through the embeddings misses the target's
        gain most.

    Raises:
        UserError: Fewer than one step, an unknown layer, labels or a baseline that don't fit, or no token asked for.
    """
    parts, ids, labels = ready(model, ids, labels, steps, 64)
    unknown = [name for name in layers or () if name not in parts.down]
    if unknown:
        raise UserError(f"The model has no down projection {unknown[0]!r}; name one such as {parts.down[0]!r}.")
    if baseline_ids is not None and baseline_ids.shape != ids.shape:
        raise UserError(
            f"Baseline ids of shape {tuple(baseline_ids.shape)} don't fit ids of shape {tuple(ids.shape)}; "
            "give one baseline token per token."
        )
    others = None if baseline_ids is None else place(model, baseline_ids)
    chosen = [name for name in parts.down if layers is None or name in layers]
    embedding = model.get_submodule(parts.embedding)
    gaps: list[float] = []
    with undisturbed(model, parameters=False):
        mean = embedding.weight.mean(0)  # type: ignore[operator]
        values = {name: mean.new_zeros(parts.neurons) for name in chosen}
        for rows, width in batches(labels, steps + 1):
            end = embedding(ids[rows, :width])
            start = mean.expand_as(end) if others is None else embedding(others[rows, :width])
            points = _points(first_held(start, end), end, steps)
            with _caught(model, chosen, entering=True) as caught:
                hidden = model.base_model(inputs_embeds=points, use_cache=False).last_hidden_state  # type: ignore[operator]
            flows, gap = _passed(asked_of(model, hidden, labels[rows, :width]), points, caught, steps)
            gaps += gap.tolist()
            for name, calls in flows.items():
                values[name] += torch.stack([flow.sum((0, 1)) for flow in calls]).sum(0) / len(ids)
    shapes = dict.fromkeys(values, (parts.neurons,))
    values = {name: value.cpu() for name, value in values.items()}
    return Scores(values, "unit", "neuron-conductance", "nats", max(gaps, key=abs), shapes)
