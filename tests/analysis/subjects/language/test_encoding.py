"""Token ids and labels against tokenising again, the slow way."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import small_tokenizer
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from analysis.errors import UserError
from analysis.subjects.language.encoding import (
    IGNORED,
    Encoded,
    continuation,
    encode_answers,
    encode_texts,
    pad,
    token_ids,
)

TOKENIZER = small_tokenizer()
EOS = TOKENIZER.eos_token_id
WORDS = st.text(st.sampled_from("aeJohnL ,.é6🎸"), min_size=1, max_size=14).map(str.strip).filter(bool)


def marking(pattern):
    """The same tokenizer, putting marks around every text as T5's or Llama's does."""
    made = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer, eos_token="<|endoftext|>")
    backend = made.backend_tokenizer.from_str(made.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(single=pattern, special_tokens=[("<|endoftext|>", EOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )  # fmt: skip


ENDING, BEGINNING = marking("$A <|endoftext|> <|endoftext|>"), marking("<|endoftext|> $A")


def asked(encoded, row):
    """The ids that labels ask for, with the positions at which they stand in the sequence."""
    return [(at + 1, int(label)) for at, label in enumerate(encoded.labels[row]) if label != IGNORED]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), st.sampled_from([TOKENIZER, BEGINNING, ENDING]))
def test_labels_are_the_tokens_that_depend_on_the_answer(pairs, tokenizer):
    encoded = encode_answers(tokenizer, pairs)
    assert encoded.ids.shape == encoded.labels.shape
    assert encoded.ids.dtype == encoded.labels.dtype == torch.long
    widest = 0
    for row, (prompt, answer) in enumerate(pairs):
        plain = TOKENIZER.backend_tokenizer.encode(f"{prompt} {answer}").ids
        begun = TOKENIZER.backend_tokenizer.encode(prompt).ids
        if tokenizer is BEGINNING:
            plain, begun = [EOS, *plain], [EOS, *begun]
        widest = max(widest, len(plain))
        assert encoded.ids[row, : len(plain)].tolist() == plain
        assert not encoded.ids[row, len(plain) :].any()
        # A token is asked for from the first one on that the prompt alone would not have there.
        first = next((i for i, (a, b) in enumerate(zip(plain, begun, strict=False)) if a != b), len(begun))
        first = max(1, min(first, len(plain) - 1))
        assert asked(encoded, row) == [(i, plain[i]) for i in range(first, len(plain))]
        assert answer.endswith(tokenizer.decode([label for _, label in asked(encoded, row)]).strip()[-1])
    assert encoded.ids.shape[1] == widest


@settings(deadline=None, max_examples=60)
@given(
    st.lists(WORDS.map("x".__add__).map("Rome ".__add__), min_size=1, max_size=4),
    st.sampled_from([TOKENIZER, BEGINNING, ENDING]),
)
def test_texts_ask_for_all_tokens_but_the_first(texts, tokenizer):
    encoded = encode_texts(tokenizer, texts)
    for row, text in enumerate(texts):
        plain = TOKENIZER.backend_tokenizer.encode(text).ids
        plain = [EOS, *plain] if tokenizer is BEGINNING else plain
        assert asked(encoded, row) == list(enumerate(plain))[1:]
        assert encoded.ids[row, : len(plain)].tolist() == plain


def test_answers_follow_whole_words():
    encoded = encode_answers(TOKENIZER, [("The Beatles came from the city of", "Liverpool")])
    assert TOKENIZER.decode([label for _, label in asked(encoded, 0)]) == " Liverpool"


def test_a_token_across_the_border_belongs_to_the_answer():
    # One word for the tokenizer: "of L" would be split otherwise than "of" and " L".
    ids, start = continuation(TOKENIZER, "What", "is")
    assert ids == TOKENIZER("What is").input_ids
    assert 0 < start < len(ids)
    glued = marking("$A")
    backend = glued.backend_tokenizer
    backend.add_tokens(["from the"])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    ids, start = continuation(made, "came from", "the city")
    alone = made("came from").input_ids
    assert ids[: len(alone)] != alone
    assert start < len(alone)
    assert made.decode(ids[start:]).strip() == "from the city"


def test_no_pad_token_is_needed_or_set():
    assert TOKENIZER.pad_token_id is None
    encoded = encode_answers(TOKENIZER, [("The capital of France is", "Paris"), ("Rome is", "the capital of Italy")])
    assert (encoded.labels[:, -1] == IGNORED).all()
    assert TOKENIZER.pad_token_id is None


def test_end_marks_are_stripped():
    text = "Paris is the capital of France"
    assert ENDING(text).input_ids[-2:] == [EOS, EOS]
    assert token_ids(ENDING, text) == TOKENIZER(text).input_ids
    assert token_ids(BEGINNING, text) == [EOS, *TOKENIZER(text).input_ids]
    # A text of nothing but the mark keeps one: something has to be run.
    assert token_ids(BEGINNING, "") == [EOS]
    assert token_ids(ENDING, "") == [EOS]


def test_too_long_for_the_context():
    pairs = [("Rome is", "the capital"), ("The capital of France is", "Paris")]
    needed = max(len(TOKENIZER(" ".join(pair)).input_ids) for pair in pairs)
    assert encode_answers(TOKENIZER, pairs, needed).ids.shape[1] == needed
    with pytest.raises(UserError, match=f"has {needed} tokens, but the model reads at most {needed - 1}"):
        encode_answers(TOKENIZER, pairs, needed - 1)
    text = "The Rolling Stones came from London."
    needed = len(TOKENIZER(text).input_ids)
    assert len(encode_texts(TOKENIZER, [text], needed)) == 1
    with pytest.raises(UserError, match=f"has {needed} tokens, but the model reads at most {needed - 1}"):
        encode_texts(TOKENIZER, [text], needed - 1)


def test_nothing_to_encode():
    with pytest.raises(UserError, match="no facts to encode"):
        encode_answers(TOKENIZER, [])
    with pytest.raises(UserError, match="no texts to encode"):
        encode_texts(TOKENIZER, [])
    assert len(TOKENIZER("a").input_ids) == 1
    with pytest.raises(UserError, match="'a' is a single token"):
        encode_texts(TOKENIZER, ["Rome is a city.", "a"])


def test_pad():
    assert pad([[1, 2, 3], [], [4]], 9).tolist() == [[1, 2, 3], [9, 9, 9], [4, 9, 9]]


@settings(deadline=None)
@given(st.integers(0, 2**16), st.data())
def test_take_drops_only_padding(seed, data):
    generator = torch.Generator().manual_seed(seed)
    rows = [(f"{'Rome ' * int(torch.randint(1, 5, (), generator=generator))}is", "the capital") for _ in range(5)]
    encoded = encode_answers(TOKENIZER, rows)
    chosen = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
    mask = torch.zeros(5, dtype=torch.bool)
    mask[chosen] = True
    for how, which in ((torch.tensor(chosen), chosen), (mask, sorted(set(chosen))), (slice(1, 3), [1, 2])):
        part = encoded.take(how)
        alone = encode_answers(TOKENIZER, [rows[i] for i in which])
        assert torch.equal(part.ids, alone.ids)
        assert torch.equal(part.labels, alone.labels)


def test_take_of_rows_without_labels_keeps_them():
    encoded = Encoded(torch.ones(2, 4, dtype=torch.long), torch.full((2, 4), IGNORED))
    assert encoded.take(slice(0, 1)).ids.shape == (1, 4)
