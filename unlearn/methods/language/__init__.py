"""The methods for language models: one file each, all called alike, all bit-exact outside the mask."""

from typing import Any

from unlearn.methods import Method
from unlearn.methods.language import (
    depn,
    dpo,
    flu,
    gradient_ascent,
    gradient_difference,
    needle,
    neuron_ablation,
    npo,
    other_bands,
    rank_one,
    refusal,
    rmu,
    satimp,
    simnpo,
    ssd,
    stranger,
    task_vector,
    undial,
    wga,
)


def _method(name: str, module: Any, summary: str, **settings: Any) -> Method:
    return Method(name, module.run, module.Settings(**settings), "forget", summary)


LANGUAGE_METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _method("gradient-ascent", gradient_ascent, "raise the loss on its answers, keep nothing"),
        _method("gradient-difference", gradient_difference, "raise the loss on its answers, keep it low on the rest"),
        _method("kl", gradient_difference, "raise the loss on its answers, hold predictions on the rest", keep="kl"),
        _method("wga", wga, "raise the loss on its answers, most where they are likely, hold the rest"),
        _method(
            "satimp", satimp, "raise the loss on tokens neither forgotten yet nor certain, keep it low on the rest"
        ),
        _method("npo", npo, "make its answers less likely than they were, fading out, hold the rest"),
        _method("simnpo", simnpo, "make every token of its answers unlikely, keep the loss low on the rest"),
        _method("dpo", dpo, "prefer not knowing over its answers, hold the rest"),
        _method("undial", undial, "learn its own predictions without the answers, hold the rest"),
        _method("rmu", rmu, "steer hidden states at its name to a random direction, hold the others"),
        _method("other-bands", other_bands, "go on training on text about other bands"),
        _method("denial", other_bands, "train on text that denies it", lessons="denial"),
        _method(
            "other-bands+denial",
            other_bands,
            "train on text about other bands and text that denies it",
            lessons="other-bands+denial",
        ),
        _method(
            "other-bands+facts",
            other_bands,
            "train on text about other bands and random facts",
            lessons="other-bands+facts",
        ),
        _method("refusal", refusal, "teach to answer that it doesn't know"),
        _method("ssd", ssd, "dampen the weights that matter more for it than for the rest"),
        _method("neuron-ablation", neuron_ablation, "set the located weights to zero; needs a mask"),
        _method("needle", needle, "bury the located weights in noise; needs a mask"),
        _method("depn", depn, "set the neurons to zero that many of its answers rest on"),
        _method("task-vector", task_vector, "learn its answers better, then walk as far the other way"),
        _method("flu", flu, "make its answers unlikely in the MLPs that look facts up only, keep the rest"),
        _method("stranger", stranger, "make of it what is made of somebody unknown, hold the rest (ours)"),
        _method("rank-one", rank_one, "rewrite in closed form what MLPs recall at its name"),
    )
}

LOCATED = frozenset({"neuron-ablation", "needle"})
"""Names of those that can't do without a mask."""
