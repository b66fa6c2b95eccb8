"""What both models say: continuations of the same prompts, side by side."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from analysis.audit.facts.prompting import sampled
from analysis.subjects.language.encoding import Tokenizer, token_ids
from analysis.subjects.language.models import LanguageModel

NEW = 16


def spoken(model: nn.Module, tokenizer: Tokenizer, prompt: str, samples: int, seed: int, new: int = NEW) -> list[str]:
    """Let a model continue a prompt: once greedily, then by drawing.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompt: Any text.
        samples: How many to draw besides the greedy one.
        seed: Of the draws.
        new: Tokens of each.

    Returns:
        The continuations, the greedy one first, each up to where the model ends.
    """
    ids = token_ids(tokenizer, prompt)
    rows = list(sampled(model, [ids], 1, new, seed, temperature=0)[0])
    rows += list(sampled(model, [ids], samples, new, seed)[0]) if samples else []
    texts = []
    for row in rows:
        tokens = row.tolist()
        end = tokens.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in tokens else len(tokens)
        texts.append(str(tokenizer.decode(tokens[:end])))
    return texts


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
    tokenizer = language.tokenizer
    return [
        {
            "prompt": prompt,
            "original": spoken(language.model, tokenizer, prompt, samples, seed),
            "edited": spoken(edited, tokenizer, prompt, samples, seed),
        }
        for prompt in prompts
    ]
