"""Probes: is the class still there in the hidden layers?

Never compare a probe with chance: the features of an untrained net already let a probe tell sixes well. The golds say
how much is natural. On `cnn` no probe of the first two blocks has power (digit 6, 5-shot: original .909 and .950, 8
golds .906 to .935 and .897 to .945), and the verdict leaves them out by the power rule.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from analysis.audit.bench import Bench, Reading
from analysis.audit.membership import auc
from analysis.representations.probes import fit_probes, standardised
from analysis.training import Progress

SHOTS = {1: 20, 5: 10, 20: 10}
OTHERS_PER_SHOT = 9
FOLDS = 2


def _few_shot(features: torch.Tensor, labels: torch.Tensor, draws: torch.Tensor) -> list[float]:
    weights, biases = fit_probes(features[draws], labels[draws])
    guess = (features @ weights.T + biases > 0).T
    unseen = torch.ones(guess.shape, dtype=torch.bool).scatter(1, draws, False)
    right = unseen & (guess == labels)
    return [
        float((r[labels].sum() / u[labels].sum() + r[~labels].sum() / u[~labels].sum()) / 2)
        for r, u in zip(right, unseen, strict=True)
    ]


def _full(features: torch.Tensor, labels: torch.Tensor, folds: torch.Tensor) -> list[float]:
    out = []
    for fold in range(FOLDS):
        train, test = folds != fold, folds == fold
        weights, biases = fit_probes(features[train][None], labels[train][None])
        scores, truth = features[test] @ weights[0] + biases[0], labels[test]
        out.append(auc(scores[truth], scores[~truth]))
    return out


@dataclass(frozen=True)
class Rows:
    """Which images the probes of all models are trained on.

    Attributes:
        labels: bool [n], whether each image is of a forgotten class.
        draws: int64 [draws, images] by number of shots.
        folds: int64 [n], which half of the full probe each image is in.
    """

    labels: torch.Tensor
    draws: Mapping[int, torch.Tensor]
    folds: torch.Tensor

    @staticmethod
    def of(bench: Bench) -> "Rows":
        """Draw.

        Args:
            bench: Whose images and seed.

        Returns:
            The rows, without the shots for which there are too few images.
        """
        labels = torch.arange(len(bench.forget) + len(bench.retain)) < len(bench.forget)
        generator = torch.Generator().manual_seed(bench.seed)
        known, others = labels.nonzero().flatten(), (~labels).nonzero().flatten()

        def drawn(positions: torch.Tensor, count: int) -> torch.Tensor:
            return positions[torch.randperm(len(positions), generator=generator)[:count]]

        draws = {
            shots: torch.stack([
                torch.cat([drawn(known, shots), drawn(others, min(OTHERS_PER_SHOT * shots, len(others) // 2))])
                for _ in range(repeats)
            ])
            for shots, repeats in SHOTS.items()
            if 2 * shots <= len(known)
        }
        folds = torch.empty(len(labels), dtype=torch.long)
        for positions in (known, others):
            folds[drawn(positions, len(positions))] = torch.arange(len(positions)) % FOLDS
        return Rows(labels, draws, folds)


def probes(bench: Bench, progress: Progress | None = None) -> list[Reading]:
    """Probe every layer, outputs included, with 1, 5 and 20 forgotten examples and with half of the test images.

    Few-shot probes see k forgotten and 9k other test images; the value is their balanced accuracy on all other test
    images, mean over the draws, which are the same for all models. The full probe is trained on one half of the test
    images and its AUC taken on the other, both ways. Shots that would use more than half of the forgotten test
    images are left out.

    Args:
        bench: The models.
        progress: Called with the share done, 0 to 1.

    Returns:
        One reading per layer and number of shots (0: full).
    """
    rows = Rows.of(bench)
    found: dict[tuple[str, int], dict[str, torch.Tensor]] = {}
    for done, name in enumerate(bench.models):
        for layer in bench.layers:
            features = standardised(bench.features[name][layer])
            scores = {shots: _few_shot(features, rows.labels, drawn) for shots, drawn in rows.draws.items()}
            scores[0] = _full(features, rows.labels, rows.folds)
            for shots, values in scores.items():
                found.setdefault((layer, shots), {})[name] = torch.tensor(values, dtype=torch.float64)
        if progress:
            progress((done + 1) / len(bench.models))
    return [
        Reading(
            auditor=f"{f'{shots}-shot' if shots else 'full'} probe, {bench.describe(layer)}",
            group="probe",
            role="inner",
            unit="balanced accuracy" if shots else "AUC",
            outside="above",
            scale="logit",
            values={name: float(scores.mean()) for name, scores in by_model.items()},
            spread={name: float(scores.std()) for name, scores in by_model.items()},
            repeats=len(next(iter(by_model.values()))),
            examples=len(rows.labels),
            telling=bench.original,
            layer=layer,
            shots=shots,
        )
        for (layer, shots), by_model in found.items()
    ]
