import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from analysis.errors import UserError
from analysis.subjects.folders import held_out, load_folder, resize


def paint(path, value, shape=(6, 5), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*shape, 3) if mode == "RGB" else shape, value, dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def plain(tmp_path):
    for label, name in enumerate(["cat", "dog", "eel"]):
        for i in range(5):
            paint(tmp_path / "pets" / name / f"{i}.png", 50 * label + i)
    return tmp_path / "pets"


@given(st.lists(st.integers(2, 30), min_size=1, max_size=6), st.floats(0.05, 0.5), st.randoms())
@settings(max_examples=40, deadline=None)
def test_held_out_is_stratified(counts, share, random):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    random.shuffle(labels)
    held = held_out(torch.tensor(labels), share)
    for label, count in enumerate(counts):
        mine = held[torch.tensor(labels) == label]
        assert int(mine.sum()) == max(1, round(share * count))
        assert not mine.all()


def test_held_out_ignores_the_global_seed():
    labels = torch.arange(3).repeat(20)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = held_out(labels, 0.2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(held_out(labels, 0.2), first)


def test_one_folder_is_split_a_fifth_of_every_class(plain):
    classes, train, test = load_folder(plain)
    assert classes == ("cat", "dog", "eel")
    assert train.images.shape == (12, 1, 6, 5)
    assert test.labels.bincount().tolist() == [1, 1, 1]
    values = torch.cat([train.images, test.images])[:, 0, 0, 0].mul(255).round().long()
    labels = torch.cat([train.labels, test.labels])
    assert sorted(values.tolist()) == sorted(50 * c + i for c in range(3) for i in range(5))
    assert torch.equal(values // 50, labels)


@pytest.mark.parametrize("second", ["test", "val"])
def test_train_and_test_folders(tmp_path, second):
    for part, count in (("train", 3), (second, 1)):
        for name in ("10", "2"):
            for i in range(count):
                paint(tmp_path / part / name / "deeper" / f"{i}.jpg", 100)
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "10" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "10" / ".thumb.png").write_text("no image")
    classes, train, test = load_folder(tmp_path)
    assert classes == ("10", "2")  # as text, like torchvision
    assert (len(train), len(test)) == (6, 2)


def test_order_of_classes_and_pixels_equal_torchvision(plain):
    from torchvision.datasets import ImageFolder

    reference = ImageFolder(str(plain))
    classes, train, test = load_folder(plain)
    assert list(classes) == reference.classes
    ours = sorted(
        zip(
            torch.cat([train.images, test.images])[:, 0, 0, 0].tolist(),
            torch.cat([train.labels, test.labels]).tolist(),
            strict=True,
        )
    )
    theirs = sorted((np.asarray(image)[0, 0, 0] / 255, label) for image, label in reference)
    assert np.allclose(ours, theirs)


def test_one_colour_image_makes_all_of_them_rgb(plain):
    paint(plain / "cat" / "0.png", 7, mode="RGB")
    _, train, test = load_folder(plain)
    assert train.images.shape[1] == test.images.shape[1] == 3
    assert torch.equal(train.images[:, 0], train.images[:, 2])


def test_sixteen_bit_images_are_scaled_not_clipped(plain):
    for i in range(5):
        Image.fromarray(np.full((6, 5), 32768, dtype=np.uint16)).save(plain / "cat" / f"{i}.png")
    _, train, _ = load_folder(plain)
    assert train.images[train.labels == 0].mean() == pytest.approx(0.5, abs=1e-4)


def test_size_scales_images_of_all_sizes(plain):
    paint(plain / "cat" / "0.png", 3, shape=(20, 40))
    _, train, test = load_folder(plain, size=8)
    assert train.images.shape[2:] == test.images.shape[2:] == (8, 8)
    everything = torch.cat([train.images, test.images])
    assert torch.allclose(everything, everything[:, :, :1, :1].expand_as(everything))


def test_resize_keeps_a_constant_and_averages_a_checkerboard():
    board = (torch.arange(16)[:, None] + torch.arange(16)[None]).remainder(2).float().expand(3, 2, 16, 16)
    small = resize(board, 4)
    assert small.shape == (3, 2, 4, 4)
    assert torch.allclose(small, torch.full_like(small, 0.5), atol=0.05)
    assert resize(board, 16) is board


def test_resize_is_antialiased():
    dot = torch.zeros(1, 1, 16, 16)
    dot[..., 8, 8] = 1  # plain bilinear interpolation would look between the pixels and miss it
    assert resize(dot, 4).sum() == pytest.approx(1 / 16, rel=0.1)


def test_mixed_sizes_need_a_size(plain):
    paint(plain / "dog" / "3.png", 3, shape=(7, 7))
    with pytest.raises(UserError, match=r"3\.png is 7x7.*--size"):
        load_folder(plain)


def test_class_without_samples(plain):
    for path in (plain / "dog").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"Class 'dog' has no images"):
        load_folder(plain)


def test_class_with_one_sample_cannot_be_split(plain):
    for i in range(1, 5):
        (plain / "dog" / f"{i}.png").unlink()
    with pytest.raises(UserError, match=r"'dog' .* only 1 image"):
        load_folder(plain)


def test_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"no class folders"):
        load_folder(tmp_path)


def test_folder_with_one_class(tmp_path):
    paint(tmp_path / "only" / "a.png", 1)
    with pytest.raises(UserError, match=r"only one class, 'only'"):
        load_folder(tmp_path)


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"There is no folder"):
        load_folder(tmp_path / "nowhere")


def test_train_without_test(tmp_path):
    paint(tmp_path / "train" / "a" / "1.png", 1)
    with pytest.raises(UserError, match=r"neither test nor val"):
        load_folder(tmp_path)


def test_class_that_is_only_in_test(tmp_path):
    for part, names in (("train", "ab"), ("test", "abc")):
        for name in names:
            paint(tmp_path / part / name / "1.png", 1)
    with pytest.raises(UserError, match=r"'c' is in .*test but not in"):
        load_folder(tmp_path)


def test_class_that_is_only_in_train(tmp_path):
    for part, names in (("train", "abc"), ("test", "ab")):
        for name in names:
            paint(tmp_path / part / name / "1.png", 1)
    with pytest.raises(UserError, match=r"'c' has no images in .*test"):
        load_folder(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_unreadable_image_is_named(plain, content):
    path = plain / "eel" / "2.png"
    path.write_bytes(path.read_bytes()[:50] if content is None else content)
    with pytest.raises(UserError, match=r"Can't read the image .*eel/2\.png"):
        load_folder(plain)
