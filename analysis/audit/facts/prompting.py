"""Attacks through the input: facts shown in context, a soft prompt trained on other facts, and sampling many times."""

from collections.abc import Sequence
from statistics import fmean

import torch
from torch import nn

from analysis.audit.facts.case import Case, FactReading, ids
from analysis.subjects.language.bank import Fact
from analysis.subjects.language.encoding import Encoded, encode_answers, token_ids
from analysis.subjects.language.scoring import ask, encode_facts, head_of, read_tokens

SHOTS = 4
SOFT_TOKENS = 8
SOFT_RATE = 0.01
NEW_TOKENS = 6


def statements(case: Case, asked: Sequence[Fact]) -> str:
    """Write down taught facts to be put in front of prompts: four, or as many as the model's context has room for.

    Args:
        case: Gives the facts.
        asked: Whose first two held-out prompts must fit behind them, with every option.

    Returns:
        True statements, each followed by a space; empty when not even one fits.
    """
    texts = [f"{fact.train[0]} {fact.answer}. " for fact in case.taught[:SHOTS]]
    ends = [
        f"{prompt} {option}"
        for fact in asked
        for prompt in fact.heldout[:1]
        for option in (fact.answer, *fact.distractors)
    ]
    longest = case.subject.longest
    while texts and longest is not None:
        before = "".join(texts)
        if max(len(token_ids(case.tokenizer, before + end)) for end in ends) <= longest:
            break
        texts.pop()
    return "".join(texts)


def in_context(case: Case) -> FactReading:
    """Ask after true statements about the subject, which a model that knows picks up and one that doesn't can't use.

    Args:
        case: The model and the facts.

    Returns:
        Shares of the right answers.
    """
    shots = statements(case, case.asked)
    found = ask(case.model, case.tokenizer, case.asked, [fact.heldout[:1] for fact in case.asked], before=shots)
    return FactReading(
        auditor=f"{SHOTS} other facts in the prompt",
        group="context",
        role="inner",
        unit="share",
        facts=ids(case.asked),
        values=tuple(fmean(one.share for one in mine) for mine in found),
    )


def _behind(model: nn.Module, soft: torch.Tensor, encoded: Encoded) -> torch.Tensor:
    # Summed log p of the asked tokens of each row behind the soft prompt [k, width].
    embedded = model.get_input_embeddings()(encoded.ids)  # type: ignore[operator]
    joined = torch.cat([soft.expand(len(encoded), -1, -1), embedded], 1)
    hidden = model.base_model(inputs_embeds=joined, use_cache=False).last_hidden_state[:, len(soft) :]  # type: ignore[operator]
    found, rows = read_tokens(model, hidden, encoded.labels)
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
    table = model.get_input_embeddings().weight.detach()  # type: ignore[operator]
    generator = torch.Generator().manual_seed(case.seed)
    noise = torch.randn(SOFT_TOKENS, table.shape[1], generator=generator, dtype=table.dtype)
    soft = (table.mean(0) + noise * table.std()).requires_grad_()
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
    values = []
    with torch.no_grad():
        for fact in case.asked:
            # One row per option: a soft prompt shifts positions, which packed options don't provide for.
            apart = encode_answers(
                tokenizer, [(fact.heldout[0], option) for option in (fact.answer, *fact.distractors)]
            )
            values.append(float(_behind(model, soft.detach(), apart).double().softmax(0)[0]))
    return FactReading(
        auditor="soft prompt trained on other facts",
        group="soft prompt",
        role="inner",
        unit="share",
        facts=ids(case.asked),
        values=tuple(values),
    )


@torch.no_grad()
def sampled(
    model: nn.Module, prompts: Sequence[Sequence[int]], samples: int, new: int, seed: int, temperature: float = 1.0
) -> list[torch.Tensor]:
    """Draw continuations.

    Args:
        model: A causal language model.
        prompts: Token ids; those of equal length run together.
        samples: How many for each prompt; with temperature 0 all are the same, so 1 is enough.
        new: Tokens of each.
        seed: Of the draws; equal prompts in equal order get equal luck, so models can be compared. Continuations don't
            depend on prompts of other lengths.
        temperature: 1 draws from the model's own distribution, 0 takes the likeliest token.

    Returns:
        For each prompt, int64 [samples, new].
    """
    out: list[torch.Tensor] = [torch.empty(0)] * len(prompts)
    for length in sorted({len(prompt) for prompt in prompts}):
        chosen = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        generator = torch.Generator().manual_seed(seed)
        ids_now = torch.tensor([prompts[i] for i in chosen]).repeat_interleave(samples, 0)
        cache, drawn = None, []
        for _ in range(new):
            found = model.base_model(input_ids=ids_now, past_key_values=cache, use_cache=True)  # type: ignore[operator]
            cache = found.past_key_values
            logits = head_of(model)(found.last_hidden_state[:, -1]).float()
            if temperature == 0:
                ids_now = logits.argmax(1, keepdim=True)
            else:
                ids_now = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)
            drawn.append(ids_now)
        together = torch.cat(drawn, 1).view(len(chosen), samples, new)
        for i, mine in zip(chosen, together, strict=True):
            out[i] = mine
    return out


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
        facts=ids(case.unseen),
        values=tuple(values),
    )
