import gzip
import struct

import pytest
import torch

from analysis.errors import UserError
from analysis.subjects.idx import read_idx, read_labelled


def idx_bytes(values: torch.Tensor, kind: int = 8) -> bytes:
    return struct.pack(f">BBBB{values.dim()}I", 0, 0, kind, values.dim(), *values.shape) + bytes(
        values.flatten().tolist()
    )


IMAGES = torch.arange(60, dtype=torch.uint8).view(5, 3, 4)
LABELS = torch.tensor([0, 1, 2, 1, 0], dtype=torch.uint8)


@pytest.mark.parametrize("zipped", [False, True])
def test_reads_what_was_written_whatever_the_name_says(tmp_path, zipped):
    path = tmp_path / "images.gz"
    content = idx_bytes(IMAGES)
    path.write_bytes(gzip.compress(content) if zipped else content)
    read = read_idx(path)
    assert read.dtype == torch.uint8
    assert torch.equal(read, IMAGES)


CONTENT = idx_bytes(IMAGES)
BROKEN = {
    "no magic": (b"hello world", "not an IDX file"),
    "empty": (b"", "not an IDX file"),
    "no dimensions": (bytes([0, 0, 8, 0]), "not an IDX file"),
    "floats": (idx_bytes(IMAGES, kind=0x0D), "0x0d"),
    "short header": (CONTENT[:9], "truncated"),
    "short content": (CONTENT[:-1], "truncated \\(59 values of the 60"),
    "long content": (CONTENT + b"\0", "longer than the 60"),
    "absurd header": (struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1) + b"abc", "truncated"),
    "short gzip": (gzip.compress(CONTENT)[:-12], "truncated or damaged"),
    "wrong checksum": (gzip.compress(CONTENT)[:-8] + bytes(8), "truncated or damaged"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_named(tmp_path, case):
    content, says = BROKEN[case]
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"There is no file .*nowhere"):
        read_idx(tmp_path / "nowhere")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError, match=r"There is no file"):
        read_idx(tmp_path)


def pair(folder, images=IMAGES, labels=LABELS):
    (folder / "i").write_bytes(idx_bytes(images))
    (folder / "l").write_bytes(idx_bytes(labels))
    return folder / "i", folder / "l"


def test_labelled_pair(tmp_path):
    images, labels = read_labelled(*pair(tmp_path), outputs=3)
    assert torch.equal(images, IMAGES)
    assert labels.dtype == torch.int64
    assert labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("change", "outputs", "says"),
    [
        ({"labels": LABELS[:4]}, 3, "5 images .* 4 labels"),
        ({}, 2, "label 2, but the data has only 2 classes"),
        ({"images": LABELS}, 3, "1 dimensions where images have 3"),
        ({"labels": IMAGES}, 3, "3 dimensions where labels have 1"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, 3, "no images"),
    ],
)
def test_pairs_that_do_not_fit(tmp_path, change, outputs, says):
    with pytest.raises(UserError, match=says):
        read_labelled(*pair(tmp_path, **change), outputs=outputs)
