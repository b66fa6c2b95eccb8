"""The report page in a real browser: it opens from a file, needs nothing else, and can be read everywhere."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fact_runs import make_fact_run
from figure_runs import make_run
from playwright.sync_api import Browser, Page, expect

from figures.render import render
from figures.report.build import write_report

FIGURES = {"digit-6": ["overview", "bands", "attribution"], "beatles": ["overview", "fact_bands"]}


def finished(folder: Path) -> Path:
    """What a finished run says of itself, filled in for a folder that a figure test's helper made."""
    document = json.loads((folder / "run.json").read_text())
    audit = json.loads((folder / "audit.json").read_text())["audits"]["edited"]
    document |= {"name": folder.name, "verdict": audit["verdict"], "sentence": audit["sentence"]}
    document |= {"changed": 50, "total": 1000, "versions": {"python": "3.11"}}
    document["config"] |= {
        "subject": {"forget": ["6"], "data": "mnist-5k", "slot": "own"},
        "bank": "beatles",
        "model": "smollm2",
        "measure": "none",
        "method": None,
    }
    document["stages"] = {"locate": {"seconds": 61.5, "peak_mb": 1234, "facts": {}}}
    (folder / "run.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    made = [finished(make_run(folder / "digit-6")), finished(make_fact_run(folder / "beatles"))]
    for one in made:
        render(one, FIGURES[one.name])
    return made


@pytest.fixture(scope="module")
def pages(runs: list[Path]) -> dict[str, str]:
    """Addresses of the reports: of each run, and of both on one page."""
    found = {one.name: write_report([one]) for one in runs} | {"both": write_report(runs)}
    return {name: path.as_uri() for name, path in found.items()}


@pytest.fixture(params=["digit-6", "beatles", "both"])
def address(request: pytest.FixtureRequest, pages: dict[str, str]) -> str:
    assert pages[request.param].startswith("file://")
    return pages[request.param]


@pytest.fixture
def phone(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    yield context.new_page()
    context.close()


def light(page: Page, what: str) -> float:
    """How light a colour of the page is, 0 to 1."""
    colour = page.evaluate(f"getComputedStyle(document.body).{what}")
    return sum(float(part) for part in re.findall(r"[\d.]+", colour)[:3]) / (3 * 255)


def test_the_file_alone_is_enough(page: Page, address: str) -> None:
    wanted: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: wanted.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(address)
    expect(page.locator("h1").first).to_be_visible()
    expect(page.locator("figure svg").first).to_be_visible()
    assert [url for url in wanted if not url.startswith("data:")] == [address]
    assert said == []


def test_every_drawing_says_what_it_shows(page: Page, address: str) -> None:
    page.goto(address)
    drawings = page.locator("svg:not([aria-hidden=true], [aria-hidden=true] svg)")
    names = set()
    for drawing in drawings.all():
        expect(drawing).to_have_accessible_name(re.compile(r"\w{3}"))
        expect(drawing).to_have_role("img")
        names.add(drawing.get_attribute("aria-labelledby"))
    assert len(names) == drawings.count() >= 2
    # What is drawn for the eye alone stands in a row that says the same in words.
    rows = page.locator("tr:has(svg[aria-hidden=true])")
    assert rows.count() > 5
    for row in rows.all():
        expect(row.locator("td").last).to_have_text(re.compile("^(yes|no)$"))


def test_a_phone_needs_no_sideways_scroll(phone: Page, address: str) -> None:
    phone.goto(address)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    # Wide drawings and tables scroll in a frame of their own instead.
    boxes = phone.locator(".drawing, .wide").evaluate_all("all => all.map(one => one.getBoundingClientRect().right)")
    assert boxes
    assert max(boxes) <= 390
    small = phone.locator("p").evaluate_all("all => all.map(one => parseFloat(getComputedStyle(one).fontSize))")
    assert min(small) >= 12


def test_light_and_dark_are_both_readable(page: Page, address: str) -> None:
    page.goto(address)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        ground, ink = light(page, "backgroundColor"), light(page, "color")
        assert (ground > 0.9 and ink < 0.3) if scheme == "light" else (ground < 0.2 and ink > 0.8)
        # The drawings are black on white in both.
        frames = page.locator(".drawing").evaluate_all("all => all.map(one => getComputedStyle(one).backgroundColor)")
        assert set(frames) == {"rgb(255, 255, 255)"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_paper_is_white_and_nothing_is_cut_off(page: Page, pages: dict[str, str], scheme: str) -> None:
    page.set_viewport_size({"width": 718, "height": 1000})
    page.goto(pages["both"])
    page.emulate_media(media="print", color_scheme=scheme)
    assert light(page, "backgroundColor") > 0.95
    assert light(page, "color") < 0.3
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    cut = "all => all.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.className)"
    assert page.locator(".drawing, .wide").evaluate_all(cut) == []
    assert len(page.pdf()) > 10_000


def test_all_links_inside_lead_somewhere(page: Page, address: str) -> None:
    page.goto(address)
    links = page.locator("a").evaluate_all("all => all.map(one => one.getAttribute('href'))")
    assert [link for link in links if not link.startswith("#")] == []
    for link in links:
        assert page.locator(f"[id='{link[1:]}']").count() == 1, link
    ids = page.locator("[id]").evaluate_all("all => all.map(one => one.id)")
    assert len(ids) == len(set(ids))
    used = page.locator("use").evaluate_all("all => all.map(one => one.getAttribute('xlink:href') || one.href.baseVal)")
    assert {one[1:] for one in used} <= set(ids)


def test_several_runs_stand_side_by_side(page: Page, pages: dict[str, str]) -> None:
    page.goto(pages["both"])
    expect(page.locator("article")).to_have_count(2)
    for name in ("digit-6", "beatles"):
        link = page.get_by_role("link", name=re.compile(f"{name}$"))
        link.click()
        target = page.locator(f"[id='{(link.get_attribute('href') or '')[1:]}']")
        expect(target).to_be_in_viewport()
        expect(
            page.get_by_role("row").filter(has=page.locator(f"a[href='{link.get_attribute('href')}']"))
        ).to_contain_text("hidden")
