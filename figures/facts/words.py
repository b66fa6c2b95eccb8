"""Names of weights and tokens, written for people. Blocks are numbered from 0, as in the weights' names."""

from collections.abc import Iterable
from functools import cache

from figures.words import shorten

ORDER = (
    "norm", "ln_1", "q_proj", "k_proj", "v_proj", "qkv", "c_attn", "o_proj", "attn.c_proj", "ln_2", "gate_proj",
    "up_proj", "c_fc", "down_proj", "mlp.c_proj",
)  # fmt: skip
BLANK = "␣"
NEWLINE = "⏎"
UNKNOWN = "□"


def place(name: str) -> tuple[int | None, str]:
    """Split a name into block and matrix.

    Args:
        name: Of a parameter or module, e.g. "model.layers.12.mlp.down_proj.weight".

    Returns:
        The block's number, None for what belongs to no block, and what is inside it, e.g. (12, "mlp.down_proj").
    """
    parts = name.removesuffix(".weight").split(".")
    for at, part in enumerate(parts):
        if part.isdigit():
            return int(part), ".".join(parts[at + 1 :])
    return None, ".".join(parts)


def in_block_order(matrices: Iterable[str]) -> list[str]:
    """Sort the parts of a block as a block uses them, as far as their names tell.

    Args:
        matrices: E.g. "mlp.down_proj".

    Returns:
        Each once.
    """

    def key(name: str) -> tuple[int, str]:
        return next((i for i, part in enumerate(ORDER) if part in name), len(ORDER)), name

    return sorted(set(matrices), key=key)


@cache
def _drawable() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    from figures.style import RC

    return frozenset(get_font(findfont(str(RC["font.family"]))).get_charmap())


def visible(text: str) -> str:
    """Write decoded tokens so that they can be seen.

    Args:
        text: Often with a leading blank.

    Returns:
        Without blanks at its ends; line breaks, a blank alone, and letters that the figures' font lacks are signs.
    """
    bare = text.replace("\r", "").replace("\n", NEWLINE).strip() or BLANK
    return "".join(c if ord(c) in _drawable() and c.isprintable() else UNKNOWN for c in bare)


def token(text: str, longest: int = 16) -> str:
    """Write one token, not too long.

    Args:
        text: As decoded.
        longest: Characters to keep at most.

    Returns:
        As `visible`, cut with an ellipsis.
    """
    return shorten(visible(text), longest)


def changed_token(clean: str, corrupt: str, longest: int = 12) -> str:
    """Write a position of two prompts.

    Args:
        clean: Token of the clean prompt.
        corrupt: Of the corrupt one.
        longest: Characters of each to keep at most.

    Returns:
        The token where both agree, else "clean / corrupt".
    """
    first, second = token(clean, longest), token(corrupt, longest)
    return first if clean == corrupt else f"{first} / {second}"
