"""The rest of a model, run by itself, against the whole model."""

import pytest
import torch
from small_models import small_gpt2, small_llama
from torch import nn

from analysis.attribution.anatomy import anatomy
from analysis.attribution.onward import entering, first_row, onward

MODELS = [small_gpt2, small_llama]
IDS = torch.tensor([[9, 40, 7, 100, 33, 8], [50, 60, 70, 80, 90, 13]])


def parts_of(model: nn.Module) -> tuple[list[nn.Module], nn.Module]:
    parts = anatomy(model)
    return [model.get_submodule(name) for name in parts.blocks], model.get_submodule(parts.final_norm)


def noted(model):
    blocks, norm = parts_of(model)
    with entering(blocks) as (streams, arguments):
        whole = model.base_model(input_ids=IDS, use_cache=False).last_hidden_state
    return blocks, norm, streams, arguments, whole


@pytest.mark.parametrize("make", MODELS)
@torch.no_grad()
def test_from_every_block_on_it_is_the_whole_model(make) -> None:
    blocks, norm, streams, arguments, whole = noted(make(dtype=torch.float64))
    assert len(streams) == len(arguments) == len(blocks) == 3
    for first in range(3):
        found = onward(blocks[first:], norm, streams[first], arguments[first:])
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)
    assert torch.equal(onward([], norm, streams[0], []), norm(streams[0]))


@pytest.mark.parametrize("make", MODELS)
@torch.no_grad()
def test_what_one_row_is_given_serves_any_number(make) -> None:
    blocks, norm, streams, arguments, whole = noted(make(dtype=torch.float64))
    many = streams[1].repeat(3, 1, 1)
    found = onward(blocks[1:], norm, many, [first_row(one) for one in arguments[1:]])
    torch.testing.assert_close(found, whole.repeat(3, 1, 1), rtol=0, atol=1e-12)


def test_rows_are_cut_wherever_they_are() -> None:
    table, line = torch.arange(6).view(2, 3), torch.arange(3)
    cut = first_row(((table, "mask"), {"both": (table, table), "line": line, "none": None}))
    (first, word), named = cut
    assert first.tolist() == [[0, 1, 2]]
    assert word == "mask"
    assert [one.tolist() for one in named["both"]] == [[[0, 1, 2]]] * 2
    assert (named["line"] is line, named["none"]) == (True, None)


@pytest.mark.parametrize("make", MODELS)
def test_nobody_looks_on_afterwards(make) -> None:
    model = make()
    blocks, _ = parts_of(model)
    seen: list[torch.Tensor] = []

    def broken_off() -> None:
        with entering(blocks) as (streams, _):
            model(input_ids=IDS)
            seen.extend(streams)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken_off()
    assert len(seen) == 3
    assert not any(block._forward_pre_hooks for block in blocks)
