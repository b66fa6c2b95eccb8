"""The table: what it says of methods that changed little, and of auditors that some seed lacks."""

from analysis.audit.facts.case import FactReading
from analysis.audit.facts.verdict import audit_facts
from analysis.audit.report import AuditReport
from analysis.audit.verdict import fact_words
from unlearn.comparison import TWINS_MEAN, Comparison, Row, markdown, row_of

TWINS = ("twin-0", "twin-1", "twin-2")
WHAT = "right answer, facts held out"


def report(*auditors: str) -> AuditReport:
    def readings(mean: float) -> list[FactReading]:
        return [
            FactReading(auditor=name, group=name, role="behaviour", unit="share", facts=("a", "b"), values=(mean, mean))
            for name in auditors
        ]

    cases = {"original": readings(0.9), **{name: readings(0.2 + 0.01 * i) for i, name in enumerate(TWINS)}}
    return audit_facts("b", "the Beatles", cases, TWINS, fact_words("the Beatles", "twins"))


def test_an_auditor_that_one_seed_lacks_is_left_out_of_every_row() -> None:
    reports = [report(WHAT, "probe"), report(WHAT)]
    for name in ("original", TWINS_MEAN):
        assert set(row_of(name, "", [name], reports, [{}, {}]).mean) == {WHAT}


def test_a_method_that_changed_little_of_all_says_so() -> None:
    def row(name: str, where: str, changed: float | None) -> Row:
        return Row(name=name, where=where, changed=changed, seconds=None, mean={WHAT: 0.5}, sd={WHAT: 0.1},
                   verdicts=["hidden"], outside={})  # fmt: skip

    rows = [row("original", "", None), row("ssd", "all", 0.0005), row("rmu", "all", 0.0), row("npo", "all", 0.99)]
    rows.append(row("npo", "1% gradient-ratio", 0.01))
    said = markdown(Comparison(subject="b", seeds=[0], golds=3, rows=rows, failed={})).splitlines()[2:7]
    places = [line.split("|")[2].strip() for line in said]
    assert places == ["", "all (changed 0.05%)", "all (changed 0%)", "all", "1% gradient-ratio"]
