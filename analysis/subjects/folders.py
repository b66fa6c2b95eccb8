"""A user's own pictures: a folder with one folder a class, as torchvision's ImageFolder reads it."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from analysis.errors import UserError
from analysis.subjects.classes import Split

SPLIT_SEED = 0
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
NOT_CLASSES = ("__MACOSX", "__pycache__")
CHUNK = 4096


def held_out(labels: torch.Tensor, share: float) -> torch.Tensor:
    """Choose test examples, the same share of every class.

    The choice depends on the labels alone, never on a run's seed: runs with different seeds, and the models that one
    of them left behind, must agree on what was never trained on.

    Args:
        labels: int64 [n].
        share: Part of each class to hold out, in (0, 1); at least one example of each class.

    Returns:
        bool [n], true for test examples.
    """
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        mine = (labels == label).nonzero().flatten()
        held[mine[torch.randperm(len(mine), generator=generator)[: max(1, round(share * len(mine)))]]] = True
    return held


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Scale images to a square by antialiased bilinear interpolation; the aspect ratio is not kept.

    Args:
        images: float [n, channels, height, width] in [0, 1].
        size: New height and width in pixels.

    Returns:
        [n, channels, size, size] in [0, 1].
    """
    if images.shape[2:] == (size, size):
        return images
    parts = [
        functional.interpolate(part, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        for part in images.split(CHUNK)
    ]
    return torch.cat(parts).clamp_(0, 1)


def _visible(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if not path.name.startswith(".") and path.name not in NOT_CLASSES)


def _class_folders(folder: Path) -> list[Path]:
    return _visible(path for path in folder.iterdir() if path.is_dir())


def _pictures(folder: Path) -> list[Path]:
    found = _visible(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _read(path: Path, size: int | None) -> torch.Tensor:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):  # 16 bits: PIL's own conversion to 8 would clip instead of scale
                values = np.asarray(image, dtype=np.float32)[..., None] / 65535
            else:
                grey = image.mode in {"1", "L", "LA"}
                values = np.asarray(image.convert("L" if grey else "RGB"), dtype=np.float32) / 255
    except Exception as error:  # decoders raise whatever they like on damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"Can't read the image {path} ({reason}); replace or delete it.") from error
    pixels = torch.from_numpy(values.reshape(values.shape[0], values.shape[1], -1)).permute(2, 0, 1)
    return resize(pixels[None], size)[0] if size else pixels.contiguous()


def _labelled(folder: Path, classes: tuple[str, ...], least: int) -> tuple[list[Path], torch.Tensor]:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        mine = _pictures(folder / name) if (folder / name).is_dir() else []
        if not mine:
            raise UserError(f"Class {name!r} has no images in {folder}; add some or remove the class everywhere.")
        if len(mine) < least:
            raise UserError(
                f"Class {name!r} in {folder} has only {len(mine)} image, too few to split into training and test; "
                "add more or give train/ and test/ folders."
            )
        paths += mine
        labels += [label] * len(mine)
    return paths, torch.tensor(labels)


def _stacked(paths: list[Path], size: int | None) -> torch.Tensor:
    images = [_read(path, size) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape[1:] != images[0].shape[1:]:
            first, other = ("x".join(str(side) for side in one.shape[1:]) for one in (images[0], image))
            raise UserError(
                f"The images differ in size ({paths[0]} is {first}, {path} is {other}, height x width); "
                "give --size to scale them all."
            )
    channels = max(len(image) for image in images)
    return torch.stack([image.expand(channels, -1, -1) for image in images])


def load_folder(folder: Path, size: int | None = None) -> tuple[tuple[str, ...], Split, Split]:
    """Read a folder of images into memory.

    Two layouts: `train/CLASS/*.png` with `test/CLASS/*.png` (or `val/`), or `CLASS/*.png`, of which a fixed fifth of
    every class becomes the test set. Classes are sorted by name as text, as torchvision does it ("10" before "2"),
    so that outputs of models trained there keep their meaning. Images are grey if all of them are, and RGB otherwise;
    transparency is dropped. Hidden files and files with other endings than images' are left out.

    Args:
        folder: The folder.
        size: Height and width to scale every image to; needed when they differ in size.

    Returns:
        Class names, training images and test images, float32 [n, channels, height, width] in [0, 1].

    Raises:
        UserError: The folder is missing or empty, a class has no (or too few) images, train and test have different
            classes, an image can't be read, or sizes differ and `size` is not given.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; check the path.")
    train = folder / "train"
    test = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
    parted = train.is_dir() and test is not None
    if train.is_dir() and test is None and _class_folders(train):
        raise UserError(f"{folder} has a train folder but neither test nor val; add one, or give {train} itself.")
    top = train if parted else folder
    classes = tuple(path.name for path in _class_folders(top))
    if not classes:
        raise UserError(f"{top} has no class folders; put the images of each class into a folder of its own.")
    if len(classes) < 2:
        raise UserError(f"{top} has only one class, {classes[0]!r}; at least two are needed.")
    if not parted or test is None:
        paths, labels = _labelled(top, classes, least=2)
        held = held_out(labels, 0.2)
        everything = Split(_stacked(paths, size), labels)
        return classes, everything.take(~held), everything.take(held)
    unknown = [path.name for path in _class_folders(test) if path.name not in classes]
    if unknown:
        raise UserError(f"Class {unknown[0]!r} is in {test} but not in {train}; both need the same class folders.")
    paths, labels = _labelled(train, classes, least=1)
    test_paths, test_labels = _labelled(test, classes, least=1)
    images = _stacked(paths + test_paths, size)
    return classes, Split(images[: len(paths)], labels), Split(images[len(paths) :], test_labels)
