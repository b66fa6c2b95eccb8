"""Digit 6 and others to be forgotten or replaced in small nets, and what is compared of their weights."""

import torch

from analysis.scores import Scores
from analysis.subjects.classes import ClassSubject
from analysis.subjects.networks import builtin
from analysis.training import seeded
from unlearn.methods.targets import FRESH

TASKS = {
    "forget": {"forget": (6,)},
    "several": {"forget": (4, 9)},
    "replace-own": {"forget": (6,), "incoming": 3},
    "replace-old": {"forget": (6,), "incoming": 3, "slot": "old"},
}


def subject_of(digits, task, net="mlp"):
    network = builtin(net, (1, 14, 14), 10)
    return ClassSubject(task, "mnist-5k", tuple("0123456789"), *digits, network=network, **TASKS[task])


def drawn_afresh(subject, seed):
    return seeded(subject.network.make, FRESH + seed).eval()


def some_weights(model, share=0.05):
    generator = torch.Generator().manual_seed(0)
    scores = {n: torch.rand(p.shape, generator=generator) for n, p in model.named_parameters()}
    return Scores(scores, "parameter", "random").top(share)


def state_bytes(model, outside=None):
    out = {}
    for name, tensor in model.state_dict().items():
        if outside is not None and name in outside.bits:
            tensor = tensor[~outside.bits[name]]
        out[name] = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return out
