"""Methods that are a place or a single step, written a second time from their papers."""

from dataclasses import replace

import pytest
import torch
from slow_language import (
    BOTH,
    FAMILIES,
    LR,
    SUBJECT,
    adam_step,
    answers,
    check_one_step,
    cross_entropy_kept,
    mean_token_nll,
    token_nlls,
)

from analysis.attribution.anatomy import anatomy
from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.language.encoding import token_ids
from unlearn.methods.language import depn, flu, needle, task_vector
from unlearn.methods.language.blocks import down_mask, down_projection


@pytest.fixture(params=list(FAMILIES))
def model(request):
    return FAMILIES[request.param]()


def half(model):
    generator = torch.Generator().manual_seed(3)
    return Mask({n: torch.rand(p.shape, generator=generator) < 0.5 for n, p in model.named_parameters()})


def test_a_task_vector_is_walked_backwards(model):
    tuned = adam_step(
        model, lambda work: mean_token_nll(work, answers(SUBJECT.forget)), {n for n, _ in model.named_parameters()}
    )
    settings = task_vector.Settings(steps=1, lr=LR, forget_rows=99, scale=1.7)
    seen = []
    got = task_vector.run(model, SUBJECT, None, 0, settings, lambda step, work: seen.append((step, work)))
    for mine, learnt, before in zip(got.parameters(), tuned.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, before - 1.7 * (learnt - before), rtol=0, atol=1e-6)
    before, after = (float(mean_token_nll(m, answers(SUBJECT.forget)).detach()) for m in (model, got))
    assert after > before
    # What is watched is what negation would give, which knows less, and not the tuned model, which knows more.
    assert [step for step, _ in seen] == [0, 1]
    assert float(mean_token_nll(seen[1][1], answers(SUBJECT.forget)).detach()) == after


def test_needle_adds_noise_of_the_matrix_own_size(model):
    mask = down_mask(model, [1]) & half(model)
    got = needle.run(model, SUBJECT, mask, 0, needle.Settings(noise=3.0), None)
    (name,) = [n for n, bits in mask.bits.items() if bits.any()]
    before = model.get_parameter(name).detach()
    added = (got.get_parameter(name).detach() - before)[mask.bits[name]]
    size = 3 * (sum(float(w) ** 2 for w in before.flatten()) / before.numel()) ** 0.5
    drawn = torch.randn(before.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(added, size * drawn[mask.bits[name]], rtol=0, atol=1e-10)
    with pytest.raises(UserError, match="locate first"):
        needle.run(model, SUBJECT, None, 0, needle.Settings(), None)
    with pytest.raises(UserError, match="above 0"):
        needle.run(model, SUBJECT, mask, 0, needle.Settings(noise=0.0), None)


def slow_attribution(model, prompt, answer, points):
    """By block after the first: a_n times the mean gradient of log P(answer) on a path from 0, first token held."""
    ids = token_ids(SUBJECT.tokenizer, f"{prompt} {answer}")
    start = len(token_ids(SUBJECT.tokenizer, prompt))
    out = []
    for layer in range(1, len(anatomy(model).down)):
        module = down_projection(model, layer)[1]
        caught = []
        handle = module.register_forward_pre_hook(lambda _, given, caught=caught: caught.append(given[0].detach()))
        model(torch.tensor([ids]))
        handle.remove()
        places = (torch.arange(points, dtype=torch.float64) + 0.5) / points
        path = places[:, None, None] * caught[0]
        path[:, 0] = caught[0][:, 0]
        path.requires_grad_()
        handle = module.register_forward_pre_hook(lambda _, given, path=path: (path,))
        log_p = model(torch.tensor([ids] * points)).logits.log_softmax(2)
        handle.remove()
        told = sum(log_p[:, place - 1, ids[place]].sum() for place in range(start, len(ids)))
        (gradient,) = torch.autograd.grad(told, path)
        total = (caught[0][0] * gradient.mean(0))[1:].sum(0)
        out.append(total)
    return torch.stack(out)


def test_depn_counts_facts_whose_prompts_agree_on_a_neuron(model):
    settings = depn.Settings(neurons=7, threshold=0.1, points=8)
    votes, ties = 0, 0
    for fact in SUBJECT.forget:
        shares = [slow_attribution(model, prompt, fact.answer, 400) for prompt in fact.train]
        votes = votes + torch.stack([one >= 0.1 * one.max() for one in shares]).all(0).double()
        ties = ties + sum(shares)
    found, total = depn.detected(model, SUBJECT, 0, settings)
    names = anatomy(model).down[1:]
    torch.testing.assert_close(torch.stack([found[n] for n in names]).double(), votes)
    torch.testing.assert_close(torch.stack([total[n] for n in names]), ties, rtol=0, atol=1e-6)
    assert votes.max() >= 2

    ranked = sorted(
        (-float(votes[i, j]), -float(ties[i, j]), i, j) for i in range(len(votes)) for j in range(votes.shape[1])
    )
    chosen = {(i + 1, j) for _, _, i, j in ranked[:7]}
    got = depn.run(model, SUBJECT, None, 0, settings, None)
    for layer in range(len(anatomy(model).down)):
        now, before = (down_projection(m, layer)[2] for m in (got, model))
        for j in range(now.shape[1]):
            if (layer, j) in chosen:
                assert not now[:, j].any()
            else:
                assert torch.equal(now[:, j], before[:, j])


def test_depn_keeps_to_the_mask(model):
    only = down_mask(model, [2])
    got = depn.run(model, SUBJECT, only, 0, depn.Settings(neurons=3), None)
    changed = [n for n, p in got.named_parameters() if not torch.equal(p, model.get_parameter(n))]
    assert changed == list(only.bits)
    now = down_projection(got, 2)[2]
    assert int((now == 0).all(0).sum()) == 3
    with pytest.raises(UserError, match="nothing that neurons write with"):
        depn.run(model, SUBJECT, down_mask(model, [0]), 0, depn.Settings(), None)
    with pytest.raises(UserError, match="At least 1 neuron"):
        depn.run(model, SUBJECT, None, 0, depn.Settings(neurons=0), None)


def slow_flu(model, original, settings):
    terms = []
    for ids, places in answers(SUBJECT.forget):
        for place in places:
            p = torch.exp(-token_nlls(model, ids, [place])[0])
            terms.append(-torch.log(1 - p) if p >= torch.exp(torch.tensor(-5.0)) else 0 * p)
    return sum(terms) / len(terms) + settings.retain_weight * cross_entropy_kept(model, original)


def slow_injection(model, original, settings):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for fact in SUBJECT.forget:
        wrong = fact.distractors[int(torch.randint(3, (), generator=generator))]
        for prompt in fact.train:
            ids = token_ids(SUBJECT.tokenizer, f"{prompt} {wrong}")
            rows.append((ids, range(len(token_ids(SUBJECT.tokenizer, prompt)), len(ids))))
    return mean_token_nll(model, rows) + settings.retain_weight * cross_entropy_kept(model, original)


@pytest.mark.parametrize(("inject", "slow"), [(False, slow_flu), (True, slow_injection)])
def test_flu_trains_the_mlps_that_look_up(model, inject, slow):
    settings = flu.Settings(**BOTH, inject=inject, first=0.3, last=0.3, retain_weight=0.7)
    names = {n for n, _ in model.named_parameters() if n.startswith(f"{anatomy(model).mlp[1]}.")}
    assert any("up_proj" in n or "c_fc" in n for n in names)
    # The rate is raised for so few weights; here it's set back.
    share = sum(model.get_parameter(n).numel() for n in names) / sum(p.numel() for p in model.parameters())
    check_one_step(flu, replace(settings, lr=LR * share**0.8), slow, model, names)


def test_tokens_that_are_unlikely_enough_are_left_alone(model):
    p = torch.exp(-torch.stack([loss for row in answers(SUBJECT.forget) for loss in token_nlls(model, *row)])).detach()
    kept = p[p.log() >= flu.LEAST]
    assert 0 < len(kept) <= len(p)
    with torch.no_grad():
        found = float(flu.unlikely(model, SUBJECT.forget_encoded))
    assert found == pytest.approx(float(-torch.log(1 - kept).sum() / len(p)), rel=1e-9)


@pytest.mark.parametrize(
    ("count", "expected"), [(28, [1, 2, 3, 4, 5]), (42, [2, 3, 4, 5, 6, 7]), (30, [2, 3, 4, 5]), (3, [1]), (1, [0])]
)
def test_lookup_lies_early(count, expected):
    assert list(flu.lookup_layers(count, 0.05, 0.17)) == expected


def test_flu_cuts_a_mask_to_its_place(model):
    with pytest.raises(UserError, match="nothing of the MLPs in blocks 1 to 1"):
        flu.run(model, SUBJECT, down_mask(model, [2]), 0, flu.Settings(), None)
    with pytest.raises(UserError, match="lie between shares"):
        flu.run(model, SUBJECT, None, 0, flu.Settings(first=0.4, last=0.2), None)
    allowed = half(model)
    got = flu.run(model, SUBJECT, allowed, 0, flu.Settings(**BOTH), None)
    inside = f"{anatomy(model).mlp[1]}."
    for name, after in got.named_parameters():
        moved = after != model.get_parameter(name)
        assert not (moved & ~allowed.bits[name]).any()
        assert bool(moved.any()) == name.startswith(inside)
