"""What a report page says of one run, in words and numbers, before any HTML."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.audit.bands import deviation
from analysis.audit.report import AuditReport, Finding, Measurement
from analysis.errors import UserError
from figures.artefacts import Run
from figures.save import FOLDER
from figures.words import percent, plural
from unlearn.documents import RunReport, read_run
from unlearn.requests import command

CHAPTERS: dict[str, tuple[tuple[str, str, tuple[str, ...]], ...]] = {
    "classes": (
        (
            "Where it lived",
            "Weights and neurons that carry the class, and whether switching them off really takes it away.",
            ("mask_map", "attribution", "ablation", "overlap"),
        ),
        ("What was changed", "The weights that moved, and what happened on the way.", ("weight_change", "forgetting")),
        ("What the model does now", "On images that nothing was trained on.", ("misclassified", "confusion", "umap")),
        ("How it was audited", "Every auditor against models that never knew.", ("bands", "probes", "relearning")),
    ),
    "facts": (
        (
            "Where it lived",
            "Weights and neurons that carry the facts, and whether switching them off really takes them away.",
            ("mask_layers", "neurons", "patching", "causal"),
        ),
        ("What the model says now", "On facts and texts that no method saw.", ("fact_map", "lens", "tradeoff")),
        ("How it was audited", "Every auditor against its yardstick.", ("fact_bands", "survival", "relearn")),
    ),
}
WIDEST = 10.0
"""Gold standard deviations that a strip shows at most; what lies further stands at its end."""


@dataclass(frozen=True)
class Picture:
    """A figure, ready to stand inside a page.

    Attributes:
        name: Of the figure.
        title: Its title.
        alt: Its description, made of the same numbers.
        svg: The drawing, its ids its own.
    """

    name: str
    title: str
    alt: str
    svg: str


@dataclass(frozen=True)
class Chapter:
    """Figures that answer one question.

    Attributes:
        title: The question, short.
        lead: One sentence.
        pictures: The figures there are.
    """

    title: str
    lead: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Line:
    """One auditor.

    Attributes:
        auditor: Its name.
        original: The original's value.
        edited: The edited model's.
        gold: Mean of the yardstick's, with its number of models.
        edge: Where the band ends, with the side that is inside.
        distance: The edited model's, in gold sd on the telling side.
        inside: Whether it is inside the band.
        behind: Examples and repeats behind the value.
        why_not: Why it doesn't count; empty where it does.
        at: Places of edge, original and edited on a strip, 0 (3 sd on the harmless side) to 100.
    """

    auditor: str
    original: str
    edited: str
    gold: str
    edge: str
    distance: str
    inside: bool
    behind: str
    why_not: str
    at: tuple[float, float, float]


@dataclass(frozen=True)
class Report:
    """Everything that a page says of a run.

    Attributes:
        name: Of the run's subject.
        folder: Of the run, as given.
        question: What was asked.
        verdict: One word.
        sentence: The verdict in words.
        edit: What was done and how much of the model it changed.
        before_after: Name, original, edited and yardstick of what people look at first.
        yardstick: What the golds are, in the plural.
        overview: The run in one picture, where it was drawn.
        chapters: The other figures.
        counted: Auditors that count.
        left_out: Auditors that don't.
        controls: Verdict on every control.
        calibration: How well auditors part planted facts, where there were any.
        costs: Stage, time and peak memory.
        not_measured: What was not looked at.
        command: Repeats it.
        settings: What it was run with.
        versions: Of the libraries.
    """

    name: str
    folder: str
    question: str
    verdict: str
    sentence: str
    edit: str
    before_after: tuple[tuple[str, str, str, str], ...]
    yardstick: str
    overview: Picture | None
    chapters: tuple[Chapter, ...]
    counted: tuple[Line, ...]
    left_out: tuple[Line, ...]
    controls: tuple[tuple[str, str], ...]
    calibration: tuple[tuple[str, str, str], ...]
    costs: tuple[tuple[str, str, str], ...]
    not_measured: tuple[str, ...]
    command: str
    settings: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]


def own_ids(svg: str, prefix: str) -> str:
    """Make a drawing's ids its own, so that several can stand in one page.

    Args:
        svg: A document as `figures.save` writes it.
        prefix: Put before every id.

    Returns:
        The <svg> element alone.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'((?:xlink:)?href)="#([^"]+)"', rf'\1="#{prefix}-\2"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    return re.sub(
        r'aria-labelledby="([^"]+)"',
        lambda found: 'aria-labelledby="' + " ".join(f"{prefix}-{one}" for one in found[1].split()) + '"',
        svg,
        count=1,
    )


def _picture(folder: Path, name: str, prefix: str) -> Picture | None:
    path = folder / FOLDER / f"{name}.svg"
    if not path.is_file():
        return None
    svg = own_ids(path.read_text(encoding="utf-8"), f"{prefix}-{name.replace('_', '-')}")
    found = [re.search(rf"<{tag}[^>]*>(.*?)</{tag}>", svg, re.DOTALL) for tag in ("title", "desc")]
    title, alt = (one[1] if one else name for one in found)
    return Picture(name, title, alt, svg)


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "not a number"


def _place(distance: float) -> float:
    return 100 * (min(max(distance, -3.0), WIDEST) + 3) / (WIDEST + 3)


def _line(measurement: Measurement, original: Finding, edited: Finding) -> Line | None:
    band = measurement.band
    if band is None:
        return None
    edge = deviation(band.edge, band, measurement.scale, measurement.outside, 0.0)
    behind = plural(measurement.examples, "example")
    if measurement.repeats > 1:
        behind += f", {plural(measurement.repeats, 'repeat')}"
    return Line(
        auditor=measurement.auditor,
        original=_number(original.value),
        edited=_number(edited.value),
        gold=f"{_number(band.mean)} ({band.n})",
        edge=f"{'<' if measurement.outside == 'above' else '>'} {_number(band.edge)}",
        distance=f"{edited.distance:+.1f}",
        inside=edited.inside,
        behind=behind,
        why_not=measurement.why_not,
        at=(_place(edge), _place(original.distance), _place(edited.distance)),
    )


def _lines(found: AuditReport) -> list[Line]:
    sides = [{one.auditor: one for one in found.audits[name].findings} for name in ("original", "edited")]
    lines = []
    for measurement in found.measurements:
        both = [side.get(measurement.auditor) for side in sides]
        if both[0] and both[1] and (line := _line(measurement, both[0], both[1])):
            lines.append(line)
    return lines


def _before_after(found: AuditReport) -> tuple[tuple[str, str, str, str], ...]:
    rows = []
    for m in found.measurements:
        if m.role in {"behaviour", "damage"} and m.band and {"original", "edited"} <= m.values.keys():
            show = percent if m.unit in {"share", "accuracy"} else _number
            spread = [m.values[gold] for gold in found.golds if gold in m.values]
            mean = sum(spread) / len(spread) if spread else m.band.mean
            rows.append((m.auditor, show(m.values["original"]), show(m.values["edited"]), show(mean)))
    return tuple(rows)


def _settings(config: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    flat: list[tuple[str, str]] = []
    for name, value in config.items():
        inner = value if isinstance(value, dict) else {"": value}
        for key, one in inner.items():
            # By identity: a seed of 0 equals False and is a setting all the same.
            if one is not None and one is not False and one not in ([], ""):
                shown = ", ".join(map(str, one)) if isinstance(one, list) else str(one)
                flat.append((f"{name} {key}".strip().replace("_", " "), shown))
    return tuple(flat)


def _edit(report: RunReport, config: dict[str, Any]) -> str:
    if config.get("candidate"):
        done = f"An edited model was brought: {config['candidate']}."
    elif config["measure"] == "none":
        done = f"The method {config['method']} might change every weight."
    else:
        done = f"The method {config['method']} might change what {config['measure']} located."
    if report.changed is None:
        return done
    return (
        f"{done} It changed {report.changed:,} of {report.total:,} numbers ({percent(report.changed / report.total)})."
    )


def read_report(folder: Path, prefix: str) -> Report:
    """Gather what a page says of a run.

    Args:
        folder: The run folder.
        prefix: Of all ids that belong to the run.

    Returns:
        Its words, numbers and figures.

    Raises:
        UserError: There is no finished run in the folder.
    """
    run = read_run(folder)
    if run.verdict is None or not (folder / "audit.json").is_file():
        raise UserError(f"{folder} has no audit yet; finish it with: {command(run.config)}")
    found = Run(folder).audit
    family = "facts" if run.config.get("family") == "facts" else "classes"
    chapters = []
    for title, lead, names in CHAPTERS[family]:
        pictures = tuple(one for name in names if (one := _picture(folder, name, prefix)))
        if pictures:
            chapters.append(Chapter(title, lead, pictures))
    lines = _lines(found)
    what = found.forgotten if family == "facts" else f"“{found.forgotten}”"
    return Report(
        name=run.name,
        folder=str(folder),
        question=f"Does the edited model still know {what}?",
        verdict=run.verdict,
        sentence=run.sentence,
        edit=_edit(run, run.config),
        before_after=_before_after(found),
        yardstick=f"{len(found.golds)} {found.yardstick}",
        overview=_picture(folder, "overview", prefix),
        chapters=tuple(chapters),
        counted=tuple(line for line in lines if not line.why_not),
        left_out=tuple(line for line in lines if line.why_not),
        controls=tuple((name, audit.verdict) for name, audit in found.audits.items() if name != "edited"),
        calibration=tuple((one.auditor, f"{one.auc:.2f}", str(one.facts)) for one in found.calibration),
        costs=_costs(run),
        not_measured=tuple(found.not_measured),
        command=command(run.config),
        settings=_settings(run.config),
        versions=tuple(run.versions.items()),
    )


def _costs(run: RunReport) -> tuple[tuple[str, str, str], ...]:
    rows = [(name, float(one["seconds"]), one.get("peak_mb")) for name, one in run.stages.items()]
    told = [(name, _time(seconds), f"{peak:,} MB" if peak else "") for name, seconds, peak in rows]
    most = max((peak for _, _, peak in rows if peak), default=None)
    return (*told, ("all stages", _time(sum(seconds for _, seconds, _ in rows)), f"{most:,} MB" if most else ""))


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def ids_of(names: Sequence[str]) -> list[str]:
    """Make ids for several runs.

    Args:
        names: Of their subjects; may repeat.

    Returns:
        One for each, all different.
    """
    return [f"run{number}-{re.sub(r'[^a-z0-9]+', '-', name.lower())}" for number, name in enumerate(names, 1)]
