"""Scores and masks: the currency between attribution, localisation and editing."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from analysis.errors import UserError
from analysis.files import load_tensors, save_tensors
from analysis.finite import all_finite

Scope = Literal["global", "layer"]


def check_fraction(fraction: float) -> float:
    """Check that a fraction of the scored elements makes sense.

    Args:
        fraction: What the user asked for.

    Returns:
        The same number.

    Raises:
        UserError: It is not above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"The fraction must be above 0 and at most 1, not {fraction:g}; 0.05 means five percent.")
    return fraction


def highest(values: torch.Tensor, take: int) -> torch.Tensor:
    """Choose the highest values without sorting them; ties are broken by position.

    Args:
        values: [n].
        take: How many, 0 to n.

    Returns:
        bool [n] with exactly `take` entries true.
    """
    if not take:
        return torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    threshold = values.kthvalue(values.numel() - take + 1).values
    bits = values > threshold
    ties = (values == threshold).nonzero().flatten()
    bits[ties[: take - int(bits.sum())]] = True
    return bits


@dataclass(frozen=True)
class Mask:
    """Which entries of which parameters are meant: the ones an edit may change.

    Attributes:
        bits: Boolean tensors by parameter name, each of its parameter's shape. A parameter that is absent is
            wholly outside the mask.
    """

    bits: Mapping[str, torch.Tensor]

    def _combine(self, other: "Mask", operation: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> "Mask":
        names = list(dict.fromkeys([*self.bits, *other.bits]))
        empty = {name: torch.zeros_like((self.bits if name in self.bits else other.bits)[name]) for name in names}
        return Mask(
            {n: operation(self.bits.get(n, empty[n]), other.bits.get(n, empty[n])) for n in names},
        )

    def __and__(self, other: "Mask") -> "Mask":
        return self._combine(other, torch.logical_and)

    def __or__(self, other: "Mask") -> "Mask":
        return self._combine(other, torch.logical_or)

    def __invert__(self) -> "Mask":
        return Mask({name: ~bits for name, bits in self.bits.items()})

    @property
    def count(self) -> int:
        """How many entries are inside."""
        return sum(int(bits.sum()) for bits in self.bits.values())

    @property
    def total(self) -> int:
        """How many entries the mask's parameters have."""
        return sum(bits.numel() for bits in self.bits.values())

    @property
    def fraction(self) -> float:
        """Share of entries inside, 0 to 1 (0 for a mask over nothing)."""
        return self.count / self.total if self.total else 0.0

    def shares(self) -> dict[str, float]:
        """Share of each parameter that is inside.

        Returns:
            Fractions in [0, 1] by parameter name.
        """
        return {name: float(bits.float().mean()) if bits.numel() else 0.0 for name, bits in self.bits.items()}

    def iou(self, other: "Mask") -> float:
        """Intersection over union with another mask.

        Args:
            other: The other mask, over the same model.

        Returns:
            1 for equal masks (two empty ones count as equal), 0 for disjoint ones.
        """
        union = (self | other).count
        return (self & other).count / union if union else 1.0

    def random_like(self, seed: int) -> "Mask":
        """Draw a mask with as many entries in each parameter as this one, placed at random: the fair control.

        Args:
            seed: Of the draw.

        Returns:
            The random mask; per-parameter counts equal this mask's.
        """
        generator = torch.Generator().manual_seed(seed)
        bits = {}
        for name, mine in self.bits.items():
            flat = torch.zeros(mine.numel(), dtype=torch.bool)
            flat[torch.randperm(mine.numel(), generator=generator)[: int(mine.sum())]] = True
            bits[name] = flat.view(mine.shape)
        return Mask(bits)

    def save(self, path: Path) -> None:
        """Write the mask as safetensors.

        Args:
            path: Where to.
        """
        save_tensors(path, self.bits, {"kind": "mask"})

    @staticmethod
    def load(path: Path) -> "Mask":
        """Read a mask that `save` wrote.

        Args:
            path: The safetensors file.

        Returns:
            The mask.

        Raises:
            UserError: The file is missing, damaged, or holds something else.
        """
        bits, metadata = load_tensors(path)
        if metadata.get("kind") != "mask" or any(one.dtype != torch.bool for one in bits.values()):
            raise UserError(f"{path} is not a mask; give a mask.safetensors that `yesterday locate` wrote.")
        return Mask(bits)

    @staticmethod
    def everything(model: torch.nn.Module) -> "Mask":
        """Cover all parameters of a model.

        Args:
            model: Any module.

        Returns:
            The mask that allows every change.
        """
        return Mask({name: torch.ones(p.shape, dtype=torch.bool) for name, p in model.named_parameters()})


@dataclass(frozen=True)
class Scores:
    """One number per parameter entry or per unit: how much it carries what was asked about.

    Higher means more important; `top` ranks by value as it stands, so a signed measure is made unsigned by
    whoever computes it if its sign does not mean "more" and "less".

    Attributes:
        values: For kind "parameter": tensors by parameter name, of the parameters' shapes. For kind "unit":
            1-D tensors by layer (module) name, one value per output unit or channel. For kind "input": one tensor
            named "input" of the shape of the input batch.
        kind: What one number belongs to.
        measure: Name of what was measured, e.g. "fisher-ratio".
        units: In what units, e.g. "nats^2 per weight^2"; "1" for a ratio.
        residual: Completeness residual where one exists: (sum of attributions) - (difference of the target at
            the ends of the path), in the target's units. None where the measure has no completeness axiom.
        shapes: For kind "unit", shapes by name of all parameters of the model, so that units can become a mask.
    """

    values: Mapping[str, torch.Tensor]
    kind: Literal["parameter", "unit", "input"]
    measure: str
    units: str = "1"
    residual: float | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bad = [name for name, value in self.values.items() if not all_finite(value)]
        if bad:
            raise UserError(
                f"The {self.measure} scores of {', '.join(bad)} are not finite; check the model's weights for NaN."
            )

    def top(self, fraction: float, scope: Scope = "global") -> Mask:
        """Take the highest-scored entries.

        Ties are broken by position, so that exactly ceil(fraction * n) entries are taken, at least one, and a larger
        fraction always contains a smaller one.

        Args:
            fraction: Share of the scored entries (weights, or units) to take, in (0, 1].
            scope: "global" ranks all together, "layer" takes the share from each tensor by itself.

        Returns:
            A mask over parameters. A unit stands for its row of incoming weights and its bias.

        Raises:
            ValueError: These are scores of an input, which no mask over parameters can express.
        """
        check_fraction(fraction)
        if self.kind == "input":
            raise ValueError("scores of an input can't become a mask over parameters")
        names = list(self.values)
        flat = [self.values[name].flatten() for name in names]
        groups = [flat] if scope == "global" else [[one] for one in flat]
        chosen: list[torch.Tensor] = []
        for group in groups:
            joined = torch.cat(group)
            take = min(max(1, math.ceil(fraction * joined.numel() - 1e-9)), joined.numel())
            chosen += list(highest(joined, take).split([one.numel() for one in group]))
        picked = {name: bits.view(self.values[name].shape) for name, bits in zip(names, chosen, strict=True)}
        return Mask(picked) if self.kind == "parameter" else self._rows(picked)

    def _rows(self, units: Mapping[str, torch.Tensor]) -> Mask:
        bits = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in self.shapes.items()}
        for layer, chosen in units.items():
            for name in (layer, f"{layer}.weight", f"{layer}.bias") if layer else ("weight", "bias"):
                if name in bits:
                    rows = bits[name].view(1) if bits[name].dim() == 0 else bits[name]
                    if rows.shape[:1] == chosen.shape:
                        rows[chosen] = True
        return Mask(bits)

    def per_unit(self) -> "Scores":
        """Sum parameter scores over each output unit's incoming weights and bias.

        Returns:
            Scores of kind "unit"; parameters that are not called "weight" or "bias", or differ in length from the
            others of their layer, count as layers of their own.

        Raises:
            ValueError: These scores are not per parameter.
        """
        if self.kind != "parameter":
            raise ValueError("only scores of parameters can be summed per unit")
        sums: dict[str, torch.Tensor] = {}
        for name, value in self.values.items():
            layer, _, role = name.rpartition(".")
            rows = value.flatten(1).sum(1) if value.dim() > 1 else value.view(-1)
            if role not in {"weight", "bias"} or (layer in sums and sums[layer].shape != rows.shape):
                layer = name
            sums[layer] = sums[layer] + rows if layer in sums else rows
        shapes = {name: tuple(value.shape) for name, value in self.values.items()}
        return Scores(sums, "unit", self.measure, self.units, self.residual, shapes)

    def save(self, path: Path) -> None:
        """Write the scores as safetensors, with name, units and residual in the header.

        Args:
            path: Where to.
        """
        header = {
            "kind": self.kind,
            "measure": self.measure,
            "units": self.units,
            "residual": json.dumps(self.residual),
            "shapes": json.dumps({name: list(shape) for name, shape in self.shapes.items()}),
        }
        save_tensors(path, self.values, header)

    @staticmethod
    def load(path: Path) -> "Scores":
        """Read scores that `save` wrote.

        Args:
            path: The safetensors file.

        Returns:
            The scores.

        Raises:
            UserError: The file is missing, damaged, or holds something else.
        """
        values, header = load_tensors(path)
        kind = header.get("kind")
        if kind not in {"parameter", "unit", "input"}:
            raise UserError(f"{path} holds no scores; give a file from a run's scores/ folder.")
        try:
            shapes = {name: tuple(shape) for name, shape in json.loads(header["shapes"]).items()}
            residual = json.loads(header["residual"])
            return Scores(values, kind, header["measure"], header["units"], residual, shapes)  # type: ignore[arg-type]
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{path} has no whole header ({error!r}); delete it and make it again.") from error
