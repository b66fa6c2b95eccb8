"""Writes drawings: SVG and PNG from the same figure, the same bytes every time, with the alternative text inside."""

import argparse
import io
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar
from xml.sax.saxutils import escape

import matplotlib

from analysis.errors import UserError
from analysis.files import write_atomically, write_text
from figures.artefacts import Run, open_run
from figures.style import DPI, SCALE_PNG, Drawing, styled

FOLDER = "figures"
SOFTWARE = "Matplotlib " + ".".join(matplotlib.__version__.split(".")[:2])
"""Other versions lay text out otherwise, and so move panels by some pixels."""

R = TypeVar("R")


@styled
def svg_text(drawing: Drawing) -> str:
    """Render as SVG.

    Args:
        drawing: What to render.

    Returns:
        The document: fonts as outlines, no date, fixed ids, title and description for screen readers.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    drawing.figure.savefig(buffer, format="svg", metadata=nothing)
    words = (
        f'<title id="figure-title">{escape(drawing.title)}</title>\n'
        f' <desc id="figure-description">{escape(drawing.alt)}</desc>'
    )
    marked = ' role="img" aria-labelledby="figure-title figure-description"'
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, count=1, flags=re.DOTALL)
    return re.sub(r"<svg\b([^>]*)>", lambda found: f"<svg{found[1]}{marked}>\n {words}", text, count=1)


@styled
def png_bytes(drawing: Drawing) -> bytes:
    """Render as PNG with two pixels for each CSS pixel.

    Args:
        drawing: What to render.

    Returns:
        The file's bytes, with title, description and what drew it (`SOFTWARE`) in its text chunks.
    """
    buffer = io.BytesIO()
    words = {"Title": drawing.title, "Description": drawing.alt, "Software": SOFTWARE}
    drawing.figure.savefig(buffer, format="png", dpi=DPI * SCALE_PNG, metadata=words)
    return buffer.getvalue()


def save_png(drawing: Drawing, path: Path) -> None:
    """Write a drawing as PNG, atomically.

    Args:
        drawing: What to write.
        path: Where to; its folder is made if missing.
    """
    data = png_bytes(drawing)
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def save(drawing: Drawing, folder: Path, name: str) -> list[Path]:
    """Write a drawing as name.svg and name.png, atomically.

    Args:
        drawing: What to write.
        folder: Where to; made if missing.
        name: Without suffix.

    Returns:
        Both paths.
    """
    svg, png = folder / f"{name}.svg", folder / f"{name}.png"
    write_text(svg, svg_text(drawing))
    save_png(drawing, png)
    return [svg, png]


def script(name: str, draw: Callable[[Run], Drawing], arguments: Sequence[str] | None = None) -> int:
    """Be the command `python -m figures.NAME RUN`.

    Args:
        name: Of the figure.
        draw: Draws it.
        arguments: Of the command line; the process's own when not given.

    Returns:
        The exit code: 0, or 2 when the user can mend something (said in one sentence on stderr).
    """
    return script_for(open_run, f"figures.{name}", draw, arguments)


def script_for(
    opened: Callable[[Path], R], module: str, draw: Callable[[R], Drawing], arguments: Sequence[str] | None = None
) -> int:
    """Be the command `python -m MODULE RUN` for any family of runs.

    Args:
        opened: Opens a run folder.
        module: Where the figure is drawn; the last part is its name.
        draw: Draws it.
        arguments: Of the command line; the process's own when not given.

    Returns:
        As `script`.
    """
    name = module.rpartition(".")[2]
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=f"Draw {name}.svg and {name}.png into RUN/{FOLDER}/."
    )
    parser.add_argument("run", type=Path, help="a run folder, e.g. runs/digit-6")
    given = parser.parse_args(arguments)
    try:
        for path in save(draw(opened(given.run)), given.run / FOLDER, name):
            print(path)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
