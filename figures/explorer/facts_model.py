"""What both models say to a prompt: continuations token by token, candidates, the logit lens, the edit by degrees."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from analysis.audit.facts.prompting import sampled
from analysis.errors import UserError
from analysis.representations.logit_lens import logit_lens
from analysis.subjects.language.encoding import IGNORED, Encoded, check_length, encode_answers, pad, token_ids
from analysis.subjects.language.scoring import (
    answer_log_probabilities,
    head_of,
    hidden_states,
    token_log_probabilities,
)
from figures.explorer.facts_pair import Pair

NEW = 20
CANDIDATES = 8
STRENGTHS = tuple(step / 10 for step in range(11))


@dataclass(frozen=True)
class Question:
    """A prompt and the answer whose probability is followed.

    Attributes:
        prompt: As typed.
        answer: As typed, or the original's own next token.
        given: Whether the answer was typed.
        ids: Of the prompt alone.
        encoded: One row, in which the answer's tokens are asked for.
    """

    prompt: str
    answer: str
    given: bool
    ids: tuple[int, ...]
    encoded: Encoded


@dataclass(frozen=True)
class Told:
    """A text as both models see it.

    Attributes:
        tokens: Decoded one by one.
        start: How many of them are the prompt's.
        before: log p of each token after those before it, by the original, in nats; None for the first.
        after: The same by the edited model.
    """

    tokens: tuple[str, ...]
    start: int
    before: tuple[float | None, ...]
    after: tuple[float | None, ...]

    @property
    def changes(self) -> tuple[float | None, ...]:
        """How much likelier the edit made each token, in nats."""
        both = zip(self.before, self.after, strict=True)
        return tuple(None if old is None or new is None else new - old for old, new in both)


@dataclass(frozen=True)
class Candidate:
    """A token that may come next.

    Attributes:
        token: Decoded.
        before: Its probability by the original, 0 to 1.
        after: By the edited model.
    """

    token: str
    before: float
    after: float


@dataclass(frozen=True)
class Layer:
    """What one layer of one model would say.

    Attributes:
        probability: Of the whole answer, 0 to 1.
        rank: Of the answer's first token in the vocabulary, from 1.
        word: The likeliest next token.
    """

    probability: float
    rank: int
    word: str


def decoded(pair: Pair, ids: Sequence[int]) -> tuple[str, ...]:
    """Write tokens one by one.

    Args:
        pair: Has the tokenizer.
        ids: Tokens.

    Returns:
        A text for each.
    """
    return tuple(str(pair.tokenizer.decode([token])) for token in ids)


@torch.no_grad()
def next_probabilities(model: nn.Module, ids: Sequence[int]) -> torch.Tensor:
    """Read what may come next.

    Args:
        model: A causal language model.
        ids: At least one token.

    Returns:
        Probabilities over the vocabulary.
    """
    logits: torch.Tensor = head_of(model)(hidden_states(model, torch.tensor([list(ids)]))[0, -1])
    return logits.softmax(0)


def question(pair: Pair, prompt: str, answer: str) -> Question:
    """Take what was typed.

    Args:
        pair: The models.
        prompt: Any text that leaves room for a continuation.
        answer: What may follow, without the space between; where it is empty, the original's next token is.

    Returns:
        The question.

    Raises:
        UserError: The prompt is empty or too long.
    """
    prompt, answer = prompt.rstrip(), answer.strip()
    if not prompt:
        raise UserError("There is nothing to ask with an empty prompt; type some words.")
    longest = pair.language.longest
    ids = token_ids(pair.tokenizer, prompt)
    check_length(len(ids) + NEW, longest, f"The prompt with {NEW} tokens to come")
    if answer:
        encoded = encode_answers(pair.tokenizer, [(prompt, answer)], longest)
        return Question(prompt, answer, True, tuple(ids), encoded)
    following = int(next_probabilities(pair.original, ids).argmax())
    labels = [*[IGNORED] * (len(ids) - 1), following, IGNORED]
    encoded = Encoded(torch.tensor([[*ids, following]]), torch.tensor([labels]))
    return Question(prompt, decoded(pair, [following])[0], False, tuple(ids), encoded)


def continued(model: nn.Module, ids: Sequence[int], end: int | None, new: int = NEW) -> list[int]:
    """Continue a prompt greedily.

    Args:
        model: A causal language model.
        ids: The prompt.
        end: Token with which the model ends.
        new: Tokens at most.

    Returns:
        What follows, without the end mark.
    """
    found: list[int] = sampled(model, [ids], 1, new, 0, temperature=0)[0][0].tolist()
    return found[: found.index(end)] if end in found else found


@torch.no_grad()
def read(pair: Pair, texts: Sequence[Sequence[int]], start: int) -> list[Told]:
    """Let both models score texts, each token by those before it.

    Args:
        pair: The models; the edited one as it stands.
        texts: Token ids that begin with the same prompt.
        start: How many of them are the prompt's.

    Returns:
        The texts in order.
    """
    encoded = Encoded(pad(texts, 0), pad([[*text[1:], IGNORED] for text in texts], IGNORED))
    sizes = [len(text) - 1 for text in texts]
    before, after = (token_log_probabilities(model, encoded)[0].split(sizes) for model in (pair.original, pair.edited))
    return [
        Told(decoded(pair, text), start, (None, *old.tolist()), (None, *new.tolist()))
        for text, old, new in zip(texts, before, after, strict=True)
    ]


def ask(pair: Pair, asked: Question) -> tuple[Told, Told]:
    """Let both models continue the prompt, and both score what either said.

    Args:
        pair: The models.
        asked: The question.

    Returns:
        Prompt and continuation of the original, then of the edited model.
    """
    texts = [
        [*asked.ids, *continued(model, asked.ids, pair.tokenizer.eos_token_id)]
        for model in (pair.original, pair.at(1.0))
    ]
    mine, theirs = read(pair, texts, len(asked.ids))
    return mine, theirs


def candidates(pair: Pair, asked: Question, most: int = CANDIDATES) -> list[Candidate]:
    """List the likeliest next tokens of both models.

    Args:
        pair: The models.
        asked: The question.
        most: How many at most.

    Returns:
        Those that either model finds likeliest, likeliest first.
    """
    before, after = (next_probabilities(model, asked.ids) for model in (pair.original, pair.at(1.0)))
    chosen = torch.maximum(before, after).topk(min(most, len(before))).indices.tolist()
    words = decoded(pair, chosen)
    return [Candidate(word, float(before[i]), float(after[i])) for word, i in zip(words, chosen, strict=True)]


def lens(pair: Pair, asked: Question) -> tuple[list[Layer], list[Layer]]:
    """Read the answer off every layer of both models.

    Args:
        pair: The models.
        asked: The question.

    Returns:
        Layers of the original and of the edited model: what enters the first block, then each block's output.
    """

    def layers(model: nn.Module) -> list[Layer]:
        found = logit_lens(model, asked.encoded.ids, asked.encoded.labels)
        shares = found.log_probability.sum(1).exp().tolist()
        words = decoded(pair, found.top[:, 0].tolist())
        return [Layer(*one) for one in zip(shares, found.rank[:, 0].tolist(), words, strict=True)]

    return layers(pair.original), layers(pair.at(1.0))


@torch.no_grad()
def answer_probability(model: nn.Module, asked: Question) -> float:
    """Score the whole answer.

    Args:
        model: A causal language model.
        asked: The question.

    Returns:
        Its probability after the prompt, 0 to 1.
    """
    return float(answer_log_probabilities(model, asked.encoded).exp())


def fading(pair: Pair, asked: Question, strengths: Sequence[float] = STRENGTHS) -> list[float]:
    """Follow the answer's probability as the edit is turned up.

    Args:
        pair: The models.
        asked: The question.
        strengths: Of the edit, 0 to 1.

    Returns:
        A probability for each, 0 to 1.
    """
    return [answer_probability(pair.at(strength), asked) for strength in strengths]


def half_strength(strengths: Sequence[float], probabilities: Sequence[float]) -> float | None:
    """Find where half of the answer's probability is gone.

    Args:
        strengths: Rising.
        probabilities: At each.

    Returns:
        The strength at which it first falls through half of what it was at the first, between two points along a
        straight line; None if it never does.
    """
    half = probabilities[0] / 2
    for (low, before), (high, after) in pairwise(zip(strengths, probabilities, strict=True)):
        if before > half >= after:
            return low + (high - low) * (before - half) / (before - after)
    return None
