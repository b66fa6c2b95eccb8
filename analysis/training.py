"""Plain training, batched over models: originals, golds and attackers' copies advance together as one stack."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional
from torch.optim.adam import adam

from analysis.errors import UserError
from analysis.subjects.classes import Recipe, Split

Progress = Callable[[float], None]

SETTLED_EVERY = 100
SETTLED = 1e8
"""Momentum below this many times the smallest normal number is nothing."""


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a network whose initial weights depend on the seed alone.

    Args:
        make: The factory.
        seed: Of the initialisation.

    Returns:
        The fresh network; the global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _stacked(tensors: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([mine[name].detach() for mine in tensors]) for name in tensors[0]}


def _ordered(tensor: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
    # The same numbers, dense in memory in this order.
    if tensor.stride() == stride:
        return tensor
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _flat(dense: torch.Tensor) -> torch.Tensor:
    # As it lies in memory.
    return dense.as_strided((dense.numel(),), (1,))


@dataclass
class _Moments:
    """What Adam remembers of one stacked parameter.

    Attributes:
        first: Running mean of the gradients.
        second: Running mean of their squares.
        steps: How many gradients there have been, as one number.
    """

    first: torch.Tensor
    second: torch.Tensor
    steps: torch.Tensor

    @staticmethod
    def zero(parameter: torch.Tensor) -> "_Moments":
        """Begin.

        Args:
            parameter: The stacked parameter.

        Returns:
            What is remembered before the first step.
        """
        steps = torch.zeros((), device=parameter.device)
        return _Moments(torch.zeros_like(parameter), torch.zeros_like(parameter), steps)

    def settle(self) -> None:
        """Call momentum zero, now and then, where it has long ceased to move its weight.

        Without a gradient, as in a dead neuron, it sinks for ever, and below the smallest normal number each
        operation on it takes a hundred times as long.
        """
        if (int(self.steps) + 1) % SETTLED_EVERY == 0:
            least = SETTLED * torch.finfo(self.first.dtype).tiny
            self.first.copy_(functional.hardshrink(self.first, least))


class Stack:
    """Several models of one architecture, trained and evaluated as one.

    Parameters and buffers are stacked along a new first dimension and the network is mapped over it with
    `torch.func.vmap`, so twenty small nets cost little more than one. Networks with convolutions run as a loop over
    the same stacked parameters instead: on a CPU a grouped convolution is slower than separate ones. So do networks
    that vmap can't map. Adam is elementwise, so one optimiser over the stack equals one for each model.
    """

    def __init__(self, models: Sequence[nn.Module], lr: float = 1e-3) -> None:
        """Copy models into a stack.

        Args:
            models: At least one, all of the same architecture; they are not changed.
            lr: Adam's learning rate.
        """
        self.size = len(models)
        self.lr = lr
        stacked = _stacked([dict(model.named_parameters()) for model in models])
        self.parameters = {name: parameter.requires_grad_() for name, parameter in stacked.items()}
        self.buffers = _stacked([dict(model.named_buffers()) for model in models])
        self._base = copy.deepcopy(models[0])
        self._moments = {name: _Moments.zero(parameter) for name, parameter in self.parameters.items()}
        convolutional = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        self._mapped = self.size > 1 and not any(isinstance(m, convolutional) for m in self._base.modules())

    def logits(self, images: torch.Tensor, shared: bool = True, training: bool = False) -> torch.Tensor:
        """Run all models.

        Args:
            images: [n, ...] for all models alike, or [models, n, ...] when not `shared`.
            shared: Whether all models see the same images.
            training: Whether normalisation and dropout behave as in training (running statistics move).

        Returns:
            Logits [models, n, outputs].
        """
        self._base.train(training)

        def one(parameters: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
            return functional_call(self._base, (parameters, buffers), (x,))

        if self._mapped:
            try:
                mapped = vmap(one, in_dims=(0, 0, None if shared else 0), randomness="different")
                return mapped(self.parameters, self.buffers, images)
            except RuntimeError:
                self._mapped = False
        # Taken apart at once: the gradient of `p[i]` would be a whole stack of zeros for every model.
        parts = {name: p.unbind() for name, p in self.parameters.items()}
        rows = []
        for i in range(self.size):
            mine = {name: part[i] for name, part in parts.items()}
            state = {name: b[i] for name, b in self.buffers.items()}
            rows.append(one(mine, state, images if shared else images[i]))
        return torch.stack(rows)

    def step(self, images: torch.Tensor, labels: torch.Tensor, lr: float | None = None, shared: bool = False) -> None:
        """Take one Adam step on the cross-entropy, each model on its own batch or all on the same one.

        Args:
            images: [models, n, ...], or [n, ...] when `shared`.
            labels: int64 [models, n], or [n] when `shared`.
            lr: Learning rate of this step, the stack's own when not given.
            shared: Whether all models see the same batch.
        """
        logits = self.logits(images, shared, training=True)
        labels = labels.expand(logits.shape[:2])
        losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        parameters = list(self.parameters.values())
        gradients = torch.autograd.grad(losses.view(labels.shape).mean(1).sum(), parameters, allow_unused=True)
        self._descend(dict(zip(self.parameters, gradients, strict=True)), self.lr if lr is None else lr)

    @torch.no_grad()
    def _descend(self, gradients: Mapping[str, torch.Tensor | None], lr: float) -> None:
        moved: list[list[torch.Tensor]] = [[], [], [], [], []]
        for name, gradient in gradients.items():
            if gradient is None:
                continue
            parameter, moments = self.parameters[name], self._moments[name]
            # A batched gradient comes out transposed in memory. Adam goes through memory once and needs everything in
            # one order, and to turn parameter and moments once is cheaper than every gradient.
            order = torch.empty_like(gradient).stride()
            if parameter.stride() != order:
                parameter.data = _ordered(parameter, order)
                moments.first, moments.second = _ordered(moments.first, order), _ordered(moments.second, order)
            moments.settle()
            tensors = parameter, _ordered(gradient, order), moments.first, moments.second
            for into, tensor in zip(moved, (*map(_flat, tensors), moments.steps), strict=True):
                into.append(tensor)
        parameters, rises, first, second, steps = moved
        adam(
            parameters, rises, first, second, [], steps, foreach=True,
            lr=lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False,
        )  # fmt: skip

    @torch.no_grad()
    def keep(self, chosen: torch.Tensor) -> None:
        """Let some models go on and drop the others, optimiser state included.

        Args:
            chosen: bool [models], at least one true.
        """
        for parameter in self.parameters.values():
            parameter.data = parameter.data[chosen]
        for moments in self._moments.values():
            moments.first, moments.second = moments.first[chosen], moments.second[chosen]
        self.buffers = {name: buffer[chosen] for name, buffer in self.buffers.items()}
        self.size = int(chosen.sum())

    def models(self) -> list[nn.Module]:
        """Take the stack apart.

        Returns:
            Independent copies of the models, in evaluation mode.
        """
        out = []
        for i in range(self.size):
            model = copy.deepcopy(self._base)
            state = {**self.parameters, **self.buffers}
            model.load_state_dict({name: tensor[i].detach().clone() for name, tensor in state.items()}, strict=False)
            out.append(model.eval())
        return out


def epochs(split: Split, recipe: Recipe, seeds: Sequence[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffle a split anew for every model and epoch and cut it into batches.

    Args:
        split: The training data.
        recipe: Number of epochs and size of a batch (a last batch of fewer images is dropped when there are others).
        seeds: One per model.

    Yields:
        Images [models, batch, ...] and labels [models, batch].
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    batch = min(recipe.batch, len(split))
    for _ in range(recipe.epochs):
        order = torch.stack([torch.randperm(len(split), generator=g) for g in generators])
        for start in range(0, len(split) - batch + 1, batch):
            chosen = order[:, start : start + batch]
            # Whole images are copied at once this way, which indexing doesn't do.
            yield split.images.index_select(0, chosen.flatten()).unflatten(0, chosen.shape), split.labels[chosen]


def fit(
    make: Callable[[], nn.Module],
    split: Split,
    recipe: Recipe,
    seeds: Sequence[int],
    progress: Progress | None = None,
) -> list[nn.Module]:
    """Train one network per seed from scratch, all at once.

    Args:
        make: The factory.
        split: What they learn.
        recipe: How.
        seeds: Each decides one network's initial weights and order of data.
        progress: Called now and then with the share done, 0 to 1.

    Returns:
        The trained networks, in evaluation mode, in the order of the seeds.

    Raises:
        UserError: There is nothing to learn.
    """
    if not len(split):
        raise UserError("There are no images to train on; check the data and the classes to forget.")
    stack = Stack([seeded(make, seed) for seed in seeds], recipe.lr)
    batch = min(recipe.batch, len(split))
    steps = recipe.epochs * (len(split) // batch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds[0])  # dropout knows no generator but the global one
        for done, (images, labels) in enumerate(epochs(split, recipe, seeds)):
            stack.step(images, labels, recipe.lr * (1 - done / steps))
            if progress and (done + 1) % 20 == 0:
                progress((done + 1) / steps)
    return stack.models()


@torch.no_grad()
def logits_of(model: nn.Module, images: torch.Tensor, chunk: int = 2048) -> torch.Tensor:
    """Run a model in evaluation mode without gradients, and leave its mode as it was.

    Args:
        model: Any classifier.
        images: [n, ...].
        chunk: Images at a time.

    Returns:
        Logits [n, outputs].
    """
    was = model.training
    model.eval()
    try:
        return torch.cat([model(part) for part in images.split(chunk)])
    finally:
        model.train(was)


def accuracy(model: nn.Module, split: Split) -> float:
    """Share of images that get their label.

    Args:
        model: Any classifier.
        split: Labelled images, at least one.

    Returns:
        Accuracy in [0, 1].
    """
    return float((logits_of(model, split.images).argmax(1) == split.labels).float().mean())
