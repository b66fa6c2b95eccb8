"""The built-in architectures and what can be read off any architecture by running it once."""

from collections.abc import Callable

import torch
from torch import nn

from analysis.subjects.classes import Network, Recipe

MOST_POINTS = 3


def mlp(shape: tuple[int, int, int], outputs: int) -> nn.Module:
    """Build the small net: pixels-128-64-outputs with ReLU.

    Args:
        shape: Channels, height and width of an image.
        outputs: Number of classes.

    Returns:
        The network, freshly initialised by PyTorch's defaults.
    """
    channels, height, width = shape
    net = nn.Sequential()
    net.add_module("flatten", nn.Flatten())
    net.add_module("hidden1", nn.Linear(channels * height * width, 128))
    net.add_module("relu1", nn.ReLU())
    net.add_module("hidden2", nn.Linear(128, 64))
    net.add_module("relu2", nn.ReLU())
    net.add_module("head", nn.Linear(64, outputs))
    return net


def cnn(shape: tuple[int, int, int], outputs: int) -> nn.Module:
    """Build a small conv net in the spirit of StefanoMagriniAlunno's "Machine_Unlearning".

    Two blocks conv-LeakyReLU-conv-ReLU-MaxPool, then a conv with BatchNorm, average pooling and a linear head; first
    convs of a block have no bias, as there. Widths are an eighth to a quarter of those there, for two CPU cores.

    Args:
        shape: Channels, height and width of an image, at least 4 x 4.
        outputs: Number of classes.

    Returns:
        The network, freshly initialised by PyTorch's defaults.
    """

    def block(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.LeakyReLU(),
            nn.Conv2d(after, after, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )

    net = nn.Sequential()
    net.add_module("block1", block(shape[0], 8))
    net.add_module("block2", block(8, 16))
    net.add_module("conv3", nn.Conv2d(16, 32, 3, padding=1, bias=False))
    net.add_module("norm3", nn.BatchNorm2d(32))
    net.add_module("relu3", nn.LeakyReLU())
    net.add_module("pool3", nn.AdaptiveAvgPool2d(2))
    net.add_module("flatten", nn.Flatten())
    net.add_module("head", nn.Linear(128, outputs))
    return net


def builtin(name: str, shape: tuple[int, int, int], outputs: int) -> Network:
    """Describe a built-in architecture.

    Args:
        name: "mlp" or "cnn".
        shape: Channels, height and width of an image.
        outputs: Number of classes.

    Returns:
        The network with its training recipe.
    """
    if name == "mlp":
        return Network(name, lambda: mlp(shape, outputs), ("hidden2", "head"), Recipe(epochs=15, batch=64, lr=3e-3))
    points = ("block2.0", "conv3", "head")
    return Network(name, lambda: cnn(shape, outputs), points, Recipe(epochs=8, batch=32, lr=4e-3))


def parametric_layers(model: nn.Module, example: torch.Tensor, dimensions: int = 2) -> list[str]:
    """List the modules with weights of their own in the order in which they run.

    Args:
        model: Any module.
        example: One input batch.
        dimensions: How many dimensions one of a module's parameters must have; with 1 normalisations are listed too.

    Returns:
        Names of modules that hold a parameter of so many dimensions (two: Linear, Conv, Embedding), each once.
    """
    order: list[str] = []
    handles = []

    def note(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if name not in order:
                order.append(name)

        return hook

    for name, module in model.named_modules():
        if any(p.dim() >= dimensions for p in module.parameters(recurse=False)):
            handles.append(module.register_forward_hook(note(name)))
    was = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was)
    return order


def hidden_points(model: nn.Module, example: torch.Tensor) -> tuple[str, ...]:
    """Choose where to look inside an architecture that says nothing about itself.

    Args:
        model: Any module.
        example: One input batch.

    Returns:
        Names of at most three modules, evenly spread, whose inputs are hidden representations; the last is the last
        module with weights to run.
    """
    layers = parametric_layers(model, example)
    inner = layers[1:] or layers
    if len(inner) <= MOST_POINTS:
        return tuple(inner)
    chosen = torch.linspace(0, len(inner) - 1, MOST_POINTS).round().long().tolist()
    return tuple(inner[i] for i in chosen)
