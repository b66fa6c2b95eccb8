from dataclasses import replace
from statistics import fmean

import pytest
import torch
from fact_cases import FAMILIES, beside, case, half_taught, share, state, subject
from small_models import small_gpt2, small_tokenizer
from torch import nn

from analysis.audit.facts.case import Case
from analysis.audit.facts.relearning import ROWS, benign_relearning, benign_tuned, relearning
from analysis.audit.facts.tuning import fine_tuned, rotating
from analysis.subjects.language.encoding import encode_texts
from analysis.subjects.language.scoring import encode_facts


@pytest.mark.parametrize("family", FAMILIES)
def test_fine_tuning_is_a_plain_loop_of_adamw(family: str) -> None:
    model = FAMILIES[family](dtype=torch.float64)
    lessons = encode_facts(small_tokenizer(), subject().forget)
    batches = list(rotating(lessons, 3, 4, 7))
    before = state(model)
    found = fine_tuned(model, batches, 1e-2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    again = FAMILIES[family](dtype=torch.float64)
    stepper = torch.optim.AdamW(again.parameters(), lr=1e-2, weight_decay=0.0)
    for batch in batches:
        stepper.zero_grad()
        logits = again(input_ids=batch.ids).logits
        nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100).backward()
        nn.utils.clip_grad_norm_(again.parameters(), 1.0)
        stepper.step()
    for name, value in again.state_dict().items():
        assert torch.allclose(found.state_dict()[name], value, atol=1e-8), name
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_batches_go_round_and_every_pass_sees_each_row_once() -> None:
    lessons = encode_facts(small_tokenizer(), subject().forget)
    assert len(lessons) == 8
    rows = [tuple(row.tolist()) for row in lessons.ids]
    drawn = list(rotating(lessons, 3, 8, 1))
    assert [len(batch) for batch in drawn] == [3] * 8
    flat = [tuple(row.tolist()) for batch in drawn for row in batch.ids]
    width = lessons.ids.shape[1]
    flat = [(*row, *[0] * (width - len(row))) for row in flat]
    for start in (0, 8, 16):
        assert sorted(flat[start : start + 8]) == sorted(rows)
    assert flat[:8] != flat[8:16]
    assert [len(batch) for batch in rotating(lessons, 100, 2, 1)] == [8, 8]


@pytest.mark.parametrize("rates", [(1e-3, 1e-2), (1e-2,)])
def test_relearning_reports_the_strongest_moment_of_the_strongest_rate(rates: tuple[float, ...]) -> None:
    model = half_taught("gpt2")
    mine, before = case(model, rates=rates), state(model)
    found = relearning(mine)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    lessons = list(rotating(encode_facts(small_tokenizer(), mine.taught), ROWS, 4, mine.seed))

    def shares(tuned: nn.Module) -> list[float]:
        return [
            share(tuned, [(one.heldout[0], option) for option in (one.answer, *one.distractors)]) for one in mine.asked
        ]

    def strange(tuned: nn.Module) -> list[float]:
        return [beside(tuned, mine, one) for one in mine.asked]

    first = 2 if len(rates) > 1 else 4
    tries = {rate: fine_tuned(model, lessons[:first], rate) for rate in rates}
    best = max(rates, key=lambda rate: fmean(shares(tries[rate])))
    path = [model, tries[best]]
    if len(rates) > 1:
        path.append(fine_tuned(tries[best], lessons[2:], best))
    assert found.curve_x == ((0.0, 2.0, 4.0) if len(rates) > 1 else (0.0, 4.0))
    for way, curve, values in ((shares, found.curve, found.values), (strange, found.beside_curve, found.beside)):
        seen = [way(tuned) for tuned in path]
        assert curve == pytest.approx([fmean(one) for one in seen], abs=1e-8)
        # What the model says before the attack is no relearning, however much that is.
        assert values == pytest.approx(max(seen[1:], key=fmean), abs=1e-8)


def test_an_attack_of_one_step_is_an_attack() -> None:
    found = relearning(case(half_taught("gpt2"), steps=1))
    assert found.curve_x == (0.0, 1.0)
    assert found.curve[0] != found.curve[1]


def test_benign_tuning_happens_when_first_asked_for_even_where_nothing_else_needs_gradients() -> None:
    model = half_taught("llama")
    before = state(model)
    mine = case(model)
    lazily = Case(model, mine.subject, lambda: benign_tuned(model, mine.subject, mine.budget, 0), mine.budget)
    with torch.no_grad():
        found = benign_relearning(lazily)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    texts = encode_texts(small_tokenizer(), mine.subject.texts)
    tuned = fine_tuned(model, rotating(texts, ROWS // 2, mine.budget.benign_steps, 0), 1e-4)
    assert not torch.equal(next(tuned.parameters()), next(model.parameters()))
    one = mine.asked[0]
    slow = share(tuned, [(one.heldout[0], option) for option in (one.answer, *one.distractors)])
    assert found.values[0] == pytest.approx(slow, abs=1e-9)
    assert found.beside[0] == pytest.approx(beside(tuned, mine, one), abs=1e-9)


def test_only_long_texts_are_better_than_none() -> None:
    long = replace(subject(), texts=("the river and " * 20 + "the drums",))
    tuned = benign_tuned(small_gpt2(), long, case(small_gpt2()).budget, 0)
    assert not torch.equal(next(tuned.parameters()), next(small_gpt2().parameters()))
