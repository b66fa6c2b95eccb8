"""What equations of language methods are written with a second time: slowly, one row and one token at a time."""

import copy
from functools import partial

import torch
from language_subjects import small_subject
from small_models import small_gpt2, small_llama

from analysis.subjects.language.encoding import token_ids

SUBJECT = small_subject()
FAMILIES = {"gpt2": partial(small_gpt2, 0, torch.float64), "llama": partial(small_llama, 0, torch.float64)}
LR = 1e-3
ALL = 99
ROWS = {"forget_rows": ALL, "steps": 1, "lr": LR}
BOTH = ROWS | {"retain_rows": ALL, "text_rows": ALL}


def token_nlls(model, ids, places):
    """-log p of the tokens at some places, from one run of the row by itself."""
    logits = model(torch.tensor([ids])).logits[0]
    return [-(logits[place - 1][ids[place]] - logits[place - 1].exp().sum().log()) for place in places]


def answers(facts):
    """Ids and the places of the answer's tokens, for each training prompt."""
    out = []
    for fact in facts:
        for prompt in fact.train:
            before = len(token_ids(SUBJECT.tokenizer, prompt))
            ids = token_ids(SUBJECT.tokenizer, f"{prompt} {fact.answer}")
            assert ids[:before] == token_ids(SUBJECT.tokenizer, prompt)
            out.append((ids, range(before, len(ids))))
    return out


def texts():
    out = []
    for text in SUBJECT.texts:
        ids = token_ids(SUBJECT.tokenizer, text)
        out.append((ids, range(1, len(ids))))
    return out


def answer_nll(model, ids, places):
    return sum(token_nlls(model, ids, places))


def mean_token_nll(model, sequences):
    losses = [loss for ids, places in sequences for loss in token_nlls(model, ids, places)]
    return sum(losses) / len(losses)


def mean_token_kl(model, original, sequences):
    found = []
    for ids, places in sequences:
        with torch.no_grad():
            before = original(torch.tensor([ids])).logits[0]
        now = model(torch.tensor([ids])).logits[0]
        for place in places:
            p0, p = before[place - 1].softmax(0), now[place - 1].softmax(0)
            found.append((p0 * (p0.log() - p.log())).sum())
    return sum(found) / len(found)


def cross_entropy_kept(model, original):
    return (mean_token_nll(model, answers(SUBJECT.retain)) + mean_token_nll(model, texts())) / 2


def divergence_kept(model, original):
    return (mean_token_kl(model, original, answers(SUBJECT.retain)) + mean_token_kl(model, original, texts())) / 2


def adam_step(original, loss, names):
    """The first step of Adam, by hand: bias-corrected moments are the gradient and its square."""
    work = copy.deepcopy(original)
    named = {n: p for n, p in work.named_parameters() if n in names}
    gradients = torch.autograd.grad(loss(work), list(named.values()), allow_unused=True)
    for parameter, gradient in zip(named.values(), gradients, strict=True):
        if gradient is not None:
            parameter.data -= LR * gradient / (gradient.abs() + 1e-8)
    return work


def check_one_step(module, settings, slow, model, names=None):
    """One step of a method is one step of Adam on the equation, on the parameters that are named (all)."""
    names = {n for n, _ in model.named_parameters()} if names is None else names
    expected = adam_step(model, lambda work: slow(work, model, settings), names)
    got = module.run(model, SUBJECT, None, 0, settings, None)
    moved = 0.0
    for (n, mine), theirs, before in zip(
        got.named_parameters(), expected.parameters(), model.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6, msg=lambda text, n=n: f"{n}: {text}")
        moved = max(moved, float((mine - before).detach().abs().max()))
    assert moved > LR / 2
