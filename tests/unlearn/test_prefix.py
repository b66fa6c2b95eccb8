"""Beginning at the edit: the same states, losses and updates, and nothing below it run twice."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import small_gpt2, small_llama
from torch.utils.flop_counter import FlopCounterMode

import unlearn.prefix
from analysis.attribution.anatomy import anatomy
from analysis.scores import Mask
from analysis.subjects.language.encoding import IGNORED, Encoded
from analysis.subjects.language.scoring import hidden_states, mean_loss
from unlearn.optimize import descend
from unlearn.prefix import lowest_edited, remembered_below

BOTH = pytest.mark.parametrize("make", [small_gpt2, small_llama])


def _down(model, block):
    return f"{anatomy(model).down[block]}.weight"


def _rows(seed, count, width):
    return torch.randint(0, 60, (count, width), generator=torch.Generator().manual_seed(seed))


def _batch(seed, count, width):
    ids = _rows(seed, count, width)
    labels = torch.cat([ids[:, 1:], torch.full((count, 1), IGNORED)], 1)
    return Encoded(ids, labels)


@BOTH
def test_the_first_block_that_changes_is_found(make):
    model = make()
    parts = anatomy(model)
    assert lowest_edited(model, parts, [_down(model, 1), _down(model, 2)]) == 1
    assert lowest_edited(model, parts, [f"{parts.final_norm}.weight"]) == 3
    assert lowest_edited(model, parts, [_down(model, 2), f"{parts.embedding}.weight"]) == 0


def test_an_untied_head_comes_after_all_blocks_and_a_tied_one_before():
    model = small_llama()
    assert lowest_edited(model, anatomy(model), ["model.embed_tokens.weight"]) == 0
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    assert lowest_edited(model, anatomy(model), ["lm_head.weight"]) == 3


@BOTH
@given(
    block=st.integers(1, 2),
    shapes=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=6),
    zeros=st.integers(0, 3),
    room=st.sampled_from([0, 700, 2**20]),
)
@settings(max_examples=25, deadline=None)
def test_states_are_the_same_whatever_was_asked_before(make, block, shapes, zeros, room):
    model = make(dtype=torch.float64)
    other = copy.deepcopy(model)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(unlearn.prefix, "ROOM", room)
        with remembered_below((model,), [_down(model, block)]) as passed:
            for seed, count, width in shapes:
                # Zeros behind a text are a real token to one who asks after them.
                ids = torch.nn.functional.pad(_rows(seed, 4, 9)[:count, :width], (0, zeros))
                torch.testing.assert_close(hidden_states(model, ids), hidden_states(other, ids), rtol=0, atol=1e-12)
    assert passed == block


@BOTH
@pytest.mark.parametrize("block", [0, 1, 2])
def test_updates_are_those_of_a_plain_loop(make, block):
    model = make(dtype=torch.float64)
    batches = [_batch(i % 3, 3, 8 + i % 2) for i in range(6)]
    bits = torch.rand(dict(model.named_parameters())[_down(model, block)].shape) < 0.3
    after = descend(model, batches, mean_loss, Mask({_down(model, block): bits}), 1e-2)

    plain = copy.deepcopy(model)
    weight = plain.get_parameter(_down(plain, block))
    optimizer = torch.optim.AdamW([weight], lr=1e-2, weight_decay=0.0)
    for batch in batches:
        optimizer.zero_grad()
        logits = plain(input_ids=batch.ids).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED)
        loss.backward()
        weight.grad *= bits
        optimizer.step()
    for (name, mine), theirs in zip(after.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9, msg=name)


@BOTH
def test_a_step_that_was_seen_before_costs_what_lies_above_the_edit(make):
    model = make()
    batch = _batch(0, 4, 12)

    def count(block, steps):
        with FlopCounterMode(display=False) as counter:
            bits = torch.ones(dict(model.named_parameters())[_down(model, block)].shape, dtype=torch.bool)
            descend(model, [batch] * steps, mean_loss, Mask({_down(model, block): bits}), 1e-3)
        return counter.get_total_flops()

    below, above = (count(block, 5) - count(block, 4) for block in (0, 2))
    with FlopCounterMode(display=False) as counter:
        mean_loss(copy.deepcopy(model).requires_grad_(True), batch).backward()
    # Three blocks forward and back, against one forward and a part of it back.
    assert above < 0.45 * counter.get_total_flops()
    assert below < 0.85 * counter.get_total_flops()


@BOTH
def test_what_lies_below_runs_once_for_a_row_in_the_working_model_and_the_original_alike(make):
    model = make()
    work = copy.deepcopy(model)
    runs = []
    for one in (model, work):
        first = one.get_submodule(anatomy(one).blocks[0])
        forward = first.forward

        def counted(*given, forward=forward, **named):
            runs.append(len(given[0]))
            return forward(*given, **named)

        first.forward = counted
    rows = _rows(0, 4, 5) + 1
    with torch.no_grad(), remembered_below((work, model), [_down(model, 2)]):
        hidden_states(work, torch.nn.functional.pad(rows, (0, 1)))
        begun = len(runs)
        hidden_states(model, torch.nn.functional.pad(rows, (0, 1)))
        hidden_states(work, rows[:2])
        assert len(runs) == begun + 1  # one row, for the arguments of another width
        assert runs[-1] == 1


@BOTH
def test_hooks_below_are_served_by_the_whole_run(make):
    model = make()
    seen = []
    with torch.no_grad(), remembered_below((model,), [_down(model, 2)]):
        hidden_states(model, _rows(0, 2, 5))
        handle = model.get_submodule(anatomy(model).blocks[0]).register_forward_hook(lambda *_: seen.append(1))
        hidden_states(model, _rows(0, 2, 5))
        handle.remove()
        hidden_states(model, _rows(0, 2, 5))
    assert seen == [1]


@BOTH
@pytest.mark.parametrize("block", [1, 2])
def test_hooks_above_see_each_run_once_and_nothing_else(make, block):
    model = make()
    seen = []
    handle = model.get_submodule(anatomy(model).blocks[2]).register_forward_hook(
        lambda _, __, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    asked = [_rows(0, 3, 5), _rows(1, 2, 7), _rows(0, 3, 5)]
    for ids in asked:
        hidden_states(model, ids)
    plain = list(seen)
    seen.clear()
    with remembered_below((model,), [_down(model, block)]) as passed:
        for ids in asked:
            hidden_states(model, ids)
    assert passed == block
    assert [one.shape for one in seen] == [one.shape for one in plain]
    for one, other in zip(seen, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    handle.remove()
    hidden_states(model, asked[0])
    assert len(seen) == len(plain)


@BOTH
def test_models_are_as_before_also_after_an_error(make):
    model = make()
    with pytest.raises(ZeroDivisionError), remembered_below((model,), [_down(model, 1)]):
        raise ZeroDivisionError
    assert "forward" not in vars(model.base_model)


@BOTH
def test_a_copy_made_meanwhile_has_weights_of_its_own(make):
    model = make()
    ids = _rows(0, 2, 5)
    with torch.no_grad(), remembered_below((model,), [_down(model, 2)]):
        hidden_states(model, ids)
        other = copy.deepcopy(model)
        other.get_parameter(_down(other, 2)).mul_(2)
        found = hidden_states(other, ids)
        before = hidden_states(model, ids)
    model.get_parameter(_down(model, 2)).data.mul_(2)
    with torch.no_grad():
        torch.testing.assert_close(found, hidden_states(model, ids))
    assert not torch.allclose(found, before)


def test_what_is_no_language_model_passes_through():
    model = torch.nn.Linear(2, 2)
    with remembered_below((model,), ["weight"]) as passed:
        assert passed == 0
    assert "forward" not in vars(model)


def test_a_forward_of_somebody_elses_is_left_alone():
    model = small_llama()
    mine = model.base_model.forward
    model.base_model.forward = mine
    with remembered_below((model,), [_down(model, 2)]) as passed:
        assert passed == 0
    assert vars(model.base_model)["forward"] == mine
