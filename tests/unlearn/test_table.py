"""The table: what a row says of several seeds, of failures, of methods that changed little; ranks and the tidy file."""

import csv
import io
import math
from statistics import fmean

import pytest

from analysis.audit.facts.case import FactReading
from analysis.audit.facts.verdict import audit_facts
from analysis.audit.report import AuditReport
from analysis.audit.verdict import fact_words
from unlearn.cells import CellNote, Outcome, SeedNotes
from unlearn.leaderboard import leaderboard, ranked
from unlearn.table import FARTHEST, TWINS_MEAN, Comparison, Row, distance, markdown, tabulate, tidy

TWINS = ("twin-0", "twin-1", "twin-2")
WHAT, KEPT = "right answer, facts held out", "right answer, kept facts"


def report(auditors: tuple[str, ...] = (WHAT,), **cells: float) -> AuditReport:
    def readings(mean: float) -> list[FactReading]:
        return [
            FactReading(auditor=name, group=name, role="behaviour", unit="share", facts=("a", "b"), values=(mean, mean))
            for name in auditors
        ]

    cases = {"original": readings(0.9), **{name: readings(0.2 + 0.01 * i) for i, name in enumerate(TWINS)}}
    cases |= {name: readings(value) for name, value in cells.items()}
    return audit_facts("b", "the Beatles", cases, TWINS, fact_words("the Beatles", "twins"))


def note(key: str, **more: object) -> CellNote:
    facts = {"changed": 0.5, "seconds": 3.0, "place": "none", "where": "all", "fraction": None, "control": False}
    return CellNote.model_validate({"key": key, "name": key, **facts, **more})


def outcome(audit: AuditReport, *cells: CellNote, seed: int = 0, retraining: float | None = None) -> Outcome:
    notes = SeedNotes(subject="beatles", seed=seed, never=TWINS_MEAN, retraining=retraining, cells=list(cells))
    return Outcome(notes, audit)


def test_an_auditor_that_one_seed_lacks_is_left_out_of_every_row() -> None:
    found = tabulate([outcome(report((WHAT, "probe"))), outcome(report(), seed=1)])
    assert [row.name for row in found.rows] == ["original", TWINS_MEAN]
    assert all(set(row.mean) == {WHAT} for row in found.rows)


def test_rows_rank_and_average_over_seeds() -> None:
    seeds = [
        outcome(report(near=0.22, far=0.8), note("near"), note("far", seconds=5.0), retraining=10.0),
        outcome(report(near=0.25, far=0.23), note("near", changed=0.1), note("far"), seed=1, retraining=2.0),
    ]
    rows = {row.name: row for row in tabulate(seeds).rows}
    assert (rows["near"].ranks, rows["far"].ranks) == ((1.0, 2.0), (2.0, 1.0))
    assert rows["near"].changed == pytest.approx(0.3)
    assert (rows["near"].cost, rows["far"].cost) == (pytest.approx((0.3 + 1.5) / 2), pytest.approx((0.5 + 1.5) / 2))
    assert rows["near"].mean[WHAT] == pytest.approx((0.22 + 0.25) / 2)
    assert rows["original"].ranks == ()
    assert rows["original"].verdicts == ["remembered", "remembered"]


def test_distance_is_the_mean_of_what_counts_each_at_most_ten() -> None:
    audit = report(cell=0.23)
    band = audit.measurements[0].band
    far = [f.distance for f in audit.audits["cell"].findings if f.counted]
    assert band is not None
    assert distance(audit, "cell") == pytest.approx(fmean(max(0.0, d) for d in far))
    assert 0 < distance(audit, "cell") < FARTHEST
    assert distance(audit, "original") == FARTHEST
    assert distance(report(cell=0.1), "cell") == 0.0


def test_what_fails_in_one_seed_stays_with_the_reason_and_comes_last() -> None:
    broken = note("broken", changed=None, seconds=None, failed="diverged after 3 steps")
    seeds = [
        outcome(report(good=0.8, broken=0.21), note("good"), note("broken")),
        outcome(report(good=0.8), note("good"), broken, seed=1),
    ]
    found = tabulate(seeds)
    rows = {row.name: row for row in found.rows}
    assert rows["broken"].failed == ("diverged after 3 steps",)
    assert len(rows["broken"].verdicts) == 1
    assert rows["broken"].ranks == (1.0, 2.0)
    line = next(line for line in markdown(found).splitlines() if line.startswith("| broken"))
    assert "erased 1x, failed 1x: diverged after 3 steps" in line
    assert [line for line in leaderboard(found).splitlines() if line.startswith("| 1 | broken")]
    lines = list(csv.DictReader(io.StringIO(tidy(seeds))))
    assert [one["failed"] for one in lines if one["model"] == "broken"] == ["", "diverged after 3 steps"]


def test_what_fails_everywhere_has_a_row_too() -> None:
    cell = note("broken", changed=None, seconds=None, failed="no")
    found = tabulate([outcome(report(), cell), outcome(report(), cell, seed=1)])
    row = found.rows[-1]
    assert (row.name, row.failed, row.verdicts, row.mean, row.changed) == ("broken", ("no", "no"), [], {}, None)
    assert "failed 2x: no" in markdown(found)
    assert [one.name for one in ranked(found)] == ["broken"]
    assert Comparison.model_validate_json(found.model_dump_json()) == found


def test_the_tidy_file_has_every_number() -> None:
    seeds = [outcome(report((WHAT, KEPT), cell=0.3 + 0.1 * i), note("cell"), seed=i) for i in range(2)]
    lines = list(csv.DictReader(io.StringIO(tidy(seeds))))
    assert len(lines) == 2 * 2 * 2  # seeds, models, auditors
    mine = next(one for one in lines if (one["model"], one["seed"], one["auditor"]) == ("cell", "1", WHAT))
    assert float(mine["value"]) == pytest.approx(0.4)
    assert float(mine["gold_mean"]) == pytest.approx(seeds[1].audit.measurements[0].band.mean)  # type: ignore[union-attr]
    assert (mine["place"], mine["fraction"], mine["control"]) == ("none", "", "False")
    assert math.isfinite(float(mine["sd_beyond_gold"]))


def test_a_method_that_changed_little_of_all_says_so() -> None:
    def row(name: str, where: str, changed: float | None) -> Row:
        return Row(name=name, where=where, changed=changed, seconds=None, mean={WHAT: 0.5}, sd={WHAT: 0.1},
                   verdicts=["hidden"], outside={})  # fmt: skip

    rows = [row("original", "", None), row("ssd", "all", 0.0005), row("rmu", "all", 0.0), row("npo", "all", 0.99)]
    rows.append(row("npo", "1% gradient-ratio", 0.01))
    said = markdown(Comparison(subjects=["b"], seeds=[0], golds=3, rows=rows)).splitlines()[2:7]
    places = [line.split("|")[2].strip() for line in said]
    assert places == ["", "all (changed 0.05%)", "all (changed 0%)", "all", "1% gradient-ratio"]


def test_fresh_golds_are_one_row_and_stand_below_the_leaderboard() -> None:
    audit = report(cell=0.8).model_copy()
    audits = audit.audits | {f"fresh gold {i}": audit.audits["cell"] for i in range(2)}
    values = [m.model_copy(update={"values": m.values | {f"fresh gold {i}": 0.2 for i in range(2)}})
              for m in audit.measurements]  # fmt: skip
    found = tabulate([outcome(audit.model_copy(update={"audits": audits, "measurements": values}), note("cell"))])
    assert [row.name for row in found.rows] == ["original", TWINS_MEAN, "fresh gold", "cell"]
    assert len(found.rows[2].verdicts) == 2
    assert leaderboard(found).splitlines()[3].startswith("|  | fresh gold |")
