"""One forward pass recorded, so that a backward pass gives every layer's per-sample gradients."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from analysis.attribution.per_sample import Use, gradient
from analysis.attribution.running import run


@dataclass(frozen=True)
class Call:
    """One call of a module with parameters of its own.

    Attributes:
        module: The module.
        a: Its input.
        edge: Where its output enters the autograd graph. It stays that of the output even when a ReLU that works in
            place follows.
    """

    module: nn.Module
    a: torch.Tensor
    edge: GradientEdge


@dataclass(frozen=True)
class Plan:
    """How far a model can be differentiated layer by layer.

    Attributes:
        good: Names of the parameters whose per-sample gradients come out right.
        alone: Names of modules that run once for a whole batch, without a row per sample.
    """

    good: frozenset[str]
    alone: frozenset[str] = frozenset()


@contextmanager
def recording(model: nn.Module, n: int, alone: frozenset[str]) -> Iterator[list[Call]]:
    """Record the calls of all modules with parameters while the model runs once.

    What modules without a row per sample put out is repeated n times, so that the gradient of a learned table of
    positions, say, doesn't come back summed over samples.

    Args:
        model: Any module, whose parameters require gradients.
        n: Number of samples it is going to be run on.
        alone: See `Plan`.

    Yields:
        The calls, filled in as the model runs. Calls with several inputs, keywords or several outputs are left out.
    """
    calls: list[Call] = []

    def note(name: str) -> Callable[..., torch.Tensor | None]:
        def hook(module: nn.Module, inputs: tuple, kwargs: dict, output: object) -> torch.Tensor | None:
            if kwargs or len(inputs) != 1 or not isinstance(inputs[0], torch.Tensor):
                return None
            if not isinstance(output, torch.Tensor) or not output.requires_grad:
                return None
            a = inputs[0].detach()
            if name not in alone:
                calls.append(Call(module, a, get_gradient_edge(output)))
                return None
            a, new = (t if len(t) == 1 else t.unsqueeze(0) for t in (a, output))
            a, new = (t.repeat(n, *[1] * (t.dim() - 1)) for t in (a, new))
            calls.append(Call(module, a, get_gradient_edge(new)))
            return new

        return hook

    owners = [(name, m) for name, m in model.named_modules() if next(m.parameters(recurse=False), None) is not None]
    handles = [m.register_forward_hook(note(name), with_kwargs=True) for name, m in owners]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def uses_of(
    model: nn.Module, calls: Sequence[Call], output: torch.Tensor, cotangents: torch.Tensor
) -> dict[str, list[Use]]:
    """Go back from the output once for each of d per-sample scalars.

    Args:
        model: The module that ran.
        calls: What was recorded.
        output: What it put out; its graph is kept.
        cotangents: [d, *output's shape]: gradients of the scalars with respect to the output.

    Returns:
        By parameter name (as in `named_parameters`, so that tied ones share a name) all calls it has a part in.
    """
    if not calls:
        return {}
    edges = [call.edge for call in calls]
    backs = [torch.autograd.grad(output, edges, c, retain_graph=True, allow_unused=True) for c in cotangents]
    names = {id(p): name for name, p in model.named_parameters()}
    uses: dict[str, list[Use]] = {}
    for call, gs in zip(calls, zip(*backs, strict=True), strict=True):
        if any(g is None for g in gs):
            continue
        g = torch.stack(gs)
        for own, p in call.module.named_parameters(recurse=False):
            uses.setdefault(names[id(p)], []).append(Use(call.module, own, call.a, g))
    return uses


def _matches(uses: Sequence[Use], i: int, n: int, right: torch.Tensor) -> bool:
    if not uses or any(len(use.a) != n or use.g.shape[1] != n for use in uses):
        return False
    one = slice(i, i + 1)
    mine = torch.stack([gradient(Use(u.module, u.own, u.a[one], u.g[:, one]))[0, 0] for u in uses]).sum(0)
    right = right.to_dense() if right.is_sparse else right
    return bool((mine - right).abs().max() <= torch.finfo(right.dtype).eps ** 0.5 * right.abs().max())


def _agreeing(model: nn.Module, images: torch.Tensor, alone: frozenset[str]) -> frozenset[str]:
    # The yardstick is plain autograd on each sample alone, of a random combination of the outputs.
    n = len(images)
    with recording(model, n, alone) as calls:
        output = run(model, images)
    if len(output) != n:
        return frozenset()
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
    uses = uses_of(model, calls, output, direction.unsqueeze(0))
    named = dict(model.named_parameters())
    good = set(named)
    for i in range(n):
        scalar = (run(model, images[i : i + 1]) * direction[i : i + 1]).sum()
        truth = torch.autograd.grad(scalar, list(named.values()), allow_unused=True)
        for name, right in zip(named, truth, strict=True):
            if name in good and right is not None and not _matches(uses.get(name, []), i, n, right):
                good.discard(name)
    return frozenset(good)


def _without_rows(model: nn.Module, images: torch.Tensor) -> frozenset[str]:
    odd: set[str] = set()

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, torch.Tensor) and output.dim() and len(output) != len(images):
                odd.add(name)

        return hook

    handles = [m.register_forward_hook(note(name)) for name, m in model.named_modules()]
    try:
        with torch.no_grad():
            run(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return frozenset(odd)


def plan(model: nn.Module, images: torch.Tensor) -> Plan:
    """Find out on two samples for which parameters layer-wise per-sample gradients are right.

    Comparing with plain autograd catches whatever the layers' rules can't see: a weight that is used without its
    module, samples that aren't the first dimension or that depend on each other, hooks of the user's.

    Args:
        model: Any module, in evaluation mode, whose parameters require gradients.
        images: Inputs [n, ...], n of at least 1; the first and the last are used.

    Returns:
        The plan. Parameters that the output doesn't depend on are good: their gradient is zero.
    """
    two = torch.cat([images[:1], images[-1:]])

    def attempt(alone: frozenset[str]) -> Plan:
        try:
            return Plan(_agreeing(model, two, alone), alone)
        except (RuntimeError, ValueError, NotImplementedError):
            # A module that can't be mapped over samples, or repeated for them.
            return Plan(frozenset())

    plans = [attempt(frozenset())]
    if alone := _without_rows(model, two):
        plans.append(attempt(alone))
    return max(plans, key=lambda one: len(one.good))
