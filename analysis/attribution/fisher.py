"""The diagonal of the Fisher information: per-sample squares, exact and cheap.

The Fisher information of a model p(y | x; w) is the mean over inputs of E_y[g g^T], g being the gradient of
-log p(y | x; w) for one sample. Its diagonal is a mean of squares *of per-sample gradients*; the square of a batch's
mean gradient is another quantity, which is near zero wherever the model has converged.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from analysis.attribution.per_sample import add_squares
from analysis.attribution.recording import agree, plan, recording, uses_of
from analysis.attribution.running import prepare, run, undisturbed, widened
from analysis.attribution.targets import IGNORED, cross_entropy
from analysis.errors import UserError
from analysis.scores import Scores

Kind = Literal["empirical", "true"]

UNITS = "nats^2 per weight^2"
MEASURES = {"empirical": "fisher", "true": "fisher-true"}
MOST_BACKWARDS = 20_000
BLOCK = 16
ROOM = 2**25


def _cotangents(logits: torch.Tensor, labels: torch.Tensor, kind: Kind) -> Iterator[torch.Tensor]:
    """Give the scalars whose squared gradients add up to the Fisher, as their gradients at the logits.

    Empirical: of -log p(label), which is softmax - onehot. True: sqrt(p(c)) times that of -log p(c) for every class
    c, at each position by itself: given the inputs, positions are independent draws of mean score zero, so that
    products of two positions vanish in the expectation.

    Args:
        logits: [n, k] or [n, t, k].
        labels: int64 [n] or [n, t].
        kind: Which Fisher.

    Yields:
        Blocks [d, *logits' shape].
    """
    counted = labels != IGNORED
    if kind == "empirical":
        found = torch.zeros_like(logits)
        p = widened(logits.detach()[counted]).softmax(-1)
        p[torch.arange(len(p), device=p.device), labels[counted]] -= 1
        found[counted] = p.to(found.dtype)
        yield found.unsqueeze(0)
        return
    p = logits.detach().softmax(-1)
    k = p.shape[-1]
    every = [(t, c) for t in range(p.shape[1] if p.dim() == 3 else 1) for c in range(k)]
    for start in range(0, len(every), BLOCK):
        block = every[start : start + BLOCK]
        out = p.new_zeros(len(block), *p.shape)
        for row, (t, c) in zip(out, block, strict=True):
            at = (slice(None), t) if p.dim() == 3 else (slice(None),)
            row[at] = p[at]
            row[(*at, c)] -= 1
            row[at] *= (p[(*at, c)].sqrt() * counted[at]).unsqueeze(-1)
        yield out


def _backwards(first: torch.Tensor, kind: Kind) -> int:
    return 1 if kind == "empirical" else first[0].numel()


def _prepare(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, kind: Kind
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # Inputs and labels ready to be run, and what the first of them alone gives.
    if kind not in MEASURES:
        raise UserError(f"There is no Fisher information of kind {kind!r}; choose empirical or true.")
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise UserError(
                f"The layer {name} has no running statistics, so samples of a batch depend on each other and have no "
                "gradients of their own; use one with track_running_stats=True."
            )
    images, labels = prepare(model, images, labels)
    with undisturbed(model, parameters=False), torch.no_grad():
        first = run(model, images[:1])
    shape = first.shape
    if len(shape) not in {2, 3} or labels.is_floating_point():
        raise UserError(
            f"The Fisher information needs class labels and outputs [n, k] or [n, t, k], not {tuple(shape)}; "
            "wrap the model so that it returns logits."
        )
    if _backwards(first, kind) > MOST_BACKWARDS:
        raise UserError(
            f"The true Fisher information would need {_backwards(first, kind)} backward passes (positions x outputs); "
            'use kind="empirical".'
        )
    return images, labels, first


def fisher_diagonal_vmap(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    kind: Kind = "empirical",
    names: Sequence[str] | None = None,
) -> Scores:
    """Compute the diagonal Fisher from per-sample gradients of the whole model by `torch.func.vmap(grad)`.

    The slow and general way: the yardstick in tests, and what `fisher_diagonal` falls back on. A model that vmap can't
    map is differentiated one sample after the other.

    Args:
        model: Any module; run in evaluation mode and left as it was.
        images: Inputs [n, ...].
        labels: int64 [n] in [0, k), or [n, t] where -100 marks positions that don't count.
        kind: See `fisher_diagonal`.
        names: Only these parameters; all if not given.

    Returns:
        Scores of kind "parameter", as `fisher_diagonal` gives them.
    """
    images, labels, first = _prepare(model, images, labels, kind)
    with undisturbed(model, parameters=False):
        mine = {n: p.detach() for n, p in model.named_parameters() if names is None or n in names}

        def scalar(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: int) -> torch.Tensor:
            output = functional_call(model, weights, (x.unsqueeze(0),))
            logits = getattr(output, "logits", output)
            if kind == "empirical":
                return cross_entropy(logits, y.unsqueeze(0)).squeeze(0)
            log_p = logits[0].log_softmax(-1).reshape(-1)[index]
            counts = y.reshape(-1)[index // logits.shape[-1]] != IGNORED
            return -log_p * (log_p.detach() / 2).exp() * counts

        mapped = vmap(grad(scalar), in_dims=(None, 0, 0, None))

        def looped(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: int) -> dict:
            leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
            rows = [
                torch.autograd.grad(scalar(leaves, a, b, index), list(leaves.values()), materialize_grads=True)
                for a, b in zip(x, y, strict=True)
            ]
            return {n: torch.stack(column) for n, column in zip(leaves, zip(*rows, strict=True), strict=True)}

        total = {n: torch.zeros_like(widened(p)) for n, p in mine.items()}
        chunk = min(64, max(1, ROOM // max(1, sum(p.numel() for p in mine.values()))))
        way = mapped
        for x, y in zip(images.split(chunk), labels.split(chunk), strict=True):
            for index in range(_backwards(first, kind)):
                try:
                    grads = way(mine, x, y, index)
                except RuntimeError:
                    # What vmap can't map; whatever else is wrong comes up again.
                    way = looped
                    grads = way(mine, x, y, index)
                for n, g in grads.items():
                    total[n] += widened(g).square().sum(0)
    return Scores({n: (t / len(images)).cpu() for n, t in total.items()}, "parameter", MEASURES[kind], UNITS)


def _counting(labels: torch.Tensor) -> torch.Tensor:
    # Which positions of sequences lie before or at their last one that counts, at least the first.
    found = (labels != IGNORED).flip(1).cumsum(1).flip(1) > 0
    found[:, 0] = True
    return found


@torch.no_grad()
def _looks_ahead(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> bool:
    # Whether what follows the last position that counts matters, tried on the sequence with most of that.
    counting = _counting(labels)
    width, row = (int(found) for found in counting.sum(1).min(0))
    one, longer = images[row : row + 1, :width], images[row : row + 1].clone()
    # What a model masks, such as padding, would prove nothing: pieces of the sequences come in its place.
    pieces = images[counting]
    drawn = torch.randint(len(pieces), (labels.shape[1] - width,), generator=torch.Generator().manual_seed(0))
    longer[:, width:] = pieces[drawn.to(pieces.device)]
    try:
        cut, whole = run(model, one), run(model, longer)[:, :width]
    except (RuntimeError, ValueError, IndexError):
        # A model for sequences of one length.
        return True
    return cut.shape != whole.shape or not agree(cut, whole)


def _chunks(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, chunk: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    # Sequences whose ends don't matter, such as padding, go without them, those of alike length together.
    sequences = labels.dim() == 2 and images.shape[:2] == labels.shape
    if not sequences or _counting(labels).all() or _looks_ahead(model, images, labels):
        yield from zip(images.split(chunk), labels.split(chunk), strict=True)
        return
    lengths = _counting(labels).sum(1)
    for rows in lengths.argsort(descending=True, stable=True).split(chunk):
        width = int(lengths[rows[0]])
        yield images[rows, :width], labels[rows, :width]


def _add_chunk(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    kind: Kind,
    alone: frozenset[str],
    total: dict[str, torch.Tensor],
) -> None:
    # One chunk's squares, added in place. Its graph ends with this call, before the next chunk's is made.
    if not total:
        return
    with recording(model, len(images), alone) as calls:
        output = run(model, images)
    for cotangents in _cotangents(output, labels, kind):
        for name, uses in uses_of(model, calls, output, cotangents, again=kind == "true").items():
            add_squares(total[name], uses)


def fisher_diagonal(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    kind: Kind = "empirical",
    chunk: int = 128,
    names: Sequence[str] | None = None,
) -> Scores:
    """Compute the exact diagonal of the Fisher information: mean over samples of squared per-sample gradients.

    One forward pass per chunk records every layer's input; one backward pass (one per output for "true") gives the
    gradients of their outputs, and the layers' rules (`per_sample.gradient`) turn both into per-sample
    gradients. Contributions of positions, of calls and of tied weights to one sample's gradient are summed before
    they are squared. On two samples the rules' gradients are first compared with plain autograd; parameters for
    which they disagree, such as one used without its module, are left to `fisher_diagonal_vmap`.

    Sequences of a model that doesn't look ahead, which is tried on one of them, end with their last position that
    counts, and those of alike length run together: padding costs nothing.

    Args:
        model: Any module that treats samples independently in evaluation mode; left as it was. Outputs: logits [n, k],
            or [n, t, k] for sequences.
        images: Inputs [n, ...], or token ids.
        labels: int64 [n] in [0, k), or [n, t] where -100 marks positions that don't count; a sequence is one
            sample, and its -log p the sum over its positions.
        kind: "empirical" takes the gradient of -log p(label). "true" takes the expectation over the model's own
            predicted classes, exactly, with one backward pass per output (and position); of the labels it only uses
            which positions count. Martens (2020), "New insights and perspectives on the natural gradient method",
            section 9, is about the difference.
        chunk: Samples per forward pass; bounds memory and doesn't change the result.
        names: Only these parameters; all if not given.

    Returns:
        Scores of kind "parameter", at least 0.
    """
    images, labels, first = _prepare(model, images, labels, kind)
    with undisturbed(model, parameters=False):
        # Only these: what lies below the lowest of them stays out of the graph.
        wanted = {n: p for n, p in model.named_parameters() if p.is_floating_point() and (names is None or n in names)}
        for p in wanted.values():
            p.requires_grad_()
        found = plan(model, images, first)
        for name, p in wanted.items():
            p.requires_grad_(name in found.good)
        total = {name: torch.zeros_like(widened(p.detach())) for name, p in wanted.items() if name in found.good}
        for x, y in _chunks(model, images, labels, chunk):
            _add_chunk(model, x, y, kind, found.alone, total)
    values = {name: t.div_(len(images)).cpu() for name, t in total.items()}
    rest = [name for name in wanted if name not in found.good]
    if rest:
        values |= fisher_diagonal_vmap(model, images, labels, kind, rest).values
    return Scores({name: values[name] for name in wanted}, "parameter", MEASURES[kind], UNITS)


def fisher_ratio(forget: Scores, retain: Scores, damping: float = 0.01) -> Scores:
    """Rank weights by how much more they matter for what is to be forgotten than for what is to be kept.

    F_forget / (F_retain + damping * mean(F_retain)), after selective synaptic dampening (Foster et al., 2024), which
    has no damping: with next to none, weights that hardly matter to either side lead the ranking; with much, the
    ranking becomes that of F_forget alone, and weights that everything depends on lead it.

    Args:
        forget: Fisher diagonal on the samples to forget.
        retain: Fisher diagonal on those to keep, of the same model.
        damping: Share of the retain Fisher's mean over all weights that is added to it, above 0.

    Returns:
        Scores of kind "parameter", at least 0, without unit.

    Raises:
        UserError: The two belong to different models, or damping isn't positive.
    """
    if {n: v.shape for n, v in forget.values.items()} != {n: v.shape for n, v in retain.values.items()}:
        raise UserError("The two Fisher diagonals belong to different models; compute both on the same one.")
    if not damping > 0:
        raise UserError(f"The damping must be above 0, not {damping:g}; 0.01 is usual.")
    count = sum(v.numel() for v in retain.values.values())
    floor = damping * sum(float(v.double().sum()) for v in retain.values.values()) / count
    floor = max(floor, torch.finfo(torch.float32).tiny)
    values = {name: value / (retain.values[name] + floor) for name, value in forget.values.items()}
    return Scores(values, "parameter", "fisher-ratio", "1")


def brain_damage(model: nn.Module, fisher: Scores) -> Scores:
    """Rank weights by what deleting each would cost on the samples of a Fisher diagonal.

    Optimal Brain Damage (LeCun, Denker and Solla 1990), eq. 5: h_kk * u_k^2 / 2, the second-order rise of the loss when
    weight u_k is set to zero; the Fisher diagonal stands for the Hessian's, as is usual for log-likelihoods. Where
    the Fisher alone says what matters, this also asks how much is there: a weight near zero holds nothing.

    Args:
        model: Whose weights; not changed.
        fisher: Diagonal on the samples to forget, of the same model.

    Returns:
        Scores of kind "parameter" in nats, at least 0.

    Raises:
        UserError: The diagonal belongs to another model.
    """
    weights = dict(model.named_parameters())
    if any(name not in weights or weights[name].shape != value.shape for name, value in fisher.values.items()):
        raise UserError("The Fisher diagonal belongs to another model; compute it on this one.")
    values = {
        name: value * weights[name].detach().to(value.device).square() / 2 for name, value in fisher.values.items()
    }
    return Scores(values, "parameter", "brain-damage", "nats")
