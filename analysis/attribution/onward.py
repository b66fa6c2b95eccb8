"""Running the rest of a causal language model, from one block on.

Whatever changes at one block changes nothing below it. So what enters a block is noted once, with what the blocks are
given beside it, and variants begin there: paths of a layer's neurons (`language_ig`), patched prompts (`resuming`), and
the steps of an edit of upper blocks (`unlearn.prefix`).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a block is given beside the states that enter it, such as positions and masks."""


@contextmanager
def entering(blocks: Sequence[nn.Module]) -> Iterator[tuple[list[torch.Tensor], list[Arguments]]]:
    """Note what blocks are given while a model runs.

    Args:
        blocks: In the order in which they run.

    Yields:
        What enters each block [n, t, width], and what else it is given; both grow with every block that runs.
    """
    streams: list[torch.Tensor] = []
    arguments: list[Arguments] = []

    def note(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        streams.append(given[0])
        arguments.append((given[1:], named))

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield streams, arguments


def first_row(argument: Any) -> Any:
    """Take what belongs to the first of several prompts, which then broadcasts to any number of variants.

    Args:
        argument: Whatever a block is given; tensors with a row for each prompt, also inside tuples, are cut.

    Returns:
        The same of one row.
    """
    if isinstance(argument, dict):
        return {name: first_row(one) for name, one in argument.items()}
    if isinstance(argument, tuple):
        return tuple(first_row(one) for one in argument)
    return argument[:1] if isinstance(argument, torch.Tensor) and argument.dim() > 1 else argument


def leaving(output: Any) -> torch.Tensor:
    """Take the states from what a block gives.

    Args:
        output: The states, or a tuple that begins with them.

    Returns:
        The states.
    """
    return output if isinstance(output, torch.Tensor) else output[0]


def onward(
    blocks: Sequence[nn.Module], norm: nn.Module, states: torch.Tensor, arguments: Sequence[Arguments]
) -> torch.Tensor:
    """Run blocks and the final norm.

    Args:
        blocks: From the one that the states enter to the last.
        norm: The final norm.
        states: [n, t, width].
        arguments: What each block is given beside them.

    Returns:
        Normed states [n, t, width].
    """
    for block, (given, named) in zip(blocks, arguments, strict=True):
        states = leaving(block(states, *given, **named))
    return norm(states)
