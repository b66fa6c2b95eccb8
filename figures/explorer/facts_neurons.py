"""Single MLP neurons: which the edit changed most, what they respond to, what they promote, what hangs on them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from analysis.attribution.anatomy import Anatomy, anatomy
from analysis.errors import UserError
from analysis.subjects.language.bank import Fact
from analysis.subjects.language.encoding import Encoded, encode_answers, pad, token_ids
from analysis.subjects.language.scoring import ROWS, answer_log_probabilities, head_of
from figures.explorer.facts_model import Question, decoded
from figures.explorer.facts_pair import Pair, prompt_of
from unlearn.edit import Edit

LISTED = 24
ASKED = 12
PROMPTS = 40
WORDS = 8
FIRED = 6


@dataclass(frozen=True)
class Neuron:
    """An MLP neuron.

    Attributes:
        block: Of the model, from 0.
        number: In the block, from 0.
        change: Root of the summed squares of what the edit changed of its weights, in and out.
    """

    block: int
    number: int
    change: float = 0.0

    @property
    def name(self) -> str:
        """Short and unique, e.g. "L12.345"."""
        return f"L{self.block}.{self.number}"


@dataclass(frozen=True)
class Fired:
    """A prompt and how a neuron responds to it.

    Attributes:
        group: Of the fact.
        tokens: Of the prompt, decoded.
        activations: After each token; what the down projection multiplies.
    """

    group: str
    tokens: tuple[str, ...]
    activations: tuple[float, ...]


@dataclass(frozen=True)
class Ablation:
    """What some facts' answers lose when neurons are silenced.

    Attributes:
        group: Of facts, or the present prompt.
        facts: How many.
        whole: Mean probability of the answers with all neurons, 0 to 1.
        alone: With one neuron silenced.
        together: With all listed ones silenced.
    """

    group: str
    facts: int
    whole: float
    alone: float
    together: float


def _owner(module: nn.Module, down: bool, indices: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    # Which neuron each changed weight of an MLP's matrix belongs to: an input of the down projection, an output of
    # the others. A Conv1D is stored (in, out), a Linear (out, in).
    if len(shape) == 1:
        return indices
    rows_are_neurons = isinstance(module, nn.Linear) != down
    return indices // shape[1] if rows_are_neurons else indices % shape[1]


def changes(model: nn.Module, edit: Edit) -> torch.Tensor:
    """Sum up by neuron what an edit changed.

    Args:
        model: The model that it was made for, whose MLPs may hold further matrices beside those of their neurons.
        edit: The edit.

    Returns:
        [blocks, neurons], the root of the summed squares over each neuron's weights.
    """
    parts = anatomy(model)
    total = torch.zeros(len(parts.blocks), parts.neurons, dtype=torch.float64)
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    for row, mlp, down in zip(total, parts.mlp, parts.down, strict=True):
        for name in (one for one in edit.changes if one.startswith(f"{mlp}.")):
            place, shape = name.rpartition(".")[0], shapes[name]
            # The down projection's bias, gates of several experts or fused matrices belong to no single neuron.
            if (place == down and len(shape) == 1) or parts.neurons not in shape:
                continue
            change = edit.changes[name]
            owner = _owner(model.get_submodule(place), place == down, change.indices, shape)
            row.index_add_(0, owner, (change.new.double() - change.old.double()) ** 2)
    return total.sqrt()


def most_changed(model: nn.Module, edit: Edit, most: int = LISTED) -> list[Neuron]:
    """Rank neurons by what an edit changed of them.

    Args:
        model: The model that it was made for.
        edit: The edit.
        most: How many at most.

    Returns:
        Those that it changed most, most first; none where it left all MLPs alone.
    """
    found = changes(model, edit)
    values, order = found.flatten().topk(min(most, found.numel()))
    width = found.shape[1]
    pairs = zip(order.tolist(), values.tolist(), strict=True)
    return [Neuron(i // width, i % width, value) for i, value in pairs if value > 0]


@contextmanager
def silenced(model: nn.Module, neurons: Sequence[Neuron]) -> Iterator[None]:
    """Take neurons out of a model for a while: what they write becomes zero, as if their down column were.

    Args:
        model: A causal language model; no weight is touched.
        neurons: Which.

    Yields:
        Nothing.
    """
    parts = anatomy(model)
    with ExitStack() as stack:
        for block in {neuron.block for neuron in neurons}:
            numbers = torch.tensor([neuron.number for neuron in neurons if neuron.block == block])

            def hook(_: nn.Module, given: tuple[torch.Tensor, ...], numbers: torch.Tensor = numbers) -> torch.Tensor:
                return given[0].index_fill(-1, numbers, 0.0)

            stack.callback(model.get_submodule(parts.down[block]).register_forward_pre_hook(hook).remove)
        yield


@torch.no_grad()
def activations(model: nn.Module, neurons: Sequence[Neuron], rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Record how strongly neurons fire.

    Args:
        model: A causal language model.
        neurons: Which.
        rows: Token ids of prompts.

    Returns:
        [tokens, neurons] for each prompt.
    """
    parts = anatomy(model)
    out: list[torch.Tensor] = []
    caught: dict[int, torch.Tensor] = {}
    with ExitStack() as stack:
        for block in {neuron.block for neuron in neurons}:

            def hook(_: nn.Module, given: tuple[torch.Tensor, ...], block: int = block) -> None:
                caught[block] = given[0]

            stack.callback(model.get_submodule(parts.down[block]).register_forward_pre_hook(hook).remove)
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            model.base_model(input_ids=pad(part, 0), use_cache=False)  # type: ignore[operator]
            found = torch.stack([caught[neuron.block][..., neuron.number] for neuron in neurons], -1)
            out += [line[: len(row)].clone() for line, row in zip(found, part, strict=True)]
    return out


@torch.no_grad()
def pushes(model: nn.Module, neuron: Neuron) -> torch.Tensor:
    """Put what a neuron writes through the final norm and the head (Geva et al. 2022).

    Args:
        model: A causal language model.
        neuron: Which.

    Returns:
        A number for each token of the vocabulary: how far it is pushed when the neuron fires, up to one common
        factor, since the norm is of the neuron's writing alone.
    """
    parts: Anatomy = anatomy(model)
    down = model.get_submodule(parts.down[neuron.block])
    weight: torch.Tensor = down.weight  # type: ignore[assignment]
    written = weight[:, neuron.number] if isinstance(down, nn.Linear) else weight[neuron.number]
    norm, head = model.get_submodule(parts.final_norm), head_of(model)
    # What the norm's and the head's biases say has nothing to do with the neuron.
    pushed: torch.Tensor = head(norm(written)) - head(norm(torch.zeros_like(written)))
    return pushed


@torch.no_grad()
def mean_probability(model: nn.Module, encoded: Encoded) -> float:
    """Average how likely answers are.

    Args:
        model: A causal language model.
        encoded: Prompts with answers.

    Returns:
        The mean probability of whole answers, 0 to 1.
    """
    found = [answer_log_probabilities(model, encoded.take(slice(i, i + ROWS))) for i in range(0, len(encoded), ROWS)]
    return float(torch.cat(found).exp().mean())


@dataclass(frozen=True)
class Located:
    """The neurons of a run; what is the same for all of them is computed when first asked for, and kept.

    Attributes:
        pair: The models; neurons are those of the original.
        neurons: Listed ones.
    """

    pair: Pair
    neurons: tuple[Neuron, ...]

    @cached_property
    def _prompts(self) -> list[tuple[str, list[int]]]:
        # Group and tokens of the bank's prompts, as many of each group.
        return [
            (group, token_ids(self.pair.tokenizer, prompt_of(fact)))
            for group, facts in self.pair.facts.items()
            for fact in facts[:PROMPTS]
        ]

    @cached_property
    def _activations(self) -> list[torch.Tensor]:
        return activations(self.pair.original, self.neurons, [ids for _, ids in self._prompts])

    @cached_property
    def _asked(self) -> dict[str, Encoded]:
        def encoded(facts: Sequence[Fact]) -> Encoded:
            pairs = [(prompt_of(fact), fact.answer) for fact in facts[:ASKED]]
            return encode_answers(self.pair.tokenizer, pairs, self.pair.language.longest)

        return {group: encoded(facts) for group, facts in self.pair.facts.items()}

    @cached_property
    def _references(self) -> dict[str, tuple[float, float]]:
        # Of each group: with all neurons, and without all that are listed.
        whole = {group: mean_probability(self.pair.original, mine) for group, mine in self._asked.items()}
        with silenced(self.pair.original, self.neurons):
            return {
                group: (whole[group], mean_probability(self.pair.original, mine)) for group, mine in self._asked.items()
            }

    @property
    def prompts(self) -> int:
        """How many of the bank's prompts are looked at."""
        return len(self._prompts)

    def named(self, name: str) -> Neuron:
        """Find a listed neuron.

        Args:
            name: Of a neuron.

        Returns:
            The neuron.

        Raises:
            UserError: None of that name is listed.
        """
        for neuron in self.neurons:
            if neuron.name == name:
                return neuron
        raise UserError(f"No neuron {name!r} is listed; choose one of the list.")

    def fired(self, neuron: Neuron, most: int = FIRED) -> list[Fired]:
        """Find the prompts at which a neuron fires most.

        Args:
            neuron: One of the listed.
            most: How many prompts at most.

        Returns:
            By the largest size of its activation, either sign, largest first.
        """
        column = self.neurons.index(neuron)
        mine = [found[:, column] for found in self._activations]
        order = sorted(range(len(mine)), key=lambda i: -float(mine[i].abs().max()))[:most]
        return [
            Fired(self._prompts[i][0], decoded(self.pair, self._prompts[i][1]), tuple(mine[i].tolist())) for i in order
        ]

    def promoted(self, neuron: Neuron, most: int = WORDS) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
        """List the words that a neuron pushes.

        Args:
            neuron: Any.
            most: How many in either direction.

        Returns:
            Words pushed up when its activation is positive, then those pushed down, strongest first, with `pushes`.
        """
        pushed = pushes(self.pair.original, neuron)

        def words(order: torch.Tensor) -> list[tuple[str, float]]:
            return list(zip(decoded(self.pair, order.tolist()), pushed[order].tolist(), strict=True))

        most = min(most, len(pushed))
        return words(pushed.topk(most).indices), words(pushed.topk(most, largest=False).indices)

    def ablated(self, neuron: Neuron, asked: Question | None) -> list[Ablation]:
        """Silence a neuron, and all that are listed, and ask.

        Args:
            neuron: Any.
            asked: The present question, if there is one.

        Returns:
            The present question's answer first, then the bank's by group.
        """
        model, references = self.pair.original, self._references  # before anything is silenced
        found = []
        if asked is not None:
            whole = mean_probability(model, asked.encoded)
            with silenced(model, self.neurons):
                together = mean_probability(model, asked.encoded)
            with silenced(model, [neuron]):
                found.append(Ablation("this prompt", 1, whole, mean_probability(model, asked.encoded), together))
        with silenced(model, [neuron]):
            for group, mine in self._asked.items():
                whole, together = references[group]
                found.append(Ablation(group, len(mine), whole, mean_probability(model, mine), together))
        return found
