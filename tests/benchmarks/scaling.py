"""How the cost of each stage grows: `python -m tests.benchmarks.scaling` writes results/scaling/scaling.json.

Every series spans a factor of 16 or more; a point is the median of three readings, all sizes in turn. The exponent is
that of the power of the size that fits the seconds best (least squares of the logarithms). Networks and language models
are randomly initialised where only their size matters. With the series goes each stage's memory peak.
"""

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.attribution.fisher import fisher_diagonal
from analysis.attribution.language_patching import activation_patching
from analysis.audit.bench import Bench
from analysis.audit.facts.case import Budget, Case
from analysis.audit.facts.verdict import read_case
from analysis.audit.verdict import audit
from analysis.files import write_text
from analysis.memory import keep_freed_memory
from analysis.scores import Mask
from analysis.subjects.classes import ClassSubject, Recipe
from analysis.training import fit, seeded
from figures.scaling import FILE, Scaling, Series
from tests.benchmarks.forgetting import repeated
from tests.benchmarks.memory import peaks
from tests.benchmarks.report import machine
from tests.benchmarks.subjects import beatles, digits
from tests.benchmarks.timing import seconds
from unlearn.optimize import descend

FOLDER = Path(__file__).parent / "results" / "scaling"
ROUNDS = 3
LEAST = 0.1
BRIEF = Recipe(epochs=2, batch=64, lr=3e-3)
STEPS = 10
TAIL = 3

Work = Callable[[], Any]
Sized = tuple[float, Work]
"""The size and the work to be timed."""


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Fit a power.

    Args:
        x: Sizes, above 0.
        y: Seconds, above 0.

    Returns:
        The slope of the line through the logarithms.
    """
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def timed(stage: str, by: str, unit: str, cases: Sequence[Sized], rounds: int = ROUNDS) -> Series:
    """Time a stage at all of its sizes in turn.

    Args:
        stage: See `Series`.
        by: See there.
        unit: See there.
        cases: Sizes, rising, and what to do at each.
        rounds: Readings of each.

    Returns:
        The series.
    """
    found: list[list[float]] = [[] for _ in cases]
    cases[0][1]()
    for _ in range(rounds):
        for mine, (_, work) in zip(found, cases, strict=True):
            gc.collect()
            mine.append(seconds(work, LEAST))
    x, y = [float(size) for size, _ in cases], [statistics.median(mine) for mine in found]
    return Series(
        stage=stage, by=by, unit=unit, x=x, seconds=y, slope=exponent(x, y), tail=exponent(x[-TAIL:], y[-TAIL:])
    )


def weights(model: nn.Module) -> int:
    """Count a model's weights."""
    return sum(p.numel() for p in model.parameters())


def wide(width: int) -> nn.Module:
    """Make a classifier of digits with two hidden layers of one width."""
    layers = [nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
    return seeded(lambda: nn.Sequential(*layers), 0).eval()


def llama(layers: int, width: int = 64, vocabulary: int = 400) -> nn.Module:
    """Make a randomly initialised Llama."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, bos_token_id=0, eos_token_id=0,
        tie_word_embeddings=True, initializer_range=0.1,
    )  # fmt: skip
    return seeded(lambda: LlamaForCausalLM(config), 0).eval()


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Draw token ids."""
    return torch.randint(1, 400, (rows, length), generator=torch.Generator().manual_seed(seed))


def share_of(model: nn.Module, share: float) -> Mask:
    """Draw a mask of a share of all weights."""
    generator = torch.Generator().manual_seed(0)
    return Mask({name: torch.rand(p.shape, generator=generator) < share for name, p in model.named_parameters()})


def edit(model: nn.Module, mask: Mask, subject: ClassSubject) -> Work:
    """Take some steps of an edit of a classifier."""
    images, labels = subject.train.images[:64], subject.train.labels[:64]

    def loss(work: nn.Module, _: None) -> torch.Tensor:
        return functional.cross_entropy(work(images), labels)

    return lambda: descend(model, [None] * STEPS, loss, mask)


def edit_language(model: nn.Module, rows: torch.Tensor) -> Work:
    """Take some steps of an edit of a language model under a mask of a hundredth of its weights."""
    mask = share_of(model, 0.01)

    def loss(work: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        return work(input_ids=ids, labels=ids, use_cache=False).loss

    return lambda: descend(model, [rows] * STEPS, loss, mask)


def bench(subject: ClassSubject, golds: Sequence[nn.Module]) -> Bench:
    """Put an original and golds side by side."""
    original = fit(subject.network.make, subject.original_train, BRIEF, [0])[0]
    named = {f"gold-{i:02d}": gold for i, gold in enumerate(golds)}
    untrained = seeded(subject.network.make, 1)
    return Bench(subject, {"original": original, "untrained": untrained, **named}, tuple(named))


def fresh(whole: Bench, golds: int) -> Work:
    """Audit with some of the golds; nothing is remembered from one time to the next."""
    some = whole.golds[:golds]
    models = {name: whole.models[name] for name in ("original", "untrained", *some)}
    return lambda: audit(Bench(whole.subject, models, some))


def case(facts: int, model: nn.Module) -> Work:
    """Ask about some facts and look inside."""
    subject = beatles()
    every = (*subject.forget, *subject.forget_test)
    some = replace(subject, forget=every[:facts], forget_test=every[:facts])
    asked = Budget(asked=facts, shown=facts)
    return lambda: read_case(Case(model, some, lambda: model, asked), keeps=False, attacks=False)


def locating(subject: ClassSubject) -> Iterator[Series]:
    """Locate by samples, weights and layers."""
    many = repeated(subject.train, 2, 0)
    net = wide(128)

    def fisher(model: nn.Module, count: int) -> Work:
        return lambda: fisher_diagonal(model, many.images[:count], many.labels[:count], "true")

    yield timed("locate (Fisher)", "samples", "images", [(n, fisher(net, n)) for n in (128, 512, 2000, 8000)])
    nets = [wide(width) for width in (64, 128, 256, 512, 1024)]
    yield timed("locate (Fisher)", "weights", "weights", [(weights(one), fisher(one, 128)) for one in nets])
    ids = tokens(8, 16)
    deep = [(n, llama(n)) for n in (2, 4, 8, 16, 32)]
    yield timed(
        "locate (Fisher), language model", "layers", "layers",
        [(n, lambda model=model: fisher_diagonal(model, ids, ids, chunk=8)) for n, model in deep],
    )  # fmt: skip


def patching() -> Iterator[Series]:
    """Patch exactly by layers and positions."""

    def patch(model: nn.Module, length: int) -> Work:
        clean, corrupt = tokens(2, length).unbind()
        return lambda: activation_patching(model, clean, corrupt, 5, 7)

    deep = [(n, llama(n)) for n in (2, 4, 8, 16, 32)]
    yield timed("exact patching", "layers", "layers", [(n, patch(model, 12)) for n, model in deep])
    model = llama(4)
    yield timed("exact patching", "positions", "tokens", [(n, patch(model, n)) for n in (6, 12, 24, 48, 96)])


def editing(subject: ClassSubject) -> Iterator[Series]:
    """Edit by weights, share of the mask and layers."""
    nets = [wide(width) for width in (64, 128, 256, 512, 1024)]
    cases = [(weights(one), edit(one, share_of(one, 0.2), subject)) for one in nets]
    yield timed(f"edit, {STEPS} steps", "weights", "weights, a fifth in the mask", cases)
    net = wide(1024)
    shares = [2.0**-n for n in (8, 6, 4, 2, 0)]
    cases = [(100 * share, edit(net, share_of(net, share), subject)) for share in shares]
    yield timed(f"edit, {STEPS} steps", "masked share", "% of 1.9 million weights", cases)
    rows = tokens(8, 16)
    deep = [(n, edit_language(llama(n), rows)) for n in (2, 4, 8, 16, 32)]
    yield timed(f"edit of a language model, {STEPS} steps", "layers", "layers", deep)


def auditing(subject: ClassSubject) -> Iterator[Series]:
    """Train golds and audit, by golds, images and facts."""
    make, counts = subject.network.make, (2, 4, 8, 16, 32)
    cases = [(n, lambda n=n: fit(make, subject.gold_train, BRIEF, list(range(n)))) for n in counts]
    yield timed("train golds, 2 epochs", "golds", "golds", cases)
    golds = fit(make, subject.gold_train, BRIEF, list(range(48)))
    whole = bench(subject, golds)
    yield timed("audit of a class", "golds", "golds", [(n, fresh(whole, n)) for n in (3, 6, 12, 24, 48)])
    some = repeated(subject.test, 8, 1)
    sizes = (500, 1000, 2000, 4000, 8000)
    benches = [(n, replace(whole, subject=replace(subject, test=some.sample(n, 0)))) for n in sizes]
    yield timed("audit of a class, 3 golds", "test images", "images", [(n, fresh(one, 3)) for n, one in benches])
    model = llama(4, vocabulary=len(beatles().tokenizer))
    yield timed(
        "audit of facts, no attacks",
        "facts",
        "facts of either share",
        [(n, case(n, model)) for n in (4, 8, 16, 32, 64)],
    )


def series() -> Iterator[Series]:
    """Time all stages."""
    subject = digits()
    yield from locating(subject)
    yield from patching()
    yield from editing(subject)
    yield from auditing(subject)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scaling", description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()  # as the command line does
    begun = time.perf_counter()
    found, memory = [], []
    for one in series():
        found.append(one)
        factor = one.x[-1] / one.x[0]
        print(
            f"{one.stage} by {one.by}: power {one.slope:.2f} ({one.tail:.2f} at the end) over a factor of {factor:.0f}",
            one.seconds,
            flush=True,
        )
    for peak in peaks():
        memory.append(peak)
        print(f"{peak.stage}: {peak.ratio:.2f} of model and moments", peak.holds, flush=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    whole = Scaling(machine=machine(), series=found, memory=memory)
    write_text(FOLDER / FILE, whole.model_dump_json(indent=2) + "\n")
    print(f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
