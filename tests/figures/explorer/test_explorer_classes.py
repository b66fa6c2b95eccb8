"""What the explorer computes for classifiers, compared with slower, plainer ways to the same numbers."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from classes_explored import COLOURED, coloured_images, explored
from torch.nn import functional

from analysis.errors import UserError
from analysis.files import load_tensors
from analysis.subjects.data import load_images
from analysis.training import accuracy, logits_of
from figures.explorer import class_page, class_views
from figures.explorer.class_model import (
    Explored,
    answer,
    answers,
    at_strength,
    attributions,
    fading_of,
    open_classes,
)
from figures.explorer.class_units import MEASURES, layers, look, responses
from figures.explorer.pad import SIDE, ink_of
from figures.explorer.strokes import Frame, as_image, frame_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explored(tmp_path_factory.mktemp("runs") / "digit-6")


@pytest.fixture(scope="module")
def digits(folder: Path) -> Explored:
    return open_classes(folder)


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Explored:
    folder = tmp_path_factory.mktemp("coloured")
    data = str(coloured_images(folder / "images"))
    return open_classes(explored(folder / "run", golds=0, data=data, forget=("square",), model="cnn"))


@pytest.fixture(scope="module")
def six(digits: Explored) -> torch.Tensor:
    return digits.subject.forget_test.images[3:4]


def test_the_runs_own_models_are_opened(folder: Path, digits: Explored) -> None:
    for name, model in (("original", digits.original), ("edited", digits.edited), ("gold-02", digits.golds[2])):
        state, _ = load_tensors(folder / f"models/{name}.safetensors")
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
        assert not model.training
    assert len(digits.golds) == 3


def test_an_unfinished_run_says_what_to_do(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text((folder / "run.json").read_text())
    with pytest.raises(UserError, match="no edited model yet"):
        open_classes(tmp_path)
    document = json.loads((folder / "run.json").read_text())
    document["config"]["fraction"] = "much"
    (tmp_path / "run.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        open_classes(tmp_path)


def test_answers_are_probabilities_and_golds_have_a_spread(digits: Explored, six: torch.Tensor) -> None:
    found = answers(digits, six)
    with torch.no_grad():
        each = torch.stack([gold(six).softmax(1)[0] for gold in digits.golds])
        assert torch.allclose(found["edited"].shares, digits.edited(six).softmax(1)[0])
    assert torch.allclose(found["gold"].shares, each.mean(0))
    assert torch.equal(found["gold"].low, each.min(0).values)
    assert torch.equal(found["gold"].high, each.max(0).values)
    assert (found["gold"].models, found["original"].models) == (3, 1)
    assert found["original"].best == int(logits_of(digits.original, six).argmax())


def test_attributions_add_up_to_the_logit(digits: Explored, coloured: Explored, six: torch.Tensor) -> None:
    for run, image in ((digits, six), (coloured, coloured.subject.test.images[:1])):
        black = run.subject.train.images.amin((0, 2, 3)).view(1, -1, 1, 1).expand_as(image)
        for toward in (None, 2):
            for name, one in attributions(run, image, toward).items():
                model = run.models[name]
                gain = (logits_of(model, image) - logits_of(model, black))[0]
                assert one.label == (int(logits_of(model, image).argmax()) if toward is None else toward)
                assert one.values.shape == image.shape[2:]
                assert one.total == pytest.approx(float(gain[one.label]), abs=0.05)


def test_the_edit_by_degrees_begins_as_the_original_and_ends_as_the_edited(digits: Explored, six: torch.Tensor) -> None:
    before, after = (answer((model,), six).shares for model in (digits.original, digits.edited))
    assert torch.equal(at_strength(digits, six, 0).shares, before)
    assert torch.equal(at_strength(digits, six, 1).shares, after)
    half = open_classes(digits.run.folder).original
    with torch.no_grad():
        theirs = dict(digits.edited.named_parameters())
        for name, mine in half.named_parameters():
            mine += (theirs[name] - mine) / 2
    assert torch.allclose(at_strength(digits, six, 0.5).shares, answer((half,), six).shares, atol=1e-5)
    own = fading_of(digits, six, (6,))
    assert own[0] == pytest.approx(float(before[6]))
    assert own[-1] == pytest.approx(float(after[6]))


def test_accuracies_fade_from_those_of_the_original_to_those_of_the_edited(digits: Explored) -> None:
    found = digits.fading
    sixes, rest = digits.subject.forget_test, digits.subject.retain_test
    assert found.examples == {"forgotten": len(sixes), "rest": 500}
    for at, model in ((0, digits.original), (-1, digits.edited)):
        assert found.curves["forgotten"][at] == pytest.approx(accuracy(model, sixes))
        assert found.curves["rest"][at] == pytest.approx(accuracy(model, rest), abs=0.04)
    assert found.strengths[0] == 0
    assert found.strengths[-1] == 1


def test_a_class_learned_instead_has_its_own_curve(tmp_path: Path) -> None:
    run = open_classes(explored(tmp_path, golds=0, replace_with="3", slot="old"))
    threes = run.subject.test.only([3])
    called = logits_of(run.edited, threes.images).argmax(1)
    assert run.fading.curves["new"][-1] == pytest.approx(float((called == 6).float().mean()))
    assert run.fading.curves["new"][0] < 0.5
    assert "6 / 3*" in class_page.picture_html(run, class_page.image_of(run, 3, 0))


def test_a_change_is_counted_by_each_neurons_own_weights(digits: Explored) -> None:
    weights = [dict(model.named_parameters()) for model in (digits.original, digits.edited)]
    found = MEASURES["how much the edit changed it"].values(digits, "hidden2")
    for unit in (0, 17, 63):
        old, new = (torch.cat([w["hidden2.weight"][unit], w["hidden2.bias"][unit, None]]).detach() for w in weights)
        assert float(found[unit]) == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-4)


@torch.no_grad()
def test_a_neuron_is_looked_at_as_if_it_were_cut_out_by_hand(digits: Explored) -> None:
    some, net = digits.some, digits.edited
    hidden = net.hidden2(net.relu1(net.hidden1(some.images.flatten(1))))
    assert torch.allclose(responses(net, "hidden2", some.images), hidden, atol=1e-5)
    unit = 5
    found = look(digits, "hidden2", unit, net)
    strongest = sorted(range(len(some)), key=lambda at: -float(hidden[at, unit]))[:8]
    assert [float(hidden[at, unit]) for at in found.top] == pytest.approx([float(hidden[a, unit]) for a in strongest])
    cut = hidden.clone()
    cut[:, unit] = 0
    for label in range(10):
        mine = some.labels == label
        assert float(found.means[label]) == pytest.approx(float(hidden[mine, unit].mean()), abs=1e-4)
        for values, shares in ((hidden, found.accuracies), (cut, found.without)):
            right = net.head(net.relu2(values[mine])).argmax(1) == label
            assert shares[label] == pytest.approx(float(right.float().mean()))


@torch.no_grad()
def test_channels_are_neurons_too(coloured: Explored) -> None:
    names = layers(coloured)
    assert names == ["block1.0", "block1.2", "block2.0", "block2.2", "conv3", "head"]
    images = coloured.some.images
    first = coloured.original.get_submodule("block1.0")(images)
    assert torch.allclose(responses(coloured.original, "block1.0", images), first.amax((2, 3)))
    for one in MEASURES.values():
        assert one.values(coloured, "conv3").shape == (32,)
    text = class_page.unit_html(coloured, "conv3", 31)
    assert all(name in text for name in COLOURED)


def test_colours_cannot_be_drawn_and_digits_can(digits: Explored, coloured: Explored) -> None:
    assert coloured.frame is None
    assert digits.frame is not None
    assert (digits.frame.height, digits.frame.width, digits.frame.side) == (28, 28, 20)
    assert digits.frame.middle == pytest.approx((14, 14), abs=0.1)
    assert frame_of(torch.zeros(3, 1, 8, 8)) is None
    dark = frame_of(-digits.subject.test.images)
    assert dark is not None
    assert (dark.ground, dark.ink, dark.side) == (1, -1, 20)


def test_test_images_drawn_large_and_elsewhere_come_back(digits: Explored) -> None:
    test, frame = digits.subject.test, digits.frame
    assert frame is not None
    drawn, moved = [], []
    for image in test.images[::4]:
        canvas = np.zeros((300, 400), np.float32)
        canvas[7:35, 90:118] = (image[0] + 1) / 2
        moved.append(as_image(canvas, frame))
        large = functional.interpolate((image[None] + 1) / 2, scale_factor=9, mode="bicubic").clamp(0, 1)
        canvas = np.zeros((300, 400), np.float32)
        canvas[30:282, 110:362] = large[0, 0]
        drawn.append(as_image(canvas, frame))
    # What only lay elsewhere comes back pixel by pixel, but for rounding the place of the middle.
    same = [torch.allclose(one, image, atol=0.02) for one, image in zip(moved, test.images[::4, None], strict=True)]
    assert sum(same) > 0.95 * len(same)
    called = logits_of(digits.original, torch.cat(drawn)).argmax(1)
    usual = logits_of(digits.original, test.images[::4]).argmax(1)
    assert float((called == usual).float().mean()) > 0.9


def test_drawings_keep_their_shape_and_stay_inside() -> None:
    frame = Frame(28, 28, 20, (14.0, 14.0), -1.0, 1.0)
    assert as_image(np.zeros((50, 50)), frame) is None
    bar = np.zeros((200, 100))
    bar[20:180, 40:60] = 0.5
    found = as_image(bar, frame)
    assert found is not None
    inked = (found[0, 0] > 0).nonzero()
    height, width = (inked.max(0).values - inked.min(0).values + 1).tolist()
    assert height == 20
    assert width in {2, 3, 4}
    assert float(found.max()) == 1
    assert float(found.min()) == -1
    heavy = np.zeros((100, 100))
    heavy[:, :10] = 0.05
    heavy[:, 90:] = 1
    wide = as_image(heavy, Frame(28, 28, 28, (14.0, 14.0), 0.0, 1.0))
    assert wide is not None
    assert float(wide[0, 0, :, -1].min()) > 0.5
    dot = as_image(np.eye(1), frame)
    assert dot is not None
    assert dot.shape == (1, 1, 28, 28)


def test_the_pads_code_is_read_and_anything_else_is_empty() -> None:
    ink = np.zeros((SIDE, SIDE), np.uint8)
    ink[3, 7] = 255
    found = ink_of(base64.b64encode(ink.tobytes()).decode())
    assert found[3, 7] == 1
    assert found.sum() == 1
    for wrong in ("", "é", base64.b64encode(b"short").decode()):
        assert not ink_of(wrong).any()


def test_of_many_classes_the_likeliest_have_rows(digits: Explored) -> None:
    shares = torch.linspace(0, 1, 40).softmax(0)
    one = class_views.Answer(shares, shares, shares, 1)
    text = class_views.bars({"original": one}, [f"c{i}" for i in range(40)], [2])
    rows = re.findall(r'<th scope="row">(c\d+)', text)
    assert rows == ["c2", *(f"c{i}" for i in range(30, 40))]
    assert text.count("class=forgotten") == 1


def test_names_are_text_and_never_marks(digits: Explored) -> None:
    bad = '<img src=x onerror="alert(1)">'
    shares = torch.tensor([0.5, 0.5])
    one = class_views.Answer(shares, shares, shares, 1)
    seen = class_views.Seen([0], shares, {0: 0.5}, {0: 0.5})
    image = torch.zeros(1, 2, 2)
    pixels = {"original": class_views.Pixels(image[0], 0, 0.5)}
    for text in (
        class_views.bars({"original": one, f"gold {bad}": one}, [bad, "b"], []),
        class_views.overlays(pixels, image, 0, 1, 0, [bad]),
        class_views.thumbnail(image, 0, 1, bad),
        class_views.curves(digits.fading, digits.fading.curves["rest"], 0.5, 0.5, bad),
        class_views.grid(shares, 0, bad, bad),
        class_views.neuron(bad, {"original": seen}, {"original": []}, [bad, "b"], []),
    ):
        assert "<img src=x" not in text
        assert 'onerror="' not in text
        assert "&lt;img" in text


def test_the_slider_stands_on_the_pictures_own_curve(digits: Explored, six: torch.Tensor) -> None:
    faded, _ = class_page.strength_html(digits, class_page.Shown(six, "a six"), 0.5)
    own = re.search(r'<g class="own"><polyline points="(.*?)"', faded)
    ring = re.search(r'<circle class="mark" cx="(.*?)" cy="(.*?)"', faded)
    assert own
    assert ring
    assert own[1].split()[10] == ",".join(ring.groups())
    assert [text in faded for text in ("accuracy on &quot;6&quot;", "accuracy on the rest (n = 500)")] == [True, True]


def test_of_very_many_neurons_the_strongest_are_buttons() -> None:
    values = torch.zeros(1000)
    values[500:] = torch.arange(500.0)
    text = class_views.grid(values, 999, "wide", "logits")
    numbers = [int(found) for found in re.findall(r'data-unit="(\d+)"', text)]
    assert numbers == list(range(744, 1000))
    assert text.count('aria-pressed="true"') == 1
    assert "The 256 of 1000" in text


def test_smaller_pictures_have_a_smaller_frame() -> None:
    images = load_images("mnist-5k").test.images
    assert frame_of(images * 2 - 1) is not None
    small = functional.interpolate(images, (14, 14), mode="bilinear", antialias=True)
    found = frame_of(small)
    assert found is not None
    assert (found.height, found.side) == (14, pytest.approx(11, abs=1))
