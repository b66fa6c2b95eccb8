"""What a language model says: whole-answer log-probabilities, answers among wrong ones, loss on text.

Whole answers are scored, never their first subword. Logits are computed at the positions that are asked for only.
What is encoded lies on the CPU and is brought to the model's device here, where it meets the model.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

import torch
from torch import nn

from analysis.attribution.running import place, widened
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

ROWS = 16


def hidden_states(
    model: nn.Module, ids: torch.Tensor, soft: torch.Tensor | None = None, **given: torch.Tensor
) -> torch.Tensor:
    """Run a causal language model up to its head.

    Args:
        model: A Hugging Face causal language model.
        ids: int64 [n, t], on any device.
        soft: Embeddings [k, width] put in front of every row, on any device.
        given: Further inputs of the model, such as position ids, on any device.

    Returns:
        [n, k + t, width], after the last norm.
    """
    ids, given = place(model, ids), {name: place(model, value) for name, value in given.items()}
    if soft is None:
        return model.base_model(input_ids=ids, use_cache=False, **given).last_hidden_state  # type: ignore[operator]
    embedded = model.get_input_embeddings()(ids)  # type: ignore[operator]
    joined = torch.cat([soft.to(embedded).expand(len(ids), -1, -1), embedded], 1)
    return model.base_model(inputs_embeds=joined, use_cache=False, **given).last_hidden_state  # type: ignore[operator]


def head_of(model: nn.Module) -> nn.Module:
    """Find the module that turns hidden states into logits.

    Args:
        model: A Hugging Face causal language model.

    Returns:
        Its head.
    """
    return model.get_output_embeddings()  # type: ignore[operator]


def logits_of(model: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """Turn hidden states into logits; differentiable.

    Args:
        model: A causal language model; only its head runs.
        states: [..., width], after the last norm.

    Returns:
        [..., vocabulary], in float32 where the model computes in less: probabilities take more digits than that.
    """
    return widened(head_of(model)(states))


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
    labels = labels.to(hidden.device)
    rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
    logits = logits_of(model, hidden[rows, columns])
    return logits.gather(1, labels[rows, columns][:, None]).squeeze(1) - logits.logsumexp(1), rows


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


def answer_means(model: nn.Module, encoded: Encoded) -> torch.Tensor:
    """Score answers whatever their length; differentiable.

    Args:
        model: A causal language model.
        encoded: The sequences.

    Returns:
        Mean of log p over each row's asked tokens [n], in nats per token.
    """
    found = answer_log_probabilities(model, encoded)
    return found / (encoded.labels != IGNORED).sum(1).to(found.device)


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
        out.append(-answer_means(model, encoded.take(slice(start, start + rows))))
    return torch.cat(out)


@dataclass(frozen=True)
class Options:
    """One prompt and the answers it may have, packed into one sequence: prompt, option, option, ...

    Attributes:
        prompt: The prompt's ids.
        tails: Each option's ids.
    """

    prompt: tuple[int, ...]
    tails: tuple[tuple[int, ...], ...]

    @property
    def ids(self) -> list[int]:
        """The packed sequence; an option's last token predicts nothing that is asked for, and is left out."""
        return [*self.prompt, *(token for tail in self.tails for token in tail[:-1])]


def pack(tokenizer: Tokenizer, prompt: str, answers: Sequence[str]) -> Options:
    """Pack a prompt with its possible answers.

    Args:
        tokenizer: Of the model.
        prompt: Ends where the answers begin.
        answers: At least one.

    Returns:
        The packed sequence; a prompt whose last token melts into some answer ends before it.
    """
    found = [continuation(tokenizer, prompt, answer) for answer in answers]
    start = max(1, min(start for _, start in found))
    return Options(tuple(found[0][0][:start]), tuple(tuple(ids[start:]) for ids, _ in found))


def _layout(options: Options) -> tuple[list[int], list[int], list[int]]:
    # Group (0 for the prompt, else the option's number), position, and for each answer token where it is predicted,
    # counted from the prompt's last token, where the first tokens of all options are.
    start = len(options.prompt)
    group, position, source = [0] * start, list(range(start)), []
    for number, tail in enumerate(options.tails, 1):
        source += [0, *range(len(group) - start + 1, len(group) - start + len(tail))]
        position += range(start, start + len(tail) - 1)
        group += [number] * (len(tail) - 1)
    return group, position, source


def _batches(packed: Sequence[Options], rows: int) -> Iterator[list[int]]:
    # Alike lengths go together, so that little is spent on padding.
    order = sorted(range(len(packed)), key=lambda i: len(packed[i].ids))
    for start in range(0, len(order), rows):
        yield order[start : start + rows]


def read_options(
    model: nn.Module, packed: Sequence[Options], soft: torch.Tensor | None = None, rows: int = ROWS
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Score the possible answers of many prompts, running each prompt once.

    Options of a prompt stand side by side in one sequence; each sees the prompt and itself, at the positions that it
    would have alone. Tested to equal scoring every option by itself.

    Args:
        model: A causal language model, run as it is; differentiable under its caller's grad mode.
        packed: From `pack`.
        soft: Embeddings [k, width] put in front of every prompt.
        rows: Sequences at once.

    Returns:
        For each prompt the options' log-probabilities [k], in nats; and for each token of the first option whether
        greedy decoding would give it if those before it were given, bool.
    """
    out: list[tuple[torch.Tensor, torch.Tensor]] = [(torch.empty(0), torch.empty(0))] * len(packed)
    before = 0 if soft is None else len(soft)
    for chosen in _batches(packed, rows):
        part = [packed[i] for i in chosen]
        layouts = [_layout(one) for one in part]
        ids = pad([one.ids for one in part], 0)
        group = nn.functional.pad(pad([layout[0] for layout in layouts], -1), (before, 0))
        position = nn.functional.pad(pad([layout[1] for layout in layouts], 0) + before, (before, 0))
        position[:, :before] = torch.arange(before)
        causal = torch.ones(group.shape[1], group.shape[1], dtype=torch.bool).tril()
        seen = causal & ((group[:, None, :] == 0) | (group[:, None, :] == group[:, :, None]))
        seen |= torch.eye(group.shape[1], dtype=torch.bool)
        kind = next(model.parameters()).dtype
        additive = torch.zeros(seen.shape, dtype=kind).masked_fill(~seen, torch.finfo(kind).min)[:, None]
        hidden = hidden_states(model, ids, soft, attention_mask=additive, position_ids=position)
        spots = [(row, spot) for row, one in enumerate(part) for spot in range(len(one.prompt) - 1, len(one.ids))]
        line, spot = torch.tensor(spots).T
        logits = logits_of(model, hidden[line, spot + before])
        offsets = [0, *accumulate(len(one.ids) - len(one.prompt) + 1 for one in part)]
        source = torch.tensor([offset + at for offset, one in zip(offsets, layouts, strict=False) for at in one[2]])
        tokens = [token for one in part for tail in one.tails for token in tail]
        labels = torch.tensor(tokens, device=logits.device)
        found = logits[source, labels] - logits.logsumexp(1)[source]
        likeliest = logits.argmax(1)[source] == labels
        pieces = iter(found.split([len(tail) for one in part for tail in one.tails]))
        at = 0
        for i, one in zip(chosen, part, strict=True):
            sums = torch.stack([next(pieces).sum() for _ in one.tails])
            first = slice(at, at + len(one.tails[0]))
            out[i] = sums, likeliest[first]
            at += sum(map(len, one.tails))
    return out


@dataclass(frozen=True)
class Answered:
    """How a model answers one prompt of a fact.

    Attributes:
        options: Log-probabilities in nats, the right answer's first.
        greedy: For each token of the right answer, whether greedy decoding would give it if those before it were given.
    """

    options: tuple[float, ...]
    greedy: tuple[bool, ...]

    @property
    def share(self) -> float:
        """The right answer's share of the probability of all options, 0 to 1; chance gives 1 / options."""
        return share(self.options)

    @property
    def margin(self) -> float:
        """The right answer's log-probability less the best wrong one's, in nats."""
        return self.options[0] - max(self.options[1:])

    @property
    def rank(self) -> int:
        """Of the right answer among the options, from 1."""
        return 1 + sum(one > self.options[0] for one in self.options[1:])


def share(options: Sequence[float]) -> float:
    """Compute the first option's share.

    Args:
        options: Log-probabilities, or scores on their scale.

    Returns:
        exp(first) over the sum of exp of all.
    """
    top = max(options)
    odds = [math.exp(one - top) for one in options]
    return odds[0] / sum(odds)


@torch.no_grad()
def ask(
    model: nn.Module,
    tokenizer: Tokenizer,
    facts: Sequence[Fact],
    prompts: Sequence[Sequence[str]],
    before: str = "",
    soft: torch.Tensor | None = None,
) -> list[list[Answered]]:
    """Ask a model prompts of facts, against their distractors; what does not fit its context is refused.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer.
        facts: What is asked about.
        prompts: For each fact, the prompts to ask.
        before: Text put in front of every prompt.
        soft: Embeddings [k, width] put in front of that.

    Returns:
        For each fact, one answer per prompt.
    """
    flat = [(fact, prompt) for fact, mine in zip(facts, prompts, strict=True) for prompt in mine]
    packed = [pack(tokenizer, before + prompt, [fact.answer, *fact.distractors]) for fact, prompt in flat]
    longest = getattr(model.config, "max_position_embeddings", None)
    for (_, prompt), one in zip(flat, packed, strict=True):
        length = len(one.prompt) + max(map(len, one.tails)) + (0 if soft is None else len(soft))
        check_length(length, longest, f"The prompt {prompt[:60]!r}")
    found = iter(read_options(model, packed, soft))
    return [[Answered(tuple(o.tolist()), tuple(g.tolist())) for o, g in islice(found, len(mine))] for mine in prompts]


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
