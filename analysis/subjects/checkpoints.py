"""A user's own model: its factory from a module or file, its weights from safetensors or a plain state dict."""

import pickle
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path

import torch
from torch import nn

from analysis.errors import UserError
from analysis.files import load_tensors
from analysis.finite import all_finite
from analysis.own_code import find, reason

State = dict[str, torch.Tensor]

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
COUNTER = "num_batches_tracked"
ROLES = {"weight", "bias", "running_mean", "running_var"}


def load_factory(spec: str) -> Callable[[], nn.Module]:
    """Find the function or class that builds a user's network.

    Importing runs the user's code. The working directory (or the file's own folder) is put on the import path.

    Args:
        spec: "package.module:factory" or "path/to/file.py:factory".

    Returns:
        A factory that calls the user's and checks that it gives a module; it raises UserError if not.

    Raises:
        UserError: The text has another form, the module can't be imported, or it has no such factory.
    """
    where, colon, name = spec.rpartition(":")
    if not colon or not where or not name.isidentifier():
        raise UserError(f"{spec!r} names no model; give mlp, cnn, package.module:factory or path/to/file.py:factory.")
    factory = find(where, name, "a function that returns the model")
    if isinstance(factory, nn.Module) or not callable(factory):
        raise UserError(
            f"{spec} is {'a built model' if isinstance(factory, nn.Module) else 'no function'}; "
            "give a function without arguments that returns a new model."
        )

    def make() -> nn.Module:
        try:
            model = factory()
        except Exception as error:
            raise UserError(
                f"{spec} can't build a model ({reason(error)}); it must work when called without arguments."
            ) from error
        if not isinstance(model, nn.Module):
            raise UserError(
                f"{spec} returns {type(model).__name__} and not a torch.nn.Module; let it return the model."
            )
        return model

    return make


def _refusal(path: Path, scripted: bool) -> UserError:
    target = path.with_name(f"{path.stem}-weights.pth")
    if scripted:
        code = f"import torch; torch.save(torch.jit.load('{path}').state_dict(), '{target}')"
    else:
        code = (
            f"import torch; c = torch.load('{path}', weights_only=False); "
            f"torch.save(c.state_dict() if hasattr(c, 'state_dict') else c.get('state_dict', c), '{target}')"
        )
    return UserError(
        f"{path} is a pickle with more in it than tensors, which could run any code when it is opened, so it is "
        f'refused; if you trust where it comes from, convert it with: python -c "{code}"'
    )


def _head(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"There is no file {path}; check the path of the weights.")
    try:
        with path.open("rb") as file:
            return file.read(9)
    except OSError as error:
        raise UserError(f"Can't read {path} ({error.strerror or error}); check its permissions.") from error


def _is_safetensors(path: Path) -> bool:
    # A safetensors file starts with eight bytes of length and then JSON, whatever its name ends with.
    return _head(path)[8:] == b"{" or path.suffix == ".safetensors"


def _torch_load(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, which a refusal explains better
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch tells a forbidden pickle from a broken file only by what it says.
        scripted = "TorchScript" in str(error)
        pickled = isinstance(error, pickle.UnpicklingError) and _head(path).startswith((b"PK", b"\x80"))
        if scripted or pickled:
            raise _refusal(path, scripted) from error
        raise UserError(f"{path} is damaged or no PyTorch checkpoint ({reason(error)}); fetch it again.") from error


def read_weights(path: Path) -> State:
    """Read the tensors of a checkpoint without running any code that it may hold.

    Args:
        path: safetensors, or what `torch.save(model.state_dict(), ...)` wrote, also inside {"state_dict": ...} and the
            like; told apart by content.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        UserError: The file is missing, damaged, a pickle of more than tensors, or holds no tensors.
    """
    if _is_safetensors(path):
        state = dict(load_tensors(path)[0])
    else:
        content = _torch_load(path)
        if isinstance(content, Mapping):
            content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
        items = content.items() if isinstance(content, Mapping) else ()
        state = {str(name): value for name, value in items if isinstance(value, torch.Tensor)}
    if not state:
        raise UserError(f"{path} holds no weights; save model.state_dict() into it.")
    return state


def _times(tensor: torch.Tensor) -> str:
    return " x ".join(str(side) for side in tensor.shape) or "a single number"


def _without_prefix(names: list[str], wanted: list[str]) -> dict[str, str]:
    # "module." of DataParallel, "_orig_mod." of compiled models, "model." of Lightning, and any other.
    for name in names:
        if name.endswith(wanted[0]):
            prefix = name.removesuffix(wanted[0])
            if {f"{prefix}{one}" for one in wanted} == set(names):
                return {one: f"{prefix}{one}" for one in wanted}
    return {}


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _by_order(model: State, given: State) -> dict[str, str]:
    if len(model) != len(given):
        return {}
    pairs = dict(zip(model, given, strict=True))
    for mine, theirs in pairs.items():
        roles = {_leaf(mine), _leaf(theirs)}
        moved = mine != theirs and (mine in given or theirs in model)
        if model[mine].shape != given[theirs].shape or moved or (roles <= ROLES and len(roles) > 1):
            return {}
    return pairs


def _keys(state: State, by_layer: bool) -> dict[Hashable, str]:
    layers: dict[str, set[tuple[str, torch.Size]]] = {}
    for name, tensor in state.items():
        layers.setdefault(name.rpartition(".")[0], set()).add((_leaf(name), tensor.shape))
    keys: dict[Hashable, list[str]] = {}
    for name, tensor in state.items():
        layer = frozenset(layers[name.rpartition(".")[0]]), _leaf(name)
        keys.setdefault((tensor.shape, layer if by_layer else None), []).append(name)
    return {key: names[0] for key, names in keys.items() if len(names) == 1}


def _by_shape(model: State, given: State) -> dict[str, str]:
    # safetensors sorts its tensors, so order says nothing there; shapes may still leave one assignment only.
    for by_layer in (True, False):
        mine, theirs = _keys(model, by_layer), _keys(given, by_layer)
        if len(mine) == len(model) and len(theirs) == len(given) and set(mine) == set(theirs):
            return {name: theirs[key] for key, name in mine.items()}
    return {}


def _difference(model: State, given: State) -> str:
    if set(model) & set(given):
        for name, tensor in model.items():
            if name not in given:
                return f"it has no tensor {name!r} ({_times(tensor)})"
            if given[name].shape != tensor.shape:
                return f"its {name!r} is {_times(given[name])} where the model's is {_times(tensor)}"
        extra = next(name for name in given if name not in model)
        return f"it has a tensor {extra!r} ({_times(given[extra])}) that the model lacks"
    left = Counter(tensor.shape for tensor in given.values())
    for name, tensor in model.items():
        if not left[tensor.shape]:
            return f"it has no tensor of the shape {_times(tensor)} for the model's {name!r}"
        left[tensor.shape] -= 1
    for name, tensor in given.items():
        if left[tensor.shape]:
            return f"the model has no place for its {name!r} ({_times(tensor)})"
    return "its tensors have other names than the model's and their shapes don't tell which is which"


def _assigned(model: State, given: State, ordered: bool) -> dict[str, str]:
    same = _without_prefix(list(given), list(model))
    if same:
        given = {mine: given[theirs] for mine, theirs in same.items()}
        fits = all(given[name].shape == tensor.shape for name, tensor in model.items())
        pairs = same if fits else {}
    else:
        pairs = (_by_order(model, given) if ordered else {}) or _by_shape(model, given)
    if not pairs:
        raise ValueError(_difference(model, given))
    return pairs


def load_weights(model: nn.Module, path: Path) -> State:
    """Read a checkpoint as a new state for a model, which is left as it is.

    Names are matched in this order: equal names, also behind a common prefix such as "module."; the same sequence of
    shapes in the file's order (not for safetensors, which sorts its tensors); the only assignment that shapes, or
    shapes and roles within a layer, allow. BatchNorm's `num_batches_tracked` may be missing.

    Args:
        model: Gives names, shapes and types.
        path: See `read_weights`.

    Returns:
        A complete state dict for `model`.

    Raises:
        UserError: The file can't be read, holds another architecture, or weights that are not finite.
    """
    state = read_weights(path)
    own = {name: tensor.detach() for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}
    essential = {name: tensor for name, tensor in own.items() if _leaf(name) != COUNTER}
    given = {name: tensor for name, tensor in state.items() if _leaf(name) != COUNTER}
    try:
        pairs = _assigned(essential, given, ordered=not _is_safetensors(path))
    except ValueError as error:
        raise UserError(
            f"{path} holds another architecture: {error}; give the --model that these weights were trained with."
        ) from error
    new = {name: tensor.clone() for name, tensor in own.items()}
    for mine, theirs in pairs.items():
        value = state[theirs]
        if value.is_floating_point() != own[mine].is_floating_point():
            raise UserError(
                f"{path} holds {theirs!r} as {str(value.dtype).removeprefix('torch.')} where the model has "
                f"{str(own[mine].dtype).removeprefix('torch.')}; save the weights in the model's own type."
            )
        new[mine] = value.to(own[mine].dtype)
        if not all_finite(new[mine]):
            raise UserError(f"{path} has NaN or infinite values in {theirs!r}; give weights from a healthy training.")
    for mine, theirs in pairs.items():
        counter, counted = (f"{name.rpartition('.')[0]}.{COUNTER}" for name in (mine, theirs))
        if counter in own and counted in state and state[counted].shape == own[counter].shape:
            new[counter] = state[counted].to(own[counter].dtype)
    return new


def load_model(make: Callable[[], nn.Module], path: Path) -> nn.Module:
    """Build a network and give it a checkpoint's weights.

    Args:
        make: The factory.
        path: See `read_weights`.

    Returns:
        The network in evaluation mode; the global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        model = make()
    model.load_state_dict(load_weights(model, path))
    return model.eval()
