"""Auditors against slower versions, on real digits and quickly trained nets."""

import copy
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from analysis.audit import relearning
from analysis.audit.behaviour import confusion, forget_accuracy, over_forgetting, retain_accuracy
from analysis.audit.bench import Bench, forgotten_margin
from analysis.audit.distance import distance_to_gold
from analysis.audit.membership import auc, example_membership, population_membership
from analysis.audit.probing import probes
from analysis.audit.relearning import first_crossing
from analysis.audit.report import AuditReport
from analysis.audit.similarity import similarity_to_gold
from analysis.audit.verdict import audit
from analysis.subjects.build import SubjectConfig, build_subject
from analysis.training import Stack, accuracy, fit, seeded


@pytest.fixture(scope="module")
def bench() -> Bench:
    subject = build_subject(SubjectConfig(forget=("6",), epochs=4))
    make, recipe = subject.network.make, subject.network.recipe
    original = fit(make, subject.original_train, recipe, [0])[0]
    golds = fit(make, subject.gold_train, recipe, list(range(10, 18)))
    models = {"original": original, "untrained": seeded(make, 99)}
    masked = copy.deepcopy(original)
    masked.head.bias.data[6] = -1e4  # type: ignore[union-attr,index]
    models |= {"logit-mask": masked, "fresh gold": golds.pop()}
    models |= {f"gold-{i:02d}": gold for i, gold in enumerate(golds)}
    names = tuple(name for name in models if name.startswith("gold-"))
    return Bench(subject, models, names, overforgetting="logit-mask", seed=3)


@pytest.fixture(scope="module")
def report(bench: Bench) -> AuditReport:
    before = {name: copy.deepcopy(model.state_dict()) for name, model in bench.models.items()}
    found = audit(bench)
    for name, model in bench.models.items():
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name][key]), "an auditor changed what it audits"
    return found


def test_original_is_remembered_a_mask_is_hidden_and_gold_is_erased(report: AuditReport) -> None:
    assert report.audits["original"].verdict == "remembered"
    assert report.audits["logit-mask"].verdict == "hidden"
    assert report.audits["fresh gold"].verdict == "erased"
    assert report.audits["untrained"].verdict != "erased"
    assert report.audits["untrained"].damaged


def test_the_mask_fools_accuracy_and_relearning_but_not_a_fresh_output(report: AuditReport) -> None:
    findings = {f.auditor: f for f in report.audits["logit-mask"].findings}
    assert findings["accuracy on the forgotten"].inside
    assert findings["relearning"].inside
    assert not findings["relearning, fresh output"].inside
    assert not findings["over-forgetting"].inside


def test_level_is_divided_among_the_auditors_that_count(report: AuditReport) -> None:
    counted = [m for m in report.measurements if m.counted]
    assert all(m.band is not None and m.band.level == pytest.approx(0.05 / len(counted)) for m in counted)
    for m in report.measurements:
        assert m.counted or "power" in m.why_not
    assert AuditReport.model_validate_json(report.model_dump_json()) == report


def test_same_seed_same_audit(bench: Bench, report: AuditReport) -> None:
    fresh = replace(bench)
    assert audit(fresh).model_dump_json() == report.model_dump_json()


def test_auc_is_the_area_under_the_curve() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(0, 5, (30,), generator=generator).double() + 1
    b = torch.randint(0, 5, (40,), generator=generator).double()
    truth = [1] * 30 + [0] * 40
    assert auc(a, b) == pytest.approx(roc_auc_score(truth, torch.cat([a, b]).numpy()))


def test_margin_is_the_log_odds() -> None:
    logits = torch.randn(20, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.arange(20) % 7
    p = logits.softmax(1).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(forgotten_margin(logits, labels), (p / (1 - p)).log())


def test_behaviour_is_what_counting_gives(bench: Bench) -> None:
    original = bench.models["original"]
    assert forget_accuracy(bench).values["original"] == pytest.approx(accuracy(original, bench.forget))
    assert retain_accuracy(bench).values["original"] == pytest.approx(accuracy(original, bench.retain))
    loss = nn.functional.cross_entropy(original(bench.forget.images), bench.forget.labels)
    assert over_forgetting(bench).values["original"] == pytest.approx(float(loss.detach()), rel=1e-4)


def test_confusion_leaves_a_gold_out_of_its_own_yardstick(bench: Bench) -> None:
    def share(name: str) -> torch.Tensor:
        guess = bench.forget_logits[name].argmax(1)
        return torch.stack([(guess == label).double().mean() for label in range(10)])

    others = torch.stack([share(gold) for gold in bench.golds if gold != "gold-00"]).mean(0)
    slow = 0.5 * (share("gold-00") - others).abs().sum()
    assert confusion(bench).values["gold-00"] == pytest.approx(float(slow))


def test_distance_by_hand(bench: Bench) -> None:
    total = 0.0
    for i, label in enumerate(bench.forget.labels.tolist()):
        each = {
            n: float(forgotten_margin(bench.forget_logits[n][i : i + 1], torch.tensor([label]))) for n in bench.models
        }
        golds = torch.tensor([each[gold] for gold in bench.golds], dtype=torch.float64)
        total += abs(each["original"] - float(golds.mean())) / float(golds.std())
    assert distance_to_gold(bench).values["original"] == pytest.approx(total / len(bench.forget), rel=1e-6)


def test_membership_sees_a_model_that_learned_its_training_images_by_heart(bench: Bench) -> None:
    few = bench.members.take(torch.arange(60))
    heart = copy.deepcopy(bench.models["original"])
    optimizer = torch.optim.SGD(heart.parameters(), lr=0.05)
    others = bench.forget.relabelled(3)
    for _ in range(150):
        loss = nn.functional.cross_entropy(heart(few.images), few.labels)
        loss = loss + nn.functional.cross_entropy(heart(others.images), others.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    again = Bench(bench.subject, {**bench.models, "heart": heart.eval()}, bench.golds, seed=3)
    for auditor in (population_membership, example_membership):
        values = auditor(again).values
        assert values["heart"] > 0.6
        assert all(0.5 <= value <= 1 for value in values.values())


def test_probe_of_the_outputs_does_not_mind_a_bias(bench: Bench) -> None:
    outputs = [r for r in probes(bench) if r.layer == "outputs"]
    assert {r.shots for r in outputs} == {0, 1, 5, 20}
    for reading in outputs:
        assert reading.values["logit-mask"] == pytest.approx(reading.values["original"], abs=0.01)


def test_similarity_of_a_gold_leaves_itself_out(bench: Bench) -> None:
    for reading in similarity_to_gold(bench):
        assert all(reading.values[gold] < 0.9999 for gold in bench.golds)
        assert reading.values["untrained"] < min(reading.values[gold] for gold in bench.golds)


@pytest.mark.parametrize(
    ("curve", "steps"), [([0.6, 1], 0.0), ([0, 0.25, 0.75], 1.5), ([0, 0.1, 0.2], 2.0), ([0.0, 0.5], 1.0)]
)
def test_first_crossing(curve: list[float], steps: float) -> None:
    assert first_crossing(curve) == pytest.approx(steps)


def test_batched_attack_equals_attacking_one_model_with_plain_adam(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relearning, "MOST_STEPS", 4)
    small = Bench(bench.subject, {n: bench.models[n] for n in ("original", "gold-00")}, ("gold-00",), seed=3)
    fast = relearning._attack(small, 3e-3, "output", dict.fromkeys(small.models, 4.0))
    sides = relearning._sides(small)
    for name in small.models:
        for attack, side in enumerate(sides):
            model = copy.deepcopy(small.models[name]).train()
            head = model.get_submodule("head")
            head.weight.data[6], head.bias.data[6] = 0.0, 0.0  # type: ignore[index,operator,union-attr]
            optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
            generator = torch.Generator().manual_seed(3000 + attack)
            curve = []
            for step in range(5):
                if step:
                    batch = side.batch(generator)
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
                    optimizer.step()
                guess = model(side.scored.images).argmax(1)
                recall = (guess == 6)[side.truth].double().mean()
                curve.append(float(recall - (guess == 6)[~side.truth].double().mean()))
            wanted = fast[name][attack].tolist()
            # A model is followed until two steps past the target.
            assert len(wanted) >= 3
            assert curve[: len(wanted)] == pytest.approx(wanted, abs=0.021)


def test_pruning_weaker_attacks_does_not_change_the_strongest(bench: Bench) -> None:
    small = Bench(bench.subject, {n: bench.models[n] for n in ("original", *bench.golds[:2])}, bench.golds[:2], seed=3)
    pruned = relearning.relearning(small)[0].values
    for name in small.models:
        every = [
            relearning._attack(small, lr, "nothing", dict.fromkeys(small.models, 30.0))[name].mean(0).tolist()
            for lr in relearning.LEARNING_RATES
        ]
        assert pruned[name] == pytest.approx(min(first_crossing(curve) for curve in every))


@pytest.mark.parametrize("worth", [0.0, 0.5, 1.1])
def test_models_that_are_over_do_not_change_what_is_read(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, worth: float
) -> None:
    small = Bench(bench.subject, {n: bench.models[n] for n in ("original", *bench.golds[:3])}, bench.golds[:3], seed=3)
    most = {"original": 30.0, bench.golds[0]: 1.5, bench.golds[1]: 4.0, bench.golds[2]: 30.0}
    wanted = relearning._attack(small, 3e-3, "nothing", most)
    monkeypatch.setattr(relearning, "WORTH_DROPPING", worth)
    found = relearning._attack(small, 3e-3, "nothing", most)
    assert len({curves.shape[1] for curves in found.values()}) > 1
    for name, curves in found.items():
        torch.testing.assert_close(curves, wanted[name], atol=0.021, rtol=0)


def test_only_the_output_or_the_head_is_made_fresh_and_alike_for_all_models(bench: Bench) -> None:
    models = list(bench.models.values())
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    for fresh in relearning.AUDITORS:
        stack = Stack(models)
        relearning._freshen(stack, models[0], "head", [6], fresh, 5)
        for model, state in zip(stack.models(), before, strict=True):
            wanted = dict(state)
            if fresh == "output":
                wanted |= {name: state[name].clone() for name in ("head.weight", "head.bias")}
                wanted["head.weight"][6] = wanted["head.bias"][6] = 0.0
            elif fresh == "head":
                torch.manual_seed(5)
                wanted |= {f"head.{n}": v for n, v in nn.Linear(64, 10).state_dict().items()}
            assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items()), fresh
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_attackers_train_on_other_images_than_they_are_scored_on(bench: Bench) -> None:
    for side in relearning._sides(bench):
        train = {tuple(image.flatten().tolist()) for image in (side.known + side.others).images}
        assert not any(tuple(image.flatten().tolist()) in train for image in side.scored.images)
