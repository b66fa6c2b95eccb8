"""The explorer's page for classifiers in a real browser, on a small run on digits."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from classes_explored import coloured_images, explored
from playwright.sync_api import Browser, Locator, Page, expect

from figures.explorer.app import serving
from figures.explorer.class_model import open_classes
from figures.explorer.class_units import MEASURES, look

WAIT = 60_000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explored(tmp_path_factory.mktemp("runs") / "digit-6", epochs=4)


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    with serving(run) as found:
        yield found


@pytest.fixture
def opened(page: Page, address: str) -> Page:
    page.set_default_timeout(WAIT)
    expect.set_options(timeout=WAIT)
    page.goto(address)
    for panel in ("#answers table", "#pixels img >> nth=2", "#fading svg", "#partly table", "#neuron table"):
        expect(page.locator(panel)).to_be_visible()
    return page


def heads(page: Page) -> list[str]:
    return page.locator("#answers thead strong").all_inner_texts()


def shares(panel: Locator, column: int = 0) -> list[float]:
    """Probabilities of a table's column, read off the bars."""
    bars = panel.locator(f"tbody tr > td:nth-of-type({column + 1}) b")
    return [float(re.findall(r"width: ?([\d.]+)%", one.get_attribute("style") or "")[0]) for one in bars.all()]


def stroke(page: Page, points: list[tuple[float, float]]) -> None:
    page.locator("#pad canvas").scroll_into_view_if_needed()
    box = page.locator("#pad canvas").bounding_box()
    assert box is not None
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places:
        page.mouse.move(*place)
    page.mouse.up()


def arc(x: float, y: float, wide: float, high: float, start: float, end: float) -> list[tuple[float, float]]:
    turns = [start + (end - start) * i / 24 for i in range(25)]
    return [(x + wide * math.cos(2 * math.pi * t), y + high * math.sin(2 * math.pi * t)) for t in turns]


def choose(page: Page, label: str, option: str) -> None:
    page.get_by_label(label).click()
    page.get_by_role("option", name=option, exact=True).click()
    expect(page.get_by_role("listbox")).to_have_count(0)


ONE = [(0.5, 0.1 + 0.03 * i) for i in range(27)]
ZERO = arc(0.5, 0.5, 0.22, 0.36, 0, 1)


def test_nothing_is_fetched_from_elsewhere(page: Page, address: str) -> None:
    wanted: list[str] = []
    page.on("request", lambda request: wanted.append(request.url))
    page.goto(address)
    expect(page.locator("#neuron table")).to_be_visible(timeout=WAIT)
    assert address.startswith("http://127.0.0.1:")
    assert len(wanted) > 10
    assert [url for url in wanted if not url.startswith((address, "data:", "blob:"))] == []


def test_the_models_answer_what_is_drawn_with_the_mouse(opened: Page) -> None:
    before = shares(opened.locator("#answers"))
    stroke(opened, ONE)
    expect(opened.locator("#answers")).to_contain_text("your drawing")
    expect(opened.locator("#answers thead strong")).to_have_text(["1", "1", "1"])
    assert shares(opened.locator("#answers")) != before
    expect(opened.locator("#pixels")).to_contain_text(re.compile("original: toward 1"))
    opened.get_by_role("button", name="Clear").click()
    stroke(opened, ZERO)
    expect(opened.locator("#answers thead strong")).to_have_text(["0", "0", "0"])


def test_what_is_rubbed_out_is_gone(opened: Page) -> None:
    stroke(opened, ZERO)
    expect(opened.locator("#answers thead strong").first).to_have_text("0")
    stroke(opened, ONE)
    expect(opened.locator("#answers thead strong").first).not_to_have_text("0")
    opened.get_by_role("button", name="Rub out").click()
    stroke(opened, ONE[5:-5])
    expect(opened.locator("#answers thead strong").first).to_have_text("0")


def test_a_forgotten_digit_is_answered_by_the_original_alone(opened: Page, run: Path) -> None:
    found = open_classes(run)
    sixes = (found.subject.test.labels == 6).nonzero().flatten().tolist()
    expect(opened.locator("#answers")).to_contain_text(f'test image {sixes[0]}, a "6"')
    opened.get_by_role("button", name="Next test image").click()
    expect(opened.locator("#answers")).to_contain_text(f'test image {sixes[1]}, a "6"')
    original, edited, gold = heads(opened)
    assert original == "6"
    assert edited != "6"
    assert gold != "6"
    choose(opened, "Explain", "6")
    expect(opened.locator("#pixels figcaption")).to_have_text([re.compile("toward 6")] * 3)
    choose(opened, "Class", "7")
    expect(opened.locator("#answers")).to_contain_text('a "7"')


def test_knowledge_fades_as_the_slider_moves(opened: Page) -> None:
    slider = opened.locator("#strength input[type=range]")
    slider.focus()
    seen = []
    for key, strength in (("Home", "0.00"), ("End", "1.00")):
        slider.press(key)
        expect(opened.locator("#partly thead")).to_contain_text(f"strength {strength}")
        seen.append(shares(opened.locator("#partly")))
        x = float(opened.locator("#fading line.mark").get_attribute("x1") or 0)
        assert x == pytest.approx(62 if key == "Home" else 428, abs=1)
    assert seen[0] == pytest.approx(shares(opened.locator("#answers"), 0), abs=0.11)
    assert seen[1] == pytest.approx(shares(opened.locator("#answers"), 1), abs=0.11)
    assert seen[0][6] > 50
    assert seen[1][6] < 5
    slider.press("ArrowLeft")
    expect(opened.locator("#partly thead")).to_contain_text("strength 0.99")


def test_a_clicked_neuron_shows_what_it_does(opened: Page, run: Path) -> None:
    found = open_classes(run)
    strongest = int(MEASURES["how much the edit changed it"].values(found, "hidden2").abs().argmax())
    expect(opened.locator("#neuron h3")).to_have_text(f"Neuron {strongest} of hidden2")
    chosen = (strongest + 5) % 64
    opened.locator(f"#neurons [data-unit='{chosen}']").click()
    expect(opened.locator("#neuron h3")).to_have_text(f"Neuron {chosen} of hidden2")
    expect(opened.locator("#neurons [aria-pressed=true]")).to_have_text(str(chosen))
    expect(opened.locator("#neuron img")).to_have_count(16)
    row = opened.locator("#neuron tbody tr").nth(4).locator("td")
    for at, model in enumerate((found.original, found.edited)):
        seen = look(found, "hidden2", chosen, model)
        expect(row.nth(at)).to_have_text(f"{float(seen.means[4]):.3g}")
        expect(row.nth(2 + at)).to_have_text(f"{100 * seen.accuracies[4]:.0f} → {100 * seen.without[4]:.0f}%")
    choose(opened, "Layer", "head")
    expect(opened.locator("#neurons button")).to_have_count(10)
    choose(opened, "Colour", "how much it spoke for what was forgotten")
    expect(opened.locator("#neurons .note")).to_contain_text("logits")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_in_light_and_dark(browser: Browser, address: str, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)
    page = context.new_page()
    page.goto(address)
    expect(page.locator("#neuron table")).to_be_visible(timeout=WAIT)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ground, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    light = [sum(map(float, re.findall(r"[\d.]+", one)[:3])) for one in (ground, ink)]
    assert (light[0] > light[1] + 300) if scheme == "light" else (light[0] + 300 < light[1])
    fonts = page.evaluate("[...document.fonts].filter(one => one.status === 'loaded').map(one => one.family)")
    assert fonts == []
    context.close()


def test_images_that_nobody_can_draw_are_chosen(page: Page, tmp_path: Path) -> None:
    data = str(coloured_images(tmp_path / "images"))
    folder = explored(tmp_path / "run", golds=0, data=data, forget=("square",), model="cnn")
    with serving(folder) as address:
        page.goto(address)
        expect(page.locator("#answers")).to_contain_text('a "square"', timeout=WAIT)
        expect(page.locator("#pad canvas")).to_have_count(0)
        expect(page.locator("#answers thead th")).to_have_count(2)
        expect(page.locator("#neurons button")).to_have_count(32, timeout=WAIT)
