"""Where things are inside a causal language model: blocks, attention, MLP neurons, heads.

Found by structure rather than by a table of classes, so that GPT-2, Llama, Mistral, Qwen2, SmolLM and other models laid
out alike all work.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from analysis.errors import UserError


@dataclass(frozen=True)
class Anatomy:
    """Names of a causal language model's parts, as `model.get_submodule` takes them; tuples have one entry per block.

    Attributes:
        blocks: The transformer blocks, first to last.
        attention: Their attention modules.
        mlp: Their MLPs.
        down: The MLPs' last matrix; its input are the MLP's neurons.
        attention_out: The attention modules' last matrix; its input are the heads' outputs, side by side.
        embedding: The token embedding.
        final_norm: The norm between the last block and the head.
        heads: Query heads per block.
        head_width: Entries per head.
        neurons: MLP neurons per block.
    """

    blocks: tuple[str, ...]
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    down: tuple[str, ...]
    attention_out: tuple[str, ...]
    embedding: str
    final_norm: str
    heads: int
    head_width: int
    neurons: int


def _unsupported(model: nn.Module) -> str:
    return (
        f"The parts of a {type(model).__name__} are not laid out as expected; "
        "give a causal language model of the GPT-2, Llama, Mistral, Qwen2 or SmolLM kind."
    )


def _inputs_first(module: nn.Module) -> bool | None:
    # Whether a matrix is stored (in, out), as GPT-2's Conv1D has it, or (out, in); None for what is no matrix.
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        return True
    return False if isinstance(module, nn.Linear) else None


def _sizes(module: nn.Module) -> tuple[int, int]:
    # Inputs and outputs of a matrix.
    rows, columns = module.weight.shape  # type: ignore[misc]
    return (rows, columns) if _inputs_first(module) else (columns, rows)


def _last_matrix(part: nn.Module) -> str:
    # Attention and MLPs register their matrices in the order in which they use them.
    return [name for name, module in part.named_modules() if _inputs_first(module) is not None][-1]


def _block_parts(model: nn.Module, block: str) -> tuple[str, str, str, str]:
    # Attention, MLP, and the last matrix of each.
    parts = {
        name: sum(_inputs_first(one) is not None for one in child.modules())
        for name, child in model.get_submodule(block).named_children()
    }
    large = [name for name, matrices in parts.items() if matrices >= 2]
    attention = [name for name in large if "att" in name]
    if len(large) != 2 or len(attention) != 1:
        raise UserError(_unsupported(model))
    mlp = next(name for name in large if name != attention[0])
    first, second = f"{block}.{attention[0]}", f"{block}.{mlp}"
    out, down = (f"{part}.{_last_matrix(model.get_submodule(part))}" for part in (first, second))
    return first, second, down, out


def anatomy(model: nn.Module) -> Anatomy:
    """Find the parts of a causal language model.

    Args:
        model: A Hugging Face causal language model.

    Returns:
        Names and sizes.

    Raises:
        UserError: It is no causal language model, or one of another layout, such as a mixture of experts.
    """
    names = {id(module): name for name, module in model.named_modules()}
    base = getattr(model, "base_model", None)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    if base is None or base is model or head is None:
        raise UserError(
            f"A {type(model).__name__} is no causal language model; load one with AutoModelForCausalLM.from_pretrained."
        )
    children = list(base.children())
    lists = [child for child in children if isinstance(child, nn.ModuleList) and len(child)]
    after = children[children.index(lists[0]) + 1 :] if lists else []
    norms = [child for child in after if {p.dim() for p in child.parameters()} == {1}]
    if len(lists) != 1 or len(norms) != 1:
        raise UserError(_unsupported(model))
    blocks = tuple(names[id(block)] for block in lists[0])
    attention, mlp, down, attention_out = zip(*(_block_parts(model, block) for block in blocks), strict=True)
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    width = embedding.weight.shape[1]
    heads: int = model.config.num_attention_heads  # type: ignore[union-attr, assignment]
    into_out, into_down = (
        {_sizes(model.get_submodule(name)) for name in matrices} for matrices in (attention_out, down)
    )
    if len(into_out) != 1 or len(into_down) != 1:
        raise UserError(_unsupported(model))
    (inner, first), (neurons, second) = into_out.pop(), into_down.pop()
    if first != width or second != width or inner % heads:
        raise UserError(_unsupported(model))
    return Anatomy(
        blocks, attention, mlp, down, attention_out, names[id(embedding)], names[id(norms[0])],
        heads, inner // heads, neurons,
    )  # fmt: skip


def neuron_mask_rows(model: nn.Module, chosen: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Find the weights with which MLP neurons write into the residual stream.

    Args:
        model: A Hugging Face causal language model; not changed.
        chosen: By name from `Anatomy.down`, bool [neurons]: which neurons are meant.

    Returns:
        By parameter name, bool of the parameter's shape: a neuron's column of an nn.Linear's weight (out, in), its row
        of a Conv1D's (in, out). Biases belong to no neuron and are absent.

    Raises:
        UserError: A name is none of the model's down projections, or the number of neurons is another.
    """
    parts = anatomy(model)
    masks = {}
    for name, bits in chosen.items():
        if name not in parts.down:
            raise UserError(f"The model has no down projection {name!r}; name one such as {parts.down[0]!r}.")
        if bits.shape != (parts.neurons,):
            raise UserError(
                f"{name} has {parts.neurons} neurons, but the choice has shape {tuple(bits.shape)}; "
                "give one truth value per neuron."
            )
        module = model.get_submodule(name)
        along = bits.bool()[:, None] if _inputs_first(module) else bits.bool()[None, :]
        masks[f"{name}.weight"] = along.expand(module.weight.shape).clone()  # type: ignore[arg-type]
    return masks
