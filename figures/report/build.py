"""Writes the report page: reads runs, fills the template, leaves one file that needs no other."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from analysis.files import write_text
from figures.report.content import Report, ids_of, read_report

FILE = "report.html"
TEMPLATE = "page.html.j2"


def page(reports: Sequence[Report]) -> str:
    """Fill the template.

    Args:
        reports: One or several runs, in the order in which they stand on the page.

    Returns:
        An HTML document without any reference to another file.
    """
    # Drawings are our own SVG and go in as they are; everything else is escaped.
    environment = Environment(
        loader=PackageLoader("figures.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    ids = ids_of([report.name for report in reports])
    runs = [{**asdict(report), "id": key} for report, key in zip(reports, ids, strict=True)]
    return environment.get_template(TEMPLATE).render(runs=runs)


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of one run, or of several side by side.

    Args:
        folders: Of the runs, at least one.
        out: The file; if not given, report.html in the run's folder, or beside the first of several.

    Returns:
        The file.
    """
    ids = ids_of([folder.name for folder in folders])
    reports = [read_report(folder, key) for folder, key in zip(folders, ids, strict=True)]
    path = out or (folders[0] if len(folders) == 1 else folders[0].parent) / FILE
    write_text(path, page(reports))
    return path
