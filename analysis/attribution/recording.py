"""One forward pass recorded, so that a backward pass gives every layer's per-sample gradients."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from analysis.attribution.per_sample import Use, gradient
from analysis.attribution.running import run, widened


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
    """Record the calls of all modules with parameters of their own that require gradients, while the model runs once.

    What modules without a row per sample put out is repeated n times, so that the gradient of a learned table of
    positions, say, doesn't come back summed over samples.

    Args:
        model: Any module, of whose parameters those that are asked about require gradients.
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

    owners = [
        (name, m) for name, m in model.named_modules() if any(p.requires_grad for p in m.parameters(recurse=False))
    ]
    handles = [m.register_forward_hook(note(name), with_kwargs=True) for name, m in owners]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def uses_of(
    model: nn.Module, calls: Sequence[Call], output: torch.Tensor, cotangents: torch.Tensor, again: bool = True
) -> dict[str, list[Use]]:
    """Go back from the output once for each of d per-sample scalars.

    Args:
        model: The module that ran.
        calls: What was recorded.
        output: What it put out.
        cotangents: [d, *output's shape]: gradients of the scalars with respect to the output.
        again: Whether its graph is kept.

    Returns:
        By the name of each parameter that requires gradients (as in `named_parameters`, so that tied ones share a name)
        all calls it has a part in.
    """
    if not calls:
        return {}
    edges, last = [call.edge for call in calls], len(cotangents) - 1
    backs = [
        torch.autograd.grad(output, edges, c, retain_graph=again or i < last, allow_unused=True)
        for i, c in enumerate(cotangents)
    ]
    return _by_parameter(model, calls, backs)


def _by_parameter(
    model: nn.Module, calls: Sequence[Call], backs: Sequence[Sequence[torch.Tensor | None]]
) -> dict[str, list[Use]]:
    names = {id(p): name for name, p in model.named_parameters()}
    uses: dict[str, list[Use]] = {}
    for call, found in zip(calls, zip(*backs, strict=True), strict=True):
        gs = [g for g in found if g is not None]
        if len(gs) < len(found):
            continue
        g = widened(torch.stack(gs) if len(gs) > 1 else gs[0].unsqueeze(0))
        a = widened(call.a) if call.a.is_floating_point() else call.a
        for own, p in call.module.named_parameters(recurse=False):
            if p.requires_grad:
                uses.setdefault(names[id(p)], []).append(Use(call.module, own, a, g))
    return uses


def agree(found: torch.Tensor, right: torch.Tensor) -> bool:
    """Tell whether two ways to one quantity gave the same up to rounding.

    Args:
        found: One result.
        right: The other, of the same shape.

    Returns:
        Whether they differ by at most half the digits of the largest value.
    """

    def largest(values: torch.Tensor) -> torch.Tensor:
        # Several times as fast as an infinity norm. NaN if there is one.
        return torch.maximum(values.amax(), -values.amin())

    return bool(largest(found - right) <= torch.finfo(right.dtype).eps ** 0.5 * largest(right))


def _matches(n: int, uses: Sequence[Use], firsts: Sequence[Use], right: torch.Tensor) -> bool:
    # `firsts` went back from the scalar of the first of n samples, `uses` from the sum of all.
    if not uses or len(firsts) != len(uses) or any(len(use.a) != n or use.g.shape[1] != n for use in uses):
        return False
    for use, first in zip(uses, firsts, strict=True):
        if first.g[:, 1:].any() or not agree(use.g[:, :1], first.g[:, :1]):
            return False
    rows = [slice(i, i + 1) for i in range(n)]
    mine = [gradient([Use(u.module, u.own, u.a[row], u.g[:, row]) for u in uses], right.shape)[0, 0] for row in rows]
    return agree(sum(mine[1:], mine[0]), right.to_dense() if right.is_sparse else right)


def _agreeing(model: nn.Module, images: torch.Tensor, first: torch.Tensor, alone: frozenset[str]) -> frozenset[str]:
    # The yardstick is plain autograd, of a random combination of each sample's outputs. Samples are independent when
    # going back from the first alone reaches no other, and gives what it does among all.
    n = len(images)
    with recording(model, n, alone) as calls:
        output = run(model, images)
    if len(output) != n or not agree(output[:1].detach(), first):
        return frozenset()
    generator = torch.Generator().manual_seed(0)
    scalars = output * torch.randn(output.shape, generator=generator).to(output)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    edges = [call.edge for call in calls]
    back = torch.autograd.grad(scalars[0].sum(), edges, retain_graph=True, allow_unused=True) if edges else ()
    ends = [*edges, *(get_gradient_edge(p) for p in named.values())]
    found = torch.autograd.grad(scalars.sum(), ends, allow_unused=True)
    firsts, uses = (_by_parameter(model, calls, [one]) for one in (back, found[: len(calls)]))
    return frozenset(
        name
        for name, right in zip(named, found[len(calls) :], strict=True)
        if right is None or _matches(n, uses.get(name, []), firsts.get(name, []), right)
    )


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


def plan(model: nn.Module, images: torch.Tensor, first: torch.Tensor) -> Plan:
    """Find out on two samples for which parameters layer-wise per-sample gradients are right.

    Comparing with plain autograd catches whatever the layers' rules can't see: a weight that is used without its
    module, samples that aren't the first dimension or that depend on each other, hooks of the user's.

    Args:
        model: Any module, in evaluation mode, of whose parameters those that are asked about require gradients.
        images: Inputs [n, ...], n of at least 1; the first and the last are used.
        first: What the model puts out for the first alone.

    Returns:
        The plan. Parameters that the output doesn't depend on are good: their gradient is zero.
    """
    two = torch.cat([images[:1], images[-1:]])

    def attempt(alone: frozenset[str]) -> Plan:
        try:
            return Plan(_agreeing(model, two, first, alone), alone)
        except (RuntimeError, ValueError, NotImplementedError):
            # A module that can't be mapped over samples, or repeated for them.
            return Plan(frozenset())

    plain = attempt(frozenset())
    if len(plain.good) == sum(p.requires_grad for p in model.parameters()) or not (alone := _without_rows(model, two)):
        return plain
    return max(plain, attempt(alone), key=lambda one: len(one.good))
