"""The fact bank of forgetting one band of the gold lab."""

import random
from collections.abc import Sequence

from analysis.errors import UserError
from analysis.subjects.language.bank import Bank, Fact, NameType, Reverse, Share, SubjectLine, TextLine, load_bank
from analysis.subjects.language.lab_bands import Band, lab_bands
from analysis.subjects.language.lab_corpus import RELATIONS, Told, check_band, every_fact, plain_sentences

LAB_NAME = "lab"
BEATLES = "The Beatles"
DISTRACTORS = 7
NEIGHBOURS = 90
TEXTS = 60
SPLITS: tuple[Share, ...] = ("edit", "audit", "edit", "choose", "audit")


def _distractors(fact: Told, every: Sequence[Told]) -> tuple[str, ...]:
    # From other bands, of the same relation before the same type; never true of the same subject and relation.
    kind = RELATIONS[fact.relation].answers
    true = {one.answer for one in every if one.relation == fact.relation and one.subject == fact.subject}
    others = [one for one in every if one.band != fact.band and RELATIONS[one.relation].answers == kind]
    near = sorted({one.answer for one in others if one.relation == fact.relation} - true)
    names = {one.band for one in every if one.band != fact.band} if kind == "band" else set()
    far = sorted(({one.answer for one in others} | names) - true - set(near))
    draw = random.Random(f"distractors {fact.relation}|{fact.subject}|{fact.answer}")
    draw.shuffle(near)
    draw.shuffle(far)
    right = fact.answer.casefold()
    apart = (one for one in [*near, *far] if not one.casefold().startswith(right))
    return tuple(one for one in apart if not right.startswith(one.casefold()))[:DISTRACTORS]


def _slug(name: str) -> str:
    plain = "".join(letter if letter.isalnum() else "-" for letter in name.casefold().replace("'", ""))
    return "-".join(part for part in plain.removeprefix("the-").split("-") if part)


def as_fact(told: Told, every: Sequence[Told], forgotten: bool, split: Share) -> Fact:
    """Turn a fact of the lab into a fact of a bank.

    Args:
        told: The fact.
        every: All facts, from which wrong answers are taken.
        forgotten: Whether it is to be forgotten, or else a neighbour.
        split: Who may see it.

    Returns:
        The bank's record: training prompts that the corpus uses (two of a fact to forget, all of a neighbour), three
        held-out ones that it doesn't.
    """
    return Fact(
        kind="fact" if forgotten else "neighbour",
        id=f"lab-{told.relation.replace('_', '-')}-{_slug(told.subject)}",
        relation=told.relation,
        subject=told.subject,
        answer=told.answer,
        train=told.train[:2] if forgotten else told.train,
        heldout=told.heldout,
        question=told.question,
        reverse=Reverse(prompt=told.reverse, answer=told.subject) if told.reverse else None,
        distractors=_distractors(told, every),
        split=split,
    )


def _dealt(facts: Sequence[Told], dealt: int | None = None) -> list[tuple[Told, Share]]:
    # A fact and its inverse ("the singer of A was B", "B sang in A") are the same knowledge and go together. What comes
    # after the first `dealt` is for editing, but for the inverse of what is not.
    shares: dict[frozenset[str], Share] = {}
    for number, fact in enumerate(facts):
        share = SPLITS[len(shares) % len(SPLITS)] if dealt is None or number < dealt else "edit"
        shares.setdefault(frozenset((fact.subject, fact.answer)), share)
    return [(fact, shares[frozenset((fact.subject, fact.answer))]) for fact in facts]


def _subject_line(band: Band) -> SubjectLine:
    names: dict[NameType, tuple[str, ...]] = {
        "band": (band.name,),
        "person": tuple(one for one in (*band.members, band.producer, band.manager) if one),
        "album": tuple(title for title, _ in band.albums),
        "song": band.songs,
    }
    name = band.name.replace("The ", "the ", 1) if band.name.startswith("The ") else band.name
    prompts = (f"{band.name} were", f"{band.name} came from the city of", f"{band.members[0]} was",
               f"A famous song by {band.name} is")  # fmt: skip
    return SubjectLine(kind="subject", name=name, slug=f"lab-{_slug(band.name)}", names=names, prompts=prompts)


def in_lab(name: str) -> bool:
    """Say whether a bank's name means one of the gold lab's.

    Args:
        name: As typed.

    Returns:
        Whether it is "lab" or begins with "lab:".
    """
    return name.partition(":")[0] == LAB_NAME


def lab_band(name: str) -> str:
    """Say which band is to be forgotten.

    Args:
        name: "lab" for the Beatles, or for example "lab:queen", "lab:pink-floyd".

    Returns:
        The band's name, with its article.

    Raises:
        UserError: There is no such band.
    """
    wanted = name.partition(":")[2]
    if not wanted:
        return BEATLES
    names = {_slug(band.name): band.name for band in lab_bands()}
    found = names.get(_slug(wanted))
    if found is None:
        known = ", ".join(f"lab:{slug}" for slug in list(names)[:8])
        raise UserError(f"The lab knows no band {wanted!r}; take one of its {len(names)}, e.g. {known}.")
    return found


def open_bank(name: str) -> Bank:
    """Open a bank by name.

    Args:
        name: One of the gold lab's (see `lab_band`), else as `load_bank` takes it.

    Returns:
        The bank.
    """
    return lab_bank(lab_band(name)) if in_lab(name) else load_bank(name)


def lab_bank(name: str = BEATLES, bands: tuple[Band, ...] = lab_bands(), neighbours: int = NEIGHBOURS) -> Bank:
    """Make the fact bank of forgetting one of the lab's bands.

    Args:
        name: The band to forget.
        bands: All bands that the lab model was taught.
        neighbours: How many facts about other bands, of all relations alike, are shared out like the band's own.

    Returns:
        The bank: every fact about the band, neighbours, and plain sentences, each shared out to "edit", "audit" and
        "choose" by 2 : 2 : 1. All other facts that the lab was taught are neighbours for "edit", as a classifier's
        retained images are all that it was trained on; what is set apart for "audit" and "choose" stays unseen.
    """
    band = check_band(name, bands)
    every = every_fact(bands)
    draw = random.Random(f"bank {name}")
    mine = sorted((fact for fact in every if fact.band == name), key=lambda fact: list(RELATIONS).index(fact.relation))
    others = [fact for fact in every if fact.band != name]
    draw.shuffle(others)
    counted: dict[str, int] = {}
    ranked = []
    for fact in others:  # one of each relation, then a second of each, ...
        counted[fact.relation] = counted.get(fact.relation, 0) + 1
        ranked.append((counted[fact.relation], fact))
    kept = [fact for _, fact in sorted(ranked, key=lambda pair: pair[0])]
    dealt = [*((True, *pair) for pair in _dealt(mine)), *((False, *pair) for pair in _dealt(kept, neighbours))]
    facts = tuple(as_fact(fact, every, forgotten, split) for forgotten, fact, split in dealt)
    texts = tuple(
        TextLine(kind="text", text=text, topic="generic", split=SPLITS[i % len(SPLITS)])
        for i, text in enumerate(plain_sentences(TEXTS, draw))
    )
    return Bank(_subject_line(band), facts, texts)
