"""Weight attribution that guides unlearning: what changing a weight does to forgetting once the rest is repaired."""

from collections.abc import Mapping

import torch

from analysis.errors import UserError
from analysis.scores import Scores

GAMMA = 1e-6


def guided_attribution(
    weights: Mapping[str, torch.Tensor],
    forget: Mapping[str, torch.Tensor],
    retain: Mapping[str, torch.Tensor],
    gamma: float = GAMMA,
) -> Scores:
    """Score weights by WAGLE.

    Jia et al. 2024, "WAGLE: Strategic Weight Attribution for Effective and Modular Unlearning in Large Language Models"
    (NeurIPS, arXiv:2410.17509):

        S_i = |(theta_i - g_r,i / gamma) * g_f,i|

    g_f and g_r are the gradients of the loss on what is to be forgotten and on what must stay. The first term says what
    setting the weight to zero does to forgetting, as in pruning; the second takes off what is undone when the rest is
    trained back, gamma standing in for the Hessian of the retained loss. The paper lets any method (gradient
    difference, NPO, preferences) edit the weights of the highest scores, so it is a measure here, not a method.

    The authors' code: gamma 1e-6, and masks of the highest 80 or 95% of all weights (TOFU). With that gamma the second
    term is nearly all, and what is located are weights that matter to both sides. Deviations: means of gradients, where
    the authors sum them over batches, as if gamma were smaller still; candidates are matrices of the blocks, not all
    parameters; masks are cut as for every other measure.

    Args:
        weights: By parameter name.
        forget: Gradient of the forgotten loss, for the same names.
        retain: Gradient of the retained loss, for the same names.
        gamma: See above; the higher, the less what must stay counts.

    Returns:
        Scores of kind "parameter" in nats, at least 0.

    Raises:
        UserError: gamma is not above 0, or the gradients are those of other parameters.
    """
    if not gamma > 0:
        raise UserError(f"gamma must be above 0, not {gamma:g}; 1e-6 is the authors'.")
    if not forget.keys() == retain.keys() <= weights.keys():
        raise UserError("The gradients belong to different parameters; take both by the same ones.")
    values = {name: ((weights[name].detach() - retain[name] / gamma) * g).abs().cpu() for name, g in forget.items()}
    return Scores(values, "parameter", "wagle", "nats")
