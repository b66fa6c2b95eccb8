"""The sparse edit: what changed between two states of one model, small, reviewable and exactly reversible.

Every comparison is made on bytes, not on values, so NaN, -0.0, half precision and integer buffers are all exact.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from analysis.errors import UserError
from analysis.files import load_tensors, save_tensors, write_atomically
from analysis.subjects.checkpoints import read_weights

State = Mapping[str, torch.Tensor]

VERSION = "2"
NARROW = (torch.uint8, torch.int16, torch.int32, torch.int64)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    # uint8 [entries, bytes an entry].
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).reshape(flat.numel(), flat.element_size())


def state_of(model: nn.Module) -> State:
    """List a model's weights, tied ones once, under the names by which an edit knows them.

    Args:
        model: Any module.

    Returns:
        Parameters by name.
    """
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def fingerprint(state: State) -> str:
    """Hash a state dict so that any change of any bit of it shows.

    Args:
        state: Tensors by name, in any order.

    Returns:
        SHA-256, as 64 hexadecimal digits, over the names (sorted), types, shapes and bytes.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        kind = str(tensor.dtype).removeprefix("torch.")
        digest.update(json.dumps([name, kind, list(tensor.shape)]).encode() + b"\n")
        digest.update(_rows(tensor).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Change:
    """What changed in one tensor.

    Attributes:
        indices: int64 [k], positions in the flattened tensor, rising.
        old: [k], the values before, of the tensor's type.
        new: [k], the values after.
    """

    indices: torch.Tensor
    old: torch.Tensor
    new: torch.Tensor

    def at(self, strength: float) -> torch.Tensor:
        """Take a part of the change.

        Args:
            strength: 0 for `old` and 1 for `new`, both bit for bit; between them the values lie on the straight line.

        Returns:
            [k], of the tensor's type; whole numbers are rounded.
        """
        if strength in {0, 1}:
            return self.new if strength else self.old
        between = torch.lerp(self.old.double(), self.new.double(), strength)
        return (between if self.old.is_floating_point() else between.round()).to(self.old.dtype)


@dataclass(frozen=True)
class Edit:
    """The difference between a base model and an edited one.

    Attributes:
        changes: By tensor name (parameters and buffers), for changed tensors only.
        base: Fingerprint of the state dict the edit applies to.
        result: Fingerprint of the state dict that applying it gives.
        total: Entries in the whole state dict.
    """

    changes: Mapping[str, Change]
    base: str
    result: str
    total: int

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the base model."""
        return self.base

    @property
    def count(self) -> int:
        """How many entries change."""
        return sum(len(change.indices) for change in self.changes.values())

    @property
    def fraction(self) -> float:
        """Share of all entries that change, 0 to 1."""
        return self.count / self.total if self.total else 0.0

    def counts(self) -> dict[str, int]:
        """Count the changed entries of each changed tensor.

        Returns:
            Counts by tensor name.
        """
        return {name: len(change.indices) for name, change in self.changes.items()}

    @staticmethod
    def between(before: State, after: State) -> "Edit":
        """Compare two states of one model.

        Args:
            before: State dict of the base model.
            after: State dict of the edited model: same names, types and shapes.

        Returns:
            The edit that turns `before` into `after`.

        Raises:
            UserError: The two are not of the same architecture.
        """
        same = before.keys() == after.keys() and all(
            before[n].shape == after[n].shape and before[n].dtype == after[n].dtype for n in before
        )
        if not same:
            raise UserError(
                "The two models differ in tensor names, shapes or types, so no edit leads from one to the other; "
                "compare two checkpoints of the same architecture."
            )
        changes = {}
        for name in before:
            indices = (_rows(before[name]) != _rows(after[name])).any(1).nonzero().flatten()
            if len(indices):
                old, new = (s[name].detach().cpu().reshape(-1)[indices].clone() for s in (before, after))
                changes[name] = Change(indices, old, new)
        return Edit(changes, fingerprint(before), fingerprint(after), sum(t.numel() for t in before.values()))

    def apply(self, state: State) -> dict[str, torch.Tensor]:
        """Edit the base model.

        Args:
            state: Its state dict; it is not changed.

        Returns:
            The edited state dict, in the same order, sharing no memory with `state`.

        Raises:
            UserError: `state` is not the base model, or the edit's content is damaged.
        """
        found = fingerprint(state)
        if found != self.base:
            already = found == self.result
            raise UserError(
                "This model has the edit already; revert it first or take the base model."
                if already
                else f"This edit belongs to another base model (fingerprint {self.base[:12]}, this one has "
                f"{found[:12]}); apply it to the model it was made from."
            )
        return self._written(state, "new", self.result)

    def revert(self, state: State) -> dict[str, torch.Tensor]:
        """Undo the edit.

        Args:
            state: State dict of the edited model; it is not changed.

        Returns:
            The base model's state dict, bit for bit, in the same order, sharing no memory with `state`.

        Raises:
            UserError: `state` is not the edited model, or the edit's content is damaged.
        """
        found = fingerprint(state)
        if found != self.result:
            already = found == self.base
            raise UserError(
                "This model is the unedited base model; there is nothing to revert."
                if already
                else f"This model is not what the edit made (fingerprint {self.result[:12]}, this one has "
                f"{found[:12]}); revert the edited model."
            )
        return self._written(state, "old", self.base)

    def partly(self, state: State, strength: float) -> dict[str, torch.Tensor]:
        """Give the edit a strength: original + strength x (edited - original).

        Args:
            state: State dict of the base model; it is not changed. Its fingerprint is not looked at, as `apply` does,
                since this is called again and again while somebody moves a slider.
            strength: 0 gives the base model's values and 1 those of the edited one, bit for bit.

        Returns:
            The changed tensors alone, by name, as `torch.func.functional_call` takes them.
        """
        out = {name: state[name].detach().clone(memory_format=torch.contiguous_format) for name in self.changes}
        for name, change in self.changes.items():
            out[name].view(-1)[change.indices.to(out[name].device)] = change.at(strength).to(out[name].device)
        return out

    def _written(self, state: State, side: str, expected: str) -> dict[str, torch.Tensor]:
        out = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
        try:
            for name, change in self.changes.items():
                values = change.new if side == "new" else change.old
                out[name].view(-1)[change.indices.to(out[name].device)] = values.to(out[name].device)
        except (KeyError, IndexError, RuntimeError) as error:
            raise UserError("The edit's content is damaged and was not used; make or fetch it again.") from error
        if fingerprint(out) != expected:
            raise UserError("The edit's content is damaged and was not used; make or fetch it again.")
        return out

    def save(self, path: Path) -> None:
        """Write the edit as safetensors: three tensors for each changed one, fingerprints in the header.

        Positions are written as the gaps between them, which fit into fewer bytes.

        Args:
            path: Where to.
        """
        tensors: dict[str, torch.Tensor] = {}
        for name, change in self.changes.items():
            tensors |= {f"gaps/{name}": _gaps(change.indices), f"old/{name}": change.old, f"new/{name}": change.new}
        header = {"kind": "edit", "version": VERSION, "base": self.base, "result": self.result}
        save_tensors(path, tensors, header | {"total": str(self.total)})

    @staticmethod
    def load(path: Path) -> "Edit":
        """Read an edit that `save` wrote.

        Args:
            path: The safetensors file.

        Returns:
            The edit. Damage that leaves the file readable is found by `apply` and `revert`, through the fingerprints.

        Raises:
            UserError: The file is missing, damaged, or holds something else.
        """
        tensors, header = load_tensors(path)
        if header.get("kind") != "edit":
            raise UserError(f"{path} is not an edit; give an edit.safetensors that `yesterday forget` or `run` wrote.")
        if header.get("version") != VERSION:
            raise UserError(f"{path} is an edit of format {header.get('version')}, not {VERSION}; make it again.")
        try:
            names = [name.removeprefix("gaps/") for name in tensors if name.startswith("gaps/")]
            changes = {
                n: Change(tensors[f"gaps/{n}"].long().cumsum(0), tensors[f"old/{n}"], tensors[f"new/{n}"])
                for n in names
            }
            whole = len(tensors) == 3 * len(names) and all(
                tensors[f"gaps/{n}"].dtype in NARROW and c.indices.shape == c.old.shape == c.new.shape
                for n, c in changes.items()
            )
            edit = Edit(changes, header["base"], header["result"], int(header["total"]))
        except (KeyError, ValueError) as error:
            raise UserError(f"{path} is a damaged edit; make or fetch it again.") from error
        if not whole:
            raise UserError(f"{path} is a damaged edit; make or fetch it again.")
        return edit


def _gaps(indices: torch.Tensor) -> torch.Tensor:
    # The first position and the distances from each to the next, in the narrowest type that holds them.
    gaps = indices.diff(prepend=indices.new_zeros(1))
    return gaps.to(next(kind for kind in NARROW if int(gaps.max()) <= torch.iinfo(kind).max))


def _is_safetensors(path: Path) -> bool:
    # Eight bytes of length and then JSON, whatever the file's name ends with; `read_weights` looks the same way.
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _patch(path: Path, edit: Edit, side: str) -> None:
    """Overwrite the changed entries in a safetensors file; header and everything else stay as they are."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    content = np.memmap(path, dtype=np.uint8, mode="r+")
    for name, change in edit.changes.items():
        start, end = (8 + size + offset for offset in header[name]["data_offsets"])
        values = _rows(change.new if side == "new" else change.old).numpy()
        content[start:end].reshape(-1, values.shape[1])[change.indices.numpy()] = values
    content.flush()


def apply_to_file(edit_path: Path, model_path: Path, out_path: Path, revert: bool = False) -> Edit:
    """Apply an edit to a checkpoint file, or revert it.

    From a safetensors file only the changed entries' bytes differ: metadata, order and padding survive, and applying
    then reverting gives the same bytes. A plain `.pth` state dict is read too; the output is then a fresh safetensors
    file, whatever its name.

    Args:
        edit_path: The edit.
        model_path: The checkpoint; it stays as it is unless `out_path` is the same.
        out_path: Where the result goes, in one step: a failure leaves what was there.
        revert: Undo the edit instead of applying it.

    Returns:
        The edit, for reporting what changed. A UserError says when a file is missing, damaged or of another model, or
        when the result can't be written.
    """
    edit = Edit.load(edit_path)
    state = read_weights(model_path)
    written = edit.revert(state) if revert else edit.apply(state)
    if not _is_safetensors(model_path):
        save_tensors(out_path, written)
        return edit

    def fill(temporary: Path) -> None:
        with model_path.open("rb") as source, temporary.open("wb") as target:
            while block := source.read(1 << 24):
                target.write(block)
        _patch(temporary, edit, "old" if revert else "new")

    write_atomically(out_path, fill)
    return edit
