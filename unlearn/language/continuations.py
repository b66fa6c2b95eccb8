"""What both models say: continuations of the same prompts, side by side."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from analysis.audit.facts.prompting import sampled
from analysis.subjects.language.encoding import Tokenizer, check_length, token_ids
from analysis.subjects.language.models import LanguageModel

NEW = 16


def spoken(
    model: nn.Module, tokenizer: Tokenizer, prompts: Sequence[str], samples: int, seed: int, new: int = NEW
) -> list[list[str]]:
    """Let a model continue prompts: each once greedily, then by drawing.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompts: Any texts.
        samples: How many to draw for each besides the greedy one.
        seed: Of the draws.
        new: Tokens of each.

    Returns:
        For each prompt its continuations, the greedy one first, each up to where the model ends; a prompt that does
        not fit the model's context is refused.
    """

    def told(row: torch.Tensor) -> str:
        tokens = row.tolist()
        end = tokens.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in tokens else len(tokens)
        return str(tokenizer.decode(tokens[:end]))

    ids = [token_ids(tokenizer, prompt) for prompt in prompts]
    longest = getattr(model.config, "max_position_embeddings", None)
    for prompt, mine in zip(prompts, ids, strict=True):
        check_length(len(mine) + new, longest, f"The prompt {prompt[:60]!r} with {new} tokens to come")
    greedy = sampled(model, ids, 1, new, seed, temperature=0)
    drawn = sampled(model, ids, samples, new, seed) if samples else [torch.empty(0, new)] * len(ids)
    return [[told(row) for row in (*first, *rest)] for first, rest in zip(greedy, drawn, strict=True)]


def continuations(
    language: LanguageModel, edited: nn.Module, prompts: Sequence[str], samples: int, seed: int
) -> list[dict[str, Any]]:
    """Let the original and the edited model continue prompts.

    Args:
        language: The original with its tokenizer.
        edited: The edited model.
        prompts: Openings.
        samples: How many to draw for each besides the greedy continuation.
        seed: Of the draws, the same for both.

    Returns:
        For each prompt `prompt`, `original` and `edited`: the greedy continuation, then the drawn ones.
    """
    before, after = (spoken(model, language.tokenizer, prompts, samples, seed) for model in (language.model, edited))
    return [
        {"prompt": prompt, "original": mine, "edited": theirs}
        for prompt, mine, theirs in zip(prompts, before, after, strict=True)
    ]
