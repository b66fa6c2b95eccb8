"""Neurons of all layers: conductance and integrated gradients against captum, which takes one layer at a time.

captum's sides do what its documentation does: for each layer the whole model runs along the path. Both sides see the
same points. captum multiplies a step with the gradient at its beginning; ours is the mean of that and of the one at its
end, which captum gives when the ends of the path are swapped.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from analysis.attribution.anatomy import anatomy
from analysis.attribution.conductance import neuron_conductance, unit_conductance
from analysis.attribution.integrated import unit_integrated_gradients
from analysis.attribution.language_ig import neuron_integrated_gradients
from analysis.attribution.targets import IGNORED, log_probability, logit
from tests.benchmarks.subjects import beatles, close, digits, smollm2
from tests.benchmarks.timing import Row, side_by_side

IMAGES, STEPS = 64, 16
FACTS, PLACES, NODES = 2, 4, 4
"""Powers of two of steps: captum holds the places on the path in float32."""
ROUNDS, LANGUAGE_ROUNDS = 5, 2
SAME = 1e-4

ONE_PATH_EACH = (
    "By this definition a layer moves while what bypasses it stays, so that every layer is a path of its own, whose "
    "copies differ in all that lies above: no pass serves two layers, and a third of their number is out of reach. "
)

Attribution = dict[str, torch.Tensor]
Forward = Callable[[torch.Tensor], torch.Tensor]


def _network() -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    # The built-in convolutional network, digits, and the picture of nothing.
    subject = digits("cnn")
    torch.manual_seed(0)
    model = subject.network.make().eval().requires_grad_(False)
    images, labels = subject.train.images[:IMAGES], subject.train.labels[:IMAGES]
    return model, images, labels, images.amin((0, 2, 3), keepdim=True)


def _units(values: torch.Tensor) -> torch.Tensor:
    # Of maps [n, channels, ...], or neurons [n, units].
    return values.detach().flatten(2).sum(2).mean(0) if values.dim() > 2 else values.detach().mean(0)


def captum_units(
    method: Callable[[Forward, nn.Module, torch.Tensor, torch.Tensor], torch.Tensor],
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    ends: tuple[torch.Tensor, torch.Tensor],
    layers: list[str],
) -> Attribution:
    """Attribute to units layer by layer.

    Args:
        method: Makes captum's attribution of a layer: called with forward function, layer, input and baseline.
        model: A classifier.
        images: [n, ...].
        labels: [n].
        ends: Where paths end and where they start.
        layers: Names.

    Returns:
        By layer [units].
    """

    def forward(x: torch.Tensor) -> torch.Tensor:
        return logit(model(x), labels.repeat(len(x) // len(images)))

    return {layer: _units(method(forward, model.get_submodule(layer), *ends)) for layer in layers}


def _conductance(forward: Forward, layer: nn.Module, x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    from captum.attr import LayerConductance

    return LayerConductance(forward, layer).attribute(x, b, n_steps=STEPS, method="riemann_trapezoid")


def _layer_ig(forward: Forward, layer: nn.Module, x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    from captum.attr import LayerIntegratedGradients

    return LayerIntegratedGradients(forward, layer).attribute(x, b, n_steps=STEPS)


def _worst(found: Attribution, right: Attribution, tolerance: float) -> str:
    # All layers as one, so that a layer of tiny values isn't judged by its rounding.
    assert list(found) == list(right)
    return close(torch.cat(list(found.values())), torch.cat(list(right.values())), tolerance)


def images() -> Iterator[Row]:
    """Compare on the built-in convolutional network.

    Yields:
        Conductance, then integrated gradients.
    """
    model, x, y, dark = _network()
    start = dark.expand_as(x).contiguous()
    exact = copy.deepcopy(model).double(), x.double(), y
    ends = x.double(), start.double()
    of = {
        "conductance": partial(unit_conductance, baseline_images=dark, steps=STEPS),
        "integrated gradients": partial(unit_integrated_gradients, baseline_images=dark, steps=STEPS),
    }
    found = {name: dict(work(*exact).values) for name, work in of.items()}
    layers = list(found["conductance"])
    there, back = (captum_units(_conductance, *exact, some, layers) for some in (ends, ends[::-1]))
    same = _worst(found["conductance"], {n: (there[n] - back[n]) / 2 for n in layers}, SAME)
    what = f"{{}} of all units, cnn, {len(layers)} layers, {IMAGES} digits, {STEPS} steps"
    yield side_by_side(
        what.format("Conductance"),
        "captum LayerConductance, layer by layer",
        lambda: of["conductance"](model, x, y),
        lambda: captum_units(_conductance, model, x, y, (x, start), layers),
        f"{same} in float64",
        reach=len(layers) / 3,
        rounds=ROUNDS,
    )
    same = _worst(found["integrated gradients"], captum_units(_layer_ig, *exact, ends, layers), SAME)
    yield side_by_side(
        what.format("Integrated gradients"),
        "captum LayerIntegratedGradients, layer by layer",
        lambda: of["integrated gradients"](model, x, y),
        lambda: captum_units(_layer_ig, model, x, y, (x, start), layers),
        f"{same} in float64",
        reach=len(layers) / 3,
        rounds=ROUNDS,
        note=ONE_PATH_EACH + "Ours runs what lies below a layer once for all points; captum runs the whole model.",
    )


def language() -> Iterator[Row]:
    """Compare on SmolLM2.

    Yields:
        Conductance, then integrated gradients.
    """
    from captum.attr import IntegratedGradients, LayerConductance

    model, encoded = smollm2().model, beatles().forget_encoded.take(slice(0, FACTS))
    width = int((encoded.labels != IGNORED).nonzero()[:, 1].max()) + 1
    ids, labels = encoded.ids[:, :width], encoded.labels[:, :width]
    embedding, downs = model.get_input_embeddings(), anatomy(model).down
    end = embedding(ids).detach()
    start = embedding.weight.detach().mean(0).repeat(FACTS, width, 1)
    start[:, 0] = end[:, 0]

    def forward(points: torch.Tensor) -> torch.Tensor:
        logits = model(inputs_embeds=points, use_cache=False).logits
        return log_probability(logits, labels.repeat(len(points) // FACTS, 1))

    def conductances(x: torch.Tensor, b: torch.Tensor) -> Attribution:
        options = {"n_steps": PLACES, "method": "riemann_trapezoid", "attribute_to_layer_input": True}
        methods = {down: LayerConductance(forward, model.get_submodule(down)) for down in downs}
        return {down: m.attribute(x, b, **options).detach().sum(1).mean(0) for down, m in methods.items()}

    def integrated() -> Attribution:
        # Zero as each layer's own baseline, which LayerIntegratedGradients doesn't take: the neurons are put into the
        # model, as it does.
        found = {}
        for down in downs:
            module, kept = model.get_submodule(down), []
            handle = module.register_forward_pre_hook(lambda _, given, kept=kept: kept.append(given[0].detach()))
            with torch.no_grad():
                forward(end)
            handle.remove()
            here = torch.zeros_like(kept[0])
            here[:, 0] = kept[0][:, 0]

            def patched(neurons: torch.Tensor, module: nn.Module = module) -> torch.Tensor:
                handle = module.register_forward_pre_hook(lambda *_: (neurons,))
                try:
                    return forward(end.repeat(len(neurons) // FACTS, 1, 1))
                finally:
                    handle.remove()

            shares = IntegratedGradients(patched).attribute(kept[0], here, n_steps=NODES)
            found[down] = shares.detach().sum(1).mean(0)
        return found

    what = f"{{}} of all MLP neurons, SmolLM2, {len(downs)} layers, {FACTS} facts, {{}} steps"
    there, back = conductances(end, start), conductances(start, end)
    found = dict(neuron_conductance(model, ids, labels, steps=PLACES).values)
    yield side_by_side(
        what.format("Conductance", PLACES),
        "captum LayerConductance, layer by layer",
        lambda: neuron_conductance(model, ids, labels, steps=PLACES),
        lambda: conductances(end, start),
        _worst(found, {down: (there[down] - back[down]) / 2 for down in downs}, SAME),
        reach=len(downs) / 3,
        rounds=LANGUAGE_ROUNDS,
    )
    found = dict(neuron_integrated_gradients(model, ids, labels, steps=NODES).values)
    yield side_by_side(
        what.format("Integrated gradients", NODES),
        "captum IntegratedGradients of each layer's neurons, layer by layer",
        lambda: neuron_integrated_gradients(model, ids, labels, steps=NODES),
        integrated,
        _worst(found, integrated(), SAME),
        reach=len(downs) / 3,
        rounds=LANGUAGE_ROUNDS,
        note=ONE_PATH_EACH + "Ours begins at the layer, half the blocks on average, and asks the head for the answers' "
        "tokens only.",
    )


def rows() -> Iterator[Row]:
    """Compare on an image classifier and on a language model.

    Yields:
        The rows.
    """
    yield from images()
    yield from language()
