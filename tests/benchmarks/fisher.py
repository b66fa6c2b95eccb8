"""The exact per-sample diagonal Fisher against a plain pass, `vmap(grad)`, BackPACK and a loop over single samples.

Every peer makes the same numbers, but the plain pass, which makes one batch gradient and sets the price. All sides of a
table take turns in every round, so that rows share their readings of ours.
"""

import contextlib
import copy
import gc
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from analysis.attribution.fisher import fisher_diagonal
from analysis.fact_localization import candidates
from tests.benchmarks.subjects import beatles, close, digits, smollm2
from tests.benchmarks.timing import Row, row_of, seconds
from tests.live_memory import peak_bytes

IMAGES, CHUNK = 1000, 128
TOGETHER = 8
MAPPED = 4
"""Sequences at a time for `vmap`, which holds a gradient of each: of all weights 2 GB."""
ROUNDS, LANGUAGE_ROUNDS = 7, 2
SAME = 1e-4
PLAIN = "one plain forward and backward pass"
MAPPED_NOTE = (
    "Here vmap(grad) costs only 1.3 to 1.5 plain passes, its per-sample weight gradients being the same grouped "
    "convolution as ours; twice as fast would be less than the forward pass and the backward pass of the activations "
    "alone, which no way can leave out."
)
LANGUAGE_NOTE = (
    "Ours runs no padding behind a sequence's last label; one or two seconds go once per call, whatever the number of "
    "sequences, into comparing the layers' rules with plain autograd on two of them."
)

Diagonal = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Case:
    """What the Fisher is taken of.

    Attributes:
        model: In evaluation mode.
        inputs: Samples.
        labels: Of the samples.
        chunk: Samples at a time.
        names: Of the parameters.
    """

    model: nn.Module
    inputs: torch.Tensor
    labels: torch.Tensor
    chunk: int
    names: tuple[str, ...]

    def chunks(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Go through the samples.

        Args:
            size: Samples at a time.

        Yields:
            Inputs and labels.
        """
        yield from zip(self.inputs.split(size), self.labels.split(size), strict=True)

    def double(self) -> "Case":
        """Make the same case in float64.

        Returns:
            Another case, with a model of its own.
        """
        inputs = self.inputs.double() if self.inputs.is_floating_point() else self.inputs
        return replace(self, model=copy.deepcopy(self.model).double(), inputs=inputs)

    def weights(self) -> Diagonal:
        """Look up the parameters.

        Returns:
            By name, requiring gradients.
        """
        named = dict(self.model.named_parameters())
        return {name: named[name].requires_grad_() for name in self.names}


def loss(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum the cross-entropy of a model's output over samples and positions.

    Args:
        output: Logits, or what has them.
        labels: -100 where nothing is asked.

    Returns:
        A scalar.
    """
    logits = getattr(output, "logits", output)
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")


def ours(case: Case, samples: int | None = None) -> Diagonal:
    """Compute the Fisher by the product.

    Args:
        case: Of what.
        samples: Only of so many.

    Returns:
        By parameter name.
    """
    inputs, labels = case.inputs[:samples], case.labels[:samples]
    return dict(fisher_diagonal(case.model, inputs, labels, chunk=case.chunk, names=case.names).values)


def plain(case: Case) -> None:
    """Run every chunk forward and backward once, for the gradient of the batch.

    Args:
        case: Of what.
    """
    weights = list(case.weights().values())
    for x, y in case.chunks(case.chunk):
        torch.autograd.grad(loss(case.model(x), y), weights)
    case.model.requires_grad_(False)


def mapped(case: Case, size: int) -> Diagonal:
    """Compute the Fisher by `torch.func`.

    Args:
        case: Of what.
        size: Samples at a time.

    Returns:
        By parameter name.
    """
    weights = {name: p.detach() for name, p in case.weights().items()}
    case.model.requires_grad_(False)

    def one(weights: Diagonal, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return loss(functional_call(case.model, weights, (x[None],)), y[None])

    per_sample = vmap(grad(one), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    for x, y in case.chunks(size):
        for name, g in per_sample(weights, x, y).items():
            total[name] += g.square().sum(0)
    return {name: value / len(case.inputs) for name, value in total.items()}


def looped(case: Case) -> Diagonal:
    """Compute the Fisher by plain backward passes of one sample.

    Args:
        case: Of what.

    Returns:
        By parameter name.
    """
    weights = case.weights()
    total = {name: torch.zeros_like(p, requires_grad=False) for name, p in weights.items()}
    for x, y in case.chunks(1):
        found = torch.autograd.grad(loss(case.model(x), y), list(weights.values()))
        for value, g in zip(total.values(), found, strict=True):
            value.addcmul_(g, g)
    case.model.requires_grad_(False)
    return {name: value / len(case.inputs) for name, value in total.items()}


@cache
def _extended(case: Case) -> nn.Module:
    from backpack import extend

    return extend(copy.deepcopy(case.model).requires_grad_())


def backpacked(case: Case) -> Diagonal:
    """Compute the Fisher by BackPACK: for a summed loss its sum of squared gradients is that times the samples.

    Args:
        case: Of what.

    Returns:
        By parameter name.
    """
    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared

    model, criterion = _extended(case), extend(nn.CrossEntropyLoss(reduction="sum"))
    total = {name: torch.zeros_like(p, requires_grad=False) for name, p in model.named_parameters()}
    for x, y in case.chunks(case.chunk):
        model.zero_grad()
        with backpack(SumGradSquared()):
            criterion(model(x), y).backward()
        for name, p in model.named_parameters():
            total[name] += p.sum_grad_squared
    return {name: value / len(case.inputs) for name, value in total.items()}


@dataclass(frozen=True)
class Peer:
    """One side to compare with.

    Attributes:
        name: For people.
        work: What it does with a case.
        sense: See `Row`.
        reach: See `Row`.
        note: See `Row`.
    """

    name: str
    work: Callable[[Case], Diagonal | None]
    sense: str = "faster"
    reach: float | None = None
    note: str = ""


def _apart(found: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> str:
    # The worst parameter.
    return max((close(found[name], right[name], SAME) for name in right), key=lambda told: float(told.split()[-1]))


def table(what: str, case: Case, peers: list[Peer], rounds: int, exact: bool) -> Iterator[Row]:
    """Compare results, then time all sides in turn.

    Args:
        what: What is timed.
        case: Of what.
        peers: The other sides.
        rounds: Readings of each side.
        exact: Whether results are compared in float64: where a maximum is taken over what would be equal, rounding
            decides which way a gradient goes.

    Yields:
        A row for each peer.
    """
    judged, bits = (case.double(), 64) if exact else (case, 32)
    found, told = ours(judged), {}
    for peer in peers:
        right = peer.work(judged)
        told[peer.name] = "makes no Fisher" if right is None else f"{_apart(found, right)} in float{bits}"
    works: dict[str, Callable[[Case], Diagonal | None]] = {"ours": ours, **{peer.name: peer.work for peer in peers}}
    readings: dict[str, list[float]] = {name: [] for name in works}
    if exact:
        for work in works.values():
            work(case)
    for turn in range(rounds):
        for name in list(works) if turn % 2 == 0 else list(works)[::-1]:
            gc.collect()
            readings[name].append(seconds(partial(works[name], case)))
    for peer in peers:
        mine, theirs = readings["ours"], readings[peer.name]
        yield row_of(what, peer.name, mine, theirs, told[peer.name], peer.sense, peer.reach, peer.note)  # type: ignore[arg-type]


def _memory(case: Case, samples: tuple[int, int]) -> str:
    sizes = [f"{peak_bytes(lambda n=n: ours(case, n)) / 1e6:.1f}" for n in samples]
    return f"Live tensors at their peak: {sizes[0]} MB for {samples[0]} samples, {sizes[1]} MB for {samples[1]}."


def images() -> Iterator[Row]:
    """Compare on the built-in convolutional network and on the fully connected one.

    Yields:
        The rows.
    """
    for network in ("cnn", "mlp"):
        subject = digits(network)
        torch.manual_seed(0)
        model = subject.network.make().eval().requires_grad_(False)
        names = tuple(name for name, _ in model.named_parameters())
        case = Case(model, subject.train.images[:IMAGES], subject.train.labels[:IMAGES], CHUNK, names)
        what = f"Fisher, {network}, {IMAGES} digits in chunks of {CHUNK}"
        convolved = network == "cnn"
        peers = [
            Peer(PLAIN, plain, "cost", 2 if convolved else None, _memory(case, (2 * CHUNK, 7 * CHUNK))),
            Peer(
                "vmap(grad), same chunks", partial(mapped, size=CHUNK), reach=2, note=MAPPED_NOTE if convolved else ""
            ),
            Peer("BackPACK SumGradSquared", backpacked),
            Peer("a loop over single samples", looped),
        ]
        yield from table(what, case, peers, ROUNDS, exact=True)


def language() -> Iterator[Row]:
    """Compare on SmolLM2: all weights (head and embedding are tied), and the MLPs' matrices.

    Yields:
        The rows.
    """
    model, encoded = smollm2().model, beatles().forget_encoded
    every = tuple(name for name, _ in model.named_parameters())
    for which, names, count in (
        ("all 135M weights", every, 32),
        ("the 80M weights of the MLPs", tuple(candidates(model, "mlp")), 64),
    ):
        case = Case(model, encoded.ids[:count], encoded.labels[:count], TOGETHER, names)
        what = f"Fisher, SmolLM2, {which}, {count} sequences in chunks of {TOGETHER}"
        peers = [
            Peer(PLAIN, plain, "cost", 2, LANGUAGE_NOTE),
            Peer(f"vmap(grad), chunks of {MAPPED}", partial(mapped, size=MAPPED), reach=2),
        ]
        if names is every:
            peers.append(Peer("a loop over single sequences", looped))
        yield from table(what, case, peers, LANGUAGE_ROUNDS, exact=False)


def rows() -> Iterator[Row]:
    """Compare on image classifiers and on a language model.

    Yields:
        The rows.
    """
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        # vmap's fallbacks and BackPACK's hooks warn at every call.
        warnings.simplefilter("ignore")
        yield from images()
        yield from language()
