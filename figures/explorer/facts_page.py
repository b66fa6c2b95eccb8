"""The page of a run on facts: ask both models, look layer by layer, turn the edit up and down, look at neurons."""

import functools
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from analysis.errors import UserError
from figures.explorer.events import ONE_AT_A_TIME
from figures.explorer.facts_html import (
    ablated_html,
    asked_html,
    candidates_html,
    fired_html,
    lens_html,
    promoted_html,
    strength_html,
)
from figures.explorer.facts_model import (
    STRENGTHS,
    Question,
    answer_probability,
    ask,
    candidates,
    continued,
    decoded,
    fading,
    lens,
    question,
)
from figures.explorer.facts_neurons import Located, Neuron, most_changed
from figures.explorer.facts_pair import Pair, open_pair, prompt_of
from figures.words import shorten

SLID = 12
"""Tokens said at a strength: fewer than when asked, so that the slider is answered quickly."""
LABEL = 90
OPENING = "an opening"
CHOOSE = "<p>Choose a neuron above.</p>"
WAIT = "<p>Asking the bank without it …</p>"


def examples(pair: Pair) -> list[tuple[str, str, str]]:
    """List what can be asked without typing.

    Args:
        pair: With the run's facts.

    Returns:
        Label, prompt and answer; the answer is empty where any words may follow.
    """
    found = [
        (f"{group}: {prompt_of(fact)} → {fact.answer}", prompt_of(fact), fact.answer)
        for group, facts in pair.facts.items()
        for fact in facts
    ]
    found += [(f"{OPENING}: {prompt}", prompt, "") for prompt in pair.openings]
    return [(shorten(label, LABEL), prompt, answer) for label, prompt, answer in found]


def strengths_panels(pair: Pair, asked: Question, curve: list[float], strength: float) -> Iterator[str]:
    """Answer at a strength of the edit.

    Args:
        pair: The models.
        asked: The question.
        curve: The answer's probability at `STRENGTHS`.
        strength: 0 to 1.

    Yields:
        HTML: at once with the answer's probability, then with what the model says, which takes longer.
    """
    model = pair.at(strength)
    probability = answer_probability(model, asked)
    yield strength_html(asked, STRENGTHS, curve, strength, probability, " …")
    said = "".join(decoded(pair, continued(model, asked.ids, pair.tokenizer.eos_token_id, SLID)))
    yield strength_html(asked, STRENGTHS, curve, strength, probability, said)


def neuron_panels(
    located: Located, name: str | None, asked: Question | None
) -> Iterator[tuple[str, str] | dict[str, Any]]:
    """Look at a neuron.

    Args:
        located: The listed neurons.
        name: Of one of them; None where none is chosen yet.
        asked: The present question, if there is one.

    Yields:
        HTML of what it does and of what hangs on it: at once without the latter, which takes longer, then with it.
        No change where none is chosen: requests may overtake one another, and one from before the first choice would
        wipe what was chosen.
    """
    if name is None:
        yield gr.skip()
        return
    one = located.named(name)
    seen = fired_html(one, located.fired(one), located.prompts) + promoted_html(*located.promoted(one))
    yield seen, WAIT
    yield seen, ablated_html(located.ablated(one, asked), len(located.neurons))


def _heading(title: str, sentence: str) -> None:
    gr.HTML(f"<h2>{escape(title)}</h2><p>{escape(sentence)}</p>", elem_classes="facts", apply_default_css=False)


def _html(name: str, value: str = "") -> gr.HTML:
    return gr.HTML(value, elem_classes="facts", elem_id=name, apply_default_css=False)


def _ask_panel(
    choices: Sequence[tuple[str, str, str]],
) -> tuple[gr.Dropdown, gr.Textbox, gr.Textbox, gr.Button, gr.HTML, gr.HTML]:
    first = choices[0] if choices else ("", "", "")
    _heading(
        "Ask both models",
        "Each model continues your prompt; colours show which words the edit made less or more likely. Try a fact that "
        "was forgotten, one that the edit never saw, and one that must stay.",
    )
    example = gr.Dropdown(
        [(label, number) for number, (label, _, _) in enumerate(choices)], value=0 if choices else None,
        label="A prompt of the bank", elem_id="facts-example",
    )  # fmt: skip
    with gr.Row():
        prompt = gr.Textbox(first[1], label="Prompt", scale=3, min_width=280, elem_id="facts-prompt")
        answer = gr.Textbox(first[2], label="Answer to follow (or the original's next word)", scale=2,
                            elem_id="facts-answer")  # fmt: skip
    button = gr.Button("Ask both", variant="primary", elem_id="facts-ask")
    return example, prompt, answer, button, _html("facts-answers"), _html("facts-candidates")


def _layer_panel() -> gr.HTML:
    _heading(
        "Layer by layer",
        "The logit lens reads every layer as if it were the last one: see where the original comes to the answer, and "
        "whether the edited model still gets there and drops it again.",
    )
    return _html("facts-lens")


def _strength_panel() -> tuple[gr.Slider, gr.HTML]:
    _heading(
        "Turn the edit up and down",
        "At 0 you talk to the original, at 1 to the edited model, between them to a mixture of their weights: slide "
        "and watch the answer fade.",
    )
    strength = gr.Slider(0, 1, value=1, step=0.05, label="Strength of the edit", elem_id="facts-strength")
    return strength, _html("facts-faded")


def _neuron_panel(neurons: Sequence[Neuron]) -> tuple[gr.Radio, gr.HTML, gr.HTML]:
    _heading(
        "Neurons",
        f"The {len(neurons)} MLP neurons whose weights the edit changed most, {neurons[0].name} being neuron "
        f"{neurons[0].number} of block {neurons[0].block}: choose one to see what it responds to, which words it "
        "pushes, and what is lost without it."
        if neurons
        else "This edit left all MLP neurons alone, so there are none to look at.",
    )
    neuron = gr.Radio([one.name for one in neurons], label="Neuron", elem_id="facts-neurons",
                      visible=bool(neurons))  # fmt: skip
    return neuron, _html("facts-neuron", CHOOSE if neurons else ""), _html("facts-ablation")


def facts_page(folder: Path) -> None:
    """Put a run's panels on the page that is being built.

    Args:
        folder: The run; its models are loaded here.
    """
    pair = open_pair(folder)
    located = Located(pair, tuple(most_changed(pair.original, pair.edit)))
    choices = examples(pair)
    asked, curve = gr.State(None), gr.State(None)
    example, prompt, answer, button, answers, nexts = _ask_panel(choices)
    layers = _layer_panel()
    strength, faded = _strength_panel()
    neuron, portrait, loss = _neuron_panel(located.neurons)

    def begin(typed: str, wanted: str) -> tuple[Question, None, str, str]:
        try:
            now = question(pair, typed, wanted)
        except UserError as error:
            raise gr.Error(escape(str(error), quote=False), print_exception=False) from error
        # The last question's curve has nothing to do with this one.
        return now, None, asked_html(ask(pair, now)), candidates_html(candidates(pair, now))

    def by_layer(now: Question) -> str:
        return lens_html(now, *lens(pair, now))

    def fade(now: Question, at: float) -> Iterator[tuple[list[float], str]]:
        found = fading(pair, now)
        for panel in strengths_panels(pair, now, found, at):
            yield found, panel

    def slide(now: Question | None, found: list[float] | None, at: float) -> Iterator[str]:
        if now is not None and found is not None:
            yield from strengths_panels(pair, now, found, at)

    def look(name: str | None, now: Question | None) -> Iterator[tuple[str, str] | dict[str, Any]]:
        yield from neuron_panels(located, name, now)

    def take(number: int | None) -> tuple[str, str]:
        return ("", "") if number is None else choices[number][1:]

    def chain(event: Any) -> None:
        step = event(begin, [prompt, answer], [asked, curve, answers, nexts], **ONE_AT_A_TIME)
        step = step.success(by_layer, [asked], [layers], **ONE_AT_A_TIME)
        step = step.success(fade, [asked, strength], [curve, faded], **ONE_AT_A_TIME)
        step.success(look, [neuron, asked], [portrait, loss], **ONE_AT_A_TIME)

    chain(functools.partial(gr.on, [button.click, prompt.submit, answer.submit]))
    chain(example.input(take, [example], [prompt, answer]).success)
    if choices:
        chain(gr.on(None, functools.partial(take, 0), [], [prompt, answer]).success)  # when the page is opened
    strength.change(
        slide, [asked, curve, strength], [faded], show_progress="hidden", trigger_mode="always_last", **ONE_AT_A_TIME
    )
    neuron.input(look, [neuron, asked], [portrait, loss], **ONE_AT_A_TIME)
