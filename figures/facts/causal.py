"""Does it matter? Right answers as the located weights are switched off, against random weights and whole blocks."""

import numpy as np
from matplotlib.layout_engine import ConstrainedLayoutEngine

from figures.ablation import own, panels, widest
from figures.facts.artefacts import FactRun, open_facts
from figures.facts.words import place
from figures.style import Drawing, finish, styled
from figures.words import percent, plural, seeds_in_words

TITLE = "Ablation: what is lost when the located weights are set to zero"
COLUMNS = 3
APART = 0.07
MOST_BLOCKS = 6


@styled
def draw(run: FactRun) -> Drawing:
    """Draw the right answer's share on forgotten and retained facts against the share of weights that is ablated.

    Args:
        run: With a localization report.

    Returns:
        A panel per measure with its random control (as many weights of each matrix), then one per block of the sweep.
    """
    report = run.causes
    swept = [curve for curve in report.curves if curve.control == "layer"]
    shown = {round(at) for at in np.linspace(0, len(swept) - 1, min(MOST_BLOCKS, len(swept)))}
    curves = [curve for curve in report.curves if curve.control != "layer"]
    curves += [
        curve.model_copy(update={"layer": f"block {place(curve.layer or '')[0]}"})
        for at, curve in enumerate(swept)
        if at in shown
    ]
    figure = panels(curves, report.causal, run.briefly, "right answer", COLUMNS)
    layout = figure.get_layout_engine()
    if isinstance(layout, ConstrainedLayoutEngine):
        layout.set(wspace=APART)
    mine = own(curves)
    repeats = max((len(row) for curve in curves for row in curve.forget), default=1)
    caption = (
        f"Mean ± sd over {plural(repeats, 'repeat')} ({seeds_in_words(report.seeds)}), each scored on another half of "
        f"the facts and asked about n = {report.n_forget:,} unseen facts about {run.forgotten} and {report.n_retain:,} "
        f"other facts (right answer's share before: {percent(report.forget_before)} and "
        f"{percent(report.retain_before)}). Dashed: as many weights of each matrix at random. Gain: what is lost on "
        "the forgotten less that lost on the rest, mean over the fractions, beyond the random control."
    )
    if swept:
        caption += f" Layer sweep: as many weights at random from one block ({len(shown)} shown, counted from 0)."
    alt = (
        f"Curves of the right answer's share on {run.forgotten} and on the rest for "
        f"{plural(len(mine), 'attribution measure')}."
    )
    if mine:
        best, at, lost, kept = widest(curves)
        alt += (
            f" The widest gap is made by {best}: with {percent(at)} of the weights at zero, the right answer's share "
            f"is {percent(lost)} on the forgotten and {percent(kept)} on the retained facts."
        )
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script_for

    raise SystemExit(script_for(open_facts, "figures.facts.causal", draw))
