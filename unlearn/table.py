"""The table of a comparison: a row for each method at each place, and every number behind it."""

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Literal

from scipy import stats

from analysis.audit.report import AuditReport, Document, Measurement
from unlearn.cells import CellNote, Outcome

GOLD = "gold (mean)"
TWINS_MEAN = "twins (mean)"
NEVER_KNEW = {GOLD, TWINS_MEAN}
MOST = 0.5
"""A method that might change everything and changed less than this share gets the share written beside it."""
FARTHEST = 10.0
"""Gold sd at which an auditor's distance stops to count; a head with one changed bias is thousands away."""


class Row(Document):
    """One method at one place, or a reference, over all subjects and seeds.

    Attributes:
        name: Of the method or model.
        place: See `cells.Cell`; "" for references.
        where: The same for people: "all", e.g. "20% damage-contrast", or "" for references.
        control: Whether nothing located the place.
        changed: Share of the weights that it changed, mean; None for references.
        seconds: Time of the edit, mean; None for references.
        cost: The same as a share of the time that training one gold takes, mean; None where none was trained alone.
        mean: By auditor, mean.
        sd: By auditor, standard deviation (for golds: within a seed, mean over seeds).
        verdicts: One per model.
        outside: By auditor that counts: how many of the models it puts outside the band.
        distance: Of each model: mean over auditors that count of how many gold sd it lies on the telling side of the
            gold mean, from 0 to `FARTHEST` each.
        ranks: Of each model among all methods and places of its subject and seed by that distance, 1 the nearest to
            gold; failures come last. Empty for references.
        gain: See `CellNote`, mean.
        failed: Why there are fewer models than subjects and seeds, once for each that is missing.
    """

    name: str
    place: str = ""
    where: str
    control: bool = False
    changed: float | None
    seconds: float | None
    cost: float | None = None
    mean: dict[str, float]
    sd: dict[str, float]
    verdicts: list[str]
    outside: dict[str, int]
    distance: tuple[float, ...] = ()
    ranks: tuple[float, ...] = ()
    gain: float | None = None
    failed: tuple[str, ...] = ()

    @property
    def beyond(self) -> float:
        """Auditors outside the band, mean."""
        return sum(self.outside.values()) / max(1, len(self.verdicts))


class Comparison(Document):
    """Everything in `comparison.json`.

    Attributes:
        schema_version: Of this document.
        subjects: Their names.
        seeds: Of the draws, masks, attacks and edits; for classes each trains its own original and golds too.
        golds: Gold models, or twins, for each subject and seed.
        rows: References, then methods.
    """

    schema_version: Literal[2] = 2
    subjects: list[str]
    seeds: list[int]
    golds: int
    rows: list[Row]

    @property
    def subject(self) -> str:
        """All subjects, for people."""
        first, last = self.subjects[0], self.subjects[-1]
        return first if first == last else f"{first} to {last}"


def distance(report: AuditReport, model: str) -> float:
    """Measure how far a model is from gold over all auditors that count.

    Args:
        report: The audit.
        model: Its name there.

    Returns:
        Gold sd on the telling side, mean over auditors, from 0 to `FARTHEST`; NaN where none counts.
    """
    far = [min(max(f.distance, 0.0), FARTHEST) for f in report.audits[model].findings if f.counted]
    return fmean(far) if far else math.nan


def tabulate(outcomes: Sequence[Outcome]) -> Comparison:
    """Sum up finished subjects and seeds.

    Args:
        outcomes: At least one, all with the same cells.

    Returns:
        The table.
    """
    never = outcomes[0].notes.never
    cells = {note.key: note for note in outcomes[0].notes.cells}
    references: dict[str, list[str]] = {"original": ["original"], never: [never]}
    for name in outcomes[0].audit.audits:
        if name not in cells:
            references.setdefault(re.sub(r" \d+$", "", name), []).append(name)
    references["original"] = ["original"]
    rows = [
        _row(name, [(one.audit, model) for one in outcomes for model in models]) for name, models in references.items()
    ]
    ranks = [_ranks(one) for one in outcomes]
    for key, cell in cells.items():
        notes = [next(note for note in one.notes.cells if note.key == key) for one in outcomes]
        row = _row(cell.name, [(one.audit, key) for one in outcomes if key in one.audit.audits])
        rows.append(
            row.model_copy(update=_noted(cell, notes, outcomes) | {"ranks": tuple(rank[key] for rank in ranks)})
        )
    return Comparison(
        subjects=list(dict.fromkeys(one.notes.subject for one in outcomes)),
        seeds=list(dict.fromkeys(one.notes.seed for one in outcomes)),
        golds=len(outcomes[0].audit.golds),
        rows=rows,
    )


def _noted(cell: CellNote, notes: Sequence[CellNote], outcomes: Sequence[Outcome]) -> dict[str, object]:
    whole = [(note, one) for note, one in zip(notes, outcomes, strict=True) if not note.failed]
    seconds = [note.seconds or 0.0 for note, _ in whole]
    costs = [
        spent / one.notes.retraining for spent, (_, one) in zip(seconds, whole, strict=True) if one.notes.retraining
    ]
    gains = [note.gain for note in notes if note.gain is not None]
    return {
        "place": cell.place,
        "where": cell.where,
        "control": cell.control,
        "changed": fmean(note.changed or 0.0 for note, _ in whole) if whole else None,
        "seconds": fmean(seconds) if seconds else None,
        "cost": fmean(costs) if costs else None,
        "gain": fmean(gains) if gains else None,
        "failed": tuple(note.failed for note in notes if note.failed),
    }


def _ranks(one: Outcome) -> dict[str, float]:
    far = {note.key: math.inf if note.failed else distance(one.audit, note.key) for note in one.notes.cells}
    found = stats.rankdata(list(far.values()), nan_policy="omit") if far else []
    return dict(zip(far, map(float, found), strict=True))


def _row(name: str, pairs: Sequence[tuple[AuditReport, str]]) -> Row:
    # Auditors that did not look at every one of the models are absent.
    auditors = [m.auditor for m in pairs[0][0].measurements] if pairs else []
    found = {
        auditor: [_value(report, auditor, model) for report, model in pairs]
        for auditor in auditors
        if all(_has(report, auditor, model) for report, model in pairs)
    }
    mine = [report.audits[model] for report, model in pairs if model not in NEVER_KNEW]
    return Row(
        name=name,
        where="",
        changed=None,
        seconds=None,
        mean={auditor: fmean(values) for auditor, values in found.items()},
        sd={
            auditor: fmean(_gold_sd(report, auditor) for report, _ in pairs)
            if name in NEVER_KNEW
            else (stdev(values) if len(values) > 1 else 0.0)
            for auditor, values in found.items()
        },
        verdicts=[each.verdict for each in mine],
        outside={
            auditor: sum(f.counted and not f.inside for each in mine for f in each.findings if f.auditor == auditor)
            for auditor in found
        },
        distance=tuple(distance(report, model) for report, model in pairs if model not in NEVER_KNEW),
    )


def _measurement(report: AuditReport, auditor: str) -> Measurement | None:
    return next((m for m in report.measurements if m.auditor == auditor), None)


def _has(report: AuditReport, auditor: str, model: str) -> bool:
    found = _measurement(report, auditor)
    return found is not None and (model in NEVER_KNEW or model in found.values)


def _value(report: AuditReport, auditor: str, model: str) -> float:
    found = _measurement(report, auditor)
    assert found is not None  # looked for by _has
    if model in NEVER_KNEW:
        return fmean(found.values[gold] for gold in report.golds if gold in found.values)
    return found.values[model]


def _gold_sd(report: AuditReport, auditor: str) -> float:
    found = _measurement(report, auditor)
    assert found is not None  # looked for by _has
    return stdev(found.values[gold] for gold in report.golds if gold in found.values)


def tidy(outcomes: Sequence[Outcome]) -> str:
    """Write every number: one line for each subject, seed, model and auditor, and one for each failure.

    Args:
        outcomes: As for `tabulate`.

    Returns:
        CSV with a header.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, TIDY, lineterminator="\n")
    writer.writeheader()
    for one in outcomes:
        noted = {note.key: note for note in one.notes.cells}
        bands = {m.auditor: m.band for m in one.audit.measurements}
        for model in dict.fromkeys([*one.audit.audits, *noted]):
            note = noted.get(model)
            line: dict[str, object] = {"subject": one.notes.subject, "seed": one.notes.seed, "model": model}
            if note:
                line |= note.model_dump(include={"fraction", "control", "changed", "seconds", "failed"})
                line |= {"model": note.name, "place": note.place}
            if note and note.failed:
                writer.writerow(line)
                continue
            audit = one.audit.audits[model]
            for finding in audit.findings:
                band = bands[finding.auditor]
                line |= finding.model_dump(include={"auditor", "role", "value", "counted", "inside"})
                line |= {"verdict": audit.verdict, "sd_beyond_gold": finding.distance}
                line |= {"gold_mean": band.mean, "band_edge": band.edge} if band else {}
                writer.writerow(line)
    return text.getvalue()


TIDY = (
    "subject", "seed", "model", "place", "fraction", "control", "changed", "seconds", "verdict", "auditor", "role",
    "value", "gold_mean", "band_edge", "sd_beyond_gold", "counted", "inside", "failed",
)  # fmt: skip


def verdicts(row: Row) -> str:
    """Count a row's verdicts.

    Args:
        row: The row.

    Returns:
        E.g. "hidden 2x, erased 1x", and why there are fewer.
    """
    n = len(row.verdicts) + len(row.failed)
    said = [f"{verdict} {k}x" if n > 1 else verdict for verdict, k in Counter(row.verdicts).most_common()]
    said += [f"failed {k}x: {why}" if n > 1 else f"failed: {why}" for why, k in Counter(row.failed).items()]
    return ", ".join(said)


def where(row: Row) -> str:
    """Say what a row might change.

    Args:
        row: The row.

    Returns:
        Its place; what might have changed everything and did not says how much it did.
    """
    little = row.where == "all" and row.changed is not None and row.changed < MOST
    return f"all (changed {100 * (row.changed or 0):.2g}%)" if little else row.where


def markdown(found: Comparison) -> str:
    """Write the table for people.

    Args:
        found: The comparison.

    Returns:
        A Markdown table: mean +- sd over subjects and seeds, * where some put the value outside the gold band.
    """
    auditors = [a for a in COLUMNS if a in found.rows[0].mean]
    head = ["model", "may change", *(COLUMNS[a] for a in auditors), "auditors outside", "verdict"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in found.rows:
        cells = [row.name, where(row)]
        for auditor in auditors:
            star = "*" if row.outside.get(auditor) else ""
            cells.append(f"{row.mean[auditor]:.3g} ± {row.sd[auditor]:.2g}{star}" if auditor in row.mean else "")
        cells += [f"{row.beyond:.1f}" if row.verdicts else "", verdicts(row)]
        lines.append("| " + " | ".join(cells) + " |")
    never = "twins" if any(row.name == TWINS_MEAN for row in found.rows) else "golds"
    one = never.removesuffix("s")
    note = (
        f"{found.subject}: mean ± sd over {counts(found)}, {found.golds} {never} each; {one}: sd among {never}. "
        f"* outside the {one} band at least once."
    )
    return "\n".join([*lines, "", note, ""])


def counts(found: Comparison) -> str:
    """Say how many subjects and seeds there are.

    Args:
        found: The comparison.

    Returns:
        E.g. "10 subjects x 3 seeds (0, 1, 2)".
    """
    seeds = f"{len(found.seeds)} seed{'s' if len(found.seeds) > 1 else ''} ({', '.join(map(str, found.seeds))})"
    return seeds if len(found.subjects) == 1 else f"{len(found.subjects)} subjects x {seeds}"


COLUMNS = {
    "accuracy on the forgotten": "forgotten",
    "accuracy on the rest": "rest",
    "5-shot probe, hidden 1": "5-shot 1",
    "5-shot probe, hidden 2": "5-shot 2",
    "5-shot probe, hidden 3": "5-shot 3",
    "full probe, outputs": "full probe, outputs",
    "CKA to gold, hidden 1": "CKA 1",
    "CKA to gold, hidden 2": "CKA 2",
    "CKA to gold, hidden 3": "CKA 3",
    "distance to gold": "distance",
    "over-forgetting": "loss",
    "relearning": "relearn",
    "relearning, fresh output": "relearn, fresh output",
    "right answer, facts shown to the method": "shown",
    "right answer, facts held out": "held out",
    "right answer ranked first": "first",
    "beside a stranger, facts held out": "held out, beside a stranger",
    "strongest wording": "strongest wording",
    "asked the other way round": "reverse",
    "logit lens, best layer": "lens",
    "4 other facts in the prompt": "in context",
    "extraction strength": "extraction",
    "weights rounded to 4 bits, groups of 32": "4 bits",
    "soft prompt trained on other facts": "soft prompt",
    "after tuning on unrelated text": "benign",
    "relearn some facts, test others": "relearn",
    "right answer, kept facts": "kept facts",
    "loss on plain text": "text loss",
}
