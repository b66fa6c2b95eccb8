"""Which pixels speak for the forgotten class: integrated gradients of several of its images, before, after and gold."""

import numpy as np

from figures.artefacts import Run
from figures.style import (
    DIVERGING,
    EDITED,
    GOLD,
    INK,
    ORIGINAL,
    Drawing,
    bare,
    canvas,
    centred,
    finish,
    picture,
    styled,
)

NAME = "attribution"
TITLE = "Which pixels speak for the forgotten class"
MOST = 8
COVERED = 0.995
TILE = 0.98


@styled
def draw(run: Run) -> Drawing:
    """Draw images of the forgotten class and their pixel attributions on one signed scale.

    Args:
        run: With pictures.

    Returns:
        One column an image; rows image, original, edited, gold. Channels are summed.
    """
    images = run.picture("six.images")[:MOST]
    models = {"original": ORIGINAL, "edited": EDITED, "gold": GOLD}
    maps = {name: run.picture(f"six.ig.{name}")[:MOST].sum(1) for name in models}
    residuals = {name: np.abs(run.picture(f"six.residual.{name}")[:MOST]).max() for name in models}
    norm = centred(*maps.values(), quantile=COVERED)
    low, high = float(images.min()), float(images.max())

    n = len(images)
    figure = canvas(height=TILE * 4 + 0.1, width=max(5.6, TILE * n + 1.4))
    axes = figure.subplots(4, n, squeeze=False)
    for column in range(n):
        axes[0, column].imshow(picture(images[column], low, high))
        for row, name in enumerate(models, start=1):
            drawn = axes[row, column].imshow(maps[name][column], cmap=DIVERGING, norm=norm)
            if images.shape[1] == 1:
                shape = images[column, 0]
                axes[row, column].contour(shape, [(low + high) / 2], colors=INK, linewidths=0.5, alpha=0.55)
    for panel in axes.flat:
        bare(panel)
        for spine in panel.spines.values():
            spine.set(visible=True, color="#cccccc", linewidth=0.6)
    for row, (label, colour) in enumerate({"image": INK, **models}.items()):
        axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center", color=colour, weight="bold", labelpad=6)
    bar = figure.colorbar(drawn, ax=axes[1:, :], shrink=0.8, aspect=28, extend="both", pad=0.015)
    bar.set_label(f"against  ←  logit of {run.briefly}  →  for")
    bar.outline.set_visible(False)

    each = ", ".join(f"{name} {value:.2g}" for name, value in residuals.items())
    channels = ", summed over channels" if maps["original"].ndim and run.picture("six.ig.original").shape[1] > 1 else ""
    caption = (
        f"Integrated gradients of the logit of {run.forgotten} with respect to each pixel{channels}, for n = {n} test "
        f"images (seed {run.seed}). One signed scale, centred on zero, for all maps; it covers {COVERED:.1%} of the "
        f"pixels. Largest completeness residual in logits: {each}. The gold model never saw the class."
    )
    strength = {name: float(np.abs(m).sum((1, 2)).mean()) for name, m in maps.items()}
    alt = (
        f"Grid of {n} images of class {run.forgotten} above maps of which pixels speak for (red) or against (blue) the "
        "class, in the original, the edited and a gold model, on one scale. Mean total absolute attribution: "
        + ", ".join(f"{name} {value:.3g}" for name, value in strength.items())
        + "."
    )
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script

    raise SystemExit(script(NAME, draw))
