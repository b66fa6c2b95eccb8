"""Plain training, batched over models: originals, golds and attackers' copies advance together as one stack."""

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from analysis.subjects.classes import Recipe, Split

Progress = Callable[[float], None]


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
        parameters, buffers = stack_module_state([copy.deepcopy(model).eval() for model in models])
        self.parameters = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
        self.buffers = {name: b.detach().clone() for name, b in buffers.items()}
        self._base = copy.deepcopy(models[0])
        self._optimizer = torch.optim.Adam(list(self.parameters.values()), lr=lr, foreach=True)
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
        rows = []
        for i in range(self.size):
            mine = {name: p[i] for name, p in self.parameters.items()}
            state = {name: b[i] for name, b in self.buffers.items()}
            rows.append(one(mine, state, images if shared else images[i]))
        return torch.stack(rows)

    def step(self, images: torch.Tensor, labels: torch.Tensor, lr: float | None = None) -> None:
        """Take one Adam step on the cross-entropy, each model on its own batch.

        Args:
            images: [models, n, ...].
            labels: int64 [models, n].
            lr: Learning rate of this step, the stack's own when not given.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr if lr is None else lr
        logits = self.logits(images, shared=False, training=True)
        loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        self._optimizer.zero_grad(set_to_none=True)
        loss.view(labels.shape).mean(1).sum().backward()
        self._optimizer.step()

    @torch.no_grad()
    def keep(self, chosen: torch.Tensor) -> None:
        """Let some models go on and drop the others, optimiser state included.

        Args:
            chosen: bool [models], at least one true.
        """
        for parameter in self.parameters.values():
            state = self._optimizer.state[parameter]
            for name in ("exp_avg", "exp_avg_sq"):
                if name in state:
                    state[name] = state[name][chosen]
            parameter.grad = None
            parameter.data = parameter.data[chosen]
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
            yield split.images[chosen], split.labels[chosen]


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
    """
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
