"""Does rounding the weights bring it back?

Zhang et al. 2024, "Catastrophic failure of LLM unlearning via quantization" (arXiv:2410.16454).

Edits that move many weights a little vanish when weights are rounded. A checkpoint may itself lie on one grid, so
several are tried: 8 bits per row, 4 bits per group of 32, and 4 bits per row.
"""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import nn

from analysis.attribution.running import widened
from analysis.audit.facts.case import Case, FactReading, ids
from analysis.audit.facts.contrast import ask_contrasted
from analysis.subjects.language.scoring import head_of

GROUP = 32


def rounded(weight: torch.Tensor, bits: int, group: int | None = None) -> torch.Tensor:
    """Round to the nearest of 2^bits - 1 evenly spaced values, symmetric about 0, scaled by each group's largest.

    Args:
        weight: [rows, columns].
        bits: At least 2.
        group: Entries of a row that share a scale; the whole row when None or when the row can't be divided so.

    Returns:
        Rounded weights, of the same shape and type.
    """
    rows, columns = weight.shape
    width = group if group and columns % group == 0 else columns
    parts = widened(weight).reshape(rows, columns // width, width)
    top = 2 ** (bits - 1) - 1
    scale = (parts.abs().amax(-1, keepdim=True) / top).clamp_min(torch.finfo(parts.dtype).tiny)
    return ((parts / scale).round() * scale).reshape(rows, columns).to(weight.dtype)


@torch.no_grad()
def rounded_model(model: nn.Module, rounding: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """Round all matrices of a copy but the embeddings (of positions too) and the head.

    Args:
        model: Not changed.
        rounding: Of one matrix [out, in]; GPT-2's `Conv1D`, which keeps [in, out], is turned for it.

    Returns:
        The rounded copy.
    """
    work = copy.deepcopy(model)
    outer = {id(p) for m in work.modules() if isinstance(m, nn.Embedding) or m is head_of(work) for p in m.parameters()}
    turned = {id(m.weight) for m in work.modules() if type(m).__name__ == "Conv1D"}
    for parameter in work.parameters():
        if parameter.dim() == 2 and id(parameter) not in outer:
            parameter.copy_(rounding(parameter.T).T if id(parameter) in turned else rounding(parameter))
    return work


ROUNDINGS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "4 bits, groups of 32": lambda weight: rounded(weight, 4, GROUP),
    "8 bits": lambda weight: rounded(weight, 8),
    "4 bits, rows": lambda weight: rounded(weight, 4),
}


def rounding(case: Case) -> list[FactReading]:
    """Ask after rounding.

    Args:
        case: The model and the facts.

    Returns:
        One reading per way of rounding: shares of the right answers.
    """
    readings = []
    for name, way in list(ROUNDINGS.items())[: case.budget.roundings]:
        said, beside = ask_contrasted(case, case.asked, rounded_model(case.model, way))
        readings.append(
            FactReading(
                auditor=f"weights rounded to {name}",
                group="rounding",
                role="inner",
                unit="share",
                facts=ids(case.asked),
                values=said,
                beside=beside,
            )
        )
    return readings
