"""Rankings, ablated accuracies and controls against slower versions that are obviously right."""

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from analysis.ablation import (
    Curve,
    ablated_accuracies,
    ablation_curves,
    causal_scores,
    count_of,
    equal_masks,
    mask_at,
    ranking,
    watched_images,
)
from analysis.errors import UserError
from analysis.scores import Mask, Scores
from analysis.subjects.classes import ClassSubject, Network, Recipe, Split
from analysis.training import accuracy


def net() -> nn.Module:
    net = nn.Sequential()
    net.add_module("flatten", nn.Flatten())
    net.add_module("inner", nn.Linear(6, 5))
    net.add_module("relu", nn.ReLU())
    net.add_module("head", nn.Linear(5, 4))
    return net


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 2, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(6, 4))


def built(make: type | object, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()  # type: ignore[operator]


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def parameter_scores(model: nn.Module, seed: int = 0, levels: int | None = None) -> Scores:
    """Random scores; with few levels most are tied."""
    generator = torch.Generator().manual_seed(seed)
    values = {n: torch.rand(s, generator=generator) for n, s in shapes(model).items()}
    if levels:
        values = {n: (v * levels).floor() for n, v in values.items()}
    return Scores(values, "parameter", "random")


def unit_scores(values: dict[str, list[float]], model: nn.Module) -> Scores:
    return Scores({n: torch.tensor(v) for n, v in values.items()}, "unit", "units", shapes=shapes(model))


@pytest.fixture(scope="module")
def subject() -> ClassSubject:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(30)
    images = torch.randn(120, 1, 2, 3, generator=generator) + torch.eye(4, 6)[labels].view(-1, 1, 2, 3) * 2
    train, test = Split(images[:60], labels[:60]), Split(images[60:], labels[60:])
    return ClassSubject("toy", "toy", tuple("abcd"), train, test, (2,), Network("net", net, ("head",), Recipe()))


@pytest.mark.parametrize("make", [net, conv])
@pytest.mark.parametrize("levels", [None, 3])
def test_ranking_of_weights_sorts_all_values_ties_by_position(make: object, levels: int | None) -> None:
    model = built(make)
    scores = parameter_scores(model, levels=levels)
    flat = torch.cat([scores.values[name].flatten() for name, _ in model.named_parameters()]).tolist()
    assert ranking(scores, model).tolist() == sorted(range(len(flat)), key=lambda i: (-flat[i], i))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 500), fraction=st.floats(0.001, 1.0))
def test_masks_of_weights_are_those_of_the_scores(seed: int, fraction: float) -> None:
    model = built(net)
    scores = parameter_scores(model, seed, levels=7)
    mine, theirs = equal_masks({"m": scores}, model, fraction)["m"], scores.top(fraction)
    assert all(torch.equal(mine.bits[name], theirs.bits[name]) for name in shapes(model))


def test_units_come_as_whole_rows_larger_weights_first() -> None:
    model = built(net)
    scores = unit_scores({"head": [0.3, 5.0, 0.1, 0.3], "inner": [0.2, 0.3, 9.0, -1.0, 0.0]}, model)
    positions = ranking(scores, model)
    best = [("inner", 2), ("head", 1), ("head", 0), ("head", 3), ("inner", 1), ("inner", 0), ("head", 2), ("inner", 4)]
    taken = 0
    for layer, unit in [*best, ("inner", 3)]:
        module = model.get_submodule(layer)
        row = torch.cat([module.weight[unit], module.bias[unit : unit + 1]])
        mask = mask_at(positions[taken : taken + len(row)], model)
        assert mask.count == len(row)
        assert mask.bits[f"{layer}.weight"][unit].all()
        assert mask.bits[f"{layer}.bias"][unit]
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])[positions[taken : taken + len(row)]]
        assert weights.abs().tolist() == sorted(row.abs().tolist(), reverse=True)
        taken += len(row)
    assert taken == len(positions) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("count", [1, 3, 5, 9])
def test_masks_of_whole_units_are_those_of_the_scores(count: int) -> None:
    model = built(net)
    scores = unit_scores({"inner": [0.2, 0.3, 9.0, -1.0, 0.0], "head": [0.3, 5.0, 0.1, 0.31]}, model)
    theirs = scores.top(count / 9)
    mine = mask_at(ranking(scores, model)[: theirs.count], model)
    assert mine.iou(theirs) == 1


def test_units_of_some_layers_leave_the_other_weights_out() -> None:
    model = built(conv)
    scores = unit_scores({"0": [0.2, 0.1, 0.3]}, model)
    assert ranking(scores, model).shape == (12,)
    assert mask_at(ranking(scores, model), model).shares() == {
        "0.weight": 1,
        "1.weight": 0,
        "1.bias": 0,
        "4.weight": 0,
        "4.bias": 0,
    }


def test_masks_of_weights_and_units_have_the_same_size() -> None:
    model = built(net)
    scores = {"a": parameter_scores(model), "b": unit_scores({"inner": [1.0, 2, 3, 4, 5]}, model)}
    for fraction in (0.01, 0.1, 0.33, 0.5):
        masks = equal_masks(scores, model, fraction)
        assert {mask.count for mask in masks.values()} == {count_of(model, fraction)} == {math.ceil(fraction * 59)}


def test_scores_of_another_model_are_refused() -> None:
    model = built(net)
    with pytest.raises(UserError, match=r"inner\.weight"):
        ranking(Scores({"inner.weight": torch.ones(3, 3)}, "parameter", "m"), model)
    with pytest.raises(UserError, match="none of the model's weights"):
        ranking(unit_scores({"elsewhere": [1.0]}, model), model)
    with pytest.raises(ValueError, match="input"):
        ranking(Scores({"input": torch.ones(1, 2)}, "input", "m"), model)
    with pytest.raises(UserError, match="fraction"):
        count_of(model, 2)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 500), fraction=st.floats(0.01, 1.0))
def test_ablated_accuracy_is_that_of_a_copy_with_zeros(seed: int, fraction: float) -> None:
    for make in (net, conv):
        model = built(make, seed)
        generator = torch.Generator().manual_seed(seed)
        splits = [Split(torch.randn(n, 1, 2, 3, generator=generator), torch.arange(n) % 4) for n in (7, 12)]
        mask = parameter_scores(model, seed).top(fraction)
        slow = copy.deepcopy(model)
        for name, p in slow.named_parameters():
            p.data[mask.bits[name]] = 0
        assert ablated_accuracies(model, mask, splits) == pytest.approx([accuracy(slow, split) for split in splits])


def test_curves_are_ablated_accuracies_with_controls_of_the_same_layer_shares(subject: ClassSubject) -> None:
    model = built(net)
    scores = [parameter_scores(model, seed) for seed in (1, 2)]
    curves = ablation_curves(model, subject, {"m": scores}, (0.5, 0.1), seeds=(5, 6, 7))
    splits = (subject.test.only([2]), subject.test.only([0, 1, 3]))
    assert [(c.measure, c.control, c.layer) for c in curves] == [
        ("m", None, None),
        ("m", "random", None),
        ("all", "layer", "inner"),
        ("all", "layer", "head"),
    ]
    own, control = curves[:2]
    assert own.x == control.x == [0.1, 0.5]
    for i, fraction in enumerate(own.x):
        for repeat, one in enumerate(scores):
            mask = one.top(fraction)
            assert [own.forget[i][repeat], own.retain[i][repeat]] == pytest.approx(
                ablated_accuracies(model, mask, splits)
            )
        for repeat, seed in enumerate((5, 6, 7)):
            mask = scores[repeat % 2].top(fraction).random_like(seed)
            slow = ablated_accuracies(model, mask, splits)
            assert [control.forget[i][repeat], control.retain[i][repeat]] == pytest.approx(slow)


def test_layer_sweep_ends_where_a_layer_does(subject: ClassSubject) -> None:
    model = built(net)
    fractions = (0.2, 24 / 59, 35 / 59, 1.0)
    curves = ablation_curves(model, subject, {"m": [parameter_scores(model)]}, fractions, seeds=range(5))
    sweep = {c.layer: c for c in curves if c.control == "layer"}
    assert sweep["inner"].x == list(fractions[:3])
    assert sweep["head"].x == list(fractions[:2])
    whole = Mask({name: torch.full(shape, name.startswith("head")) for name, shape in shapes(model).items()})
    slow = ablated_accuracies(model, whole, watched_images(subject, 1000, 0))
    assert [sweep["head"].forget[1], sweep["head"].retain[1]] == [[slow[0]] * 5, [slow[1]] * 5]
    assert next(c for c in curves if c.control is None).x == list(fractions)
    assert len(set(sweep["inner"].retain[0])) > 1, "every seed draws other weights"
    units = unit_scores({"head": [1.0, 2, 3, 4]}, model)
    short = ablation_curves(model, subject, {"u": [units]}, fractions, seeds=(0,))
    assert {c.control: c.x for c in short if c.measure == "u"} == {
        None: list(fractions[:2]),
        "random": list(fractions[:2]),
    }


def test_a_layer_smaller_than_the_smallest_fraction_has_no_curve(subject: ClassSubject) -> None:
    model = built(conv)
    curves = ablation_curves(model, subject, {"m": [parameter_scores(model)]}, (0.2,), seeds=(0,))
    assert [c.layer for c in curves if c.control == "layer"] == ["0", "4"]


def test_models_are_left_alone_and_tested_in_evaluation_mode(subject: ClassSubject) -> None:
    model = built(conv).train()
    before = copy.deepcopy(model.state_dict())
    scores = {"m": [parameter_scores(model)]}
    curves = ablation_curves(model, subject, scores, (0.1, 0.9), seeds=(0,))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert curves == ablation_curves(model.eval(), subject, scores, (0.1, 0.9), seeds=(0,))


def test_progress_rises_to_one(subject: ClassSubject) -> None:
    seen: list[float] = []
    model = built(net)
    ablation_curves(model, subject, {"m": [parameter_scores(model)]}, (0.1, 0.6), seeds=(0, 1), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_curves_need_seeds_and_sensible_fractions(subject: ClassSubject) -> None:
    model = built(net)
    with pytest.raises(UserError, match="seed"):
        ablation_curves(model, subject, {"m": [parameter_scores(model)]}, (0.1,), seeds=())
    with pytest.raises(UserError, match="fraction"):
        ablation_curves(model, subject, {"m": [parameter_scores(model)]}, (0.1, 0.0), seeds=(0,))


def test_only_what_the_original_knows_is_tested(subject: ClassSubject) -> None:
    replacing = ClassSubject(
        "toy", "toy", subject.classes, subject.train, subject.test, (2,), subject.network, incoming=1, slot="old"
    )
    forget, retain = watched_images(replacing, 1000, 0)
    assert set(forget.labels.tolist()) == {2}
    assert set(retain.labels.tolist()) == {0, 3}
    assert [len(part) for part in watched_images(subject, 7, 0)] == [7, 7]


def curve(
    measure: str, control: str | None, forget: Sequence[Sequence[float]], retain: Sequence[Sequence[float]]
) -> Curve:
    x = [0.1 * (i + 1) for i in range(len(forget))]
    return Curve(measure=measure, control=control, layer=None, x=x, forget=forget, retain=retain)  # type: ignore[arg-type]


def test_causal_score_by_hand() -> None:
    curves = [
        curve("good", None, [[0.2, 0.3], [0.0, 0.1]], [[0.9, 0.9], [0.8, 0.7]]),
        curve("good", "random", [[0.9, 0.8], [0.7, 0.8]], [[0.9, 0.8], [0.9, 0.8]]),
        curve("bad", None, [[0.9], [0.9]], [[0.5], [0.5]]),
        curve("bad", "random", [[0.9, 0.9], [0.9, 0.9]], [[0.6, 0.5], [0.6, 0.5]]),
    ]
    good, bad = causal_scores(curves)
    # Repeat 0: forget 0.7 and 0.7, retain 0.0 and 0.1; repeat 1: forget 0.5 and 0.7, retain -0.1 and 0.1.
    assert (good.measure, good.n) == ("good", 2)
    assert good.mean == pytest.approx(((0.7 - 0.05) + (0.6 - 0.0)) / 2)
    assert good.sd == pytest.approx(0.05 / math.sqrt(2))
    # Student t with one degree of freedom at 1 - 0.05 / 2 is tan(pi * 0.475).
    assert good.low == pytest.approx(good.mean - math.tan(math.pi * 0.475) * good.sd / math.sqrt(2))
    assert good.better_than_chance
    assert bad.mean == pytest.approx(-0.05)
    assert not bad.better_than_chance


def test_causal_score_of_one_repeat_claims_nothing() -> None:
    (score,) = causal_scores([curve("m", None, [[0.0]], [[1.0]]), curve("m", "random", [[1.0]], [[1.0]])])
    assert (score.mean, score.sd, score.n, score.low, score.better_than_chance) == (1, 0, 1, None, None)
