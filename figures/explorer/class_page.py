"""The page of a classifier's run: draw and ask, slide the edit's strength, look at neurons."""

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from figures.explorer import class_views as views
from figures.explorer.class_model import Explored, answers, at_strength, attributions, fading_of, open_classes
from figures.explorer.class_units import MEASURES, layers, look
from figures.explorer.events import ONE_AT_A_TIME
from figures.explorer.pad import ink_of, pad
from figures.explorer.strokes import as_image
from figures.style import EDITED
from figures.words import plural

OWN = "each model's own answer"
CLICK = """element.addEventListener('click', (event) => {
    const button = event.target.closest('[data-unit]');
    if (button) trigger('click', {unit: Number(button.dataset.unit)});
});"""
LIVE: dict[str, Any] = {**ONE_AT_A_TIME, "trigger_mode": "always_last", "show_progress": "hidden"}
"""Of an event that may come faster than it is answered."""


@dataclass(frozen=True)
class Shown:
    """The picture that the networks are asked about.

    Attributes:
        image: [1, channels, height, width], normalised.
        words: Where it is from.
    """

    image: torch.Tensor
    words: str


def image_of(explored: Explored, label: int, turn: int) -> Shown:
    """Take a test image of a class.

    Args:
        explored: The run.
        label: The class.
        turn: Each takes the next image.

    Returns:
        The image.
    """
    test = explored.subject.test
    mine = (test.labels == label).nonzero().flatten()
    at = int(mine[turn % len(mine)])
    return Shown(test.images[at : at + 1], f'test image {at}, a "{explored.subject.classes[label]}"')


def drawn(explored: Explored, code: str) -> Shown | None:
    """Take what is on the drawing pad.

    Args:
        explored: The run.
        code: What the pad sent.

    Returns:
        The drawing in the data's own frame, or None where nothing is drawn.
    """
    image = None if explored.frame is None else as_image(ink_of(code), explored.frame)
    return None if image is None else Shown(image, "your drawing, scaled and centred like the data")


def _names(explored: Explored) -> list[str]:
    # What each output means, before and after where that differs.
    both = zip(explored.run.classes, explored.run.answers, strict=True)
    return [old if old == new else f"{old} / {new}" for old, new in both]


def _range(explored: Explored) -> tuple[float, float]:
    images = explored.subject.test.images
    return float(images.min()), float(images.max())


def picture_html(explored: Explored, shown: Shown) -> str:
    """Show the picture as the networks get it, and what each of them says.

    Args:
        explored: The run.
        shown: The picture.

    Returns:
        The picture beside a table.
    """
    found = {
        f"{role} (mean of {one.models})" if one.models > 1 else role: one
        for role, one in answers(explored, shown.image).items()
    }
    seen = views.thumbnail(shown.image[0], *_range(explored), shown.words)
    table = views.bars(found, _names(explored), explored.run.forget)
    golds = len(explored.golds)
    note = f'<p class="note">Thin lines: from the lowest to the highest of the {golds}.</p>' if golds > 1 else ""
    return f'<figure class="seen">{seen}<figcaption>{escape(shown.words)}</figcaption></figure>{table}{note}'


def pixels_html(explored: Explored, shown: Shown, toward: str) -> str:
    """Show which pixels speak for an answer.

    Args:
        explored: The run.
        shown: The picture.
        toward: A class's name, or `OWN`.

    Returns:
        One overlay for each model.
    """
    names = _names(explored)
    found = attributions(explored, shown.image, None if toward == OWN else names.index(toward))
    low, high = _range(explored)
    ground = explored.frame.ground if explored.frame else low
    return views.overlays(found, shown.image[0], low, high, ground, names)


def strength_html(explored: Explored, shown: Shown, strength: float) -> tuple[str, str]:
    """Show what a part of the edit does.

    Args:
        explored: The run.
        shown: The picture.
        strength: 0 to 1.

    Returns:
        Curves with the slider's place, and the answer to the picture.
    """
    run = explored.run
    own = fading_of(explored, shown.image, run.forget)
    found = at_strength(explored, shown.image, strength)
    table = views.bars({f"strength {strength:.2f}": found}, _names(explored), run.forget, {"strength": EDITED})
    probability = float(found.shares[list(run.forget)].sum())
    return views.curves(explored.fading, own, strength, probability, run.briefly), table


def unit_html(explored: Explored, layer: str, unit: int) -> str:
    """Show what one neuron does in the original and in the edited model.

    Args:
        explored: The run.
        layer: Its layer.
        unit: Its number.

    Returns:
        Images it responds to, and a table by class.
    """
    some, run = explored.some, explored.run
    found = {
        role: look(explored, layer, unit, model)
        for role, model in (("original", explored.original), ("edited", explored.edited))
    }
    low, high = _range(explored)
    strips = {
        role: [
            views.thumbnail(some.images[at], low, high, f'a "{run.classes[int(some.labels[at])]}"') for at in one.top
        ]
        for role, one in found.items()
    }
    return views.neuron(f"Neuron {unit} of {layer}", found, strips, run.classes, run.forget)


def _html(text: str = "", name: str | None = None, **more: Any) -> gr.HTML:
    # The style sheet's rules are for what is inside this class.
    return gr.HTML(text, elem_id=name, elem_classes="classes", **more)


def class_page(folder: Path, page: gr.Blocks) -> None:
    """Put a run's panels on the page that is being built.

    Args:
        folder: The run.
        page: The page.
    """
    explored = open_classes(folder)
    first = image_of(explored, explored.run.forget[0], 0)
    shown = gr.State(first)
    answered, toward, explained = _picture_panel(explored, shown)
    strength, faded, partly = _strength_panel(explored)

    def ask(picture: Shown, label: str) -> tuple[str, str]:
        return picture_html(explored, picture), pixels_html(explored, picture, label)

    def slide(picture: Shown, part: float) -> tuple[str, str]:
        return strength_html(explored, picture, part)

    # On each visit and for each new picture everything; choices and slider move their own panel only.
    gr.on([page.load, shown.change], ask, [shown, toward], [answered, explained], **LIVE)
    gr.on([page.load, shown.change, strength.input], slide, [shown, strength], [faded, partly], **LIVE)
    toward.input(lambda one, label: pixels_html(explored, one, label), [shown, toward], explained, **LIVE)
    _neuron_panel(explored, page)


def _picture_panel(explored: Explored, shown: gr.State) -> tuple[gr.HTML, gr.Dropdown, gr.HTML]:
    classes = list(explored.run.classes)
    can = explored.frame is not None
    what = escape(explored.run.briefly)
    beside = f", beside {plural(len(explored.golds), 'model')} that never knew {what}" if explored.golds else ""
    _html(
        f"<h2>Ask the models</h2><p>{'Draw with the mouse or a finger, or take' if can else 'Take'} a test image: "
        f"original and edited model answer at once{beside}. Does any answer change but those to {what}?</p>"
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            if can:

                def draw(old: Shown, event: gr.EventData) -> Shown:
                    return drawn(explored, event.ink) or old

                # Each stroke counts here, the last too, and none touches a model; `ask` then takes the latest picture.
                pad().input(
                    draw, shown, shown, show_progress="hidden", api_visibility="private", trigger_mode="multiple"
                )
            with gr.Row():
                which = gr.Dropdown(classes, value=classes[explored.run.forget[0]], label="Class", min_width=100)
                another = gr.Button("Next test image", min_width=150)
            turn = gr.State(0)
            another.click(
                lambda name, n: (image_of(explored, classes.index(name), n + 1), n + 1),
                [which, turn],
                [shown, turn],
                **LIVE,
            )
            which.input(lambda name: (image_of(explored, classes.index(name), 0), 0), which, [shown, turn], **LIVE)
        with gr.Column(scale=3, min_width=320):
            answered = _html(name="answers")
    golds = f" The gold is one of the {len(explored.golds)}." if len(explored.golds) > 1 else ""
    _html(
        "<h3>Which pixels speak for the answer</h3><p>Integrated gradients from an empty picture, in logits: red "
        f"pixels speak for the answer, blue ones against it, on one scale for all models.{golds}</p>"
    )
    toward = gr.Dropdown([OWN, *_names(explored)], value=OWN, label="Explain")
    explained = _html(name="pixels")
    return answered, toward, explained


def _strength_panel(explored: Explored) -> tuple[gr.Slider, gr.HTML, gr.HTML]:
    _html(
        "<h2>Slide the edit</h2><p>At 0 the model is the original, at 1 the edited one, and between them its weights "
        "lie on the straight line; nobody trained those models, so the rest may suffer on the way. Where does your "
        "picture's answer tip over?</p>"
    )
    strength = gr.Slider(0, 1, value=0.5, step=0.01, label="Strength of the edit", elem_id="strength", buttons=[])
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            faded = _html(name="fading")
        with gr.Column(scale=2, min_width=280):
            partly = _html(name="partly")
    return strength, faded, partly


def _neuron_panel(explored: Explored, page: gr.Blocks) -> None:
    names = layers(explored)
    if not names:
        _html("<h2>Look at neurons</h2><p>This network has no layer whose neurons could be told apart.</p>")
        return
    _html(
        "<h2>Look at neurons</h2><p>Click a neuron to see which test images it responds to, before and after the "
        "edit, and what is lost when it is cut out. Responses are the layer's output before the nonlinearity that "
        f"follows; of a channel the highest one. Red is accuracy lost. {len(explored.some)} test images.</p>"
    )
    with gr.Row():
        layer = gr.Dropdown(names, value=names[-2] if len(names) > 1 else names[0], label="Layer", min_width=140)
        measure = gr.Dropdown(list(MEASURES), value=next(iter(MEASURES)), label="Colour", min_width=220, scale=2)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            cells = _html(name="neurons", js_on_load=CLICK)
        with gr.Column(scale=3, min_width=320):
            detail = _html(name="neuron")

    def overview(layer: str, measure: str) -> tuple[str, str]:
        values = MEASURES[measure].values(explored, layer)
        strongest = int(values.abs().argmax())
        return views.grid(values, strongest, layer, MEASURES[measure].unit), unit_html(explored, layer, strongest)

    def click(layer: str, measure: str, event: gr.EventData) -> tuple[str, str]:
        chosen = int(event.unit)
        values = MEASURES[measure].values(explored, layer)
        return views.grid(values, chosen, layer, MEASURES[measure].unit), unit_html(explored, layer, chosen)

    choices, panels = [layer, measure], [cells, detail]
    gr.on([page.load, layer.input, measure.input], overview, choices, panels, **LIVE)
    cells.click(click, choices, panels, **{**LIVE, "trigger_mode": "multiple"})
