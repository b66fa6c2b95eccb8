"""The explorer's page for language models in a real browser, on a tiny Llama with an edit made by hand."""

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from facts_explored import explored
from playwright.sync_api import Page, Route, expect
from small_models import small_llama
from torch import nn

from figures.explorer.app import serving
from figures.explorer.facts_html import change_in_words, shown
from figures.explorer.facts_model import answer_probability, ask, continued, decoded, question
from figures.explorer.facts_page import SLID
from figures.explorer.facts_pair import Pair, open_pair
from figures.words import percent

PROMPT, ANSWER = "Paris is the capital of", "France"
WAIT = 60_000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("facts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YESTERDAY_CACHE", str(folder / "cache"))
        yield explored(folder, small_llama)


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    with serving(run) as found:
        yield found


@pytest.fixture(scope="module")
def pair(run: Path) -> Pair:
    return open_pair(run)


def asked(page: Page, prompt: str, answer: str) -> None:
    page.locator("#facts-prompt").get_by_role("textbox").fill(prompt)
    page.locator("#facts-answer").get_by_role("textbox").fill(answer)
    page.locator("#facts-ask").click()


@pytest.fixture
def opened(page: Page, address: str) -> Page:
    """The page when the first prompt of the bank has been answered in all panels."""
    page.set_default_timeout(WAIT)
    expect.set_options(timeout=WAIT)
    page.goto(address)
    expect(page.locator("#facts-faded svg")).to_be_visible()
    return page


def test_nothing_is_fetched_from_elsewhere(page: Page, address: str) -> None:
    wanted: list[str] = []
    page.on("request", lambda request: wanted.append(request.url))
    page.goto(address)
    expect(page.locator("#facts-faded svg")).to_be_visible(timeout=WAIT)
    assert wanted
    assert [url for url in wanted if not url.startswith((address, "data:", "blob:"))] == []


def test_both_models_answer_and_every_token_has_its_number(opened: Page, pair: Pair) -> None:
    asked(opened, PROMPT, ANSWER)
    told = ask(pair, question(pair, PROMPT, ANSWER))
    for name, one in zip(("original", "edited"), told, strict=True):
        card = opened.locator(f"#facts-answers .card.{name}")
        expect(card.locator(".toks")).to_contain_text(PROMPT)
        tokens = card.locator(".tok")
        expect(tokens).to_have_count(len(one.tokens))
        tips = [token.get_attribute("data-tip") for token in tokens.all()]
        assert tips == [change_in_words(old, new) for old, new in zip(one.before, one.after, strict=True)]
        expect(card.locator(".tok.asked")).to_have_count(one.start)
    colours = opened.locator("#facts-answers .tint").evaluate_all(
        "all => all.map(one => getComputedStyle(one).backgroundColor)"
    )
    assert len(set(colours)) > 3
    token = opened.locator("#facts-answers .tok").nth(2)
    hidden = token.evaluate("one => getComputedStyle(one, '::after').content")
    token.focus()
    assert (hidden, token.evaluate("one => getComputedStyle(one, '::after').content")) == (
        "none", f'"{token.get_attribute("data-tip")}"',
    )  # fmt: skip
    expect(opened.locator("#facts-candidates tbody tr")).to_have_count(8)
    expect(opened.locator("#facts-lens tbody th")).to_have_text(["block 2", "block 1", "block 0", "embedding"])
    expect(opened.locator("#facts-lens figcaption")).to_contain_text(ANSWER)


def test_the_edit_is_turned_down_until_the_original_speaks(opened: Page, pair: Pair) -> None:
    asked(opened, PROMPT, ANSWER)
    now = question(pair, PROMPT, ANSWER)
    panel, said = opened.locator("#facts-faded .card"), opened.locator("#facts-faded .card .toks b")

    def says(model: nn.Module) -> str:
        ids = continued(model, now.ids, pair.tokenizer.eos_token_id, SLID)
        return unescape(shown("".join(decoded(pair, ids))))

    expect(panel).to_contain_text("at strength 1.00")
    expect(panel).to_contain_text(f"“{ANSWER}”: {percent(answer_probability(pair.at(1), now))}")
    expect(said).to_have_text(says(pair.edited))
    ring = opened.locator("#facts-faded circle.mark")
    right = float(ring.get_attribute("cx") or 0)
    slider = opened.locator("#facts-strength input[type=range]")
    slider.focus()
    slider.press("Home")
    expect(panel).to_contain_text("at strength 0.00")
    expect(panel).to_contain_text(f"“{ANSWER}”: {percent(answer_probability(pair.original, now))}")
    expect(said).to_have_text(says(pair.original))
    assert float(ring.get_attribute("cx") or 0) < right - 100
    slider.press("ArrowRight")
    expect(panel).to_contain_text("at strength 0.05")


def test_a_neuron_shows_where_it_fires_what_it_pushes_and_what_hangs_on_it(opened: Page) -> None:
    choices = opened.locator("#facts-neurons input[type=radio]")
    expect(choices).to_have_count(4)
    opened.locator("#facts-neurons label").filter(has_text=re.compile("L2")).first.click()
    expect(opened.locator("#facts-neuron .fired li")).to_have_count(6)
    expect(opened.locator("#facts-neuron .words li")).to_have_count(16)
    rows = opened.locator("#facts-ablation tbody tr")
    expect(rows).to_have_count(4)
    expect(rows.first).to_contain_text("this prompt")
    expect(opened.locator("#facts-ablation thead")).to_contain_text("without all 4")


def test_a_late_request_from_before_the_choice_wipes_nothing(page: Page, address: str) -> None:
    page.set_default_timeout(WAIT)
    expect.set_options(timeout=WAIT)
    held: list[Route] = []

    def hold_first(route: Route) -> None:
        # Neuron and question: the last step of the first answer, with no neuron chosen yet.
        if not held and (route.request.post_data_json or {}).get("data") == [None, None]:
            held.append(route)
        else:
            route.continue_()

    page.route("**/queue/join*", hold_first)
    page.goto(address)
    expect(page.locator("#facts-faded .toks b")).to_be_visible()
    for _ in range(WAIT // 50):
        if not held:
            page.wait_for_timeout(50)
    assert held, "the first answer's last step never came"
    page.locator("#facts-neurons label").first.click()
    rows = page.locator("#facts-ablation tbody tr")
    expect(rows).to_have_count(4)
    held[0].continue_()
    # Answered after it, and elsewhere on the page.
    page.locator("#facts-strength input[type=range]").press("Home")
    expect(page.locator("#facts-faded .card")).to_contain_text("at strength 0.00")
    expect(page.locator("#facts-faded .toks b")).not_to_have_text("…")
    expect(page.locator("#facts-neuron .fired li")).to_have_count(6)
    expect(rows).to_have_count(4)


def test_a_prompt_of_the_bank_is_asked_when_it_is_chosen(opened: Page) -> None:
    box = opened.locator("#facts-example").get_by_role("combobox")
    box.click()
    opened.get_by_role("option").filter(has_text="must stay").first.click()
    prompt = opened.locator("#facts-prompt").get_by_role("textbox")
    expect(prompt).not_to_have_value(re.compile("Beatles"))
    expect(opened.locator("#facts-answers .card.original .toks")).to_contain_text(prompt.input_value())


def test_what_cannot_be_asked_is_said_on_the_page(opened: Page) -> None:
    asked(opened, " ", "")
    expect(opened.get_by_text("type some words")).to_be_visible()


def test_typed_marks_are_text(opened: Page) -> None:
    # Marks of HTML, of the script's own strings, and of the templates that gradio makes pages from.
    marks = "<img src=x onerror=alert(1)> ${alert(1)} {{value}} is"
    asked(opened, marks, "<b>bold</b>")
    expect(opened.locator("#facts-answers .card.original .toks")).to_contain_text(marks)
    expect(opened.locator("#facts-faded")).to_contain_text("“<b>bold</b>”")
    asked(opened, marks, "word " * 200)
    expect(opened.locator(".toast-body")).to_contain_text("<img src=x onerror=alert(1)>")
    assert opened.locator("img[src=x]").count() == 0


def test_a_phone_shows_it_without_scrolling_sideways(opened: Page) -> None:
    opened.set_viewport_size({"width": 390, "height": 800})
    asked(opened, "The Beatles " * 8, "unbelievably-long-words-of-an-answer-without-a-single-blank")
    expect(opened.locator("#facts-faded")).to_contain_text("unbelievably")
    opened.locator("#facts-neurons label").first.click()
    expect(opened.locator("#facts-ablation tbody tr")).to_have_count(4)
    opened.locator("#facts-answers .tok").nth(4).focus()
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
