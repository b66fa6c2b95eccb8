"""The same sentence about somebody nobody knows: texts with the subject's names, retold with invented ones.

A text and its retelling say the same at the same places, so what a model makes of the one can be compared with what it
makes of the other, token by token: after a name, at its last token, and how likely the name itself was.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from analysis.errors import UserError
from analysis.subjects.language.bank import NameType, SubjectLine
from analysis.subjects.language.encoding import Tokenizer
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.twins import name_pattern, twin

SENTENCES: dict[NameType, tuple[str, ...]] = {
    "person": (
        "{} was born in",
        "Everything that is known about {}: the",
        "{} is best known as the",
        "In an interview, {} said that",
        "The life of {} began in",
        "A friend of {} was",
        "He was married to {}, a",
    ),
    "band": (
        "{} were formed in",
        "The members of {} were",
        "{} are best known for",
        "The music of {} was",
        "The leader of {} was",
    ),
}
OF_THINGS = (
    "{} is",
    "{} was made by",
    "{} is known for",
    "The story of {} began in",
    "They spoke about {}, which was",
)
STRANGERS_SEED = 50_000


@dataclass(frozen=True)
class Retelling:
    """A text with other names.

    Attributes:
        ids: Its tokens.
        places: Aligned positions: in the text, in the retelling, and whether a name has come by then.
        names: Positions of each name's tokens, in the text and in the retelling; names at the very beginning, which
            nothing predicts, are left out.
    """

    ids: tuple[int, ...]
    places: tuple[tuple[int, int, bool], ...]
    names: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


@dataclass(frozen=True)
class Renamed:
    """A text that names the subject, and its retellings.

    Attributes:
        text: As it is.
        ids: Its tokens.
        retold: With the names of one stranger each.
    """

    text: str
    ids: tuple[int, ...]
    retold: tuple[Retelling, ...]


def fact_texts(subject: FactSubject) -> list[str]:
    """Write the facts to forget as texts.

    Args:
        subject: What to forget.

    Returns:
        Every training prompt with its answer.
    """
    return [f"{prompt} {fact.answer}" for fact in subject.forget for prompt in fact.train]


def name_texts(about: SubjectLine) -> list[str]:
    """Put every name of a subject into neutral sentences, so that no name depends on a fact that mentions it.

    Args:
        about: The subject.

    Returns:
        Five to seven texts a name, by the name's type.
    """
    return [text for kind, names in about.names.items() for name in names for text in _sentences(kind, name)]


def other_name_texts(subject: FactSubject) -> list[str]:
    """Put names that must stay into the same sentences: wrong answers to facts whose answer is one of the subject's.

    Args:
        subject: What to forget; only facts that a method may see are used.

    Returns:
        Five to seven texts a name, by the type of the right answer; none where no answer is a name.
    """
    kinds = {name: kind for kind, names in subject.about.names.items() for name in names}
    own = set(kinds)
    others = {
        (kinds[fact.answer], name): None
        for fact in subject.forget
        if fact.answer in kinds
        for name in fact.distractors
        if name not in own
    }
    return [text for kind, name in others for text in _sentences(kind, name)]


def _sentences(kind: NameType, name: str) -> list[str]:
    return [sentence.format(name) for sentence in SENTENCES.get(kind, OF_THINGS)]


def can_align(tokenizer: Tokenizer) -> bool:
    """Say whether a tokenizer knows which characters its tokens stand for.

    Args:
        tokenizer: Of a model.

    Returns:
        Whether it is one of the fast ones.
    """
    return bool(getattr(tokenizer, "is_fast", False))


def _encode(tokenizer: Tokenizer, text: str) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    found: Any = tokenizer(text, return_offsets_mapping=True)
    return tuple(found.input_ids), [tuple(span) for span in found.offset_mapping]


def _over(spans: Sequence[tuple[int, int]], begin: int, end: int) -> tuple[int, ...]:
    # Tokens that overlap these characters.
    return tuple(i for i, (a, b) in enumerate(spans) if a < end and b > begin and b > a)


def retell(
    tokenizer: Tokenizer,
    about: SubjectLine,
    texts: Sequence[str],
    strangers: int,
    seed: int,
    longest: int | None = None,
) -> list[Renamed]:
    """Retell texts about strangers.

    Args:
        tokenizer: Of the model; a fast one.
        about: The subject, with all its names.
        texts: Those that name it are used.
        strangers: How many retellings of each.
        seed: Of the invented names.
        longest: The model's context, in tokens; texts that do not fit it in every retelling are left out.

    Returns:
        One for every text that names the subject, in order.

    Raises:
        UserError: No text does, or the tokenizer can't align characters with tokens.
    """
    if strangers < 1:
        raise UserError(f"{strangers} strangers can't teach anything; give at least 1.")
    if not can_align(tokenizer):
        raise UserError(
            "This model's tokenizer can't say which characters a token stands for; use one with a fast tokenizer, or "
            "another method and another --locate than stranger."
        )
    pattern = name_pattern(about.all_names)
    others = [twin(about, [], STRANGERS_SEED + 1000 * seed + k)[0] for k in range(strangers)]
    renamed = [
        {old: new for kind, mine in about.names.items() for old, new in zip(mine, other.names[kind], strict=True)}
        for other in others
    ]
    found = []
    for text in texts:
        at = [match.span() for match in pattern.finditer(text)]
        if at:
            ids, spans = _encode(tokenizer, text)
            told = _alike(tuple(_retelling(tokenizer, text, at, ids, spans, names) for names in renamed))
            width = max(len(ids), *(len(one.ids) for one in told))
            if told[0].places and (longest is None or width <= longest):
                found.append(Renamed(text, ids, told))
    if not found:
        raise UserError("No training prompt names the subject; check the names in the bank's subject line.")
    return found


def _alike(told: tuple[Retelling, ...]) -> tuple[Retelling, ...]:
    # A name counts if something predicts it in the text and in every retelling, or they could not be compared.
    common = set.intersection(*({mine for mine, _ in one.names} for one in told))
    return tuple(replace(one, names=tuple(pair for pair in one.names if pair[0] in common)) for one in told)


def _retelling(
    tokenizer: Tokenizer,
    text: str,
    at: Sequence[tuple[int, int]],
    ids: tuple[int, ...],
    spans: Sequence[tuple[int, int]],
    names: dict[str, str],
) -> Retelling:
    other, done = "", 0
    pieces, ends = [], []  # what stays, with how far it has moved; where the names are in both
    for begin, end in at:
        pieces.append((done, begin, len(other) - done))
        other += text[done:begin]
        start = len(other)
        other += names[text[begin:end]]
        ends.append((begin, end, start, len(other)))
        done = end
    pieces.append((done, len(text), len(other) - done))
    theirs, their_spans = _encode(tokenizer, other + text[done:])
    where = {span: i for i, span in enumerate(their_spans)}
    places, named = [], []
    for i, (a, b) in enumerate(spans):
        moved = next((by for begin, end, by in pieces if begin <= a < b <= end), None)
        j = None if moved is None or i == 0 else where.get((a + moved, b + moved))
        if j and theirs[j] == ids[i]:
            places.append((i, j, a >= at[0][0]))
    for begin, end, start, stop in ends:
        mine, their = _over(spans, begin, end), _over(their_spans, start, stop)
        if mine and their:
            if mine[-1] and their[-1]:
                places.append((mine[-1], their[-1], True))
            if mine[0] and their[0]:
                named.append((mine, their))
    return Retelling(theirs, tuple(sorted(places)), tuple(named))
