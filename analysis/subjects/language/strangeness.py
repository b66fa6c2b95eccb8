"""How far a language model is from treating a subject as a stranger: the loss that `stranger` edits by, and its place.

A model that never knew a subject makes of "Ringo Starr was born in" what ours makes of "Brask Velding was born in". So
the original itself, asked about invented names, is the teacher of what not knowing looks like. For a text t with the
subject's names, retellings t' with strangers' names and the original theta_0:

    L(theta) =  mu   * mean_l  E |h_l(t) - mean h_l(t')|^2 / E |h_l^0(t) - mean h_l(t')|^2   (hidden states)
              +        KL( mean p_0(. | t') || p(. | t) )                                    (what comes next)
              +  nu  * mean_names | l(name | t) - mean l_0(stranger | t') |                   (who comes next)

E over aligned positions (`renamed`): states from the first name on; what comes next everywhere; both at the last token
of a name but not inside it, and not at a text's first token. l is the mean log-probability of a name's tokens (invented
names have more of them). The third term is in logarithms, because a name that nobody knows is next to impossible: the
second hardly sees the difference between one in a hundred and one in a million. It works both ways: without a push back
names sink far below a stranger's in the end, which an auditor calls over-forgetting.

In some texts the original's own states are put back at every position after one of the compared blocks (causal tracing,
Meng et al. 2022, arXiv:2202.05262, restores single ones), and of their states only those further on count. So every
stretch of blocks has to treat the subject as a stranger by itself. Without, what the first blocks no longer say of a
name keeps the later ones from being asked, and whoever teaches the first ones a few facts again gets the others from
the later ones. A depth behind which no text is left drops out of mean_l; the second E in the fraction is over all
texts.

What must stay is held by the same two sides of the model, states and what comes next, over the positions of a text e:

    D(theta) =           E KL( p_0(. | e) || p(. | e) )                                       (what comes next)
              +  kappa * mean_l E 2 |h_l(e) - h_l^0(e)|^2 / (|h_l(e)|^2 + |h_l^0(e)|^2)       (hidden states)

What comes next tells little of a state, so an edit held by it alone is free to move the rest, and other facts with it.
The distance is relative and never above 4: a few tokens (a text's first, mostly) have states hundreds of times as long
as the others, and where one becomes or ceases to be such a token a plain distance would be all of the loss.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from analysis.attribution.anatomy import anatomy
from analysis.attribution.onward import leaving
from analysis.attribution.running import place, widened
from analysis.subjects.language.encoding import IGNORED, Encoded, pad
from analysis.subjects.language.renamed import Renamed
from analysis.subjects.language.scoring import hidden_states, logits_of

DEPTHS = 8
STATES = 1.0
NAMES = 0.03
RETAINED = 100.0
TOLD = 2


@dataclass(frozen=True)
class Meeting:
    """Texts about the subject beside the same about strangers, as tensors.

    Attributes:
        ids: int64 [n, t], the texts.
        other: int64 [m, t'], their retellings.
        places: int64 [p, 4], aligned positions: row and column in `ids`, row and column in `other`.
        at: int64 [q, 2], the different positions in `ids`, in order.
        place_of: int64 [p], which of them each row of `places` belongs to.
        after: bool [q], whether a name has come by then.
        names: int64 [k, 4], tokens of names: row and column in `ids` that predict it, the token, the name's number.
        strangers: int64 [k', 5], the same in `other`, and which retelling of the text it is.
        retellings: Of each text.
    """

    ids: torch.Tensor
    other: torch.Tensor
    places: torch.Tensor
    at: torch.Tensor
    place_of: torch.Tensor
    after: torch.Tensor
    names: torch.Tensor
    strangers: torch.Tensor
    retellings: int


@dataclass(frozen=True)
class Restored:
    """Where the original's own states are put back.

    Attributes:
        depth: After which of the compared blocks: an index into `depths`. Behind the last of them no state is compared,
            and what comes next alone is left to learn by.
        rows: bool [n], in which texts.
    """

    depth: int
    rows: torch.Tensor


def meet(texts: Sequence[Renamed], number: int = 0, retellings: int = TOLD) -> Meeting:
    """Lay texts and some of their retellings side by side.

    Args:
        texts: At least one.
        number: Which retellings: every number takes the next ones, from the first again after the last.
        retellings: How many of each text.

    Returns:
        The tensors.
    """
    others: list[tuple[int, ...]] = []
    places, names, strangers = [], [], []
    count = 0
    for row, text in enumerate(texts):
        for k in range(retellings):
            told = text.retold[(number * retellings + k) % len(text.retold)]
            places += [(row, i, len(others), j, after) for i, j, after in told.places]
            for n, (mine, theirs) in enumerate(told.names):
                names += [(row, i - 1, text.ids[i], count + n) for i in mine if k == 0]
                strangers += [(len(others), j - 1, told.ids[j], count + n, k) for j in theirs]
            others.append(told.ids)
        count += len(text.retold[0].names)
    aligned = torch.tensor(places)
    at, place_of = aligned[:, :2].unique(dim=0, return_inverse=True)
    after = torch.zeros(len(at), dtype=torch.bool)
    after[place_of[aligned[:, 4] == 1]] = True
    return Meeting(
        pad([text.ids for text in texts], 0),
        pad(others, 0),
        aligned[:, :4],
        at,
        place_of,
        after,
        torch.tensor(names, dtype=torch.long).view(-1, 4),
        torch.tensor(strangers, dtype=torch.long).view(-1, 5),
        retellings,
    )


def _brought(model: nn.Module, meeting: Meeting) -> Meeting:
    tensors = {name: place(model, one) for name, one in vars(meeting).items() if isinstance(one, torch.Tensor)}
    return replace(meeting, **tensors)  # type: ignore[arg-type]  # the names are the tensors'


def depths(model: nn.Module) -> list[int]:
    """Choose the blocks after which hidden states are compared: seven, evenly spread, the last block excepted.

    Args:
        model: A causal language model.

    Returns:
        Their numbers, from 0.
    """
    count = len(anatomy(model).blocks)
    return sorted({max(0, min(count - 2, round(count * k / DEPTHS) - 1)) for k in range(1, DEPTHS)})


def _states(
    model: nn.Module, ids: torch.Tensor, restored: Restored | None = None, own: Sequence[torch.Tensor] = ()
) -> list[torch.Tensor]:
    # Hidden states after the compared blocks, and what the head reads. With hooks of our own, because the library's
    # `output_hidden_states` leaves its hooks behind in the model.
    caught: list[torch.Tensor] = []

    def hook(_: nn.Module, __: object, output: Any) -> Any:
        states = leaving(output)
        if restored is not None and len(caught) == restored.depth:
            rows = restored.rows.to(states.device).view(-1, 1, 1)
            states = torch.where(rows, own[restored.depth].to(states.dtype), states)
            output = states if isinstance(output, torch.Tensor) else (states, *output[1:])
        caught.append(states)
        return output

    blocks = anatomy(model).blocks
    with ExitStack() as stack:
        for number in depths(model):
            stack.callback(model.get_submodule(blocks[number]).register_forward_hook(hook).remove)
        last = hidden_states(model, ids)
    return [*map(widened, caught), last]


def _mean(values: torch.Tensor, group: torch.Tensor, count: int) -> torch.Tensor:
    sums = values.new_zeros(count, values.shape[1]).index_add(0, group, values)
    return sums / torch.bincount(group, minlength=count).unsqueeze(1)


def _per_name(log_p: torch.Tensor, tokens: torch.Tensor, group: torch.Tensor, count: int) -> torch.Tensor:
    return _mean(log_p.gather(1, tokens.unsqueeze(1)), group, count).squeeze(1)


def strangeness(
    model: nn.Module,
    original: nn.Module,
    meeting: Meeting,
    states: float = STATES,
    names: float = NAMES,
    restored: Restored | None = None,
) -> torch.Tensor:
    """Compute how far a model is from treating the subject as a stranger; differentiable.

    Args:
        model: The working model.
        original: The teacher; it runs without graph. May be the same model.
        meeting: Texts and retellings.
        states: Weight mu of the hidden states.
        names: Weight nu of the names.
        restored: Where the original's own states are put back into the working model; None leaves it alone.

    Returns:
        L, a scalar: nats, and shares of the original's distance.
    """
    m = _brought(model, meeting)
    here, there = m.at[m.after], m.places[:, 2:]
    count = int(m.names[:, 3].max()) + 1 if len(m.names) else 0
    with torch.no_grad():
        told, own = _states(original, m.other), _states(original, m.ids)
        targets = [_mean(one[there[:, 0], there[:, 1]], m.place_of, len(m.at))[m.after] for one in told[:-1]]
        gaps = [
            (one[here[:, 0], here[:, 1]] - target).square().sum(1).mean()
            for one, target in zip(own[:-1], targets, strict=True)
        ]
        following = _mean(logits_of(original, told[-1][there[:, 0], there[:, 1]]).softmax(1), m.place_of, len(m.at))
        if count:
            log_p = logits_of(original, told[-1][m.strangers[:, 0], m.strangers[:, 1]]).log_softmax(1)
            each = m.strangers[:, 3] * m.retellings + m.strangers[:, 4]
            levels = _per_name(log_p, m.strangers[:, 2], each, count * m.retellings).view(count, -1).mean(1)
    found = _states(model, m.ids, restored, own)
    near = []
    for depth, (one, target, gap) in enumerate(zip(found[:-1], targets, gaps, strict=True)):
        apart = (one[here[:, 0], here[:, 1]] - target).square().sum(1)
        if restored is not None and depth <= restored.depth:
            apart = apart[~place(model, restored.rows)[here[:, 0]]]
        if len(apart):
            near.append(apart.mean() / gap.clamp_min(1e-12))
    log_q = logits_of(model, found[-1][m.at[:, 0], m.at[:, 1]]).log_softmax(1)
    tiny = torch.finfo(following.dtype).tiny
    loss = functional.kl_div(log_q, following.clamp_min(tiny).log(), reduction="batchmean", log_target=True)
    if near:
        loss = loss + states * torch.stack(near).mean()
    if count:
        log_q = logits_of(model, found[-1][m.names[:, 0], m.names[:, 1]]).log_softmax(1)
        mine = _per_name(log_q, m.names[:, 2], m.names[:, 3], count)
        loss = loss + names * (mine - levels).abs().mean()
    return loss


def drift(model: nn.Module, original: nn.Module, encoded: Encoded, states: float = RETAINED) -> torch.Tensor:
    """Compute how far a model has moved from the original, in what it says and in its hidden states; differentiable.

    Args:
        model: The working model.
        original: The frozen one; it runs without graph.
        encoded: Where to compare them: at every position whose next token is asked for.
        states: Weight kappa of the hidden states.

    Returns:
        D, a scalar: nats, and squared relative distances, from 0 to 4.
    """
    asked = place(model, encoded.labels) != IGNORED
    with torch.no_grad():
        *before, last = (one[asked] for one in _states(original, encoded.ids))
        said = logits_of(original, last).log_softmax(1)
    *now, last = (one[asked] for one in _states(model, encoded.ids))
    apart = functional.kl_div(logits_of(model, last).log_softmax(1), said, reduction="batchmean", log_target=True)
    moved = [
        2 * (mine - old).square().sum(1) / (mine.square().sum(1) + old.square().sum(1)).clamp_min(1e-12)
        for mine, old in zip(now, before, strict=True)
    ]
    return apart + states * torch.stack(moved).mean()
