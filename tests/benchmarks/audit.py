"""Golds and the whole audit of digit-6: batched, against one model after another by plain PyTorch and scikit-learn."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import nn
from torch.nn import functional

from analysis.audit import behaviour, distance, membership, similarity
from analysis.audit.bench import Bench
from analysis.audit.probing import FOLDS, Rows
from analysis.audit.relearning import (
    ATTACK_SEEDS,
    AUDITORS,
    GRACE,
    LEARNING_RATES,
    MOST_STEPS,
    TARGET,
    Fresh,
    _Side,
    _sides,
    first_crossing,
)
from analysis.audit.verdict import audit
from analysis.memory import keep_freed_memory
from analysis.representations.probes import standardised
from analysis.subjects.classes import ClassSubject, Recipe, Split
from analysis.training import fit, seeded
from tests.benchmarks.subjects import apart, digits
from tests.benchmarks.timing import Row, row_of

GOLDS = 20
NOTE = (
    "The plain attacks run until two steps past the target at every learning rate; ours also end an attack that can no "
    "longer be the strongest. On one thread the rest is arithmetic that both sides have to do: of a step of 20 nets "
    "(10 ms) the products of matrices take half and Adam's pass over weights, gradients and moments, which no longer "
    "fit into the cache, another third; a net alone takes 1.4 ms."
)
ROUNDS = 2
OTHER_AUDITORS = (
    behaviour.forget_accuracy, behaviour.retain_accuracy, behaviour.confusion, behaviour.over_forgetting,
    distance.distance_to_gold, membership.population_membership, membership.example_membership,
    similarity.similarity_to_gold,
)  # fmt: skip


def trained_alone(make: Callable[[], nn.Module], split: Split, recipe: Recipe, seed: int) -> nn.Module:
    """Train one network the plain way: `analysis.training.fit` does the same for many at once."""
    model = seeded(make, seed).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    generator = torch.Generator().manual_seed(seed)
    steps, step = recipe.epochs * (len(split) // recipe.batch), 0
    for _ in range(recipe.epochs):
        order = torch.randperm(len(split), generator=generator)
        for batch in order[: len(split) // recipe.batch * recipe.batch].split(recipe.batch):
            optimizer.param_groups[0]["lr"] = recipe.lr * (1 - step / steps)
            optimizer.zero_grad()
            functional.cross_entropy(model(split.images[batch]), split.labels[batch]).backward()
            optimizer.step()
            step += 1
    return model.eval()


def _recall(model: nn.Module, side: _Side, taught: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad():
        guess = model(side.scored.images).argmax(1)
    model.train()
    right = guess == side.scored.labels
    alarm = torch.isin(guess, taught) & ~torch.isin(side.scored.labels, taught)
    return float(right[side.truth].double().mean() - alarm[~side.truth].double().mean())


def attacked_alone(model: nn.Module, bench: Bench, sides: list[_Side], fresh: Fresh, lr: float) -> float:
    """Steps until one model has relearned at one learning rate, mean curve of the attack seeds."""
    slots = sorted(set(bench.subject.relearn_slots.values()))
    seeds = [1000 * bench.seed + attack for attack in range(ATTACK_SEEDS)]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    copies = [copy.deepcopy(model).train() for _ in seeds]
    for one, seed in zip(copies, seeds, strict=True):
        head = one.get_submodule(bench.subject.network.head)
        if fresh == "output":
            for parameter in head.parameters():
                parameter.data[slots] = 0.0
        elif fresh == "head":
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                head.reset_parameters()  # type: ignore[operator]
    optimizers = [torch.optim.Adam(one.parameters(), lr=lr) for one in copies]
    curve: list[float] = []
    for step in range(MOST_STEPS + 1):
        if step:
            for side, generator, one, optimizer in zip(sides, generators, copies, optimizers, strict=True):
                batch = side.batch(generator)
                optimizer.zero_grad()
                functional.cross_entropy(one(batch.images), batch.labels).backward()
                optimizer.step()
        recalled = [_recall(one, side, torch.tensor(slots)) for one, side in zip(copies, sides, strict=True)]
        curve.append(sum(recalled) / ATTACK_SEEDS)
        if step >= GRACE and curve[step - GRACE] >= TARGET:
            break
    return first_crossing(curve)


def relearned_alone(bench: Bench) -> dict[str, dict[str, float]]:
    """Relearning steps by auditor and model, one attack after another."""
    sides = _sides(bench)
    return {
        auditor: {
            name: min(attacked_alone(model, bench, sides, fresh, lr) for lr in LEARNING_RATES)
            for name, model in bench.models.items()
        }
        for fresh, auditor in AUDITORS.items()
    }


def probed_alone(bench: Bench, names: tuple[str, ...], tolerance: float = 1e-4) -> dict[str, dict[str, float]]:
    """Probes by auditor and model, one logistic regression after another; the tolerance is scikit-learn's own."""
    rows = Rows.of(bench)
    truth = rows.labels.numpy()
    probe = LogisticRegression(class_weight="balanced", max_iter=10_000, tol=tolerance)
    found: dict[str, dict[str, float]] = {}
    for name in names:
        for layer in bench.layers:
            features = standardised(bench.features[name][layer]).numpy()
            for shots, draws in rows.draws.items():
                values = []
                for drawn in draws.numpy():
                    unseen = ~torch.isin(torch.arange(len(truth)), torch.from_numpy(drawn)).numpy()
                    probe.fit(features[drawn], truth[drawn])
                    values.append(balanced_accuracy_score(truth[unseen], probe.predict(features[unseen])))
                auditor = f"{shots}-shot probe, {bench.describe(layer)}"
                found.setdefault(auditor, {})[name] = sum(values) / len(values)
            values = []
            for fold in range(FOLDS):
                train = (rows.folds != fold).numpy()
                probe.fit(features[train], truth[train])
                values.append(roc_auc_score(truth[~train], probe.decision_function(features[~train])))
            found.setdefault(f"full probe, {bench.describe(layer)}", {})[name] = sum(values) / FOLDS
    return found


def _bench(subject: ClassSubject, golds: list[nn.Module]) -> Bench:
    original = trained_alone(subject.network.make, subject.original_train, subject.network.recipe, 0)
    edited = copy.deepcopy(original)
    edited.get_submodule(subject.network.head).bias.data[list(subject.forget)] = -1e4  # type: ignore[union-attr,operator]
    untrained = seeded(subject.network.make, 500_000)
    named = {f"gold-{i:02d}": gold for i, gold in enumerate(golds)}
    return Bench(subject, {"original": original, "edited": edited, "untrained": untrained, **named}, tuple(named))


def _equal_training(subject: ClassSubject) -> str:
    # In float64: single precision's rounding grows by a factor of a million within an epoch, on either side alike.
    def make() -> nn.Module:
        return subject.network.make().double()

    split = Split(subject.gold_train.images.double(), subject.gold_train.labels)
    recipe, seeds = Recipe(epochs=2, batch=subject.network.recipe.batch, lr=subject.network.recipe.lr), (3, 4, 5)
    far = max(
        apart(mine.detach(), theirs.detach())
        for seed, model in zip(seeds, fit(make, split, recipe, seeds), strict=True)
        for mine, theirs in zip(model.parameters(), trained_alone(make, split, recipe, seed).parameters(), strict=True)
    )
    assert far < 1e-4, f"golds differ by {far:.1e}"
    return f"golds' weights differ by {far:.0e} (float64, 2 epochs)"


def _farthest(mine: Mapping[str, Mapping[str, float]], theirs: Mapping[str, Mapping[str, float]]) -> float:
    return max(abs(mine[a][name] - value) for a, values in theirs.items() for name, value in values.items())


def rows() -> Iterator[Row]:
    """Time both sides in turn, stage by stage, and compare what they read on the same models."""
    keep_freed_memory()  # as the command line does
    subject = digits()
    make, split, recipe = subject.network.make, subject.gold_train, subject.network.recipe
    seeds = [1000 + i for i in range(GOLDS)]
    golds = _equal_training(subject)
    bench = _bench(subject, fit(make, split, recipe, seeds))
    seconds: dict[str, tuple[list[float], list[float]]] = {}
    read: dict[str, Any] = {}

    def timed(stage: str, side: int, work: Callable[[], Any]) -> None:
        begun = time.perf_counter()
        read[f"{stage} {side}"] = work()
        seconds.setdefault(stage, ([], []))[side].append(time.perf_counter() - begun)

    def ours() -> None:
        timed("golds", 0, lambda: fit(make, split, recipe, seeds))
        timed("audit", 0, lambda: audit(Bench(subject, bench.models, bench.golds)))

    def theirs() -> None:
        timed("golds", 1, lambda: [trained_alone(make, split, recipe, seed) for seed in seeds])
        fresh = Bench(subject, bench.models, bench.golds)
        timed("others", 1, lambda: [auditor(fresh) for auditor in OTHER_AUDITORS])
        timed("relearning", 1, lambda: relearned_alone(fresh))
        timed("probes", 1, lambda: probed_alone(fresh, tuple(fresh.models)))

    for turn in range(ROUNDS):
        for side in (ours, theirs) if turn % 2 == 0 else (theirs, ours):
            side()
    found = {m.auditor: m.values for m in read["audit 0"].measurements}
    steps = _farthest(found, read["relearning 1"])
    assert steps < 0.05, f"relearning differs by {steps:.2g} steps"
    read_off = _farthest(found, probed_alone(bench, ("original", "gold-00"), 1e-8))
    assert read_off < 1e-6, f"probes differ by {read_off:.1e}"
    equal = f"{golds}; relearning by {steps:.0e} steps; probes by {read_off:.0e} (scikit-learn at 1e-8)"
    audits = [sum(t) for t in zip(*(seconds[stage][1] for stage in ("others", "relearning", "probes")), strict=True)]
    whole = [
        [a + b for a, b in zip(seconds["golds"][side], t, strict=True)]
        for side, t in enumerate((seconds["audit"][0], audits))
    ]
    size = f"digit-6, mlp, {GOLDS} golds"
    against = "one model after another: plain PyTorch, scikit-learn"
    yield row_of(
        f"audit with its golds: {size}, {len(bench.models)} models", against, *whole, equal, reach=4, note=NOTE
    )
    yield row_of(f"of that, training the golds: {size}", against, *seconds["golds"], golds)
    yield row_of(f"of that, all auditors: {len(bench.models)} models", against, seconds["audit"][0], audits, equal)
