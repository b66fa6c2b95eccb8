"""The committed gallery is the one baseline of how figures look: each is drawn again and compared with its picture."""

import functools
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis.errors import UserError
from figures.gallery_index import GALLERY, HEAD, PAGE, PARTS, Part, build, main, parts_of, picture_of, section
from figures.render import FACT_NAMES, NAMES, Drawn, drawn
from figures.save import SOFTWARE, png_bytes

COARSE, TILES = 4, 8
"""Pixels are averaged by fours, so that letters may move a little; each eighth of both sides is judged by itself."""
ROUNDED = 2
"""Pixels by which a side may differ."""
TOLERANCE = 8.0
"""Of 255, root mean square within a tile. Measured on these figures: swapped colours of original and edited give 11.6
or more, a lost panel 25 or more."""
MEGABYTES = 5
SHOWN = [(part, name) for part in parts_of(GALLERY) for name in part.figures]


@functools.cache
def figure(run: str, name: str) -> Drawn:
    (one,) = drawn(GALLERY / run, [name])
    return one


def coarse(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB").reduce(COARSE), float)


def differs(committed: Image.Image, now: Image.Image) -> float:
    """Compare two pictures.

    Args:
        committed: One.
        now: The other.

    Returns:
        Root mean square difference of the tile where it is largest, of 255; infinite where the sizes differ.
    """
    if any(abs(a - b) > ROUNDED for a, b in zip(committed.size, now.size, strict=True)):
        return float("inf")
    high, wide = (min(a, b) // COARSE for a, b in zip(committed.size[::-1], now.size[::-1], strict=True))
    squares = (coarse(committed)[:high, :wide] - coarse(now)[:high, :wide]) ** 2
    tiles = (tile for row in np.array_split(squares, TILES) for tile in np.array_split(row, TILES, axis=1))
    return max(float(np.sqrt(tile.mean())) for tile in tiles)


@pytest.mark.parametrize(("part", "name"), SHOWN, ids=[picture_of(*one) for one in SHOWN])
def test_the_figure_still_looks_like_its_picture_in_the_gallery(part: Part, name: str) -> None:
    path = GALLERY / picture_of(part, name)
    with Image.open(path) as committed, Image.open(io.BytesIO(png_bytes(figure(part.run, name).drawing))) as now:
        if committed.info["Software"] != SOFTWARE:
            pytest.skip(f"drawn by {committed.info['Software']}; {SOFTWARE} lays text out otherwise, and moves panels")
        off = differs(committed, now)
    assert off <= TOLERANCE, (
        f"{path.relative_to(GALLERY)} would look different now: by {off:.1f} of 255 in some part of it; allowed are "
        f"{TOLERANCE:g}. If that is meant, run `make figures`, look at the picture, and commit it."
    )


def test_the_page_says_what_the_figures_say() -> None:
    written = (GALLERY / PAGE).read_text()
    sections = [section(part, [figure(part.run, name) for name in part.figures]) for part in parts_of(GALLERY)]
    assert written == "\n".join([HEAD, *sections]), "run `make figures` and commit the page"
    linked = re.findall(r"\]\(([^)]+\.png)\)", written)
    assert sorted(linked) == sorted(picture_of(*one) for one in SHOWN)
    assert all(part.command in written for part in parts_of(GALLERY))


def test_the_gallery_shows_everything_that_its_runs_can_show_and_nothing_else() -> None:
    shown = {part.run: tuple(part.figures) for part in parts_of(GALLERY)}
    assert shown["artefacts/digit-6"] == NAMES
    assert shown["artefacts/beatles"] == FACT_NAMES
    pictures = {path.relative_to(GALLERY).as_posix() for path in GALLERY.rglob("*.png")}
    hung = {path for path in pictures if not path.startswith("artefacts/")}
    assert hung == {picture_of(*one) for one in SHOWN}


def test_the_artefacts_are_small() -> None:
    files = [path for path in (GALLERY / "artefacts").rglob("*") if path.is_file() and path.parent.name != "figures"]
    assert sum(path.stat().st_size for path in files) < MEGABYTES * 1e6


@pytest.fixture
def small(tmp_path: Path) -> Path:
    shutil.copytree(GALLERY / "artefacts" / "digit-6-places", tmp_path / "run")
    part = Part(heading="A [part]", words="Two words.", command="yesterday run x", run="run", folder="shown",
                figures=["places"])  # fmt: skip
    (tmp_path / PARTS).write_text(f'{{"parts": [{part.model_dump_json()}]}}')
    return tmp_path


def test_building_writes_the_pictures_and_the_page_the_same_every_time(small: Path) -> None:
    paths = build(small)
    assert paths == [small / "shown" / "places.png", small / PAGE]
    first = [path.read_bytes() for path in paths]
    assert build(small) == paths
    assert [path.read_bytes() for path in paths] == first
    page = (small / PAGE).read_text()
    with Image.open(paths[0]) as picture:
        assert f"### {picture.info['Title']}\n" in page
        assert f"![{picture.info['Description']}](shown/places.png)" in page
    assert "## A [part]\n\nTwo words.\n\n```sh\nyesterday run x\n```\n" in page
    assert "Causal gain against the distance that is left, for each place." in page


def test_brackets_do_not_end_the_alternative_text(small: Path) -> None:
    (part,), (one,) = parts_of(small), drawn(small / "run", ["places"])
    object.__setattr__(one.drawing, "alt", "a [b] \\ c\nd")
    assert r"![a \[b\] \\ c d](shown/places.png)" in section(part, [one])


def test_what_is_wrong_is_said_in_one_sentence(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (small / "run" / "comparison.json").unlink()
    assert main([str(small)]) == 2
    assert re.fullmatch(r"There is no run and no comparison in [^\n]+\n", capsys.readouterr().err)
    (small / PARTS).write_text("{}")
    with pytest.raises(UserError, match=r"gallery\.json is no list"):
        build(small)
