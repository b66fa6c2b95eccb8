"""The last stages of a run: the cheats, the audit, and what the figures need."""

from collections.abc import Callable
from typing import Any

from analysis.audit.bench import Bench
from analysis.audit.report import AuditReport
from analysis.audit.verdict import audit
from analysis.files import save_tensors, write_text
from analysis.representations.pictures import ALIGNED, collect_pictures
from analysis.scores import Mask
from unlearn.controls import controls
from unlearn.run import Run, save_model

OVERFORGETTING = "over-forgetting"
CHEATS = ("logit-mask", "head-only", "random-mask", OVERFORGETTING)


def cheat(run: Run) -> None:
    """Make the cheats that every audit must call out.

    Args:
        run: With original and mask in place.
    """
    needs = ["models/original.safetensors", "mask.safetensors"]

    def work(_: Callable[[float], None]) -> None:
        mask = Mask.load(run.folder / "mask.safetensors")
        found = controls(run.model(needs[0]), run.subject, mask, run.method, run.config.seed)
        for name in CHEATS:
            save_model(run.folder / f"controls/{name}.safetensors", found[name])

    made = [f"controls/{name}.safetensors" for name in CHEATS]
    run.stages.run("controls", {**run.task, **run.method.identity}, needs, made, work)


def checkpoints(run: Run) -> dict[str, str]:
    """List what goes on the bench.

    Args:
        run: The run.

    Returns:
        Paths relative to the run folder, by model name, golds last.
    """
    fixed = ("original", "edited", "untrained")
    return {
        **{name: f"models/{name}.safetensors" for name in fixed},
        **{name: f"controls/{name}.safetensors" for name in CHEATS},
        **{name: f"models/{name}.safetensors" for name in run.golds},
    }


def judge(run: Run) -> AuditReport:
    """Audit everything against the golds, and collect what the figures need.

    Args:
        run: With all checkpoints in place.

    Returns:
        The audit.
    """
    files = checkpoints(run)
    settings = {**run.task, "points": run.subject.network.points}

    def work(progress: Callable[[float], None]) -> dict[str, Any]:
        models = {name: run.model(path) for name, path in files.items()}
        bench = Bench(run.subject, models, run.golds, overforgetting=OVERFORGETTING, seed=run.config.seed)
        report = audit(bench, lambda _, share: progress(share))
        write_text(run.folder / "audit.json", report.model_dump_json(indent=1))
        return {"verdict": report.audits["edited"].verdict}

    def collect(_: Callable[[float], None]) -> None:
        three = [run.model(files[name]) for name in ("original", "edited", run.golds[0])]
        tensors, header = collect_pictures(run.subject, three[0], three[1], three[2], run.config.seed)
        save_tensors(run.folder / "pictures.safetensors", tensors, header)

    run.stages.run("audit", settings, list(files.values()), ["audit.json"], work)
    needs = [files["original"], files["edited"], files[run.golds[0]]]
    run.stages.run("pictures", {**settings, "aligned": ALIGNED}, needs, ["pictures.safetensors"], collect)
    return AuditReport.model_validate_json((run.folder / "audit.json").read_text(encoding="utf-8"))
