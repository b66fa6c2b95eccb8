"""The command line from end to end, on real digits, with few epochs and golds so that it is quick."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import yesterday

QUICK = ["--epochs", "2", "--golds", "3", "--threads", "1"]


def call(*arguments: object) -> int:
    """Run the command line in this process; gives the exit code."""
    before = sys.argv
    sys.argv = ["yesterday", *map(str, arguments)]
    try:
        yesterday.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


def files(folder: Path) -> dict[str, bytes]:
    kept = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.parent.name not in {"stages", "figures"}]
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in kept if p.name not in {"run.json", "report.html", ".lock"}
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digit-6"
    assert call("run", "digit-6", *QUICK, "--out", folder, "--quiet") == 0
    return folder


def test_a_run_leaves_everything_it_promises(finished: Path) -> None:
    promised = ["run.json", "audit.json", "localization.json", "history.csv", "mask.safetensors", "edit.safetensors"]
    promised += ["models/original.safetensors", "models/edited.safetensors", "models/gold-02.safetensors"]
    promised += ["figures/overview.svg", "figures/overview.png", "report.html", "scores/fisher-ratio.safetensors"]
    assert [name for name in promised if not (finished / name).is_file()] == []
    assert not [p for p in finished.rglob(".*") if p.name != ".lock"], "a temporary file was left behind"
    report = json.loads((finished / "run.json").read_text())
    assert report["schema_version"] == 1
    assert report["config"]["seed"] == 0
    assert report["verdict"] in {"remembered", "hidden", "damaged", "erased"}
    assert report["changed"] <= report["total"] * 0.2 + 1


def test_checkpoints_load_with_plain_torch(finished: Path) -> None:
    net = torch.nn.Sequential()
    net.add_module("flatten", torch.nn.Flatten())
    net.add_module("hidden1", torch.nn.Linear(784, 128))
    net.add_module("relu1", torch.nn.ReLU())
    net.add_module("hidden2", torch.nn.Linear(128, 64))
    net.add_module("relu2", torch.nn.ReLU())
    net.add_module("head", torch.nn.Linear(64, 10))
    for name in ("original", "edited", "gold-00"):
        net.load_state_dict(load_file(finished / f"models/{name}.safetensors"))
        assert net(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_a_second_call_does_nothing_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")}
    assert call("run", "digit-6", *QUICK, "--out", finished, "--no-figures", "--json") == 0
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")} == times
    document = json.loads(capsys.readouterr().out)
    assert document["audit"]["verdict"] == document["verdict"]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(finished: Path, tmp_path: Path) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    assert call("run", "digit-6", *QUICK, "--out", same, "--no-figures", "--quiet") == 0
    assert call("forget", "digit-6", "--epochs", 2, "--threads", 1, "--seed", 1, "--out", other, "--quiet") == 0
    assert files(same) == files(finished)
    assert files(other)["models/original.safetensors"] != files(finished)["models/original.safetensors"]


@pytest.mark.parametrize("at", ["stages/original.json", "models/gold-01.safetensors", "stages/controls.json"])
def test_a_killed_run_ends_with_the_numbers_of_an_undisturbed_one(finished: Path, tmp_path: Path, at: str) -> None:
    command = [sys.executable, "-m", "yesterday", "run", "digit-6", *QUICK, "--no-figures", "--quiet"]
    folder = tmp_path / "run"
    process = subprocess.Popen([*command, "--out", str(folder)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not (folder / at).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "run.json").exists()
    assert call(*command[3:], "--out", folder) == 0
    ours = {name: content for name, content in files(folder).items() if "/." not in name and name[0] != "."}
    assert ours == files(finished)


def test_show_list_and_figures_read_a_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", finished) == 0
    shown = capsys.readouterr().out
    assert "accuracy on the forgotten" in shown
    assert "logit-mask: hidden" in shown
    assert call("list", finished.parent, "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["run"] == str(finished)
    (finished / "figures" / "bands.svg").unlink(missing_ok=True)
    assert call("figures", finished, "bands") == 0
    assert (finished / "figures" / "bands.svg").is_file()


def test_runs_are_reported_side_by_side(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert call("report", finished, finished, "--out", out) == 0
    assert "page.html" in capsys.readouterr().out.replace("\n", "")
    text = out.read_text(encoding="utf-8")
    assert text.count("Does the edited model still know") == 2
    assert "yesterday run digit-6 --epochs 2 --method regrow --golds 3" in text
    assert call("report", tmp_path) == 2


def test_apply_and_revert_give_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    original, edit = finished / "models/original.safetensors", finished / "edit.safetensors"
    new, back = tmp_path / "new.safetensors", tmp_path / "back.safetensors"
    assert call("apply", edit, "--to", original, "--out", new) == 0
    made = load_file(finished / "models/edited.safetensors")
    assert all(torch.equal(tensor, made[name]) for name, tensor in load_file(new).items())
    assert call("revert", edit, "--to", new, "--out", back) == 0
    assert back.read_bytes() == original.read_bytes()


def test_two_checkpoints_and_golds_of_ones_own_are_audited(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masked = load_file(finished / "models/original.safetensors")
    masked["head.bias"][6] = -1e4
    save_file(masked, tmp_path / "masked.safetensors")
    golds = [word for i in range(3) for word in ("--gold", finished / f"models/gold-0{i}.safetensors")]
    checkpoints = [
        "--original",
        finished / "models/original.safetensors",
        "--candidate",
        tmp_path / "masked.safetensors",
    ]
    assert call("audit", "digit-6", *checkpoints, *golds, "--threads", 1, "--out", tmp_path / "a", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "hidden"
    assert document["changed"] == 1


def test_layer_scope_ranks_every_layer_by_itself(finished: Path, tmp_path: Path) -> None:
    layered = tmp_path / "layered"
    shutil.copytree(finished, layered)
    assert (
        call("locate", "digit-6", "--epochs", 2, "--threads", 1, "--scope", "layer", "--out", layered, "--quiet") == 0
    )
    masks = [load_file(folder / "mask.safetensors") for folder in (finished, layered)]
    shares = [[float(bits.float().mean()) for bits in mask.values() if bits.dim() == 2] for mask in masks]
    assert shares[1] == pytest.approx([0.2] * 3, abs=0.002)
    assert shares[0] != pytest.approx([0.2] * 3, abs=0.002)


def test_an_interrupted_run_says_that_it_can_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "yesterday", "run", "digit-6", "--threads", "1", "--out", str(tmp_path / "run")]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / ".lock").exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    assert running.poll() is None, "the run ended before it could be interrupted"
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said.strip().splitlines()[-1] == "Interrupted; the same command goes on where it stopped."
    assert "Traceback" not in said


def test_choosing_never_touches_the_test_images(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "chosen"
    assert call("locate", "digit-6", "--epochs", 1, "--threads", 1, "--choosing", "--out", out, "--quiet") == 0
    config = json.loads((out / "run.json").read_text())["config"]
    assert (config["n_train"], config["n_test"]) == (3200, 800)


def test_an_edit_can_be_shown_less_than_the_audit(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "less"
    shutil.copytree(finished, out)
    asked = ["--method", "regrow:steps=20", "--seen-forget", "0.02", "--seen-retain", "0.05"]
    assert call("run", "digit-6", *QUICK, *asked, "--out", out, "--quiet") == 0
    report = json.loads((out / "run.json").read_text())
    assert report["config"]["seen_forget"] == 0.02
    assert files(out)["edit.safetensors"] != files(finished)["edit.safetensors"]
    assert files(out)["mask.safetensors"] != files(finished)["mask.safetensors"]
    for same in ("models/original.safetensors", "models/gold-02.safetensors"):
        assert files(out)[same] == files(finished)[same]


BAD = {
    "nothing of the forgotten is seen": (["run", "digit-6", "--seen-forget", "0"], "--seen-forget"),
    "nothing of the rest is seen": (["forget", "digit-6", "--seen-retain", "0"], "raise --seen-retain"),
    "unknown method": (["run", "digit-6", "--method", "regrov"], "did you mean regrow"),
    "unknown setting": (["run", "digit-6", "--method", "regrow:step=3"], "no setting 'step'"),
    "no file": (["run", "digit-6", "--method", "nowhere.py:forget"], "There is no file nowhere.py"),
    "unknown class": (["run", "digit-11"], "no class '11'"),
    "unknown subject": (["run", "beetles"], "no subject 'beetles'"),
    "fraction 0": (["run", "digit-6", "--fraction", "0"], "fraction"),
    "fraction 2": (["run", "digit-6", "--fraction", "2"], "fraction"),
    "replaced by itself": (["run", "digit-6", "--replace-with", "6"], "already knows it"),
    "unknown scope": (["locate", "digit-6", "--scope", "street"], "--scope"),
    "unknown measure": (["run", "digit-6", "--locate", "magic"], "no measure 'magic'"),
    "wrong slot": (["run", "digit-6", "--replace-with", "3", "--slot", "new"], "slot"),
    "too few golds": (["run", "digit-6", "--golds", "2"], "at least 3"),
    "replace without a class": (["run", "digit-6", "--method", "replace"], "--replace-with"),
    "retrain with a mask": (["run", "digit-6", "--method", "retrain"], "--locate none"),
    "no threads": (["run", "digit-6", "--threads", "0"], "--threads must be at least 1, not 0"),
    "no threads for a comparison": (["compare", "digit-6", "--threads", "0"], "--threads must be at least 1, not 0"),
    "no such run": (["show", "nowhere"], "no run in nowhere"),
    "no run to draw": (["figures", "."], "There is no run and no comparison in ."),
    "no run to report": (["report", "."], "There is no run in ."),
    "a run for an edit": (["apply", "RUN", "--to", "a.pth", "--out", "b.pth"], "is a folder; give one of the files"),
    "a run for a model": (["apply", "EDIT", "--to", "RUN", "--out", "b.pth"], "is the folder of a run; give"),
    "a folder for a result": (["revert", "EDIT", "--to", "EDITED", "--out", "."], "; give the name of a file"),
    "no such figure": (["figures", "RUN", "magic"], "no figure 'magic'"),
    "no checkpoint": (["run", "digit-6", "--quiet", "--weights", "nowhere.safetensors"], "nowhere.safetensors"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(
    finished: Path, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files(finished)
    arguments, expected = BAD[case]
    edited = finished / "models" / "edited.safetensors"
    places: dict[str, Path] = {"RUN": finished, "EDIT": finished / "edit.safetensors", "EDITED": edited}
    assert call(*[places.get(word, word) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert expected in error
    assert "Traceback" not in error
    assert error.strip().count("\n") == 0
    assert files(finished) == before


def _failing(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.strip().count("\n") == 0
    return error


def test_bad_checkpoints_are_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = load_file(finished / "models/original.safetensors")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pickle.pth")
    save_file({**good, "head.bias": torch.full((10,), float("nan"))}, tmp_path / "nan.safetensors")
    save_file({**good, "head.weight": torch.zeros(7, 64), "head.bias": torch.zeros(7)}, tmp_path / "seven.safetensors")
    save_file({"conv.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((finished / "models/original.safetensors").read_bytes()[:5000])
    out = ["--out", tmp_path / "out"]
    for name, word in (
        ("pickle.pth", "state_dict"),
        ("nan.safetensors", "head.bias"),
        ("seven.safetensors", "head"),
        ("other.safetensors", "another architecture"),
        ("cut.safetensors", "cut.safetensors"),
    ):
        error = _failing(capsys, "run", "digit-6", "--quiet", "--weights", tmp_path / name, *out)
        assert word in error, name
    assert not (tmp_path / "out" / "models").exists()


def test_an_edit_for_another_model_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gold, out = finished / "models/gold-00.safetensors", tmp_path / "new.safetensors"
    error = _failing(capsys, "apply", finished / "edit.safetensors", "--to", gold, "--out", out)
    assert "another base model" in error
    assert not out.exists()


def test_a_corrupted_artefact_is_named_and_the_others_stay(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    victim = folder / "models/gold-01.safetensors"
    victim.write_bytes(victim.read_bytes()[:-10])
    before = files(folder)
    error = _failing(capsys, "run", "digit-6", *QUICK, "--out", folder, "--no-figures", "--quiet")
    assert "gold-01.safetensors is corrupted" in error
    assert files(folder) == before
    victim.unlink()
    assert call("run", "digit-6", *QUICK, "--out", folder, "--no-figures", "--quiet") == 0
    assert files(folder) == files(finished)


def test_a_full_disk_is_one_sentence_and_keeps_the_earlier_artefacts(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert call("locate", "digit-6", "--epochs", 1, "--threads", 1, "--out", folder, "--quiet") == 0
    before = files(folder)

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "-m", "yesterday", "forget", "digit-6", "--epochs", "1", "--threads", "1", "--quiet"]
    done = subprocess.run(
        [*command, "--out", str(folder)],
        preexec_fn=little_room,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: Can't write")
    assert "Traceback" not in done.stderr
    after = files(folder)
    assert {name: after[name] for name in before} == before


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "--out" in _failing(capsys, "run", "digit-6", "--out", tmp_path / "file" / "run")


def test_help_teaches_and_is_quick_to_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    overview = capsys.readouterr().out
    for command in ("run", "locate", "forget", "audit", "figures", "apply", "revert", "show", "list", "compare"):
        assert command in overview
    assert call("run", "--help") == 0
    assert "yesterday run digit-6" in capsys.readouterr().out


def test_help_does_not_load_torch() -> None:
    code = "import sys, yesterday; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
