"""The command line for facts from end to end, on a small GPT-2 trained here on sentences about a dozen bands."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from small_models import small_gpt2, small_tokenizer
from test_command_line import call

from analysis.subjects.language import lab_bank as lab_bank_module
from analysis.subjects.language.lab import TINY, lab_models
from analysis.subjects.language.lab_bank import lab_bank
from unlearn import engines
from unlearn.language import prepare


def write_bank(path: Path) -> Path:
    bank = lab_bank("The Beatles", bands=TINY.taught)
    lines = [bank.subject, *bank.facts, *bank.texts]
    path.write_text("\n".join(line.model_dump_json() for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with a model that knows, and a bank."""
    folder = tmp_path_factory.mktemp("lab")
    return lab_models(None, 0, folder, recipe=TINY).folder, write_bank(folder / "bank.jsonl")


@pytest.fixture(scope="module")
def finished(lab: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, bank = lab
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YESTERDAY_CACHE", str(runs / "cache"))
        asked = ["run", "--bank", bank, "--model", model, "--quick", "--twins", 8, "--threads", 1]
        assert call(*asked, "--method", "gradient-difference", "--out", runs / "lab", "--quiet") == 0
    return runs / "lab"


def test_a_run_leaves_everything_it_promises(finished: Path) -> None:
    promised = ["run.json", "audit.json", "history.csv", "mask.safetensors", "edit.safetensors", "continuations.json"]
    promised += ["pictures.json", "pictures.safetensors", "readings/edited.json", "model/model.safetensors"]
    promised += ["model/README.md", "model/tokenizer.json", "model/config.json"]
    assert [name for name in promised if not (finished / name).is_file()] == []
    report = json.loads((finished / "run.json").read_text())
    assert report["verdict"] in {"remembered", "hidden", "damaged", "erased"}
    assert report["config"]["family"] == "facts"
    audit = json.loads((finished / "audit.json").read_text())
    assert audit["audits"]["original"]["verdict"] == "remembered"
    assert audit["golds"] == [f"twin-{i:02d}" for i in range(8)]
    card = (finished / "model" / "README.md").read_text()
    assert report["sentence"] in card
    assert "Not measured" in card


def test_the_edited_folder_is_a_plain_model_and_the_edit_turns_one_into_the_other(
    finished: Path, lab: tuple[Path, Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    def weights(folder: Path) -> dict[str, torch.Tensor]:
        return AutoModelForCausalLM.from_pretrained(folder).state_dict()

    def equal(one: Path, other: Path) -> bool:
        mine, theirs = weights(one), weights(other)
        return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)

    edit = finished / "edit.safetensors"
    assert not equal(finished / "model", lab[0])
    assert call("apply", edit, "--to", lab[0], "--out", tmp_path / "edited") == 0
    assert equal(tmp_path / "edited", finished / "model")
    assert call("revert", edit, "--to", tmp_path / "edited", "--out", tmp_path / "back") == 0
    assert equal(tmp_path / "back", lab[0])


def test_an_edit_is_refused_by_another_model(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "other"
    small_gpt2().save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    assert call("apply", finished / "edit.safetensors", "--to", folder, "--out", tmp_path / "out") == 2
    assert "another base model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_edit_can_be_shown_fewer_facts(
    finished: Path, lab: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YESTERDAY_CACHE", str(finished.parent / "cache"))
    asked = ["forget", "--bank", lab[1], "--model", lab[0], "--quick", "--twins", 8, "--threads", 1, "--quiet"]
    asked += ["--method", "gradient-difference"]
    less = ["--seen-forget", "0.2", "--seen-retain", "0.5"]
    for name, more in (
        ("all", []),
        ("few", less),
        ("free", ["--locate", "none"]),
        ("both", ["--locate", "none", *less]),
    ):
        assert call(*asked, *more, "--out", tmp_path / name) == 0
    # The method itself sees less, and not the locator alone.
    free, both = ((tmp_path / name / "edit.safetensors").read_bytes() for name in ("free", "both"))
    assert free != both
    masks, edits = (
        [(folder / f"{what}.safetensors").read_bytes() for folder in (finished, tmp_path / "all", tmp_path / "few")]
        for what in ("mask", "edit")
    )
    for whole, again, few in (masks, edits):
        assert whole == again
        assert whole != few


def test_people_can_talk_to_both_models(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("chat", finished, "--prompt", "The Beatles") == 0
    said = capsys.readouterr().out
    assert "original" in said
    assert "edited" in said


def test_a_finished_run_is_shown_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", finished, "--json") == 0
    assert json.loads(capsys.readouterr().out)["audit"]["model"] == "edited"


def test_someone_elses_edit_can_be_audited(
    finished: Path, lab: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YESTERDAY_CACHE", str(finished.parent / "cache"))
    asked = ["audit", "--bank", lab[1], "--quick", "--twins", 8, "--threads", 1, "--out", tmp_path / "run", "--quiet"]
    assert call(*asked, "--original", lab[0], "--candidate", finished / "model") == 0
    mine, theirs = (json.loads((folder / "audit.json").read_text()) for folder in (finished, tmp_path / "run"))
    assert theirs["audits"]["edited"]["verdict"] == mine["audits"]["edited"]["verdict"]


def test_a_bank_can_be_checked(lab: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("bank", "check", lab[1], "--model", lab[0], "--json") == 0
    facts = json.loads(capsys.readouterr().out)["facts"]
    mine = [fact for fact in facts if fact["kind"] == "fact"]
    assert sum(fact["known"] for fact in mine) > 0.8 * len(mine)


@pytest.mark.parametrize(("more", "threads"), [([], 2), (["--threads", 1], 1), (["--threads", 3], 3)])
@pytest.mark.parametrize("command", ["chat", "bank check"])
def test_people_choose_how_many_threads_work(
    finished: Path, lab: tuple[Path, Path], command: str, more: list[object], threads: int
) -> None:
    whole = {"chat": ["chat", finished, "--prompt", "The"], "bank check": ["bank", "check", lab[1], "--model", lab[0]]}
    before = torch.get_num_threads()
    try:
        assert call(*whole[command], *more) == 0
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("command", [["chat", "RUN"], ["bank", "check", "beatles"]])
def test_no_threads_are_too_few(finished: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert call(*[finished if word == "RUN" else word for word in command], "--threads", 0) == 2
    assert capsys.readouterr().err == "Error: --threads must be at least 1, not 0.\n"


def asked(tmp_path: Path, *more: object) -> list[object]:
    return ["run", "--quick", "--out", tmp_path / "run", *more]


def test_a_bad_line_is_named_by_its_number(
    lab: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = lab[1].read_text().splitlines()
    lines[3] = lines[3].replace('"relation"', '"relatoin"')
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    assert call(*asked(tmp_path, "--bank", tmp_path / "bad.jsonl", "--model", lab[0])) == 2
    error = capsys.readouterr().err
    assert "line 4" in error
    assert "relat" in error
    assert not (tmp_path / "run").exists()


def test_a_model_that_knows_nothing_is_told_so(
    lab: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YESTERDAY_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "ignorant"
    small_gpt2(seed=3).save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    few = [line for line in lab[1].read_text().splitlines() if json.loads(line)["kind"] != "fact"]
    facts = [line for line in lab[1].read_text().splitlines() if json.loads(line)["kind"] == "fact"]
    (tmp_path / "few.jsonl").write_text("\n".join([*few, *facts[:6]]))
    assert call(*asked(tmp_path, "--bank", tmp_path / "few.jsonl", "--model", folder, "--threads", 1)) == 2
    assert "knows only" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "magic"], "no method 'magic'"),
        (["--locate", "stars"], "no measure 'stars'"),
        (["--twins", 2], "at least 3 twins"),
        (["--fraction", 2], "fraction"),
        (["--forget", "6"], "no meaning for facts"),
        (["--within", "attic"], "--within"),
    ],
)
def test_options_that_make_no_sense(
    lab: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[object], words: str
) -> None:
    assert call(*asked(tmp_path, "--bank", lab[1], "--model", lab[0], *options)) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seeds", 0], "at least one seed"),
        (["--locate", "attic"], "no measure 'attic'"),
        (["--locate", "none,random"], "give one with --locate too"),
        (["--locate", "none", "--methods", "npo,neuron-ablation"], "'neuron-ablation' needs located weights"),
        (["--all-digits"], "--all-digits has no meaning for facts"),
        (["--fresh", 2], "--fresh has no meaning for facts"),
        (["--methods", "magic"], "no method 'magic'"),
        (["--twins", 0], "at least 3 twins"),
    ],
)
def test_comparisons_that_make_no_sense(
    lab: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[object], words: str
) -> None:
    asked = ["compare", "--quick", "--bank", lab[1], "--model", lab[0], "--out", tmp_path / "run", *options]
    assert call(*asked) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1


def test_a_block_smaller_than_the_mask_is_no_control(
    finished: Path, lab: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("YESTERDAY_CACHE", str(finished.parent / "cache"))
    asked = ["compare", "--bank", lab[1], "--model", lab[0], "--quick", "--twins", 8, "--threads", 1, "--seeds", 1]
    more = ["--methods", "simnpo", "--locate", "gradient,layers", "--out", tmp_path / "table", "--json"]
    more += ["--fractions", 0.4, "--within", "blocks"]
    assert call(*asked, *more) == 0
    table = json.loads(capsys.readouterr().out)
    (row,) = (row for row in table["rows"] if row["where"] == "40% in block 0")
    assert "fewer candidates than the mask" in row["failed"][0]
    assert row["verdicts"] == []


def test_what_does_not_fit_the_context_is_not_said(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("chat", finished, "--prompt", "The Beatles sang and sang " * 40) == 2
    error = capsys.readouterr().err
    assert "the model reads at most 64" in error
    assert len(error.strip().splitlines()) == 1


def test_gold_checkpoints_mean_nothing_for_facts(
    lab: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["audit", "--bank", lab[1], "--original", lab[0], "--candidate", lab[0], "--out", tmp_path / "run"]
    assert call(*asked, "--gold", lab[1]) == 2
    assert "--gold has no meaning for an audit of facts" in capsys.readouterr().err


def test_a_folder_without_weights(lab: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "config.json").write_text((lab[0] / "config.json").read_text())
    assert call(*asked(tmp_path, "--bank", lab[1], "--model", folder)) == 2
    assert str(folder) in capsys.readouterr().err


def test_seeds_that_run_at_once_share_what_is_known(
    finished: Path, lab: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YESTERDAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(engines, "workers", lambda jobs, threads: min(jobs, 2))
    asked = ["compare", "--bank", lab[1], "--model", lab[0], "--quick", "--twins", 8, "--threads", 1, "--seeds", 2]
    assert call(*asked, "--methods", "none", "--locate", "none", "--out", tmp_path / "table", "--quiet") == 0
    table = json.loads((tmp_path / "table" / "comparison.json").read_text())
    assert {row["name"]: len(row["verdicts"]) for row in table["rows"]}["original"] == 2


def test_settings_are_chosen_by_relearning_and_all_roundings_too(
    finished: Path, lab: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YESTERDAY_CACHE", str(finished.parent / "cache"))
    asked = ["compare", "--bank", lab[1], "--model", lab[0], "--quick", "--choosing", "--twins", 3, "--threads", 1]
    more = ["--seeds", 1, "--methods", "gradient-difference", "--locate", "none", "--out", tmp_path / "table"]
    assert call(*asked, *more, "--quiet") == 0

    def attacks(audit: Path) -> set[str]:
        auditors = {one["auditor"] for one in json.loads(audit.read_text())["measurements"]}
        return {name for name in auditors if name.startswith(("weights rounded", "relearn"))}

    four, eight, rows = (f"weights rounded to {way}" for way in ("4 bits, groups of 32", "8 bits", "4 bits, rows"))
    assert attacks(finished / "audit.json") == {four}
    chosen_by = attacks(tmp_path / "table" / "seed-0" / "comparison-audit.json")
    assert chosen_by == {four, eight, rows, "relearn some facts, test others"}


def test_methods_are_compared_with_controls(
    finished: Path, lab: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("YESTERDAY_CACHE", str(finished.parent / "cache"))
    asked = ["compare", "--bank", lab[1], "--model", lab[0], "--quick", "--twins", 8, "--threads", 1, "--seeds", 1]
    more = ["--methods", "simnpo,neuron-ablation", "--out", tmp_path / "table", "--json", "--fractions", "0.05,0.02"]
    assert call(*asked, *more, "--locate", "none,stranger,gradient,random,layers") == 0
    table = json.loads(capsys.readouterr().out)
    rows = {(row["name"], row["where"]): row for row in table["rows"]}
    assert [place for place, row in rows.items() if row["failed"]] == []
    assert ("neuron-ablation", "all") not in rows
    assert rows["simnpo", "2% stranger"]["changed"] == pytest.approx(0.02, rel=0.05)
    assert rows["simnpo", "5% at random"]["control"]
    assert rows["original", ""]["verdicts"] == ["remembered"]
    assert {name for name, _ in rows} >= {
        "twins (mean)",
        "output-filter",
        "over-forgetting",
        "simnpo",
        "neuron-ablation",
    }
    assert rows["neuron-ablation", "5% stranger"]["changed"] == pytest.approx(0.05, rel=0.02)
    assert {("simnpo", "5% at random"), ("simnpo", "5% in block 0")} <= rows.keys()
    gains = {where: row["gain"] for (name, where), row in rows.items() if name == "simnpo"}
    assert gains["5% at random"] == 0
    assert gains["all"] is gains["5% in block 0"] is None
    assert isinstance(gains["5% stranger"], float)
    assert gains["5% stranger"] != gains["5% gradient"]
    assert "| simnpo | all |" in (tmp_path / "table" / "comparison.md").read_text()
    assert (tmp_path / "table" / "figures" / "pareto.png").is_file()


def test_in_the_lab_methods_are_judged_by_models_that_never_knew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YESTERDAY_CACHE", str(tmp_path / "cache"))
    # The real thing but for its size.
    monkeypatch.setattr(prepare, "lab_models", partial(lab_models, recipe=TINY))
    monkeypatch.setattr(lab_bank_module, "lab_bank", partial(lab_bank, bands=TINY.taught))
    asked = ["compare", "lab", "--quick", "--threads", 1, "--seeds", 1, "--methods", "gradient-difference"]
    assert call(*asked, "--locate", "none", "--out", tmp_path / "table", "--json") == 0
    table = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in table["rows"]}
    assert (table["golds"], rows["original"]["verdicts"]) == (5, ["remembered"])
    assert rows["fresh-gold"]["verdicts"] == ["erased"]
    assert "gold (mean)" in rows
    assert "twins (mean)" not in rows
    assert len(list((tmp_path / "cache" / "lab").glob("lab-*/model.safetensors"))) == 7
    report = json.loads((tmp_path / "table" / "seed-0" / "comparison-audit.json").read_text())
    assert report["yardstick"] == "models trained without it"
    assert call("run", "lab") == 2
    assert "yesterday compare lab" in capsys.readouterr().err
    assert call("compare", "lab", "--twins", 4, "--methods", "none", "--out", tmp_path / "refused") == 2
    assert "leave out" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


def test_a_whole_run_plants_facts_and_checks_causes(
    finished: Path, lab: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YESTERDAY_CACHE", str(finished.parent / "cache"))
    asked = ["run", "--bank", lab[1], "--model", lab[0], "--twins", 3, "--threads", 1, "--out", tmp_path / "run"]
    assert call(*asked, "--method", "simnpo", "--no-figures", "--quiet") == 0
    audit = json.loads((tmp_path / "run" / "audit.json").read_text())
    assert {one["auditor"] for one in audit["calibration"]} >= {"right answer, facts held out", "strongest wording"}
    assert set(audit["audits"]) >= {"planted", "planted-filtered", "never-planted", "random-mask", "last-block"}
    causes = json.loads((tmp_path / "run" / "localization.json").read_text())
    assert [one["measure"] for one in causes["causal"]]
    assert call("run", *asked[1:], "--method", "simnpo", "--no-figures", "--quiet") == 0
