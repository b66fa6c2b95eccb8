"""What a language model says: whole-answer log-probabilities, answers among wrong ones, loss on text.

Whole answers are scored, never their first subword. Logits are computed at the positions that are asked for only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from analysis.subjects.language.bank import Fact
from analysis.subjects.language.encoding import (
    IGNORED,
    Encoded,
    Tokenizer,
    check_length,
    continuation,
    encode_answers,
    pad,
)

ROWS = 48


def hidden_states(model: nn.Module, ids: torch.Tensor, **given: torch.Tensor) -> torch.Tensor:
    """Run a causal language model up to its head.

    Args:
        model: A Hugging Face causal language model.
        ids: int64 [n, t].
        given: Further inputs of the model, such as position ids.

    Returns:
        [n, t, width], after the last norm.
    """
    return model.base_model(input_ids=ids, use_cache=False, **given).last_hidden_state  # type: ignore[operator]


def head_of(model: nn.Module) -> nn.Module:
    """Find the module that turns hidden states into logits.

    Args:
        model: A Hugging Face causal language model.

    Returns:
        Its head.
    """
    return model.get_output_embeddings()  # type: ignore[operator]


def token_log_probabilities(model: nn.Module, encoded: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
    """Score every token that is asked for; differentiable.

    Args:
        model: A causal language model.
        encoded: The sequences.

    Returns:
        log p of the asked tokens [m], and the row each belongs to, int64 [m], rising.
    """
    return read_tokens(model, hidden_states(model, encoded.ids), encoded.labels)


def read_tokens(model: nn.Module, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Score the tokens that are asked for, given the states before the head; differentiable.

    Args:
        model: A causal language model; only its head runs.
        hidden: [n, t, width], after the last norm.
        labels: int64 [n, t], as in `Encoded`.

    Returns:
        As `token_log_probabilities`.
    """
    rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
    logits = head_of(model)(hidden[rows, columns])
    return logits.gather(1, labels[rows, columns][:, None]).squeeze(1) - logits.logsumexp(1), rows


@torch.no_grad()
def greedy_hits(model: nn.Module, encoded: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the asked tokens that greedy decoding would give, if all before them were given.

    Args:
        model: A causal language model.
        encoded: The sequences.

    Returns:
        bool [m], and the row each belongs to, int64 [m], rising.
    """
    hidden = hidden_states(model, encoded.ids)
    rows, columns = (encoded.labels != IGNORED).nonzero(as_tuple=True)
    return head_of(model)(hidden[rows, columns]).argmax(1) == encoded.labels[rows, columns], rows


def answer_log_probabilities(model: nn.Module, encoded: Encoded) -> torch.Tensor:
    """Score whole answers; differentiable.

    Args:
        model: A causal language model.
        encoded: The sequences.

    Returns:
        Sum of log p over each row's asked tokens [n], in nats.
    """
    found, rows = token_log_probabilities(model, encoded)
    return found.new_zeros(len(encoded)).index_add(0, rows, found)


def mean_loss(model: nn.Module, encoded: Encoded) -> torch.Tensor:
    """Compute the mean cross-entropy per asked token of a batch; differentiable.

    Args:
        model: A causal language model.
        encoded: The sequences.

    Returns:
        A scalar, in nats per token.
    """
    return -token_log_probabilities(model, encoded)[0].mean()


@torch.no_grad()
def row_losses(model: nn.Module, encoded: Encoded, rows: int = ROWS) -> torch.Tensor:
    """Compute the mean cross-entropy per asked token of each row.

    Args:
        model: A causal language model, run as it is.
        encoded: The sequences.
        rows: How many at once.

    Returns:
        [n], nats per token.
    """
    out = []
    for start in range(0, len(encoded), rows):
        part = encoded.take(slice(start, start + rows))
        counts = (part.labels != IGNORED).sum(1)
        out.append(-answer_log_probabilities(model, part) / counts)
    return torch.cat(out)


@dataclass(frozen=True)
class Options:
    """One prompt and the answers it may have, packed into one sequence: prompt, option, option, ...

    Attributes:
        ids: The prompt's ids, then each option's.
        prompt: How many belong to the prompt.
        lengths: How many belong to each option.
    """

    ids: tuple[int, ...]
    prompt: int
    lengths: tuple[int, ...]


def pack(tokenizer: Tokenizer, prompt: str, answers: Sequence[str]) -> Options:
    """Pack a prompt with its possible answers.

    Args:
        tokenizer: Of the model.
        prompt: Ends where the answers begin.
        answers: At least one.

    Returns:
        The packed sequence; what the tokenisations of all answers share belongs to the prompt.
    """
    found = [continuation(tokenizer, prompt, answer) for answer in answers]
    start = max(1, min(start for _, start in found))
    tails = [ids[start:] for ids, _ in found]
    joined = [*found[0][0][:start], *(token for tail in tails for token in tail)]
    return Options(tuple(joined), start, tuple(map(len, tails)))


def _layout(options: Options) -> tuple[list[int], list[int], list[int]]:
    # Group (0 for the prompt, else the option's number), position, and for each answer token where it is predicted.
    group, position, source = [0] * options.prompt, list(range(options.prompt)), []
    for number, length in enumerate(options.lengths, 1):
        start = len(group)
        source += [options.prompt - 1, *range(start, start + length - 1)]
        group += [number] * length
        position += range(options.prompt, options.prompt + length)
    return group, position, source


def _batches(packed: Sequence[Options], rows: int) -> Iterator[list[int]]:
    # Alike lengths go together, so that little is spent on padding.
    order = sorted(range(len(packed)), key=lambda i: len(packed[i].ids))
    for start in range(0, len(order), rows):
        yield order[start : start + rows]


def option_log_probabilities(model: nn.Module, packed: Sequence[Options], rows: int = ROWS) -> list[torch.Tensor]:
    """Score the possible answers of many prompts, running each prompt once.

    Options of a prompt stand side by side in one sequence; each sees the prompt and itself, at the positions that it
    would have alone. Tested to equal scoring every option by itself.

    Args:
        model: A causal language model, run as it is; differentiable under its caller's grad mode.
        packed: From `pack`.
        rows: Sequences at once.

    Returns:
        For each prompt the options' log-probabilities [k], in nats.
    """
    out: list[torch.Tensor] = [torch.empty(0)] * len(packed)
    for chosen in _batches(packed, rows):
        part = [packed[i] for i in chosen]
        layouts = [_layout(one) for one in part]
        ids = pad([one.ids for one in part], 0)
        group = pad([layout[0] for layout in layouts], -1)
        position = pad([layout[1] for layout in layouts], 0)
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        seen = causal & ((group[:, None, :] == 0) | (group[:, None, :] == group[:, :, None]))
        seen |= torch.eye(ids.shape[1], dtype=torch.bool)
        kind = next(model.parameters()).dtype
        additive = torch.zeros(seen.shape, dtype=kind).masked_fill(~seen, torch.finfo(kind).min)[:, None]
        hidden = hidden_states(model, ids, attention_mask=additive, position_ids=position)
        line = torch.cat([torch.full((len(layout[2]),), row) for row, layout in enumerate(layouts)])
        source = torch.cat([torch.tensor(layout[2]) for layout in layouts])
        labels = torch.cat([torch.tensor(one.ids[one.prompt :]) for one in part])
        logits = head_of(model)(hidden[line, source])
        found = logits.gather(1, labels[:, None]).squeeze(1) - logits.logsumexp(1)
        lengths = [length for one in part for length in one.lengths]
        sums = [piece.sum() for piece in found.split(lengths)]
        at = 0
        for i, one in zip(chosen, part, strict=True):
            out[i] = torch.stack(sums[at : at + len(one.lengths)])
            at += len(one.lengths)
    return out


@dataclass(frozen=True)
class Answered:
    """How a model answers one prompt of a fact.

    Attributes:
        log_probability: Of the right answer, in nats.
        share: The right answer's share of the probability of all options, 0 to 1; what chance gives is 1 / options.
        margin: log p(right) - log p(best wrong one), in nats.
        rank: Of the right answer among the options, from 1.
    """

    log_probability: float
    share: float
    margin: float
    rank: int


@torch.no_grad()
def ask(
    model: nn.Module, tokenizer: Tokenizer, facts: Sequence[Fact], prompts: Sequence[Sequence[str]], before: str = ""
) -> list[list[Answered]]:
    """Ask a model prompts of facts, against their distractors; what does not fit its context is refused.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer.
        facts: What is asked about.
        prompts: For each fact, the prompts to ask.
        before: Text put in front of every prompt.

    Returns:
        For each fact, one answer per prompt.
    """
    flat = [(fact, prompt) for fact, mine in zip(facts, prompts, strict=True) for prompt in mine]
    packed = [pack(tokenizer, before + prompt, [fact.answer, *fact.distractors]) for fact, prompt in flat]
    longest = getattr(model.config, "max_position_embeddings", None)
    for (_, prompt), one in zip(flat, packed, strict=True):
        check_length(one.prompt + max(one.lengths), longest, f"The prompt {prompt[:60]!r}")
    answers = []
    for found in option_log_probabilities(model, packed):
        values = found.double()
        margin = float(values[0] - values[1:].max())
        share = float(values.softmax(0)[0])
        answers.append(Answered(float(values[0]), share, margin, 1 + int((values[1:] > values[0]).sum())))
    remaining = iter(answers)
    return [[next(remaining) for _ in mine] for mine in prompts]


def known_facts(
    model: nn.Module, tokenizer: Tokenizer, facts: Sequence[Fact]
) -> tuple[list[bool], list[list[Answered]]]:
    """Find out which facts a model knows.

    A fact counts as known if two of its first three prompts (the training ones and a held-out one in our banks) rank
    the right answer first among its distractors; guessing among six options gets 7% of facts there. The third is asked
    only where the first two disagree.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer.
        facts: To be tested.

    Returns:
        Whether each is known, and how each prompt that was asked was answered.
    """
    found = ask(model, tokenizer, facts, [fact.prompts[:2] for fact in facts])
    split = [i for i, mine in enumerate(found) if len({one.rank == 1 for one in mine}) == 2]
    if split:
        third = ask(model, tokenizer, [facts[i] for i in split], [facts[i].prompts[2:3] for i in split])
        for i, mine in zip(split, third, strict=True):
            found[i] += mine
    return [sum(one.rank == 1 for one in mine) * 2 > len(mine) for mine in found], found


def encode_facts(
    tokenizer: Tokenizer, facts: Sequence[Fact], which: str = "train", longest: int | None = None
) -> Encoded:
    """Encode the prompts of facts with their right answers.

    Args:
        tokenizer: Of the model.
        facts: At least one.
        which: "train" or "heldout".
        longest: The model's context, in tokens.

    Returns:
        One row per prompt, facts in order.
    """
    pairs = [(prompt, f.answer) for f in facts for prompt in (f.train if which == "train" else f.heldout)]
    return encode_answers(tokenizer, pairs, longest)
