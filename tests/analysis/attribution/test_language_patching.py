"""Patching by transformer-lens against hooks of our own on the Hugging Face model, one cell at a time."""

import pytest
import torch
from scipy.stats import spearmanr
from small_models import small_gpt2, small_llama

from analysis.attribution.anatomy import anatomy
from analysis.attribution.language_patching import (
    PatchingMap,
    activation_patching,
    attribution_patching,
    equal_length_pairs,
    rank_correlation,
)
from analysis.errors import UserError

MODELS = [small_gpt2, small_llama]
CLEAN, CORRUPT, ANSWER, WRONG = torch.tensor([9, 40, 7, 100, 33]), torch.tensor([9, 77, 8, 100, 33]), 120, 300
# Llama's norms and rotations are float32 inside whatever the model's type, and the bridge rounds in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


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


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_same_as_own_hooks_one_cell_at_a_time(make, direction):
    model = make(dtype=torch.float64)
    found = activation_patching(model, CLEAN, CORRUPT, ANSWER, WRONG, direction=direction, cells=7)
    assert (found.direction, found.method) == (direction, "exact")
    assert found.clean == pytest.approx(float(lead(model, CLEAN)), rel=1e-5)
    assert found.corrupt == pytest.approx(float(lead(model, CORRUPT)), rel=1e-5)
    assert list(found.values) == ["resid", "attn", "mlp", "head"]
    for site, values in found.values.items():
        torch.testing.assert_close(values, slow_map(model, site, direction), **CLOSE)


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
    first = activation_patching(model, CLEAN, CORRUPT, ANSWER, WRONG, ["mlp"])
    guess = attribution_patching(model, CLEAN, CORRUPT, ANSWER, WRONG, ["mlp"])
    assert not guess.values["mlp"].requires_grad
    assert model.training
    assert {name: type(module) for name, module in model.named_modules()} == modules
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
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


def test_a_model_that_transformer_lens_does_not_know():
    class Homemade(type(small_llama())):
        pass

    model = Homemade(small_llama().config).eval()
    with pytest.raises(UserError, match="doesn't know a Homemade"):
        activation_patching(model, CLEAN, CORRUPT, ANSWER, WRONG)
    assert attribution_patching(model, CLEAN, CORRUPT, ANSWER, WRONG).values["head"].shape == (3, 4)
