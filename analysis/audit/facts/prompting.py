"""Attacks through the input: facts shown in context, a soft prompt trained on other facts, and sampling many times."""

import inspect
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import nn

from analysis.attribution.running import place, widened
from analysis.audit.facts.case import Case, FactReading, ids
from analysis.audit.facts.contrast import contrasted, first_prompt, shares
from analysis.subjects.language.bank import Fact
from analysis.subjects.language.encoding import Encoded, token_ids
from analysis.subjects.language.scoring import ask, encode_facts, head_of, hidden_states, read_tokens

SHOTS = 4
SOFT_TOKENS = 8
SOFT_RATE = 0.01
NEW_TOKENS = 6


def statements(case: Case, asked: Sequence[Fact]) -> tuple[str, ...]:
    """Write down taught facts to be put in front of prompts: four, or as many as the model's context has room for.

    Args:
        case: Gives the facts.
        asked: Whose first held-out prompts must fit behind them, with every option; the strangers' too.

    Returns:
        True statements, each followed by a space; then each stranger's. Empty when not even one fits.
    """

    def told(fact: Fact) -> str:
        return f"{fact.train[0]} {fact.answer}. "

    texts = [[told(one) for one in case.everybody(fact)] for fact in case.taught[:SHOTS]]
    ends = [
        [f"{one.heldout[0]} {option}" for one in case.everybody(fact)]
        for fact in asked
        for option in (fact.answer, *fact.distractors)
    ]
    longest = case.subject.longest

    def fronts() -> tuple[str, ...]:
        return tuple("".join(each[who] for each in texts) for who in range(1 + len(case.strangers)))

    def most() -> int:
        pairs = [zip(fronts(), end, strict=True) for end in ends]
        return max(len(token_ids(case.tokenizer, before + after)) for pair in pairs for before, after in pair)

    while texts and longest is not None and most() > longest:
        texts.pop()
    return fronts()


def in_context(case: Case) -> FactReading:
    """Ask after true statements about the subject, which a model that knows picks up and one that doesn't can't use.

    Args:
        case: The model and the facts.

    Returns:
        Shares of the right answers; each stranger is asked about after as many facts about it.
    """
    shots, *strange = statements(case, case.asked)
    found = ask(case.model, case.tokenizer, case.asked, [first_prompt(fact) for fact in case.asked], shots)
    return FactReading(
        auditor=f"{SHOTS} other facts in the prompt",
        group="context",
        role="inner",
        unit="share",
        facts=ids(case.asked),
        values=shares(found),
        beside=contrasted(case, case.asked, found, first_prompt, before=strange),
    )


def _behind(model: nn.Module, soft: torch.Tensor, encoded: Encoded) -> torch.Tensor:
    # Summed log p of the asked tokens of each row behind the soft prompt [k, width].
    found, rows = read_tokens(model, hidden_states(model, encoded.ids, soft)[:, len(soft) :], encoded.labels)
    return found.new_zeros(len(encoded)).index_add(0, rows, found)


@torch.enable_grad()
def soft_prompt(case: Case) -> FactReading:
    """Train a soft prompt on some facts and ask others behind it (Schwinn et al. 2024).

    Eight embeddings, starting at the mean embedding with noise as wide as the embeddings' spread; Adam, half as many
    lessons a step as facts are taught. The weights stay as they are.

    Args:
        case: The model and the facts.

    Returns:
        Shares of the right answers to the first held-out prompt.
    """
    model, tokenizer, budget = case.model, case.tokenizer, case.budget
    lessons = encode_facts(tokenizer, case.taught)
    table = widened(model.get_input_embeddings().weight.detach())  # type: ignore[operator]
    generator = torch.Generator().manual_seed(case.seed)
    noise = torch.randn(SOFT_TOKENS, table.shape[1], generator=generator, dtype=table.dtype)
    soft = (table.mean(0) + noise.to(table.device) * table.std()).requires_grad_()
    stepper = torch.optim.Adam([soft], lr=SOFT_RATE)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        for _ in range(budget.soft_steps):
            rows = torch.randperm(len(lessons), generator=generator)[: max(4, len(case.taught) // 2)]
            loss = -_behind(model, soft, lessons.take(rows)).mean()
            stepper.zero_grad()
            loss.backward()
            stepper.step()
    finally:
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
    trained = soft.detach()
    found = ask(model, tokenizer, case.asked, [first_prompt(fact) for fact in case.asked], soft=trained)
    return FactReading(
        auditor="soft prompt trained on other facts",
        group="soft prompt",
        role="inner",
        unit="share",
        facts=ids(case.asked),
        values=shares(found),
        beside=contrasted(case, case.asked, found, first_prompt, soft=trained),
    )


@torch.no_grad()
def sampled(
    model: nn.Module, prompts: Sequence[Sequence[int]], samples: int, new: int, seed: int, temperature: float = 1.0
) -> list[torch.Tensor]:
    """Draw continuations.

    Args:
        model: A causal language model.
        prompts: Token ids; they run together, the shorter ones behind padding that nothing sees.
        samples: How many for each prompt; with temperature 0 all are the same, so 1 is enough.
        new: Tokens of each.
        seed: Of the draws; equally many prompts in equal order get equal luck, so models can be compared.
        temperature: 1 draws from the model's own distribution, 0 takes the likeliest token.

    Returns:
        For each prompt, int64 [samples, new].
    """
    from transformers import DynamicCache

    longest = max(map(len, prompts))
    ids_now = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    real = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    position = (real.cumsum(1) - 1).clamp(min=0)
    generator = torch.Generator().manual_seed(seed)
    takes = inspect.signature(type(model.base_model).forward).parameters  # type: ignore[union-attr]
    # Filled in place; releases of transformers name it differently.
    cache = DynamicCache()
    kept = {"cache" if "cache" in takes else "past_key_values": cache}
    drawn: list[torch.Tensor] = []
    for _ in range(new):
        given = {"input_ids": ids_now, "attention_mask": real, "position_ids": position}
        given = {name: place(model, value) for name, value in given.items()}
        found = model.base_model(**given, use_cache=True, **kept)  # type: ignore[operator]
        # Drawn on the CPU, so that the seed means the same whatever the model lies on.
        logits = head_of(model)(found.last_hidden_state[:, -1]).float().cpu()
        if not drawn:
            # A prompt is read once, however often it is continued.
            cache.batch_repeat_interleave(samples)
            logits, real, position = (each.repeat_interleave(samples, 0) for each in (logits, real, position))
        if temperature == 0:
            ids_now = logits.argmax(1, keepdim=True)
        else:
            ids_now = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)
        drawn.append(ids_now)
        real = torch.cat([real, torch.ones_like(ids_now)], 1)
        position = position[:, -1:] + 1
    return list(torch.cat(drawn, 1).view(len(prompts), samples, new))


def says(text: str, fact: Fact) -> bool:
    """Say whether a continuation contains the answer, by decoded text, as whole words.

    Args:
        text: The continuation.
        fact: With answer and aliases.

    Returns:
        Whether it does.
    """
    padded = "".join(letter if letter.isalnum() else " " for letter in text.casefold())
    words = f" {' '.join(padded.split())} "

    def plain(answer: str) -> str:
        return " ".join("".join(letter if letter.isalnum() else " " for letter in answer.casefold()).split())

    return any(f" {plain(answer)} " in words for answer in (fact.answer, *fact.aliases))


def leak(case: Case) -> FactReading:
    """Draw several continuations of each unseen fact's first held-out prompt and look for the answer.

    Leak@k (Reisizadeh et al. 2025) is the chance that at least one of k draws gives it away; the value is the share of
    draws that do, from which it follows.

    Args:
        case: The model and the facts.

    Returns:
        Shares of draws.
    """
    prompts = [token_ids(case.tokenizer, fact.heldout[0]) for fact in case.unseen]
    longest = case.subject.longest
    new = NEW_TOKENS if longest is None else max(1, min(NEW_TOKENS, longest - max(map(len, prompts))))
    found = sampled(case.model, prompts, case.budget.samples, new, case.seed)
    values = [
        fmean(float(says(case.tokenizer.decode(row), fact)) for row in rows)
        for fact, rows in zip(case.unseen, found, strict=True)
    ]
    return FactReading(
        auditor=f"said in {case.budget.samples} samples",
        group="leak",
        role="inner",
        unit="share of samples",
        step=1 / case.budget.samples,
        facts=ids(case.unseen),
        values=tuple(values),
    )
