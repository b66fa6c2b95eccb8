"""Fictional twins: the same facts told about somebody who never existed.

No model has heard of a twin, so what a model says of it, and how fast it learns of it, is what never having known looks
like. Every proper name that belongs to the subject gets an invented one of its type, the same one everywhere; so do the
distractors of facts whose answer is such a name, or the answer would stand out among famous ones. Other answers
(cities, years, instruments) stay, since how guessable they are is part of never having known.
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from analysis.subjects.language.bank import BANKS, Fact, NameType, Reverse, SubjectLine

INVENTED = BANKS / "invented.json"


@dataclass
class _Names:
    """Invented names handed out once each; the only thing here with a state, and it never leaves `twin`."""

    random: random.Random
    own: frozenset[str]  # the subject's names, which are no stranger's
    pools: dict[str, list[str]] = field(default_factory=dict)
    given: dict[tuple[str, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        words: dict[str, list[str]] = json.loads(INVENTED.read_text(encoding="utf-8"))
        titles = [f"{one} {two}" for one in words["adjectives"] for two in words["things"]]
        pools = {"first": words["first"], "last": words["last"], "noun": words["nouns"], "title": titles}
        self.pools = {kind: [name for name in pool if name not in self.own] for kind, pool in pools.items()}
        for pool in self.pools.values():
            self.random.shuffle(pool)

    def _draw(self, pool: str, old: str) -> str:
        # A pool that runs out starts again: names may then repeat, which only banks much longer than ours reach.
        if (pool, old) not in self.given:
            names = self.pools[pool]
            self.given[pool, old] = names[0]
            names.append(names.pop(0))
        return self.given[pool, old]

    def person(self, name: str) -> str:
        words = name.split()
        if len(words) == 1:
            return self._draw("first" if ("first", name) in self.given else "last", name)
        return " ".join([self._draw("first", words[0]), *(self._draw("last", word) for word in words[1:])])

    def of(self, kind: str, name: str) -> str:
        if kind == "person":
            return self.person(name)
        article = re.match(r"[Tt]he ", name)
        core = name[4:] if article else name
        if kind == "band":
            # "Beatle" is one of the Beatles.
            noun = self._draw("noun", core.removesuffix("s"))
            return (article[0] if article else "") + (noun if core.endswith("s") else noun.removesuffix("s"))
        title = self._draw("title", core)
        ending = {"firm": "Records", "place": "Hall"}.get(kind)
        # The whole title stays in front of the ending, since there are too few first words for all firms to differ.
        return f"{title} {ending}" if ending and " " in core else title


def name_pattern(names: Sequence[str]) -> re.Pattern[str]:
    """Match whole names in a text.

    Args:
        names: The longest first, since the first that fits is taken.

    Returns:
        The pattern.
    """
    return re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names))


def twin(about: SubjectLine, facts: Sequence[Fact], seed: int) -> tuple[SubjectLine, list[Fact]]:
    """Tell a subject's facts about an invented one.

    Args:
        about: The subject, with all its names.
        facts: Facts about it.
        seed: Another seed, another twin.

    Returns:
        The twin's subject line, and its facts in the same order, with the same ids, relations and splits.
    """
    names = _Names(random.Random(seed), frozenset(about.all_names))
    kinds: dict[str, NameType] = {name: kind for kind, mine in about.names.items() for name in mine}
    # Full names first, so that a single word is known as first or last name when its turn comes.
    renamed = {name: names.of(kinds[name], name) for name in sorted(kinds, key=lambda n: -len(n.split()))}
    pattern = name_pattern(about.all_names)

    def told(text: str) -> str:
        return pattern.sub(lambda found: renamed[found[0]], text)

    def keeping(text: str, old: str, new: str) -> str:
        # The subject or answer must be found again, and may stand inside a longer name that is renamed as a whole.
        found = told(text)
        return found if new in found else told(text.replace(old, "\0")).replace("\0", new)

    def retold(fact: Fact) -> Fact:
        answer, wrong = fact.answer, list(fact.distractors)
        kind = kinds.get(answer)
        if kind is not None:
            answer = renamed[answer]
            wrong = [renamed.get(name) or names.of(kind, name) for name in wrong]
        else:
            answer, wrong = told(answer), [told(name) for name in wrong]
        taken = {answer, *map(told, fact.aliases)}
        wrong = [n for n in dict.fromkeys(wrong) if n not in taken and not n.casefold().startswith(answer.casefold())]
        subject, reverse = told(fact.subject), None
        if fact.reverse is not None:
            reverse = Reverse(
                prompt=keeping(fact.reverse.prompt, fact.answer, answer), answer=told(fact.reverse.answer)
            )
        return fact.model_copy(
            update={
                "subject": subject,
                "answer": answer,
                "aliases": tuple(map(told, fact.aliases)),
                "train": tuple(keeping(prompt, fact.subject, subject) for prompt in fact.train),
                "heldout": tuple(keeping(prompt, fact.subject, subject) for prompt in fact.heldout),
                "question": told(fact.question),
                "reverse": reverse,
                "distractors": tuple(wrong),
            }
        )

    other = about.model_copy(
        update={
            "name": told(about.name),
            "names": {kind: tuple(renamed[name] for name in mine) for kind, mine in about.names.items()},
            "prompts": tuple(map(told, about.prompts)),
        }
    )
    return other, [retold(fact) for fact in facts]
