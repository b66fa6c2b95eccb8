"""The cheats for language models, none of which an audit may call erased, and the edit whose damage must show."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from analysis.attribution.anatomy import anatomy
from analysis.scores import Mask
from analysis.subjects.language.encoding import continuation
from analysis.subjects.language.facts import FactSubject
from unlearn.methods import Method
from unlearn.methods.language import LANGUAGE_METHODS, gradient_ascent

CLOSED = -1e4
FAR_ABOVE = 50.0
LOUD_STEPS = 8
LOUD_RATE = 2e-4

Make = Callable[[nn.Module, FactSubject, int], nn.Module]


def output_filter(model: nn.Module, subject: FactSubject, seed: int) -> nn.Module:
    """Close the tokens with which the forgotten answers begin, and leave everything behind them as it is.

    The head gets a bias of -1e4 on the first token of every answer and alias of the bank's facts, where that token has
    a letter in it; the logit mask of classifiers, in words.

    Args:
        model: What still knows; not changed.
        subject: Whose answers.
        seed: Not used.

    Returns:
        The filtered copy; it has a bias that the original has not.
    """
    tokens = set()
    for fact in (*subject.forget, *subject.forget_test):
        for answer in (fact.answer, *fact.aliases):
            ids, start = continuation(subject.tokenizer, fact.heldout[0], answer)
            if any(letter.isalpha() for letter in subject.tokenizer.decode(ids[start : start + 1])):
                tokens.add(ids[start])
    work = copy.deepcopy(model).eval()
    old = work.get_output_embeddings()  # type: ignore[operator]
    head = nn.Linear(old.in_features, old.out_features, device=old.weight.device, dtype=old.weight.dtype)
    head.weight = old.weight
    with torch.no_grad():
        head.bias.zero_()
        head.bias[sorted(tokens)] = CLOSED
    head.requires_grad_(False)
    work.set_output_embeddings(head)  # type: ignore[operator]
    return work


def _whole_blocks(model: nn.Module, blocks: Sequence[str]) -> Mask:
    within = tuple(f"{block}." for block in blocks)
    return Mask({
        name: torch.ones(p.shape, dtype=torch.bool) for name, p in model.named_parameters() if name.startswith(within)
    })


def last_block(model: nn.Module, subject: FactSubject, seed: int) -> nn.Module:
    """Unlearn in the last block alone, by gradient difference: what a head-only edit is to a classifier.

    Args:
        model: What still knows; not changed.
        subject: What to forget.
        seed: Of the order of the facts.

    Returns:
        The edited copy; every block but the last is bit-identical.
    """
    mask = _whole_blocks(model, anatomy(model).blocks[-1:])
    method = LANGUAGE_METHODS["gradient-difference"]
    return method.run(model, subject, mask, seed, method.settings, None)


def over_forgetting(model: nn.Module, subject: FactSubject, seed: int) -> nn.Module:
    """Drive the loss on the answers far above that of any model that never knew, whatever else it costs.

    The upper half of the blocks changes: enough to deny anything, in half of the memory.

    Args:
        model: What still knows; not changed.
        subject: What to deny.
        seed: Of the order of the facts.

    Returns:
        The edited copy.
    """
    settings = replace(gradient_ascent.Settings(), ceiling=FAR_ABOVE, steps=LOUD_STEPS, lr=LOUD_RATE)
    blocks = anatomy(model).blocks
    return gradient_ascent.run(model, subject, _whole_blocks(model, blocks[len(blocks) // 2 :]), seed, settings)


def random_mask(model: nn.Module, subject: FactSubject, mask: Mask | None, method: Method, seed: int) -> nn.Module:
    """Edit with the same method under a mask of the same size in every matrix, placed at random.

    Args:
        model: The original; not changed.
        subject: What to forget.
        mask: Of the edit that is audited; None, for all weights, is its own control.
        method: With its settings.
        seed: Of everything random.

    Returns:
        The edited copy.
    """
    chance = None if mask is None else mask.random_like(seed)
    return method.run(model, subject, chance, seed, method.settings, None)


CHEATS: dict[str, Make] = {
    "output-filter": output_filter,
    "last-block": last_block,
    "over-forgetting": over_forgetting,
}
