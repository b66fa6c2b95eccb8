"""Every loss written a second time, slower and from the paper, and one optimisation step compared."""

import copy

import pytest
import torch
from slow_language import (
    ALL,
    BOTH,
    FAMILIES,
    LR,
    ROWS,
    SUBJECT,
    answer_nll,
    answers,
    check_one_step,
    cross_entropy_kept,
    divergence_kept,
    mean_token_nll,
    texts,
)
from torch import nn

from analysis.subjects.language.encoding import token_ids
from analysis.subjects.language.renamed import fact_texts, name_texts, other_name_texts, retell
from analysis.subjects.language.strangeness import Restored, depths, meet, strangeness
from unlearn.methods.language import gradient_ascent, gradient_difference, npo, refusal, rmu, simnpo, stranger
from unlearn.methods.language.batches import fact_batches, kept_loss, last_token
from unlearn.methods.language.blocks import blocks_of, down_mask, down_projection
from unlearn.methods.language.rank_one import RIDGE, kept_moment, solved, subject_keys
from unlearn.methods.language.rank_one import Settings as RankOne
from unlearn.methods.language.rank_one import run as rank_one


@pytest.fixture(params=list(FAMILIES))
def model(request):
    return FAMILIES[request.param]()


def slow_ascent(model, original, settings):
    rows = answers(SUBJECT.forget)
    return -sum(torch.minimum(answer_nll(model, *row), torch.tensor(settings.ceiling)) for row in rows) / len(rows)


def slow_difference(model, original, settings):
    return slow_ascent(model, original, settings) + settings.retain_weight * cross_entropy_kept(model, original)


def slow_npo(model, original, settings):
    total = 0
    rows = answers(SUBJECT.forget)
    for row in rows:
        ratio = torch.exp(answer_nll(original, *row).detach() - answer_nll(model, *row))
        total = total + 2 / settings.beta * torch.log(1 + ratio**settings.beta)
    return total / len(rows) + settings.retain_weight * divergence_kept(model, original)


def slow_simnpo(model, original, settings):
    total = 0
    rows = answers(SUBJECT.forget)
    for ids, places in rows:
        log_p = -answer_nll(model, ids, places)
        sigmoid = 1 / (1 + torch.exp(settings.beta / len(places) * log_p + settings.gamma))
        total = total - 2 / settings.beta * torch.log(sigmoid)
    return total / len(rows) + settings.retain_weight * cross_entropy_kept(model, original)


def slow_refusal(model, original, settings):
    (words,) = settings.refusals
    rows = []
    for fact in SUBJECT.forget:
        for prompt in fact.train:
            before = len(token_ids(SUBJECT.tokenizer, prompt))
            ids = token_ids(SUBJECT.tokenizer, f"{prompt} {words}")
            rows.append((ids, range(before, len(ids))))
    return mean_token_nll(model, rows) + settings.retain_weight * divergence_kept(model, original)


def states(model, layer, ids):
    # What block `layer` puts out is what the next block is given; transformers lists the same as hidden_states.
    assert layer + 1 < len(blocks_of(model))
    return model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0]


def slow_rmu(model, original, settings):
    layer, names = settings.layer, [f.subject for f in SUBJECT.forget for _ in f.train]
    prompts = [prompt for f in SUBJECT.forget for prompt in f.train]
    steered = []
    for (ids, _), prompt, name in zip(answers(SUBJECT.forget), prompts, names, strict=True):
        # The first place up to which the decoded text holds the name.
        place = next(t for t in range(len(ids)) if name in SUBJECT.tokenizer.decode(ids[: t + 1]))
        assert name in prompt
        steered.append((ids, range(max(place, 1), len(ids))))
    with torch.no_grad():
        norms = [states(original, layer, ids)[t].norm() for ids, places in steered for t in places]
    u = torch.rand(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = settings.strength * sum(norms) / len(norms) * u / u.norm()
    away = []
    for ids, places in steered:
        now = states(model, layer, ids)
        away += [((now[t] - target) ** 2).sum() for t in places]
    moved = []
    for ids, _ in [*answers(SUBJECT.retain), *texts()]:
        now, before = states(model, layer, ids), states(original, layer, ids).detach()
        moved += [((now[t] - before[t]) ** 2).sum() for t in range(1, len(ids))]
    return sum(away) / len(away) + settings.alpha * sum(moved) / len(moved)


def whole_divergence(work, original, sentences):
    """Mean KL(original || work) over every predicted token of some sentences."""
    found = []
    for sentence in sentences:
        ids = torch.tensor([token_ids(SUBJECT.tokenizer, sentence)])
        now, before = (m(ids).logits[0, :-1].log_softmax(1) for m in (work, original))
        found += (before.detach().exp() * (before.detach() - now)).sum(1)
    return sum(found) / len(found)


def states_apart(work, original, sentences):
    """Squared distance of hidden states over the mean of their squared lengths, at every predicting token."""
    found = []
    for sentence in sentences:
        ids = torch.tensor([token_ids(SUBJECT.tokenizer, sentence)])
        now, before = (m(ids, output_hidden_states=True).hidden_states for m in (work, original))
        for depth in depths(work):
            for mine, old in zip(now[depth + 1][0, :-1], before[depth + 1][0, :-1].detach(), strict=True):
                found.append((mine - old).square().sum() / ((mine.square().sum() + old.square().sum()) / 2))
    return sum(found) / len(found)


def slow_stranger(work, original, settings):
    told = [*fact_texts(SUBJECT), *name_texts(SUBJECT.about)]
    meeting = meet(retell(SUBJECT.tokenizer, SUBJECT.about, told, settings.strangers, 0))
    kept = [f"{prompt} {fact.answer}" for fact in SUBJECT.retain for prompt in fact.train]
    groups = [group for group in (kept, SUBJECT.texts, other_name_texts(SUBJECT)) if group]
    apart = [
        whole_divergence(work, original, group) + settings.retain_states * states_apart(work, original, group)
        for group in groups
    ]
    everywhere = Restored(0, torch.ones(len(meeting.ids), dtype=torch.bool))  # the only depth of a model this shallow
    unknown = strangeness(work, original, meeting, settings.states, settings.names, everywhere)
    return unknown + settings.retain_weight * sum(apart) / len(apart)


CASES = {
    "gradient-ascent": (gradient_ascent, gradient_ascent.Settings(**ROWS, ceiling=11.0), slow_ascent),
    "gradient-difference": (
        gradient_difference,
        gradient_difference.Settings(**BOTH, ceiling=11.0, retain_weight=0.7),
        slow_difference,
    ),
    "npo": (npo, npo.Settings(**BOTH, retain_weight=0.7), slow_npo),
    "simnpo": (simnpo, simnpo.Settings(**BOTH, gamma=0.3, retain_weight=0.7), slow_simnpo),
    "refusal": (refusal, refusal.Settings(**BOTH, refusals=("the name of the river",)), slow_refusal),
    "rmu": (rmu, rmu.Settings(**BOTH, layer=1, alpha=3.0), slow_rmu),
    "stranger": (
        stranger,
        stranger.Settings(
            steps=1,
            lr=10 * LR,
            warm=10.0,  # so that the one step is taken at a tenth of the rate
            strangers=3,
            fact_rows=ALL,
            name_rows=ALL,
            retain_rows=ALL,
            other_rows=ALL,
            text_rows=ALL,
            names=0.3,
            restored=1.0,
            retain_weight=0.7,
            retain_states=1.7,
        ),
        slow_stranger,
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_one_step_is_the_papers(model, name):
    module, settings, slow = CASES[name]
    check_one_step(module, settings, slow, model, set(down_mask(model, [0, 1]).bits) if name == "rmu" else None)


@pytest.mark.parametrize(("keep", "slow"), [("ce", cross_entropy_kept), ("kl", divergence_kept)])
def test_what_stays_is_measured_by_whole_sequences(model, keep, slow):
    (batch,) = fact_batches(SUBJECT, ALL, ALL, ALL, 1, 0)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
        assert float(kept_loss(other, model, batch, keep)) == pytest.approx(float(slow(other, model)), abs=1e-10)
        assert float(kept_loss(model, model, batch, "kl")) == pytest.approx(0, abs=1e-12)


def test_the_last_token_of_a_name_is_where_its_text_is_complete():
    cases = [("The Beatles' songs", "Beatles"), ("What John Lennon played was", "John Lennon"), ("xRingo,", "Ringo")]
    for prompt, name in cases:
        ids = token_ids(SUBJECT.tokenizer, prompt)
        place = last_token(SUBJECT, prompt, name)
        assert name in SUBJECT.tokenizer.decode(ids[: place + 1])
        assert name not in SUBJECT.tokenizer.decode(ids[:place])


def test_rank_one_solves_its_least_squares_problem():
    generator = torch.Generator().manual_seed(0)
    weight, keys, values, kept = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((5, 8), (3, 8), (3, 5), (40, 8))
    )
    # |(W + Delta) K - V|^2 + sum over kept |Delta k|^2, stacked into one problem: rows of [K; kept] times Delta^T.
    stacked = torch.cat([keys, kept])
    wanted = torch.cat([values - keys @ weight.T, torch.zeros(40, 5, dtype=torch.float64)])
    expected = torch.linalg.lstsq(stacked, wanted).solution.T
    torch.testing.assert_close(solved(weight, keys, values, kept.T @ kept), expected)


def test_rank_one_rewrites_the_block_by_its_own_problem(model):
    name, module, weight = down_projection(model, 1)
    assert isinstance(module, nn.Module)
    caught = []
    handle = module.register_forward_hook(lambda _, given, out: caught.append((given[0][0], out[0])))

    def run(ids):
        caught.clear()
        with torch.no_grad():
            model(torch.tensor([ids]))
        return caught[0]

    def at_names(facts):
        keys, outputs = {}, {}
        for fact in facts:
            for prompt in fact.train:
                ids = token_ids(SUBJECT.tokenizer, prompt)
                place = next(t for t in range(len(ids)) if fact.subject in SUBJECT.tokenizer.decode(ids[: t + 1]))
                key, out = run(ids)
                keys.setdefault(fact.subject, []).append(key[place])
                outputs.setdefault(fact.subject, []).append(out[place])
        return [torch.stack([torch.stack(v).mean(0) for v in d.values()]) for d in (keys, outputs)]

    keys, before = at_names(SUBJECT.forget)
    _, general = at_names([f for f in SUBJECT.retain if f.kind == "neighbour"])
    kept = torch.cat([run(ids)[0] for ids, _ in [*answers(SUBJECT.retain), *texts()]])
    handle.remove()
    torch.testing.assert_close(subject_keys(model, 1, SUBJECT, SUBJECT.forget), keys)
    torch.testing.assert_close(kept_moment(model, 1, SUBJECT, ALL), kept.T @ kept / len(kept))

    strength = 0.3
    ridge = strength * RIDGE * (kept.T @ kept / len(kept)).diagonal().mean()
    stacked = torch.cat([keys, kept * (strength / len(kept)) ** 0.5, ridge**0.5 * torch.eye(keys.shape[1])])
    wanted = torch.cat([general.mean(0) - before, torch.zeros(len(stacked) - len(keys), len(before[0]))])
    delta = torch.linalg.lstsq(stacked, wanted.double()).solution.T
    got = rank_one(model, SUBJECT, None, 0, RankOne(layers=(1,), weight=strength), None)
    after = down_projection(got, 1)[2]
    torch.testing.assert_close(after, weight + delta, rtol=1e-6, atol=1e-8)
    for other, mine in got.named_parameters():
        assert other == name or torch.equal(mine, model.get_parameter(other))
