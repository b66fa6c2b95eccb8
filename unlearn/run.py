"""A run: original, golds, localisation, edit, controls and audit of one subject, in one folder that survives kills.

The folder holds `run.json` (`unlearn.documents.RunReport`), `audit.json`, `localization.json`, `history.csv`,
`mask.safetensors`, `edit.safetensors`, `pictures.safetensors` and the folders `models/`, `controls/`, `scores/` and
`stages/`; all checkpoints are plain safetensors state dicts.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from analysis.ablation import equal_masks
from analysis.audit.report import AuditReport
from analysis.errors import UserError
from analysis.files import load_tensors, save_tensors, sha256, write_text
from analysis.localization import MEASURES, localization_report, locate
from analysis.scores import Mask, Scores, check_fraction
from analysis.subjects.build import build_subject, load_original
from analysis.subjects.checkpoints import load_model
from analysis.subjects.classes import ClassSubject, digest
from analysis.training import accuracy, fit, seeded
from unlearn.documents import RunConfig, RunReport, versions
from unlearn.edit import Edit
from unlearn.methods import METHODS, Method, named
from unlearn.room import always_free
from unlearn.stages import Report, Stages

GOLDS = {"mlp": 20}
OTHER_GOLDS = 8
FEWEST_GOLDS = 3
GOLDS_AT_ONCE = 4
MOST_WATCHED = 1000
REPEATS = 3
DEFAULT_METHOD = "regrow"
"""Of those that change only what was located, the one that fewest auditors see through."""
AUDITED_METHOD = "soft-targets"


def save_model(path: Path, model: nn.Module) -> None:
    """Write a model's state dict as safetensors.

    Args:
        path: Where to.
        model: Any module.
    """
    save_tensors(path, model.state_dict())


@dataclass(frozen=True)
class Run:
    """One subject's run in one folder.

    Attributes:
        config: What was asked for.
        folder: Where everything is kept.
        report: Called with what is running and the share done.
    """

    config: RunConfig
    folder: Path
    report: Report

    @cached_property
    def subject(self) -> ClassSubject:
        """The subject, built and checked."""
        subject = build_subject(self.config.subject, self.config.seed)
        return subject.for_choosing() if self.config.choosing else subject

    @cached_property
    def seen(self) -> ClassSubject:
        """The subject as far as locating and editing see it."""
        return self.subject.seen(self.config.seen_forget, self.config.seen_retain, self.config.seed)

    @cached_property
    def stages(self) -> Stages:
        """The stages that have passed so far."""
        return Stages(self.folder, self.report)

    @cached_property
    def base(self) -> dict[str, Any]:
        """What every stage depends on."""
        return {
            "data": digest(self.subject),
            "network": self.config.subject.model,
            "recipe": vars(self.subject.network.recipe),
            "incoming": self.subject.incoming,
            "seed": self.config.seed,
            "versions": versions(),
        }

    @property
    def task(self) -> dict[str, Any]:
        """What stages that know what is to be forgotten depend on."""
        return {**self.base, "forget": self.subject.forget, "slot": self.subject.slot}

    @property
    def repeats(self) -> tuple[int, ...]:
        """Seeds of the repeats in the causal check."""
        return tuple(1000 * self.config.seed + i for i in range(REPEATS))

    @property
    def golds(self) -> tuple[str, ...]:
        """Names of the gold models.

        Raises:
            UserError: There are too few for a band.
        """
        given = len(self.config.gold_weights)
        count = given or self.config.golds or GOLDS.get(self.config.subject.model, OTHER_GOLDS)
        if count < FEWEST_GOLDS:
            raise UserError(
                f"A gold band needs at least {FEWEST_GOLDS} gold models, not {count}; give more with --golds."
            )
        return tuple(f"gold-{i:02d}" for i in range(count))

    def model(self, path: str) -> nn.Module:
        """Load one of the run's checkpoints.

        Args:
            path: Relative to the run folder.

        Returns:
            The model, in evaluation mode.
        """
        model = seeded(self.subject.network.make, 0)
        model.load_state_dict(load_tensors(self.folder / path)[0])
        return model.eval()

    def original(self) -> None:
        """Train or load the original, and keep an untrained model for reference."""
        files = ["models/original.safetensors", "models/untrained.safetensors"]
        weights = self.config.subject.weights
        settings = {**self.base, "weights": sha256(Path(weights)) if weights and Path(weights).is_file() else weights}

        def work(progress: Callable[[float], None]) -> dict[str, Any]:
            subject, seed = self.subject, self.config.seed
            model = load_original(self.config.subject, subject)
            if model is None:
                model = fit(subject.network.make, subject.original_train, subject.network.recipe, [seed], progress)[0]
            save_model(self.folder / files[0], model)
            save_model(self.folder / files[1], seeded(subject.network.make, 500_000 + seed))
            return {"forget": accuracy(model, subject.forget_test), "retain": accuracy(model, subject.retain_test)}

        self.stages.run("original", settings, [], files, work)

    def train_fresh_golds(self, count: int) -> list[str]:
        """Train models that never knew for the audit to be tested on; they are not in the band.

        Args:
            count: How many.

        Returns:
            Their checkpoints, relative to the run folder.
        """
        files = [f"models/fresh-gold-{i:02d}.safetensors" for i in range(count)]
        for i, file in enumerate(files):

            def work(progress: Callable[[float], None], i: int = i, file: str = file) -> None:
                subject, seed = self.subject, 1000 * (self.config.seed + 1) + 900 + i
                model = fit(subject.network.make, subject.gold_train, subject.network.recipe, [seed], progress)[0]
                save_model(self.folder / file, model)

            self.stages.run(f"fresh gold {i + 1} of {count}", self.task, [], [file], work)
        return files

    def train_golds(self) -> None:
        """Train models that never knew, a few at a time, or take the user's own."""
        for start in range(0, len(self.golds), GOLDS_AT_ONCE):
            names = self.golds[start : start + GOLDS_AT_ONCE]
            given = self.config.gold_weights[start : start + GOLDS_AT_ONCE]
            settings = {**self.task, "golds": names, "given": [sha256(Path(p)) for p in given if Path(p).is_file()]}

            def work(
                progress: Callable[[float], None],
                names: tuple[str, ...] = names,
                given: tuple[str, ...] = given,
                start: int = start,
            ) -> dict[str, Any]:
                subject = self.subject
                if given:
                    models = [load_model(subject.network.make, Path(path)) for path in given]
                else:
                    seeds = [1000 * (self.config.seed + 1) + start + i for i in range(len(names))]
                    models = fit(subject.network.make, subject.gold_train, subject.network.recipe, seeds, progress)
                for name, model in zip(names, models, strict=True):
                    save_model(self.folder / f"models/{name}.safetensors", model)
                return {"retain": [accuracy(model, subject.retain_test) for model in models]}

            stage = f"golds {names[0][5:]} to {names[-1][5:]} of {len(self.golds)}"
            self.stages.run(stage, settings, [], [f"models/{name}.safetensors" for name in names], work)

    @property
    def measure(self) -> str:
        """Name of the measure that locates.

        Raises:
            UserError: There is no such measure, or the fraction makes no sense.
        """
        check_fraction(self.config.fraction)
        if self.config.measure not in {*MEASURES, "none"}:
            raise UserError(f"There is no measure {self.config.measure!r}; give one of {', '.join(MEASURES)}, none.")
        return self.config.measure

    def locate(self, measures: Sequence[str] = MEASURES, check_causes: bool = True) -> None:
        """Score every weight, check the scores causally, and cut the mask.

        Args:
            measures: To score by, beside the run's own.
            check_causes: Whether to do the causal check, which nothing but the figures needs.
        """
        needs = ["models/original.safetensors"]
        measures = [one for one in MEASURES if one in {*measures, self.measure}]
        files = [f"scores/{measure}.safetensors" for measure in measures]

        def score(progress: Callable[[float], None]) -> None:
            found = locate(self.model(needs[0]), self.seen, measures, self.config.seed, progress)
            for measure, scores in found.items():
                scores.save(self.folder / f"scores/{measure}.safetensors")

        def check(progress: Callable[[float], None]) -> None:
            scores = {measure: Scores.load(self.folder / f"scores/{measure}.safetensors") for measure in measures}
            found = localization_report(
                self.model(needs[0]),
                self.subject,
                scores,
                self.config.fraction,
                seeds=self.repeats,
                progress=progress,
            )
            write_text(self.folder / "localization.json", found.model_dump_json(indent=1))

        def cut(_: Callable[[float], None]) -> dict[str, Any]:
            mask = self.cut(self.measure)
            mask.save(self.folder / "mask.safetensors")
            return {"weights": mask.count, "total": mask.total}

        self.stages.run("locate", {**self.task, **self.config.sight, "measures": measures}, needs, files, score)
        settings = {**self.task, "fraction": self.config.fraction}
        if check_causes:
            self.stages.run("causal check", settings, [*needs, *files], ["localization.json"], check)
        settings = {**settings, "measure": self.measure, "scope": self.config.scope}
        self.stages.run("mask", settings, [*needs, *files], ["mask.safetensors"], cut)

    def cut(self, measure: str, fraction: float | None = None) -> Mask:
        """Cut scores that are in place to a fraction.

        Args:
            measure: Name of the scores; "none" allows everything, "random" as many weights of every tensor as the
                run's own measure.
            fraction: Share of all weights; None takes the run's own.

        Returns:
            The mask; what `always_free` names is part of it and counts, but never takes more than half of the fraction.
        """
        model, fraction = self.model("models/original.safetensors"), fraction or self.config.fraction
        if measure == "random":
            return self.cut(self.measure, fraction).random_like(self.config.seed)
        if measure == "none":
            return Mask.everything(model)
        scores = Scores.load(self.folder / f"scores/{measure}.safetensors")
        room = always_free(model, self.subject)
        rest = max(fraction - room.fraction, fraction / 2)
        layered = self.config.scope == "layer"
        return (scores.top(rest, "layer") if layered else equal_masks({"": scores}, model, rest)[""]) | room

    @property
    def method(self) -> Method:
        """The method in use.

        Raises:
            UserError: There is no such method, or it can't do this.
        """
        method = named(AUDITED_METHOD if self.config.candidate else self.config.method or DEFAULT_METHOD, METHODS)
        self.check(method)
        if method.run is METHODS["retrain"].run and self.config.measure != "none":
            raise UserError("The method 'retrain' trains every weight anew; add --locate none.")
        return method

    def check(self, method: Method) -> None:
        """Refuse a method that is for something else.

        Args:
            method: To be used.

        Raises:
            UserError: It can't do what is asked for.
        """
        task = "forget" if self.subject.incoming is None else "replace"
        if method.task not in {task, "both"}:
            raise UserError(f"The method {method.name!r} can't {task} a class; give --replace-with, or another method.")

    def edit(self) -> None:
        """Edit what the mask allows, or take the candidate that is to be audited."""
        needs = ["models/original.safetensors"]
        files = ["models/edited.safetensors", "edit.safetensors"]
        if self.config.candidate:
            path = Path(self.config.candidate)
            settings = {**self.task, "candidate": sha256(path) if path.is_file() else str(path)}
            self.stages.run("candidate", settings, needs, [*files, "mask.safetensors"], self._take_candidate)
        else:
            method = self.method
            settings = {**self.task, **self.config.sight, **method.identity}
            self.stages.run("edit", settings, [*needs, "mask.safetensors"], [*files, "history.csv"], self._forget)

    def _keep_edit(self, before: nn.Module, after: nn.Module) -> Edit:
        edit = Edit.between(before.state_dict(), after.state_dict())
        edit.save(self.folder / "edit.safetensors")
        save_model(self.folder / "models/edited.safetensors", after)
        return edit

    def _take_candidate(self, _: Callable[[float], None]) -> dict[str, Any]:
        before = self.model("models/original.safetensors")
        after = load_model(self.subject.network.make, Path(str(self.config.candidate)))
        theirs = dict(after.named_parameters())
        mask = Mask({name: mine.detach() != theirs[name].detach() for name, mine in before.named_parameters()})
        mask = mask if mask.count else Mask.everything(before)
        mask.save(self.folder / "mask.safetensors")
        edit = self._keep_edit(before, after)
        return {"changed": edit.count, "total": edit.total}

    def _forget(self, progress: Callable[[float], None]) -> dict[str, Any]:
        before, subject = self.model("models/original.safetensors"), self.subject
        mask = Mask.load(self.folder / "mask.safetensors") if self.config.measure != "none" else None
        forget = subject.forget_test.sample(MOST_WATCHED, self.config.seed)
        retain = subject.retain_test.sample(MOST_WATCHED, self.config.seed)
        rows: list[tuple[int, float, float, float]] = []

        def watch(step: int, model: nn.Module) -> None:
            gone, kept = accuracy(model, forget), accuracy(model, retain)
            overall = (gone * len(forget) + kept * len(retain)) / (len(forget) + len(retain))
            rows.append((step, overall, kept, gone))
            progress(1 - 0.99 ** len(rows))

        chosen = self.method
        after = chosen.run(before, self.seen, mask, self.config.seed, chosen.settings, watch)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("step", "overall", "retain", "forget"), *rows])
        write_text(self.folder / "history.csv", text.getvalue())
        edit = self._keep_edit(before, after)
        return {
            "changed": edit.count,
            "total": edit.total,
            "forget": accuracy(after, subject.forget_test),
            "retain": accuracy(after, subject.retain_test),
        }

    def note(self, found: AuditReport | None) -> RunReport:
        """Write `run.json`.

        Args:
            found: The audit, where there is one.

        Returns:
            What was written.
        """
        subject, config = self.subject, self.config.model_dump(mode="json")
        config |= {
            "method": None if self.config.candidate else self.method.name,
            "golds": len(self.golds),
            "recipe": vars(subject.network.recipe),
            "points": list(subject.network.points),
            "classes": list(subject.classes),
            "forget_labels": list(subject.forget),
            "incoming_label": subject.incoming,
            "n_train": len(subject.train),
            "n_test": len(subject.test),
        }
        kept = ("seconds", "peak_mb", "facts")
        stages = {name: {key: record[key] for key in kept} for name, record in self.stages.records.items()}
        facts: Mapping[str, Any] = next((stages[s]["facts"] for s in ("edit", "candidate") if s in stages), {})
        mine = found.audits["edited"] if found else None
        report = RunReport(
            name=subject.name,
            config=config,
            verdict=mine.verdict if mine else None,
            sentence=mine.sentence if mine else "",
            changed=facts.get("changed"),
            total=sum(p.numel() for p in self.model("models/original.safetensors").parameters()),
            versions=versions(),
            stages=stages,
        )
        write_text(self.folder / "run.json", json.dumps(report.model_dump(mode="json"), indent=1))
        return report
