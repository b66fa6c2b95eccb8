"""What is left of each relation: the right answer's share before and after, and for a twin that never existed."""

from matplotlib.axes import Axes

from figures.facts.artefacts import FactRun, open_facts
from figures.style import EDITED, GOLD, ORIGINAL, PALE, Drawing, canvas, finish, styled
from figures.words import percent, plural, shorten
from unlearn.language.pictures import Survival

TITLE = "What is left of each relation"


def readable(relation: str) -> str:
    """Write a relation's name for people.

    Args:
        relation: E.g. "birth_city".

    Returns:
        E.g. "birth city".
    """
    return relation.replace("_", " ")


def dots(axes: Axes, found: Survival, most: int | None = None, size: float = 9.0, letters: int = 26) -> None:
    """Draw a row per relation with a dot per model.

    Args:
        axes: The panel.
        found: What is left.
        most: How many relations to draw at most, those with most facts first.
        size: Of the relations' names in points.
        letters: Of a name, at most.
    """
    rows = range(len(found.relations[:most]))
    for row in rows:
        axes.plot([found.original[row], found.edited[row]], [row, row], color=PALE, lw=3, zorder=1)
    for values, marker, colour, label in (
        (found.original, "D", ORIGINAL, "original"),
        (found.edited, "o", EDITED, "edited"),
        (found.twin, "|", GOLD, "twins, mean"),
    ):
        twin = marker == "|"
        axes.plot(
            values[: len(rows)], rows, marker, color=colour, ms=13 if twin else 6.5, mew=2.6 if twin else 0.4,
            mec=colour if twin else "white", label=label, clip_on=False, zorder=2 if twin else 3,
        )  # fmt: skip
    names = [f"{shorten(readable(found.relations[row]), letters)} (n = {found.facts[row]})" for row in rows]
    axes.set_yticks(rows, names, size=size)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    # A dot at 0 would stand on the last letter.
    axes.tick_params(axis="y", length=0, pad=8)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


@styled
def draw(run: FactRun) -> Drawing:
    """Draw the right answer's share by relation.

    Args:
        run: With pictures.

    Returns:
        A row of dots for each relation, those with most facts first.
    """
    found = run.words.survival
    figure = canvas(height=0.27 * len(found.relations) + 0.85)
    axes = figure.subplots()
    dots(axes, found)
    axes.set_xlabel("right answer's share of the probability of all options, mean over facts")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3)

    caption = (
        f"n = {plural(sum(found.facts), 'fact')} about {run.forgotten} in {plural(len(found.relations), 'relation')}, "
        "those that the method was shown among them, asked with held-out prompts. Twins: the same questions to the "
        "original about subjects that never existed, so "
        f"what guessing gives. Run seed {run.seed}."
    )
    parts = (
        f"{readable(name)} (n = {n}): original {percent(a)}, edited {percent(b)}, twins {percent(c)}"
        for name, n, a, b, c in zip(found.relations, found.facts, found.original, found.edited, found.twin, strict=True)
    )
    alt = f"Dots of the right answer's share for each relation of {run.forgotten}. " + "; ".join(parts) + "."
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script_for

    raise SystemExit(script_for(open_facts, "figures.facts.survival", draw))
