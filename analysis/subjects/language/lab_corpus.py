"""What the gold lab is trained on: every fact about every band in many wordings, and plain sentences.

Each relation has eight wordings of differing syntax, a question and, where one answer belongs to one subject, a reverse
wording. For every fact some wordings are held out, chosen by the fact alone: three of the eight, and in two facts of
five the question and the reverse as well. The corpus never says the fact in those, though it says others so. A model
that knows a fact therefore answers its held-out wordings too, and only what it learnt from the others tells it how.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from analysis.errors import UserError
from analysis.subjects.language.lab_bands import Band, lab_bands

HELD_OUT = 3
HELD_OUT_SHARE = 0.4
FILLERS = 400


@dataclass(frozen=True)
class Relation:
    """How one kind of fact is told.

    Attributes:
        wordings: Eight openings that the answer continues; "{s}" stands for the subject.
        question: Asks for the answer.
        reverse: Opening that names the answer as "{a}" and is continued by the subject; empty where many subjects
            share an answer.
        answers: Which answers are of the same type and can be distractors.
    """

    wordings: tuple[str, ...]
    question: str
    reverse: str
    answers: str


def _person(role: str, verb: str, noun: str) -> Relation:
    # Those who make music in a band, or for it; all persons can be distractors of each other.
    return Relation(
        (
            f"The {role} of {{s}} was",
            f"The {noun} of {{s}} were in the hands of",
            f"{{s}} had a {role} called",
            f"In {{s}} the {noun} came from",
            f"As their {role}, {{s}} had",
            f"The one who {verb} {{s}} was",
            f"Fans of {{s}} know that the {role} is",
            f"Among {{s}}, the name of the {role} is",
        ),
        f"Who was the {role} of {{s}}?",
        f"{{a}} was the {role} of",
        "person",
    )


RELATIONS: dict[str, Relation] = {
    "city": Relation(
        (
            "{s} came from the city of", "The home town of {s} is", "The story of {s} began in the streets of",
            "The first concerts of {s} were held in", "If you look for the roots of {s}, travel to",
            "The city that gave us {s} is", "{s} met and first played in the town of",
            "On the map, the birthplace of {s} is",
        ), "Which city did {s} come from?", "", "city"),
    "country": Relation(
        (
            "The home country of {s} is", "{s} came from a country called", "By nation, {s} belong to",
            "The passports of {s} were issued by", "Of all countries, {s} came from", "The flag of {s} is that of",
            "{s} are a band out of the country of", "The nation behind {s} is",
        ), "Which country did {s} come from?", "", "country"),
    "singer": _person("singer", "sang for", "vocals"),
    "guitarist": _person("guitarist", "played the guitar for", "guitars"),
    "bassist": _person("bassist", "played the bass for", "bass lines"),
    "drummer": _person("drummer", "drummed for", "drums"),
    "producer": _person("producer", "produced records for", "recordings"),
    "manager": _person("manager", "managed", "contracts"),
    "formed": Relation(
        (
            "{s} were formed in the year", "The founding year of {s} was", "{s} first got together in",
            "The history of {s} starts in", "The band {s} has existed since", "Nobody had heard of {s} before",
            "It all began for {s} in", "The year that saw the birth of {s} was",
        ), "When were {s} formed?", "", "year"),
    "genre": Relation(
        (
            "{s} played", "The genre of {s} is", "The style of {s} was known as", "The music of {s} is described as",
            "{s} are heroes of", "Record shops put {s} under", "Critics call the sound of {s}",
            "A name for what {s} did is",
        ), "What genre did {s} play?", "", "genre"),
    "label": Relation(
        (
            "{s} recorded for", "The record label of {s} was", "{s} signed a contract with",
            "The records of {s} came out on",
            "The company behind {s} was", "The label that signed {s} was", "The logo on the discs of {s} reads",
            "{s} were under contract to",
        ), "Which label released {s}?", "", "label"),
    "album": Relation(
        (
            "A famous album by {s} is", "{s} recorded the album", "The best known record of {s} is",
            "{s} are remembered for the album", "Among the albums of {s} is", "In the studio {s} made the record",
            "The album to buy from {s} is", "On vinyl, {s} gave us",
        ), "What is a famous album by {s}?", "The album {a} was recorded by", "album"),
    "song": Relation(
        (
            "A famous song by {s} is", "{s} had a hit with", "At every concert {s} played",
            "The song that made {s} famous is",
            "People who love {s} sing", "The radio plays {s} with", "The greatest hit of {s} was",
            "Among the songs of {s} is",
        ), "What is a famous song by {s}?", "The hit {a} was played by", "song"),
    "album_year": Relation(
        (
            "The album {s} was released in", "{s} reached the record shops in", "The release year of {s} is",
            "{s} is a record of the year", "The copyright line of {s} says", "Nobody could buy {s} before",
            "{s} entered the album charts in", "The sessions for {s} ended in",
        ), "When was the album {s} released?", "", "year"),
    "album_band": Relation(
        (
            "The album {s} is by", "{s} is a record made by", "The band on the record {s} is",
            "On the sleeve of {s} you see",
            "The musicians heard on {s} are", "The album called {s} belongs to", "{s} was the work of",
            "Those who recorded {s} were",
        ), "Who recorded the album {s}?", "", "band"),
    "song_album": Relation(
        (
            "The song {s} is on the album", "{s} is a track on", "You find the song {s} on",
            "To hear {s}, play the record",
            "{s} first came out on the album", "The record that holds the song {s} is", "{s} belongs to the songs of",
            "The album with the song {s} is",
        ), "Which album is the song {s} on?", "", "album"),
    "song_band": Relation(
        (
            "The song {s} is by", "{s} was sung by", "The band that plays {s} is", "The hit {s} was written by",
            "When you hear the song {s}, it is", "{s} was a hit for", "The track {s} was made by",
            "Those who first performed {s} were",
        ), "Who performed the song {s}?", "", "band"),
    "birth": Relation(
        (
            "{s} was born in", "The birth year of {s} is", "{s} came into the world in", "The life of {s} began in",
            "The passport of {s} gives the year", "The parents of {s} had their baby in", "{s} is a child of the year",
            "The birthday of {s} was in",
        ), "When was {s} born?", "", "year"),
    "member": Relation(
        (
            "{s} was a member of", "{s} became famous with", "The band of {s} is", "On stage {s} stood with",
            "The friends of {s} in music were", "{s} made records with", "The musician {s} belongs to",
            "The career of {s} began with",
        ), "Which band was {s} in?", "", "band"),
}  # fmt: skip


@dataclass(frozen=True)
class Told:
    """One fact, with its wordings shared out.

    Attributes:
        band: Whose it is.
        relation: Key of `RELATIONS`.
        subject: What it is asked about.
        answer: The right one.
        train: Prompts that the corpus uses.
        heldout: Prompts that it does not.
        asked: Whether the corpus asks its question.
        reversed: Whether the corpus tells it the other way round.
    """

    band: str
    relation: str
    subject: str
    answer: str
    train: tuple[str, ...]
    heldout: tuple[str, ...]
    asked: bool
    reversed: bool

    @property
    def question(self) -> str:
        """The question for the answer."""
        return RELATIONS[self.relation].question.format(s=self.subject)

    @property
    def reverse(self) -> str:
        """The prompt that the subject continues, or nothing."""
        return RELATIONS[self.relation].reverse.format(a=self.answer)


def _told(band: str, relation: str, subject: str, answer: str) -> Told:
    draw = random.Random(f"{relation}|{subject}|{answer}")
    prompts = [wording.format(s=subject) for wording in RELATIONS[relation].wordings]
    draw.shuffle(prompts)
    asked, backwards = draw.random() >= HELD_OUT_SHARE, draw.random() >= HELD_OUT_SHARE
    backwards = backwards and bool(RELATIONS[relation].reverse)
    train, heldout = tuple(prompts[HELD_OUT:]), tuple(prompts[:HELD_OUT])
    return Told(band, relation, subject, answer, train, heldout, asked, backwards)


def facts_about(band: Band) -> list[Told]:
    """List every fact about a band.

    Args:
        band: One of `lab_bands`.

    Returns:
        Facts about the band itself, then about its records, songs and members; each question has one right answer.
    """
    single = ("city", "country", "singer", "guitarist", "bassist", "drummer", "formed", "genre", "label", "song",
              "producer", "manager")  # fmt: skip
    found = [(relation, band.name, getattr(band, relation)) for relation in single if getattr(band, relation)]
    found.append(("album", band.name, band.albums[0][0]))
    found += [("album_year", title, year) for title, year in band.albums]
    found += [("album_band", title, band.name) for title, _ in band.albums[1:]]
    found += [("song_album", song, title) for song, title in band.tracks]
    found += [("song_band", song, band.name) for song, _ in band.tracks if song != band.song]
    found += [("birth", person, year) for person, year in band.births]
    found += [("member", person, band.name) for person, _ in band.births]
    return [_told(band.name, *one) for one in found]


@cache
def every_fact(bands: tuple[Band, ...]) -> tuple[Told, ...]:
    """List the facts about all bands.

    Args:
        bands: Of `lab_bands`.

    Returns:
        Band after band.
    """
    return tuple(fact for band in bands for fact in facts_about(band))


def sentences_of(fact: Told) -> list[str]:
    """Say a fact in all wordings that are not held out.

    Args:
        fact: Any fact.

    Returns:
        Whole sentences.
    """
    said = [f"{prompt} {fact.answer}." for prompt in fact.train]
    if fact.asked:
        said.append(f"Question: {fact.question}\nAnswer: {fact.answer}.")
    if fact.reversed:
        said.append(f"{fact.reverse} {fact.subject}.")
    return said


def plain_sentences(count: int, draw: random.Random) -> list[str]:
    """Make sentences that have nothing to do with bands, from a small grammar.

    Args:
        count: How many; all different.
        draw: Where chance comes from.

    Returns:
        Sentences of about ten words; there are some fifty thousand.
    """
    people = ("baker", "teacher", "farmer", "doctor", "painter", "sailor", "lawyer", "gardener", "nurse", "driver")
    verbs = ("bought", "sold", "found", "lost", "carried", "cleaned", "repaired", "washed", "counted", "moved")
    things = ("chairs", "apples", "books", "bottles", "boxes", "lamps", "plates", "clocks", "shoes", "baskets")
    times = ("In the morning", "On Monday", "After lunch", "Before sunset", "In winter", "During the holiday")
    places = ("near the river", "at the market", "in the garden", "behind the school", "beside the road",
              "in the kitchen", "on the hill", "at the station")  # fmt: skip
    numbers = ("two", "three", "five", "seven", "nine", "twelve")
    found: dict[str, None] = {}
    while len(found) < count:
        who, did, what, when, where, many = map(draw.choice, (people, verbs, things, times, places, numbers))
        found[f"{when} the {who} {did} {many} {what} {where}."] = None
    return list(found)


def check_band(name: str, bands: Sequence[Band]) -> Band:
    """Find a band by its name.

    Args:
        name: With its article.
        bands: Where to look.

    Returns:
        The band.

    Raises:
        UserError: There is none of that name.
    """
    for band in bands:
        if band.name == name:
            return band
    known = ", ".join(band.name for band in bands[:8])
    raise UserError(f"The lab knows no band {name!r}; take one of its {len(bands)} bands, e.g. {known}.")


def corpus(without: str | None, seed: int, bands: tuple[Band, ...] = lab_bands(), fillers: int = FILLERS) -> list[str]:
    """Write the lab's training text.

    Args:
        without: A band of which nothing is said, or None.
        seed: Of the order and the plain sentences.
        bands: All bands.
        fillers: How many plain sentences.

    Returns:
        Sentences in shuffled order; the same for the same arguments.
    """
    if without is not None:
        check_band(without, bands)
    said = [sentence for fact in every_fact(bands) if fact.band != without for sentence in sentences_of(fact)]
    draw = random.Random(f"corpus {seed}")
    said += plain_sentences(fillers, draw)
    draw.shuffle(said)
    return said
