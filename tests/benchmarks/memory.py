"""The memory peak of each stage on SmolLM2: bytes of tensors that are alive, and what they are."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from analysis.audit.facts.case import Budget, Case
from analysis.audit.facts.recall import recall
from analysis.audit.facts.relearning import relearning
from analysis.fact_localization import score
from figures.scaling import AIM, Peak
from tests.benchmarks.steps import SIZES, ours, random_mask
from tests.benchmarks.subjects import beatles, smollm2
from unlearn.methods.language.batches import fact_batches

MOMENTS = 2
STEPS = 2
LARGEST = 4
NEWS = 1.02
BUDGET = Budget(taught=4, judged=4, asked=4, shown=4, wordings=1, steps=2, rates=(1e-4,))


class Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside and still alive, forward and backward.

    Attributes:
        peak: Most bytes at once.
        held: What was alive about then: bytes by operation and shape.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.held: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self._now = 0
        self._told = 0
        self._alive: dict[int, tuple[int, str, tuple[int, ...]]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                # Views and results in place hold no memory of their own.
                if size and key not in given and key not in self._alive:
                    self._alive[key] = size, str(func), tuple(tensor.shape)
                    self._now += size
                    weakref.finalize(storage, self._gone, key)
        self.peak = max(self.peak, self._now)
        if self._now > NEWS * self._told:
            self._told = self._now
            self.held = Counter()
            for size, made_by, shape in self._alive.values():
                self.held[made_by, shape] += size
        return out

    def _gone(self, storage: int) -> None:
        self._now -= self._alive.pop(storage)[0]


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
