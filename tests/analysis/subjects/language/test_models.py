import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import same, saved, small_gpt2, small_llama, small_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertGenerationConfig,
    BertGenerationDecoder,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from analysis.errors import UserError
from analysis.subjects.language.encoding import encode_answers, encode_texts
from analysis.subjects.language.models import load_language_model, save_language_model

ROOT = Path(__file__).parents[4]
MAKERS = [small_gpt2, small_llama]


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_language_model(str(folder))
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("make", MAKERS)
def test_round_trip_is_exact(make, tmp_path, capfd):
    model, tokenizer, folder = make(), small_tokenizer(), tmp_path / "My Model"
    config, before = copy.deepcopy(model.config.to_dict()), copy.deepcopy(model)
    generation = copy.deepcopy(model.generation_config.to_dict())
    save_language_model(model, tokenizer, folder, "# A card\n")
    assert (model.config.to_dict(), model.generation_config.to_dict()) == (config, generation)
    assert same(model, before)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    capfd.readouterr()
    state = torch.get_rng_state()
    found = load_language_model(str(folder))
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state)
    for other in (plain, found.model):
        assert same(model, other)
        assert other.get_output_embeddings().weight is other.get_input_embeddings().weight
    assert (found.name, found.longest, found.source) == ("my-model", 128, str(folder))
    assert not any(module.training for module in found.model.modules())
    assert found.tokenizer("The Beatles").input_ids == tokenizer("The Beatles").input_ids
    assert found.tokenizer.pad_token is None
    assert (folder / "README.md").read_text() == "# A card\n"
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors", ".md"}
    # Saving what was loaded changes nothing any more.
    save_language_model(found.model, found.tokenizer, tmp_path / "again", "# A card\n")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


@pytest.mark.parametrize("make", MAKERS)
def test_an_edit_that_parts_head_and_embedding_survives(make, tmp_path):
    model = make()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)
    save_language_model(model, small_tokenizer(), tmp_path / "model", "")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["tie_word_embeddings"] is False
    assert model.config.tie_word_embeddings is True
    assert same(model, AutoModelForCausalLM.from_pretrained(tmp_path / "model"))
    assert same(model, load_language_model(str(tmp_path / "model")).model)


def test_saving_replaces_a_model_but_nothing_else(tmp_path):
    folder = tmp_path / "model"
    for model in (small_gpt2(0), small_gpt2(1)):
        save_language_model(model, small_tokenizer(), folder, "")
        assert same(model, AutoModelForCausalLM.from_pretrained(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    for name in ("notes/.git/HEAD", "notes/config.json", "photos/cat.jpg", "file"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("dear")
    for name in ("notes", "photos", "file"):
        with pytest.raises(UserError, match=r"choose a(nother| new) folder"):
            save_language_model(small_gpt2(), small_tokenizer(), tmp_path / name, "")
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "dear"
    assert sorted(path.name for path in (tmp_path / "notes").iterdir()) == [".git", "config.json"]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_becomes_float32(kind, tmp_path):
    model = small_llama().to(kind)
    found = load_language_model(str(saved(model, tmp_path)))
    assert {parameter.dtype for parameter in found.model.parameters()} == {torch.float32}
    assert same(model.float(), found.model)


def test_sharded_weights(tmp_path):
    model = small_gpt2()
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    small_tokenizer().save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert same(model, load_language_model(str(tmp_path)).model)
    next(tmp_path.glob("model-00002*")).unlink()
    assert "weights" in refusal(tmp_path)


def test_generating_with_a_cache_equals_without(tmp_path):
    found = load_language_model(str(saved(small_llama(), tmp_path)))
    ids = torch.tensor([found.tokenizer("The Beatles came").input_ids])
    long = {cached: found.model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=cached, pad_token_id=0)
            for cached in (True, False)}  # fmt: skip
    assert long[True].shape[1] > ids.shape[1]
    assert torch.equal(long[True], long[False])


def test_longer_than_the_context(tmp_path):
    config = GPT2Config(vocab_size=len(small_tokenizer()), n_positions=16, n_embd=16, n_layer=1, n_head=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = load_language_model(str(saved(GPT2LMHeadModel(config), tmp_path)))
    assert found.longest == 16
    text = "The Beatles came from the city of Liverpool. " * 3
    with pytest.raises(UserError, match=r"has [0-9]+ tokens, but the model reads at most 16"):
        encode_texts(found.tokenizer, [text], found.longest)
    with pytest.raises(UserError, match="reads at most 16"):
        encode_answers(found.tokenizer, [("Paris is the capital of", "France"), (text, "Paul")], found.longest)
    short = encode_answers(found.tokenizer, [("Paris is the capital of", "France")], found.longest)
    assert found.model(short.ids).logits.isfinite().all()


def test_what_is_missing_is_named(tmp_path):
    folder = saved(small_gpt2(), tmp_path / "model")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (folder / "optimizer.pt").write_bytes(b"")
    assert "has no weights" in refusal(folder)
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    assert "only as pytorch_model.bin, which can run code" in refusal(folder)
    (folder / "model.safetensors").write_bytes(weights[:-50])
    assert "weights of" in refusal(folder)
    (folder / "model.safetensors").write_bytes(weights)
    load_language_model(str(folder))  # beside safetensors, the pickle is not touched
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "has no tokenizer" in refusal(folder)
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer of" in refusal(folder)
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder)
    (folder / "adapter_config.json").write_text("{}")
    assert "adapter" in refusal(folder)
    assert "no config.json" in refusal(tmp_path)


def test_a_pickle_is_never_opened(tmp_path):
    # This pickle would write a file if anything read it.
    class Trap:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'sprung'}",))

    folder = saved(small_gpt2(), tmp_path / "model")
    torch.save(Trap(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "can run code" in refusal(folder)
    assert not (tmp_path / "sprung").exists()


def test_code_beside_a_model_is_never_run(tmp_path):
    folder = saved(small_gpt2(), tmp_path / "model")
    (folder / "trap.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'sprung')!r}).touch()\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "trap.C", "AutoModelForCausalLM": "trap.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert "config.json of" in refusal(folder)
    assert not (tmp_path / "sprung").exists()


def test_damaged_weights(tmp_path):
    folder = saved(small_llama(), tmp_path)
    path = folder / "model.safetensors"
    whole = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    for value in (torch.nan, torch.inf):
        bad = whole | {name: whole[name].clone()}
        bad[name][3, 4] = value
        save_file(bad, path, metadata={"format": "pt"})
        assert f"weights {name} of" in refusal(folder)
    save_file({key: value for key, value in whole.items() if key != name}, path, metadata={"format": "pt"})
    assert f"missing, {name} among them" in refusal(folder)
    save_file(whole | {name: whole[name][1:].clone()}, path, metadata={"format": "pt"})
    assert "weights of" in refusal(folder)
    (folder / "config.json").write_text("{")
    assert "config.json" in refusal(folder)


def test_quantised_weights(tmp_path):
    folder = saved(small_llama(), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    assert "quantised" in refusal(folder)


SMALL = {"vocab_size": len(small_tokenizer()), "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
GEMMA = {"num_hidden_layers": 1, "num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 0.01}
GEMMA |= {"pad_token_id": 0}


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (
            lambda: T5ForConditionalGeneration(
                T5Config(vocab_size=SMALL["vocab_size"], d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
            ),
            "T5ForConditionalGeneration",
        ),
        (
            lambda: GPT2ForSequenceClassification(
                GPT2Config(vocab_size=SMALL["vocab_size"], n_embd=16, n_layer=1, n_head=2)
            ),
            "GPT2ForSequenceClassification",
        ),
        (lambda: BertForMaskedLM(BertConfig(**SMALL, num_hidden_layers=1)), "BertForMaskedLM"),
        (
            lambda: BartForCausalLM(
                BartConfig(vocab_size=SMALL["vocab_size"], d_model=16, decoder_layers=1, decoder_attention_heads=2)
            ),
            "bart",
        ),
    ],
)
def test_not_a_causal_language_model(make, kind, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        folder = saved(make(), tmp_path)
    if kind == "bart":  # saved as a decoder only, it doesn't call itself an encoder and decoder
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"is_encoder_decoder": True}))
    text = refusal(folder)
    assert f"({kind}) is not a causal language model" in text


@pytest.mark.parametrize(
    ("make", "why"),
    [
        # Its logits are capped after the head.
        (lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, **GEMMA)), "logits are not its head's output"),
        # Positions enter as a bias over distance, not as position ids.
        (lambda: BloomForCausalLM(BloomConfig(vocab_size=400, hidden_size=16, n_layer=1, n_head=2)), "bloom"),
        # There is more between hidden states and head.
        (lambda: BertLMHeadModel(BertConfig(**SMALL, num_hidden_layers=1)), "logits are not its head's output"),
        # Every token sees every other.
        (
            lambda: BertGenerationDecoder(BertGenerationConfig(**SMALL, num_hidden_layers=1, initializer_range=0.5)),
            "what a token sees",
        ),
    ],
)
def test_unsupported_architecture(make, why, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        folder = saved(make(), tmp_path)
    text = refusal(folder)
    assert "isn't supported" in text
    assert why in text
    assert text.endswith("the GPT-2 and Llama families are.")


def test_tokenizer_of_another_model(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=32, n_embd=16, n_layer=1, n_head=2))
    assert "has 400 tokens, but the model knows 100" in refusal(saved(model, tmp_path))


def test_context_too_short(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_positions=4, n_embd=16, n_layer=1, n_head=2))
    assert "reads only 4 tokens" in refusal(saved(model, tmp_path))


def test_wrong_paths(tmp_path):
    (tmp_path / "file.safetensors").write_bytes(b"")
    assert "is a file; give the folder" in refusal(tmp_path / "file.safetensors")
    for spec in (str(tmp_path / "none"), "./none", "~/none/at/all", "a/b/c", ""):
        with pytest.raises(UserError, match="There is no folder"):
            load_language_model(spec)
    with pytest.raises(UserError, match="neither a folder nor a model's name"):
        load_language_model("not a name!")


def test_importing_is_light():
    script = (
        "import sys, analysis.subjects.language.models; print({'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_folder_goes_before_the_hub(tmp_path, monkeypatch):
    saved(small_gpt2(), tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    assert load_language_model("gpt2").source == str(tmp_path / "gpt2")


def test_other_tokenizer_files(tmp_path):
    # GPT-2 on the hub comes as vocab.json and merges.txt too.
    folder = saved(small_gpt2(), tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    (folder / "vocab.json").write_text(json.dumps(content["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in content["merges"]))
    text = "The Beatles came from Liverpool in 1969."
    assert load_language_model(str(folder)).tokenizer(text).input_ids == small_tokenizer()(text).input_ids
    assert AutoTokenizer.from_pretrained(folder).decode(small_tokenizer()(text).input_ids) == text
