"""What the language models' page shows, as HTML: coloured tokens, bars, tables. What models or users say is escaped.

No meaning hangs on colour alone: numbers stand beside bars, and appear over a token that the pointer or the keyboard
reaches.
"""

import math
from collections.abc import Sequence
from html import escape

from figures.explorer.chart import Curve, chart, rounded_up
from figures.explorer.facts_model import Candidate, Layer, Question, Told, half_strength
from figures.explorer.facts_neurons import Ablation, Fired, Neuron
from figures.facts.lens import layer_name
from figures.facts.words import NEWLINE, UNKNOWN, visible
from figures.words import percent, plural

FULL = 3.0
"""Change in nats, to either side, that gets the full colour; more gets no more."""
STRONGEST = 65
"""Of the full colour, in percent of its opacity."""
TICKS = 6


def tint(share: float) -> str:
    """Choose a background by a signed share; the style sheet has the colours, blue for less and red for more.

    Args:
        share: -1 to 1; what lies outside is drawn as the end is.

    Returns:
        Attributes of an element. The page's own background shines through, so that text keeps the page's colour.
    """
    share = max(-1.0, min(1.0, share)) if math.isfinite(share) else 0.0
    return f'class="tint {"more" if share > 0 else "less"}" style="--much:{abs(share) * STRONGEST:.0f}%"'


def shown(text: str) -> str:
    """Write what a model says, its blanks kept.

    Args:
        text: As decoded.

    Returns:
        Escaped; line breaks and what no font draws are signs.
    """
    plain = text.replace("\r", "").replace("\n", NEWLINE)
    return escape("".join(letter if letter.isprintable() else UNKNOWN for letter in plain))


def token_span(text: str, tip: str, share: float, prompt: bool) -> str:
    """Write one token.

    Args:
        text: As decoded.
        tip: What pointer and keyboard show.
        share: For `tint`.
        prompt: Whether it is the prompt's.

    Returns:
        A span.
    """
    return (
        f'<span class="tok{" asked" if prompt else ""}" tabindex="0" data-tip="{escape(tip)}" '
        f'aria-label="{escape(visible(text))}: {escape(tip)}" role="img">'
        f"<span {tint(share)}>{shown(text)}</span></span>"
    )


def change_in_words(before: float | None, after: float | None) -> str:
    """Say how likely a token was and is.

    Args:
        before: log p in nats; None for a text's first token.
        after: The same after the edit.

    Returns:
        E.g. "4.1% → 0.17% (-3.2 nats)".
    """
    if before is None or after is None:
        return "the first token, which nothing precedes"
    return f"{percent(math.exp(before))} → {percent(math.exp(after))} ({after - before:+.1f} nats)"


def told_html(told: Told, model: str) -> str:
    """Show a continuation with its prompt, coloured by how much likelier the edit made each token.

    Args:
        told: From `facts_model.ask`.
        model: "original" or "edited": who said it.

    Returns:
        A card.
    """
    spans = [
        token_span(token, change_in_words(old, new), (change or 0.0) / FULL, place < told.start)
        for place, (token, old, new, change) in enumerate(
            zip(told.tokens, told.before, told.after, told.changes, strict=True)
        )
    ]
    return f'<section class="card {model}"><h4>{model} model</h4><p class="toks">{"".join(spans)}</p></section>'


def asked_html(pair: tuple[Told, Told]) -> str:
    """Show both continuations side by side with the legend of their colours.

    Args:
        pair: Of the original and of the edited model.

    Returns:
        Two cards and a legend.
    """
    scale = "".join(f"<i {tint(step / 2)}></i>" for step in range(-2, 3))
    times = round(math.exp(FULL))
    return (
        f'<div class="pair">{told_html(pair[0], "original")}{told_html(pair[1], "edited")}</div>'
        f'<p class="legend">{times} times less likely after the edit <span class="scale">{scale}</span> {times} times '
        "more likely. The prompt is grey, what the model adds is bold. Point at a token, or reach it with the Tab key, "
        "for its probability before → after.</p>"
    )


def _bar(share: float, kind: str) -> str:
    width = 100 * max(0.0, min(1.0, share))
    return f'<span class="track"><i class="{kind}" style="width:{width:.1f}%"></i></span>'


def candidates_html(found: Sequence[Candidate]) -> str:
    """Show what may come next by both models.

    Args:
        found: At least one.

    Returns:
        A table with bars on one scale.
    """
    top = max(max(one.before, one.after) for one in found) or 1.0
    rows = "".join(
        f'<tr><th scope="row">{escape(visible(one.token))}</th><td>{_bar(one.before / top, "original")}'
        f'{_bar(one.after / top, "edited")}</td><td class="n">{percent(one.before)}<br>{percent(one.after)}</td></tr>'
        for one in found
    )
    return (
        '<table class="candidates"><caption>The likeliest next tokens: <b class="original">original</b> above, '
        f'<b class="edited">edited</b> below</caption><tbody>{rows}</tbody></table>'
    )


def _ticks(count: int) -> list[int]:
    step = max(1, math.ceil((count - 1) / TICKS))
    return list(range(0, count, step))


def lens_html(asked: Question, before: Sequence[Layer], after: Sequence[Layer]) -> str:
    """Show at which layer each model comes to the answer.

    Args:
        asked: The question.
        before: Layers of the original.
        after: Of the edited model.

    Returns:
        A chart of the answer's rank by layer, and a table of every layer's likeliest word, the last layer first.
    """
    answer = escape(visible(asked.answer))
    own = "" if asked.given else " No answer was typed, so the original's own next word is followed."
    said = [percent(one[-1].probability) for one in (before, after)]
    alt = (
        f"Rank of the answer's first token by layer, 1 being what is said: at the last one {before[-1].rank:,} in the "
        f"original and {after[-1].rank:,} in the edited model."
    )
    layers = range(len(before))
    decades = max(1, math.ceil(math.log10(max(one.rank for one in (*before, *after)))))
    drawn = chart(
        list(layers), [Curve("original", [math.log10(one.rank) for one in before]),
                       Curve("edited", [math.log10(one.rank) for one in after])],
        "layer (0: the embedding)", alt, lambda power: f"{10**power:,.0f}", _ticks(len(before)), (decades, 0), decades,
    )  # fmt: skip
    rows = "".join(
        f'<tr{_same(old, new)}><th scope="row">{layer_name(layer)}</th><td>{escape(visible(old.word))}</td>'
        f'<td class="n">{old.rank:,}</td><td>{escape(visible(new.word))}</td><td class="n">{new.rank:,}</td></tr>'
        for layer, old, new in reversed(list(zip(layers, before, after, strict=True)))
    )
    return (
        f'<div class="pair"><figure><figcaption>Rank of “{answer}” in the vocabulary if the model stopped at a layer: '
        '<b class="original">original</b> (solid), <b class="edited">edited</b> (dashed)</figcaption>'
        f'{drawn}</figure><div class="scroll" tabindex="0" role="region" aria-label="Layer by layer"><table>'
        "<thead><tr><th>layer</th><th>original would say</th>"
        f'<th class="n">rank</th><th>edited would say</th><th class="n">rank</th></tr></thead><tbody>{rows}</tbody>'
        f'</table></div></div><p class="legend">Ranks are of the first token of “{answer}”; rank 1 is what is said. '
        f"After the last layer the whole of it has the probability {said[0]} in the original and {said[1]} in the "
        f"edited model. Where the two would say different words, they are bold.{own}</p>"
    )


def _same(old: Layer, new: Layer) -> str:
    return "" if old.word == new.word else ' class="differs"'


def strength_html(
    asked: Question, strengths: Sequence[float], curve: Sequence[float], strength: float, probability: float, said: str
) -> str:
    """Show the answer's probability by the edit's strength, and what is said at the chosen one.

    Args:
        asked: The question.
        strengths: Of the curve, 0 to 1.
        curve: The answer's probability at each.
        strength: The chosen one.
        probability: The answer's at the chosen one.
        said: What the model says there.

    Returns:
        A chart with a mark beside the continuation.
    """
    answer = escape(visible(asked.answer))
    half = half_strength(strengths, curve)
    fades = f"half of it is gone at strength {half:.2f}" if half is not None else "it never falls to half"
    alt = (
        f"Probability of the answer by the strength of the edit: {percent(curve[0])} at 0, {percent(curve[-1])} at 1; "
        f"{fades}. At strength {strength:.2f} it is {percent(probability)}."
    )
    drawn = chart(
        list(strengths), [Curve("edited", curve)], "strength of the edit", alt, percent, [0, 0.25, 0.5, 0.75, 1],
        (0.0, rounded_up(max(*curve, probability))), mark=(strength, probability),
    )  # fmt: skip
    return (
        f'<div class="pair"><figure><figcaption>Probability of “{answer}”: {fades}</figcaption>{drawn}</figure>'
        f'<section class="card edited"><h4>at strength {strength:.2f}</h4><p class="toks"><span class="asked">'
        f"{shown(asked.prompt)}</span><b>{shown(said)}</b></p><p>“{answer}”: <b>{percent(probability)}</b></p>"
        "</section></div>"
    )


def fired_html(neuron: Neuron, found: Sequence[Fired], prompts: int) -> str:
    """Show where a neuron fires.

    Args:
        neuron: Which.
        found: Prompts, the strongest response first.
        prompts: How many were looked at.

    Returns:
        A list of prompts, coloured on one scale.
    """
    top = max((abs(value) for one in found for value in one.activations), default=0.0) or 1.0
    rows = "".join(
        '<li><span class="toks">'
        + "".join(
            token_span(token, f"activation {value:+.2f}", value / top, prompt=False)
            for token, value in zip(one.tokens, one.activations, strict=True)
        )
        + f"</span> <small>{escape(one.group)}, strongest {max(one.activations, key=abs):+.2f}</small></li>"
        for one in found
    )
    return (
        f"<p>Neuron {neuron.number} of block {neuron.block}: the edit moved its weights by {neuron.change:.3g} in all "
        f'(root of the summed squares).</p><h4>Where it fires most</h4><ol class="fired">{rows}</ol><p class="legend">'
        f"Of {plural(prompts, 'prompt')} of the bank. Red: positive, blue: negative; full colour at {top:.2f}.</p>"
    )


def promoted_html(up: Sequence[tuple[str, float]], down: Sequence[tuple[str, float]]) -> str:
    """Show the words that a neuron pushes.

    Args:
        up: Words pushed up by a positive activation.
        down: Words pushed down by it.

    Returns:
        Two lists.
    """

    def words(found: Sequence[tuple[str, float]]) -> str:
        return "".join(
            f"<li><code>{escape(visible(word))}</code> <small>{value:+.1f}</small></li>" for word, value in found
        )

    return (
        '<h4>What it promotes</h4><div class="pair words"><div><h5>when positive</h5>'
        f"<ul>{words(up)}</ul></div><div><h5>when negative</h5><ul>{words(down)}</ul></div></div>"
        '<p class="legend">Its column of the down projection, put through the final norm and the head; numbers are '
        "comparable within this neuron only.</p>"
    )


def ablated_html(found: Sequence[Ablation], listed: int) -> str:
    """Show what hangs on a neuron.

    Args:
        found: By group.
        listed: How many neurons are silenced together.

    Returns:
        A table.
    """
    rows = "".join(
        f'<tr><th scope="row">{escape(one.group)} <small>n = {one.facts}</small></th><td class="n">{percent(one.whole)}'
        f'</td><td class="n">{percent(one.alone)}</td><td class="n">{percent(one.together)}</td></tr>'
        for one in found
    )
    return (
        '<h4>What hangs on it</h4><div class="scroll"><table><caption>Mean probability of the right answer in the '
        f'original</caption><thead><tr><th>asked</th><th class="n">as it is</th><th class="n">without it</th>'
        f'<th class="n">without all {listed}</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )
