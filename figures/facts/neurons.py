"""Which units carry the facts: where the top scores are, and the strongest units by name."""

import numpy as np

from figures.facts.artefacts import FactRun, open_facts
from figures.facts.words import place
from figures.style import EDITED, FAINT, PALE, Drawing, canvas, finish, styled
from figures.words import percent, plural

TITLE = "Which units carry the facts"
TOP = 20
TOP_SHARE = 0.01
NEURONS = "neuron-ig"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


@styled
def draw(run: FactRun) -> Drawing:
    """Draw the blocks' parts of the top scores, and the highest-scored units.

    Args:
        run: With scores of MLP neurons, or of rows of matrices.

    Returns:
        A bar per block beside a bar per unit.
    """
    scores = run.scores
    kind = "neuron" if scores.measure == NEURONS else "row"
    names = list(scores.values)
    values = np.concatenate([scores.values[name].double().numpy() for name in names])
    owner = np.repeat(np.arange(len(names)), [scores.values[name].numel() for name in names])
    unit = np.concatenate([np.arange(scores.values[name].numel()) for name in names])
    order = np.argsort(-values, kind="stable")
    take = max(1, round(TOP_SHARE * len(values)))
    places = [place(name) for name in names]
    known = sorted({block for block, _ in places if block is not None})
    blocks = list(range(known[-1] + 1)) if known else []
    counts = dict.fromkeys(blocks, 0)
    for index in order[:take]:
        block = places[owner[index]][0]
        if block is not None:
            counts[block] += 1
    shares = np.array(list(counts.values()), float) / take
    first = order[:TOP]
    labels = []
    for index in first:
        block, matrix = places[owner[index]]
        labels.append(f"{'' if block is None else f'block {block} '}{matrix}, {kind} {unit[index]}")

    figure = canvas(height=max(0.21 * len(first) + 0.75, min(0.15 * len(blocks), 6) + 0.75))
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.35])
    even = 1 / max(1, len(known))
    left.barh(blocks, shares, color=EDITED, height=0.7)
    left.axvline(even, color=FAINT, lw=0.9, ls=":")
    left.set_ylim(-0.6, len(blocks) - 0.4)
    left.set_yticks([b for b in blocks if len(blocks) <= 16 or b % 5 == 0 or b == blocks[-1]])
    left.set_ylabel("block")
    left.set_xlim(0, max(float(shares.max(initial=0)), even) * 1.12)
    left.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    left.set_xlabel(f"part of the top {take:,} {kind}s")
    left.set_title("where the highest scores are")
    left.grid(axis="x")
    rows = range(len(first))
    top = float(values[first].max())
    right.barh(rows, [top] * len(first), color=PALE, height=0.66)
    right.barh(rows, values[first], color=EDITED, height=0.66)
    for row, index in zip(rows, first, strict=True):
        right.text(top * 1.02, row, _short(values[index]), va="center", size=8)
    right.set_yticks(rows, labels, size=8)
    right.set_xlim(0, top * 1.16)
    right.set_xticks([])
    right.spines[["left", "bottom"]].set_visible(False)
    right.tick_params(axis="y", length=0)
    right.set_ylim(len(first) - 0.5, -0.5)
    right.set_title(f"the {len(first)} highest {kind}s")

    what = "MLP neurons" if kind == "neuron" else "rows of matrices, each the sum over its weights"
    units = "" if scores.units == "1" else f" in {scores.units}"
    caption = (
        f"{scores.measure}{units}: n = {len(values):,} {what}, in {plural(len(names), 'matrix', 'matrices')}; left: "
        f"the highest {percent(TOP_SHARE)} of them, dotted: an even spread over the scored blocks. Run seed "
        f"{run.seed}; blocks and units are counted from 0, as in the weights' names."
    )
    most = max(counts, key=lambda block: counts[block]) if counts else None
    alt = f"Bars of where the highest {scores.measure} scores lie" + (
        f": most in block {most} ({percent(counts[most] / take)}). " if most is not None else ". "
    )
    alt += "The highest units: " + "; ".join(
        f"{label} ({_short(values[index])})" for label, index in zip(labels[:5], first[:5], strict=True)
    )
    return finish(figure, TITLE, caption, f"{alt}.")


if __name__ == "__main__":
    from figures.save import script_for

    raise SystemExit(script_for(open_facts, "figures.facts.neurons", draw))
