"""A model in bfloat16 is located in, edited and audited as the same weights in float32 are, but for rounding."""

import copy
from dataclasses import replace

import fact_cases
import pytest
import torch
from language_subjects import small_subject
from small_models import sequences, small_gpt2, small_llama

from analysis.attribution.fisher import fisher_diagonal, fisher_diagonal_vmap
from analysis.audit.facts.recall import recall, reverse
from analysis.audit.facts.relearning import relearning
from analysis.audit.facts.tuning import fine_tuned
from analysis.fact_localization import mask_of, score
from unlearn.edit import Edit
from unlearn.methods.language import LANGUAGE_METHODS
from unlearn.optimize import descend

FAMILIES = {"gpt2": small_gpt2, "llama": small_llama}
SUBJECT = small_subject()
IDS, LABELS = sequences()


@pytest.fixture(params=list(FAMILIES))
def models(request):
    """The same weights twice: in bfloat16, and in float32."""
    half = FAMILIES[request.param](dtype=torch.bfloat16).requires_grad_(False)
    return half, copy.deepcopy(half).float()


def flat(tensors):
    return torch.cat([value.double().flatten() for value in tensors.values()])


def distance(found, right):
    """How far apart, as a share of what is right."""
    found, right = flat(found), flat(right)
    return float((found - right).norm() / right.norm())


@pytest.mark.parametrize("fisher", [fisher_diagonal, fisher_diagonal_vmap])
def test_squares_are_summed_in_float32(models, fisher):
    half, whole = (fisher(model, IDS, LABELS).values for model in models)
    assert {value.dtype for value in half.values()} == {torch.float32}
    assert distance(half, whole) < 0.05


def test_a_sum_of_many_squares_does_not_stand_still():
    # In bfloat16 a sum stops growing once it is 256 times what is added.
    model = small_gpt2(dtype=torch.bfloat16)
    once = fisher_diagonal(model, IDS, LABELS).values
    often = fisher_diagonal(model, IDS.repeat(300, 1), LABELS.repeat(300, 1), chunk=3).values
    assert distance(often, once) < 1e-3


@pytest.mark.parametrize("measure", ["fisher", "gradient", "stranger", "neuron-ig"])
def test_scores_are_those_of_the_same_weights(models, measure):
    half, whole = (score(model, SUBJECT, measure, "down", 0).values for model in models)
    assert {value.dtype for value in half.values()} == {torch.float32}
    assert distance(half, whole) < 0.05


def test_a_stranger_edit_goes_where_it_goes_in_float32(models, tmp_path):
    mask = mask_of(models[1], score(models[1], SUBJECT, "stranger", "down", 0), 0.05)
    method = LANGUAGE_METHODS["stranger"]
    settings = replace(method.settings, steps=30)  # Adam's first steps go by signs, which rounding turns most
    edited = [method.run(model, SUBJECT, mask, 0, settings, None) for model in models]
    moves = [
        {name: p.float() - before.get_parameter(name).float() for name, p in after.named_parameters()}
        for before, after in zip(models, edited, strict=True)
    ]
    assert distance(*moves) < 0.15
    edit = Edit.between(models[0].state_dict(), edited[0].state_dict())
    edit.save(tmp_path / "edit.safetensors")
    back = Edit.load(tmp_path / "edit.safetensors").revert(edited[0].state_dict())
    assert all(torch.equal(value, models[0].state_dict()[name]) for name, value in back.items())
    assert {p.dtype for p in edited[0].parameters()} == {torch.bfloat16}


def test_small_steps_are_not_rounded_away():
    model = torch.nn.Linear(4, 1, bias=False, dtype=torch.bfloat16)
    torch.nn.init.ones_(model.weight)
    # One step of 1e-3 is a quarter of what parts 1 from the next number below it.
    edited = descend(model, range(40), lambda work, _: work.weight.float().sum(), lr=1e-3)
    assert torch.allclose(edited.weight.float(), torch.full((1, 4), 0.96), atol=0.004)
    tuned = fine_tuned(small_gpt2(dtype=torch.bfloat16), [], 1e-4)
    assert {p.dtype for p in tuned.parameters()} == {torch.float32}


def test_auditors_read_nearly_the_same(models):
    for auditor in (lambda case: recall(case), lambda case: [reverse(case)], lambda case: [relearning(case)]):
        half, whole = (auditor(fact_cases.case(model)) for model in models)
        for mine, right in zip(half, whole, strict=True):
            assert mine.facts == right.facts
            assert mine.values == pytest.approx(right.values, abs=0.1 if mine.unit == "nats" else 0.03)
