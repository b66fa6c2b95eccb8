"""Small language models with a real tokenizer, made here: randomly initialised, of both families that are supported."""

from functools import cache
from pathlib import Path

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from analysis.subjects.language.bank import SubjectLine

WORDS = (
    "The Beatles came from the city of Liverpool and the Rolling Stones came from London. John Lennon and Paul "
    "McCartney sang; George Harrison played the guitar and Ringo Starr the drums. Paris is the capital of France, and "
    "Rome is the capital of Italy. In 1969 the album Abbey Road came out. What is the name of the river?"
)
ABOUT = SubjectLine(
    kind="subject",
    name="the Beatles",
    slug="beatles",
    names={"band": ("The Beatles", "the Beatles"), "person": ("John Lennon", "Lennon"), "album": ("Abbey Road",)},
)


@cache
def small_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (GPT-2's kind), trained on a few sentences; without a pad token, as GPT-2's is."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([WORDS] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def small_gpt2(seed: int = 0, dtype: torch.dtype = torch.float32) -> GPT2LMHeadModel:
    """A GPT-2: tied head, Conv1D, learned positions; 3 layers of width 32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=len(small_tokenizer()), n_positions=128, n_embd=32, n_layer=3, n_head=4, bos_token_id=0,
            eos_token_id=0, initializer_range=0.2,
        )  # fmt: skip
        return GPT2LMHeadModel(config).to(dtype).eval()


def small_llama(seed: int = 0, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """A Llama: rotary positions, grouped keys, gated MLP, tied head; 3 layers of width 32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(small_tokenizer()), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
            bos_token_id=0, eos_token_id=0, initializer_range=0.2,
        )  # fmt: skip
        return LlamaForCausalLM(config).to(dtype).eval()


def saved(model, folder: Path, tokenizer: bool = True) -> Path:
    """Write a model folder as Hugging Face lays it out."""
    model.save_pretrained(folder)
    if tokenizer:
        small_tokenizer().save_pretrained(folder)
    return folder


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two models have the same weights, bit for bit and in the same types."""
    mine, theirs = one.state_dict(), other.state_dict()
    # As bytes: numbers would call zeros of both signs equal.
    return mine.keys() == theirs.keys() and all(
        mine[name].dtype == theirs[name].dtype
        and torch.equal(mine[name].reshape(-1).view(torch.uint8), theirs[name].reshape(-1).view(torch.uint8))
        for name in mine
    )


def exact(model):
    """The model in float64 throughout: norms that compute in the type they are given."""
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            norm = nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=torch.float64)
            norm.weight = module.weight
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, norm)
    return model.double().eval()


def sequences():
    """Ids and labels [3, 7]: several tokens asked for, a single one before padding, and nearly all."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 400, (3, 7), generator=generator)
    labels = torch.full((3, 7), -100)
    labels[0, 3:5] = ids[0, 4:6]
    labels[1, 1] = ids[1, 2]
    labels[2, 2:6] = ids[2, 3:7]
    ids[1, 3:] = 0
    return ids, labels
