"""Relearning: how fast does fine-tuning bring the forgotten class back?

A model that never knew needs several steps; one in which the class is only hidden needs one or two. The head as it is
can hide a lot (a saturated head, such as a logit mask leaves, relearns slower than gold), so the attack is also made
with a fresh output for the forgotten class, and with a wholly fresh head. The last has hardly any power, because
re-teaching the retained classes drowns the difference (digit 6: `mlp` original 3.3 steps, 20 golds 2.4 to 6.5, 0.5
gold sd; `cnn` original 1.5, 8 golds 1.1 to 3.4, 0.5 gold sd), and the power rule then leaves it out of the verdict.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from analysis.audit.bench import Bench, Reading
from analysis.subjects.classes import Split
from analysis.training import Progress, Stack

LEARNING_RATES = (1e-2, 3e-3, 1e-3)
ATTACK_SEEDS = 4
FORGOTTEN_PER_STEP, OTHERS_PER_STEP = 10, 54
MOST_STEPS = 30
GRACE = 2
EVALUATED = 100
TARGET = 0.5
WORTH_DROPPING = 0.125
"""Share of models that are over at which the others are copied out of their company."""

Fresh = Literal["nothing", "output", "head"]
AUDITORS: dict[Fresh, str] = {
    "nothing": "relearning",
    "output": "relearning, fresh output",
    "head": "relearning, fresh head",
}


def first_crossing(curve: Sequence[float], target: float = TARGET) -> float:
    """Find where a curve first reaches a target, between steps by linear interpolation.

    Args:
        curve: Values after 0, 1, 2, ... steps.
        target: What to reach.

    Returns:
        Steps, at least 0; the number of steps of the whole curve where it never gets there.
    """
    for step, value in enumerate(curve):
        if value >= target:
            if step == 0:
                return 0.0
            before = curve[step - 1]
            return step - 1 + (target - before) / (value - before)
    return float(len(curve) - 1)


def _halves(split: Split, seed: int) -> tuple[Split, Split]:
    shuffled = split.sample(len(split), seed)
    half = max(1, len(split) // 2)
    every = torch.arange(len(split))
    return shuffled.take(every[:half]), shuffled.take(every[-half:])


@torch.no_grad()
def _freshen(stack: Stack, model: nn.Module, head: str, outputs: Sequence[int], fresh: Fresh, seed: int) -> None:
    # Gives all models of a stack, of which `model` is one, the same fresh output or head.
    if fresh == "output":
        # Zeros rather than a draw: the luck of a row would drown what the layers below know.
        for name, parameter in stack.parameters.items():
            if name.startswith(f"{head}."):
                parameter[:, torch.tensor(outputs)] = 0.0
    elif fresh == "head":
        module = copy.deepcopy(model.get_submodule(head))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for part in module.modules():
                reset = getattr(part, "reset_parameters", None)
                if callable(reset):
                    reset()
        for name, value in module.state_dict().items():
            {**stack.parameters, **stack.buffers}[f"{head}.{name}"].copy_(value)


@dataclass(frozen=True)
class _Side:
    """What one attack seed trains on and is scored on."""

    known: Split
    others: Split
    scored: Split
    truth: torch.Tensor

    def batch(self, generator: torch.Generator) -> Split:
        a = torch.randint(len(self.known), (FORGOTTEN_PER_STEP,), generator=generator)
        b = torch.randint(len(self.others), (OTHERS_PER_STEP,), generator=generator)
        return self.known.take(a) + self.others.take(b)


def _sides(bench: Bench) -> list[_Side]:
    slots = bench.subject.relearn_slots
    forget = Split(bench.forget.images, torch.tensor([slots[int(label)] for label in bench.forget.labels]))
    sides = []
    for attack in range(ATTACK_SEEDS):
        # Attack seeds come in pairs that swap halves: what one trains on the other is scored on.
        cut = 1000 * bench.seed + attack // 2
        known, others = _halves(forget, cut), _halves(bench.retain, cut)
        mine, theirs = attack % 2, 1 - attack % 2
        positive, negative = known[theirs].sample(EVALUATED, cut), others[theirs].sample(EVALUATED, cut)
        truth = torch.arange(len(positive) + len(negative)) < len(positive)
        sides.append(_Side(known[mine], others[mine], positive + negative, truth))
    return sides


def _attack(
    bench: Bench, lr: float, fresh: Fresh, most: Mapping[str, float], progress: Progress | None = None
) -> dict[str, torch.Tensor]:
    # Fine-tunes copies of all models at once; gives the curves [attack seeds, steps followed + 1] by model. A model is
    # followed until its mean curve has been past the target for `GRACE` steps, but for `most` steps at the most.
    slots = sorted(set(bench.subject.relearn_slots.values()))
    taught = torch.tensor(slots)
    sides = _sides(bench)
    seeds = [1000 * bench.seed + attack for attack in range(ATTACK_SEEDS)]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    names, models = list(bench.models), list(bench.models.values())
    limit = torch.tensor([most[name] for name in names])
    stacks = [Stack(models, lr) for _ in seeds]
    for stack, seed in zip(stacks, seeds, strict=True):
        _freshen(stack, models[0], bench.subject.network.head, slots, fresh, seed)
    curves = torch.zeros(len(names), ATTACK_SEEDS, MOST_STEPS + 1, dtype=torch.float64)
    followed = torch.zeros(len(names), dtype=torch.long)
    following, over = torch.arange(len(names)), torch.zeros(len(names), dtype=torch.bool)
    for step in range(MOST_STEPS + 1):
        if step:
            for stack, side, generator in zip(stacks, sides, generators, strict=True):
                drawn = side.batch(generator)
                stack.step(drawn.images, drawn.labels, shared=True)
        recalled = [_recall(stack, side, taught) for stack, side in zip(stacks, sides, strict=True)]
        curves[following, :, step] = torch.stack(recalled, 1)
        followed[following[~over]] = step
        over = over | (limit[following] <= step)
        if step >= GRACE:
            over = over | (curves[following, :, step - GRACE].mean(1) >= TARGET)
        if bool(over.all()):
            break
        if float(over.double().mean()) >= WORTH_DROPPING:
            for stack in stacks:
                stack.keep(~over)
            following, over = following[~over], over[~over]
        if progress:
            progress(step / MOST_STEPS)
    return {name: curves[i, :, : int(followed[i]) + 1] for i, name in enumerate(names)}


@torch.no_grad()
def _recall(stack: Stack, side: _Side, taught: torch.Tensor) -> torch.Tensor:
    # Recall of the forgotten minus false alarms on the rest, by model.
    guess = stack.logits(side.scored.images).argmax(-1)
    right = guess == side.scored.labels
    alarm = torch.isin(guess, taught) & ~torch.isin(side.scored.labels, taught)
    return right[:, side.truth].double().mean(1) - alarm[:, ~side.truth].double().mean(1)


def _filled(curve: list[float]) -> tuple[float, ...]:
    return (*curve, *[curve[-1]] * (MOST_STEPS + 1 - len(curve)))


def relearning(bench: Bench, progress: Progress | None = None) -> list[Reading]:
    """Count the fine-tuning steps until half of the forgotten test images are recognised again.

    A step is one Adam step on 10 forgotten and 54 other images; three learning rates are tried for every model and
    the strongest (fewest steps) counts; the curve is the mean of four attack seeds. Attackers train on one half of
    the test images and are scored on the other: recall on the forgotten class minus false alarms on the rest, so that
    calling everything a six is no success. A curve is followed until two steps past the target and
    drawn level from there. BatchNorm statistics
    move as in ordinary fine-tuning. All models and seeds are attacked at once, batched.

    Args:
        bench: The models.
        progress: Called with the share done, 0 to 1.

    Returns:
        Three readings, by what is freshly initialised before: steps, capped at 30; fewer than gold means hidden.
    """
    readings = []
    total = len(AUDITORS) * len(LEARNING_RATES)
    for turn, (fresh, auditor) in enumerate(AUDITORS.items()):
        best: dict[str, tuple[float, torch.Tensor]] = {}
        most = dict.fromkeys(bench.models, float(MOST_STEPS))
        for i, lr in enumerate(LEARNING_RATES):
            done = turn * len(LEARNING_RATES) + i

            def report(share: float, done: int = done) -> None:
                if progress:
                    progress((done + share) / total)

            for name, curves in _attack(bench, lr, fresh, most, report).items():
                steps = first_crossing(curves.mean(0).tolist())
                if name not in best or steps < best[name][0]:
                    best[name] = (steps, curves)
                # A weaker attack can't count any more, so it need not be followed to its end.
                most[name] = best[name][0]
        each = {name: torch.tensor([first_crossing(c) for c in curves.tolist()]) for name, (_, curves) in best.items()}
        readings.append(
            Reading(
                auditor=auditor,
                group="relearn",
                role="inner",
                unit="steps",
                outside="below",
                scale="log",
                values={name: steps for name, (steps, _) in best.items()},
                spread={name: float(steps.std()) for name, steps in each.items()},
                repeats=ATTACK_SEEDS,
                examples=len(bench.forget) + len(bench.retain),
                telling=bench.original,
                resolution=0.1,
                curve_x=tuple(float(s) for s in range(MOST_STEPS + 1)),
                curves={name: _filled(curves.mean(0).tolist()) for name, (_, curves) in best.items()},
            )
        )
    return readings
