"""The memory peak of each stage on SmolLM2: bytes of tensors that are alive, and what they are."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from analysis.audit.facts.case import Budget, Case
from analysis.audit.facts.recall import recall
from analysis.audit.facts.relearning import relearning
from analysis.fact_localization import score
from figures.scaling import AIM, Peak
from tests.benchmarks.steps import SIZES, ours, random_mask
from tests.benchmarks.subjects import beatles, smollm2
from tests.live_memory import Alive
from unlearn.methods.language.batches import fact_batches

MOMENTS = 2
STEPS = 2
LARGEST = 4
BUDGET = Budget(taught=4, judged=4, asked=4, shown=4, wordings=1, steps=2, rates=(1e-4,))


def peak_of(stage: str, model: nn.Module, trained: int, work: Callable[[], Any]) -> Peak:
    """Run a stage once and watch its memory.

    Args:
        stage: For people.
        model: In memory before and after.
        trained: Weights that the stage optimises.
        work: The stage.

    Returns:
        What was seen.
    """
    parameters = list(model.parameters())
    size = sum(p.numel() * p.element_size() for p in parameters)
    needed = size + MOMENTS * trained * parameters[0].element_size()
    with Alive() as alive:
        work()
    peak = size + alive.peak
    shapes = {tuple(p.shape) for p in parameters}
    holds: Counter[str] = Counter()
    for (made_by, shape), held in alive.held.items():
        kind = "like weights" if shape in shapes else "others"
        holds[f"{kind}, by {made_by.removeprefix('aten.').partition('.')[0]}"] += held
    return Peak(
        stage=stage, model_bytes=size, bound_bytes=round(AIM * needed), peak_bytes=peak, ratio=peak / needed,
        holds=dict(holds.most_common(LARGEST)),
    )  # fmt: skip


def peaks() -> Iterator[Peak]:
    """Measure every stage of forgetting facts."""
    model, subject = smollm2().model, beatles()
    count = sum(p.numel() for p in model.parameters())
    for measure in ("fisher", "gradient"):
        yield peak_of(f"locate: {measure}", model, 0, lambda measure=measure: score(model, subject, measure, "down", 0))
    blocks = len(model.model.layers)
    batches = fact_batches(subject, *SIZES, STEPS, 0)
    for where, some in (("all blocks", range(blocks)), ("the last sixth", range(blocks - blocks // 6, blocks))):
        mask = random_mask(model, some)
        stage = f"edit: {mask.count / count:.1%} of the weights, in {where}"
        yield peak_of(stage, model, mask.count, lambda mask=mask: ours(model, batches, mask))
    case = Case(model, subject, lambda: model, BUDGET)
    yield peak_of("audit: questions", model, 0, lambda: recall(case))
    yield peak_of("audit: relearning, all weights", model, count, lambda: relearning(case))
