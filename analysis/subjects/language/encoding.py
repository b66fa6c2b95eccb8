"""Facts and texts as token ids.

Sequences are padded on the right. In a causal model nothing sees what comes after it, so padding needs no attention
mask, any id can be padding, and a padded position only has to be no label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from analysis.errors import UserError

IGNORED = -100
Tokenizer = Any
"""A Hugging Face tokenizer; typed loosely because its classes share no useful protocol."""


@dataclass(frozen=True)
class Encoded:
    """Sequences, and which of their tokens are asked for.

    Attributes:
        ids: int64 [n, t], padded on the right.
        labels: int64 [n, t]; at each position the token that follows it if that token is asked for, else -100.
    """

    ids: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: torch.Tensor | slice) -> "Encoded":
        """Take some rows, without the padding that only others needed.

        Args:
            rows: Indices, a boolean mask or a slice.

        Returns:
            The rows.
        """
        ids, labels = self.ids[rows], self.labels[rows]
        width = int((labels != IGNORED).any(0).nonzero().max()) + 2 if (labels != IGNORED).any() else ids.shape[1]
        return Encoded(ids[:, :width], labels[:, :width])


def token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokenise a text that will be continued.

    Args:
        tokenizer: Of the model.
        text: Any text.

    Returns:
        Ids, with whatever the tokenizer puts in front of a text, without the end mark some put behind it.
    """
    ids = list(tokenizer(text).input_ids)
    while len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids


def continuation(tokenizer: Tokenizer, prompt: str, answer: str) -> tuple[list[int], int]:
    """Tokenise a prompt with its answer as one text, since tokens may reach over the border.

    Args:
        tokenizer: Of the model.
        prompt: Ends where the answer begins, without the space between.
        answer: Without leading space.

    Returns:
        The ids of both together, and how many of them belong to the prompt: the longest beginning that they share
        with the prompt's own ids, so every token that depends on the answer counts as answer.
    """
    alone, both = token_ids(tokenizer, prompt), token_ids(tokenizer, f"{prompt} {answer}")
    shared = 0
    while shared < min(len(alone), len(both) - 1) and alone[shared] == both[shared]:
        shared += 1
    return both, shared


def check_length(length: int, longest: int | None, what: str) -> None:
    """Refuse what a model can't read at once.

    Args:
        length: In tokens.
        longest: The model's context, in tokens; None does not check.
        what: Is so long, as the sentence begins.

    Raises:
        UserError: It is too long.
    """
    if longest is not None and length > longest:
        raise UserError(
            f"{what} has {length} tokens, but the model reads at most {longest}; shorten it or take another model."
        )


def pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Stack rows of different length.

    Args:
        rows: At least one.
        value: Fills the right.

    Returns:
        int64 [n, longest].
    """
    out = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.long)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = torch.tensor(row, dtype=torch.long)
    return out


def encode_answers(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], longest: int | None = None) -> Encoded:
    """Encode prompts with their answers; the answers' tokens are asked for.

    Args:
        tokenizer: Of the model.
        pairs: Prompt and answer.
        longest: The model's context, in tokens; None does not check.

    Returns:
        One row per pair.

    Raises:
        UserError: There are no pairs, or one does not fit the context.
    """
    if not pairs:
        raise UserError("There are no facts to encode; check the bank and which of its facts the model knows.")
    rows, labels = [], []
    for prompt, answer in pairs:
        ids, start = continuation(tokenizer, prompt, answer)
        check_length(len(ids), longest, f"The prompt {prompt[:60]!r}")
        start = max(start, 1)
        rows.append(ids)
        labels.append([IGNORED] * (start - 1) + ids[start:] + [IGNORED])
    return Encoded(pad(rows, 0), pad(labels, IGNORED))


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], longest: int | None = None) -> Encoded:
    """Encode plain texts; every token but the first is asked for.

    Args:
        tokenizer: Of the model.
        texts: At least one.
        longest: The model's context, in tokens; None does not check.

    Returns:
        One row per text.

    Raises:
        UserError: There are no texts, or one does not fit the context or is a single token.
    """
    if not texts:
        raise UserError('There are no texts to encode; add lines of kind "text" to the bank.')
    rows = [token_ids(tokenizer, text) for text in texts]
    for text, row in zip(texts, rows, strict=True):
        check_length(len(row), longest, f"The text {text[:60]!r}")
        if len(row) < 2:
            raise UserError(f"The text {text!r} is a single token, of which nothing can be asked; make it longer.")
    return Encoded(pad(rows, 0), pad([[*row[1:], IGNORED] for row in rows], IGNORED))
