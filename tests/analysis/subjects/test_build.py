import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from analysis.errors import UserError
from analysis.representations.capture import hidden
from analysis.subjects.build import SubjectConfig, build_subject, class_label, load_original
from analysis.subjects.classes import Recipe
from analysis.subjects.data import EMNIST_BALANCED, FASHION
from analysis.training import seeded

SOURCE = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, outputs=10, inputs=784):
        super().__init__()
        self.flat, self.first, self.second = nn.Flatten(), nn.Linear(inputs, 20), nn.Linear(20, 16)
        self.out, self.unused = nn.Linear(16, outputs), nn.Linear(2, 2)

    def forward(self, x):
        return self.out(self.second(self.first(self.flat(x)).relu()).relu())

def nine():
    return Small(outputs=9)

def big():
    return Small(inputs=1024)

def colour():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

def fixed():
    torch.manual_seed(0)
    return Small()

class Maps(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 10, 3)

    def forward(self, x):
        return self.conv(x)

class Pair(Small):
    def forward(self, x):
        return super().forward(x), x

def empty():
    return nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10))
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "their_nets", raising=False)
    (tmp_path / "their_nets.py").write_text(SOURCE)
    yield tmp_path
    sys.modules.pop("their_nets", None)


@pytest.fixture
def pets(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("Cat", "Dog", "Eel"):
        (tmp_path / "My Pets" / name).mkdir(parents=True)
        for i in range(5):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "My Pets" / name / f"{i}.png")
    return str(tmp_path / "My Pets")


# --- subjects that work


def test_the_default_subject():
    subject = build_subject(SubjectConfig())
    assert subject.name == "digit-6"
    assert subject.forget == (6,)
    assert subject.network.name == "mlp"
    assert subject.incoming is None
    assert subject.train.images.shape == (4000, 1, 28, 28)
    assert subject.train.images.aminmax() == (-1, 1)
    assert subject.network.make()(subject.test.images[:3]).shape == (3, 10)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"model": "cnn"}, "digit-6-cnn"),
        ({"forget": ("4", "9")}, "digit-4-9"),
        ({"forget": ("4", "4")}, "digit-4"),
        ({"replace_with": "3"}, "digit-6-by-3"),
        ({"replace_with": "3", "slot": "old", "model": "cnn"}, "digit-6-by-3-old-slot-cnn"),
        ({"model": "their_nets:Small"}, "digit-6-their-nets-small"),
        ({"model": "./their_nets.py:Small"}, "digit-6-their-nets-small"),
    ],
)
def test_names(nets, config, name):
    assert build_subject(SubjectConfig(**config)).name == name


def test_the_data_does_not_depend_on_the_seed():
    one, two = (build_subject(SubjectConfig(), seed=seed) for seed in (1, 2))
    assert torch.equal(one.test.images, two.test.images)


def test_building_leaves_the_global_random_state(nets):
    before = torch.get_rng_state()
    build_subject(SubjectConfig(model="their_nets:Small", layers=("second",)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_folder_with_its_own_preprocessing(pets):
    config = SubjectConfig(data=pets, forget=("eel",), mean=(0.1, 0.2, 0.3), std=(0.5,), size=4)
    subject = build_subject(config)
    assert subject.name == "my-pets-eel"
    assert subject.classes == ("Cat", "Dog", "Eel")
    assert subject.train.images.shape == (12, 3, 4, 4)
    raw = build_subject(SubjectConfig(data=pets, forget=("2",), mean=(0,), std=(1,), size=4))
    expected = (raw.train.images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.5
    assert torch.allclose(subject.train.images, expected, atol=1e-6)


def test_the_recipe_is_the_networks_own_unless_overridden():
    own = build_subject(SubjectConfig()).network.recipe
    assert build_subject(SubjectConfig(lr=0.5)).network.recipe == Recipe(own.epochs, own.batch, 0.5)
    assert build_subject(SubjectConfig(epochs=1, batch=7)).network.recipe == Recipe(1, 7, own.lr)


def test_a_users_network_gets_points_that_can_be_captured(nets):
    subject = build_subject(SubjectConfig(model="their_nets:Small"))
    assert subject.network.points == ("second", "out")
    assert subject.network.head == "out"
    caught = hidden(subject.network.make(), subject.network.points, subject.test.images[:2])
    assert [one.shape[1] for one in caught.values()] == [20, 16]


def test_layers_may_be_chosen_and_the_head_is_added(nets):
    subject = build_subject(SubjectConfig(model="their_nets:Small", layers=("first",)))
    assert subject.network.points == ("first", "out")
    assert build_subject(SubjectConfig(layers=("head", "relu2"))).network.points == ("relu2", "head")


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_the_original_can_be_given(tmp_path, ending):
    config = SubjectConfig(weights=str(tmp_path / f"w.{ending}"))
    subject = build_subject(config)
    assert load_original(SubjectConfig(), subject) is None
    trained = seeded(subject.network.make, 5)
    state = trained.state_dict()
    save_file(state, config.weights) if ending == "safetensors" else torch.save(state, config.weights)
    loaded = load_original(config, subject)
    assert not loaded.training
    assert torch.equal(loaded(subject.test.images[:4]), trained(subject.test.images[:4]))


# --- classes by name and number


@pytest.mark.parametrize(
    ("text", "classes", "label"),
    [
        ("6", tuple("0123456789"), 6),
        (" 6 ", tuple("0123456789"), 6),
        ("sneaker", FASHION, 7),
        ("ANKLE BOOT", FASHION, 9),
        ("0", FASHION, 0),
        ("a", EMNIST_BALANCED, 36),
        ("A", EMNIST_BALANCED, 10),
        ("z", EMNIST_BALANCED, 35),
        ("46", EMNIST_BALANCED, 46),
        ("2", ("0", "1", "10", "2"), 3),  # a name goes before a number
    ],
)
def test_classes_are_found(text, classes, label):
    assert class_label(text, classes, "data") == label


@pytest.mark.parametrize(
    ("text", "classes", "says"),
    [
        ("sneeker", FASHION, "fashion has no class 'sneeker'; did you mean 'Sneaker'"),
        ("11", tuple("0123456789"), "no class '11'"),
        ("-1", FASHION, "give one of T-shirt/top, .*, Ankle boot, or a number from 0 to 9"),
        ("", FASHION, "no class ''"),
        ("??", EMNIST_BALANCED, "or a number from 0 to 46"),
        ("BASS", ("Bass", "bass"), "several classes 'BASS'; give one of Bass, bass"),
    ],
)
def test_classes_that_are_not_there(text, classes, says):
    with pytest.raises(UserError, match=says):
        class_label(text, classes, "fashion")


def test_alike_class_names_never_share_a_subject_name(tmp_path):
    for name in ("a", "A", "ä", "ö"):
        (tmp_path / "letters" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("L", (8, 8), i).save(tmp_path / "letters" / name / f"{i}.png")
    data = str(tmp_path / "letters")
    names = [build_subject(SubjectConfig(data=data, forget=(str(i),))).name for i in range(4)]
    assert len(set(names)) == 4
    assert all(name.isascii() and name.startswith("letters-") for name in names)


# --- bad input


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"forget": ("11",)}, "mnist-5k has no class '11'"),
        ({"forget": ()}, "No class to forget"),
        ({"forget": tuple("0123456789")}, "Every class is to be forgotten"),
        ({"replace_with": "6"}, "'6' can't be both forgotten and learned instead"),
        ({"replace_with": "twelve"}, "no class 'twelve'"),
        ({"slot": "old"}, "add --replace-with"),
        ({"data": "mnits"}, "did you mean mnist"),
        ({"model": "mpl"}, "no model 'mpl'; did you mean mlp"),
        ({"model": "transformer"}, "give mlp, cnn, package"),
        ({"size": 3}, "at least 4 pixels, not 3"),
        ({"mean": (0.1, 0.2)}, "--mean has 2 values but the images have 1 channel; give one"),
        ({"mean": (33.3,)}, "between 0 and 1"),
        ({"std": (0.0,)}, "--std must be above 0"),
        ({"std": (float("nan"),)}, "--std must be above 0"),
        ({"epochs": 0}, "--epochs must be above 0, not 0"),
        ({"batch": -1}, "--batch must be above 0"),
        ({"lr": float("inf")}, "--lr must be above 0"),
        ({"layers": ("hiden2",)}, "mlp has no layer 'hiden2'; did you mean hidden2"),
        ({"layers": ("qqqq",)}, "give some of flatten, hidden1"),
    ],
)
def test_bad_configurations(config, says):
    with pytest.raises(UserError, match=says):
        build_subject(SubjectConfig(**config))


def test_unknown_fields_are_refused():
    with pytest.raises(ValidationError, match=r"epoch"):
        SubjectConfig(epoch=3)


def test_a_configuration_survives_json():
    config = SubjectConfig(forget=("4", "9"), mean=(0.1,), size=8)
    assert SubjectConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("nine", "has 9 outputs but the data has 10 classes; build it with 10"),
        ("big", r"can't run on images of 1x28x28 .*give the --size"),
        ("colour", r"can't run on images of 1x28x28 .*expected input.* to have 3 channels"),
        ("fixed", "builds the same weights each time"),
        ("Maps", r"gives \(2, 10, 26, 26\) for 2 images; it must give one row of 10"),
        ("Pair", "can't run .*tuple"),
        ("empty", "no layer with a weight matrix"),
    ],
)
def test_users_networks_that_do_not_fit(nets, factory, says):
    with pytest.raises(UserError, match=says) as caught:
        build_subject(SubjectConfig(model=f"their_nets:{factory}"))
    assert "\n" not in str(caught.value)


def test_the_size_that_a_users_network_needs_can_be_given(nets):
    assert build_subject(SubjectConfig(model="their_nets:big", size=32)).train.images.shape[2:] == (32, 32)


def test_a_layer_that_does_not_run(nets):
    with pytest.raises(UserError, match=r"layer 'unused' can't be captured"):
        build_subject(SubjectConfig(model="their_nets:Small", layers=("unused",)))


def test_images_too_small_for_the_builtin_networks(tmp_path):
    for name in "ab":
        (tmp_path / "tiny" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("L", (3, 9), i).save(tmp_path / "tiny" / name / f"{i}.png")
    with pytest.raises(UserError, match=r"images are 9x3, but cnn needs at least 4x4; give --size"):
        build_subject(SubjectConfig(data=str(tmp_path / "tiny"), forget=("a",), model="cnn"))


def test_the_mean_of_colour_images_has_one_or_three_values(pets):
    with pytest.raises(UserError, match=r"--std has 2 values but the images have 3 channels; give one or 3"):
        build_subject(SubjectConfig(data=pets, forget=("Cat",), std=(0.1, 0.2)))


def test_weights_of_another_architecture(tmp_path):
    subject = build_subject(SubjectConfig())
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"another architecture"):
        load_original(SubjectConfig(weights=str(tmp_path / "w.pth")), subject)
