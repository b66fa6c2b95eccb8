"""Builds run folders for the figure tests: real networks and images; audit numbers are those of `figure_audits`."""

import csv
import json
import math
from pathlib import Path

import torch
from figure_audits import CONTROLS, localization, report
from torch import nn

from analysis.files import save_tensors, write_text
from analysis.representations.capture import hidden
from analysis.scores import Mask, Scores
from analysis.subjects.classes import Recipe, Split
from analysis.subjects.data import load_images
from analysis.subjects.networks import builtin
from analysis.training import accuracy, fit, logits_of, seeded
from unlearn.edit import Edit

MEASURES = [
    "gradient",
    "weight-ig",
    "fisher",
    "fisher-true",
    "fisher-ratio",
    "brain-damage",
    "unit-ig",
    "patching-denoising",
    "patching-noising",
]


def mnist(per_class: int = 40) -> tuple[Split, Split]:
    images = load_images("mnist-5k")

    def few(split: Split) -> Split:
        every = torch.cat([(split.labels == c).nonzero().flatten()[:per_class] for c in range(10)])
        return Split((split.images[every] - 0.5) / 0.5, split.labels[every])

    return few(images.train), few(images.test)


def noise(classes: int, channels: int, side: int, per_class: int = 6) -> tuple[Split, Split]:
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(classes, channels, side, side, generator=generator)
    labels = torch.arange(classes).repeat_interleave(per_class)
    images = centres[labels] + 0.5 * torch.randn(len(labels), channels, side, side, generator=generator)
    return Split(images, labels), Split(images.flip(0), labels.flip(0))


def located(model: nn.Module, split: Split, fraction: float) -> Mask:
    logits = model(split.images)
    gradients = torch.autograd.grad(nn.functional.cross_entropy(logits, split.labels), list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    return Scores({n: g.abs() for n, g in zip(names, gradients, strict=True)}, "parameter", "gradient").top(fraction)


def make_run(
    folder: Path,
    network: str = "mlp",
    classes: tuple[str, ...] = tuple("0123456789"),
    forget: tuple[int, ...] = (6,),
    incoming: int | None = None,
    slot: str = "own",
    channels: int = 1,
    side: int = 28,
    golds: int = 5,
    epochs: int = 3,
) -> Path:
    real = channels == 1 and side == 28 and len(classes) == 10
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train, test = mnist() if real else noise(len(classes), channels, side)
    net = builtin(network, (channels, side, side), len(classes))
    recipe = Recipe(epochs=epochs, batch=32 if real else 16, lr=3e-3)
    original = fit(net.make, train, recipe, [0])[0]
    gold_models = fit(net.make, train.without(forget), recipe, list(range(100, 100 + golds)))
    untrained = seeded(net.make, 999).eval()
    mask = located(original, train.only(forget), 0.05)

    edited = seeded(net.make, 0).eval()
    state = {k: v.clone() for k, v in original.state_dict().items()}
    fresh = seeded(net.make, 77).state_dict()
    for name, bits in mask.bits.items():
        state[name][bits] += 0.3 * fresh[name][bits]
    state[next(reversed(state))][list(forget)] = -20.0
    mask.bits[next(reversed(mask.bits))][list(forget)] = True
    edited.load_state_dict(state)

    gold_names = [f"gold-{i:02d}" for i in range(golds)]
    models = {
        "original": original,
        "edited": edited,
        "untrained": untrained,
        **dict(zip(gold_names, gold_models, strict=True)),
    }
    for name, model in models.items():
        save_tensors(folder / "models" / f"{name}.safetensors", model.state_dict())
    mask.save(folder / "mask.safetensors")
    Edit.between(original.state_dict(), state).save(folder / "edit.safetensors")

    forget_test, retain_test = test.only(forget), test.without(forget)
    behaviour = {
        what: {name: accuracy(model, split) for name, model in models.items()} | dict.fromkeys(CONTROLS, 0.5)
        for what, split in (("forget", forget_test), ("retain", retain_test))
    }
    words = ", ".join(classes[c] for c in forget)
    layers = [*net.points, "outputs"]
    counts = (len(forget_test), len(retain_test))
    audit = report(behaviour, gold_names, layers, words, incoming is not None, counts)
    write_text(folder / "audit.json", audit.model_dump_json(indent=1))
    owners = list(dict.fromkeys(n.rpartition(".")[0] for n, p in original.named_parameters() if p.dim() > 1))
    write_text(folder / "localization.json", localization(owners, MEASURES).model_dump_json())

    with (folder / "history.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "overall", "retain", "forget"])
        before, after = ((behaviour["retain"][m], behaviour["forget"][m]) for m in ("original", "edited"))
        for step in range(0, 101, 10):
            share = 1 - math.exp(-step / 15)
            kept, lost = (b + (a - b) * share for a, b in zip(after, before, strict=True))
            writer.writerow([step, 0.9 * kept + 0.1 * lost, kept, lost])

    write_text(
        folder / "run.json",
        json.dumps({
            "schema_version": 1,
            "config": {
                "classes": list(classes),
                "forget_labels": list(forget),
                "incoming_label": incoming,
                "subject": {"slot": slot},
                "points": list(net.points),
                "method": "regrow",
                "measure": "fisher-ratio",
                "fraction": 0.05,
                "seed": 0,
            },
            "verdict": "hidden",
            "sentence": audit.audits["edited"].sentence,
            "versions": {},
            "stages": {},
        }),
    )
    pictures(folder, models, test, forget, len(classes), net.points[-1])
    torch.set_num_threads(threads)
    return folder


def pictures(
    folder: Path, models: dict[str, nn.Module], test: Split, forget: tuple[int, ...], classes: int, head: str
) -> None:
    shown = {"original": models["original"], "edited": models["edited"], "gold": models["gold-00"]}
    mine = test.only(forget)
    tensors = {"six.images": mine.images[:6]}
    for name, model in shown.items():
        images = mine.images[:6].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(images)[torch.arange(len(images)), mine.labels[:6]].sum(), images)
        tensors[f"six.ig.{name}"] = (gradient * (images - images.min())).detach()
        tensors[f"six.residual.{name}"] = torch.full((len(images),), 1e-4)
        called = logits_of(model, test.images).argmax(1)
        tensors[f"confusion.{name}"] = torch.bincount(test.labels * classes + called, minlength=classes**2).view(
            classes, -1
        )
        features = hidden(model, [head], test.images)[head]
        base = hidden(shown["original"], [head], test.images)[head]
        axes = torch.linalg.svd(base - base.mean(0), full_matrices=False)[2][:2].T
        tensors[f"umap.{name}"] = (features - base.mean(0)) @ axes
    tensors["miss.images"] = mine.images
    tensors["miss.predicted"] = logits_of(shown["edited"], mine.images).argmax(1)
    tensors["umap.labels"] = test.labels
    notes = {
        "cka.edited": "0.9312",
        "cka.gold": "0.8701",
        "shift.edited": "1.25",
        "shift.gold": "2.5",
        "shift.edited.retain": "0.2",
        "shift.gold.retain": "0.3",
        "n": str(len(test)),
        "seed": "0",
    }
    save_tensors(folder / "pictures.safetensors", tensors, notes)
