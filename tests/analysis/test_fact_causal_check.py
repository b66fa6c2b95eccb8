"""Facts' causal check: ablation to the bit and against a slower way, and what the whole check says of small models."""

import copy

import pytest
import torch
from located_facts import FAMILIES, MODELS, SUBJECT, TOKENIZER
from small_models import same, small_gpt2

from analysis.attribution.anatomy import anatomy
from analysis.errors import UserError
from analysis.fact_causal_check import FactLocalization, ablated_shares, fact_localization, layer_mask
from analysis.fact_localization import MEASURES, by_layer, candidates, mask_of, score
from analysis.scores import Mask
from analysis.subjects.language.encoding import encode_answers
from analysis.subjects.language.scoring import ask, mean_loss


@FAMILIES
def test_ablation_restores_every_bit(family):
    model = MODELS[family]()
    name = candidates(model, "down")[1]
    with torch.no_grad():
        # A zero with a sign is lost by any restoring that computes.
        dict(model.named_parameters())[name][0, :4] = -0.0
    before = copy.deepcopy(model)
    everything = Mask.everything(model)
    groups = [SUBJECT.forget_test[:2], SUBJECT.retain_test]
    for mask in (Mask({}), Mask({name: everything.bits[name]}), everything.random_like(0), everything):
        expected = copy.deepcopy(model)
        with torch.no_grad():
            for key, bits in mask.bits.items():
                dict(expected.named_parameters())[key][bits] = 0.0
        shares = ablated_shares(model, mask, SUBJECT, groups)
        assert same(model, before)
        slow = [[ask(expected, TOKENIZER, [one], [one.heldout[:1]])[0][0].share for one in group] for group in groups]
        assert shares == pytest.approx([sum(mine) / len(mine) for mine in slow], abs=1e-5)
    # Nothing but zeros gives every token the same probability.
    assert shares[0] == pytest.approx(
        ablated_shares(small_gpt2(7), Mask.everything(small_gpt2(7)), SUBJECT, groups)[0], abs=1e-5
    )


def test_ablation_restores_after_a_failure():
    model = small_gpt2()
    before = copy.deepcopy(model)
    long = SUBJECT.forget_test[0].model_copy(update={"heldout": ("The city " * 200,)})
    with pytest.raises(UserError, match="reads at most 128"):
        ablated_shares(model, Mask.everything(model), SUBJECT, [[long]])
    assert same(model, before)


@FAMILIES
def test_by_layer(family):
    model = MODELS[family]()
    blocks = anatomy(model).blocks
    mask = mask_of(model, score(model, SUBJECT, "gradient", "blocks", 0), 0.01)
    shares = by_layer(model, mask)
    assert len(shares) == len(blocks)
    assert sum(shares) == pytest.approx(1)
    assert shares == [
        sum(int(bits.sum()) for name, bits in mask.bits.items() if name.split(".")[2] == str(block)) / mask.count
        for block in range(3)
    ]
    only = candidates(model, "down")[1]
    assert by_layer(model, Mask({only: Mask.everything(model).bits[only]})) == [0, 1, 0]
    assert by_layer(model, Mask({})) == [0, 0, 0]


@FAMILIES
def test_fact_localization(family, tmp_path):
    model = MODELS[family]().train()
    before, done = copy.deepcopy(model), []
    torch.manual_seed(11)
    random_state = torch.get_rng_state()
    report = fact_localization(
        model, SUBJECT, 0.01, "mlp", fractions=(0.002, 0.02), seeds=(0, 1), every=2, progress=done.append
    )
    assert same(model, before)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert done == sorted(done)
    assert done[-1] == 1.0

    blocks = anatomy(model).blocks
    kinds = [(curve.measure, curve.control, curve.layer) for curve in report.curves]
    assert kinds == [
        *((measure, control, None) for measure in MEASURES for control in (None, "random")),
        ("all", "layer", blocks[0]),
        ("all", "layer", blocks[2]),
    ]
    for curve in report.curves:
        repeats = 1 if curve.control == "layer" else 2
        assert curve.x == [0.002, 0.02]
        for side in (curve.forget, curve.retain):
            assert [len(row) for row in side] == [repeats, repeats]
            assert all(0 <= share <= 1 for row in side for share in row)
    assert {one.measure for one in report.causal} == set(MEASURES)
    assert (report.n_forget, report.n_retain) == (4, 8)
    for measure in MEASURES:
        assert report.iou[measure][measure] == 1
        assert sum(report.layers[measure]) == pytest.approx(1)
        for other in MEASURES:
            assert report.iou[measure][other] == report.iou[other][measure]

    # What it says of no ablation and of its first mask, computed anew.
    still = copy.deepcopy(model).eval()
    untouched = [
        [ask(still, TOKENIZER, [one], [one.heldout[:1]])[0][0].share for one in group]
        for group in (SUBJECT.forget_test, SUBJECT.retain_test)
    ]
    means = [sum(mine) / len(mine) for mine in untouched]
    assert [report.forget_before, report.retain_before] == pytest.approx(means, abs=1e-5)
    mask = mask_of(still, score(still, SUBJECT, "gradient", "mlp", 0, 2), 0.02)
    again = ablated_shares(still, mask, SUBJECT, [SUBJECT.forget_test, SUBJECT.retain_test])
    first = report.curves[0]
    assert [first.forget[1][0], first.retain[1][0]] == pytest.approx(again, abs=1e-5)
    assert FactLocalization.model_validate_json(report.model_dump_json()) == report


def test_located_weights_of_a_taught_model_matter_more_than_others():
    # Taught facts of the subject only, by one block's MLP: without the weights found, less is left than without others.
    model = small_gpt2()
    name = candidates(model, "down")[1]
    pairs = [(p, one.answer) for one in (*SUBJECT.forget, *SUBJECT.forget_test) for p in one.prompts]
    encoded = encode_answers(TOKENIZER, pairs)
    weight = dict(model.requires_grad_(False).named_parameters())[name].requires_grad_(True)
    optimizer = torch.optim.Adam([weight], 0.02)
    for _ in range(120):
        optimizer.zero_grad()
        mean_loss(model, encoded).backward()
        optimizer.step()
    report = fact_localization(
        model.requires_grad_(False), SUBJECT, 0.01, "down", ["gradient"], fractions=(0.003, 0.01), seeds=(0, 1, 2)
    )
    assert report.forget_before > 0.9
    own, chance = report.curves[:2]
    assert sum(own.forget[1]) < sum(chance.forget[1])
    assert report.causal[0].mean > 0


def test_a_block_with_too_few_candidates_lends_its_other_matrices():
    model = small_gpt2()
    names, block = candidates(model, "down"), anatomy(model).blocks[1]
    few = layer_mask(model, names, block, 32 * 128, 0)
    more = layer_mask(model, names, block, 32 * 128 + 1, 0)
    assert [name for name, bits in few.bits.items() if bits.any()] == [f"{block}.mlp.c_proj.weight"]
    assert more.count == 32 * 128 + 1
    assert sum(bool(bits.any()) for bits in more.bits.values()) > 1
    assert all(name.startswith(f"{block}.") for name in more.bits)
    assert layer_mask(model, names, block, 10**6, 0) is None


def test_a_block_with_too_few_weights_is_left_out_of_the_sweep():
    model = small_gpt2()
    block = sum(p.numel() for n, p in model.named_parameters() if n in candidates(model, "blocks")) / 3
    share = 1.5 * block / sum(p.numel() for p in model.parameters())
    report = fact_localization(model, SUBJECT, 0.01, "down", ["gradient"], fractions=(0.01, share), seeds=(0,), every=3)
    (sweep,) = [curve for curve in report.curves if curve.control == "layer"]
    assert sweep.x == [0.01]
    assert report.causal[0].low is None
