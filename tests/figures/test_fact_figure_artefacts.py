"""What is said of folders of runs on facts that lack something or can't be read."""

import importlib
import re
import shutil
from pathlib import Path

import pytest
from fact_runs import changed, make_fact_run

from analysis.errors import UserError
from figures.artefacts import Missing, open_run
from figures.facts import mask_layers, neurons, relearn, tradeoff
from figures.facts.artefacts import KEPT_SHARE, open_facts
from figures.render import render
from figures.save import script_for


@pytest.fixture(scope="module")
def beatles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fact_run(tmp_path_factory.mktemp("beatles"))


NEEDS = {
    "overview": ("audit.json", "pictures.json"),
    "mask_layers": ("pictures.json",),
    "neurons": ("gradient-ratio.safetensors",),
    "patching": ("pictures.json", "pictures.safetensors"),
    "lens": ("pictures.json", "pictures.safetensors"),
    "causal": ("localization.json",),
    "survival": ("pictures.json",),
    "tradeoff": ("audit.json",),
    "fact_map": ("pictures.json", "pictures.safetensors"),
    "relearn": ("audit.json",),
    "fact_bands": ("audit.json",),
}


@pytest.mark.parametrize(("name", "needed"), [(name, part) for name, parts in NEEDS.items() for part in parts])
def test_a_missing_artefact_is_one_sentence(
    beatles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, needed: str
) -> None:
    folder = shutil.copytree(beatles, tmp_path / "run", ignore=shutil.ignore_patterns(needed, "figures"))
    module = importlib.import_module(f"figures.facts.{name}")
    assert script_for(open_facts, module.__name__, module.draw, [str(folder)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert re.fullmatch(r"\S+ has no \S+; make it with `yesterday \w+`, giving this run's options again\.\n", told.err)
    assert needed in told.err
    assert not (folder / "figures").exists()


@pytest.mark.parametrize(
    ("name", "part", "content"),
    [
        ("lens", "pictures.json", "{"),
        ("fact_map", "pictures.safetensors", "no tensors"),
        ("causal", "localization.json", '{"schema_version": 1}'),
        ("fact_bands", "audit.json", "[]"),
        ("neurons", "scores/gradient-ratio.safetensors", "no tensors"),
    ],
)
def test_a_damaged_artefact_is_named(beatles: Path, tmp_path: Path, name: str, part: str, content: str) -> None:
    folder = shutil.copytree(beatles, tmp_path / "run", ignore=shutil.ignore_patterns("figures"))
    (folder / part).write_text(content)
    with pytest.raises(UserError, match=re.escape(Path(part).name)):
        importlib.import_module(f"figures.facts.{name}").draw(open_facts(folder))


def test_a_run_without_some_artefacts_gets_its_other_figures(beatles: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for part in ("run.json", "pictures.json"):
        shutil.copy(beatles / part, folder)
    assert {path.stem for path in render(folder)} == {"mask_layers", "survival"}
    with pytest.raises(Missing, match=r"audit\.json"):
        render(folder, ["fact_bands"])
    with pytest.raises(UserError, match="no figure 'umap'; choose from overview, mask_layers"):
        render(folder, ["umap"])


def test_a_run_that_located_nothing_has_no_neurons(beatles: Path, tmp_path: Path) -> None:
    folder = changed(beatles, tmp_path / "run", "run.json", lambda d: d["config"].update(measure="none"))
    with pytest.raises(Missing, match="located nothing"):
        neurons.draw(open_facts(folder))


def test_a_run_json_without_the_number_of_weights_is_damaged(beatles: Path, tmp_path: Path) -> None:
    folder = changed(beatles, tmp_path / "run", "run.json", lambda d: d.pop("total"))
    with pytest.raises(UserError, match="how many weights"):
        mask_layers.draw(open_facts(folder))


def test_an_audit_without_curves_or_neighbours(beatles: Path, tmp_path: Path) -> None:
    def strip(document: dict) -> None:
        kept = [m for m in document["measurements"] if m["auditor"] != KEPT_SHARE]
        document["measurements"] = [{**m, "curve_x": [], "curves": {}} for m in kept]

    folder = changed(beatles, tmp_path / "run", "audit.json", strip)
    with pytest.raises(Missing, match="no relearning curves"):
        relearn.draw(open_facts(folder))
    with pytest.raises(Missing, match=KEPT_SHARE):
        tradeoff.draw(open_facts(folder))


def test_families_are_not_mixed_up(beatles: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a run on facts"):
        open_run(beatles)
    folder = changed(beatles, tmp_path / "run", "run.json", lambda d: d["config"].pop("family"))
    with pytest.raises(UserError, match="no run on facts"):
        open_facts(folder)
    with pytest.raises(UserError, match="There is no folder"):
        open_facts(tmp_path / "nothing")
