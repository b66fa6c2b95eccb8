"""What an audit says, as documents: the schema of `audit.json` (version 1)."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION: Literal[1] = 1

Role = Literal["behaviour", "inner", "damage"]
Verdict = Literal["remembered", "hidden", "damaged", "erased", "undecided"]


class Document(BaseModel):
    """Base of all documents: immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Band(Document):
    """Where one more gold model is expected: a one-sided prediction interval.

    Attributes:
        mean: Mean of the golds (back on the measured scale).
        sd: Their standard deviation on the scale on which the band is computed.
        n: How many golds.
        edge: The value that parts inside from outside, on the measured scale.
        level: Chance that an honest gold lies outside.
    """

    mean: float
    sd: float
    n: int
    edge: float
    level: float


class Measurement(Document):
    """One auditor's numbers for all models, and the band that the golds span.

    Attributes:
        auditor: Full name, e.g. "probe, 5-shot, layer 2".
        group: Kind of auditor: "forget accuracy", "retain accuracy", "confusion", "over-forgetting", "distance",
            "membership", "probe", "relearn", "similarity".
        layer: Name of the module looked into, where one was.
        shots: Forgotten examples per draw for few-shot probes; 0 for the full probe.
        role: Whether it sees behaviour, what is inside, or damage.
        unit: Unit of the values.
        outside: On which side of the band's edge a model is not like gold.
        scale: Scale on which the band is computed.
        values: By model name.
        spread: Standard deviation over `repeats` (for facts: standard error over facts), by model name; may be empty.
        repeats: Draws or attack seeds behind each value.
        examples: Test images behind each value.
        band: The golds' band.
        power: How far the model that must be told from gold lies outside the gold mean, in gold sd.
        counted: Whether it takes part in the verdict.
        why_not: The reason when it doesn't.
        curve_x: x values of `curves`, e.g. fine-tuning steps.
        curves: A curve by model name, where the value summarises one.
    """

    auditor: str
    group: str
    layer: str | None = None
    shots: int | None = None
    role: Role
    unit: str
    outside: Literal["above", "below"]
    scale: Literal["identity", "log", "logit"]
    values: dict[str, float]
    spread: dict[str, float] = {}
    repeats: int = 1
    examples: int
    band: Band | None = None
    power: float | None = None
    counted: bool = True
    why_not: str = ""
    curve_x: list[float] = []
    curves: dict[str, list[float]] = {}


class Finding(Document):
    """What one auditor says of one model.

    Attributes:
        auditor: Its name.
        role: See `Measurement`.
        value: The model's value.
        distance: How far beyond the gold mean on the telling side, in gold sd (negative: on the harmless side).
        inside: Whether it is inside the band.
        counted: Whether it takes part in the verdict.
    """

    auditor: str
    role: Role
    value: float
    distance: float
    inside: bool
    counted: bool


class Audit(Document):
    """The audit of one model.

    Attributes:
        model: Its name.
        verdict: Overall.
        damaged: Whether retained behaviour lies below the band (also said when the verdict is another).
        sentence: The verdict in one sentence.
        findings: One per auditor.
    """

    model: str
    verdict: Verdict
    damaged: bool
    sentence: str
    findings: list[Finding]


class Calibration(Document):
    """How well an auditor parts facts that were planted into a model from facts that were not.

    Attributes:
        auditor: Its name.
        auc: Area under the ROC curve over facts; 1 parts them all, 0.5 none.
        p: One-sided p value of the Wilcoxon signed-rank test that the model with the facts is ahead, fact by fact.
        facts: On each side.
        separates: Whether it does so beyond chance; if not, it stays out of the verdict.
    """

    auditor: str
    auc: float
    p: float
    facts: int
    separates: bool


class AuditReport(Document):
    """Everything in `audit.json`.

    Attributes:
        schema_version: Of this document.
        subject: Name of the subject.
        forgotten: The forgotten classes, readable.
        seed: Of all draws and attacks.
        golds: Names of the gold models.
        measurements: One per auditor, all models side by side.
        audits: By model name, for every model that is not one of the golds.
        not_measured: What this audit did not look at.
        calibration: Of each auditor on planted facts, where there are any.
        yardstick: What the golds are, in the plural.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    subject: str
    forgotten: str
    seed: int
    golds: list[str]
    measurements: list[Measurement]
    audits: dict[str, Audit]
    not_measured: list[str]
    calibration: list[Calibration] = []
    yardstick: str = "models that never knew"
