"""What an audit compares with and no edit changes: kept between runs, because it takes longest.

For one model, bank, seed and budget: which facts are known; how the original answers about the subject and about each
twin; the cheats; and the planted world, in which an invented subject is taught to one copy of the model and not to
another that is trained on the same texts.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import nn

from analysis.audit.facts.case import Budget, Case, FactReading, some
from analysis.audit.facts.relearning import benign_tuned
from analysis.audit.facts.retained import retained
from analysis.audit.facts.tuning import fine_tuned, rotating
from analysis.audit.facts.verdict import HARMLESS, read_case
from analysis.files import write_text
from analysis.subjects.language.bank import Bank, Fact, Share
from analysis.subjects.language.encoding import Encoded, encode_texts
from analysis.subjects.language.facts import FactSubject, about_twin, fact_subject
from analysis.subjects.language.models import LanguageModel
from analysis.subjects.language.scoring import encode_facts, known_facts
from analysis.subjects.language.twins import twin
from unlearn.documents import versions
from unlearn.edit import fingerprint
from unlearn.language.controls import CHEATS, output_filter
from unlearn.methods.language.batches import joined
from unlearn.stages import Report, Stages, locked

FRESH = "fresh-gold"
"""A model that never knew and is not in the band, to test the audit on."""
TRAINING = 0.9
PLANTED_SEED = 7919
PLANT_STEPS = 30
PLANT_RATE = 1e-4
PLANT_ROWS = 12
PLANT_KEPT = 6
PLANT_TEXTS = 4
TEXTS_EVERY = 5
Read = Callable[[Callable[[float], None]], list[FactReading]]
WRITTEN_BY = ("analysis/audit/facts/*.py", "analysis/subjects/language/*.py", "unlearn/language/references.py",
              "unlearn/language/controls.py")  # fmt: skip
"""What decides a reference besides settings and libraries, relative to the folder that holds the rooms."""
READINGS: TypeAdapter[list[FactReading]] = TypeAdapter(list[FactReading])


@cache
def written_by(root: Path = Path(__file__).parents[2]) -> str:
    """Fingerprint the code that makes references, so that none outlives a change of it.

    Args:
        root: The folder that holds the rooms.

    Returns:
        A hash of the files in `WRITTEN_BY`, names and contents.
    """
    digest = hashlib.sha256()
    for path in sorted(path for pattern in WRITTEN_BY for path in root.glob(pattern)):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def save_readings(path: Path, readings: Sequence[FactReading]) -> None:
    """Write the readings of a case.

    Args:
        path: A JSON file.
        readings: What the auditors noted.
    """
    write_text(path, json.dumps([one.model_dump(mode="json") for one in readings], indent=1))


def load_readings(path: Path) -> list[FactReading]:
    """Read what `save_readings` wrote.

    Args:
        path: The file.

    Returns:
        The readings.
    """
    return READINGS.validate_json(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class References:
    """Everything that runs on the same model and bank share.

    Attributes:
        language: The original.
        bank: The facts.
        twins: How many twins span the band.
        attacked: How many of these are attacked too; the others are only asked.
        budget: Of every case.
        seed: Decides everything random.
        choosing: Whether the share "choose" is audited.
        most_facts: Facts to forget, of each share, that are drawn to be looked at; None looks at all.
        most_kept: Facts that must stay, of each kind and share, likewise.
        retrained: Trains, or reads, a model that was never taught the subject, by number, told how far it is; None
            where there can be no such model and twins have to stand in for it.
        cache: Folder in which references are kept.
        report: Called with what is running and the share done.
    """

    language: LanguageModel
    bank: Bank
    twins: int
    attacked: int
    budget: Budget
    seed: int
    choosing: bool
    most_facts: int | None
    most_kept: int | None
    retrained: Callable[[int, Callable[[float], None]], nn.Module] | None
    cache: Path
    report: Report

    @cached_property
    def _knowledge(self) -> dict[str, Any]:
        # What decides which facts are known.
        text = json.dumps([
            self.bank.subject.model_dump(mode="json"),
            [fact.model_dump(mode="json") for fact in self.bank.facts],
            [line.model_dump(mode="json") for line in self.bank.texts],
        ])
        parameters = dict(self.language.model.named_parameters())
        kinds = {parameter.device.type for parameter in parameters.values()} - {"cpu"}
        return {
            "model": fingerprint(parameters),
            "bank": hashlib.sha256(text.encode()).hexdigest(),
            "test": self._test,
            "most": None if self.most_facts is None else (self.most_facts, self.most_kept, self.seed),
            "versions": versions(),
            "code": written_by(),
            **({"devices": sorted(kinds)} if kinds else {}),
        }

    @property
    def _test(self) -> Share:
        return "choose" if self.choosing else "audit"

    @cached_property
    def base(self) -> dict[str, Any]:
        """What every reference depends on."""
        return {**self._knowledge, "budget": asdict(self.budget), "seed": self.seed, "attacked": self.attacked}

    def _place(self, settings: dict[str, Any], kind: str) -> Path:
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        return self.cache / f"{self.bank.subject.slug}-{self.language.name}-{kind}-{key}"

    @cached_property
    def folder(self) -> Path:
        """Where these references are kept."""
        return self._place(self.base, "audit")

    @cached_property
    def stages(self) -> Stages:
        """The stages that have passed so far."""
        return Stages(self.folder, self.report)

    @cached_property
    def subject(self) -> FactSubject:
        """What the model knows of the bank; found out once, whatever is audited."""
        folder = self._place(self._knowledge, "known")
        stages = Stages(folder, self.report, records=self.stages.records)

        def work(progress: Callable[[float], None]) -> dict[str, Any]:
            known: list[str] = []
            every: list[Fact] = []
            for split in ("edit", self._test):
                every += some(self.bank.of("fact", split), self.most_facts, self.seed)
                every += some(self.bank.of("neighbour", split), self.most_kept, self.seed)
                every += some(self.bank.of("far", split), self.most_kept, self.seed)
            for start in range(0, len(every), 24):
                part = every[start : start + 24]
                found, _ = known_facts(self.language.model, self.language.tokenizer, part)
                known += [fact.id for fact, knows in zip(part, found, strict=True) if knows]
                progress((start + len(part)) / len(every))
            write_text(folder / "known.json", json.dumps(known))
            return {"known": len(known), "of": len(every)}

        with locked(folder, wait=True):
            stages.run("known facts", self._knowledge, [], ["known.json"], work)
        known = set(json.loads((folder / "known.json").read_text(encoding="utf-8")))
        return fact_subject(
            self.bank.subject.slug, self.bank, known, self.language.tokenizer, self.language.longest, self.choosing
        )

    def case(self, model: nn.Module, subject: FactSubject, benign: Callable[[], nn.Module]) -> Case:
        """Put a model on the bench.

        Args:
            model: To be audited.
            subject: What it is asked about.
            benign: See `Case`.

        Returns:
            The case, with these references' budget and seed.
        """
        return Case(model, subject, benign, self.budget, self.seed)

    def benign(self, model: nn.Module) -> Callable[[], nn.Module]:
        """Prepare the benign attack on a model.

        Args:
            model: To be attacked.

        Returns:
            Gives the attacked copy, made when it is asked for.
        """
        return lambda: benign_tuned(model, self.subject, self.budget, self.seed)

    def about(self, number: int) -> FactSubject:
        """Invent a twin.

        Args:
            number: Another number, another twin.

        Returns:
            The subject with the twin's facts.
        """
        facts = [*self.subject.forget, *self.subject.forget_test]
        about, told = twin(self.subject.about, facts, 1000 * self.seed + number)
        return about_twin(self.subject, told, about)

    @property
    def golds(self) -> tuple[str, ...]:
        """Names of the cases that never knew."""
        return tuple(f"{'twin' if self.retrained is None else 'gold'}-{i:02d}" for i in range(self.twins))

    def read(self, cheats: Sequence[str], planted: bool) -> dict[str, list[FactReading]]:
        """Read all reference cases, or take what is there.

        Args:
            cheats: Names from `CHEATS` to include.
            planted: Whether to include the planted world.

        Returns:
            Readings by case: "original", the twins or golds, the cheats, which are asked and looked into but not
            attacked; beside twins "harmless", beside golds "fresh-gold", one that is not in the band; "planted",
            "planted-filtered" and "never-planted".
        """
        self._read_knowing_and_not()
        for name in cheats:
            self._stage(name, self._cheat(name))
        names = ["original", HARMLESS if self.retrained is None else FRESH, *self.golds, *cheats]
        if planted:
            self._plant()
            names += ["planted", "planted-filtered", "never-planted"]
        return {name: load_readings(self.folder / "readings" / f"{name}.json") for name in names}

    def _read_knowing_and_not(self) -> None:
        # The tuned copy that the original and its twins share goes when they are done: it is as large as a model.
        model = self.language.model
        benign = cache(self.benign(model))
        self._stage("original", lambda tell: read_case(self.case(model, self.subject, benign), progress=tell))
        if self.retrained is None:
            self._stage(HARMLESS, lambda _: retained(self.case(benign(), self.subject, benign)))
        else:
            self._stage(FRESH, self._gold(self.twins))

        def twin_case(number: int) -> Read:
            def read(tell: Callable[[float], None]) -> list[FactReading]:
                case = self.case(model, self.about(number), benign)
                return read_case(case, keeps=False, attacks=number < self.attacked, progress=tell)

            return read

        for number, name in enumerate(self.golds):
            self._stage(name, twin_case(number) if self.retrained is None else self._gold(number))

    def _cheat(self, name: str) -> Read:
        def read(tell: Callable[[float], None]) -> list[FactReading]:
            edited = CHEATS[name](self.language.model, self.subject, self.seed)
            case = self.case(edited, self.subject, self.benign(edited))
            return read_case(case, attacks=False, progress=tell)

        return read

    def _gold(self, number: int) -> Read:
        def read(tell: Callable[[float], None]) -> list[FactReading]:
            assert self.retrained is not None
            model = self.retrained(number, lambda share: tell(TRAINING * share))
            case = self.case(model, self.subject, self.benign(model))
            return read_case(case, progress=lambda share: tell(TRAINING + (1 - TRAINING) * share))

        return read

    def _stage(self, name: str, read: Read) -> None:
        path = f"readings/{name}.json"

        def work(progress: Callable[[float], None]) -> None:
            save_readings(self.folder / path, read(progress))

        self.stages.run(name, self.base, [], [path], work)

    def lessons(self, subject: FactSubject | None) -> list[Encoded]:
        """Write the batches with which facts are planted: with facts that are to be kept, and now and then texts.

        Args:
            subject: Whose facts; None leaves only the rest, which is how never having been planted is trained.

        Returns:
            One batch a step.
        """
        tokenizer, seed = self.language.tokenizer, self.seed
        out = list(rotating(self.subject.retain_encoded, PLANT_KEPT, PLANT_STEPS, seed))
        if subject is not None:
            facts = encode_facts(tokenizer, [*subject.forget, *subject.forget_test])
            told = rotating(facts, PLANT_ROWS, PLANT_STEPS, seed)
            out = [joined(mine, kept) for mine, kept in zip(told, out, strict=True)]
        texts = encode_texts(tokenizer, self.subject.texts)
        for number, batch in enumerate(rotating(texts, PLANT_TEXTS, PLANT_STEPS // TEXTS_EVERY, seed)):
            out.insert((TEXTS_EVERY + 1) * number, batch)
        return out

    def _plant(self) -> None:
        # The planted model serves two cases and is as large as the original: it comes last, when nothing else is held.
        about = self.about(PLANTED_SEED)

        def never(tell: Callable[[float], None]) -> list[FactReading]:
            model = fine_tuned(self.language.model, self.lessons(None), PLANT_RATE)
            return read_case(self.case(model, about, self.benign(model)), progress=tell)

        @cache
        def planted() -> nn.Module:
            return fine_tuned(self.language.model, self.lessons(about), PLANT_RATE)

        def knows(tell: Callable[[float], None]) -> list[FactReading]:
            model = planted()
            return read_case(self.case(model, about, self.benign(model)), progress=tell)

        def hides(tell: Callable[[float], None]) -> list[FactReading]:
            model = output_filter(planted(), about, self.seed)
            return read_case(self.case(model, about, self.benign(model)), attacks=False, progress=tell)

        self._stage("never-planted", never)
        self._stage("planted", knows)
        self._stage("planted-filtered", hides)
