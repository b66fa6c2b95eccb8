import argparse
import pickle
import re
import shlex
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from analysis.errors import UserError
from analysis.subjects.checkpoints import load_factory, load_model, load_weights
from analysis.subjects.networks import cnn, mlp
from analysis.training import seeded

SHAPE = (1, 8, 8)


def small_mlp():
    return mlp(SHAPE, 10)


def small_cnn():
    return cnn(SHAPE, 10)


def same(state, model):
    reference = model.state_dict()
    return state.keys() == reference.keys() and all(torch.equal(state[name], reference[name]) for name in reference)


@pytest.fixture
def trained():
    return seeded(small_mlp, 1)


@pytest.fixture
def fresh():
    return seeded(small_mlp, 2)


def trained_cnn():
    model = seeded(small_cnn, 1)
    with torch.no_grad():
        model(torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(0)))  # moves the running statistics
        model.norm3.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    return model.eval()


# --- weights that fit


@pytest.mark.parametrize("make", [small_mlp, small_cnn])
@pytest.mark.parametrize(
    "kind", ["safetensors", "pth", "legacy", "state_dict", "model_state_dict", "module.", "_orig_mod."]
)
def test_every_kind_of_file_gives_the_same_state(tmp_path, make, kind):
    model = trained_cnn() if make is small_cnn else seeded(make, 1)
    state = model.state_dict()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif kind.endswith("."):
        torch.save({"state_dict": {f"{kind}{name}": value for name, value in state.items()}, "epoch": 3}, path)
    else:
        torch.save({kind: state, "epoch": 3, "optimizer": {"lr": 0.1}} if kind != "pth" else state, path)
    target = seeded(make, 2)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    assert same(load_weights(target, path), model)
    assert same(before, target)  # the model itself is left alone
    assert same(load_model(make, path).state_dict(), model)
    assert not load_model(make, path).training


def test_safetensors_under_another_ending(tmp_path, trained, fresh):
    save_file(trained.state_dict(), tmp_path / "w.pth")
    assert same(load_weights(fresh, tmp_path / "w.pth"), trained)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("make", [small_mlp, small_cnn])
def test_any_layer_names_for_the_builtin_shapes(tmp_path, make, ending):
    model = trained_cnn() if make is small_cnn else seeded(make, 1)
    # Names in an order that is not alphabetical, since safetensors sorts them.
    layers = dict.fromkeys(name.rpartition(".")[0] for name in model.state_dict())
    rename = {layer: f"net.{'zyxwvutsr'[i]}" for i, layer in enumerate(layers)}
    state = {}
    for name, value in model.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        if leaf != "num_batches_tracked":
            state[f"{rename[layer]}.{leaf}"] = value
    path = tmp_path / f"w.{ending}"
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    loaded = load_weights(seeded(make, 2), path)
    for name, value in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(loaded[name], value), name


def test_bare_names_are_told_apart_by_shape(tmp_path, trained, fresh):
    names = ["W1", "b1", "W2", "b2", "W3", "b3"]
    save_file(dict(zip(names, trained.state_dict().values(), strict=True)), tmp_path / "w.safetensors")
    assert same(load_weights(fresh, tmp_path / "w.safetensors"), trained)


class Twins(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4, bias), nn.Linear(4, 4, bias)


def test_layers_of_equal_shape_follow_the_order_of_a_torch_file(tmp_path):
    state = Twins().state_dict()
    renamed = {name.replace("one", "z").replace("two", "a"): value for name, value in state.items()}
    torch.save(renamed, tmp_path / "w.pth")
    loaded = load_weights(Twins(), tmp_path / "w.pth")
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize("bias", [True, False])
def test_layers_of_equal_shape_are_not_guessed_from_safetensors(tmp_path, bias):
    state = Twins(bias).state_dict()
    renamed = {name.replace("one", "z").replace("two", "a"): value for name, value in state.items()}
    save_file(renamed, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"other names .* shapes don't tell which is which"):
        load_weights(Twins(bias), tmp_path / "w.safetensors")


def test_known_names_are_never_moved_elsewhere(tmp_path):
    state = Twins().state_dict()
    swapped = {name: state[name] for name in ("two.weight", "two.bias", "one.weight", "one.bias")}
    torch.save(swapped, tmp_path / "w.pth")
    loaded = load_weights(Twins(), tmp_path / "w.pth")
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    torch.save({name.replace("one", "more"): value for name, value in swapped.items()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"no tensor 'one\.weight'"):
        load_weights(Twins(), tmp_path / "w.pth")


def test_half_precision_becomes_the_models_type(tmp_path, trained, fresh):
    save_file({name: value.half() for name, value in trained.state_dict().items()}, tmp_path / "w.safetensors")
    loaded = load_weights(fresh, tmp_path / "w.safetensors")
    assert all(value.dtype == torch.float32 for value in loaded.values())
    assert torch.allclose(loaded["head.weight"], trained.head.weight, atol=1e-3)


def test_loading_leaves_the_global_random_state(tmp_path, trained):
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    before = torch.get_rng_state()
    load_model(small_mlp, tmp_path / "w.pth")
    assert torch.equal(torch.get_rng_state(), before)


# --- weights that don't


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_weights_are_refused_by_name(tmp_path, trained, fresh, value):
    with torch.no_grad():
        trained.hidden2.bias[3] = value
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"NaN or infinite values in 'hidden2\.bias'"):
        load_weights(fresh, tmp_path / "w.pth")


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_is_refused_unopened_and_the_advice_works(tmp_path, trained, fresh):
    path = tmp_path / "model.pth"
    torch.save(trained, path)
    with pytest.raises(UserError, match=r"is a pickle .* refused; if you trust") as caught:
        load_weights(fresh, path)
    command = re.search(r"python -c .*", str(caught.value)).group()
    exec(shlex.split(command)[2])  # a shell and a new Python would take seconds longer
    assert same(load_weights(fresh, tmp_path / "model-weights.pth"), trained)


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle", "namespace"])
def test_pickles_of_all_kinds_are_refused_and_run_nothing(tmp_path, trained, fresh, how):
    path, trace = tmp_path / "model.pt", tmp_path / "trace"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Touch(str(trace))))
    else:
        extra = argparse.Namespace(lr=1) if how == "namespace" else Touch(str(trace))
        content = {"state_dict": trained.state_dict(), "extra": extra}
        torch.save(content, path, _use_new_zipfile_serialization=how != "legacy")
    with pytest.raises(UserError, match=r"is a pickle .* refused"):
        load_weights(fresh, path)
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused_with_its_own_advice(tmp_path, trained, fresh):
    torch.jit.save(torch.jit.script(trained), tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"torch\.jit\.load"):
        load_weights(fresh, tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: mlp((1, 9, 9), 10), r"its 'hidden1\.weight' is 128 x 81 where the model's is 128 x 64"),
        (lambda: mlp(SHAPE, 7), r"its 'head\.weight' is 7 x 64 where the model's is 10 x 64"),
        (small_cnn, r"no tensor 'hidden1\.weight'"),
        (lambda: nn.Linear(3, 3), r"no tensor of the shape 128 x 64 for the model's 'hidden1\.weight'"),
    ],
)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_another_architecture_says_what_differs_first(tmp_path, fresh, other, says, ending):
    path = tmp_path / f"w.{ending}"
    save_file(other().state_dict(), path) if ending == "safetensors" else torch.save(other().state_dict(), path)
    with pytest.raises(UserError, match=rf"another architecture: .*{says}"):
        load_weights(fresh, path)


def test_one_tensor_too_many(tmp_path, trained, fresh):
    torch.save({**trained.state_dict(), "more": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"has a tensor 'more' \(2\) that the model lacks"):
        load_weights(fresh, tmp_path / "w.pth")
    renamed = {f"x{i}": value for i, value in enumerate(trained.state_dict().values())}
    torch.save({**renamed, "more": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"no place for its 'more' \(2\)"):
        load_weights(fresh, tmp_path / "w.pth")


def test_a_prefix_does_not_hide_another_shape(tmp_path, fresh):
    state = {f"module.{name}": value for name, value in mlp(SHAPE, 7).state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"its 'head\.weight' is 7 x 64"):
        load_weights(fresh, tmp_path / "w.pth")


def test_whole_numbers_are_no_weights(tmp_path, trained, fresh):
    save_file({name: value.to(torch.int8) for name, value in trained.state_dict().items()}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"as int8 where the model has float32"):
        load_weights(fresh, tmp_path / "w.safetensors")


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 200, -100])
def test_corrupted_files(tmp_path, trained, fresh, ending, keep):
    path = tmp_path / f"w.{ending}"
    save_file(trained.state_dict(), path) if ending == "safetensors" else torch.save(trained.state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=rf"w\.{ending} is (damaged|not a readable safetensors file)") as caught:
        load_weights(fresh, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"hello world, this is text", b"\0" * 100])
def test_something_else_entirely(tmp_path, fresh, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged or no PyTorch checkpoint"):
        load_weights(fresh, tmp_path / "w.pth")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"state_dict": {}}])
def test_files_without_weights(tmp_path, fresh, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"holds no weights"):
        load_weights(fresh, tmp_path / "w.pth")


def test_missing_file(tmp_path, fresh):
    with pytest.raises(UserError, match=r"There is no file .*nowhere"):
        load_weights(fresh, tmp_path / "nowhere.pth")
    with pytest.raises(UserError, match=r"There is no file"):
        load_weights(fresh, tmp_path)


# --- factories

SOURCE = """
from dataclasses import dataclass
from torch import nn
from neighbour_of_nets import WIDTH

@dataclass
class Options:
    outputs: int = 10

def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, Options().outputs))

class Net(nn.Linear):
    def __init__(self):
        super().__init__(WIDTH, 10)

def needs(width):
    return nn.Linear(width, 1)

def number():
    return 7

built = small()
text = "no function"
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    (tmp_path / "neighbour_of_nets.py").write_text("WIDTH = 64")
    (tmp_path / "my_nets.py").write_text(SOURCE)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "inner.py").write_text(SOURCE)
    yield tmp_path
    for name in set(sys.modules) - known:
        if "nets" in name or name.startswith(("my_", "user_code_")):
            del sys.modules[name]


@pytest.mark.parametrize("spec", ["my_nets:small", "my_package.inner:Net", "my_nets.py:small", "./my_nets.py:Net"])
def test_factories_from_modules_and_files(nets, spec):
    make = load_factory(spec)
    assert isinstance(make(), nn.Module)
    assert make() is not make()


def test_a_file_elsewhere_finds_its_neighbours(nets, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert isinstance(load_factory(f"{nets}/my_nets.py:small")(), nn.Module)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("my_nets", "names no model; give mlp, cnn"),
        (":small", "names no model"),
        ("my_nets:", "names no model"),
        ("my_nets:small()", "names no model"),
        ("my_nuts:small", "There is no Python module 'my_nuts'"),
        ("my_package.outer:small", r"There is no Python module 'my_package\.outer'"),
        ("nowhere.py:small", r"There is no file nowhere\.py"),
        ("my_nets:smal", "has no 'smal'; did you mean small"),
        ("my_nets:zzzzzz", "has no 'zzzzzz'; define a function"),
        ("my_nets:built", "is a built model; give a function"),
        ("my_nets:text", "is no function"),
    ],
)
def test_factories_that_are_not_there(nets, spec, says):
    with pytest.raises(UserError, match=says):
        load_factory(spec)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("import not_installed_here", "no module 'not_installed_here'; install it"),
        ("def broken(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(2)", "SystemExit"),
    ],
)
@pytest.mark.parametrize("spec", ["my_bad:make", "my_bad.py:make"])
def test_modules_that_cannot_be_imported(nets, line, says, spec):
    (nets / "my_bad.py").write_text(line)
    with pytest.raises(UserError, match=rf"Importing my_bad.* failed .*{says}"):
        load_factory(spec)


def test_factories_that_give_no_model(nets):
    with pytest.raises(UserError, match=r"my_nets:needs can't build a model .*missing 1 required.*without arguments"):
        load_factory("my_nets:needs")()
    with pytest.raises(UserError, match=r"my_nets:number returns int"):
        load_factory("my_nets:number")()
