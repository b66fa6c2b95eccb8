"""Is a hidden layer built like gold's?

On `cnn` this can't tell the original from gold in any layer (digit 6: original .900, .861, .840; 8 golds .830 to .911,
.814 to .879, .823 to .866), and the power rule leaves it out of the verdict there; on `mlp` it can.
"""

import torch

from analysis.audit.bench import Bench, Reading
from analysis.representations.similarity import linear_cka


def similarity_to_gold(bench: Bench) -> list[Reading]:
    """Measure the linear CKA (Kornblith et al., 2019) of each hidden layer with the golds'.

    Taken on the forgotten test images and as many retained ones, so that the forgotten class weighs half.

    Args:
        bench: The models.

    Returns:
        One reading per hidden layer: the mean over golds, at most 1; below the golds' own means built differently.
    """
    n = len(bench.forget)
    readings = []
    for layer in bench.subject.network.points:
        features = {name: layers[layer][: 2 * n].double() for name, layers in bench.features.items()}
        values = {
            name: float(torch.tensor([linear_cka(mine, features[gold]) for gold in bench.other_golds(name)]).mean())
            for name, mine in features.items()
        }
        readings.append(
            Reading(
                auditor=f"CKA to gold, {bench.describe(layer)}",
                group="similarity",
                role="inner",
                unit="CKA",
                outside="below",
                scale="logit",
                values=values,
                examples=min(2 * n, n + len(bench.retain)),
                telling=bench.original,
                layer=layer,
            )
        )
    return readings
