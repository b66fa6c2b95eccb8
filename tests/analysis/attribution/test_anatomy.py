"""The parts of causal language models, found by structure, against what their code says."""

import pytest
import torch
from small_models import small_gpt2, small_llama
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

from analysis.attribution.anatomy import anatomy, neuron_mask_rows
from analysis.errors import UserError

SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}


def test_gpt2():
    found = anatomy(small_gpt2())
    assert found.blocks == ("transformer.h.0", "transformer.h.1", "transformer.h.2")
    assert found.attention[1] == "transformer.h.1.attn"
    assert found.attention_out[1] == "transformer.h.1.attn.c_proj"
    assert found.mlp[2] == "transformer.h.2.mlp"
    assert found.down[2] == "transformer.h.2.mlp.c_proj"
    assert (found.embedding, found.final_norm) == ("transformer.wte", "transformer.ln_f")
    assert (found.heads, found.head_width, found.neurons) == (4, 8, 128)


def check_llama_names(found):
    last = len(found.blocks) - 1
    assert found.blocks == tuple(f"model.layers.{i}" for i in range(last + 1))
    assert found.attention[last] == f"model.layers.{last}.self_attn"
    assert found.attention_out[last] == f"model.layers.{last}.self_attn.o_proj"
    assert found.mlp[0] == "model.layers.0.mlp"
    assert found.down[0] == "model.layers.0.mlp.down_proj"
    assert (found.embedding, found.final_norm) == ("model.embed_tokens", "model.norm")


def test_llama():
    found = anatomy(small_llama())
    check_llama_names(found)
    assert (len(found.blocks), found.heads, found.head_width, found.neurons) == (3, 4, 8, 48)


@pytest.mark.parametrize(
    ("config", "head_width"),
    [
        (LlamaConfig(**SMALL, num_key_value_heads=1, tie_word_embeddings=False), 4),
        (MistralConfig(**SMALL, num_key_value_heads=2), 4),
        (Qwen2Config(**SMALL, num_key_value_heads=2), 4),
        (Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=6), 6),
    ],
)
def test_relatives_of_llama(config, head_width):
    found = anatomy(AutoModelForCausalLM.from_config(config))
    check_llama_names(found)
    assert (len(found.blocks), found.heads, found.head_width, found.neurons) == (2, 4, head_width, 24)


def test_other_layouts_are_refused():
    mixture = AutoModelForCausalLM.from_config(MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=2))
    other = AutoModelForCausalLM.from_config(
        OPTConfig(vocab_size=40, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=4,
                  word_embed_proj_dim=16)
    )  # fmt: skip
    for model in (mixture, other):
        with pytest.raises(UserError, match="not laid out as expected"):
            anatomy(model)
    for model in (nn.Linear(3, 3), small_llama().model):
        with pytest.raises(UserError, match="no causal language model"):
            anatomy(model)


@pytest.mark.parametrize("make", [small_gpt2, small_llama])
def test_masked_weights_are_all_that_the_neurons_write_with(make):
    model = make(dtype=torch.float64)
    parts = anatomy(model)
    chosen = torch.zeros(parts.neurons, dtype=torch.bool)
    chosen[[1, 5, parts.neurons - 1]] = True
    name = parts.down[1]
    masks = neuron_mask_rows(model, {name: chosen, parts.down[2]: ~chosen})
    assert list(masks) == [f"{name}.weight", f"{parts.down[2]}.weight"]
    down = model.get_submodule(name)
    mask = masks[f"{name}.weight"]
    assert mask.shape == down.weight.shape
    assert mask.dtype == torch.bool
    assert int(mask.sum()) == 3 * 32
    assert int(masks[f"{parts.down[2]}.weight"].sum()) == (parts.neurons - 3) * 32
    neurons = torch.randn(2, parts.neurons, dtype=torch.float64)
    right = down(neurons.masked_fill(chosen, 0.0))
    with torch.no_grad():
        down.weight[mask] = 0.0
    torch.testing.assert_close(down(neurons), right)


def test_wrong_choices():
    model = small_llama()
    with pytest.raises(UserError, match=r"no down projection 'model\.layers\.0\.mlp'"):
        neuron_mask_rows(model, {"model.layers.0.mlp": torch.ones(48, dtype=torch.bool)})
    with pytest.raises(UserError, match="48 neurons"):
        neuron_mask_rows(model, {"model.layers.0.mlp.down_proj": torch.ones(32, dtype=torch.bool)})
