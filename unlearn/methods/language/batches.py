"""What a step of a language method sees, and the loss that keeps what must stay.

Every step draws forgotten facts, retained facts and texts. Forgotten facts are raised, steered or unlearnt by the
methods, each in its own way; what stays is kept alike by all of them: `kept_loss`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.language.encoding import IGNORED, Encoded, pad, token_ids
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.scoring import answer_log_probabilities, hidden_states, logits_of, mean_loss
from unlearn.optimize import batches

Keep = Literal["kl", "ce"]
"""How retained data is kept: as likely as the original found it all, or as likely as possible."""

ROWS = 32
SHARE_POWER = 0.8


@dataclass(frozen=True)
class Batch:
    """What one step sees.

    Attributes:
        forget: Prompts of facts to forget, with their answers.
        retain: The same of facts to keep.
        texts: Texts to keep.
        forget_rows: int64 [n], which rows of the subject's `forget_encoded` are in `forget`, in order.
    """

    forget: Encoded
    retain: Encoded
    texts: Encoded
    forget_rows: torch.Tensor


def drawn_rows(total: int, size: int, steps: int, seed: int) -> list[torch.Tensor]:
    """Draw rows for a fixed number of steps, shuffling anew for every pass.

    Args:
        total: Rows there are.
        size: Rows a step (all when there are fewer).
        steps: How many steps.
        seed: Of the order.

    Returns:
        int64 [size], one for each step.

    Raises:
        UserError: `size` or `steps` is below 1, or there are no rows.
    """
    if total < 1 or size < 1 or steps < 1:
        raise UserError(f"{steps} steps of {size} of {total} rows make no edit; all three must be at least 1.")
    return [rows for (rows,) in batches((torch.arange(total),), size, steps, seed)]


def fact_batches(
    subject: FactSubject, forget_rows: int, retain_rows: int, text_rows: int, steps: int, seed: int
) -> list[Batch]:
    """Draw what every step sees.

    Args:
        subject: What to forget and what to keep.
        forget_rows: Prompts of forgotten facts a step.
        retain_rows: Prompts of retained facts a step.
        text_rows: Texts a step.
        steps: How many steps.
        seed: Of the order of all three.

    Returns:
        One batch for each step.
    """
    gone, kept, texts = subject.forget_encoded, subject.retain_encoded, subject.texts_encoded
    rows = zip(
        drawn_rows(len(gone), forget_rows, steps, seed),
        drawn_rows(len(kept), retain_rows, steps, seed + 1),
        drawn_rows(len(texts), text_rows, steps, seed + 2),
        strict=True,
    )
    return [Batch(gone.take(a), kept.take(b), texts.take(c), a) for a, b, c in rows]


def masked_rate(lr: float, mask: Mask | None, model: nn.Module) -> float:
    """Raise a learning rate that was chosen for all weights to what a mask of fewer weights needs.

    A step of Adam moves every weight alike, so fewer weights must move further for the same effect: by about the share
    they are of all, to the power of -0.8. The power is a guess between rates that worked on SmolLM2-135M with other
    losses (1e-3 for 2% of the weights, 4e-3 for 0.3%); it was not fitted.

    Args:
        lr: For all weights.
        mask: What may change; None allows every parameter.
        model: The model.

    Returns:
        The learning rate under the mask.
    """
    if mask is None or mask.count == 0:
        return lr
    return lr * (mask.count / sum(p.numel() for p in model.parameters())) ** -SHARE_POWER


def joined(first: Encoded, second: Encoded) -> Encoded:
    """Put the rows of two encodings into one.

    Args:
        first: Its rows come first.
        second: Its rows follow.

    Returns:
        All rows, padded to the longest.
    """
    return Encoded(
        pad([*first.ids.tolist(), *second.ids.tolist()], 0),
        pad([*first.labels.tolist(), *second.labels.tolist()], IGNORED),
    )


def lengths_of(encoded: Encoded) -> torch.Tensor:
    """Count the tokens of each row without its padding.

    Args:
        encoded: Rows whose last token is asked for, as that of answers and texts is.

    Returns:
        int64 [n].
    """
    place = torch.arange(encoded.labels.shape[1])
    return torch.where(encoded.labels != IGNORED, place + 2, 0).amax(1)


def subject_ends(subject: FactSubject) -> torch.Tensor:
    """Find where each forgotten prompt has named what it asks about.

    Args:
        subject: What to forget.

    Returns:
        int64 [n], position of the last token of the fact's subject, for each row of `subject.forget_encoded`.
    """
    pairs = [(prompt, fact.subject) for fact in subject.forget for prompt in fact.train]
    return torch.tensor([last_token(subject, prompt, name) for prompt, name in pairs])


def last_token(subject: FactSubject, prompt: str, name: str) -> int:
    """Find the last token of a name in a prompt.

    Args:
        subject: Has the tokenizer.
        prompt: Contains the name.
        name: Matched as text, since its tokens depend on what stands around it.

    Returns:
        The position among the prompt's tokens, from 0.
    """
    whole = token_ids(subject.tokenizer, prompt)
    begun = token_ids(subject.tokenizer, prompt[: prompt.index(name) + len(name)])
    shared = 0
    while shared < min(len(whole), len(begun)) and whole[shared] == begun[shared]:
        shared += 1
    # Where the name's end melts into the next token, that token is the first to have seen all of it.
    return min(shared if shared < len(begun) else shared - 1, len(whole) - 1)


@torch.no_grad()
def answers_before(model: nn.Module, encoded: Encoded) -> torch.Tensor:
    """Score whole answers with the original, once, as a reference.

    Args:
        model: The original, in evaluation mode.
        encoded: The answers.

    Returns:
        log p of each answer [n], in nats, without graph.
    """
    parts = [encoded.take(slice(start, start + ROWS)) for start in range(0, len(encoded), ROWS)]
    return torch.cat([answer_log_probabilities(model, part) for part in parts])


def asked_logits(model: nn.Module, encoded: Encoded) -> torch.Tensor:
    """Compute log-probabilities of the whole vocabulary where tokens are asked for; differentiable.

    Args:
        model: A causal language model.
        encoded: The sequences.

    Returns:
        [m, vocabulary], in nats, rows in reading order.
    """
    hidden = hidden_states(model, encoded.ids)
    return logits_of(model, hidden[encoded.labels != IGNORED]).log_softmax(1)


def divergence(model: nn.Module, original: nn.Module, encoded: Encoded) -> torch.Tensor:
    """Compute how far a model has moved from the original; differentiable.

    Args:
        model: The working model.
        original: The frozen one; it runs without graph.
        encoded: Where to compare them.

    Returns:
        Mean over asked tokens of KL(original || model), a scalar in nats.
    """
    with torch.no_grad():
        before = asked_logits(original, encoded)
    return nn.functional.kl_div(asked_logits(model, encoded), before, reduction="batchmean", log_target=True)


def kept_loss(model: nn.Module, original: nn.Module, batch: Batch, keep: Keep) -> torch.Tensor:
    """Measure what was lost of what must stay; differentiable.

    Every batch is seen once, so the original's opinion is computed when it is needed and never stored.

    Args:
        model: The working model.
        original: The model before the edit, in evaluation mode.
        batch: Retained facts and texts; each half counts alike, by its mean over asked tokens.
        keep: "kl" compares with the original, "ce" takes the cross-entropy of the retained tokens.

    Returns:
        A scalar in nats per token.

    Raises:
        UserError: `keep` is neither.
    """
    if keep == "kl":
        return (divergence(model, original, batch.retain) + divergence(model, original, batch.texts)) / 2
    if keep == "ce":
        return (mean_loss(model, batch.retain) + mean_loss(model, batch.texts)) / 2
    raise UserError(f'What must stay can\'t be kept by {keep!r}; choose "kl" or "ce".')
