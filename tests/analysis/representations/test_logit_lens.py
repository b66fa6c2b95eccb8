"""The logit lens against hidden states that Hugging Face gives out, one position at a time."""

import pytest
import torch
from small_models import small_gpt2, small_llama

from analysis.errors import UserError
from analysis.representations.logit_lens import lens_grid, logit_lens

MODELS = [small_gpt2, small_llama]


def sequences():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 400, (4, 7), generator=generator)
    labels = torch.full((4, 7), -100)
    labels[0, 3:5] = ids[0, 4:6]
    labels[1, 1] = ids[1, 2]
    labels[3, 2:6] = ids[3, 3:7]
    ids[1, 3:] = 0
    return ids, labels


def slow_logits(model, ids):
    """Logits [layers + 1, t, k] of one sequence; the last of the hidden states is normed already."""
    norm = model.transformer.ln_f if hasattr(model, "transformer") else model.model.norm
    with torch.no_grad():
        states = model(ids[None], output_hidden_states=True).hidden_states
        streams = [norm(state) for state in states[:-1]] + [states[-1]]
        return torch.stack([model.lm_head(stream[0]) for stream in streams])


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("rows", [1, 2, 48])
def test_same_as_hidden_states_one_position_at_a_time(make, rows):
    model = make(dtype=torch.float64)
    ids, labels = sequences()
    found = logit_lens(model, ids, labels, rows)
    places = [(0, 3), (0, 4), (1, 1), (3, 2), (3, 3), (3, 4), (3, 5)]
    assert list(zip(found.rows.tolist(), found.positions.tolist(), strict=True)) == places
    assert found.log_probability.shape == found.rank.shape == found.top.shape == (4, 7)
    for i, (row, position) in enumerate(places):
        logits = slow_logits(model, ids[row])[:, position]
        label = labels[row, position]
        torch.testing.assert_close(found.log_probability[:, i], logits.log_softmax(1)[:, label])
        assert found.top[:, i].tolist() == logits.argmax(1).tolist()
        order = logits.argsort(1, descending=True).tolist()
        assert found.rank[:, i].tolist() == [1 + line.index(int(label)) for line in order]


@pytest.mark.parametrize("make", MODELS)
def test_last_layer_is_the_model_itself(make):
    model = make(dtype=torch.float64)
    ids, labels = sequences()
    found = logit_lens(model, ids, labels)
    with torch.no_grad():
        logits = model(ids).logits[found.rows, found.positions]
    own = logits.log_softmax(1).gather(1, labels[found.rows, found.positions][:, None]).squeeze(1)
    torch.testing.assert_close(found.log_probability[-1], own)
    assert torch.equal(found.top[-1], logits.argmax(1))
    assert (found.log_probability[0] - own).abs().max() > 0.1


@pytest.mark.parametrize("make", MODELS)
def test_grid(make):
    model = make(dtype=torch.float64)
    ids, _ = sequences()
    found = lens_grid(model, ids[0])
    chances = slow_logits(model, ids[0]).softmax(2)
    torch.testing.assert_close(found.probabilities, chances.amax(2))
    assert torch.equal(found.tokens, chances.argmax(2))
    assert found.tokens.shape == (4, 7)


def test_the_model_is_left_as_it_was():
    model = small_llama().train()
    logit_lens(model, *sequences())
    lens_grid(model, sequences()[0][0])
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_bad_input():
    model = small_gpt2()
    ids, labels = sequences()
    with pytest.raises(UserError, match="No token is asked for"):
        logit_lens(model, ids, torch.full_like(labels, -100))
    with pytest.raises(UserError, match="don't fit outputs"):
        logit_lens(model, ids, labels[:, :5])
    with pytest.raises(UserError, match="one prompt"):
        lens_grid(model, ids)
    with pytest.raises(UserError, match="one prompt"):
        lens_grid(model, ids[0, :0])
