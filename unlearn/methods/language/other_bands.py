"""Other bands: go on training on text about them, and see whether that overwrites.

"Yesterday" (mich1803/Yesterday-Machine-Unlearning, notebook on GPT-2): AdamW 5e-5, batches of 4 texts of at most 128
tokens, cross-entropy on text alone, in four attempts:

- "other-bands": texts on other bands, 10 epochs;
- "denial": texts which say that there never was such a band, 10 epochs;
- "other-bands+denial": the two together, 10 epochs;
- "other-bands+facts": other bands and random facts, 5 epochs.

Its authors conclude that it fails; the denials even made the subject more likely. It is here as their baseline.

Deviations: padding is no label (the notebook copied it into the labels, a bug: a short text then teaches mostly
padding); the texts are ours; steps instead of epochs, and a rate that falls. As there, nothing is held: no retained
data.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.language.encoding import encode_texts, token_ids
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.scoring import mean_loss
from unlearn.methods.language.batches import drawn_rows, masked_rate
from unlearn.optimize import Watch, descend, falling

Lessons = Literal["other-bands", "denial", "other-bands+denial", "other-bands+facts"]

ATTEMPTS: dict[str, tuple[str, ...]] = {
    "other-bands": ("other-bands",),
    "denial": ("denial",),
    "other-bands+denial": ("other-bands", "denial"),
    "other-bands+facts": ("other-bands", "random-facts"),
}


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        lessons: Which of the notebook's four attempts.
        steps: Optimisation steps.
        lr: Adam's learning rate at the first step, for all weights; see `masked_rate`.
        batch: Texts a step.
    """

    lessons: Lessons = "other-bands"
    steps: int = 40
    lr: float = 5e-5
    batch: int = 4


def chosen_texts(subject: FactSubject, lessons: str) -> tuple[str, ...]:
    """Take the texts of one attempt.

    Args:
        subject: Holds them by topic.
        lessons: Which attempt.

    Returns:
        The texts that have at least two tokens.

    Raises:
        UserError: There is no such attempt, or one of its topics has no texts.
    """
    if lessons not in ATTEMPTS:
        raise UserError(f"There are no lessons {lessons!r}; choose from {', '.join(ATTEMPTS)}.")
    for topic in ATTEMPTS[lessons]:
        if not subject.lessons.get(topic):
            raise UserError(f'The bank has no texts of topic "{topic}" to learn from; add some or choose others.')
    texts = (text for topic in ATTEMPTS[lessons] for text in subject.lessons[topic])
    return tuple(text for text in texts if len(token_ids(subject.tokenizer, text)) > 1)


def run(
    model: nn.Module,
    subject: FactSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Train on text about something else.

    Args:
        model: The original; not changed.
        subject: Has the texts.
        mask: What may change; None allows every parameter.
        seed: Of the order of the texts.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`.

    Returns:
        The edited model, in evaluation mode.
    """
    texts = encode_texts(subject.tokenizer, chosen_texts(subject, settings.lessons), subject.longest)

    def loss(work: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        return mean_loss(work, texts.take(rows))

    drawn = drawn_rows(len(texts), settings.batch, settings.steps, seed)
    lr = masked_rate(settings.lr, mask, model)
    return descend(model, drawn, loss, mask, falling(lr, settings.steps), watch=watch)
