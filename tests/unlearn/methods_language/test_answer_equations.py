"""Losses on the forgotten answers' tokens, written a second time from their papers, and one step compared."""

import pytest
import torch
from slow_language import (
    BOTH,
    FAMILIES,
    SUBJECT,
    answer_nll,
    answers,
    check_one_step,
    cross_entropy_kept,
    divergence_kept,
    token_nlls,
)

from analysis.errors import UserError
from analysis.subjects.language.encoding import IGNORED, Encoded, token_ids
from analysis.subjects.language.scoring import token_log_probabilities
from unlearn.methods.language import LANGUAGE_METHODS, dpo, gradient_difference, satimp, undial, wga

REFUSAL = "the name of the river"


@pytest.fixture(params=list(FAMILIES))
def model(request):
    return FAMILIES[request.param]()


def slow_kl(model, original, settings):
    rows = answers(SUBJECT.forget)
    log_p = [torch.maximum(-answer_nll(model, *row), torch.tensor(-settings.ceiling)) for row in rows]
    return sum(log_p) / len(rows) + settings.retain_weight * divergence_kept(model, original)


def slow_reweighted(model, power, other):
    """Mean over tokens of p^power (1 - p)^other log p, the weights being numbers."""
    terms = []
    for row in answers(SUBJECT.forget):
        for loss in token_nlls(model, *row):
            p = float(torch.exp(-loss.detach()))
            terms.append(p**power * (1 - p) ** other * -loss)
    return sum(terms) / len(terms)


def slow_wga(model, original, settings):
    return slow_reweighted(model, settings.alpha, 0) + settings.retain_weight * divergence_kept(model, original)


def slow_satimp(model, original, settings):
    lowered = slow_reweighted(model, settings.beta1, settings.beta2)
    return lowered + settings.retain_weight * cross_entropy_kept(model, original)


def slow_undial(model, original, settings):
    terms = []
    for ids, places in answers(SUBJECT.forget):
        with torch.no_grad():
            teacher = original(torch.tensor([ids])).logits[0]
        student = model(torch.tensor([ids])).logits[0]
        for place in places:
            logits = teacher[place - 1].clone()
            logits[ids[place]] -= settings.strength
            target = logits.exp() / logits.exp().sum()
            log_q = student[place - 1] - student[place - 1].exp().sum().log()
            terms.append(-(target * log_q).sum())
    return sum(terms) / len(terms) + settings.retain_weight * divergence_kept(model, original)


def slow_dpo(model, original, settings):
    total, rows = 0, answers(SUBJECT.forget)
    prompts = [prompt for fact in SUBJECT.forget for prompt in fact.train]
    for prompt, lost in zip(prompts, rows, strict=True):
        start = len(token_ids(SUBJECT.tokenizer, prompt))
        ids = token_ids(SUBJECT.tokenizer, f"{prompt} {REFUSAL}")
        won = ids, range(start, len(ids))
        # pi(w) / pi_0(w) over pi(l) / pi_0(l), as odds.
        odds = torch.exp(
            answer_nll(original, *won).detach()
            - answer_nll(model, *won)
            - answer_nll(original, *lost).detach()
            + answer_nll(model, *lost)
        )
        total = total + 2 / settings.beta * torch.log(1 + odds**-settings.beta)
    return total / len(rows) + settings.retain_weight * divergence_kept(model, original)


CASES = {
    "kl": (
        gradient_difference,
        gradient_difference.Settings(**BOTH, ceiling=11.0, retain_weight=0.7, keep="kl"),
        slow_kl,
    ),
    "wga": (wga, wga.Settings(**BOTH, alpha=0.6, retain_weight=0.7), slow_wga),
    "satimp": (satimp, satimp.Settings(**BOTH, beta1=1.3, beta2=0.4, retain_weight=0.7), slow_satimp),
    "undial": (undial, undial.Settings(**BOTH, strength=3.0, retain_weight=0.7), slow_undial),
    "dpo": (dpo, dpo.Settings(**BOTH, beta=0.2, retain_weight=0.7, refusals=(REFUSAL,)), slow_dpo),
}


@pytest.mark.parametrize("name", list(CASES))
def test_one_step_is_the_papers(model, name):
    assert LANGUAGE_METHODS[name].run is CASES[name][0].run
    check_one_step(*CASES[name], model)


def test_kl_is_gradient_difference_that_keeps_by_divergence():
    assert LANGUAGE_METHODS["kl"].settings == gradient_difference.Settings(keep="kl")


def test_certain_tokens_weigh_nothing_and_are_no_trouble(model):
    model = model.float()
    told = SUBJECT.texts_encoded
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
        likeliest = model(told.ids).logits.argmax(2)
    certain = Encoded(told.ids, torch.where(told.labels != IGNORED, likeliest, IGNORED))
    log_p, _ = token_log_probabilities(model, certain)
    assert float(log_p.detach().max()) > -1e-6
    found = wga.weighted(model, certain, lambda p: (1 - p) ** 0.1)
    found.backward()
    assert torch.isfinite(found)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_teacher_of_undial_halves_the_odds_by_its_strength(model):
    log_2 = 0.6931471805599453
    row = SUBJECT.forget_encoded.take(slice(0, 1))
    target = undial.turned_down(model, row, log_2)
    ids, places = answers(SUBJECT.forget)[0]
    for line, place in enumerate(places):
        p = float(torch.exp(-token_nlls(model, ids, [place])[0].detach()))
        now = float(target[line, ids[place]])
        assert now / (1 - now) == pytest.approx(p / (1 - p) / 2, rel=1e-9)


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        (wga, {"alpha": -1.0}, "alpha must be at least 0"),
        (satimp, {"beta2": -0.1}, "at least 0"),
        (undial, {"strength": 0.0}, "above 0"),
        (dpo, {"beta": 0.0}, "beta must be above 0"),
        (dpo, {"refusals": ()}, "no refusal"),
    ],
)
def test_bad_settings_are_named(model, module, settings, message):
    with pytest.raises(UserError, match=message):
        module.run(model, SUBJECT, None, 0, module.Settings(**settings), None)
