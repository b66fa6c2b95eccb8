"""IDX, the file format of MNIST and its kin: read with every claim of the header checked against the content."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch

from analysis.errors import UserError

UNSIGNED_BYTE = 0x08
GZIP_MAGIC = b"\x1f\x8b"
PIECE = 1 << 24


def _broken(path: Path, what: str) -> str:
    return f"{path} {what}; fetch the file again."


def _open(path: Path) -> BinaryIO:
    # By content, not by name: browsers and unpackers often leave a wrong ending behind.
    with path.open("rb") as file:
        zipped = file.read(2) == GZIP_MAGIC
    return cast(BinaryIO, gzip.open(path, "rb")) if zipped else path.open("rb")


def _read_up_to(file: BinaryIO, count: int) -> bytearray:
    # In pieces, so that a header that claims terabytes ends as a short file and not as a MemoryError.
    content = bytearray()
    while len(content) < count:
        piece = file.read(min(PIECE, count - len(content)))
        if not piece:
            break
        content += piece
    return content


def read_idx(path: Path) -> torch.Tensor:
    """Read one IDX file of unsigned bytes, gzipped or plain.

    Format: two zero bytes, a type code, the number of dimensions, each dimension as a big-endian 32-bit integer,
    then the values, last dimension fastest (http://yann.lecun.com/exdb/mnist/).

    Args:
        path: The file.

    Returns:
        uint8 tensor of the shape that the header states.

    Raises:
        UserError: The file is missing, unreadable, not IDX, of another type, or shorter or longer than its header says.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}; check the folder.")
    try:
        with _open(path) as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or not magic[3]:
                raise UserError(_broken(path, "is not an IDX file (its first bytes are wrong)"))
            if magic[2] != UNSIGNED_BYTE:
                raise UserError(
                    f"{path} holds IDX values of type 0x{magic[2]:02x}, but only unsigned bytes (0x08) can be read; "
                    "save the images as values from 0 to 255."
                )
            header = file.read(4 * magic[3])
            if len(header) < 4 * magic[3]:
                raise UserError(_broken(path, "is truncated (it ends within its header)"))
            shape = struct.unpack(f">{magic[3]}I", header)
            expected = math.prod(shape)
            content = _read_up_to(file, expected + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(_broken(path, f"is truncated or damaged ({error})")) from error
    except OSError as error:
        raise UserError(f"Can't read {path} ({error.strerror or error}); check its permissions.") from error
    if len(content) < expected:
        raise UserError(
            _broken(path, f"is truncated ({len(content)} values of the {expected} that its header promises)")
        )
    if len(content) > expected:
        raise UserError(_broken(path, f"is longer than the {expected} values that its header promises"))
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8)).view(shape)


def read_labelled(images: Path, labels: Path, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Read a pair of IDX files that belong together.

    Args:
        images: File with three dimensions: count, height, width.
        labels: File with one dimension.
        outputs: Number of classes.

    Returns:
        Images uint8 [n, height, width] and labels int64 [n], each in [0, outputs).

    Raises:
        UserError: A file can't be read, has other dimensions, is empty, their counts differ, or a label is out of
            range.
    """
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.dim() != 3:
        raise UserError(f"{images} has {pixels.dim()} dimensions where images have 3; is it a file of labels?")
    if classes.dim() != 1:
        raise UserError(f"{labels} has {classes.dim()} dimensions where labels have 1; is it a file of images?")
    if not pixels.numel():
        raise UserError(f"{images} holds no images; fetch the file again.")
    if len(pixels) != len(classes):
        raise UserError(
            f"{images} holds {len(pixels)} images but {labels} holds {len(classes)} labels; "
            "take both files from the same data set."
        )
    if int(classes.max()) >= outputs:
        raise UserError(
            f"{labels} holds label {int(classes.max())}, but the data has only {outputs} classes (0 to {outputs - 1}); "
            "take the file of the right data set."
        )
    return pixels, classes.long()
