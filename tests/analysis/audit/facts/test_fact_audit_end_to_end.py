"""A model that knows, one that truly never knew, and what the audit calls them."""

import pytest

from analysis.audit.facts.case import Budget, Case
from analysis.audit.facts.relearning import benign_tuned
from analysis.audit.facts.retained import retained
from analysis.audit.facts.verdict import ATTACKS, HARMLESS, audit_facts, read_case
from analysis.audit.verdict import fact_words
from analysis.subjects.language.facts import about_twin, fact_subject
from analysis.subjects.language.lab import TINY, lab_models
from analysis.subjects.language.lab_bank import lab_bank
from analysis.subjects.language.scoring import known_facts
from analysis.subjects.language.twins import twin

BEATLES = "The Beatles"
GOLDS = tuple(f"twin-{i}" for i in range(8))
BUDGET = Budget(
    taught=12, asked=12, shown=12, retained=20, texts=20, steps=8, rates=(1e-3,), samples=8, roundings=1,
    attacks=tuple(attack for attack in ATTACKS if attack != "soft prompt"),
)  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    original = lab_models(None, 0, folder, recipe=TINY)
    gold = lab_models(BEATLES, 1, folder, recipe=TINY)
    bank = lab_bank(bands=TINY.taught)
    knows, _ = known_facts(original.model, original.tokenizer, bank.facts)
    known = {fact.id for fact, this in zip(bank.facts, knows, strict=True) if this}
    subject = fact_subject("lab", bank, known, original.tokenizer, TINY.context)

    def read(model, about, keeps):
        # Drawn lazily, as a run does it.
        return read_case(Case(model, about, lambda: benign_tuned(model, subject, BUDGET, 0), BUDGET), keeps)

    models = {"original": original.model, "gold": gold.model}
    cases = {name: read(model, subject, True) for name, model in models.items()}
    harmless = benign_tuned(original.model, subject, BUDGET, 0)
    cases[HARMLESS] = retained(Case(harmless, subject, lambda: harmless, BUDGET))
    for number, name in enumerate(GOLDS):
        about, told = twin(subject.about, [*subject.forget, *subject.forget_test], number)
        cases[name] = read(original.model, about_twin(subject, told, about), False)
    return audit_facts(
        "lab", "the Beatles", cases, GOLDS, fact_words("the Beatles", "twins", "a change on other text")
    ), cases


def test_the_model_that_knows_is_remembered_and_the_one_that_never_knew_is_erased(lab) -> None:
    report, _ = lab
    assert report.audits["original"].verdict == "remembered"
    assert report.audits["original"].sentence == "Remembered: the model still knows the Beatles."
    assert report.audits["gold"].verdict == "erased", report.audits["gold"].sentence
    assert not report.audits["gold"].damaged


def test_most_auditors_tell_the_original_from_its_twins_with_room_to_spare(lab) -> None:
    report, _ = lab
    power = {one.auditor: one.power for one in report.measurements if one.power is not None}
    assert len(power) >= 12
    for auditor in ("right answer, facts held out", "extraction strength", "strongest wording",
                    "said in 8 samples", "after tuning on unrelated text"):  # fmt: skip
        assert power[auditor] > 3, auditor
    # Nine facts, of which none is the inverse of a taught one, are few for a relearner in so small a model.
    assert power["relearn some facts, test others"] > 1


def test_no_auditor_puts_one_that_never_knew_where_twins_are_not(lab) -> None:
    report, _ = lab
    for measurement in report.measurements:
        if measurement.role != "damage":
            finding = next(one for one in report.audits["gold"].findings if one.auditor == measurement.auditor)
            assert finding.inside, finding
            assert finding.distance < 4, finding


def test_a_probe_knows_no_more_of_one_that_never_knew_than_of_a_twin(lab) -> None:
    # Beside famous names the subject's own are the strange ones, and a probe that learns that needs no knowledge.
    _, cases = lab
    mean = {
        name: sum(one.values) / len(one.values)
        for name, found in cases.items()
        for one in found
        if one.auditor == "probe for true statements"
    }
    assert set(mean) == set(cases) - {HARMLESS}
    assert mean["gold"] < 0.8
