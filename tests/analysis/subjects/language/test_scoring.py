"""Scores of answers against running every prompt with every answer by itself, in float64."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import small_gpt2, small_llama, small_tokenizer
from transformers import PreTrainedTokenizerFast

from analysis.errors import UserError
from analysis.subjects.language.bank import Fact
from analysis.subjects.language.encoding import IGNORED, Encoded, continuation, encode_answers, encode_texts, pad
from analysis.subjects.language.scoring import (
    Options,
    answer_log_probabilities,
    ask,
    encode_facts,
    known_facts,
    mean_loss,
    pack,
    read_options,
    row_losses,
    token_log_probabilities,
)

TOKENIZER = small_tokenizer()
MODELS = {"gpt2": small_gpt2(0, torch.float64), "llama": small_llama(0, torch.float64)}
FAMILIES = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
for _model in MODELS.values():
    _model.requires_grad_(False)
PAIRS = [
    ("The Beatles came from", "Liverpool"),
    ("The capital of France is", "Paris"),
    ("Rome", "is the capital of Italy, and Paris of France"),
    ("In 1969 the album Abbey Road", "came out"),
]
ANSWERS = ("Liverpool", "Paris", "the city of London", "Rome", "a")


def near(model):
    """How exactly two ways of computing must agree: Llama's norms round to float32 whatever the weights are."""
    return 1e-9 if model is MODELS["gpt2"] else 3e-6


def slow(model, prompt, answer):
    """log p of an answer, token by token, from one unpadded sequence."""
    ids, start = continuation(TOKENIZER, prompt, answer)
    with torch.no_grad():
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(log_p[at - 1, ids[at]]) for at in range(max(1, start), len(ids)))


def fact(answer="Paris", **changes):
    plain = {
        "kind": "fact", "id": answer, "relation": "any", "subject": "capital", "answer": answer,
        "train": ("The capital of France is", "The name of the capital is"),
        "heldout": ("France has the capital", "Italy: capital", "A capital:"), "question": "What?",
        "distractors": ("Liverpool", "the city of London", "Rome", "drums"), "split": "edit",
    }  # fmt: skip
    return Fact(**(plain | changes))


# --- one row for each answer


@FAMILIES
def test_answers_are_scored_whole(model):
    found = answer_log_probabilities(model, encode_answers(TOKENIZER, PAIRS))
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([slow(model, *pair) for pair in PAIRS], abs=near(model))


@FAMILIES
def test_tokens_and_means_add_up(model):
    encoded = encode_answers(TOKENIZER, PAIRS)
    _, rows = token_log_probabilities(model, encoded)
    whole = [slow(model, *pair) for pair in PAIRS]
    counts = (encoded.labels != IGNORED).sum(1).tolist()
    assert rows.tolist() == [row for row, count in enumerate(counts) for _ in range(count)]
    assert mean_loss(model, encoded).item() == pytest.approx(-sum(whole) / sum(counts), abs=near(model))
    for rows_at_once in (1, 3, 48):
        losses = row_losses(model, encoded, rows_at_once)
        assert losses.tolist() == pytest.approx([-w / c for w, c in zip(whole, counts, strict=True)], abs=near(model))


@FAMILIES
def test_texts_have_the_loss_that_transformers_computes(model):
    # It computes losses in float32.
    texts = ["Rome is the capital of Italy.", "What is the name of the river in Paris, France?"]
    expected = []
    for text in texts:
        ids = torch.tensor([TOKENIZER(text).input_ids])
        with torch.no_grad():
            expected.append(float(model(ids, labels=ids).loss))
    assert row_losses(model, encode_texts(TOKENIZER, texts)).tolist() == pytest.approx(expected, abs=2e-6)


@FAMILIES
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 9), st.integers(0, 399))
def test_padding_changes_nothing(model, extra, filler):
    encoded = encode_answers(TOKENIZER, PAIRS)
    used = pad([[1] * len(TOKENIZER(" ".join(pair)).input_ids) for pair in PAIRS], 0).bool()
    ids = torch.cat([encoded.ids.masked_fill(~used, filler), torch.full((len(PAIRS), extra), filler)], 1)
    labels = torch.cat([encoded.labels, torch.full((len(PAIRS), extra), IGNORED)], 1)
    wide = Encoded(ids, labels)
    for score in (answer_log_probabilities, row_losses, mean_loss):
        torch.testing.assert_close(score(model, wide), score(model, encoded), rtol=0, atol=near(model))


@FAMILIES
def test_scores_are_differentiable(model):
    # Wide steps for Llama, whose norms round to float32.
    step, tolerance = (1e-6, 1e-6) if model is MODELS["gpt2"] else (3e-3, 1e-3)
    model = copy.deepcopy(model).requires_grad_(True)
    encoded = encode_answers(TOKENIZER, PAIRS)
    p = model.get_input_embeddings().weight
    (grad,) = torch.autograd.grad(mean_loss(model, encoded), [p])
    token = int(encoded.ids[0, 0])
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            p[token, 3] += sign * step
            ends.append(float(mean_loss(model, encoded)))
            p[token, 3] -= sign * step
    assert float(grad[token, 3]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=tolerance, abs=1e-8)


# --- packed answers


@FAMILIES
@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([prompt for prompt, _ in PAIRS]), st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=5)
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 4),
)
def test_packed_options_equal_each_alone(model, asked, rows):
    packed = [pack(TOKENIZER, prompt, answers) for prompt, answers in asked]
    with torch.no_grad():
        found = read_options(model, packed, rows=rows)
    for (prompt, answers), (values, _) in zip(asked, found, strict=True):
        assert values.tolist() == pytest.approx([slow(model, prompt, answer) for answer in answers], abs=near(model))


@FAMILIES
def test_options_do_not_see_each_other(model):
    one, two = (
        read_options(model, [pack(TOKENIZER, "The capital of France is", ["Paris", *others])])[0][0]
        for others in (["Rome"], ["Liverpool", "the city of London", "drums"])
    )
    assert float(one[0]) == pytest.approx(float(two[0]), abs=near(model))


def test_pack_keeps_all_tokens():
    packed = pack(TOKENIZER, "The capital is", ["Paris", "the city of London"])
    for answer, tail in zip(("Paris", "the city of London"), packed.tails, strict=True):
        assert [*packed.prompt, *tail] == TOKENIZER(f"The capital is {answer}").input_ids
    assert len(packed.ids) == len(packed.prompt) + sum(len(tail) - 1 for tail in packed.tails)


def test_pack_where_one_answer_changes_the_prompts_tokens():
    # "from the" is one token here, so one answer takes the prompt's last word with it; the others must follow.
    backend = copy.deepcopy(TOKENIZER.backend_tokenizer)
    backend.add_tokens(["from the"])
    glued = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    for answers in (["Rome", "the city"], ["the city", "Rome"]):
        packed = pack(glued, "It came from", answers)
        for answer, tail in zip(answers, packed.tails, strict=True):
            assert [*packed.prompt, *tail] == glued(f"It came from {answer}").input_ids


@FAMILIES
def test_greedy_is_what_greedy_decoding_gives_at_each_token_of_the_first_option(model):
    seen = set()
    for prompt, _ in PAIRS:
        ids = TOKENIZER(prompt).input_ids
        made = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=6,
            min_new_tokens=6, do_sample=False, pad_token_id=0,
        )[0, len(ids) :].tolist()  # fmt: skip
        for spoil in (None, 0, 3):
            # A wrong token is no hit; what follows it is judged as if it had been given.
            tail = [(token + (place == spoil)) % 300 for place, token in enumerate(made)]
            _, greedy = read_options(model, [Options(tuple(ids), (tuple(tail), (5, 6)))])[0]
            for at, hit in enumerate(greedy.tolist()):
                with torch.no_grad():
                    logits = model(torch.tensor([[*ids, *tail[:at]]])).logits[0, -1]
                assert hit == (int(logits.argmax()) == tail[at])
                seen.add(hit)
    assert seen == {True, False}


@FAMILIES
@torch.no_grad()
def test_soft_embeddings_stand_in_front_of_every_option(model):
    width = model.get_input_embeddings().weight.shape[1]
    soft = torch.randn(3, width, generator=torch.Generator().manual_seed(1), dtype=model.dtype)
    packed = [pack(TOKENIZER, prompt, ANSWERS[:3]) for prompt, _ in PAIRS]
    for one, (found, _) in zip(packed, read_options(model, packed, soft), strict=True):
        for tail, value in zip(one.tails, found.tolist(), strict=True):
            ids = torch.tensor([*one.prompt, *tail])
            front = torch.cat([soft, model.get_input_embeddings()(ids)])[None]
            logits = model(inputs_embeds=front).logits[0].log_softmax(1)
            at = range(len(one.prompt), len(ids))
            assert value == pytest.approx(sum(float(logits[3 + i - 1, ids[i]]) for i in at), abs=near(model))


# --- asking


@FAMILIES
def test_ask_ranks_the_answer_among_its_distractors(model):
    facts = [fact(), fact("Rome", distractors=("Paris", "a", "drums"))]
    prompts = [fact().heldout, ("The capital is",)]
    found = ask(model, TOKENIZER, facts, prompts, before="Rome is a city. ")
    assert [len(mine) for mine in found] == [3, 1]
    for one, mine, answers in zip(facts, prompts, found, strict=True):
        for prompt, answered in zip(mine, answers, strict=True):
            options = (one.answer, *one.distractors)
            values = [slow(model, "Rome is a city. " + prompt, option) for option in options]
            exact = torch.tensor(values, dtype=torch.float64)
            assert answered.options == pytest.approx(values, abs=near(model))
            assert answered.margin == pytest.approx(values[0] - max(values[1:]), abs=near(model))
            assert answered.rank == sorted(values, reverse=True).index(values[0]) + 1
            assert answered.share == pytest.approx(float((exact - exact.logsumexp(0)).exp()[0]), abs=near(model))
            assert (answered.margin > 0) == (answered.rank == 1)


def favouring(model, words):
    """A copy that was trained to say some words."""
    model = copy.deepcopy(model).requires_grad_(True)
    encoded = encode_answers(TOKENIZER, words)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        mean_loss(model, encoded).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


@FAMILIES
def test_known_is_what_most_of_three_prompts_get_right(model):
    one = fact()
    taught = [(prompt, one.answer) for prompt in (one.train[0], one.heldout[0])]
    model = favouring(model, [*taught, (one.train[1], "Rome")])
    wrong = fact("Rome", distractors=("Paris", "Liverpool", "drums"))
    known, answers = known_facts(model, TOKENIZER, [one, wrong])
    assert [[answer.rank == 1 for answer in mine] for mine in answers] == [[True, False, True], [False, True, False]]
    assert known == [True, False]


@FAMILIES
def test_longer_than_the_context_is_refused(model):
    long = "The capital of " * 60 + "France is"
    needed = len(TOKENIZER(long).input_ids)
    assert needed > 128
    one = fact()
    with pytest.raises(UserError, match="tokens, but the model reads at most 128"):
        ask(model, TOKENIZER, [one], [[long]])
    with pytest.raises(UserError, match="tokens, but the model reads at most 128"):
        ask(model, TOKENIZER, [one], [["The capital is"]], before=long + " ")
    # Many options side by side are no long sequence: each has its place after the prompt.
    many = tuple(f"the city of London and {number}" for number in range(30))
    crowded = pack(TOKENIZER, one.train[0], ["Paris", *many])
    assert len(crowded.ids) > 128
    found = ask(model, TOKENIZER, [fact(distractors=many)], [[one.train[0]]])[0][0]
    assert found.options[0] == pytest.approx(slow(model, one.train[0], "Paris"), abs=near(model))


def test_encode_facts():
    one, two = fact(), fact("Rome", train=("capital:",), distractors=("a", "b", "c"))
    for which in ("train", "heldout"):
        mine, theirs = (one.train, two.train) if which == "train" else (one.heldout, two.heldout)
        expected = encode_answers(TOKENIZER, [*((p, "Paris") for p in mine), *((p, "Rome") for p in theirs)])
        found = encode_facts(TOKENIZER, [one, two], which)
        assert torch.equal(found.ids, expected.ids)
        assert torch.equal(found.labels, expected.labels)
    with pytest.raises(UserError, match="reads at most 4"):
        encode_facts(TOKENIZER, [one], "train", 4)
