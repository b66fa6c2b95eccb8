"""Makes the gallery: every figure of the committed runs as a PNG, and the page that shows them with their words.

`python -m figures.gallery_index`, or `make figures`, draws all of it again. What is shown and how it was made stands in
`figures/gallery/gallery.json`; the runs' small artefacts are in `figures/gallery/artefacts`.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from analysis.audit.report import Document
from analysis.errors import UserError
from analysis.files import write_text
from figures.render import Drawn, drawn
from figures.save import save_png

GALLERY = Path(__file__).parent / "gallery"
PARTS, PAGE = "gallery.json", "README.md"
HEAD = """# Gallery

The figures of the runs and comparisons that the documentation speaks of. `make figures` draws them and writes this page
from the runs' artefacts in [artefacts](artefacts); `yesterday figures RUN` draws the same figures of your own run.
"""


class Part(Document):
    """One run or comparison in the gallery.

    Attributes:
        heading: Above its figures.
        words: What was done, in a sentence or two.
        command: Makes the run.
        run: Its folder, relative to the gallery.
        folder: Where the pictures go, relative to the gallery.
        figures: Which are shown, in this order.
    """

    heading: str
    words: str
    command: str
    run: str
    folder: str
    figures: list[str]


class Gallery(Document):
    """Everything in `gallery.json`.

    Attributes:
        parts: In the order of the page.
    """

    parts: list[Part]


def parts_of(gallery: Path) -> list[Part]:
    """Read what the gallery shows.

    Args:
        gallery: Its folder.

    Returns:
        The parts, in the order of the page.

    Raises:
        UserError: There is no such list, or it is damaged.
    """
    path = gallery / PARTS
    try:
        return Gallery.model_validate_json(path.read_text(encoding="utf-8")).parts
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no list of what the gallery shows ({str(error).splitlines()[0]}).") from error


def picture_of(part: Part, name: str) -> str:
    """Say where a picture is.

    Args:
        part: Of the gallery.
        name: Of the figure.

    Returns:
        A path relative to the gallery.
    """
    return (Path(part.folder) / f"{name}.png").as_posix()


def _alt(text: str) -> str:
    # In Markdown a bracket would end it.
    return re.sub(r"([\[\]\\])", r"\\\1", " ".join(text.split()))


def section(part: Part, figures: Iterable[Drawn]) -> str:
    """Write a part of the page.

    Args:
        part: What it shows.
        figures: Its figures.

    Returns:
        Markdown: heading and command, then for each figure its title, a sentence and the picture with its own alt text.
    """
    blocks = [f"## {part.heading}", part.words, f"```sh\n{part.command}\n```"]
    for one in figures:
        blocks += [f"### {one.drawing.title}", one.about]
        blocks += [f"![{_alt(one.drawing.alt)}]({picture_of(part, one.name)})"]
    return "\n\n".join(blocks) + "\n"


def build(gallery: Path = GALLERY) -> list[Path]:
    """Draw all figures of the gallery and write its page.

    Args:
        gallery: Its folder.

    Returns:
        The files that were written, the page last. A UserError says which artefact is missing or damaged.
    """
    paths, sections = [], [HEAD]
    for part in parts_of(gallery):
        figures = list(drawn(gallery / part.run, part.figures))
        for one in figures:
            paths.append(gallery / picture_of(part, one.name))
            save_png(one.drawing, paths[-1])
        sections.append(section(part, figures))
    paths.append(gallery / PAGE)
    write_text(paths[-1], "\n".join(sections))
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    """Be the command `python -m figures.gallery_index`.

    Args:
        arguments: Of the command line; the process's own when not given.

    Returns:
        The exit code: 0, or 2 when the user can mend something (said in one sentence on stderr).
    """
    parser = argparse.ArgumentParser(prog="python -m figures.gallery_index", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("gallery", type=Path, nargs="?", default=GALLERY, help=f"its folder, with {PARTS}")
    try:
        for path in build(parser.parse_args(arguments).gallery):
            print(path)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
