"""Settings of the user's own: read from behind a method's name, and refused in a sentence where they make no sense."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject, Network, Recipe, Split
from analysis.subjects.networks import cnn
from analysis.training import seeded
from unlearn.methods import METHODS, named
from unlearn.methods.cf_k import last_layers


def test_a_method_is_named_with_settings_of_ones_own():
    usual = named("regrow", METHODS)
    assert usual == METHODS["regrow"]
    mine = named("regrow:steps=7:decay=0:rate=2", METHODS)
    assert mine.settings == replace(usual.settings, steps=7, decay=0.0, rate=2.0)
    assert (mine.name, mine.run) == ("regrow:steps=7:decay=0:rate=2", usual.run)
    assert named("regrow:fresh=false", METHODS).settings.fresh is False
    assert named("relabel:label=4", METHODS).settings.label == 4
    assert named("salun:lr=1e-3", METHODS).settings.lr == 1e-3
    assert named("ssd:alpha=2", METHODS).settings.alpha == 2.0  # usually None, and no whole number even so
    assert isinstance(named("ssd:alpha=2", METHODS).settings.alpha, float)
    assert named("bad-teacher:outputs=all", METHODS).settings.outputs == "all"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("regrov", "did you mean regrow"),
        ("xyz", "give one of relabel"),
        ("regrow:step=3", "no setting 'step'"),
        ("regrow:steps", "no setting 'steps'"),
        ("regrow:steps=few", "takes a whole number of at least 0, not 'few'"),
        ("regrow:rate=fast", "takes a number of at least 0, not 'fast'"),
        ("regrow:fresh=0", "takes true or false, not '0'"),
        ("regrow:decay=-1", "a number of at least 0, not '-1'"),
        ("regrow:rate=nan", "a number of at least 0, not 'nan'"),
        ("retrain:steps=1", "it has none at all"),
        ("relabel:label=3.5", "takes a whole number of at least 0, not '3.5'"),
        ("ssd:alpha=much", "takes a number of at least 0, not 'much'"),
        ("scrub:every=0", "scrub:every .* must be at least 1, not 0"),
        ("scrub:max_share=0", "scrub:max_share is a share, above 0"),
        ("scrub:max_share=1.1", "scrub:max_share is a share, .* not 1.1"),
        ("undo:alpha=1.5", "undo:alpha is a share, from 0 to 1, not 1.5"),
        ("neggrad-plus:beta=2", "neggrad-plus:beta is a share, from 0 to 1, not 2"),
        ("bad-teacher:outputs=none", "retained or all, not 'none'"),
        ("cf-k:k=0", "k, must be at least 1, not 0"),
        ("eu-k:k=0", "k, must be at least 1, not 0"),
    ],
)
def test_a_method_that_is_not_there_is_refused_in_one_sentence(name, says):
    with pytest.raises(UserError, match=says):
        named(name, METHODS)


def normalised() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


@pytest.fixture
def subject():
    """Three classes of random images for a network with batch normalisation over units."""
    labels = torch.arange(30) % 3
    data = Split(torch.randn(30, 1, 2, 2, generator=torch.Generator().manual_seed(0)), labels)
    return ClassSubject(
        "tiny", "tiny", tuple("abc"), data, data, (1,), Network("tiny", normalised, ("1", "4"), Recipe())
    )


@pytest.mark.parametrize("name", ["regrow", "eu-k", "undo"])
def test_batch_statistics_of_a_single_image_are_refused(subject, name):
    model, method = seeded(normalised, 0).eval(), METHODS[name]
    one = replace(method.settings, steps=2, batch=1)
    with pytest.raises(UserError, match="at least 2 images"):
        method.run(model, subject, None, 0, one, None)
    # Where the normalisation may not change it keeps the original's statistics, and one image will do.
    head = Mask({n: torch.full_like(p, n.startswith("4"), dtype=torch.bool) for n, p in model.named_parameters()})
    if name == "regrow":
        # All of its teacher learns, whatever the mask.
        with pytest.raises(UserError, match="at least 2 images"):
            method.run(model, subject, head, 0, one, None)
        one = replace(one, alike=0.0)
    method.run(model, subject, head, 0, one, None)


def test_last_layers_are_counted_as_they_run_and_take_their_normalisations_along():
    model, image = seeded(lambda: cnn((1, 8, 8), 4), 0), torch.zeros(1, 1, 8, 8)

    def free(k):
        return {n.rpartition(".")[0] for n, bits in last_layers(model, image, k).bits.items() if bits.any()}

    assert free(1) == {"head"}
    assert free(2) == {"conv3", "norm3", "head"}
    assert free(3) == {"block2.2", "conv3", "norm3", "head"}


@pytest.mark.parametrize("name", ["cf-k", "eu-k"])
def test_a_mask_outside_the_last_layers_is_refused(subject, name):
    model, method = seeded(normalised, 0).eval(), METHODS[name]
    early = Mask({n: torch.full_like(p, n.startswith("1"), dtype=torch.bool) for n, p in model.named_parameters()})
    with pytest.raises(UserError, match="no weight in the last 1 layers"):
        method.run(model, subject, early, 0, replace(method.settings, k=1), None)


def test_a_head_that_is_not_linear_cannot_be_widened(subject):
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten())

    other = replace(subject, network=Network("conv", make, ("0",), Recipe()))
    method = METHODS["boundary-expand"]
    with pytest.raises(UserError, match="widens a linear head with 3 outputs"):
        method.run(seeded(make, 0).eval(), other, None, 0, method.settings, None)
