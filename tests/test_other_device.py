"""Models of language on another device: everything comes to them, and the numbers are the CPU's.

Run on a GPU where there is one, and everywhere on a device that only pretends (`other_device`), which refuses what a
GPU refuses.
"""

import copy
from dataclasses import fields, replace
from functools import cache

import fact_cases
import pytest
import torch
from language_subjects import small_subject
from other_device import Lent, lent, other_device
from small_models import sequences, small_gpt2, small_llama, small_tokenizer

from analysis.attribution.fisher import fisher_diagonal, fisher_diagonal_vmap
from analysis.attribution.language_ig import neuron_integrated_gradients, token_integrated_gradients
from analysis.attribution.language_patching import Pair, activation_patching_many, attribution_patching_many
from analysis.audit.facts.inside import lens
from analysis.audit.facts.recall import recall
from analysis.audit.facts.relearning import benign_tuned
from analysis.audit.facts.retained import retained
from analysis.audit.facts.verdict import ATTACKS
from analysis.fact_causal_check import fact_localization
from analysis.fact_localization import MEASURES, mask_of, score
from analysis.representations.logit_lens import logit_lens
from analysis.scores import Mask
from analysis.subjects.language.scoring import known_facts
from unlearn.edit import Edit
from unlearn.language.continuations import spoken
from unlearn.language.controls import CHEATS
from unlearn.methods.language import LANGUAGE_METHODS

GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))
FAMILIES = {"gpt2": small_gpt2, "llama": small_llama}
SUBJECT = small_subject()
FACTS = fact_cases.subject(tuple(fact_cases.fact(i, answer="Liverpool") for i in range(4)))
BUDGET = replace(fact_cases.SMALL, asked=6, steps=2, rates=(1e-3,), soft_steps=2, samples=2, benign_steps=2)
FEW = {"steps": 1, "facts": 1, "points": 2, "strangers": 2, "rows": 3}
IDS, LABELS = sequences()
OTHER_IDS = IDS[:, [0, 3, 2, 1, 4, 5, 6]]
PAIRS = [Pair(IDS[i], OTHER_IDS[i], 5, 19) for i in (0, 2)]


@pytest.fixture(params=["other", GPU])
def moved(request):
    """Gives a copy of a model on another device."""
    if request.param == "cuda":
        yield lambda model: copy.deepcopy(model).to("cuda")
    else:
        with other_device():
            yield lent


@pytest.fixture(params=list(FAMILIES))
def model(request):
    return FAMILIES[request.param]().requires_grad_(False)


@cache
def mask(family):
    """Bits for a twentieth of the MLPs' weights."""
    model = FAMILIES[family]()
    generator = torch.Generator().manual_seed(0)
    bits = {name: torch.rand(p.shape, generator=generator) < 0.05 for name, p in model.named_parameters()}
    return Mask({name: some for name, some in bits.items() if ".mlp." in name})


def method(name, model, bits):
    known = LANGUAGE_METHODS[name]
    names = {field.name for field in fields(known.settings)}
    few = {key: value for key, value in FEW.items() if key in names}
    return known.run(model, SUBJECT, bits, 0, replace(known.settings, **few), None)


def case(model):
    return fact_cases.case(model, FACTS, BUDGET)


def numbers(found):
    """All tensors and numbers in a result, as float64 tensors of the CPU, in order."""
    if isinstance(found, torch.nn.Module):
        return numbers(list(found.state_dict().values()))
    if isinstance(found, torch.Tensor):
        return [found.detach().cpu().double().flatten()]
    if isinstance(found, bool | int | float):
        return [torch.tensor([float(found)], dtype=torch.float64)]
    if isinstance(found, dict):
        return [one for value in found.values() for one in numbers(value)]
    if isinstance(found, list | tuple):
        return [one for value in found for one in numbers(value)]
    if hasattr(found, "model_dump"):
        return numbers(found.model_dump())
    return numbers(vars(found)) if hasattr(found, "__dataclass_fields__") else []


def compare(job, model, moved, tolerance=1e-4):
    """The same job on the CPU and elsewhere, to a share of each tensor's largest number."""
    here, there = numbers(job(model)), numbers(job(moved(model)))
    assert here
    for one, other in zip(here, there, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=tolerance * float(one.abs().max()) + 1e-9 if len(one) else 0)


READING = {
    "fisher": lambda model: fisher_diagonal(model, IDS, LABELS),
    "fisher by vmap": lambda model: fisher_diagonal_vmap(model, IDS, LABELS),
    "neurons": lambda model: neuron_integrated_gradients(model, IDS, LABELS, steps=2, baseline="mean").values,
    "tokens": lambda model: token_integrated_gradients(model, IDS, LABELS, steps=4).values,
    "patching": lambda model: activation_patching_many(model, PAIRS),
    "first-order patching": lambda model: attribution_patching_many(model, PAIRS),
    "logit lens": lambda model: logit_lens(model, IDS, LABELS),
    "known facts": lambda model: known_facts(model, small_tokenizer(), FACTS.forget),
    "output filter": lambda model: CHEATS["output-filter"](model, SUBJECT, 0).get_output_embeddings(),
    "causal check": lambda model: fact_localization(model, FACTS, 0.05, "down", ["gradient"], (0.01,), (0,), 2),
}


@pytest.mark.parametrize("name", list(READING))
def test_what_is_read_is_read_anywhere(name, model, moved):
    compare(READING[name], model, moved)


@pytest.mark.parametrize("measure", MEASURES)
def test_scores_are_the_same_and_lie_on_the_cpu(measure, model, moved):
    def scored(model):
        found = score(model, SUBJECT, measure, "down", 0)
        assert all(value.device.type == "cpu" for value in found.values.values())
        assert mask_of(model, found, 0.01).count
        return found.values

    compare(scored, model, moved)


@pytest.mark.parametrize("name", list(LANGUAGE_METHODS))
def test_every_method_edits_anywhere(name, model, moved):
    # Where a first gradient is 0 but for rounding, a step of Adam goes up or down by chance.
    compare(lambda model: method(name, model, mask(model.config.model_type)), model, moved, tolerance=5e-3)


AUDITORS = {**ATTACKS, "recall": recall, "retained": retained, "lens": lens}


@pytest.mark.parametrize("name", list(AUDITORS))
def test_every_auditor_asks_anywhere(name, model, moved):
    def asked(model):
        return AUDITORS[name](replace(case(model), benign=lambda: benign_tuned(model, FACTS, BUDGET, 0)))

    compare(asked, model, moved, tolerance=1e-3)


def test_locate_edit_and_ask_end_to_end(model, moved, tmp_path):
    def done(model):
        bits = mask_of(model, score(model, SUBJECT, "stranger", "down", 0), 0.05)
        edited = method("stranger", model, bits)
        before = model.state_dict()
        Edit.between(before, edited.state_dict()).save(tmp_path / "edit.safetensors")
        edit = Edit.load(tmp_path / "edit.safetensors")
        assert 0 < edit.count <= bits.count
        back = edit.revert(edit.apply(before))
        assert all(torch.equal(back[name].cpu(), value.cpu()) for name, value in before.items())
        return [*recall(case(edited)), edit.partly(before, 0.5)]

    compare(done, model, moved, tolerance=1e-3)


def test_the_same_seed_says_the_same(model, moved):
    def said(model):
        return spoken(model, small_tokenizer(), ["The Beatles came", "Rome is"], 2, 0, new=5)

    assert said(moved(model)) == said(model)


def test_the_other_device_refuses_what_a_gpu_refuses():
    with other_device() as device:
        there, here = torch.ones(3, device=device), torch.ones(3)
        assert isinstance(there, Lent)
        for mixed in (lambda: there + here, lambda: here[there.long()], lambda: there.index_add(0, here.long(), there)):
            with pytest.raises(RuntimeError, match="one device"):
                mixed()
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, generator=torch.Generator(), device=device)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert there[here.long()[:2]].device == there.device
        assert float((there + torch.tensor(1.0)).sum()) == 6.0
        assert (there.cpu() + here).tolist() == [2.0, 2.0, 2.0]
