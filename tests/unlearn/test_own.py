"""A method of the user's own: found, called, and held to what every method promises."""

from pathlib import Path

import pytest
import torch

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.training import seeded
from unlearn.methods import METHODS, named, slug
from unlearn.methods.language import LANGUAGE_METHODS

FILE = """
import torch

def forget(model, subject, mask, seed, *, step=0.5, times=1):
    \"\"\"Shift what may change.\"\"\"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            bits = torch.ones_like(parameter, dtype=torch.bool) if mask is None else mask.bits.get(name)
            if bits is not None:
                parameter[bits] += times * step + torch.rand(()) * 0
    return model

def noisy(model, subject, mask, seed):
    with torch.no_grad():
        model.head.bias += torch.randn(2)
    return model

def broken(model, subject, mask, seed):
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    return model

def larger(model, subject, mask, seed):
    model.head = torch.nn.Linear(3, 7)
    return model

def elsewhere(model, subject, mask, seed):
    with torch.no_grad():
        model.head.weight += 1
    return model

def counters(model, subject, mask, seed):
    model.norm.running_mean += 1
    return model

def nothing(model, subject, mask, seed):
    pass

def raising(model, subject, mask, seed):
    raise RuntimeError("out of luck")

def short(model, mask):
    return model

def demanding(model, subject, mask, seed, step):
    return model

value = 3
"""


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)
        self.head = torch.nn.Linear(3, 2)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


@pytest.fixture
def model() -> torch.nn.Module:
    return seeded(Net, 0).eval()


def bias(model: torch.nn.Module) -> Mask:
    return Mask({
        name: torch.full_like(p, name == "head.bias", dtype=torch.bool) for name, p in model.named_parameters()
    })


def test_it_edits_a_copy_under_the_mask_with_settings_from_the_command_line(file: Path, model: torch.nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    method = named(f"{file}:forget:step=0.25:times=3", METHODS)
    assert (method.summary, vars(method.settings)) == ("Shift what may change.", {"step": 0.25, "times": 3})
    seen = []
    edited = method.run(model, None, bias(model), 0, method.settings, lambda step, _: seen.append(step))
    assert torch.equal(edited.state_dict()["head.bias"], before["head.bias"] + 0.75)
    assert all(torch.equal(t, before[n]) for n, t in edited.state_dict().items() if n != "head.bias")
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert (seen, edited.training) == ([0, 1], False)
    assert not torch.equal(method.run(model, None, None, 0, method.settings).head.weight, model.head.weight)


def test_both_families_take_it_and_its_identity_is_the_file(file: Path) -> None:
    first = named(f"{file}:forget", METHODS)
    assert named(f"{file}:forget", LANGUAGE_METHODS).identity == first.identity
    file.write_text(FILE.replace("step=0.5", "step=0.75"))
    second = named(f"{file}:forget", METHODS)
    assert second.settings.step == 0.75
    assert second.identity != first.identity
    assert "/" not in slug(second.name)


def test_its_randomness_comes_from_the_seed_and_leaves_the_global_one_alone(file: Path, model: torch.nn.Module) -> None:
    method = named(f"{file}:noisy", METHODS)
    state = torch.get_rng_state()
    one, same, other = (method.run(model, None, None, seed, method.settings).head.bias for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("broken", "left NaN or infinity in head.bias"),
        ("larger", "changed the architecture"),
        ("elsewhere", "moved 6 numbers outside its mask"),
        ("counters", "moved 3 numbers outside its mask"),
        ("nothing", "returned NoneType"),
        ("raising", "failed (RuntimeError: out of luck)"),
    ],
)
def test_what_breaks_a_promise_is_refused(file: Path, model: torch.nn.Module, function: str, words: str) -> None:
    method = named(f"{file}:{function}", METHODS)
    with pytest.raises(UserError) as caught:
        method.run(model, None, bias(model), 0, method.settings)
    assert words in str(caught.value)
    assert f"{file}:{function}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mine.py:forgt", "did you mean forget?"),
        ("gone.py:forget", "There is no file"),
        ("mine.py:short", "it must take (model, subject, mask, seed)"),
        ("mine.py:demanding", "it must take (model, subject, mask, seed)"),
        ("mine.py:value", "is no function"),
        ("mine.py:forget:speed=3", "with one of step, times"),
        ("mine.py:forget:times=3.5", "takes a whole number"),
    ],
)
def test_what_can_not_be_called_is_refused_at_once(file: Path, name: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        named(str(file.parent / name), METHODS)
    assert words in str(caught.value)


def test_tied_weights_are_one(file: Path) -> None:
    class Tied(Net):
        def __init__(self) -> None:
            super().__init__()
            self.twin = torch.nn.Linear(3, 2)
            self.twin.bias = self.head.bias

    tied = seeded(Tied, 0).eval()
    method = named(f"{file}:forget", METHODS)
    edited = method.run(tied, None, bias(tied), 0, method.settings)
    assert edited.twin.bias is edited.head.bias
    assert torch.equal(edited.twin.bias, tied.head.bias + 0.5)
