"""Which places carry the answer: exact activation patching of one pair of prompts, by layer and position."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.artefacts import Missing
from figures.facts.artefacts import FactRun, open_facts
from figures.facts.words import changed_token, token
from figures.style import DIVERGING, FAINT, Drawing, canvas, centred, finish, styled

TITLE = "Which places carry the answer: activation patching"
SITES = {
    "resid": "residual stream entering the block",
    "attn": "attention output",
    "mlp": "MLP output",
    "head": "single heads, at all positions",
}


def _map(figure: Figure, axes: Axes, values: np.ndarray, title: str, rho: float) -> None:
    norm = centred(values)
    axes.imshow(values, cmap=DIVERGING, norm=norm, aspect="auto", origin="lower")
    axes.set_title(title)
    told = f"ρ {rho:.2f}" if math.isfinite(rho) else "ρ undefined"
    axes.set_title(told, loc="right", size=8.5, color=FAINT)
    axes.yaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.set_ylabel("block")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(ScalarMappable(norm, DIVERGING), ax=axes, aspect=22, pad=0.02)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(4)
    bar.update_ticks()


@styled
def draw(run: FactRun) -> Drawing:
    """Draw how much of the answer each place of the clean run restores in the corrupt run.

    Args:
        run: With pictures.

    Returns:
        Maps of layer x position for residual stream, attention and MLP, and of layer x head; each with its own signed
        scale, and with the rank correlation of its first-order guess.

    Raises:
        Missing: No pair of equally long prompts was found.
    """
    patching = run.words.patching
    if patching is None:
        raise Missing(f"The run in {run.folder} found no two prompts of equal length to patch; give the bank more.")
    maps = {site: run.picture(f"exact.{site}") for site in SITES}
    labels = [changed_token(a, b) for a, b in zip(patching.clean, patching.corrupt, strict=True)]

    figure = canvas(height=5.9)
    panels = figure.subplots(2, 2)
    for axes, (site, title) in zip(panels.flat, SITES.items(), strict=True):
        _map(figure, axes, maps[site], title, patching.rank_correlation.get(site, math.nan))
        if site == "head":
            axes.set_xlabel("head")
            axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        else:
            axes.set_xticks(range(len(labels)), labels, rotation=90, size=8)
            for label, a, b in zip(axes.get_xticklabels(), patching.clean, patching.corrupt, strict=True):
                label.set_fontweight("normal" if a == b else "bold")

    answer, wrong = token(patching.answer), token(patching.wrong)
    caption = (
        f'One place at a time is copied from the clean run to the corrupt one (n = 1 pair of prompts). "{answer}" '
        f'leads "{wrong}" by {patching.lead_clean:.2f} nats after the clean prompt and by {patching.lead_corrupt:.2f} '
        "after the corrupt one; 1 restores the whole difference, 0 nothing. Bold: clean / corrupt token. Each panel "
        "has its own scale. ρ: Spearman's rank correlation with attribution patching, the first-order guess, over the "
        f"panel's cells. Original model, run seed {run.seed}; blocks and heads are counted from 0."
    )
    parts = []
    for site, title in SITES.items():
        row, column = np.unravel_index(int(np.nanargmax(maps[site])), maps[site].shape)
        where = f"head {column}" if site == "head" else f'at "{labels[column]}"'
        parts.append(
            f"{title}: at most {maps[site][row, column]:.2f} in block {row}, {where}, "
            f"rank correlation {patching.rank_correlation.get(site, math.nan):.2f}"
        )
    alt = f'Four maps of the effect of activation patching on the answer "{answer}". ' + "; ".join(parts) + "."
    return finish(figure, TITLE, caption, alt)


if __name__ == "__main__":
    from figures.save import script_for

    raise SystemExit(script_for(open_facts, "figures.facts.patching", draw))
