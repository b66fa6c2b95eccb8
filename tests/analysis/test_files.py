import hashlib
import os
import resource
import stat

import pytest
import torch
from safetensors.torch import load_file

from analysis.errors import UserError
from analysis.files import load_tensors, save_tensors, sha256, write_atomically, write_text

TENSORS = {
    "floats": torch.arange(6.0).view(2, 3),
    "bits": torch.tensor([True, False]),
    "scalar": torch.tensor(3),
    "empty": torch.zeros(0, 4),
    "half": torch.ones(2, dtype=torch.bfloat16),
}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_tensors_come_back_with_their_metadata(tmp_path):
    path = tmp_path / "deep" / "er" / "x.safetensors"
    save_tensors(path, TENSORS, {"kind": "test", "ä": "ö"})
    loaded, metadata = load_tensors(path)
    assert loaded.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value)
    assert metadata == {"kind": "test", "ä": "ö"}
    assert names(path.parent) == ["x.safetensors"]


def test_views_shared_storage_and_gradients_are_written_as_values(tmp_path):
    base = torch.arange(12.0).view(3, 4).requires_grad_()
    save_tensors(tmp_path / "x.safetensors", {"a": base.T, "b": base, "c": base[:, 1]})
    loaded = load_file(tmp_path / "x.safetensors")
    assert torch.equal(loaded["a"], base.T)
    assert torch.equal(loaded["c"], base[:, 1])


def test_equal_tensors_give_equal_bytes(tmp_path):
    metadata = {str(i): 'quote " slash / \\ line\n tab\t \x01\x7f é 🎸' for i in range(9)}
    hashes = set()
    for i in range(5):
        save_tensors(tmp_path / str(i), TENSORS, metadata)
        hashes.add(sha256(tmp_path / str(i)))
    assert len(hashes) == 1
    assert load_tensors(tmp_path / "0")[1] == metadata


def test_text_is_written_as_utf8_and_readable_by_others(tmp_path):
    write_text(tmp_path / "t.json", "Ünlearn ✓\n")
    assert (tmp_path / "t.json").read_bytes() == "Ünlearn ✓\n".encode()
    assert stat.S_IMODE((tmp_path / "t.json").stat().st_mode) == 0o644


def test_sha256_is_sha256(tmp_path):
    content = os.urandom(300_000)
    (tmp_path / "x").write_bytes(content)
    assert sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_write_leaves_the_earlier_file_and_no_other(tmp_path, error):
    path = tmp_path / "x.txt"
    write_text(path, "earlier")

    def write(temporary):
        temporary.write_text("half of the ne")
        raise error

    with pytest.raises(error):
        write_atomically(path, write)
    assert path.read_text() == "earlier"
    assert names(tmp_path) == ["x.txt"]


def test_until_the_move_readers_see_the_earlier_file(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "earlier")
    seen = []

    def write(temporary):
        temporary.write_text("new")
        seen.append(path.read_text())

    write_atomically(path, write)
    assert seen == ["earlier"]
    assert path.read_text() == "new"


def test_a_full_disk_is_one_sentence_and_the_earlier_file_stays(tmp_path):
    path = tmp_path / "x.bin"
    write_text(path, "earlier")
    with pytest.raises(UserError, match=r"Can't write .*x\.bin \(No space left on device\)"):
        write_atomically(path, lambda _: open("/dev/full", "wb", buffering=0).write(b"x"))  # noqa: SIM115
    assert path.read_text() == "earlier"
    assert names(tmp_path) == ["x.bin"]


def test_a_disk_that_fills_up_under_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.zeros(3)})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # Python ignores the signal, so writing fails
    try:
        with pytest.raises(UserError, match=r"Can't write .*x\.safetensors"):
            save_tensors(path, {"a": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert names(tmp_path) == ["x.safetensors"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"Can't write .*file/x\.txt"):
        write_text(tmp_path / "file" / "x.txt", "text")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / "x.txt" / "inner").mkdir(parents=True)
    with pytest.raises(UserError, match=r"Can't write .*x\.txt"):
        write_text(tmp_path / "x.txt", "text")
    assert names(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("keep", [0, 4, 30, -1])
def test_damaged_safetensors(tmp_path, keep):
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"x\.safetensors is not a readable safetensors file") as caught:
        load_tensors(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("path", "words"), [("nowhere.safetensors", "There is no file"), (".", "is a folder")])
def test_missing_safetensors(tmp_path, path, words):
    with pytest.raises(UserError, match=words):
        load_tensors(tmp_path / path)


def test_a_folder_is_no_place_for_a_file(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"Can't write .*folder \(.*\); give the name of a file\."):
        write_text(tmp_path / "folder", "text")
    assert names(tmp_path) == ["folder"]
