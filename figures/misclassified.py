"""What the edited model calls the images of the forgotten class."""

import numpy as np
from matplotlib.axes import Axes

from figures.artefacts import Run
from figures.style import EDITED, FAINT, FORGOTTEN, Drawing, bare, canvas, finish, picture, styled
from figures.words import plural, squeeze

NAME = "misclassified"
TITLE = "What the edited model calls the forgotten class now"
COLUMNS = 9
MOST = 40
MOST_BARS = 12
ACROSS, DOWN = 1.12, 1.38
FEWEST_ROWS = 7


def spread_out(predicted: np.ndarray, most: int) -> np.ndarray:
    """Choose images so that every answer keeps its share, ordered from the commonest answer to the rarest.

    Args:
        predicted: Answers [m].
        most: How many to choose at most.

    Returns:
        Positions, at most `most`, at least one for each answer while there is room.
    """
    if not len(predicted):
        return np.zeros(0, int)
    answers, counts = np.unique(predicted, return_counts=True)
    answers = answers[np.argsort(-counts, kind="stable")]
    order = np.concatenate([np.flatnonzero(predicted == answer) for answer in answers])
    if len(order) <= most:
        return order
    firsts = [int(np.flatnonzero(predicted == answer)[0]) for answer in answers[:most]]
    evenly = order[np.linspace(0, len(order) - 1, most).round().astype(int)]
    room = [int(i) for i in evenly if i not in firsts][: most - len(firsts)]
    chosen = {*firsts, *room}
    return np.array([i for i in order if int(i) in chosen])


def _grid(axes: Axes, images: np.ndarray, called: list[str], columns: int) -> None:
    """Draw images in rows, each under its answer."""
    low, high = (float(images.min()), float(images.max())) if images.size else (0.0, 1.0)
    size = 6.8 if max(map(len, called), default=1) > 3 else 9
    for index, (image, name) in enumerate(zip(images, called, strict=True)):
        x, y = (index % columns) * ACROSS, (index // columns) * DOWN
        axes.imshow(picture(image, low, high), extent=(x, x + 1, y + 1, y))
        axes.text(x + 0.5, y - 0.06, squeeze(name, 10), size=size, ha="center", va="bottom")
    if not len(images):
        axes.text(0.5, 0.5, "none is called anything else", ha="center", va="center", color=FAINT)
    rows = -(-len(images) // columns)
    axes.set_xlim(-0.02, columns * ACROSS - (ACROSS - 1) + 0.02)
    axes.set_ylim(max(1, rows) * DOWN - (DOWN - 1) + 0.02, 0.98 - DOWN)
    axes.set_anchor("NW")
    axes.set_title("its answer stands above each image")
    bare(axes)


@styled
def draw(run: Run) -> Drawing:
    """Draw test images of the forgotten classes under the edited model's answers.

    Args:
        run: With pictures.

    Returns:
        A grid of images on the left, ordered by answer; bars with the counts of all answers on the right.
    """
    images, predicted = run.picture("miss.images"), run.picture("miss.predicted").astype(int)
    counts = run.picture("confusion.edited")[list(run.forget)].sum(0).astype(int)
    order = np.argsort(-counts, kind="stable").tolist()
    # The images are a part of all: in the order of the bars, which count all.
    chosen = np.array(sorted(spread_out(predicted, MOST), key=lambda i: order.index(predicted[i])), int)
    rows = max(1, -(-len(chosen) // COLUMNS))
    columns = max(1, -(-len(chosen) // rows))
    names = [squeeze(name, 10) for name in run.answers]
    bars = [c for c in order if counts[c]][:MOST_BARS]
    height = max(0.81 * rows + 0.3, 0.22 * max(len(bars), FEWEST_ROWS) + 0.4)

    figure = canvas(height=height)
    left, axes = figure.subplots(1, 2, width_ratios=[0.61 * columns, 2.2])
    _grid(left, images[chosen], [run.answers[c] for c in predicted[chosen]], columns)
    places = np.arange(len(bars))
    axes.barh(places, counts[bars], color=[FORGOTTEN if c in run.old_answers else EDITED for c in bars], height=0.7)
    for place, label in zip(places, bars, strict=True):
        axes.text(counts[label], place, f" {counts[label]:,}", va="center", size=8.5)
    axes.set_yticks(places, [names[c] for c in bars])
    axes.set_ylim(max(len(bars), FEWEST_ROWS) - 0.4, -0.6)
    axes.set_xlim(0, 1.25 * max(1, counts.max()))
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("how often")

    n, still = int(counts.sum()), int(counts[list(run.old_answers)].sum())
    others = len(np.flatnonzero(counts)) - len(bars)
    caption = (
        f"{plural(len(chosen), 'test image')} of {run.forgotten} that the edited model calls something else, ordered "
        f"by its answers; bars: all n = {n:,} test images (run seed {run.seed}, one edited model)."
    )
    caption += f" {still:,} of them still get their old label (purple)." if still else " None gets its old label."
    if others > 0:
        caption += f" {plural(others, 'rarer answer')} not shown."
    caption += run.slot_note
    top = ", ".join(f'"{run.answers[c]}" {counts[c]}' for c in bars[:4])
    alt = (
        f"Grid of {len(chosen)} test images of {run.forgotten} with the edited model's answers. Commonest answers "
        f"among {n}: {top}."
    )
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script

    raise SystemExit(script(NAME, draw))
