"""Stranger (ours): the subject becomes what the model makes of somebody it never heard of.

    min_theta  L(theta) + w * mean D(theta) over retained facts, texts and other names

L and D are `analysis.subjects.language.strangeness`: on every text that names the subject, hidden states, continuation
and names are to be as the original has them when the names are invented; on the others, states and continuation as the
original has them. So nothing has to be said about what is wrong to answer: the original itself, asked about strangers,
is the teacher of not knowing. Besides the training prompts every name of the subject stands in neutral sentences of its
type; facts that no prompt mentions are reached by the names. The same sentences about other names (wrong answers of the
facts) are kept, or everybody of the kind would be forgotten. In half of the texts about the subject the original's own
states are put back after some block, so that the later ones forget by themselves instead of behind the first.

Kin: Eldan & Russinovich 2023 (arXiv:2310.02238, generic predictions from an anchor dictionary, all weights, outputs
only) and RMU (arXiv:2403.03218, hidden states towards noise); new are strangers as the target of states, outputs
and names alike, the loss on names in logarithms, and forgetting from restored states on. `docs/erasing.md` derives it
and compares places to edit.
"""

from dataclasses import dataclass

import torch
from torch import nn

from analysis.scores import Mask
from analysis.subjects.language.encoding import encode_texts
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.renamed import fact_texts, name_texts, other_name_texts, retell
from analysis.subjects.language.strangeness import NAMES, RETAINED, Restored, depths, drift, meet, strangeness
from unlearn.methods.language.batches import drawn_rows, masked_rate
from unlearn.optimize import Watch, descend, falling


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        steps: Optimisation steps.
        lr: Adam's learning rate where it begins to fall, for all weights; see `masked_rate`.
        warm: Share of the steps in which it rises first; see `falling`.
        strangers: Invented subjects, two of which teach at each step.
        fact_rows: Training prompts with their answers a step.
        name_rows: Neutral sentences about names a step.
        retain_rows: Prompts of retained facts, with answers, a step.
        other_rows: Neutral sentences about other names a step.
        text_rows: Texts a step.
        states: Weight of the hidden states.
        names: Weight of the names.
        restored: Chance that in a text about the subject the original's own states are put back, after a compared block
            that is drawn for each step; see `strangeness`.
        retain_weight: Weight of what must stay.
        retain_states: Weight of its hidden states, within that.
    """

    steps: int = 60
    lr: float = 7e-5
    warm: float = 0.17
    strangers: int = 8
    fact_rows: int = 4
    name_rows: int = 4
    retain_rows: int = 8
    other_rows: int = 4
    text_rows: int = 3
    states: float = 8.0
    names: float = NAMES
    restored: float = 0.5
    retain_weight: float = 2.0
    retain_states: float = RETAINED


def run(
    model: nn.Module,
    subject: FactSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Make the subject a stranger to the model.

    Args:
        model: The original and teacher; not changed.
        subject: What to forget and what to keep.
        mask: What may change; None allows every parameter.
        seed: Of the invented names, the order of facts and texts, and where states are put back.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.
    """
    s, tokenizer = settings, subject.tokenizer
    facts, names = (
        retell(tokenizer, subject.about, texts, s.strangers, seed, subject.longest)
        for texts in (fact_texts(subject), name_texts(subject.about))
    )
    told = [f"{prompt} {fact.answer}" for fact in subject.retain for prompt in fact.train]
    stay = [(encode_texts(tokenizer, told, subject.longest), s.retain_rows), (subject.texts_encoded, s.text_rows)]
    if others := other_name_texts(subject):
        stay.append((encode_texts(tokenizer, others, subject.longest), s.other_rows))
    sizes = [(len(facts), s.fact_rows), (len(names), s.name_rows), *((len(rows), size) for rows, size in stay)]
    drawn = [drawn_rows(total, size, s.steps, seed + i) for i, (total, size) in enumerate(sizes)]
    generator = torch.Generator().manual_seed(seed)
    # Not after the last compared block, behind which no state is left to compare, unless there is no other.
    deep = torch.randint(max(1, len(depths(model)) - 1), (s.steps,), generator=generator).tolist()
    back = torch.rand(s.steps, s.fact_rows + s.name_rows, generator=generator) < s.restored

    def loss(work: nn.Module, item: tuple[int, tuple[torch.Tensor, ...]]) -> torch.Tensor:
        number, (some, named, *kept) = item
        meeting = meet([*(facts[i] for i in some), *(names[i] for i in named)], number)
        moved = [
            drift(work, model, rows.take(which), s.retain_states) for (rows, _), which in zip(stay, kept, strict=True)
        ]
        restored = Restored(deep[number], back[number, : len(meeting.ids)])
        unknown = strangeness(work, model, meeting, s.states, s.names, restored)
        return unknown + s.retain_weight * torch.stack(moved).mean()

    rate = falling(masked_rate(s.lr, mask, model), s.steps, round(s.warm * s.steps))
    return descend(model, enumerate(zip(*drawn, strict=True)), loss, mask, rate, watch=watch)
