"""Run folders for the explorer's tests, with tiny models of both families and an edit made by hand."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import torch
from small_models import small_tokenizer
from test_facts_command_line import write_bank
from torch import nn

from analysis.attribution.anatomy import anatomy
from analysis.subjects.language.models import save_language_model
from figures.explorer.facts_pair import Pair
from unlearn.documents import RunReport
from unlearn.edit import Edit, state_of
from unlearn.language.config import FactRunConfig

PROMPT, ANSWER = "The Beatles came from the city of", "Liverpool and Rome"
TOUCHED = {0: (3, 17), 2: (5, 30)}
"""Neurons, by block, of whose weights the edit changes some."""


@torch.no_grad()
def by_hand(model: nn.Module) -> nn.Module:
    """Change what some neurons write and read, more of each than of the one before, and a little of one attention."""
    edited = copy.deepcopy(model)
    parts, generator = anatomy(edited), torch.Generator().manual_seed(3)
    for block, numbers in TOUCHED.items():
        for name, weight in edited.get_submodule(parts.mlp[block]).named_parameters():
            down = parts.down[block].endswith(name.rpartition(".")[0])
            for i, number in enumerate(numbers):
                size = 0.3 * (1 + i + len(numbers) * block)
                along = [axis for axis, width in enumerate(weight.shape) if width == parts.neurons]
                if along and not (down and weight.dim() == 1):
                    row = weight.select(along[0], number)
                    row += size * torch.randn(row.shape, generator=generator)
    out = edited.get_submodule(parts.attention_out[1]).weight
    out[:2] += 0.2 * torch.randn(out[:2].shape, generator=generator)
    return edited


@torch.no_grad()
def _with_biases(model: nn.Module) -> nn.Module:
    """A fresh model has none to speak of, and would hide what forgets them."""
    generator = torch.Generator().manual_seed(4)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return model


def explored(folder: Path, make: Callable[[], nn.Module]) -> Path:
    """A run folder as `yesterday forget` leaves it."""
    original = _with_biases(make())
    edited = by_hand(original)
    save_language_model(original, small_tokenizer(), folder / "original", "The original.")
    run = folder / "run"
    run.mkdir()
    save_language_model(edited, small_tokenizer(), run / "model", "Edited.")
    edit = Edit.between(state_of(original), state_of(edited))
    edit.save(run / "edit.safetensors")
    config = FactRunConfig(bank=str(write_bank(folder / "bank.jsonl")), model=str(folder / "original"))
    report = RunReport(
        name="small", config=config.model_dump() | {"family": "facts"}, verdict=None, sentence="Edited by hand.",
        changed=edit.count, total=edit.total, versions={}, stages={},
    )  # fmt: skip
    (run / "run.json").write_text(report.model_dump_json(), encoding="utf-8")
    return run


def log_p(model: nn.Module, ids: list[int], place: int) -> float:
    """log p of one token, from a whole forward pass over what stands before it."""
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids[:place]])).logits[0, -1].log_softmax(0)[ids[place]])


def probability(model: nn.Module, pair: Pair, prompt: str = PROMPT, answer: str = ANSWER) -> float:
    ids, start = pair.tokenizer(f"{prompt} {answer}").input_ids, len(pair.tokenizer(prompt).input_ids)
    return math.exp(sum(log_p(model, ids, place) for place in range(start, len(ids))))


def greedy(model: nn.Module, pair: Pair, new: int = 20) -> list[int]:
    ids: list[int] = pair.tokenizer(PROMPT).input_ids
    for _ in range(new):
        with torch.no_grad():
            ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    end = pair.tokenizer.eos_token_id
    return ids[: ids.index(end)] if end in ids else ids
