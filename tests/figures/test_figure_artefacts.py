"""What is said of run folders that lack something or can't be read."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from figure_runs import make_run

from analysis.errors import UserError
from figures.artefacts import Run
from figures.render import render
from figures.save import script


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("digits"))


def test_as_a_command_it_fails_in_one_sentence(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(digits / "run.json", folder)
    done = subprocess.run([sys.executable, "-m", "figures.overlap", str(folder)], capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        done.stderr
        == f"{folder} has no localization.json; make it with `yesterday locate`, giving this run's options again.\n"
    )


NEEDS = {
    "overview": ("mask.safetensors", "edit.safetensors", "audit.json", "models/original.safetensors"),
    "mask_map": ("mask.safetensors", "models/original.safetensors"),
    "attribution": ("pictures.safetensors",),
    "ablation": ("localization.json",),
    "overlap": ("localization.json",),
    "forgetting": ("history.csv", "audit.json"),
    "weight_change": ("edit.safetensors",),
    "misclassified": ("pictures.safetensors",),
    "confusion": ("pictures.safetensors", "audit.json"),
    "umap": ("pictures.safetensors",),
    "probes": ("audit.json",),
    "relearning": ("audit.json",),
    "bands": ("audit.json",),
}


@pytest.mark.parametrize(("name", "needed"), [(name, part) for name, parts in NEEDS.items() for part in parts])
def test_a_missing_artefact_is_one_sentence(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, needed: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(digits, folder, ignore=shutil.ignore_patterns(Path(needed).name, "figures", "gold-*"))
    assert script(name, importlib.import_module(f"figures.{name}").draw, [str(folder)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert re.fullmatch(
        rf"\S+ has no {re.escape(needed)}; make it with `yesterday \w+`, giving this run's options again\.\n", told.err
    )
    assert not (folder / "figures").exists()


@pytest.mark.parametrize(
    ("name", "part", "content"),
    [
        ("bands", "audit.json", "{"),
        ("bands", "audit.json", '{"schema_version": 2}'),
        ("overlap", "localization.json", "[]"),
        ("forgetting", "history.csv", "step,overall\n1,2\n"),
        ("forgetting", "history.csv", "step,overall,retain,forget\n0,a,b,c\n"),
        ("forgetting", "history.csv", ""),
        ("bands", "run.json", "no json"),
        ("bands", "run.json", '{"config": {}}'),
        ("mask_map", "mask.safetensors", "no tensors"),
        ("weight_change", "edit.safetensors", "no tensors"),
        ("umap", "pictures.safetensors", "no tensors"),
    ],
)
def test_a_damaged_artefact_is_named(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, part: str, content: str
) -> None:
    folder = shutil.copytree(digits, tmp_path / "run")
    (folder / part).write_text(content)
    assert script(name, importlib.import_module(f"figures.{name}").draw, [str(folder)]) == 2
    told = capsys.readouterr().err
    assert part in told
    assert told.count("\n") == 1


def test_a_run_without_some_artefacts_gets_its_other_figures(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for part in ("run.json", "localization.json"):
        shutil.copy(digits / part, folder)
    assert {path.stem for path in render(folder)} == {"ablation", "overlap"}
    with pytest.raises(UserError, match=r"history\.csv"):
        render(folder, ["forgetting", "overlap"])
    (folder / "localization.json").unlink()
    with pytest.raises(UserError, match=r"has no audit\.json"):
        render(folder)


def test_wrong_requests(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no figure 'umapp'; choose from"):
        render(digits, ["umapp"])
    with pytest.raises(UserError, match="There is no folder"):
        render(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"There is no run and no comparison in .*empty; `yesterday list` shows"):
        render(tmp_path / "empty")
    with pytest.raises(UserError, match=r"run\.json is a file; give the folder of a run"):
        render(digits / "run.json")


def test_a_folder_that_cannot_be_written_is_a_user_error(digits: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(digits, tmp_path / "run")
    shutil.rmtree(folder / "figures", ignore_errors=True)
    (folder / "figures").write_text("in the way")
    with pytest.raises(UserError, match="Can't write"):
        render(folder, ["overlap"])


def test_artefacts_are_read_once(digits: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(digits, tmp_path / "run")
    run = Run(folder)
    first = run.audit
    shutil.rmtree(folder)
    assert run.audit is first
    with pytest.raises(UserError, match="has no mask"):
        _ = run.mask


def test_importing_the_package_draws_in_nothing_heavy() -> None:
    code = "import sys, figures, figures.render; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
