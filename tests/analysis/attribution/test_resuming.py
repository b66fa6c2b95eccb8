"""Variants of recorded prompts, run side by side, against the prompts themselves run whole."""

import pytest
import torch
from small_models import small_gpt2, small_llama

from analysis.attribution.anatomy import anatomy
from analysis.attribution.resuming import SITES, Variant, record, resumable, resume
from analysis.errors import UserError

MODELS = [small_gpt2, small_llama]
PROMPTS = [[9, 40, 7, 100, 33, 8], [5, 6, 7], [50, 60, 70, 80, 90, 13]]
LENGTHS = [len(one) for one in PROMPTS]
IDS = torch.nn.utils.rnn.pad_sequence([torch.tensor(one) for one in PROMPTS], batch_first=True)


@pytest.mark.parametrize("make", MODELS)
def test_what_is_recorded(make):
    model = make(dtype=torch.float64)
    parts = anatomy(model)
    with torch.no_grad(), resumable(model, parts):
        run = record(model, parts, IDS, SITES, keys=True)
    states = model.base_model(input_ids=IDS, output_hidden_states=True, use_cache=True)
    assert [len(run.values[site]) for site in SITES] == [3, 3, 3, 3]
    assert len(run.streams) == 4
    for layer in range(3):
        torch.testing.assert_close(run.streams[layer], states.hidden_states[layer])
        assert run.values["resid"][layer] is run.streams[layer]
        torch.testing.assert_close(run.kept[layer][0], states.past_key_values.layers[layer].keys)
        torch.testing.assert_close(run.kept[layer][1], states.past_key_values.layers[layer].values)
        after = run.streams[layer] + run.values["attn"][layer] + run.values["mlp"][layer]
        torch.testing.assert_close(run.streams[layer + 1], after)
        out = model.get_submodule(parts.attention_out[layer])
        torch.testing.assert_close(run.values["attn"][layer], out(run.values["head"][layer]))
    torch.testing.assert_close(run.leaving, states.last_hidden_state)


@pytest.mark.parametrize("make", MODELS)
def test_recording_is_one_graph(make):
    model = make(dtype=torch.float64).requires_grad_(False)
    parts = anatomy(model)
    run = record(model, parts, IDS, ["mlp"])
    # One number alone: what leaves is normalised, so its sum hangs on nothing but rounding.
    (gradient,) = torch.autograd.grad(run.leaving[0, 3, 0], run.values["mlp"][0])
    assert gradient[0, :4].abs().amin() > 0
    assert not gradient[0, 4:].any()
    assert not gradient[1:].any()


@pytest.mark.parametrize("make", MODELS)
def test_a_variant_with_its_own_activation_is_the_prompt(make):
    """Whatever the site, the block and the position from which it is run on, and whatever runs beside it."""
    model = make(dtype=torch.float64)
    parts = anatomy(model)
    variants = [
        Variant(prompt, prompt, site, layer, start, stop, (layer + start) % 4 if site == "head" else 0)
        for prompt, length in enumerate(LENGTHS)
        for site in SITES
        for layer in range(3)
        for start in range(length)
        for stop in {start + 1, length}
    ]
    order = torch.randperm(len(variants), generator=torch.Generator().manual_seed(0)).tolist()
    variants = [variants[number] for number in order]
    with torch.no_grad(), resumable(model, parts):
        run = record(model, parts, IDS, SITES, keys=True)
        found = resume(model, parts, run, LENGTHS, variants)
    expected = torch.stack([run.leaving[one.prompt, LENGTHS[one.prompt] - 1] for one in variants])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_model_gets_its_attention_back():
    model = small_llama()
    parts, before = anatomy(model), model.config._attn_implementation
    with resumable(model, parts):
        assert model.config._attn_implementation != before
    with pytest.raises(IndexError), resumable(model, parts):
        record(model, parts, IDS + 400, SITES)
    assert model.config._attn_implementation == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_model_with_attention_of_its_own():
    class Homemade(type(small_llama())):
        _supports_attention_backend = False

    model = Homemade(small_llama().config)
    with pytest.raises(UserError, match="attention of a Homemade can't be resumed"), resumable(model, anatomy(model)):
        pass
