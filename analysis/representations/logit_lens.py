"""The logit lens: what a causal language model would say if it stopped after a layer.

nostalgebraist (2020), "interpreting GPT: the logit lens": the residual stream after each block is put through the final
norm and the head.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from analysis.attribution.anatomy import Anatomy, anatomy
from analysis.attribution.onward import entering
from analysis.attribution.running import place, prepare, undisturbed
from analysis.attribution.targets import IGNORED
from analysis.errors import UserError

ROWS = 48


@dataclass(frozen=True)
class LensReading:
    """What each layer says at the asked positions; layer 0 is what enters the first block, layer i block i's output.

    Attributes:
        rows: int64 [m], the sequence of each asked token, rising.
        positions: int64 [m], where in the sequence it is predicted.
        log_probability: [layers + 1, m], log p of the asked token, in nats.
        rank: int64 [layers + 1, m], rank of the asked token in the vocabulary, from 1; among equals the best.
        top: int64 [layers + 1, m], the most likely token.
    """

    rows: torch.Tensor
    positions: torch.Tensor
    log_probability: torch.Tensor
    rank: torch.Tensor
    top: torch.Tensor


@dataclass(frozen=True)
class LensGrid:
    """What each layer would say after each token of one prompt; layers as in `LensReading`.

    Attributes:
        tokens: int64 [layers + 1, t], the most likely next token.
        probabilities: [layers + 1, t], its probability, 0 to 1.
    """

    tokens: torch.Tensor
    probabilities: torch.Tensor


def _streams(model: nn.Module, parts: Anatomy, ids: torch.Tensor, where: tuple[torch.Tensor, ...]) -> torch.Tensor:
    # The residual stream [layers + 1, m, width] at some places, before the final norm (which Hugging Face has already
    # applied to the last of its `hidden_states`).
    run = [model.get_submodule(name) for name in (*parts.blocks, parts.final_norm)]
    with entering(run) as (streams, _):
        model.base_model(input_ids=ids, use_cache=False)  # type: ignore[operator]
    return torch.stack([stream[where] for stream in streams])


def _layer_logits(model: nn.Module, parts: Anatomy, streams: torch.Tensor) -> Iterator[torch.Tensor]:
    # Layer by layer, since the vocabulary is wide.
    norm: Callable[[torch.Tensor], torch.Tensor] = model.get_submodule(parts.final_norm)
    head: Callable[[torch.Tensor], torch.Tensor] = model.get_output_embeddings()  # type: ignore[operator]
    for stream in streams:
        yield head(norm(stream))


def logit_lens(model: nn.Module, ids: torch.Tensor, labels: torch.Tensor, rows: int = ROWS) -> LensReading:
    """Read off every layer how likely it makes the asked tokens.

    Args:
        model: A Hugging Face causal language model; run in evaluation mode and left as it was.
        ids: int64 [n, t], padded on the right.
        labels: int64 [n, t]; the token asked for after each position, -100 where none is.
        rows: Sequences at once.

    Returns:
        One reading per layer and asked token; the last layer's is the model's own output.

    Raises:
        UserError: Shapes differ, a label is no token of the model, or no token is asked for.
    """
    parts = anatomy(model)
    ids, labels = prepare(model, ids, labels)
    if not (labels != IGNORED).any():
        raise UserError("No token is asked for; give labels that are not all -100.")
    values, ranks, tops = [], [], []
    with undisturbed(model, parameters=False), torch.no_grad():
        for some, asked in zip(ids.split(rows), labels.split(rows), strict=True):
            where = (asked != IGNORED).nonzero(as_tuple=True)
            wanted = asked[where][:, None]
            if not len(wanted):
                continue
            for logits in _layer_logits(model, parts, _streams(model, parts, some, where)):
                own = logits.gather(1, wanted)
                values.append((own - logits.logsumexp(1, keepdim=True)).squeeze(1))
                ranks.append(1 + (logits > own).sum(1))
                tops.append(logits.argmax(1))
        sequences, positions = (labels != IGNORED).nonzero(as_tuple=True)
    layers = len(parts.blocks) + 1

    def joined(pieces: list[torch.Tensor]) -> torch.Tensor:
        # Pieces come batch by batch, and within a batch layer by layer.
        return torch.stack([torch.cat(pieces[layer::layers]) for layer in range(layers)]).cpu()

    return LensReading(sequences.cpu(), positions.cpu(), joined(values), joined(ranks), joined(tops))


def lens_grid(model: nn.Module, ids: torch.Tensor) -> LensGrid:
    """Read off every layer, after each token of a prompt, what it would say next.

    Args:
        model: A Hugging Face causal language model; run in evaluation mode and left as it was.
        ids: int64 [t], one prompt without padding.

    Returns:
        Top tokens and their probabilities.

    Raises:
        UserError: The ids are no single prompt of at least one token.
    """
    parts = anatomy(model)
    if ids.dim() != 1 or not len(ids):
        raise UserError(f"A lens grid is of one prompt; give its ids as [tokens], not {tuple(ids.shape)}.")
    with undisturbed(model, parameters=False), torch.no_grad():
        line = torch.arange(len(ids), device=place(model, ids).device)
        streams = _streams(model, parts, place(model, ids)[None], (torch.zeros_like(line), line))
        best = [logits.softmax(1).max(1) for logits in _layer_logits(model, parts, streams)]
    return LensGrid(torch.stack([one.indices for one in best]).cpu(), torch.stack([one.values for one in best]).cpu())
