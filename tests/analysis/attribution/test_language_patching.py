"""Patching against hooks on the whole model, one cell at a time, and against transformer-lens."""

import contextlib
import copy
import io
from collections import Counter

import pytest
import torch
from scipy.stats import spearmanr
from small_models import exact, small_gpt2, small_llama
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from analysis.attribution.anatomy import anatomy
from analysis.attribution.language_patching import (
    Pair,
    PatchingMap,
    activation_patching,
    activation_patching_many,
    attribution_patching,
    attribution_patching_many,
    equal_length_pairs,
    rank_correlation,
)
from analysis.errors import UserError

MODELS = [small_gpt2, small_llama]
CLEAN, CORRUPT, ANSWER, WRONG = torch.tensor([9, 40, 7, 100, 33]), torch.tensor([9, 77, 8, 100, 33]), 120, 300
PAIRS = [
    Pair(CLEAN, CORRUPT, ANSWER, WRONG),
    Pair(torch.tensor([5, 6, 7]), torch.tensor([8, 6, 7]), 11, 12),
    Pair(torch.tensor([50, 60, 70, 80, 90, 13, 14]), torch.tensor([50, 60, 70, 81, 90, 13, 15]), 21, 22),
    Pair(torch.tensor([41]), torch.tensor([42]), 31, 32),
    Pair(CORRUPT, torch.tensor([9, 78, 8, 101, 33]), WRONG, 7),
]
TIGHT = {"rtol": 1e-9, "atol": 1e-9}
# Llama's norms and rotations are float32 inside whatever the model's type.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def windowed_mistral():
    """A Mistral in which a token sees itself and the two before it only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = MistralConfig(
            vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, sliding_window=3, initializer_range=0.2,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return MistralForCausalLM(config)


def eager_gpt2():
    """A GPT-2 that asks for attention written out."""
    model = small_gpt2()
    model.set_attn_implementation("eager")
    return model


def lead(model, ids):
    with torch.no_grad():
        logp = model(ids[None]).logits[0, -1].log_softmax(0)
    return logp[ANSWER] - logp[WRONG]


def hooked(model, site, layer, change, ids):
    """Run with one site's activation [t, width] replaced."""
    parts = anatomy(model)
    name = {"resid": parts.blocks, "head": parts.attention_out, "attn": parts.attention, "mlp": parts.mlp}[site][layer]
    module = model.get_submodule(name)

    def before(_, given):
        return (change(given[0][0])[None], *given[1:])

    def after(_, __, out):
        return (change(out[0][0])[None], *out[1:]) if isinstance(out, tuple) else change(out[0])[None]

    if site in {"resid", "head"}:
        handle = module.register_forward_pre_hook(before)
    else:
        handle = module.register_forward_hook(after)
    value = lead(model, ids)
    handle.remove()
    return value


def slow_map(model, site, direction):
    base, other = (CORRUPT, CLEAN) if direction == "denoising" else (CLEAN, CORRUPT)
    at_base, at_other = lead(model, base), lead(model, other)
    layers, across = 3, 4 if site == "head" else len(base)
    values = torch.zeros(layers, across, dtype=torch.float64)
    for layer in range(layers):
        source = []
        hooked(model, site, layer, lambda a, source=source: (source.append(a.clone()), a)[1], other)
        for cell in range(across):

            def swap(a, source=source[0], cell=cell):
                a = a.clone()
                if site == "head":
                    a[:, cell * 8 : cell * 8 + 8] = source[:, cell * 8 : cell * 8 + 8]
                else:
                    a[cell] = source[cell]
                return a

            values[layer, cell] = (hooked(model, site, layer, swap, base) - at_base) / (at_other - at_base)
    return values


@pytest.mark.parametrize("make", [*MODELS, eager_gpt2, windowed_mistral])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_same_as_hooks_on_the_whole_model_one_cell_at_a_time(make, direction):
    model = exact(make())
    for cells in (1, 7, 500):
        found = activation_patching(model, CLEAN, CORRUPT, ANSWER, WRONG, direction=direction, cells=cells)
        assert (found.direction, found.method) == (direction, "exact")
        assert found.clean == pytest.approx(float(lead(model, CLEAN)), rel=1e-9)
        assert found.corrupt == pytest.approx(float(lead(model, CORRUPT)), rel=1e-9)
        assert list(found.values) == ["resid", "attn", "mlp", "head"]
        for site, values in found.values.items():
            torch.testing.assert_close(values, slow_map(model, site, direction), **TIGHT)


def assert_same_maps(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one.direction, one.method, list(one.values)) == (other.direction, other.method, list(other.values))
        assert (one.clean, one.corrupt) == pytest.approx((other.clean, other.corrupt), rel=1e-9)
        for site, values in one.values.items():
            torch.testing.assert_close(values, other.values[site], **TIGHT)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_many_pairs_of_any_length_as_one_by_one(make, direction):
    model = exact(make())
    alone = [activation_patching(model, p.clean, p.corrupt, p.answer, p.wrong, direction=direction) for p in PAIRS]
    for cells in (9, 48, 1000):
        assert_same_maps(activation_patching_many(model, PAIRS, direction=direction, cells=cells), alone)
    sites = ["head", "resid"]
    guesses = [attribution_patching(model, p.clean, p.corrupt, p.answer, p.wrong, sites, direction) for p in PAIRS]
    for batch in (1, 3, 10):
        assert_same_maps(attribution_patching_many(model, PAIRS, sites, direction, batch), guesses)
    assert activation_patching_many(model, []) == attribution_patching_many(model, []) == []


def bridged(model):
    # The bridge replaces modules of what it wraps.
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    wrapped = copy.deepcopy(model)
    return build_bridge_from_module(wrapped, type(model).__name__, hf_config=wrapped.config, tokenizer=None)


@pytest.mark.parametrize("make", MODELS)
def test_same_as_transformer_lens(make):
    from transformer_lens import patching
    from transformer_lens.tools.analysis.attribution_patching import attribution_patch

    model = make()
    bridge, clean, corrupt = bridged(model), CLEAN[None], CORRUPT[None]

    def ahead(logits):
        return (logits[:, -1, ANSWER] - logits[:, -1, WRONG]).sum()

    helpers = {
        "resid": patching.get_act_patch_resid_pre,
        "attn": patching.get_act_patch_attn_out,
        "mlp": patching.get_act_patch_mlp_out,
        "head": patching.get_act_patch_attn_head_out_all_pos,
    }
    found = activation_patching(model, CLEAN, CORRUPT, ANSWER, WRONG)
    gain = found.clean - found.corrupt
    with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        logits, cache = bridge.run_with_cache(clean)
        assert found.clean == pytest.approx(float(ahead(logits)), abs=1e-4)
        for site, helper in helpers.items():
            theirs = (helper(bridge, corrupt, cache, ahead) - found.corrupt) / gain
            torch.testing.assert_close(found.values[site], theirs, rtol=1e-4, atol=1e-4)
    guess = attribution_patching(model, CLEAN, CORRUPT, ANSWER, WRONG)
    nodes = Counter()
    for node, score in attribution_patch(bridge, clean, corrupt, ahead).node_scores.items():
        place = {"attn_head_out": ("head", node.layer, node.head), "mlp_out": ("mlp", node.layer, node.position)}
        nodes[place.get(node.kind)] += score / gain
    for site in ("head", "mlp"):
        theirs = [[nodes[site, layer, i] for i in range(guess.values[site].shape[1])] for layer in range(3)]
        torch.testing.assert_close(guess.values[site], torch.tensor(theirs), rtol=1e-4, atol=1e-4)


def deep_llama():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=400, hidden_size=32, intermediate_size=96, num_hidden_layers=8, num_attention_heads=4,
            num_key_value_heads=2, initializer_range=0.2, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(("sites", "share"), [(["resid"], 0.25), (["attn", "mlp"], 0.23), (["head"], 0.55)])
def test_what_a_patch_cannot_change_is_not_run(sites, share):
    """Floating-point operations, calls of blocks and tokens per call, against running every cell whole."""
    model, length, layers = deep_llama(), 12, 8
    clean = torch.arange(20, 20 + length)
    corrupt = clean.clone()
    corrupt[:2] += 100
    with FlopCounterMode(display=False) as whole, torch.no_grad():
        model(input_ids=clean[None], use_cache=False, logits_to_keep=1)
    cells = len(sites) * layers * (4 if sites == ["head"] else length)
    calls = []
    for block in model.model.layers:
        block.register_forward_pre_hook(lambda _, given: calls.append(given[0].shape[:2].numel()))
    with FlopCounterMode(display=False) as ours:
        activation_patching(model, clean, corrupt, ANSWER, WRONG, sites, cells=1000)
    assert ours.get_total_flops() < share * cells * whole.get_total_flops()
    # Once for what both prompts have, once for all cells.
    assert len(calls) == 2 * layers
    calls.clear()
    activation_patching(model, clean, corrupt, ANSWER, WRONG, sites, cells=10)
    assert max(calls) <= 10 * length
    assert len(calls) < cells * layers / 4


def test_equal_places_are_not_run():
    """Prompts that differ in the last token only: that token is run for its stream and for each head, no other is."""
    model, length = deep_llama(), 12
    clean = torch.arange(20, 20 + length)
    corrupt = clean.clone()
    corrupt[-1] = 7
    calls = []
    for block in model.model.layers:
        block.register_forward_pre_hook(lambda _, given: calls.append(given[0].shape[:2].numel()))
    found = activation_patching(model, clean, corrupt, ANSWER, WRONG, ["resid", "head"]).values["resid"]
    assert calls == 8 * [2 * length] + [(1 + 4) * (1 + layer) for layer in range(8)]
    assert (found[:, :-1] == 0).all()
    torch.testing.assert_close(found[:, -1], torch.ones(8), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", MODELS)
def test_what_must_hold_whatever_the_weights(make):
    model = make(dtype=torch.float64)
    found = activation_patching(model, CLEAN, CORRUPT, ANSWER, WRONG, ["resid", "mlp"])
    assert list(found.values) == ["resid", "mlp"]
    # Positions that are the same in both prompts, with nothing but the same before them, carry nothing; nor do, before
    # the first block, later ones that hold the same token.
    torch.testing.assert_close(found.values["mlp"][:, 0], torch.zeros(3, dtype=torch.float64), **CLOSE)
    torch.testing.assert_close(found.values["resid"][0, [0, 3, 4]], torch.zeros(3, dtype=torch.float64), **CLOSE)
    assert found.values["resid"][0, 1:3].abs().min() > 1e-3
    # Prompts that differ in their last token only: its stream carries everything, in every layer.
    last = CLEAN.clone()
    last[-1] = 200
    for direction in ("denoising", "noising"):
        whole = activation_patching(model, CLEAN, last, ANSWER, WRONG, ["resid"], direction).values["resid"]
        torch.testing.assert_close(whole[:, -1], torch.ones(3, dtype=torch.float64), **CLOSE)
        torch.testing.assert_close(whole[:, :-1], torch.zeros(3, 4, dtype=torch.float64), **CLOSE)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_first_order_is_the_slope_of_the_exact_effect(make, direction):
    """A patch that goes a thousandth of the way has a thousandth of the first-order effect."""
    model = make(dtype=torch.float64)
    found = attribution_patching(model, CLEAN, CORRUPT, ANSWER, WRONG, direction=direction)
    assert found.method == "first-order"
    assert found.clean == pytest.approx(float(lead(model, CLEAN)), rel=1e-6)
    base, other = (CORRUPT, CLEAN) if direction == "denoising" else (CLEAN, CORRUPT)
    gain = lead(model, other) - lead(model, base)
    for site, values in found.values.items():
        across = slice(8, 16) if site == "head" else 2
        for layer in range(3):
            source = []
            hooked(model, site, layer, lambda a, source=source: (source.append(a.clone()), a)[1], other)

            def nudged(a, by, source=source[0], across=across, site=site):
                a = a.clone()
                place = (slice(None), across) if site == "head" else (across,)
                a[place] += by * (source[place] - a[place])
                return a

            ends = [hooked(model, site, layer, lambda a, by=by: nudged(a, by), base) for by in (0.01, -0.01)]
            cell = values[layer, 1 if site == "head" else 2]
            torch.testing.assert_close(cell, (ends[0] - ends[1]) / 0.02 / gain, rtol=5e-3, atol=1e-3)


@pytest.mark.parametrize("make", MODELS)
def test_first_order_ranks_alike_for_small_changes(make):
    """With an almost equal corrupt prompt (a token whose embedding is next to the clean one's) both agree."""
    model = make(dtype=torch.float64)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[77] = table[40] + 1e-3 * table[77]
        table[8] = table[7] + 1e-3 * table[8]
    exact = activation_patching(model, CLEAN, CORRUPT, ANSWER, WRONG, cells=30)
    guess = attribution_patching(model, CLEAN, CORRUPT, ANSWER, WRONG)
    assert min(rank_correlation(exact, guess).values()) > 0.8
    for site, values in exact.values.items():
        torch.testing.assert_close(guess.values[site], values, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("make", MODELS)
def test_the_model_is_left_as_it_was(make):
    model = make().train()
    modules = {name: type(module) for name, module in model.named_modules()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attention = model.config._attn_implementation
    first = activation_patching(model, CLEAN, CORRUPT, ANSWER, WRONG, ["mlp"])
    guess = attribution_patching(model, CLEAN, CORRUPT, ANSWER, WRONG, ["mlp"])
    assert not guess.values["mlp"].requires_grad
    assert model.training
    assert {name: type(module) for name, module in model.named_modules()} == modules
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.config._attn_implementation == attention
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    again = activation_patching(model, CLEAN, CORRUPT, ANSWER, WRONG, ["mlp"])
    assert torch.equal(first.values["mlp"], again.values["mlp"])


def test_rank_correlation():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(3, 4, generator=generator), torch.rand(3, 4, generator=generator)
    one = PatchingMap({"attn": a, "mlp": a, "head": a, "resid": a}, "denoising", "exact", 1.0, 0.0)
    two = PatchingMap({"attn": a.exp(), "mlp": b, "head": torch.ones(3, 4)}, "denoising", "first-order", 1.0, 0.0)
    found = rank_correlation(one, two)
    assert set(found) == {"attn", "mlp", "head"}
    assert found["attn"] == pytest.approx(1.0)
    assert found["mlp"] == pytest.approx(spearmanr(a.flatten(), b.flatten()).statistic)
    assert found["head"] != found["head"]


def test_equal_length_pairs():
    clean = [[1, 2, 3], [4, 5], [6]]
    variants = [[[1, 2], [1, 9, 3], [1, 2, 3], [7, 7, 7]], [[4, 5, 6]], [[8]]]
    assert equal_length_pairs(clean, variants) == [(0, 1), (0, 3), (2, 0)]
    with pytest.raises(UserError, match="variants of the same length"):
        equal_length_pairs([[1, 2]], [[[1, 2, 3], [1, 2]]])


@pytest.mark.parametrize("patch", [activation_patching, attribution_patching])
def test_bad_input(patch):
    model = small_gpt2()
    with pytest.raises(UserError, match="of the same length"):
        patch(model, CLEAN, CORRUPT[:4], ANSWER, WRONG)
    with pytest.raises(UserError, match="begin with the same token"):
        patch(model, CLEAN, CORRUPT, ANSWER, ANSWER)
    with pytest.raises(UserError, match="no patching direction"):
        patch(model, CLEAN, CORRUPT, ANSWER, WRONG, direction="sideways")
    with pytest.raises(UserError, match="no patching site 'key'"):
        patch(model, CLEAN, CORRUPT, ANSWER, WRONG, ["key"])
    with pytest.raises(UserError, match="choose another pair"):
        patch(model, CLEAN, CLEAN, ANSWER, WRONG)


def test_a_model_whose_attention_can_not_be_resumed():
    class Homemade(type(small_llama())):
        _supports_attention_backend = False

    model = Homemade(small_llama().config).eval()
    with pytest.raises(UserError, match="attention of a Homemade can't be resumed"):
        activation_patching(model, CLEAN, CORRUPT, ANSWER, WRONG)
    assert attribution_patching(model, CLEAN, CORRUPT, ANSWER, WRONG).values["head"].shape == (3, 4)
