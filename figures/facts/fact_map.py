"""How the model arranges the facts before and after: one map, fitted on the original."""

import numpy as np

from figures.facts.artefacts import FactRun, open_facts
from figures.style import EDITED, FORGOTTEN, ORIGINAL, RETAINED, Drawing, canvas, finish, styled

TITLE = "How the model arranges the facts, before and after"
COLOURS = (FORGOTTEN, RETAINED, "#9A9A9A")
MARKS = ("o", "^", "s")


@styled
def draw(run: FactRun) -> Drawing:
    """Draw the UMAP projections of the facts' representations on the same axes.

    Args:
        run: With pictures.

    Returns:
        Two panels, a colour and a mark for each group of facts, with each group's similarity before and after.
    """
    words = run.words
    places = {name: run.picture(f"map.{name}") for name in ("original", "edited")}
    group = run.picture("map.group").astype(int)
    every = np.concatenate(list(places.values()))
    low, high = every.min(0), every.max(0)
    room = 0.06 * (high - low)
    counts = [int((group == i).sum()) for i in range(len(words.groups))]

    figure = canvas(height=3.7)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, (name, points), colour in zip(panels, places.items(), (ORIGINAL, EDITED), strict=True):
        # The forgotten facts last, on top.
        for i in reversed(range(len(words.groups))):
            axes.scatter(
                *points[group == i].T, s=24, color=COLOURS[i % 3], marker=MARKS[i % 3], lw=0.35, edgecolor="white",
                label=f"{words.groups[i]} (n = {counts[i]}): CKA {words.cka[i]:.3f}",
            )  # fmt: skip
        axes.set_xlim(low[0] - room[0], high[0] + room[0])
        axes.set_ylim(low[1] - room[1], high[1] + room[1])
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(visible=True, color="#cccccc")
        axes.set_title(name, color=colour, weight="bold")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=3)

    caption = (
        f"UMAP of the hidden state after the last token of each fact's prompt, behind block {words.layer - 1} of "
        f"{words.layers} (blocks are counted from 0), fitted on the original; the edited model is placed on the same "
        f"map. n = {len(group):,} facts, seed {run.seed}. Distances on the map can't be read as such; measured in the "
        "full space, each group before against after: linear CKA (1: same geometry)."
    )
    told = ", ".join(f"{name} {cka:.3f}" for name, cka in zip(words.groups, words.cka, strict=True))
    alt = (
        f"Two scatter plots of {len(group)} facts, of the original and the edited model, coloured by group. Linear CKA "
        f"before against after: {told}."
    )
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script_for

    raise SystemExit(script_for(open_facts, "figures.facts.fact_map", draw))
