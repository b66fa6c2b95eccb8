"""The model card of an edited language model."""

from analysis.audit.report import AuditReport
from analysis.subjects.language.models import LanguageModel
from unlearn.edit import Edit


def model_card(language: LanguageModel, forgotten: str, how: str, edit: Edit, audit: AuditReport | None) -> str:
    """Write what was edited, how it audits, and what was not measured.

    Args:
        language: The base model.
        forgotten: What was to be forgotten, readable.
        how: Method, localisation and seed, readable.
        edit: What was changed.
        audit: What was found, when there is an audit.

    Returns:
        Markdown.
    """
    lines = [
        f"# {language.name}, edited to forget {forgotten}",
        "",
        f"- Base model: {language.source}",
        f"- Edited: {how}",
        f"- Changed: {edit.count:,} of {edit.total:,} weights ({edit.fraction:.2%})",
        f"- Base fingerprint: `{edit.base}`",
        f"- Edited fingerprint: `{edit.result}`",
        "",
        "## Audit",
        "",
    ]
    if audit is None:
        return "\n".join([*lines, "Not audited.", ""])
    mine = audit.audits["edited"]
    lines += [mine.sentence, "", "| auditor | original | edited | band | inside |", "|---|---|---|---|---|"]
    for measurement, finding in zip(audit.measurements, mine.findings, strict=True):
        if measurement.counted and measurement.band:
            sign = "<" if measurement.outside == "above" else ">"
            lines.append(
                f"| {measurement.auditor} | {measurement.values['original']:.3g} | {finding.value:.3g} | "
                f"{sign} {measurement.band.edge:.3g} | {'yes' if finding.inside else 'no'} |"
            )
    lines += ["", "## Not measured", "", *(f"- {line}" for line in audit.not_measured), ""]
    return "\n".join(lines)
