"""The gold lab: a small GPT-2 made here, so that a language model that truly never knew a band can be had in minutes.

The same recipe trains a model on the whole corpus (the original) and on the corpus without one band (a gold). Both
use one tokenizer, trained on the whole corpus, so that they can be compared token by token; that the tokenizer has
seen the band's name tells the gold nothing about it.
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from analysis.errors import UserError
from analysis.files import load_tensors, save_tensors, write_text
from analysis.subjects.language.encoding import IGNORED, Encoded, Tokenizer, pad
from analysis.subjects.language.lab_bands import Band, lab_bands
from analysis.subjects.language.lab_corpus import FILLERS, corpus
from analysis.subjects.language.lab_muon import Muon
from analysis.subjects.language.scoring import mean_loss

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

END = "<|endoftext|>"
VERSION = 1
Report = Callable[[float], None]
"""Called with the share of the work that is done, 0 to 1."""


@dataclass(frozen=True)
class LabRecipe:
    """Everything that decides a lab model, but for its seed and what it is not taught.

    Attributes:
        bands: How many bands are taught; None for all.
        fillers: How many plain sentences are among them.
        vocabulary: Tokens of the byte-level BPE tokenizer, 257 or more.
        layers: Transformer blocks.
        width: Of the residual stream.
        heads: Attention heads a block.
        context: Longest sequence, in tokens.
        epochs: Passes over the corpus.
        batch: Tokens a step, about.
        lr: Highest learning rate of Adam, for embeddings, norms and biases; it rises over the first tenth of the
            steps and falls linearly to zero.
        hidden_lr: The same of Muon, for the blocks' matrices.
    """

    bands: int | None = None
    fillers: int = FILLERS
    vocabulary: int = 2560
    layers: int = 4
    width: int = 256
    heads: int = 4
    context: int = 64
    epochs: int = 4
    batch: int = 1536
    lr: float = 5e-3
    hidden_lr: float = 0.02

    @property
    def taught(self) -> tuple[Band, ...]:
        """The bands of this recipe."""
        return lab_bands(self.bands)


LAB = LabRecipe()
TINY = LabRecipe(bands=12, fillers=60, vocabulary=1000, layers=2, width=64, epochs=8, batch=512, lr=1e-2)


def lab_tokenizer(sentences: Sequence[str], vocabulary: int) -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE tokenizer of GPT-2's kind.

    Args:
        sentences: Training text.
        vocabulary: How many tokens, the 256 bytes and the end mark among them.

    Returns:
        The tokenizer; as GPT-2's it puts nothing in front of a text and has no padding token.
    """
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Model(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, bos_token=END)


def untrained(recipe: LabRecipe, tokens: int, seed: int) -> "GPT2LMHeadModel":
    """Make a GPT-2 with random weights.

    Args:
        recipe: Its shape.
        tokens: Size of the vocabulary.
        seed: Of the weights; the global random state is left as it was.

    Returns:
        The model, without dropout, in evaluation mode.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    # The fused form of the same tanh approximation of GELU: GPT-2's "gelu_new" is not fused.
    config = GPT2Config(
        vocab_size=tokens,
        n_positions=recipe.context,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()


def _batches(rows: Sequence[list[int]], recipe: LabRecipe, seed: int) -> list[list[Encoded]]:
    # One list per epoch. Sequences of like length go together, so that next to nothing is spent on padding.
    draw = random.Random(f"batches {seed}")
    epochs = []
    for _ in range(recipe.epochs):
        order = sorted(rows, key=lambda row: (len(row), draw.random()))
        parts: list[list[list[int]]] = [[]]
        for row in order:
            if parts[-1] and (len(parts[-1]) + 1) * len(row) > recipe.batch:
                parts.append([])
            parts[-1].append(row)
        draw.shuffle(parts)
        epochs.append([Encoded(pad(part, 0), pad([[*r[1:], IGNORED] for r in part], IGNORED)) for part in parts])
    return epochs


def train_lab_model(
    sentences: Sequence[str],
    tokenizer: Tokenizer,
    recipe: LabRecipe = LAB,
    seed: int = 0,
    report: Report | None = None,
) -> "GPT2LMHeadModel":
    """Train a lab model from scratch.

    Args:
        sentences: What it is taught; each ends with the end mark.
        tokenizer: From `lab_tokenizer`.
        recipe: Shape and training.
        seed: Of the initial weights and the order of the batches.
        report: Told how far it is.

    Returns:
        The model in evaluation mode; the same for the same arguments on one machine and number of threads.

    Raises:
        UserError: There is nothing to learn, or a sentence is longer than the context.
    """
    rows = [[*tokenizer(sentence).input_ids, tokenizer.eos_token_id] for sentence in sentences]
    if not rows:
        raise UserError("There are no sentences to train the lab model on; give it a corpus.")
    longest = max(map(len, rows))
    if longest > recipe.context:
        raise UserError(
            f"A sentence has {longest} tokens, but the lab model reads at most {recipe.context}; give it more context."
        )
    model = untrained(recipe, len(tokenizer), seed).train()
    hidden = [p for name, p in model.named_parameters() if ".h." in name and p.dim() == 2]
    inside = {id(p) for p in hidden}
    muon = Muon(hidden)
    adam = torch.optim.Adam([p for p in model.parameters() if id(p) not in inside], betas=(0.9, 0.98), fused=True)
    batches = [batch for epoch in _batches(rows, recipe, seed) for batch in epoch]
    warm = max(1, len(batches) // 10)
    for step, batch in enumerate(batches):
        share = min((step + 1) / warm, (len(batches) - step) / (len(batches) - warm + 1))
        for group in adam.param_groups:
            group["lr"] = recipe.lr * share
        model.zero_grad(set_to_none=True)
        mean_loss(model, batch).backward()
        muon.step(recipe.hidden_lr * share)
        adam.step()
        if report and step % 20 == 0:
            report(step / len(batches))
    if report:
        report(1.0)
    model.zero_grad(set_to_none=True)
    return model.eval()


@dataclass(frozen=True)
class LabModel:
    """A trained lab model.

    Attributes:
        model: In evaluation mode.
        tokenizer: The same for all models of a recipe.
        folder: Where it lies, as a Hugging Face folder: `AutoModelForCausalLM.from_pretrained(folder)` reads it.
        without: The band that it was never taught; None for an original.
    """

    model: "GPT2LMHeadModel"
    tokenizer: Tokenizer
    folder: Path
    without: str | None


def lab_key(without: str | None, seed: int, recipe: LabRecipe = LAB) -> str:
    """Name a lab model by everything that decides it.

    Args:
        without: The band that is left out, or None.
        seed: Of the weights, the order of the batches, and the plain sentences.
        recipe: The rest.

    Returns:
        A name for a folder: equal names mean equal training text, recipe and seed.
    """
    text = corpus(without, seed, recipe.taught, recipe.fillers)
    everything = json.dumps([VERSION, asdict(recipe), seed, text, _tokenizer_text(recipe)], ensure_ascii=False)
    return hashlib.sha256(everything.encode()).hexdigest()[:16]


def _tokenizer_text(recipe: LabRecipe) -> list[str]:
    # The same for every seed and every band that is left out.
    return corpus(None, 0, recipe.taught, recipe.fillers)


def lab_models(
    without: str | None, seed: int, folder: Path, report: Report | None = None, recipe: LabRecipe = LAB
) -> LabModel:
    """Train a lab model, or read it if it was trained before.

    Args:
        without: The band that it is never taught; None for the original.
        seed: Of everything that is left to chance.
        folder: Cache; the model lies in a folder of its own inside, named by `lab_key`.
        report: Told how far the training is; not called when there is nothing to train.
        recipe: Shape and training.

    Returns:
        The model and where it lies. A killed training leaves nothing that is taken for a model.

    Raises:
        UserError: The cache can't be written, or holds a damaged file; the band is unknown.
    """
    home = folder / f"lab-{lab_key(without, seed, recipe)}"
    tokenizer = lab_tokenizer(_tokenizer_text(recipe), recipe.vocabulary)
    weights = home / "model.safetensors"
    if weights.is_file():
        model = untrained(recipe, len(tokenizer), seed)
        tensors, _ = load_tensors(weights)
        try:
            model.load_state_dict({**tensors, "lm_head.weight": tensors["transformer.wte.weight"]})
        except (KeyError, RuntimeError) as error:
            raise UserError(f"{weights} is not a model of this lab recipe; delete the folder {home}.") from error
        return LabModel(model, tokenizer, home, without)
    model = train_lab_model(corpus(without, seed, recipe.taught, recipe.fillers), tokenizer, recipe, seed, report)
    write_text(home / "config.json", model.config.to_json_string(use_diff=False))
    write_text(home / "tokenizer.json", tokenizer.backend_tokenizer.to_str(pretty=True))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "bos_token": END}
    write_text(home / "tokenizer_config.json", json.dumps(settings, indent=2))
    write_text(home / "recipe.json", json.dumps({"without": without, "seed": seed, **asdict(recipe)}, indent=2))
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}  # tied
    save_tensors(weights, state, {"format": "pt"})  # last: a folder without weights is not a model
    return LabModel(model, tokenizer, home, without)
