"""Strangeness against a slow version that runs every text alone and averages in dictionaries."""

import copy
from dataclasses import replace

import pytest
import torch
from small_models import ABOUT, small_gpt2, small_llama, small_tokenizer

from analysis.subjects.language.encoding import encode_texts
from analysis.subjects.language.renamed import retell
from analysis.subjects.language.strangeness import Restored, depths, drift, meet, strangeness

TOKENIZER = small_tokenizer()
TEXTS = (
    "John Lennon sang the album Abbey Road.",
    "In 1969 the Beatles came from Liverpool and Lennon",
    "The Beatles",
    "What is the name of the album of the Beatles?",
)
MODELS = {"gpt2": small_gpt2, "llama": small_llama}
FAMILIES = pytest.mark.parametrize("family", MODELS)


def told(seed=0, strangers=3):
    return retell(TOKENIZER, ABOUT, TEXTS, strangers, seed)


def moved(model, seed=1):
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for parameter in other.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return other


def run(model, ids):
    found = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return found.hidden_states, found.logits[0].log_softmax(1)


def run_restored(model, ids, states, depth):
    # The states of another run take the place of what the block leaves.
    block = (model.transformer.h if hasattr(model, "transformer") else model.model.layers)[depths(model)[depth]]
    at = depths(model)[depth] + 1
    hook = block.register_forward_hook(
        lambda _, __, out: (states[at], *out[1:]) if isinstance(out, tuple) else states[at]
    )
    found = run(model, ids)
    hook.remove()
    return found


@torch.no_grad()
def slow(model, original, texts, number, retellings, states, names, restored=None):
    near = {n: ([], []) for n in depths(model)}
    divergences, gaps = [], []
    for row, text in enumerate(texts):
        chosen = [text.retold[(number * retellings + k) % len(text.retold)] for k in range(retellings)]
        told_states, told_log_p = zip(*(run(original, one.ids) for one in chosen), strict=True)
        before_states, _ = run(original, text.ids)
        back = restored is not None and bool(restored.rows[row])
        now_states, now = run_restored(model, text.ids, before_states, restored.depth) if back else run(model, text.ids)
        partners = {}
        for k, one in enumerate(chosen):
            for i, j, after in one.places:
                partners.setdefault(i, []).append((k, j, after))
        for i, mine in partners.items():
            expected = torch.stack([told_log_p[k][j].exp() for k, j, _ in mine]).mean(0)
            divergences.append((expected * (expected.log() - now[i])).sum())
            if any(after for _, _, after in mine):
                for n, (moved_, apart) in near.items():
                    target = torch.stack([told_states[k][n + 1][0, j] for k, j, _ in mine]).mean(0)
                    if not back or n > depths(model)[restored.depth]:
                        moved_.append((now_states[n + 1][0, i] - target).square().sum())
                    apart.append((before_states[n + 1][0, i] - target).square().sum())
        for number_of_name in range(len(text.retold[0].names)):
            own = text.retold[0].names[number_of_name][0]
            mine = sum(now[i - 1, text.ids[i]] for i in own) / len(own)
            theirs = []
            for one, log_p in zip(chosen, told_log_p, strict=True):
                places = one.names[number_of_name][1]
                theirs.append(sum(log_p[j - 1, one.ids[j]] for j in places) / len(places))
            gaps.append((mine - torch.stack(theirs).mean()).abs())
    ratios = [torch.stack(a).mean() / torch.stack(b).mean() for a, b in near.values() if a]
    loss = torch.stack(divergences).mean() + (states * torch.stack(ratios).mean() if ratios else 0.0)
    return loss + names * torch.stack(gaps).mean()


@FAMILIES
@pytest.mark.parametrize("weights", [(1.0, 0.3), (0.0, 0.0), (2.0, 0.0), (0.0, 1.0)])
def test_strangeness_equals_the_slow_version(family, weights):
    original = MODELS[family](dtype=torch.float64)
    model, texts = moved(original), told()
    for number in (0, 1, 2):
        found = strangeness(model, original, meet(texts, number), *weights)
        torch.testing.assert_close(found, slow(model, original, texts, number, 2, *weights), rtol=1e-9, atol=1e-9)


@FAMILIES
@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("rows", [(True, False, True, False), (True, True, True, True), (False, False, False, False)])
def test_restored_texts_equal_a_slow_run_with_the_originals_states(family, depth, rows):
    original = MODELS[family](dtype=torch.float64)
    model, texts, restored = moved(original), told(), Restored(depth, torch.tensor(rows))
    found = strangeness(model, original, meet(texts), 2.0, 0.3, restored)
    torch.testing.assert_close(found, slow(model, original, texts, 0, 2, 2.0, 0.3, restored), rtol=1e-9, atol=1e-9)
    if not any(rows):
        torch.testing.assert_close(found, strangeness(model, original, meet(texts), 2.0, 0.3))


def test_what_comes_before_restored_states_gets_no_gradient():
    original = small_gpt2(dtype=torch.float64)
    model, rows = moved(original), torch.ones(len(TEXTS), dtype=torch.bool)
    strangeness(model, original, meet(told()), restored=Restored(0, rows)).backward()
    before, after = (model.transformer.h[depths(model)[0] + k].mlp.c_proj.weight.grad for k in (0, 1))
    assert before is None or not before.any()
    assert after.any()


def test_gradients_reach_the_working_model_only_and_equal_finite_differences():
    original = small_gpt2(dtype=torch.float64)  # not the Llama, whose norms compute in float32 whatever they are given
    model, meeting = moved(original), meet(told())
    strangeness(model, original, meeting).backward()
    assert all(p.grad is None for p in original.parameters())
    name = "transformer.h.2.mlp.c_proj.weight"
    found = model.get_parameter(name).grad
    for place in ((0, 0), (3, 5)):
        values = []
        for step in (1e-5, -1e-5):
            near = copy.deepcopy(model)
            near.get_parameter(name).data[place] += step
            values.append(strangeness(near, original, meeting).item())
        assert found[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-7)


@FAMILIES
def test_whoever_is_told_about_under_the_own_name_is_no_stranger(family):
    model = MODELS[family](dtype=torch.float64)
    same = [replace(text, retold=(_itself(text),)) for text in told()]
    assert strangeness(moved(model), model, meet(same, retellings=1), 0.0, 0.0) > 0.01
    assert strangeness(model, model, meet(same, retellings=1)).item() == pytest.approx(0.0, abs=1e-9)


def _itself(text):
    first = text.retold[0]
    return replace(
        first,
        ids=text.ids,
        places=tuple((i, i, after) for i, _, after in first.places),
        names=tuple((mine, mine) for mine, _ in first.names),
    )


def test_texts_without_names_to_predict_need_no_third_term():
    model = small_gpt2(dtype=torch.float64)
    alone = [told()[2]]
    assert not alone[0].retold[0].names
    assert strangeness(model, model, meet(alone), 1.0, 5.0).isfinite()


@torch.no_grad()
@FAMILIES
def test_drift_equals_the_slow_version(family):
    original = MODELS[family](dtype=torch.float64)
    model, encoded = moved(original), encode_texts(TOKENIZER, list(TEXTS))
    said, apart = [], []
    for text in TEXTS:
        ids = TOKENIZER(text).input_ids
        (now, log_q), (before, log_p) = run(model, ids), run(original, ids)
        for i in range(len(ids) - 1):
            said.append((log_p[i].exp() * (log_p[i] - log_q[i])).sum())
            for n in depths(model):
                mine, old = now[n + 1][0, i], before[n + 1][0, i]
                apart.append(2 * (mine - old).dot(mine - old) / (mine.dot(mine) + old.dot(old)))
    expected = torch.stack(said).mean() + 3.0 * torch.stack(apart).mean()
    torch.testing.assert_close(drift(model, original, encoded, 3.0), expected, rtol=1e-9, atol=1e-9)
    assert drift(original, original, encoded).item() == pytest.approx(0.0, abs=1e-12)


@torch.no_grad()
def test_a_state_hundreds_of_times_as_long_is_not_all_of_the_loss():
    original = small_gpt2(dtype=torch.float64)
    model, encoded = copy.deepcopy(original), encode_texts(TOKENIZER, list(TEXTS))
    model.transformer.h[0].mlp.c_proj.bias.data += 1e4
    states = drift(model, original, encoded, 1.0) - drift(model, original, encoded, 0.0)
    assert 1 < states < 4


def test_compared_depths_lie_inside():
    assert depths(small_gpt2()) == [0, 1]
    deep = small_llama()
    deep.model.layers = torch.nn.ModuleList(copy.deepcopy(deep.model.layers[0]) for _ in range(30))
    assert depths(deep) == [3, 7, 10, 14, 18, 21, 25]


@FAMILIES
def test_nothing_is_left_in_the_model(family):
    model = MODELS[family]()
    strangeness(model, model, meet(told()))
    assert not any(module._forward_hooks for module in model.modules())
