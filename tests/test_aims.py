"""`python -m tests.benchmarks.aims` on a small run from end to end; its numbers computed again, slower and plainer."""

import copy
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fact_runs import make_fact_run
from test_command_line import call
from test_facts_command_line import write_bank
from transformers import AutoModelForCausalLM, AutoTokenizer

from analysis.audit.facts.prompting import NEW_TOKENS, sampled, says
from analysis.audit.report import AuditReport
from analysis.subjects.language.bank import Fact
from analysis.subjects.language.lab import TINY, lab_models
from analysis.subjects.language.twins import twin
from tests.benchmarks.aims import main, opened
from tests.benchmarks.aims_rows import FP8, SAMPLES, WAYS, Asked, float8, given_away, relearned
from tests.benchmarks.aims_table import Row, table
from unlearn.documents import RunConfig, RunReport

TWINS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick run on a small model that knows its bank."""
    folder = tmp_path_factory.mktemp("aims")
    model, bank = lab_models(None, 0, folder / "lab", recipe=TINY).folder, write_bank(folder / "bank.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YESTERDAY_CACHE", str(folder / "cache"))
        asked = ["run", "--bank", bank, "--model", model, "--quick", "--twins", TWINS, "--threads", 1, "--quiet"]
        method = ["--method", "gradient-difference:lr=0.001", "--no-figures"]
        assert call(*asked, *method, "--out", folder / "small") == 0
        yield folder / "small"


@pytest.fixture(scope="module")
def written(run: Path) -> dict[str, Any]:
    """What the command writes, rows by their quantity."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main([str(run), "--results", str(run.parent / "results")]) == 0
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    document = json.loads((run.parent / "results" / "small.json").read_text())
    return {row["what"]: row for row in document["rows"]}


@pytest.fixture(scope="module")
def asked(run: Path) -> Asked:
    return opened(run, 0)[0]


@pytest.fixture(scope="module")
def models(run: Path) -> tuple[Any, Any, Any]:
    """The original, the edited model and the tokenizer, as anybody would load them."""
    original = json.loads((run / "run.json").read_text())["config"]["model"]
    loaded = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (original, run / "model")]
    return loaded[0], loaded[1], AutoTokenizer.from_pretrained(run / "model")


def only(rows: dict[str, Any], *words: str) -> dict[str, Any]:
    (found,) = (row for what, row in rows.items() if all(word in what for word in words))
    return found


@torch.no_grad()
def likely(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """The product of softmax probabilities of an answer's tokens, each after all before it, one forward pass each."""
    ids, start = tokenizer(f"{prompt} {answer}").input_ids, len(tokenizer(prompt).input_ids)
    assert ids[:start] == tokenizer(prompt).input_ids
    out = 1.0
    for place in range(start, len(ids)):
        out *= float(model(input_ids=torch.tensor([ids[:place]])).logits[0, -1].double().softmax(0)[ids[place]])
    return out


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


@pytest.mark.parametrize(
    ("words", "which"), [("first held-out prompt", slice(0, 1)), ("other held-out wordings", slice(1, None))]
)
def test_probabilities_are_those_of_plain_forward_passes(
    written: dict[str, Any], asked: Asked, models: tuple[Any, Any, Any], words: str, which: slice
) -> None:
    facts = asked.subject.forget_test
    assert all((fact.kind, fact.split) == ("fact", "audit") for fact in facts)
    every = [*asked.subject.forget, *facts]
    told = [twin(asked.subject.about, every, number)[1][-len(facts) :] for number in range(TWINS)]
    same = [i for i, fact in enumerate(facts) if all(one[i].answer == fact.answer for one in told)]

    def each(model: Any, facts: Sequence[Fact]) -> list[float]:
        return [mean([likely(model, models[2], p, fact.answer) for p in fact.heldout[which]]) for fact in facts]

    before, after, *twins = each(models[0], facts), each(models[1], facts), *(each(models[0], one) for one in told)
    what = f"whole-answer probability, held-out facts, {words}"
    shared = only(written, f"{what}: only answers that twins share")
    for row, places in ((written[what], range(len(facts))), (shared, same)):
        assert row["n"] == f"{len(places)} facts"
        means = [mean([one[i] for i in places]) for one in (before, after, *twins)]
        assert [row["original"], row["edited"], *row["twins"]] == pytest.approx(means, rel=1e-4)
        assert row["value"] == pytest.approx(means[1] / means[0], rel=1e-4)
        assert row["twins_value"] == pytest.approx(mean(means[2:]) / means[0], rel=1e-4)
        assert row["span"][0] <= row["value"] <= row["span"][1]


def test_kept_facts_are_those_whose_answer_stays_above_every_other(
    written: dict[str, Any], asked: Asked, models: tuple[Any, Any, Any]
) -> None:
    def first(model: Any, fact: Fact) -> bool:
        options = [fact.answer, *fact.distractors[: asked.budget.distractors]]
        found = [likely(model, models[2], fact.heldout[0], option) for option in options]
        return found[0] >= max(found)

    for kind in ("neighbour", "far"):
        known = [f for f in asked.subject.retain_test if f.kind == kind and first(models[0], f)]
        row = only(written, "kept: ranked first", kind)
        assert row["n"] == f"{len(known)} facts"
        if known:
            assert row["value"] == pytest.approx(mean([first(models[1], fact) for fact in known]))
            assert row["span"][0] <= row["value"] <= row["span"][1] <= 1
    assert any(f.kind == "neighbour" for f in asked.subject.retain_test)


def test_perplexity_weighs_all_tokens_alike(
    written: dict[str, Any], asked: Asked, models: tuple[Any, Any, Any]
) -> None:
    def per_token(model: Any) -> float:
        total, count = 0.0, 0
        for text in asked.subject.texts_test:
            ids = models[2](text, return_tensors="pt").input_ids
            with torch.no_grad():
                total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
        return math.exp(total / count)

    row = only(written, "perplexity")
    before, after = map(per_token, models[:2])
    assert (row["original"], row["edited"]) == pytest.approx((before, after), rel=1e-4)
    assert row["value"] == pytest.approx(after / before, rel=1e-4)


def test_leaking_is_saying_the_answer_in_one_of_eight_samples(
    written: dict[str, Any], asked: Asked, models: tuple[Any, Any, Any]
) -> None:
    facts, tokenizer = asked.subject.forget[:5], models[2]
    ids = [tokenizer(fact.heldout[0]).input_ids for fact in facts]
    trial = 2
    drawn = sampled(models[0], ids, SAMPLES, NEW_TOKENS, trial * 100_000)
    expected = [any(says(tokenizer.decode(one), fact) for one in mine) for fact, mine in zip(facts, drawn, strict=True)]
    assert given_away(asked, asked.original, facts, trial) == expected
    row = only(written, "leak@8")
    prompts, unseen = (int(row["n"].split(word)[0].split()[-1]) for word in ("prompts", "of them"))
    assert 0 < unseen <= prompts <= 25
    # The small model says what it knows; twins it does not know.
    assert row["original"] > 0.8
    assert row["original"] > mean(row["twins"])
    assert row["span"][0] <= row["edited"] == row["value"] <= row["span"][1]


def test_rounding_to_8_bit_floats_is_as_near_as_their_three_digits_allow() -> None:
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 2, 40)[:, None]
    weight[7] = 0
    found = float8(weight)
    scale = weight.abs().amax(1, keepdim=True) / 448
    # Half a step of normal numbers is 2^-4 of their size, of the smallest ones 2^-10 of the scale.
    assert bool(((found - weight).abs() <= torch.maximum(weight.abs() * 2**-4, scale * 2**-10) * (1 + 1e-5)).all())
    assert not torch.equal(found, weight)
    torch.testing.assert_close(float8(found), found, rtol=1e-5, atol=0)
    for row, step in zip(found[:7], scale[:7], strict=True):
        codes = (row / step).to(FP8).float()
        torch.testing.assert_close(codes, row / step, rtol=1e-5, atol=1e-12)


def test_rounding_is_held_against_the_same_model_unrounded(
    written: dict[str, Any], asked: Asked, models: tuple[Any, Any, Any]
) -> None:
    facts = asked.subject.forget_test

    def average(model: Any) -> float:
        return mean([likely(model, models[2], fact.heldout[0], fact.answer) for fact in facts])

    before = [average(model) for model in models[:2]]
    for name, way in WAYS.items():
        after = []
        for model in models[:2]:
            coarse = copy.deepcopy(model)
            for place, weight in coarse.named_parameters():
                if ".h." in place and weight.dim() == 2:
                    weight.data = way(weight.data.T).T.contiguous()
            after.append(average(coarse))
        row = only(written, f"rounded to {name}:", "whole-answer")
        assert row["original"] == pytest.approx(after[0] / before[0], rel=1e-3)
        assert row["value"] == row["edited"] == pytest.approx(after[1] / before[1], rel=1e-3)
        assert row["span"][0] <= row["value"] <= row["span"][1]
        assert len(row["twins"]) == TWINS


def test_costs_are_the_runs(written: dict[str, Any], run: Path, models: tuple[Any, Any, Any]) -> None:
    report = json.loads((run / "run.json").read_text())
    pairs = list(zip(models[0].parameters(), models[1].parameters(), strict=True))
    changed = sum(int((one != other).sum()) for one, other in pairs)
    assert changed > 0
    row = only(written, "weights changed")
    assert row["value"] == changed / sum(one.numel() for one, _ in pairs)
    assert row["reached"] == "must"  # one weight in a hundred, rounded up
    spent = [report["stages"][stage]["seconds"] for stage in ("locate", "edit")]
    assert only(written, "time to locate and edit")["value"] == pytest.approx(sum(spent))


def test_answers_that_forgotten_facts_share_are_told_apart(
    written: dict[str, Any], asked: Asked, models: tuple[Any, Any, Any]
) -> None:
    gone = {fact.answer.lower() for fact in asked.bank.facts if fact.kind == "fact"}
    gone |= {alias.lower() for fact in asked.bank.facts if fact.kind == "fact" for alias in fact.aliases}
    others = [f for f in asked.subject.retain_test if not {f.answer.lower(), *map(str.lower, f.aliases)} & gone]

    def share(model: Any, fact: Fact) -> float:
        found = [likely(model, models[2], fact.heldout[0], one) for one in [fact.answer, *fact.distractors[:5]]]
        return found[0] / math.fsum(found)

    assert asked.budget.distractors == 5
    row = only(written, "no such answer")
    before, after = (mean([share(model, fact) for fact in others]) for model in models[:2])
    assert (row["original"], row["edited"]) == pytest.approx((before, after), rel=1e-4)
    assert row["value"] == pytest.approx(after - before, abs=1e-5)
    row = only(written, "also that of a fact to forget")
    n = int(row["n"].split()[0])
    assert n > 0
    assert n >= len(asked.subject.retain_test) - len(others)


def test_relearning_is_read_from_the_audit(written: dict[str, Any], tmp_path: Path) -> None:
    assert only(written, "relearn")["reached"] == "not measured"
    folder = make_fact_run(tmp_path / "run")
    document = json.loads((folder / "audit.json").read_text())
    row = relearned(AuditReport.model_validate(document))
    curves = next(one["curves"] for one in document["measurements"] if one["group"] == "relearn")
    gains = {name: max(curve[1:]) - curve[0] for name, curve in curves.items()}
    twins = [gain for name, gain in gains.items() if name.startswith("twin-")]
    assert len(twins) == 5  # the last was only asked
    assert row.value == pytest.approx(gains["edited"])
    assert row.original == pytest.approx(gains["original"])
    assert row.beyond == pytest.approx(mean(twins))
    assert row.must == pytest.approx(mean(twins) + 0.1)


@pytest.mark.parametrize(
    ("most", "value", "reached"),
    [(True, 0.11, "no"), (True, 0.1, "must"), (True, 0.02, "beyond"), (True, None, "not measured"),
     (False, 0.09, "beyond"), (False, 0.02, "must"), (False, 0.01, "no")],
)  # fmt: skip
def test_an_aim_is_the_most_or_the_least(most: bool, value: float | None, reached: str) -> None:
    must, beyond = (0.1, 0.02) if most else (0.02, 0.09)
    row = Row("this", "3 facts", value, must, beyond, most=most, note="why")
    assert row.reached == reached
    assert (f"| {reached} (why) |" if value is None else f"| {reached}: {100 * value:.3g}% |") in table([row])
    assert ("<= 10%, beyond <= 2%" if most else ">= 2%, beyond >= 9%") in table([row])
    if value is not None:
        told = table([Row("this", "3 facts", must, must, beyond, most=most, twins=(value,), twins_value=value)])
        assert ("the twins don't reach it" in told) == (reached == "no")
    assert Row("this", "3 facts", value).reached == ("not measured" if value is None else "no aim")


def test_the_table_has_a_line_for_every_row(
    run: Path, written: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Row(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if not k.startswith("reached")})
             for row in written.values()]  # fmt: skip
    lines = [line for line in table(found).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(written)
    assert {line.count("|") for line in lines} == {8}
    assert all(str(row["n"]) in line for row, line in zip(written.values(), lines[2:], strict=True))


def test_the_same_seed_gives_the_same_numbers(run: Path, written: dict[str, Any], tmp_path: Path) -> None:
    assert main([str(run), "--results", str(tmp_path), "--seed", "0"]) == 0
    again = json.loads((tmp_path / "small.json").read_text())
    assert again["rows"] == list(written.values())
    assert {"seed", "machine", "config", "run"} <= again.keys()


def test_what_is_no_finished_run_on_facts_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*folders: Path) -> str:
        assert main([*map(str, folders), "--results", str(tmp_path / "results")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("Error: ")
        assert error.count("\n") == 1
        assert not (tmp_path / "results").exists()
        return error

    assert "no run in" in refused(tmp_path / "nowhere")
    classes = RunReport(name="digit-6", config=RunConfig().model_dump(mode="json"), verdict=None, sentence="",
                        changed=None, total=1, versions={}, stages={})  # fmt: skip
    (tmp_path / "digit-6").mkdir()
    (tmp_path / "digit-6" / "run.json").write_text(classes.model_dump_json())
    assert "not on a language model" in refused(tmp_path / "digit-6")
    for missing in ("audit.json", "model", "readings"):
        shutil.copytree(run, tmp_path / missing / "small")
        gone = tmp_path / missing / "small" / missing
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        assert "run the same command again to finish it" in refused(tmp_path / missing / "small")
    assert "the same name" in refused(run, tmp_path / "audit.json" / "small")
    other = shutil.copytree(run, tmp_path / "other" / "small")
    readings = (other / "readings" / "edited.json").read_text()
    name = json.loads(readings)[1]["facts"][0]
    (other / "readings" / "edited.json").write_text(readings.replace(f'"{name}"', '"elsewhere"'))
    assert "make the run again" in refused(other)
    (other / "audit.json").write_text("{}")
    assert "damaged" in refused(other)
