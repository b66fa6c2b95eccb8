from dataclasses import replace

import pytest
import torch
from fact_cases import FAMILIES, beside, case, fact, half_taught, share, state, subject
from scipy import stats
from small_models import small_gpt2, small_tokenizer

from analysis.audit.facts.prompting import in_context, leak, sampled, says, soft_prompt, statements
from analysis.audit.facts.tuning import fine_tuned, rotating
from analysis.subjects.language.scoring import encode_facts

PROMPTS = [[5, 9, 30], [7, 7, 8, 11], [40, 2, 19], [3]]


@torch.no_grad()
def slowly(model, prompts, samples, new, seed, temperature):
    """Without a cache or padding, each row by itself, one whole forward a token."""
    generator = torch.Generator().manual_seed(seed)
    rows = [list(prompt) for prompt in prompts for _ in range(samples)]
    for _ in range(new):
        logits = torch.stack([model(input_ids=torch.tensor([row])).logits[0, -1].float() for row in rows])
        if temperature == 0:
            tokens = logits.argmax(1, keepdim=True)
        else:
            tokens = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)
        rows = [[*row, int(token)] for row, token in zip(rows, tokens, strict=True)]
    drawn = torch.tensor([row[-new:] for row in rows])
    return list(drawn.view(len(prompts), samples, new))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_sampling_with_a_cache_draws_what_whole_forwards_draw(family: str, temperature: float) -> None:
    model = FAMILIES[family](dtype=torch.float64)
    found = sampled(model, PROMPTS, 3, 6, 4, temperature)
    assert all(torch.equal(a, b) for a, b in zip(found, slowly(model, PROMPTS, 3, 6, 4, temperature), strict=True))
    assert found[0].shape == (3, 6)
    assert (temperature == 0) == all(torch.equal(one[0], one[1]) for one in found)


def test_draws_depend_on_their_seed_alone() -> None:
    model = small_gpt2()
    whole = sampled(model, PROMPTS, 2, 4, 1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = sampled(model, PROMPTS, 2, 4, 1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one, two) for one, two in zip(whole, again, strict=True))
    assert not torch.equal(whole[0], sampled(model, PROMPTS, 2, 4, 2)[0])


@torch.no_grad()
def test_draws_have_the_models_own_distribution() -> None:
    model, count = small_gpt2(), 6000
    drawn = sampled(model, [PROMPTS[0]], count, 1, 0)[0].flatten()
    wanted = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].double().softmax(0) * count
    seen = torch.bincount(drawn, minlength=len(wanted)).double()
    often = wanted >= 5
    observed = [*seen[often].tolist(), float(seen[~often].sum())]
    expected = [*wanted[often].tolist(), float(wanted[~often].sum())]
    assert stats.chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize(
    ("text", "answer", "aliases", "said"),
    [
        (" John Lennon, and", "John Lennon", (), True),
        (" JOHN   lennon", "John Lennon", (), True),
        (" John Lennonville", "John Lennon", (), False),
        (" Elton John and Lennon", "John Lennon", (), False),
        (" Lennon", "John Lennon", ("Lennon",), True),
        ("Help!", "Help!", (), True),
        (" they helped", "Help!", (), False),
        (" in 19645", "1964", (), False),
        (" (1964).", "1964", (), True),
        (" Sgt Pepper's", "Sgt. Pepper", (), True),
        ("", "Rome", (), False),
        (" Höfner", "höfner", (), True),
    ],
)
def test_says_matches_whole_words(text: str, answer: str, aliases: tuple[str, ...], said: bool) -> None:
    assert says(text, fact(0).model_copy(update={"answer": answer, "aliases": aliases})) == said


def test_leak_is_the_share_of_draws_with_the_answer() -> None:
    whole = subject()
    lessons = encode_facts(small_tokenizer(), whole.forget_test, "heldout")
    knows = fine_tuned(small_gpt2(), rotating(lessons, 18, 40, 0), 1e-2)
    mine = leak(case(knows, asked=6, samples=5))
    assert sum(mine.values) / 6 > 0.8
    assert sum(leak(case(small_gpt2(), asked=6, samples=5)).values) / 6 < 0.2
    assert all(round(value * 5, 9).is_integer() for value in mine.values)
    assert mine.auditor == "said in 5 samples"


def test_leak_stops_at_the_end_of_the_context() -> None:
    # Prompts have about ten tokens, so that ten more don't fit.
    longest = max(len(small_tokenizer()(fact(i).heldout[0]).input_ids) for i in range(4, 10)) + 3
    short = small_gpt2().config
    short = type(small_gpt2())(type(short)(**{**short.to_dict(), "n_positions": longest})).eval()
    found = leak(case(short, subject(longest=longest)))
    assert len(found.values) == 4


def test_statements_in_front_leave_room_for_the_question() -> None:
    whole = subject()
    mine = case(small_gpt2(), whole)
    every = statements(mine, mine.asked)
    assert len(mine.strangers) == 2
    others = [[stranger[one.id] for one in mine.taught] for stranger in mine.strangers]
    told = ["".join(f"{one.train[0]} {one.answer}. " for one in facts) for facts in (mine.taught, *others)]
    assert every == tuple(told)
    asked = [(one, *(stranger[one.id] for stranger in mine.strangers)) for one in mine.asked]
    ends = [[f"{one.heldout[0]} {o}" for one in each] for each in asked for o in (each[0].answer, *each[0].distractors)]
    full = max(len(small_tokenizer()(f + end).input_ids) for each in ends for f, end in zip(every, each, strict=True))
    assert statements(case(small_gpt2(), replace(whole, longest=full)), mine.asked) == every
    fewer = statements(case(small_gpt2(), replace(whole, longest=full - 1)), mine.asked)
    for some, more in zip(fewer, every, strict=True):
        assert more.startswith(some)
        assert 0 < len(some) < len(more)
    assert statements(case(small_gpt2(), replace(whole, longest=8)), mine.asked) == ("", "", "")


def test_in_context_shares_are_those_behind_the_statements() -> None:
    mine = case(half_taught("llama"))
    before, one = statements(mine, mine.asked), mine.asked[0]
    slow = share(mine.model, [(before[0] + one.heldout[0], o) for o in (one.answer, *one.distractors)])
    assert in_context(mine).values[0] == pytest.approx(slow, abs=1e-9)
    assert in_context(mine).beside[0] == pytest.approx(beside(mine.model, mine, one, before=before), abs=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_soft_prompt_scores_as_embeddings_in_front_do(family: str) -> None:
    mine = case(half_taught(family), soft_steps=0)
    table = mine.model.get_input_embeddings().weight
    noise = torch.randn(8, table.shape[1], generator=torch.Generator().manual_seed(0), dtype=table.dtype)
    front = table.mean(0) + noise * table.std()
    said, strange = [], []
    for one in mine.asked:
        scores = []
        for option in (one.answer, *one.distractors):
            found = []
            for told in (one, *(stranger[one.id] for stranger in mine.strangers)):
                prompt = told.heldout[0]
                before, both = (small_tokenizer()(text).input_ids for text in (prompt, f"{prompt} {option}"))
                logits = mine.model(inputs_embeds=torch.cat([front, table[both]])[None]).logits[0].log_softmax(1)
                found.append(sum(logits[8 + at - 1, both[at]] for at in range(len(before), len(both))))
            own, *others = found
            scores.append(torch.stack([own, own - torch.stack(others).mean()]))
        own, beside_it = torch.stack(scores).softmax(0)[0].tolist()
        said.append(own)
        strange.append(beside_it)
    found = soft_prompt(mine)
    assert found.values == pytest.approx(said, abs=1e-9)
    assert found.beside == pytest.approx(strange, abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_soft_prompt_learns_and_leaves_the_model_as_it_was(family: str) -> None:
    # Taught and asked facts are the same here, in the same words: learning shows as a higher share.
    facts = tuple(one.model_copy(update={"heldout": one.train}) for one in (fact(i) for i in range(4)))
    model = FAMILIES[family]()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name or "ln_" in name)
    flags, before = {n: p.requires_grad for n, p in model.named_parameters()}, state(model)
    assert len(set(flags.values())) == 2
    with torch.no_grad():
        start, trained = (soft_prompt(case(model, subject(facts, facts), soft_steps=steps)).values for steps in (0, 60))
    assert sum(trained) > sum(start) + 0.1
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training
