"""The tables: for the terminal, as JSON with the machine beside them, and between two markers of Markdown pages."""

import contextlib
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.timing import Row

PEERS = ("torch", "transformers", "transformer-lens", "captum", "backpack-for-pytorch")
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


def machine() -> dict[str, Any]:
    """Describe what the numbers were measured on.

    Returns:
        Processor, cores, threads and the versions of the libraries that are there.
    """
    versions = {}
    for peer in PEERS:
        with contextlib.suppress(PackageNotFoundError):
            versions[peer] = version(peer)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return {
        "processor": name,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
    }


def write(folder: Path, name: str, rows: Sequence[Row]) -> None:
    """Write one benchmark's rows.

    Args:
        folder: Where; it must exist.
        name: Of the benchmark.
        rows: What was measured.
    """
    told = [{**asdict(row), "ratio": row.ratio, "reached": row.reached} for row in rows]
    document = {"benchmark": name, "machine": machine(), "rows": told}
    (folder / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def cells(row: Mapping[str, Any]) -> list[str]:
    """Put one row of a results file into words.

    Args:
        row: As `write` wrote it.

    Returns:
        What, against, ratio with its spread, aim, both times, equality.
    """
    low, high = min(row["ratios"]), max(row["ratios"])
    sign, word = (">=", "x as fast") if row["sense"] == "faster" else ("<=", "x the time")
    if row["reach"] is None:
        aim = "-"
    else:
        missed = row["ratio"] / row["reach"] if row["sense"] == "faster" else row["reach"] / row["ratio"]
        aim = f"{sign} {row['reach']:.3g}: " + ("yes" if row["reached"] else f"no, by a factor of {1 / missed:.2f}")
    ratio = f"{row['ratio']:.3g}{word} ({low:.3g}-{high:.3g})"
    return [row["what"], row["against"], ratio, aim, f"{_time(row['ours'])} / {_time(row['peer'])}", row["equal"]]


def _read(folder: Path) -> tuple[list[dict[str, Any]], str]:
    # All rows there are, and what they were measured on.
    documents = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    found = documents[0]["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    rounds = statistics.median(len(row["ratios"]) for document in documents for row in document["rows"])
    measured = (
        f"{found['processor']}; cores: {found['cores']}, threads: {found['threads']}; Python {found['python']}, "
        f"{versions}. Median (least-most) of {rounds:.0f} rounds, both sides in turn in the same process."
    )
    return [row for document in documents for row in document["rows"]], measured


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def table(folder: Path) -> str:
    """Make one Markdown table of all results there are.

    Args:
        folder: Where `write` wrote them.

    Returns:
        Markdown, with the machine above and the notes below.
    """
    rows, measured = _read(folder)
    head = ("what", "against", "ratio", "aim", "ours / theirs", "results")
    notes = [f"- {row['what']}: {row['note']}" for row in rows if row["note"]]
    return "\n".join([measured, "", *_markdown(head, [cells(row) for row in rows]), "", *notes]).rstrip() + "\n"


def brief(folder: Path) -> str:
    """Make the short table of the front page: the rows that have an aim.

    Args:
        folder: Where `write` wrote them.

    Returns:
        Markdown, with the machine below.
    """
    rows, measured = _read(folder)
    told = [cells(row)[:4] for row in rows if row["reach"] is not None]
    return "\n".join([*_markdown(("what", "against", "ratio", "aim"), told), "", measured]) + "\n"


def paste(page: Path, text: str) -> None:
    """Put a table between a page's markers.

    Args:
        page: Has both markers.
        text: Markdown.
    """
    whole = page.read_text()
    before, rest = whole.split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}")
