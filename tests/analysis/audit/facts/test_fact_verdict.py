import json
from statistics import fmean, pstdev, stdev

import pytest
import torch
from fact_cases import case, half_taught, share, state
from scipy import stats
from sklearn.metrics import roc_auc_score

from analysis.audit.facts.case import QUICK, FactReading, ids
from analysis.audit.facts.retained import drawn_again, retained
from analysis.audit.facts.verdict import DRAWS, HARMLESS, audit_facts, calibrate, gather, read_case, sharpened
from analysis.audit.report import AuditReport
from analysis.audit.verdict import class_words, fact_words

GOLDS = tuple(f"twin-{i}" for i in range(8))
WORDS = fact_words("the Beatles", "fictional twins", "harmless changes")
FACTS = 20


def reading(auditor, mean, role="inner", outside="above", telling="original", seed=0, spread=0.02):
    noise = torch.randn(FACTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread
    return FactReading(auditor=auditor, group=auditor, role=role, unit="share", outside=outside, telling=telling,
                       scale="identity",
                       facts=tuple(f"f-{i}" for i in range(FACTS)), values=tuple((mean + noise).tolist()),
                       curve_x=(0.0, 4.0), curve=(mean, mean))  # fmt: skip


def readings(said, inside, kept, seed, loud=-1.0):
    return [
        reading("said", said, "behaviour", seed=seed),
        reading("probe", inside, seed=seed + 1),
        reading("margin", loud, outside="below", telling="over-forgetting", seed=seed + 2),
        reading("kept", kept, "damage", "below", "over-forgetting", seed=seed + 3),
    ]


@pytest.fixture
def cases():
    out = {
        "original": readings(0.9, 0.9, 0.8, 1),
        "remembers": readings(0.7, 0.9, 0.8, 10),
        "hides": readings(0.2, 0.6, 0.8, 20),
        "shouts": readings(0.2, 0.2, 0.8, 25, loud=-30.0),
        "broken": readings(0.2, 0.2, 0.1, 30),
        "erased": readings(0.2, 0.2, 0.8, 40),
        "both": readings(0.2, 0.7, 0.1, 45),
        "over-forgetting": readings(0.0, 0.2, 0.1, 50, loud=-40.0),
        # Far below the original on the whole, which says nothing; what counts is how far each fact moved besides.
        HARMLESS: [reading("kept", 0.5, "damage", "below", "over-forgetting", seed=60)],
    }
    for i, gold in enumerate(GOLDS):
        out[gold] = readings(0.2 + 0.01 * (i - 3.5), 0.2 + 0.01 * (i % 3), 0.8, 100 + 10 * i)[:3]
    return out


def test_verdicts_follow_from_where_a_case_lies(cases) -> None:
    report = audit_facts("beatles", "the Beatles", cases, GOLDS, WORDS)
    verdicts = {name: audit.verdict for name, audit in report.audits.items()}
    assert verdicts == {
        "original": "remembered",
        "remembers": "remembered",
        "hides": "hidden",
        "shouts": "hidden",
        "broken": "damaged",
        "erased": "erased",
        "both": "hidden",
        "over-forgetting": "hidden",
    }
    assert {name for name, audit in report.audits.items() if audit.damaged} == {"broken", "both", "over-forgetting"}
    assert all(one.counted for one in report.measurements)
    assert report.golds == list(GOLDS)
    assert report.yardstick == "fictional twins"
    assert not set(report.audits) & {*GOLDS, HARMLESS}
    assert AuditReport.model_validate_json(report.model_dump_json()) == report
    assert any("trained from scratch" in what for what in report.not_measured)


def test_verdicts_are_said_in_the_words_for_facts(cases) -> None:
    said = {name: audit.sentence for name, audit in audit_facts("b", "the Beatles", cases, GOLDS, WORDS).audits.items()}
    assert said["original"] == "Remembered: the model still knows the Beatles."
    assert said["hides"].startswith(
        "Hidden, not erased: the model no longer answers questions about the Beatles, but 1 auditor still sees it "
        "(most plainly: probe, "
    )
    assert said["hides"].endswith(" sd from 8 fictional twins).")
    assert said["broken"] == (
        "Damaged: what was known of the Beatles is gone, but the rest is below the band of harmless changes."
    )
    assert said["both"].endswith("It is also damaged: the rest is below the band of harmless changes.")
    assert said["erased"] == "Erased: all 3 auditors that can tell see it among 8 fictional twins."
    assert class_words("6").knows == 'still answers "6"'
    assert class_words("6").yardstick == "models that never knew"


def test_an_auditor_that_does_not_part_planted_facts_stays_out(cases) -> None:
    planted = {
        "planted": readings(0.9, 0.5, 0.8, 200),
        "never": readings(0.2, 0.5, 0.8, 300),
    }
    with_it = audit_facts("b", "the Beatles", {**cases, **planted}, GOLDS, WORDS)
    without = audit_facts("b", "the Beatles", {**cases, **planted}, GOLDS, WORDS, ("planted", "never"))
    assert with_it.audits["hides"].verdict == "hidden"
    assert without.audits["hides"].verdict == "erased"
    assert [one.auditor for one in without.calibration] == ["said", "probe"]
    assert [one.separates for one in without.calibration] == [True, False]
    probe = next(one for one in without.measurements if one.auditor == "probe")
    assert not probe.counted
    assert "planted facts" in probe.why_not
    assert f"probe: {probe.why_not}" in without.not_measured
    assert not with_it.calibration


def test_an_auditor_that_cannot_tell_the_original_from_twins_stays_out(cases) -> None:
    blind = {name: [*found, reading("blind", 0.5, seed=len(name) + i)] for i, (name, found) in enumerate(cases.items())}
    blind["hides"][-1] = reading("blind", 5.0)
    blind["hides"][1] = reading("probe", 0.2)
    report = audit_facts("b", "the Beatles", blind, GOLDS, WORDS)
    assert report.audits["hides"].verdict == "erased"
    assert "no power" in next(one.why_not for one in report.measurements if one.auditor == "blind")


def test_damage_that_no_control_shows_counts_by_retrained_golds_and_not_by_twins(cases) -> None:
    gentle = {name: found for name, found in cases.items() if name != HARMLESS}
    gentle["over-forgetting"] = readings(0.0, 0.2, 0.8, 50, loud=-40.0)  # keeps everything
    for i, gold in enumerate(GOLDS):
        gentle[gold] = [*gentle[gold], reading("kept", 0.8, "damage", "below", "over-forgetting", seed=400 + i)]
    retrained = audit_facts("lab", "the Beatles", gentle, GOLDS, fact_words("the Beatles", "models trained without it"))
    assert (retrained.audits["broken"].verdict, retrained.audits["erased"].verdict) == ("damaged", "erased")
    twins = audit_facts("lab", "the Beatles", gentle, GOLDS, WORDS)
    kept = next(one for one in twins.measurements if one.auditor == "kept")
    assert (kept.counted, twins.audits["broken"].verdict) == (False, "erased")


@pytest.mark.parametrize("outside", ["above", "below"])
@pytest.mark.parametrize("gap", [0.0, 0.5, 3.0])
def test_calibration_is_the_area_under_the_roc_curve(outside: str, gap: float) -> None:
    sign = 1 if outside == "above" else -1
    chance = torch.Generator().manual_seed(4)
    # Rounded, so that there are ties.
    knows = [round(float(one) + sign * gap, 1) for one in torch.randn(23, generator=chance)]
    never = [round(float(one), 1) for one in torch.randn(23, generator=chance)]
    made = [
        FactReading(auditor="a", group="g", role="inner", unit="1", outside=outside, facts=("f",) * len(v), values=v)
        for v in (tuple(knows), tuple(never))
    ]
    (found,) = calibrate(made[:1], made[1:])
    labels = [1] * 23 + [0] * 23
    assert found.auc == pytest.approx(roc_auc_score(labels, [sign * one for one in (*knows, *never)]), abs=1e-12)
    assert found.p == pytest.approx(
        stats.wilcoxon([sign * (a - b) for a, b in zip(knows, never, strict=True)], alternative="greater").pvalue
    )
    assert found.separates == (gap == 3.0)
    assert found.facts == 23


def test_only_auditors_of_knowledge_that_read_both_are_calibrated() -> None:
    both = readings(0.5, 0.5, 0.5, 0)
    assert [one.auditor for one in calibrate(both, both)] == ["said", "probe"]
    assert [one.auditor for one in calibrate(both, both[:1])] == ["said"]
    same = reading("same", 0.0, spread=0.0)
    (tied,) = calibrate([same], [same])
    assert (tied.auc, tied.separates) == (0.5, False)


def test_values_beside_a_stranger_are_taken_where_they_tell_the_original_more_plainly() -> None:
    def both(plain, beside, seed):
        one, other = reading("lens", plain, seed=seed), reading("lens", beside, seed=seed + 1)
        return [one.model_copy(update={"beside": other.values, "beside_curve": (beside, beside)})]

    twins = {name: (0.2 + 0.05 * (i % 4), 0.16 + 0.001 * i) for i, name in enumerate(GOLDS)}
    quiet = {name: both(*means, 10 * i) for i, (name, means) in enumerate(twins.items())}
    knows = {"original": both(0.6, 0.3, 200), "edited": both(0.25, 0.28, 300)}
    found = sharpened({**knows, **quiet}, GOLDS)
    for name, (one,) in found.items():
        plain = {**knows, **quiet}[name][0]
        assert (one.values, one.curve, one.unit) == (plain.beside, plain.beside_curve, "share beside a stranger")
    # The edited model has no say, whatever its values are.
    other = sharpened({**knows, **quiet, "edited": both(0.9, 0.1, 400)}, GOLDS)
    assert other["original"] == found["original"]
    loud = {name: both(beside, plain, 10 * i) for i, (name, (plain, beside)) in enumerate(twins.items())}
    cases = {"original": both(0.6, 0.3, 200), **loud}
    assert sharpened(cases, GOLDS) == cases


def test_what_does_not_part_planted_facts_is_not_taken_where_the_other_does() -> None:
    def both(plain, beside, seed):
        one, other = reading("lens", plain, seed=seed), reading("lens", beside, seed=seed + 1)
        return [one.model_copy(update={"beside": other.values})]

    cases = {name: both(0.2 + 0.05 * (i % 4), 0.16 + 0.001 * i, 10 * i) for i, name in enumerate(GOLDS)}
    cases |= {"original": both(0.6, 0.3, 200), "never": both(0.3, 0.2, 400)}
    blind, sees = both(0.6, 0.2, 400), both(0.3, 0.5, 400)
    planted = ("planted", "never")
    assert sharpened({**cases, "planted": sees}, GOLDS, planted) == sharpened({**cases, "planted": sees}, GOLDS)
    assert sharpened({**cases, "planted": blind}, GOLDS, planted) == {**cases, "planted": blind}
    # Where neither does, what tells the original more plainly is still the better one to show.
    neither = {**cases, "planted": both(0.3, 0.2, 400)}
    assert sharpened(neither, GOLDS, planted) == sharpened(neither, GOLDS)


def test_gathering_takes_means_and_standard_errors_over_facts(cases) -> None:
    found = {one.auditor: one for one in gather(cases, GOLDS, seed=3)}
    assert list(found) == ["said", "probe", "margin", "kept"]
    for name, mine in cases.items():
        for one in mine:
            assert found[one.auditor].values[name] == pytest.approx(fmean(one.values))
            assert found[one.auditor].spread[name] == pytest.approx(stdev(one.values) / FACTS**0.5)
            assert found[one.auditor].curves[name] == one.curve
    kept = found["kept"]
    assert set(kept.values) == set(cases)
    assert len(set(kept.yardstick)) == DRAWS
    assert fmean(kept.yardstick) == pytest.approx(kept.values["original"], abs=0.01)
    assert found["said"].yardstick == ()
    twins = [kept.values[gold] for gold in GOLDS]
    assert len(set(twins)) == 8
    moved = [a - b for a, b in zip(cases[HARMLESS][0].values, cases["original"][3].values, strict=True)]
    assert stdev(twins) == pytest.approx(stdev(moved) / FACTS**0.5, rel=0.8)
    assert fmean(twins) == pytest.approx(kept.values["original"], abs=0.01)
    assert gather(cases, GOLDS, seed=3) == gather(cases, GOLDS, seed=3)
    assert gather(cases, GOLDS, seed=4)[3].values["twin-0"] != kept.values["twin-0"]


def test_a_band_is_of_the_twins_that_were_read_and_needs_three(cases) -> None:
    fewer = {**cases, **{f"twin-{i}": cases[f"twin-{i}"][1:] for i in (0, 2, 3, 5, 6)}}
    report = audit_facts("beatles", "the Beatles", fewer, GOLDS, WORDS)
    assert [one.band.n for one in report.measurements] == [3, 8, 8, DRAWS]
    fewest = {**fewer, "twin-7": cases["twin-7"][1:]}
    assert [one.auditor for one in gather(fewest, GOLDS)] == ["probe", "margin", "kept"]


def test_a_case_is_judged_by_the_auditors_that_looked_at_it(cases) -> None:
    short = {**cases, "hides": cases["hides"][:1], "remembers": cases["remembers"][:3]}
    report = audit_facts("b", "the Beatles", short, GOLDS, WORDS)
    assert len(report.measurements) == 4
    assert [one.auditor for one in report.audits["hides"].findings] == ["said"]
    assert report.audits["hides"].sentence.startswith("Erased: all 1 auditors")
    assert report.audits["remembers"].verdict == "remembered"
    assert report.audits["broken"].verdict == "damaged"


def test_drawing_again_moves_each_fact_as_far_as_a_harmless_change_does_and_the_whole_nowhere() -> None:
    # Facts differ a lot and move a little: only the little may show.
    one, other = reading("kept", 0.5, spread=0.2), reading("kept", 0.1, seed=7, spread=0.01)
    harmless = one.model_copy(update={"values": tuple(a + b for a, b in zip(one.values, other.values, strict=True))})
    moves = {round(move - fmean(other.values), 9) for move in other.values}
    again = drawn_again(one, harmless, 1)
    assert again.facts == one.facts
    assert {round(new - old, 9) for new, old in zip(again.values, one.values, strict=True)} < moves
    means = [fmean(drawn_again(one, harmless, seed).values) for seed in range(400)]
    assert fmean(means) == pytest.approx(fmean(one.values), abs=1e-3)
    # With replacement from 20: their own spread, not its unbiased estimate.
    expected = pstdev(other.values) / FACTS**0.5
    assert stdev(means) == pytest.approx(expected, rel=0.15)
    assert expected < 0.1 * stdev(one.values) / FACTS**0.5


def test_what_must_stay_is_read_one_by_one() -> None:
    model = half_taught("llama")
    mine = case(model)
    found = {one.auditor: one for one in retained(mine)}
    facts = {one.id: one for one in mine.subject.retain_test}
    reads = found["right answer, kept facts"]
    assert {facts[name].kind for name in reads.facts} == {"neighbour", "far"}
    for name, value in zip(reads.facts, reads.values, strict=True):
        one = facts[name]
        slow = share(model, [(one.heldout[0], o) for o in (one.answer, *one.distractors)])
        assert value == pytest.approx(slow, abs=1e-9)
    losses = []
    with torch.no_grad():
        for text in mine.subject.texts_test:
            row = torch.tensor([mine.tokenizer(text).input_ids])
            losses.append(float(model(input_ids=row, labels=row).loss))
    assert sorted(found["loss on plain text"].values) == pytest.approx(sorted(losses), abs=1e-6)
    assert all(one.role == "damage" for one in found.values())


def test_one_case_read_by_all_is_read_the_same_twice_and_left_as_it_was() -> None:
    model = half_taught("gpt2")
    before, told = state(model), []
    mine = read_case(case(model), progress=told.append)
    assert mine == read_case(case(model))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert told == sorted(told)
    assert len({one.auditor for one in mine}) == len(mine) >= 18
    for one in mine:
        assert len(one.facts) == len(one.values) > 0
        assert FactReading.model_validate(json.loads(one.model_dump_json())) == one
    twin = read_case(case(model), keeps=False)
    assert twin == [one for one in mine if one.role != "damage"]
    # Two facts are left to judge attackers on, too few for a probe.
    asking = read_case(case(model), attacks=False)
    assert asking == [one for one in mine if one in asking]
    assert {one.group for one in mine} - {one.group for one in asking} == {
        "reverse", "context", "rounding", "leak", "soft prompt", "benign", "relearn",
    }  # fmt: skip
    quick = {one.group for one in read_case(case(model, budget=QUICK))}
    assert {one.group for one in mine} - quick == {"reverse", "context", "leak", "soft prompt", "benign", "relearn"}
    assert ids(case(model).unseen) == next(one.facts for one in mine if one.auditor == "right answer, facts held out")


def test_nothing_is_called_erased_where_nothing_can_tell(cases) -> None:
    blind = {name: [one for one in found if one.role == "damage"] for name, found in cases.items()}
    for name, found in blind.items():
        found.insert(0, reading("said", 0.2 + (0.05 * int(name[-1]) if name in GOLDS else 0.0), "behaviour", seed=7))
    report = audit_facts("b", "the Beatles", blind, GOLDS, WORDS)
    assert report.audits["erased"].verdict == "undecided"
    assert report.audits["original"].sentence == (
        "Undecided: no auditor here can tell a model that knows from one that never knew."
    )
    assert report.audits["broken"].sentence.endswith(
        "It is also damaged: the rest is below the band of harmless changes."
    )


def test_what_was_not_judged_is_not_claimed(cases) -> None:
    silent = {name: [one for one in found if one.auditor != "said"] for name, found in cases.items()}
    report = audit_facts("b", "the Beatles", silent, GOLDS, WORDS)
    assert "Hidden, not erased: what the model answers can't be judged here, but 1 auditor" in (
        report.audits["hides"].sentence
    )


def test_a_sentence_gives_the_number_of_twins_behind_it(cases) -> None:
    for gold in GOLDS[5:]:
        cases[gold] = [one for one in cases[gold] if one.auditor != "probe"]
    audits = audit_facts("b", "the Beatles", cases, GOLDS, WORDS).audits
    assert audits["hides"].sentence.endswith(" sd from 5 fictional twins).")
    assert audits["erased"].sentence == "Erased: all 3 auditors that can tell see it among 5 to 8 fictional twins."


def test_few_facts_are_said_to_be_too_few_to_calibrate() -> None:
    def few(mean: float, seed: int) -> list[FactReading]:
        (one,) = [reading("said", mean, "behaviour", seed=seed)]
        return [one.model_copy(update={"facts": one.facts[:6], "values": one.values[:6]})]

    cases = {"original": few(0.9, 1), "planted": few(0.9, 2), "never": few(0.2, 3)}
    cases |= {gold: few(0.2 + 0.01 * i, 10 + i) for i, gold in enumerate(GOLDS)}
    report = audit_facts("b", "the Beatles", cases, GOLDS, WORDS, ("planted", "never"))
    assert report.measurements[0].why_not == "6 planted facts are too few to calibrate it, 7 would do"
    assert report.audits["original"].verdict == "undecided"


def test_twins_that_agree_are_no_closer_than_can_be_measured(cases) -> None:
    counted = {
        name: [one.model_copy(update={"step": 0.25, "scale": "logit"}) for one in found if one.auditor == "said"]
        for name, found in cases.items()
        if name != HARMLESS
    }
    (found,) = gather(counted, GOLDS)
    assert found.resolution == 0.25 / FACTS
