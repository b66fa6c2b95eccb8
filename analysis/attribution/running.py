"""Running somebody else's model: inputs checked first, and no trace left behind."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from analysis.attribution.targets import IGNORED
from analysis.errors import UserError
from analysis.finite import all_finite


@contextmanager
def undisturbed(model: nn.Module, parameters: bool) -> Iterator[None]:
    """Put a model into evaluation mode with gradients on, and everything back as it was afterwards.

    Works inside `torch.no_grad` and `torch.inference_mode`, with frozen parameters and with modules in mixed modes.

    Args:
        model: Any module.
        parameters: Whether its parameters require gradients meanwhile (all of them, frozen ones included) or none do.

    Yields:
        Nothing.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(p, p.requires_grad) for p in model.parameters() if p.is_floating_point()]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            model.eval()
            for p, _ in wanted:
                p.requires_grad_(parameters)
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for p, want in wanted:
            p.requires_grad_(want)


def run(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Run a model.

    Args:
        model: Returns a tensor, or an object with a `logits` tensor, as Hugging Face models do.
        inputs: [n, ...].

    Returns:
        The output tensor.
    """
    output = model(inputs)
    return getattr(output, "logits", output)


def place(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Bring inputs to the model's device and, unless they are token ids, to its floating-point type.

    Args:
        model: Any module.
        images: [n, ...].

    Returns:
        The inputs, detached from any graph.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), images)
    with torch.inference_mode(False):
        if images.is_inference():
            images = images.clone()
        images = images.detach().to(like.device)
        return images.to(like.dtype) if images.is_floating_point() else images


def widened(values: torch.Tensor) -> torch.Tensor:
    """Give what a model computed enough digits for sums, squares and probabilities.

    Args:
        values: Floating point, of any shape.

    Returns:
        The same in float32 where it was half precision (float16, bfloat16), else as it is; differentiable.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _check_weights(model: nn.Module) -> None:
    for name, p in model.named_parameters():
        if p.is_inference():
            raise UserError(f"The weights of {name} were made inside torch.inference_mode; load the model outside it.")
        if not all_finite(p):
            raise UserError(f"The weights of {name} hold NaN or infinite values; load an undamaged checkpoint.")


def prepare(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Check what an attribution is asked about, and bring it to the model's device and type.

    Args:
        model: Any module whose output for n samples is [n, k] or [n, t, k]; other outputs are left to the target.
        images: Inputs [n, ...], n of at least 1.
        labels: [n], or [n, t] for sequences.

    Returns:
        Inputs and int64 labels, ready to be run.

    Raises:
        UserError: Nothing to attribute, unequal lengths, weights that are not finite, or a label that is none of
            the model's outputs.
    """
    if len(images) == 0:
        raise UserError("There are no samples to attribute; give at least one.")
    if len(labels) != len(images):
        raise UserError(f"There are {len(images)} samples but {len(labels)} labels; give one label per sample.")
    _check_weights(model)
    images = place(model, images)
    with torch.inference_mode(False):
        labels = labels.detach().clone().to(images.device)
    if labels.is_floating_point():
        return images, labels
    labels = labels.long()
    with undisturbed(model, parameters=False), torch.no_grad():
        shape = run(model, images[:1]).shape
    if len(shape) not in {2, 3}:
        return images, labels
    if labels.shape[1:] != shape[1:-1]:
        raise UserError(
            f"Labels of shape {tuple(labels.shape)} don't fit outputs of shape {(len(images), *shape[1:])}; "
            "give one label per output row."
        )
    counted = labels[labels != IGNORED] if len(shape) == 3 else labels
    wrong = counted[(counted < 0) | (counted >= shape[-1])]
    if len(wrong):
        raise UserError(
            f"Label {int(wrong[0])} is none of the model's {shape[-1]} outputs (0 to {shape[-1] - 1}); "
            "check the labels or the model."
        )
    return images, labels
