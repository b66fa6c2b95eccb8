"""The HTML of the explorer's page for language models: what is said is text, and numbers stand where they belong."""

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from facts_explored import ANSWER, PROMPT, greedy, probability

from figures.explorer import facts_html
from figures.explorer.chart import Curve, chart, rounded_up
from figures.explorer.facts_model import (
    Candidate,
    Layer,
    Question,
    Told,
    ask,
    candidates,
    fading,
    lens,
    question,
)
from figures.explorer.facts_neurons import Ablation, Fired, Located, Neuron
from figures.explorer.facts_page import SLID, strengths_panels
from figures.explorer.facts_pair import Pair

BAD = '<img src=x onerror="alert(1)">'


def test_whatever_is_said_is_escaped(pair: Pair) -> None:
    told = Told((BAD, "&", BAD), 1, (None, -1.0, -2.0), (None, -3.0, -0.5))
    asked = replace(question(pair, PROMPT, ANSWER), prompt=BAD, answer=BAD)
    pages = [
        facts_html.asked_html((told, told)),
        facts_html.candidates_html([Candidate(BAD, 0.1, 0.2)]),
        facts_html.lens_html(asked, [Layer(0.1, 5, BAD)] * 3, [Layer(0.2, 1, BAD)] * 3),
        facts_html.strength_html(asked, (0.0, 1.0), (0.5, 0.1), 0.5, 0.2, BAD),
        facts_html.fired_html(Neuron(1, 2, 0.5), [Fired(BAD, (BAD,), (1.0,))], 3),
        facts_html.promoted_html([(BAD, 1.0)], [(BAD, -1.0)]),
        facts_html.ablated_html([Ablation(BAD, 3, 0.1, 0.2, 0.3)], 4),
        facts_html.token_span(BAD, BAD, 0.5, prompt=True),
        chart([0, 1], [Curve(BAD, [0, 1])], BAD, BAD, lambda _: BAD, [0], (0, 1)),
    ]
    for page in pages:
        assert "<img" not in page
        assert 'onerror="' not in page
        assert "&lt;img" in page


def test_colours_follow_the_change_and_numbers_stand_beside_them(pair: Pair, asked: Question) -> None:
    told = Told(
        ("A", " b", " c", " d"), 2, (None, math.log(0.5), math.log(0.1), -30.0), (None, math.log(0.25), -0.5, -30.0)
    )
    page = facts_html.told_html(told, "edited")
    spans = re.findall(
        r'class="tok( asked)?".*?data-tip="(.*?)".*?class="tint (\w+)" style="--much:(\d+)%">(.*?)<', page
    )
    assert [(bool(asked), text) for asked, _, _, _, text in spans] == [
        (True, "A"), (True, " b"), (False, " c"), (False, " d"),
    ]  # fmt: skip
    assert [tip for _, tip, *_ in spans][1] == "50.0% → 25.0% (-0.7 nats)"
    kinds = [kind for _, _, kind, _, _ in spans]
    much = [int(share) for _, _, _, share, _ in spans]
    assert kinds[1:3] == ["less", "more"]
    assert much[0] == much[3] == 0
    assert much[1] == round(65 * math.log(2) / 3)
    assert facts_html.tint(5) == facts_html.tint(1) != facts_html.tint(0.9)
    assert facts_html.tint(math.nan) == facts_html.tint(0)


def test_a_panel_says_the_strength_its_probability_and_the_words(pair: Pair, asked: Question) -> None:
    first, page = strengths_panels(pair, asked, fading(pair, asked), 0.0)
    for one in (first, page):
        assert "at strength 0.00" in one
        assert facts_html.percent(probability(pair.original, pair)) in one
    said = facts_html.shown(
        "".join(pair.tokenizer.decode([i]) for i in greedy(pair.original, pair, SLID)[len(asked.ids) :])
    )
    assert f"<b>{said}</b>" in page
    assert f"<b>{said}</b>" not in first


def test_charts_put_values_where_they_belong() -> None:
    drawn = chart(
        [0, 1, 2], [Curve("edited", [0.0, 0.5, 1.0])], "x", "alt", "{:g}".format, [0, 2], (0, 1), mark=(1, 0.5)
    )
    points = [tuple(map(float, one.split(","))) for one in re.findall(r'points="(.*?)"', drawn)[0].split()]
    assert points[0][0] < points[1][0] < points[2][0]
    assert points[1] == pytest.approx([(points[0][i] + points[2][i]) / 2 for i in (0, 1)], abs=0.1)
    assert points[0][1] > points[2][1]
    ring = re.search(r'<circle class="mark" cx="(.*?)" cy="(.*?)"', drawn)
    assert ring is not None
    assert tuple(map(float, ring.groups())) == points[1]
    turned = chart([0, 1], [Curve("edited", [1.0, 3.0])], "x", "alt", "{:g}".format, [0], (4, 0))
    first, last = re.findall(r'points="(.*?)"', turned)[0].split()
    assert float(first.split(",")[1]) < float(last.split(",")[1])
    assert [rounded_up(value) for value in (0, 0.0083, 0.01, 0.41, 1.0, 0.11)] == pytest.approx([
        1,
        0.01,
        0.01,
        0.6,
        1,
        0.2,
    ])


def test_the_html_is_well_formed(pair: Pair, asked: Question, located: Located) -> None:
    one = located.neurons[0]
    pages = [
        facts_html.asked_html(ask(pair, asked)),
        facts_html.candidates_html(candidates(pair, asked)),
        facts_html.lens_html(asked, *lens(pair, asked)),
        *strengths_panels(pair, asked, fading(pair, asked), 0.5),
        facts_html.fired_html(one, located.fired(one), located.prompts)
        + facts_html.promoted_html(*located.promoted(one)),
        facts_html.ablated_html(located.ablated(one, asked), len(located.neurons)),
    ]
    for page in pages:
        whole = ElementTree.fromstring(f"<div>{page.replace('<br>', '<br/>')}</div>")
        assert len("".join(whole.itertext())) > 20
