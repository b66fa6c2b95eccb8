"""Writing files so that a kill, a full disk or a read-only folder never leaves a half-written one."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from analysis.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it into place in one step.

    Args:
        path: Where the finished file belongs; missing folders are made.
        write: Fills the file whose path it is given.

    Raises:
        UserError: The folder can't be written (read-only, full, no permission); `path` is then as it was before.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        advice = "give the name of a file" if path.is_dir() else "free some space or choose another folder"
        raise UserError(f"Can't write {path} ({reason}); {advice}.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically.

    Args:
        path: Where the file belongs.
        text: Its whole content.
    """
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _sort_header(path: Path) -> None:
    # safetensors writes metadata in the random order of a hash map; sorted, equal content gives equal bytes.
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > length:
            raise ValueError(f"the sorted header of {path} is longer than the original")
        file.seek(8)
        file.write(text.ljust(length))


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors as safetensors, atomically; equal content gives equal bytes.

    Args:
        path: Where the file belongs.
        tensors: Tensors by name, any shape and type; written contiguous and detached.
        metadata: Text by key, kept in the file's header.
    """
    clean = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        save_file(clean, str(temporary), metadata=dict(metadata) if metadata else None)
        if metadata:
            _sort_header(temporary)

    write_atomically(path, write)


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file.

    Args:
        path: The file.

    Returns:
        The tensors by name and the header's metadata.

    Raises:
        UserError: The file is missing, a folder, or not a whole safetensors file.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; give one of the files in it.")
    if not path.is_file():
        raise UserError(f"There is no file {path}; check the path.")
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}); delete it or fetch it again.") from error


def sha256(path: Path) -> str:
    """Hash a file.

    Args:
        path: The file.

    Returns:
        The SHA-256 of its bytes, as 64 hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
