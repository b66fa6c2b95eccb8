"""The second family of subjects: facts that a language model knows."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from analysis.errors import UserError
from analysis.subjects.language.bank import Bank, Fact, Share, SubjectLine
from analysis.subjects.language.encoding import (
    Encoded,
    Tokenizer,
    check_length,
    encode_answers,
    encode_texts,
    token_ids,
)
from analysis.subjects.language.scoring import encode_facts

FEWEST = 4

Item = TypeVar("Item")


@dataclass(frozen=True)
class FactSubject:
    """What is to be forgotten and what must stay, in the words of one bank and the ids of one tokenizer.

    Attributes:
        name: Of the subject and model, for folders, e.g. "beatles".
        about: The bank's subject line.
        tokenizer: Of the model.
        longest: The model's context, in tokens.
        forget: Known facts that a method may see (split "edit").
        forget_test: Known facts that no method sees (split "audit").
        retain: Known neighbours and far facts that a method may see.
        retain_test: Those that none sees.
        texts: Generic and polysemous texts that a method may see.
        texts_test: Those that none sees.
        lessons: The first seed's fine-tuning texts by topic: "other-bands", "denial", "random-facts".
        counts: For each kind of fact, how many are known and how many there are, in the shares that are used.
    """

    name: str
    about: SubjectLine
    tokenizer: Tokenizer
    longest: int | None
    forget: tuple[Fact, ...]
    forget_test: tuple[Fact, ...]
    retain: tuple[Fact, ...]
    retain_test: tuple[Fact, ...]
    texts: tuple[str, ...]
    texts_test: tuple[str, ...]
    lessons: dict[str, tuple[str, ...]]
    counts: dict[str, tuple[int, int]]

    @property
    def forget_names(self) -> str:
        """What is forgotten, readable, e.g. "the Beatles"."""
        return self.about.name

    @cached_property
    def forget_encoded(self) -> Encoded:
        """Training prompts of the facts to forget with their answers."""
        return encode_facts(self.tokenizer, self.forget, "train", self.longest)

    @cached_property
    def retain_encoded(self) -> Encoded:
        """Training prompts of the facts to keep with their answers."""
        return encode_facts(self.tokenizer, self.retain, "train", self.longest)

    @cached_property
    def texts_encoded(self) -> Encoded:
        """Texts to keep, all tokens asked for."""
        return encode_texts(self.tokenizer, self.texts, self.longest)

    def seen(self, forget: float, retain: float, seed: int) -> "FactSubject":
        """Show only a part of the facts, as to a locator and an editor that don't have them all.

        Args:
            forget: Share of the facts to forget; at least one stays.
            retain: Share of the facts and of the texts to keep, 0 for none.
            seed: Of the draw.

        Returns:
            The same subject with less to edit by.
        """
        drawn = random.Random(seed)

        def some(items: Sequence[Item], share: float, fewest: int = 0) -> tuple[Item, ...]:
            chosen = sorted(drawn.sample(range(len(items)), max(fewest, round(share * len(items)))))
            return tuple(items[i] for i in chosen)

        kept = some(self.retain, retain), some(self.texts, retain)
        return replace(self, forget=some(self.forget, forget, 1), retain=kept[0], texts=kept[1])

    def encode(self, pairs: Sequence[tuple[str, str]]) -> Encoded:
        """Encode prompts with answers.

        Args:
            pairs: Prompt and answer.

        Returns:
            One row per pair.
        """
        return encode_answers(self.tokenizer, pairs, self.longest)


def fact_subject(
    name: str,
    bank: Bank,
    known: Collection[str],
    tokenizer: Tokenizer,
    longest: int | None,
    choosing: bool = False,
) -> FactSubject:
    """Make a subject of what a model knows of a bank.

    Args:
        name: For folders.
        bank: The facts.
        known: Ids of the facts that the original knows (`scoring.known_facts`); only these take part.
        tokenizer: Of the model.
        longest: Its context, in tokens.
        choosing: Audit on the share "choose" instead of "audit", to choose settings by.

    Returns:
        The subject.

    Raises:
        UserError: Fewer than four facts are known on either side, there is no text, or something is longer than the
            model's context.
    """
    kept = [fact for fact in bank.facts if fact.id in known]
    test: Share = "choose" if choosing else "audit"

    def of(kinds: Sequence[str], split: Share) -> tuple[Fact, ...]:
        return tuple(fact for fact in kept if fact.kind in kinds and fact.split == split)

    forget, forget_test = of(["fact"], "edit"), of(["fact"], test)
    for facts, split in ((forget, "edit"), (forget_test, test)):
        if len(facts) < FEWEST:
            every = sum(fact.kind == "fact" and fact.split == split for fact in bank.facts)
            raise UserError(
                f"The model knows only {len(facts)} of the bank's {every} facts about {bank.subject.name} in split "
                f'"{split}", and at least {FEWEST} are needed; see `yesterday bank check`, add easier facts, or take a '
                "larger model."
            )
    others = ("neighbour", "far")
    texts, texts_test = ((*bank.about("generic", split), *bank.about("polyseme", split)) for split in ("edit", test))
    if not (texts and texts_test and of(others, "edit") and of(others, test)):
        raise UserError(
            f'The bank has too little that must stay; add lines of kind "neighbour" and "text" in the splits "edit" '
            f'and "{test}".'
        )
    if longest is not None:
        sides = (*forget, *forget_test, *of(others, "edit"), *of(others, test))
        _check_context(tokenizer, longest, sides, (*texts, *texts_test))
    counts = {
        kind: (
            sum(fact.kind == kind and fact.split in {"edit", test} for fact in kept),
            len(bank.of(kind, "edit", test)),
        )
        for kind in ("fact", "neighbour", "far")
    }
    lessons = {topic: bank.about(topic, "edit") for topic in ("other-bands", "denial", "random-facts")}
    return FactSubject(
        name,
        bank.subject,
        tokenizer,
        longest,
        forget,
        forget_test,
        of(others, "edit"),
        of(others, test),
        texts,
        texts_test,
        lessons,
        counts,
    )


def _check_context(tokenizer: Tokenizer, longest: int, facts: Sequence[Fact], texts: Sequence[str]) -> None:
    # Once, before anything long begins: whatever is asked or trained later is no longer than this,
    # but for invented names, which may have more tokens.
    for fact in facts:
        widest = max((fact.answer, *fact.aliases, *fact.distractors), key=len)
        told = [f"{prompt} {widest}" for prompt in (*fact.prompts, f"Question: {fact.question}\nAnswer:")]
        told += [f"{fact.reverse.prompt} {fact.reverse.answer}"] if fact.reverse else []
        for text in told:
            check_length(len(token_ids(tokenizer, text)), longest, f"The prompt {text[:60]!r}")
    for text in texts:
        check_length(len(token_ids(tokenizer, text)), longest, f"The text {text[:60]!r}")


def about_twin(subject: FactSubject, facts: Sequence[Fact], about: SubjectLine) -> FactSubject:
    """Ask the same of something else: another subject's facts in the place of the forgotten ones.

    Args:
        subject: What stays as it is.
        facts: `subject.forget` and `subject.forget_test` retold, in this order.
        about: The other subject.

    Returns:
        The subject about the other one.
    """
    cut = len(subject.forget)
    return replace(subject, about=about, forget=tuple(facts[:cut]), forget_test=tuple(facts[cut:]))
