"""How much the attribution methods agree on where the class lives."""

import matplotlib
import numpy as np

from figures.artefacts import Run
from figures.style import SEQUENTIAL, Drawing, canvas, finish, readable_on, styled
from figures.words import percent

NAME = "overlap"
TITLE = "Do the attribution methods point at the same weights?"


@styled
def draw(run: Run) -> Drawing:
    """Draw the intersection over union of every pair of masks.

    Args:
        run: With a localization report.

    Returns:
        A heat map from 0 to 1 with its numbers, lower triangle only: the matrix is symmetric.
    """
    report = run.localization
    measures = list(report.measures)
    n = len(measures)
    table = np.array([[report.iou[a][b] for b in measures] for a in measures])
    hidden = np.triu(np.ones((n, n), bool), 1)

    figure = canvas(height=0.46 * n + 1.35, width=min(8.6, 0.72 * n + 2.9))
    axes = figure.subplots()
    drawn = axes.imshow(np.ma.array(table, mask=hidden), cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
    colours = matplotlib.colormaps[SEQUENTIAL]
    for row in range(n):
        for column in range(row + 1):
            value = table[row, column]
            text = "1" if row == column else f"{value:.2f}".replace("0.", ".", 1) if value < 0.995 else "1"
            axes.text(column, row, text, ha="center", va="center", size=8.5, color=readable_on(colours(value)))
    axes.set_xticks(range(n), measures, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(n), measures)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(drawn, ax=axes, aspect=25, pad=0.02)
    bar.set_label("intersection over union")
    bar.outline.set_visible(False)

    share = report.fraction
    caption = (
        f"Intersection over union of the top {percent(share)} of each measure; two random masks of that size would "
        f"share about {share / (2 - share):.3f}. Scored on n = {report.scored_forget:,} or more forgotten and "
        f"{report.scored_retain:,} or more retained training images (run seed {run.seed}). Measures of units stand for "
        "the weights into them."
    )
    pairs = [(table[i, j], measures[i], measures[j]) for i in range(n) for j in range(i)]
    extremes = (
        f" Most alike: {max(pairs)[1]} and {max(pairs)[2]} ({max(pairs)[0]:.2f}); least alike: {min(pairs)[1]} and "
        f"{min(pairs)[2]} ({min(pairs)[0]:.2f})."
        if pairs
        else ""
    )
    alt = f"Heat map of the overlap of {n} attribution methods, from 0 to 1.{extremes}"
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script

    raise SystemExit(script(NAME, draw))
