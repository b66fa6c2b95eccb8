"""Run folders of classifiers for the explorer's tests: made by a run's own stages, with little training."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from analysis.subjects.build import SubjectConfig
from unlearn.documents import RunConfig
from unlearn.run import Run

SIDE = 12
COLOURED = ("circle", "square", "triangle", "ankle boot")


def coloured_images(folder: Path, each: int = 15) -> Path:
    """An image folder of coloured noise around one picture a class, which nobody could draw."""
    rng = np.random.default_rng(0)
    for name in COLOURED:
        centre = rng.integers(0, 256, (SIDE, SIDE, 3))
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = np.clip(centre + rng.normal(0, 40, centre.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def explored(folder: Path, golds: int = 3, method: str | None = None, **subject: object) -> Path:
    """A run up to its edit, with golds; without an audit, which the explorer does not need."""
    torch.set_num_threads(1)
    asked = {"forget": ("6",), "epochs": 2, **subject}
    config = RunConfig(subject=SubjectConfig(**asked), measure="none", method=method, golds=max(golds, 3))
    run = Run(config, folder, lambda *_: None)
    run.original()
    run.locate(("gradient",), check_causes=False)
    run.edit()
    if golds:
        run.train_golds()
    run.note(None)
    return folder
