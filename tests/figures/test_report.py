"""The report page: self-contained, its ids its own, its numbers those of the audit."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fact_runs import make_fact_run
from figure_runs import make_run

from analysis.errors import UserError
from figures.render import render
from figures.report.build import write_report
from figures.report.content import own_ids, read_report


class Page(HTMLParser):
    """Collects ids, references, table cells and text of a page, and checks that every element is closed."""

    VOID = ("meta", "link", "br", "hr", "img", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self._note(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def _note(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in {"href", "xlink:href", "src"}:
                self.references.append(str(value))
            self.references += [f"#{found}" for found in re.findall(r"url\(#([^)]+)\)", value or "")]
            if name == "aria-labelledby":
                self.references += [f"#{one}" for one in str(value).split()]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One run of each family, with some figures."""
    folder = tmp_path_factory.mktemp("runs")
    made = [make_run(folder / "digit-6"), make_fact_run(folder / "beatles")]
    render(made[0], ["overview", "bands"])
    render(made[1], ["fact_bands", "relearn"])
    for one in made:
        document = json.loads((one / "run.json").read_text())
        found = json.loads((one / "audit.json").read_text())["audits"]["edited"]
        document |= {"verdict": found["verdict"], "sentence": found["sentence"]}
        document |= {"name": one.name, "changed": 50, "total": 1000, "versions": {"python": "3.11"}}
        document["config"]["subject"] = {"forget": ["6"], "data": "mnist-5k", "slot": "own"}
        document["config"] |= {"bank": "beatles", "model": "smollm2", "measure": "none", "method": "<b>mine</b>"}
        document["stages"] = {"locate": {"seconds": 61.5, "peak_mb": 1234, "facts": {}}}
        (one / "run.json").write_text(json.dumps(document))
    return made


@pytest.mark.parametrize("which", [0, 1])
def test_a_page_says_what_the_audit_says(runs: list[Path], which: int) -> None:
    path = write_report([runs[which]])
    assert path == runs[which] / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    audit = json.loads((runs[which] / "audit.json").read_text())
    run = json.loads((runs[which] / "run.json").read_text())
    for part in run["sentence"].split(": ", 1):
        assert part in page.text
    assert "It changed 50 of 1,000 numbers (5.0%)." in page.text
    assert "<b>mine</b>" in page.text
    edited = {one["auditor"]: one for one in audit["audits"]["edited"]["findings"]}
    report = read_report(runs[which], "x")
    assert ("seed", "0") in report.settings
    counted = [m for m in audit["measurements"] if m["counted"] and m["auditor"] in edited]
    assert [line.auditor for line in report.counted] == [m["auditor"] for m in counted]
    for line, measurement in zip(report.counted, counted, strict=True):
        finding = edited[line.auditor]
        assert float(line.edited) == pytest.approx(finding["value"], rel=0.006)
        assert float(line.distance) == pytest.approx(finding["distance"], abs=0.051)
        assert line.inside == finding["inside"]
        edge, _, mine = line.at
        if abs(finding["distance"]) < 2.9 and 0 < edge < 100 and abs(mine - edge) > 0.01:
            assert (mine <= edge) == line.inside, measurement
        assert line.auditor in page.text
    for name, one in audit["audits"].items():
        if name != "edited":
            assert f"{name} {one['verdict']}" in page.text
    for one in audit["not_measured"]:
        assert " ".join(one.split()) in page.text
    assert "1 min 1 s in all, peak memory 1,234 MB" in page.text


def test_figures_stand_inside_with_their_descriptions(runs: list[Path]) -> None:
    report = read_report(runs[0], "x")
    assert report.overview is not None
    shown = [one.name for chapter in report.chapters for one in chapter.pictures]
    assert shown == ["bands"]
    text = write_report([runs[0]]).read_text(encoding="utf-8")
    assert text.count("<svg xmlns") == 2
    assert html.unescape(report.overview.alt) in html.unescape(text)


def test_several_runs_stand_in_one_page_that_needs_nothing_else(runs: list[Path], tmp_path: Path) -> None:
    out = write_report([*runs, runs[0]], tmp_path / "all.html")
    page = Page(out.read_text(encoding="utf-8"))
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))

    inside = [one for one in page.references if one.startswith("#")]
    assert [one[:40] for one in page.references if not one.startswith(("#", "data:image/png;base64,"))] == []
    assert {one[1:] for one in inside} <= set(page.ids)
    assert "@import" not in out.read_text()
    assert write_report(runs) == runs[0].parent / "report.html"


def test_ids_are_made_ones_own() -> None:
    svg = '<?xml?><svg aria-labelledby="a b"><g id="a"/><path id="b" clip-path="url(#c)"/><use xlink:href="#c"/></svg>'
    assert own_ids(svg, "x") == (
        '<svg aria-labelledby="x-a x-b"><g id="x-a"/><path id="x-b" clip-path="url(#x-c)"/>'
        '<use xlink:href="#x-c"/></svg>'
    )


def test_a_run_without_an_audit_says_how_to_finish_it(runs: list[Path], tmp_path: Path) -> None:
    document = json.loads((runs[0] / "run.json").read_text()) | {"verdict": None}
    (tmp_path / "run.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="no audit yet; finish it with: yesterday run digit-6"):
        read_report(tmp_path, "x")
    with pytest.raises(UserError):
        read_report(tmp_path / "nowhere", "x")
