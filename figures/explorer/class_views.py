"""What a classifier's page shows, as HTML: tables that a screen reader can read, bars and pixels beside the numbers.

Colours of ground and text follow the page's theme; those of the models are the figures' own.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import matplotlib
import numpy as np
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from figures.explorer.chart import Curve, chart
from figures.explorer.class_model import Answer, Fading, Pixels
from figures.explorer.class_units import Seen
from figures.style import DIVERGING, EDITED, GOLD, ORIGINAL, centred, picture
from figures.words import percent, tick_percent

MOST_ROWS = 10
MOST_UNITS = 256
COVERED = 0.995
"""Share of the pixels that one scale covers."""
PAPER = 0.55
"""How dark the image's full ink is under the attributions, which must be seen on it."""
UNSIGNED = "#7B5CB8"
"""Of numbers without a sign: neither the original's colour nor the edited model's."""
COLOURS = {"original": ORIGINAL, "edited": EDITED, "gold": GOLD}
LEARNED = {"rest": "the rest", "new": "the new class"}


def _short(share: float) -> str:
    # Of a live table, whose many tiny shares need no digits.
    return percent(share) if share >= 0.001 or not share else "<0.1%"


def pixels(image: np.ndarray, alt: str) -> str:
    """Put a small image on the page, its pixels kept sharp.

    Args:
        image: [height, width, 3], 0 to 1.
        alt: The image in words.

    Returns:
        An img element that holds the image itself.
    """
    buffer = io.BytesIO()
    Image.fromarray((image * 255).round().astype(np.uint8)).save(buffer, "PNG")
    code = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="pixels" alt="{escape(alt)}" src="data:image/png;base64,{code}">'


def thumbnail(image: torch.Tensor, low: float, high: float, alt: str) -> str:
    """Show an image as the networks get it.

    Args:
        image: [channels, height, width], normalised.
        low: Value drawn black.
        high: Value drawn white.
        alt: The image in words.

    Returns:
        An img element.
    """
    return pixels(picture(image.double().numpy(), low, high), alt)


def _rows(found: Mapping[str, Answer], always: Sequence[int]) -> list[int]:
    # The classes worth a row: all if there are few, else the likeliest in any model, and those asked for.
    best = torch.stack([one.shares for one in found.values()]).amax(0)
    likeliest = best.argsort(descending=True)[:MOST_ROWS].tolist()
    return sorted({*likeliest, *always})


def _room(names: Sequence[str]) -> str:
    # The width of the first column, in which the classes' names stand.
    return f"--names:{min(7, 1 + 0.6 * max(map(len, names))):.1f}rem"


def _bar(one: Answer, label: int, colour: str) -> str:
    share, low, high = (float(values[label]) for values in (one.shares, one.low, one.high))
    spread = f'<i style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></i>' if one.models > 1 else ""
    bold = ' class="best"' if label == one.best else ""
    return (
        f'<td{bold}><span class="bar"><b style="width:{100 * share:.1f}%;background:{colour}"></b>{spread}</span>'
        f"<span>{_short(share)}</span></td>"
    )


def bars(
    found: Mapping[str, Answer],
    names: Sequence[str],
    forgotten: Sequence[int],
    colours: Mapping[str, str] = COLOURS,
) -> str:
    """Show several models' probabilities side by side.

    Args:
        found: Answers by the column's heading, which begins with a role.
        names: What each output means.
        forgotten: Outputs that are marked.
        colours: By the heading's first word.

    Returns:
        A table with a row for each class (of many, the likeliest ones) and a column for each model.
    """
    head = "".join(
        f'<th scope="col"><span class="dot" style="background:{colours[name.split()[0]]}"></span>{escape(name)}'
        f"<strong>{escape(names[one.best])}</strong></th>"
        for name, one in found.items()
    )
    body = "".join(
        f'<tr{" class=forgotten" if label in forgotten else ""}><th scope="row">{escape(names[label])}</th>'
        + "".join(_bar(one, label, colours[name.split()[0]]) for name, one in found.items())
        + "</tr>"
        for label in _rows(found, forgotten)
    )
    return (
        f'<table class="bars" style="{_room(names)}"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def overlays(
    found: Mapping[str, Pixels], image: torch.Tensor, low: float, high: float, ground: float, names: Sequence[str]
) -> str:
    """Lay the pixels' attributions over the image, for every model on one scale.

    Args:
        found: Attributions by role.
        image: [channels, height, width], as the networks get it.
        low: Lowest value in the data.
        high: Highest.
        ground: Value of an empty pixel, which becomes white paper.
        names: What each output means.

    Returns:
        One figure for each model.
    """
    grey = picture(image.double().numpy(), low, high).mean(-1)
    ink = np.abs(grey - (ground - low) / ((high - low) or 1))
    paper = np.repeat((1 - PAPER * ink / (ink.max() or 1))[..., None], 3, -1)
    norm = centred(*(one.values.numpy() for one in found.values()), quantile=COVERED)
    colours = matplotlib.colormaps[DIVERGING]
    shown = []
    for role, one in found.items():
        strength = np.clip(np.abs(one.values.numpy()) / norm.vmax, 0, 1)[..., None] ** 0.6
        mixed = (1 - strength) * paper + strength * colours(norm(one.values.numpy()))[..., :3]
        words = f"{role}: which pixels speak for {names[one.label]}, {one.total:+.1f} logits in sum"
        shown.append(
            f'<figure>{pixels(mixed, words)}<figcaption><span class="dot" style="background:{COLOURS[role]}"></span>'
            f"{role}: toward <strong>{escape(names[one.label])}</strong> {one.total:+.1f}</figcaption></figure>"
        )
    return f'<div class="overlays">{"".join(shown)}</div>'


def curves(fading: Fading, own: Sequence[float], strength: float, probability: float, forgotten: str) -> str:
    """Draw what is known along the edit's strength.

    Args:
        fading: Accuracies on test images.
        own: The present image's probability of the forgotten classes at the same strengths.
        strength: Where the slider stands.
        probability: Like `own`, there.
        forgotten: The forgotten classes, for the legend.

    Returns:
        A figure: lines, the slider's place, and a legend.
    """
    labels = {
        name: f"accuracy on {LEARNED.get(name, forgotten)} (n = {fading.examples[name]})" for name in fading.curves
    }
    words = "; ".join(
        f"{labels[name]}: {percent(values[0])} at strength 0, lowest {percent(min(values))}, {percent(values[-1])} at 1"
        for name, values in fading.curves.items()
    )
    lines = [Curve(name, values) for name, values in fading.curves.items()]
    drawn = chart(
        fading.strengths, [*lines, Curve("own", own)], "strength of the edit", words, tick_percent, (0, 0.5, 1),
        (0, 1), steps=2, mark=(strength, probability),
    )  # fmt: skip
    legend = "".join(
        f'<li><span class="dash {name}"></span>{escape(text)}</li>'
        for name, text in {**labels, "own": f"your picture: probability of {forgotten}"}.items()
    )
    return f'<figure class="fading">{drawn}<ul class="legend">{legend}</ul></figure>'


def _rgba(colour: str, share: float) -> str:
    red, green, blue = (round(255 * part) for part in to_rgb(colour))
    return f"rgba({red},{green},{blue},{share:.2f})"


def grid(values: torch.Tensor, chosen: int, layer: str, unit_of: str) -> str:
    """Show a layer's neurons as buttons, coloured by a number.

    Args:
        values: [units]; where some are negative these are blue and the others red.
        chosen: The neuron that is looked at.
        layer: For screen readers.
        unit_of: What the numbers are counted in.

    Returns:
        A group of buttons that carry their neuron's number; of very many neurons those with the largest numbers.
    """
    shown = values.abs().argsort(descending=True, stable=True)[:MOST_UNITS].sort().values.tolist()
    most = float(values.abs().max()) or 1.0
    signed = bool((values < 0).any())
    cells = []
    for unit in shown:
        value = float(values[unit])
        colour = (EDITED if value >= 0 else ORIGINAL) if signed else UNSIGNED
        cells.append(
            f'<button type="button" data-unit="{unit}" aria-pressed="{str(unit == chosen).lower()}" '
            f'title="neuron {unit}: {value:.3g}" style="background:{_rgba(colour, abs(value) / most)}">{unit}</button>'
        )
    left = "" if len(shown) == len(values) else f"<p>The {len(shown)} of {len(values)} with the largest numbers.</p>"
    ends = f"blue {-most:.2g} to red {most:.2g}" if signed else f"pale 0 to full {most:.2g}"
    return (
        f'<div class="units" role="group" aria-label="neurons of {escape(layer)}">{"".join(cells)}</div>'
        f'<p class="note">Colours: {ends} {escape(unit_of)}.</p>{left}'
    )


def _strip(role: str, images: Sequence[str]) -> str:
    return (
        f'<figure class="strip"><figcaption><span class="dot" style="background:{COLOURS[role]}"></span>{role}: '
        f"the test images it responds to most</figcaption>{''.join(images)}</figure>"
    )


def _response(value: float, most: float, colour: str) -> str:
    if not np.isfinite(value):
        return "<td>no images</td>"
    left, width = 50 + min(value, 0) / most * 50, abs(value) / most * 50
    return (
        f'<td><span class="bar middle"><b style="left:{left:.1f}%;width:{width:.1f}%;background:{colour}"></b></span>'
        f"<span>{value:.3g}</span></td>"
    )


def _lost(seen: Seen, label: int) -> str:
    if label not in seen.accuracies:
        return "<td>no images</td>"
    before, after = seen.accuracies[label], seen.without[label]
    moved = round(100 * after) - round(100 * before)
    mark = ' class="lost"' if moved < 0 else ' class="won"' if moved > 0 else ""
    return f'<td class="both">{100 * before:.0f} → <span{mark}>{100 * after:.0f}%</span></td>'


def neuron(
    name: str,
    found: Mapping[str, Seen],
    strips: Mapping[str, Sequence[str]],
    names: Sequence[str],
    forgotten: Sequence[int],
) -> str:
    """Show what one neuron does.

    Args:
        name: E.g. "Neuron 12 of hidden1".
        found: By role, original and edited.
        strips: By role, the images it responds to most, as img elements.
        names: The classes' names.
        forgotten: Labels that are marked.

    Returns:
        A heading, the images, and a table with a row for each class.
    """
    most = max(float(one.means.nan_to_num().abs().max()) for one in found.values()) or 1.0
    head = "".join(
        f'<th scope="col"><span class="dot" style="background:{COLOURS[role]}"></span>{role}</th>' for role in found
    )
    body = "".join(
        f'<tr{" class=forgotten" if label in forgotten else ""}><th scope="row">{escape(text)}</th>'
        + "".join(_response(float(one.means[label]), most, COLOURS[role]) for role, one in found.items())
        + "".join(_lost(one, label) for one in found.values())
        + "</tr>"
        for label, text in enumerate(names)
    )
    return (
        f"<h3>{escape(name)}</h3>{''.join(_strip(role, strips[role]) for role in found)}"
        f'<table class="bars neuron" style="{_room(names)}"><thead><tr><td></td>'
        f'<th scope="colgroup" colspan="{len(found)}">mean response</th>'
        f'<th scope="colgroup" colspan="{len(found)}">accuracy with it → without it</th></tr>'
        f"<tr><td></td>{head}{head}</tr></thead><tbody>{body}</tbody></table>"
    )
