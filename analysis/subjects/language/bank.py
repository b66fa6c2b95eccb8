"""Fact banks: JSON Lines in which a subject's facts, its neighbours and plain texts are written down.

Every line is an object with a "kind":

- "subject" (exactly one): what the bank is about. `name` as it is spoken of ("the Beatles"), `slug` for folder names,
  `names` (the proper names that belong to the subject, by type: band, person, album, song, film, firm, place, work;
  they are what a fictional twin renames), `prompts` (openings whose continuations are shown side by side).
- "fact": something to forget. `id`, `relation`, `subject` (the span of every prompt that names what is asked about),
  `answer` (without the leading space) and `aliases` that count as the same answer, `train` (2 prompts that a method may
  see), `heldout` (3 prompts of other syntax that only the audit sees), `question`, optional `reverse` (a prompt that
  names the answer and is continued by the subject), `distractors` (wrong answers of the same type, at least 3).
- "neighbour": something of the same kind that must stay; "far": something that has nothing to do with the subject. Same
  fields as a fact; 2 held-out prompts do.
- "text": a `text` that must stay as likely as it was, with a `topic`: "generic", "polyseme" (the subject's words in
  another sense), or one of the first seed's fine-tuning texts "other-bands", "denial" and "random-facts".

Prompts end where the answer begins, without the space between. `split` says who may see a record: "edit" (the method),
"audit" (nobody but the auditors) or "choose" (only whoever chooses settings). Texts for fine-tuning belong to "edit".
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from analysis.errors import UserError

BANKS = Path(__file__).parent.parent / "banks"
GENERAL = BANKS / "general.jsonl"
BUILTIN = ("beatles", "einstein", "shakespeare")
Share = Literal["edit", "audit", "choose"]
Topic = Literal["generic", "polyseme", "other-bands", "denial", "random-facts"]
NameType = Literal["band", "person", "album", "song", "film", "firm", "place", "work"]
Text = Annotated[str, Field(min_length=1)]


class Record(BaseModel):
    """A line of a bank: nothing but the documented fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=False)


class SubjectLine(Record):
    """What a bank is about; fields as in the module's description."""

    kind: Literal["subject"]
    name: Text
    slug: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    names: dict[NameType, tuple[Text, ...]]
    prompts: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not any(self.names.values()):
            raise ValueError("names holds no proper name, so no fictional twin can be made")
        return self

    @property
    def all_names(self) -> tuple[str, ...]:
        """Every proper name, longest first, so that replacing them in this order never cuts one in half."""
        return tuple(sorted({n for names in self.names.values() for n in names}, key=lambda n: (-len(n), n)))


class Reverse(Record):
    """A fact told the other way round.

    Attributes:
        prompt: Names the answer and ends where the subject belongs.
        answer: How the subject is named there.
    """

    prompt: Text
    answer: Text


class Fact(Record):
    """One fact with all its wordings; fields as in the module's description."""

    kind: Literal["fact", "neighbour", "far"]
    id: Text
    relation: Text
    subject: Text
    answer: Text
    aliases: tuple[Text, ...] = ()
    train: Annotated[tuple[Text, ...], Field(min_length=1)]
    heldout: Annotated[tuple[Text, ...], Field(min_length=1)]
    question: Text
    reverse: Reverse | None = None
    distractors: Annotated[tuple[Text, ...], Field(min_length=3)]
    split: Share

    @property
    def prompts(self) -> tuple[str, ...]:
        """All openings that the answer continues: training ones, then held-out ones."""
        return (*self.train, *self.heldout)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for prompt in self.prompts:
            if self.subject not in prompt:
                raise ValueError(f"the prompt {prompt!r} does not contain the subject {self.subject!r}")
            if prompt != prompt.strip():
                raise ValueError(f"the prompt {prompt!r} begins or ends with a space; the answer's space is added")
        if len(set(self.prompts)) < len(self.prompts):
            raise ValueError("the same prompt is given twice")
        for answer in (self.answer, *self.aliases, *self.distractors):
            if answer != answer.strip():
                raise ValueError(f"the answer {answer!r} begins or ends with a space; the answer's space is added")
        for wrong in self.distractors:
            if wrong in (self.answer, *self.aliases):
                raise ValueError(f"the distractor {wrong!r} is the answer itself")
            for right in (self.answer, *self.aliases):
                short, long = sorted((right.casefold(), wrong.casefold()), key=len)
                if long.startswith(short):
                    raise ValueError(
                        f"of the answer {right!r} and its distractor {wrong!r} one is a prefix of the other, so they "
                        "can't be told apart"
                    )
        if len(set(self.distractors)) < len(self.distractors):
            raise ValueError("the same distractor is given twice")
        return self


class TextLine(Record):
    """A text that is not a fact; fields as in the module's description."""

    kind: Literal["text"]
    text: Text
    topic: Topic
    split: Share


Line = Annotated[SubjectLine | Fact | TextLine, Field(discriminator="kind")]
_LINE: TypeAdapter[SubjectLine | Fact | TextLine] = TypeAdapter(Line)


@dataclass(frozen=True)
class Bank:
    """A whole bank.

    Attributes:
        subject: What it is about.
        facts: Everything with prompts and an answer, of all three kinds.
        texts: Plain texts.
    """

    subject: SubjectLine
    facts: tuple[Fact, ...]
    texts: tuple[TextLine, ...]

    def of(self, kind: Literal["fact", "neighbour", "far"], *splits: Share) -> tuple[Fact, ...]:
        """Take the facts of one kind.

        Args:
            kind: Which.
            splits: Of which shares; all when none is given.

        Returns:
            In the bank's order.
        """
        return tuple(f for f in self.facts if f.kind == kind and (not splits or f.split in splits))

    def about(self, topic: Topic, *splits: Share) -> tuple[str, ...]:
        """Take the texts of one topic.

        Args:
            topic: Which.
            splits: Of which shares; all when none is given.

        Returns:
            In the bank's order.
        """
        return tuple(t.text for t in self.texts if t.topic == topic and (not splits or t.split in splits))


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    # The first place is the kind; what follows are fields, of which some are called like kinds.
    where = ".".join(str(part) for part in first["loc"][1:])
    words = str(first["msg"]).removeprefix("Value error, ")
    return f"{where}: {words}" if where else words


def read_lines(path: Path) -> list[SubjectLine | Fact | TextLine]:
    """Read and check the records of one file.

    Args:
        path: JSON Lines, UTF-8; empty lines are skipped.

    Returns:
        The records in order.

    Raises:
        UserError: The file is missing, not text, or a line of it breaks the schema; the line is named by number.
    """
    try:
        # Not splitlines: JSON strings may hold other line separators. The mark that some editors put first goes.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save the bank as UTF-8 JSON Lines.") from error
    except OSError as error:
        raise UserError(f"There is no readable bank {path} ({error.strerror}); check the path.") from error
    found: list[SubjectLine | Fact | TextLine] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = _LINE.validate_python(json.loads(line))
        except ValidationError as error:
            raise UserError(
                f"{path}, line {number} breaks the schema ({_reason(error)}); mend or remove it."
            ) from error
        except (ValueError, RecursionError) as error:
            why = getattr(error, "msg", "a number is too long or brackets are too deep")
            raise UserError(f"{path}, line {number} is not JSON ({why}); mend or remove it.") from error
        if isinstance(record, Fact):
            if record.id in seen:
                raise UserError(
                    f"{path}, line {number} has the id {record.id!r} of line {seen[record.id]}; give each its own."
                )
            seen[record.id] = number
        found.append(record)
    return found


def load_bank(name: str, general: Path = GENERAL) -> Bank:
    """Read a bank and the far facts and generic texts that all banks share.

    Args:
        name: A built-in bank ("beatles", "einstein", "shakespeare") or the path of a file.
        general: The shared records, added to every bank but for facts about one of its own names: what is to be
            forgotten must not be kept as well.

    Returns:
        The bank.

    Raises:
        UserError: It can't be read, breaks the schema, has no subject or several, or no facts to forget.
    """
    path = BANKS / f"{name}.jsonl" if name in BUILTIN else Path(name).expanduser()
    records: Sequence[SubjectLine | Fact | TextLine] = read_lines(path)
    subjects = [r for r in records if isinstance(r, SubjectLine)]
    if len(subjects) != 1:
        raise UserError(
            f'{path} has {len(subjects)} lines of kind "subject"; it needs exactly one, saying what it is about.'
        )
    own = set(subjects[0].all_names)
    shared = [r for r in read_lines(general) if not (isinstance(r, Fact) and own & {r.subject, r.answer, *r.aliases})]
    facts = tuple(r for r in [*records, *shared] if isinstance(r, Fact))
    ids = [fact.id for fact in facts]
    if len(set(ids)) < len(ids):
        double = next(i for i in ids if ids.count(i) > 1)
        raise UserError(f"{path} uses the id {double!r} of a fact that all banks share; choose another.")
    if not any(fact.kind == "fact" for fact in facts):
        raise UserError(f'{path} has no line of kind "fact", so there is nothing to forget; add some.')
    return Bank(subjects[0], facts, tuple(r for r in [*records, *shared] if isinstance(r, TextLine)))
