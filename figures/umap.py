"""How the last hidden layer arranges the test images before and after, and in a model that never knew."""

import numpy as np

from figures.artefacts import Run
from figures.style import EDITED, FAINT, FORGOTTEN, GOLD, INK, ORIGINAL, Drawing, canvas, finish, styled
from figures.words import squeeze

NAME = "umap"
TITLE = "How the last hidden layer sees the classes"
MOST_NAMED, MOST_LETTERS = 12, 12
RASTERISE_FROM = 4000
# Size of a letter and of a line, as shares of a panel.
LETTER, LINE = 0.026, 0.05
MARKS = "o^sDvP"


def _note(run: Run, name: str) -> str:
    rest = run.picture_note(f"shift.{name}.retain")
    beside = "" if rest == "not measured" else f" (rest {rest})"
    return f"CKA {run.picture_note(f'cka.{name}')}, shift {run.picture_note(f'shift.{name}')}{beside}"


@styled
def draw(run: Run) -> Drawing:
    """Draw the UMAP projections of the last hidden layer, fitted on the original, on the same axes.

    What the edited and the gold model show is their geometry, up to shift, rotation and scale: `collect_pictures` has
    brought both into the original's basis.

    Args:
        run: With pictures.

    Returns:
        Three panels, forgotten classes highlighted, with similarity and shift measured in the original space.
    """
    models = {"original": ORIGINAL, "edited": EDITED, "gold": GOLD}
    places = {name: run.picture(f"umap.{name}") for name in models}
    labels = run.picture("umap.labels").astype(int)
    known = np.isin(labels, run.forget)
    every = np.concatenate(list(places.values()))
    low, high = every.min(0), every.max(0)
    room = 0.06 * (high - low)
    notes = {"original": "", **{name: _note(run, name) for name in ("edited", "gold")}}
    named = len(run.classes) <= MOST_NAMED

    figure = canvas(height=3.3)
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    for axes, (name, colour) in zip(panels, models.items(), strict=True):
        points = places[name]
        many = len(points) > RASTERISE_FROM
        axes.scatter(*points[~known].T, s=5, color="#BDBDBD", lw=0, rasterized=many)
        for label, mark in zip(run.forget, MARKS * len(run.forget), strict=False):
            axes.scatter(
                *points[labels == label].T,
                s=13,
                color=FORGOTTEN,
                marker=mark,
                lw=0.25,
                edgecolor="white",
                rasterized=many,
                label=run.classes[label],
            )
        taken: list[tuple[float, float, float]] = []
        for label in sorted(set(labels.tolist()), key=lambda label: label not in run.forget) if named else []:
            x, y = np.median(points[labels == label], 0)
            forgotten = label in run.forget
            word = squeeze(run.classes[label], MOST_LETTERS)
            width = LETTER * len(word) * (1.3 if forgotten else 1)
            across, up = ((x - low[0]) / (high[0] - low[0]), (y - low[1]) / (high[1] - low[1]))
            # Inside the panel as a whole.
            across = min(max(across, width / 2), 1 - width / 2)
            if any(abs(across - a) < (width + w) / 2 and abs(up - b) < LINE for a, b, w in taken):
                continue
            taken.append((across, up, width))
            text = axes.text(
                low[0] + across * (high[0] - low[0]),
                y,
                word,
                ha="center",
                va="center",
                size=9.5 if forgotten else 8,
                color="#8E3A6B" if forgotten else INK,
                weight="bold" if forgotten else "normal",
            )
            text.set_bbox({"facecolor": "white", "alpha": 0.75, "lw": 0, "boxstyle": "round,pad=0.12"})
        axes.set_xlim(low[0] - room[0], high[0] + room[0])
        axes.set_ylim(low[1] - room[1], high[1] + room[1])
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(visible=True, color="#cccccc")
        axes.set_title(name, color=colour, weight="bold")
        axes.set_title(notes[name], loc="right", size=8.5, color=FAINT if not notes[name] else INK)
    handles, texts = panels[0].get_legend_handles_labels()
    if not named or len(run.forget) > 1:
        figure.legend(handles, texts, loc="outside upper left", ncols=6, title=None)

    n = run.picture_note("n")
    caption = (
        "UMAP of the last hidden layer's activations, fitted on the original; the edited and the gold model are "
        "placed on the same map, each after the shift, rotation and scale that best carry retained training images to "
        "their places in the original, since another basis is no other geometry. n = "
        f"{len(labels) if n == 'not measured' else n} test images, {int(known.sum())} of them {run.forgotten} "
        f"(purple); seed {run.picture_note('seed')}. Distances on the map can't be read as such; measured in the full "
        "space, against the original: linear CKA (1: same geometry) and how far a class's centroid lies from its old "
        "place, in units of the class's spread."
    )
    alt = (
        f"Three scatter plots of the last hidden layer with {run.forgotten} highlighted: original, edited "
        f"({notes['edited']}) and gold ({notes['gold']})."
    )
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script

    raise SystemExit(script(NAME, draw))
