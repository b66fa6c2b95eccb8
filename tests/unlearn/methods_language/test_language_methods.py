"""What holds for every language method, whatever it does."""

from dataclasses import fields, replace
from functools import cache

import pytest
import torch
from digit_tasks import some_weights
from language_subjects import small_subject
from small_models import small_gpt2, small_llama

from analysis.attribution.fisher import fisher_diagonal, fisher_diagonal_vmap
from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.language.encoding import IGNORED
from analysis.subjects.language.renamed import fact_texts, name_texts, retell
from analysis.subjects.language.scoring import mean_loss
from analysis.subjects.language.strangeness import meet, strangeness
from unlearn.methods.language import LANGUAGE_METHODS, LOCATED
from unlearn.methods.language.batches import answers_before, drawn_rows, fact_batches
from unlearn.methods.language.blocks import down_projection
from unlearn.methods.language.other_bands import ATTEMPTS, chosen_texts
from unlearn.methods.language.ssd import LADDER
from unlearn.methods.ssd import dampened
from unlearn.optimize import Diverged

SUBJECT = small_subject()
FAMILIES = {"gpt2": small_gpt2, "llama": small_llama}
SMALL = {
    "steps": 3,
    "lr": 1e-3,
    "forget_rows": 2,
    "retain_rows": 2,
    "text_rows": 1,
    "batch": 2,
    "rows": 3,
    "alpha": 0.5,
}
TRAINED = [name for name, method in LANGUAGE_METHODS.items() if hasattr(method.settings, "lr")]


@cache
def knowing(family):
    """A small model that was taught all of the subject; tests show that nobody changes it."""
    model = FAMILIES[family]()
    taught = [SUBJECT.forget_encoded, SUBJECT.retain_encoded, SUBJECT.texts_encoded]
    stepper = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        stepper.zero_grad()
        sum(mean_loss(model, encoded) for encoded in taught).backward()
        stepper.step()
    stepper.zero_grad()
    return model


@pytest.fixture(params=list(FAMILIES))
def model(request):
    return knowing(request.param)


def small(name, **more):
    settings = LANGUAGE_METHODS[name].settings
    names = {field.name for field in fields(settings)}
    return replace(settings, **{key: value for key, value in (SMALL | more).items() if key in names})


def run(name, model, mask, seed=0, watch=None, **more):
    return LANGUAGE_METHODS[name].run(model, SUBJECT, mask, seed, small(name, **more), watch)


def state_bytes(model, outside=None):
    out = {}
    bits = {} if outside is None else dict(outside.bits)
    if "lm_head.weight" not in bits:
        tied = next((n for n in bits if n.endswith(("wte.weight", "embed_tokens.weight"))), None)
        bits |= {"lm_head.weight": bits[tied]} if tied else {}
    for name, tensor in model.state_dict().items():
        kept = tensor[~bits[name]] if name in bits else tensor
        out[name] = kept.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return out


@pytest.mark.parametrize("name", list(LANGUAGE_METHODS))
def test_outside_the_mask_every_bit_stays(model, name):
    mask = some_weights(model)
    before, flags = state_bytes(model), [p.requires_grad for p in model.parameters()]
    edited = run(name, model, mask)
    assert state_bytes(edited, mask) == state_bytes(model, mask)
    assert state_bytes(edited) != before
    assert state_bytes(model) == before
    assert [p.requires_grad for p in edited.parameters()] == flags
    assert not edited.training
    assert all(p.grad is None for p in (*model.parameters(), *edited.parameters()))
    assert not any(m._forward_hooks for e in (model, edited) for m in e.modules())


@pytest.mark.parametrize("name", list(LANGUAGE_METHODS))
def test_the_head_stays_tied_and_the_seed_decides(model, name):
    mask = some_weights(model) if name in LOCATED else None
    state = torch.random.get_rng_state()
    first, again = run(name, model, mask), run(name, model, mask)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert state_bytes(first) == state_bytes(again)
    assert first.get_output_embeddings().weight is first.get_input_embeddings().weight
    other = run(name, model, mask, seed=1)
    drawn = name not in {"neuron-ablation", "rank-one", "depn"}
    assert (state_bytes(other) != state_bytes(first)) == drawn


@pytest.mark.parametrize("name", list(LANGUAGE_METHODS))
def test_the_watcher_sees_the_original_first_and_the_result_last(model, name):
    seen = []
    edited = run(name, model, some_weights(model), watch=lambda step, work: seen.append((step, state_bytes(work))))
    assert seen[0] == (0, state_bytes(model))
    assert seen[-1][1] == state_bytes(edited)
    assert seen[-1][0] >= 1


@pytest.mark.parametrize("name", TRAINED)
def test_divergence_keeps_the_last_good_state(model, name):
    with pytest.raises(Diverged) as caught:
        run(name, model, None, lr=1e30)
    kept = caught.value.model
    assert caught.value.step == 0
    assert state_bytes(kept) == state_bytes(model)


ASCENTS = ["gradient-ascent", "gradient-difference", "kl", "wga", "satimp"]
LOWERING = [*ASCENTS, "npo", "simnpo", "refusal", "dpo", "undial", "flu"]


@pytest.mark.parametrize("name", LOWERING)
def test_answers_become_less_likely(model, name):
    edited = run(name, model, None, steps=20, lr=3e-3)
    before, after = (answers_before(m, SUBJECT.forget_encoded).mean() for m in (model, edited))
    assert after < before - 1


def test_rmu_moves_the_subject_more_than_the_rest(model):
    edited = run("rmu", model, None, steps=30, lr=3e-3, layer=1)
    moved = []
    for encoded in (SUBJECT.forget_encoded, SUBJECT.retain_encoded):
        now, before = (m(encoded.ids, output_hidden_states=True).hidden_states[2] for m in (edited, model))
        moved.append(float((now - before).detach()[encoded.labels != IGNORED].norm(dim=1).mean()))
    assert moved[0] > 1.5 * moved[1] > 0


def test_the_subject_becomes_a_stranger_and_the_rest_stays(model):
    told = retell(SUBJECT.tokenizer, SUBJECT.about, [*fact_texts(SUBJECT), *name_texts(SUBJECT.about)], 4, 9)
    edited = run("stranger", model, None, steps=60, lr=1e-3, fact_rows=4, name_rows=4, retain_rows=4)
    before, after = (float(strangeness(m, model, meet(told)).detach()) for m in (model, edited))
    assert after < 0.8 * before
    lost = {
        name: float((answers_before(model, rows) - answers_before(edited, rows)).mean())
        for name, rows in (("forget", SUBJECT.forget_encoded), ("retain", SUBJECT.retain_encoded))
    }
    assert lost["forget"] > 2 * abs(lost["retain"])


def test_a_share_of_the_texts_gets_the_originals_states_back(model, monkeypatch):
    seen = []

    def watched(*given):
        seen.append(given[-1])
        return strangeness(*given)

    monkeypatch.setattr("unlearn.methods.language.stranger.strangeness", watched)
    edited = run("stranger", model, None, steps=20, restored=0.25)
    rows = torch.cat([restored.rows for restored in seen]).float()
    assert 0.15 < float(rows.mean()) < 0.35
    assert {restored.depth for restored in seen} == {0}  # of two compared blocks not the last
    assert state_bytes(edited) != state_bytes(run("stranger", model, None, steps=20, restored=0.0))


def test_ascent_ends_at_the_ceiling(model):
    reached = -answers_before(model, SUBJECT.forget_encoded).max()
    edited = run("gradient-ascent", model, None, ceiling=float(reached) / 2)
    assert state_bytes(edited) == state_bytes(model)


def test_ablation_zeroes_the_mask_and_wants_one(model):
    mask = some_weights(model)
    edited = run("neuron-ablation", model, mask)
    for name, parameter in edited.named_parameters():
        assert not parameter[mask.bits[name]].any()
    with pytest.raises(UserError, match="locate first"):
        run("neuron-ablation", model, None)


def test_ssd_dampens_by_the_papers_rule_with_tied_weights_counted_once(model):
    rows = slice(None)
    gone, kept, texts = (e.take(rows) for e in (SUBJECT.forget_encoded, SUBJECT.retain_encoded, SUBJECT.texts_encoded))
    f = fisher_diagonal_vmap(model, gone.ids, gone.labels).values
    a, b = (fisher_diagonal_vmap(model, e.ids, e.labels).values for e in (kept, texts))
    edited = run("ssd", model, None, rows=99, alpha=2.0, dampening=0.5)
    changed = 0
    for name, before in model.named_parameters():
        d = (a[name] * len(kept) + b[name] * len(texts)) / (len(kept) + len(texts))
        expected = torch.where(f[name] > 2 * d, (0.5 * d / f[name]).clamp(max=1) * before, before)
        close = torch.isclose(edited.get_parameter(name), expected, rtol=1e-3, atol=1e-6)
        # Float noise may put a weight on the other side of the threshold.
        assert close.float().mean() > 0.999
        changed += int((expected != before).sum())
    assert changed > 0


def test_ssd_stops_at_the_largest_alpha_that_reaches_its_target(model):
    def reaches(edited):
        now, before = (answers_before(m, SUBJECT.forget_encoded).exp().mean() for m in (edited, model))
        return float(now / before) <= 0.5

    gone, kept, texts = SUBJECT.forget_encoded, SUBJECT.retain_encoded, SUBJECT.texts_encoded
    f, a, b = (fisher_diagonal(model, e.ids, e.labels).values for e in (gone, kept, texts))
    d = {name: (a[name] * len(kept) + b[name] * len(texts)) / (len(kept) + len(texts)) for name in f}
    ladder = {alpha: dampened(model, d, f, alpha, 1.0) for alpha in LADDER}
    largest = max(alpha for alpha, edited in ladder.items() if reaches(edited))
    assert min(ladder) < largest < max(ladder)
    chosen = run("ssd", model, None, alpha=None, target=0.5, rows=99)
    assert reaches(chosen)
    for mine, theirs in zip(chosen.parameters(), ladder[largest].parameters(), strict=True):
        assert torch.isclose(mine, theirs, rtol=1e-3, atol=1e-6).float().mean() > 0.999


def test_padding_is_never_a_label_in_the_lessons():
    for lessons in ATTEMPTS:
        texts = chosen_texts(SUBJECT, lessons)
        assert texts
        assert "A" not in texts
    with pytest.raises(UserError, match="no lessons"):
        chosen_texts(SUBJECT, "birds")
    with pytest.raises(UserError, match='topic "denial"'):
        chosen_texts(replace(SUBJECT, lessons={"other-bands": ("The Kinks sang.",)}), "other-bands+denial")


@pytest.mark.parametrize("lessons", list(ATTEMPTS))
def test_lessons_are_learnt(model, lessons):
    text = SUBJECT.lessons[ATTEMPTS[lessons][-1]][0]
    ids = torch.tensor([SUBJECT.tokenizer(text).input_ids])
    edited = run("other-bands", model, None, lessons=lessons, steps=15, lr=3e-3)
    before, after = (float(m(ids, labels=ids).loss) for m in (model, edited))
    assert after < before - 0.5


def test_every_row_is_seen_once_in_a_pass_and_batches_hold_their_rows():
    seen = torch.cat(drawn_rows(7, 3, 7, 0)).bincount()
    assert seen.tolist() == [3] * 7
    for batch in fact_batches(SUBJECT, 2, 2, 1, 4, 0):
        whole = SUBJECT.forget_encoded
        for at, row in enumerate(batch.forget_rows):
            width = batch.forget.ids.shape[1]
            assert torch.equal(batch.forget.ids[at], whole.ids[row][:width])
            assert torch.equal(batch.forget.labels[at], whole.labels[row][:width])
            assert (whole.labels[row][width:] == IGNORED).all()


def test_a_mask_out_of_reach_is_refused(model):
    top = Mask({down_projection(model, 2)[0]: torch.ones(down_projection(model, 2)[1].weight.shape, dtype=torch.bool)})
    with pytest.raises(UserError, match="nothing up to layer 1"):
        run("rmu", model, top, layer=1)
    with pytest.raises(UserError, match="allows no MLP down projection"):
        run("rank-one", model, top, layers=(0, 1))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("rmu", {"layer": 3}, "no layer 3"),
        ("rank-one", {"layers": (7,)}, "no layer 7"),
        ("rank-one", {"layers": ()}, "no layer to rewrite"),
        ("rank-one", {"weight": 0.0}, "above 0"),
        ("npo", {"keep": "glue"}, "can't be kept"),
        ("npo", {"steps": 0}, "at least 1"),
        ("refusal", {"refusals": ()}, "no refusal"),
    ],
)
def test_bad_settings_are_named(model, name, settings, message):
    with pytest.raises(UserError, match=message):
        run(name, model, None, **settings)
