"""What the figures of a run on facts show and nothing else holds: patching maps, logit-lens grids, a map of facts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import nn

from analysis.attribution.language_patching import SITES, activation_patching, attribution_patching, rank_correlation
from analysis.attribution.running import place
from analysis.audit.facts.case import FactReading
from analysis.audit.report import Document
from analysis.errors import UserError
from analysis.representations.logit_lens import lens_grid
from analysis.representations.projection import project
from analysis.representations.similarity import linear_cka
from analysis.scores import Mask
from analysis.subjects.language.bank import Fact
from analysis.subjects.language.encoding import Tokenizer, token_ids
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.scoring import pack
from unlearn.edit import Edit

DEPTH = 0.75
MAPPED = 60
TRIED = 40
FEWEST = 4
SMALLEST_GAIN = 1.0
"""In nats; a pair whose answer hangs less on the name shows nothing."""


class Patching(Document):
    """One pair of prompts that was patched, and how well the first-order guess agrees.

    Attributes:
        clean: Tokens of the clean prompt.
        corrupt: Tokens of the corrupt one, as many.
        answer: The clean prompt's answer, first token.
        wrong: What the corrupt prompt says instead, first token.
        lead_clean: log p(answer) - log p(wrong) after the clean prompt, in nats.
        lead_corrupt: The same after the corrupt one.
        rank_correlation: Spearman's rho between exact and attribution patching over all cells, by site.
    """

    clean: list[str]
    corrupt: list[str]
    answer: str
    wrong: str
    lead_clean: float
    lead_corrupt: float
    rank_correlation: dict[str, float]


class Lens(Document):
    """A logit-lens grid in words.

    Attributes:
        tokens: Of the prompt.
        original: Likeliest next token by layer (embedding first) and position, of the original.
        edited: The same of the edited model.
    """

    tokens: list[str]
    original: list[list[str]]
    edited: list[list[str]]


class Survival(Document):
    """How much of each relation is left.

    Attributes:
        relations: Their names, most facts first.
        facts: How many facts each has.
        original: Mean share of the right answer.
        edited: The same after the edit.
        twin: The same for the twins, asked of the original.
    """

    relations: list[str]
    facts: list[int]
    original: list[float]
    edited: list[float]
    twin: list[float]


class Touched(Document):
    """How much of one weight matrix the edit might change, and did; mask and edit themselves take megabytes.

    Attributes:
        size: Weights of the matrix.
        inside: Those inside the mask.
        changed: Those that changed.
    """

    size: int
    inside: int
    changed: int


class Pictures(Document):
    """Everything in `pictures.json`; the numbers beside it are in `pictures.safetensors`.

    Attributes:
        touched: By name, the matrices that are in the mask or changed.
        patching: None where no pair of equally long prompts could be found, or none was wanted.
        lens: Of one prompt.
        survival: By relation.
        groups: Names of the groups of facts on the map, by number.
        cka: Linear CKA between the original's and the edited model's representations, by group.
        layer: Of the map's representations, counted from 1.
        layers: Blocks of the model.
    """

    touched: dict[str, Touched]
    patching: Patching | None
    lens: Lens
    survival: Survival
    groups: list[str]
    cka: list[float]
    layer: int
    layers: int


def touched(sizes: Mapping[str, int], mask: Mask, edit: Edit) -> dict[str, Touched]:
    """Count what the edit might change, and did.

    Args:
        sizes: Weights of each matrix of the model.
        mask: What it might change.
        edit: What it changed.

    Returns:
        Counts by name, in the order of `sizes`, of the matrices that are in the mask or changed.
    """
    changed = edit.counts()
    inside = {name: int(bits.sum()) for name, bits in mask.bits.items()}
    return {
        name: Touched(size=size, inside=inside.get(name, 0), changed=changed.get(name, 0))
        for name, size in sizes.items()
        if name in inside or name in changed
    }


def survival(
    facts: Sequence[Fact], original: Sequence[FactReading], edited: Sequence[FactReading],
    twins: Sequence[Sequence[FactReading]],
) -> Survival:  # fmt: skip
    """Sum up recall by relation.

    Args:
        facts: Of the bank.
        original: The original's readings.
        edited: The edited model's.
        twins: The twins'.

    Returns:
        Means over the facts of each relation.
    """
    relation = {fact.id: fact.relation for fact in facts}

    def shares(readings: Sequence[FactReading]) -> dict[str, float]:
        asked = [one for one in readings if one.group == "recall" and one.unit == "share"]
        return {fact: value for one in asked for fact, value in zip(one.facts, one.values, strict=True)}

    before, after, never = shares(original), shares(edited), [shares(one) for one in twins]
    groups: dict[str, list[str]] = {}
    for fact in before:
        groups.setdefault(relation[fact], []).append(fact)
    names = sorted(groups, key=lambda name: (-len(groups[name]), name))
    return Survival(
        relations=names,
        facts=[len(groups[name]) for name in names],
        original=[fmean(before[fact] for fact in groups[name]) for name in names],
        edited=[fmean(after[fact] for fact in groups[name]) for name in names],
        twin=[fmean(one[fact] for one in never for fact in groups[name]) for name in names],
    )


@dataclass(frozen=True)
class _Pair:
    # Two equally long prompts, in the second of which another name of its kind stands for the first's.
    own: bool
    gain: float
    clean: list[int]
    corrupt: list[int]
    answer: int
    wrong: int


@torch.no_grad()
def _pairs(model: nn.Module, tokenizer: Tokenizer, subject: FactSubject) -> list[_Pair]:
    # Prompts about the subject itself first, those whose answer hangs most on the name first.
    kinds = {name: kind for kind, mine in subject.about.names.items() for name in mine}
    others: dict[str, list[str]] = {}
    for fact in subject.forget:
        if fact.answer in kinds:
            others.setdefault(kinds[fact.answer], []).extend(fact.distractors)
    found = []
    for fact in [one for one in subject.forget if one.subject in kinds and one.answer not in kinds][:TRIED]:
        prompt = fact.train[0]
        clean = token_ids(tokenizer, prompt)
        for other in dict.fromkeys(others.get(kinds[fact.subject], [])):
            article = "The " if fact.subject.startswith("The ") else "the " if fact.subject.startswith("the ") else ""
            corrupt = token_ids(tokenizer, prompt.replace(fact.subject, article + other.removeprefix("the "), 1))
            if len(corrupt) != len(clean) or corrupt == clean:
                continue
            options = pack(tokenizer, prompt, [fact.answer, *fact.distractors])
            if len(options.prompt) != len(clean):
                continue
            answer = options.tails[0][0]
            ids = place(model, torch.tensor([clean, corrupt]))
            logits = model(input_ids=ids, use_cache=False).logits[:, -1]
            wrong = int(logits[1].argmax())
            if wrong == answer:
                continue
            lead = logits[:, answer] - logits[:, wrong]
            own = kinds[fact.subject] == kinds.get(subject.about.name)
            found.append(_Pair(own, float(lead[0] - lead[1]), clean, corrupt, answer, wrong))
            break
    return sorted(found, key=lambda one: (not one.own, -one.gain))


def patching_maps(
    model: nn.Module, tokenizer: Tokenizer, subject: FactSubject
) -> tuple[Patching | None, dict[str, torch.Tensor]]:
    """Patch the pair of prompts in which the name matters most.

    Args:
        model: The original; not changed.
        tokenizer: Its tokenizer.
        subject: Whose facts.

    Returns:
        What was patched, None where no pair is equally long, and the maps: "exact.SITE" and "guess.SITE".
    """
    pairs = _pairs(model, tokenizer, subject)
    best = next((pair for pair in pairs if pair.gain > SMALLEST_GAIN), None)
    if best is None:
        return None, {}
    clean, corrupt, answer, wrong = best.clean, best.corrupt, best.answer, best.wrong
    prompts = torch.tensor(clean), torch.tensor(corrupt)
    exact = activation_patching(model, *prompts, answer, wrong)
    guess = attribution_patching(model, *prompts, answer, wrong)
    tensors = {f"exact.{site}": exact.values[site] for site in SITES}
    tensors |= {f"guess.{site}": guess.values[site] for site in SITES}
    said = Patching(
        clean=[tokenizer.decode([token]) for token in clean],
        corrupt=[tokenizer.decode([token]) for token in corrupt],
        answer=tokenizer.decode([answer]),
        wrong=tokenizer.decode([wrong]),
        lead_clean=exact.clean,
        lead_corrupt=exact.corrupt,
        rank_correlation={site: float(rho) for site, rho in rank_correlation(exact, guess).items()},
    )
    return said, tensors


@torch.no_grad()
def _ends(model: nn.Module, tokenizer: Tokenizer, facts: Sequence[Fact], layer: int) -> torch.Tensor:
    # Hidden states after the last token of each fact's first prompt, [n, width].
    rows = []
    for fact in facts:
        ids = place(model, torch.tensor([token_ids(tokenizer, fact.train[0])]))
        states = model.base_model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states  # type: ignore[operator]
        rows.append(states[layer][0, -1])
    return torch.stack(rows).float().cpu()


def collect(
    original: nn.Module, edited: nn.Module, subject: FactSubject, counted: dict[str, Touched], told: Survival,
    seed: int, patched: bool,
) -> tuple[Pictures, dict[str, torch.Tensor]]:  # fmt: skip
    """Collect what the figures show.

    Args:
        original: The model before; not changed.
        edited: The model after; not changed.
        subject: What was forgotten.
        counted: From `touched`.
        told: From `survival`.
        seed: Of the map.
        patched: Whether to patch, which takes half a minute on a model of 135 million weights.

    Returns:
        Words and numbers for `pictures.json` and `pictures.safetensors`: the patching maps, "lens.original" and
        "lens.edited" (probabilities of the likeliest tokens [layers + 1, t]), "map.original" and "map.edited" [n, 2],
        "map.group" [n].

    Raises:
        UserError: Too few facts are known for a map.
    """
    tokenizer = subject.tokenizer
    patching, tensors = patching_maps(original, tokenizer, subject) if patched else (None, {})
    prompt = next(
        (f.train[0] for f in subject.forget if f.subject in subject.about.all_names), subject.forget[0].train[0]
    )
    ids = torch.tensor(token_ids(tokenizer, prompt))
    grids = {"original": lens_grid(original, ids), "edited": lens_grid(edited, ids)}
    words = {
        name: [[tokenizer.decode([int(token)]) for token in row] for row in grid.tokens] for name, grid in grids.items()
    }
    tensors |= {f"lens.{name}": grid.probabilities for name, grid in grids.items()}
    groups = {
        subject.about.name: [*subject.forget, *subject.forget_test],
        "neighbours": [f for f in (*subject.retain, *subject.retain_test) if f.kind == "neighbour"],
        "far facts": [f for f in (*subject.retain, *subject.retain_test) if f.kind == "far"],
    }
    groups = {name: facts[:MAPPED] for name, facts in groups.items() if len(facts) >= FEWEST}
    every = [fact for facts in groups.values() for fact in facts]
    if len(every) <= FEWEST:
        raise UserError("Fewer than 5 facts are known, too few for a map; add facts to the bank.")
    layers = len(grids["original"].probabilities) - 1
    layer = round(DEPTH * layers)
    before, after = (_ends(model, tokenizer, every, layer) for model in (original, edited))
    placed = project(before, {"edited": after}, seed)
    number = torch.tensor([i for i, facts in enumerate(groups.values()) for _ in facts])
    tensors |= {"map.original": placed["before"], "map.edited": placed["edited"], "map.group": number}
    cka = [linear_cka(before[number == i].double(), after[number == i].double()) for i in range(len(groups))]
    pictures = Pictures(
        touched=counted,
        patching=patching,
        lens=Lens(tokens=[tokenizer.decode([int(i)]) for i in ids], original=words["original"], edited=words["edited"]),
        survival=told,
        groups=list(groups),
        cka=[float(value) for value in cka],
        layer=layer,
        layers=layers,
    )
    return pictures, tensors
