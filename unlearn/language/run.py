"""A run on facts: locate, edit, audit by twins and planted facts, in one folder that survives kills.

The folder holds `run.json`, `audit.json`, `localization.json`, `history.csv`, `mask.safetensors`, `edit.safetensors`,
`continuations.json`, `readings/`, and `model/`: the edited model as a normal Hugging Face folder. What no edit changes
lies in the cache (`references`).
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analysis.audit.facts.case import FactReading
from analysis.audit.facts.verdict import audit_facts, read_case
from analysis.audit.report import AuditReport
from analysis.errors import UserError
from analysis.fact_causal_check import FactLocalization, fact_localization
from analysis.fact_localization import MEASURES, mask_of, score
from analysis.files import save_tensors, write_text
from analysis.scores import Mask, check_fraction
from analysis.subjects.language.bank import Bank
from analysis.subjects.language.encoding import encode_texts
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.lab_bank import open_bank
from analysis.subjects.language.models import LanguageModel, load_language_model, save_language_model
from analysis.subjects.language.renamed import can_align
from analysis.subjects.language.scoring import answer_log_probabilities, row_losses
from unlearn.documents import RunReport, versions
from unlearn.edit import Edit, fingerprint, state_of
from unlearn.language.card import model_card
from unlearn.language.config import FactRunConfig
from unlearn.language.continuations import continuations
from unlearn.language.controls import random_mask
from unlearn.language.pictures import collect, survival, touched
from unlearn.language.prepare import is_lab, open_language, open_references, words_of
from unlearn.language.references import References, load_readings, save_readings
from unlearn.methods import Method, named
from unlearn.methods.language import LANGUAGE_METHODS, LOCATED
from unlearn.optimize import Watch
from unlearn.stages import Report, Stages

CHEATS_RUN = ("output-filter", "last-block", "over-forgetting")
CHEATS_QUICK = ("output-filter", "over-forgetting")
WATCHED_ROWS = 24
DEFAULT_METHOD = "stranger"
READS = "readings"
SAMPLES = 2
QUICK_PROMPTS = 4
MODEL_FILE = "model/model.safetensors"


@dataclass(frozen=True)
class FactRun:
    """One bank's run in one folder.

    Attributes:
        config: What was asked for.
        folder: Where everything is kept.
        report: Called with what is running and the share done.
    """

    config: FactRunConfig
    folder: Path
    report: Report

    @cached_property
    def bank(self) -> Bank:
        """The facts, read and checked."""
        return open_bank(self.config.bank)

    @cached_property
    def language(self) -> LanguageModel:
        """The original."""
        language = open_language(self.config, self.report)
        return replace(language, model=self._brought(language.model))

    def _brought(self, model: nn.Module) -> nn.Module:
        return model.to(self.config.device)

    @property
    def planted(self) -> tuple[str, str] | None:
        """Names of the cases that calibrate the auditors, where planted facts do."""
        return None if self.config.quick or is_lab(self.config) else ("planted", "never-planted")

    @cached_property
    def references(self) -> References:
        """What is shared with other runs."""
        return open_references(self.config, self.language, self.bank, self.report)

    def compared(self) -> dict[str, list[FactReading]]:
        """Read everything that an edit is compared with, or take what is there.

        Returns:
            Readings by case.
        """
        cheats = CHEATS_QUICK if self.config.quick else CHEATS_RUN
        return self.references.read(cheats, planted=self.planted is not None)

    @property
    def subject(self) -> FactSubject:
        """What the model knows of the bank."""
        return self.references.subject

    @cached_property
    def seen(self) -> FactSubject:
        """The subject as far as locating and editing see it."""
        return self.subject.seen(self.config.seen_forget, self.config.seen_retain, self.config.seed)

    @cached_property
    def stages(self) -> Stages:
        """The stages that have passed so far."""
        return Stages(self.folder, self.report)

    @property
    def method(self) -> Method:
        """The method in use.

        Raises:
            UserError: There is no such method, or it needs a mask and none is located.
        """
        method = named(self.config.method or DEFAULT_METHOD, LANGUAGE_METHODS)
        base = method.name.partition(":")[0]
        if base in LOCATED and self.config.measure == "none":
            raise UserError(f"The method {base!r} needs located weights; take another --locate than none.")
        return method

    def check(self) -> None:
        """Look at everything that can be wrong before anything long begins.

        Raises:
            UserError: Something is.
        """
        check_fraction(self.config.fraction)
        if self.config.measure not in {*MEASURES, "none"}:
            raise UserError(f"There is no measure {self.config.measure!r}; give one of {', '.join(MEASURES)}, none.")
        _ = self.method, self.bank, self.references

    @property
    def task(self) -> dict[str, Any]:
        """What every stage depends on."""
        c = self.config
        return {**self.references.base, **c.sight, "measure": c.measure, "within": c.within, "fraction": c.fraction}

    def locate(self) -> None:
        """Score the weights and cut the mask."""
        c = self.config

        def work(progress: Callable[[float], None]) -> dict[str, Any]:
            model = self.language.model
            if c.measure == "none":
                mask = Mask.everything(model)
            else:
                scores = score(model, self.seen, c.measure, c.within, c.seed)
                progress(0.8)
                units = scores if scores.kind == "unit" else scores.per_unit()
                units.save(self.folder / "scores" / f"{c.measure}.safetensors")
                mask = mask_of(model, scores, c.fraction)
            mask.save(self.folder / "mask.safetensors")
            return {"weights": mask.count, "total": sum(p.numel() for p in model.parameters())}

        self.stages.run("locate", self.task, [], ["mask.safetensors"], work)

    def check_causes(self, measures: Sequence[str] = MEASURES) -> FactLocalization:
        """Test measures by setting what they locate to zero.

        Args:
            measures: Which; one that can't be had of this tokenizer is passed over.

        Returns:
            What `localization.json` holds.
        """
        c = self.config
        seeds = (c.seed,) if c.quick else (c.seed, c.seed + 1)
        measures = [one for one in measures if one != "stranger" or can_align(self.subject.tokenizer)]

        def work(progress: Callable[[float], None]) -> None:
            found = fact_localization(
                self.language.model, self.seen, c.fraction, c.within, measures, seeds=seeds, progress=progress
            )
            write_text(self.folder / "localization.json", found.model_dump_json(indent=1))

        settings = {**self.task, "seeds": seeds, "measures": measures}
        self.stages.run("causal check", settings, [], ["localization.json"], work)
        return FactLocalization.model_validate_json((self.folder / "localization.json").read_text(encoding="utf-8"))

    @property
    def mask(self) -> Mask | None:
        """What may change; None for everything."""
        return None if self.config.measure == "none" else Mask.load(self.folder / "mask.safetensors")

    def edit(self) -> None:
        """Edit what the mask allows, and write the edited model as a Hugging Face folder."""
        method = self.method
        settings = {**self.task, **method.identity}
        if self.config.candidate is None:
            makes = ["edit.safetensors", "history.csv", MODEL_FILE]
            self.stages.run("edit", settings, ["mask.safetensors"], makes, self._forget)
        else:
            makes = ["edit.safetensors", "mask.safetensors", MODEL_FILE]
            self.stages.run("candidate", {**self.task, "candidate": self._theirs[1]}, [], makes, self._take)

    @cached_property
    def _theirs(self) -> tuple[nn.Module, str]:
        # The candidate and its fingerprint.
        model = self._brought(load_language_model(str(self.config.candidate), self.report).model)
        return model, fingerprint(state_of(model))

    def _take(self, progress: Callable[[float], None]) -> dict[str, Any]:
        before, after = state_of(self.language.model), state_of(self._theirs[0])
        edit = Edit.between(before, after)
        if not edit.count:
            raise UserError("The candidate is the original, weight for weight; give the edited model.")
        edit.save(self.folder / "edit.safetensors")
        Mask({name: before[name] != after[name] for name in edit.changes}).save(self.folder / "mask.safetensors")
        save_language_model(self._theirs[0], self.language.tokenizer, self.folder / "model", self.card(edit, None))
        return {"changed": edit.count, "total": edit.total}

    def _forget(self, progress: Callable[[float], None]) -> dict[str, Any]:
        before = self.language.model
        rows: list[tuple[int, float, float]] = []
        watch = self._watch(rows, progress)
        after = self.method.run(before, self.seen, self.mask, self.config.seed, self.method.settings, watch)
        after.requires_grad_(False)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("step", "forget", "text"), *rows])
        write_text(self.folder / "history.csv", text.getvalue())
        edit = Edit.between(state_of(before), state_of(after))
        edit.save(self.folder / "edit.safetensors")
        save_language_model(after, self.language.tokenizer, self.folder / "model", self.card(edit, None))
        return {"changed": edit.count, "total": edit.total, "steps": rows[-1][0] if rows else 0}

    def _watch(self, rows: list[tuple[int, float, float]], progress: Callable[[float], None]) -> Watch:
        gone = self.subject.forget_encoded.take(slice(0, WATCHED_ROWS))
        kept = encode_texts(self.subject.tokenizer, self.subject.texts[: WATCHED_ROWS // 2])

        def watch(step: int, model: nn.Module) -> None:
            with torch.no_grad():
                known = float(answer_log_probabilities(model, gone).exp().mean())
                rows.append((step, known, float(row_losses(model, kept).mean())))
            progress(1 - 0.8 ** len(rows))

        return watch

    @cached_property
    def edited(self) -> nn.Module:
        """The edited model, read from its folder."""
        model = self._brought(load_language_model(str(self.folder / "model"), self.report).model)
        return model.requires_grad_(False)

    def judge(self) -> AuditReport:
        """Audit the edit beside its control and the references.

        Returns:
            The report.
        """
        quick = self.config.quick
        references = self.compared()
        files = {"edited": f"{READS}/edited.json"}

        def read(model: nn.Module, path: str, progress: Callable[[float], None], attacks: bool = True) -> None:
            case = self.references.case(model, self.subject, self.references.benign(model))
            save_readings(self.folder / path, read_case(case, attacks=attacks, progress=progress))

        def audit_edited(progress: Callable[[float], None]) -> None:
            read(self.edited, files["edited"], progress)

        self.stages.run("audit", self.task, ["edit.safetensors"], [files["edited"]], audit_edited)
        if self.config.measure != "none" and self.config.candidate is None and not quick:
            files["random-mask"] = f"{READS}/random-mask.json"

            def audit_random(progress: Callable[[float], None]) -> None:
                model = random_mask(self.language.model, self.subject, self.mask, self.method, self.config.seed)
                progress(0.7)
                # A control, not the candidate: whether the place of the mask matters shows without attacks.
                read(model, files["random-mask"], lambda share: progress(0.7 + 0.3 * share), attacks=False)

            settings = {**self.task, **self.method.identity}
            self.stages.run("random mask", settings, ["mask.safetensors"], [files["random-mask"]], audit_random)
        mine = {name: load_readings(self.folder / path) for name, path in files.items()}
        cases = {"original": references.pop("original"), **mine, **references}
        report = audit_facts(
            self.subject.name,
            self.subject.forget_names,
            cases,
            self.references.golds,
            words_of(self.config, self.subject.forget_names),
            self.planted,
            self.config.seed,
        )
        write_text(self.folder / "audit.json", report.model_dump_json(indent=1))
        return report

    def picture(self) -> None:
        """Collect what the figures show."""

        def work(_: Callable[[float], None]) -> None:
            folder = self.references.folder / READS
            mine = [load_readings(path) for path in (folder / "original.json", self.folder / READS / "edited.json")]
            twins = [load_readings(folder / f"{name}.json") for name in self.references.golds]
            told = survival(self.bank.facts, mine[0], mine[1], twins)
            model = self.language.model
            counted = touched(
                {name: weight.numel() for name, weight in state_of(model).items()},
                Mask.load(self.folder / "mask.safetensors"),
                Edit.load(self.folder / "edit.safetensors"),
            )
            patched = not self.config.quick
            found, tensors = collect(model, self.edited, self.subject, counted, told, self.config.seed, patched)
            write_text(self.folder / "pictures.json", found.model_dump_json(indent=1))
            save_tensors(self.folder / "pictures.safetensors", tensors)

        needs = ["mask.safetensors", "edit.safetensors", f"{READS}/edited.json"]
        self.stages.run("pictures", self.task, needs, ["pictures.json", "pictures.safetensors"], work)

    def speak(self) -> None:
        """Let both models continue the bank's prompts."""

        def work(_: Callable[[float], None]) -> None:
            samples = 0 if self.config.quick else SAMPLES
            prompts = self.bank.subject.prompts[: QUICK_PROMPTS if self.config.quick else None]
            found = continuations(self.language, self.edited, prompts, samples, self.config.seed)
            write_text(self.folder / "continuations.json", json.dumps(found, indent=1, ensure_ascii=False))

        self.stages.run("continuations", self.task, ["edit.safetensors"], ["continuations.json"], work)

    def card(self, edit: Edit, audit: AuditReport | None) -> str:
        """Write the model card.

        Args:
            edit: What was changed.
            audit: What was found, when there is an audit.

        Returns:
            Markdown.
        """
        c = self.config
        how = f"by others: {c.candidate}"
        if c.candidate is None:
            how = f"{self.method.name} ({self.method.summary}), located by {c.measure}, seed {c.seed}"
        return model_card(self.language, self.bank.subject.name, how, edit, audit)

    def note(self, found: AuditReport | None) -> RunReport:
        """Write `run.json`.

        Args:
            found: The audit, where there is one.

        Returns:
            What was written.
        """
        subject = self.subject
        config = self.config.model_dump(mode="json") | {
            "family": "facts",
            "method": self.method.name if self.config.candidate is None else None,
            "settings": asdict(self.method.settings),
            "budget": asdict(self.references.budget),
            "twins": self.references.twins,
            "known": {kind: list(pair) for kind, pair in subject.counts.items()},
            "n_forget": len(subject.forget),
            "n_forget_test": len(subject.forget_test),
            "references": str(self.references.folder.name),
        }
        kept = ("seconds", "peak_mb", "facts")
        records = {**self.references.stages.records, **self.stages.records}
        stages = {name: {key: record[key] for key in kept} for name, record in records.items()}
        facts = stages.get("edit", stages.get("candidate", {})).get("facts", {})
        mine = found.audits["edited"] if found else None
        report = RunReport(
            name=subject.name,
            config=config,
            verdict=mine.verdict if mine else None,
            sentence=mine.sentence if mine else "",
            changed=facts.get("changed"),
            total=sum(p.numel() for p in self.language.model.parameters()),
            versions=versions(),
            stages=stages,
        )
        write_text(self.folder / "run.json", json.dumps(report.model_dump(mode="json"), indent=1))
        if found is not None:
            card = self.card(Edit.load(self.folder / "edit.safetensors"), found)
            write_text(self.folder / "model" / "README.md", card)
        return report
