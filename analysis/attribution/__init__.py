"""Which weights and neurons carry a piece of knowledge; for any module and any scalar target."""

from analysis.attribution.conductance import neuron_conductance, unit_conductance
from analysis.attribution.fisher import brain_damage, fisher_diagonal, fisher_diagonal_vmap, fisher_ratio
from analysis.attribution.gradients import saliency, weight_integrated_gradients
from analysis.attribution.integrated import pixel_integrated_gradients, pixel_residuals, unit_integrated_gradients
from analysis.attribution.patching import activation_patching, matched_pairs
from analysis.attribution.targets import Target, cross_entropy, log_probability, logit, margin

__all__ = [
    "Target",
    "activation_patching",
    "brain_damage",
    "cross_entropy",
    "fisher_diagonal",
    "fisher_diagonal_vmap",
    "fisher_ratio",
    "log_probability",
    "logit",
    "margin",
    "matched_pairs",
    "neuron_conductance",
    "pixel_integrated_gradients",
    "pixel_residuals",
    "saliency",
    "unit_conductance",
    "unit_integrated_gradients",
    "weight_integrated_gradients",
]
