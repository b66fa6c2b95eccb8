"""Activation patching of SmolLM2, exact and to first order, against transformer-lens' own helpers for both.

Both sides start from the tokens: transformer-lens wraps its copy of the model once, outside the timing, and is run
without gradients wherever none are needed, as its documentation does.
"""

import contextlib
import copy
import io
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from analysis.attribution.language_patching import (
    Pair,
    PatchingMap,
    activation_patching_many,
    attribution_patching_many,
    equal_length_pairs,
)
from analysis.attribution.resuming import Site
from analysis.subjects.language.encoding import token_ids
from analysis.subjects.language.scoring import pack
from tests.benchmarks.subjects import beatles, close, smollm2
from tests.benchmarks.timing import Row, row_of, side_by_side

LENGTH = 8
"""Tokens of the prompts that are patched exactly."""
FACTS = 4
PAIRS = 16
LEAST_GAIN = 1.0
"""In nats; between prompts that say almost the same there is nothing to patch."""
SAME = 1e-4


def pairs() -> list[Pair]:
    """Swap the subject of Beatles facts for another name of its kind, where that has as many tokens.

    Returns:
        Pairs after which the model says different things.
    """
    language, subject = smollm2(), beatles()
    kinds = {name: kind for kind, mine in subject.about.names.items() for name in mine}
    others: dict[str, list[str]] = {}
    for fact in subject.forget:
        if fact.answer in kinds:
            others.setdefault(kinds[fact.answer], []).extend(fact.distractors)
    facts = [one for one in subject.forget if one.subject in kinds and one.subject in one.train[0]]
    clean = [token_ids(language.tokenizer, one.train[0]) for one in facts]
    names = [dict.fromkeys(others.get(kinds[one.subject], [])) for one in facts]
    variants = [
        [token_ids(language.tokenizer, one.train[0].replace(one.subject, name, 1)) for name in mine]
        for one, mine in zip(facts, names, strict=True)
    ]
    found: dict[int, Pair] = {}
    for number, variant in equal_length_pairs(clean, variants):
        if number in found:
            continue
        answer = pack(language.tokenizer, facts[number].train[0], [facts[number].answer]).tails[0][0]
        both = torch.tensor([clean[number], variants[number][variant]])
        with torch.no_grad():
            logits = language.model(input_ids=both, use_cache=False).logits[:, -1]
        wrong = int(logits[1].argmax())
        lead = logits[:, answer] - logits[:, wrong]
        if float(lead[0] - lead[1]) > LEAST_GAIN:
            found[number] = Pair(both[0], both[1], answer, wrong)
    return list(found.values())


def _bridge() -> Any:
    # The bridge replaces modules of what it wraps, so it gets a copy. Gradients start at the embedding: no weight's are
    # computed.
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    wrapped = copy.deepcopy(smollm2().model).eval()
    wrapped.get_input_embeddings().weight.requires_grad_(True)
    return build_bridge_from_module(wrapped, type(wrapped).__name__, hf_config=wrapped.config, tokenizer=None)


def _maps(bridge: Any, some: Sequence[Pair], helpers: Sequence[Callable[..., Any]]) -> list[torch.Tensor]:
    # What transformer-lens' helpers give for equally long pairs, each [layers, places, pairs]; 1 is the whole effect.
    clean, corrupt = (torch.stack(prompts) for prompts in zip(*((one.clean, one.corrupt) for one in some), strict=True))
    answer, wrong = torch.tensor([(one.answer, one.wrong) for one in some]).unbind(1)
    rows = torch.arange(len(some))

    def lead(logits: torch.Tensor) -> torch.Tensor:
        return logits[rows, -1, answer] - logits[rows, -1, wrong]

    # Their progress bars would fill the page.
    with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        logits, cache = bridge.run_with_cache(clean)
        low = lead(bridge(corrupt))
        gain = lead(logits) - low

        def restored(patched: torch.Tensor) -> torch.Tensor:
            return (lead(patched) - low) / gain

        return [helper(bridge, corrupt, cache, restored, reduce="none").values for helper in helpers]


def _once(
    what: str, against: str, ours: Callable[[], list[torch.Tensor]], peer: Callable[[], list[torch.Tensor]], note: str
) -> Row:
    # The peer takes the better part of a minute, so that the results of the one timed call are compared, too.
    ours()
    begun = time.perf_counter()
    theirs = peer()
    between = time.perf_counter()
    mine = ours()
    ended = time.perf_counter()
    equal = close(torch.cat([one.flatten() for one in mine]), torch.cat([one.flatten() for one in theirs]), SAME)
    return row_of(what, against, [ended - between], [between - begun], equal, reach=12, note=note)


def _exact(bridge: Any, known: Sequence[Pair]) -> Iterator[Row]:
    from transformer_lens import patching

    model, tokenizer = smollm2().model, smollm2().tokenizer
    some = [one for one in known if len(one.clean) == LENGTH][:FACTS]
    starts = [int((one.clean != one.corrupt).int().argmax()) for one in some]
    first = some[starts.index(min(starts))]
    helpers = {
        "resid": patching.get_act_patch_resid_pre,
        "attn": patching.get_act_patch_attn_out,
        "mlp": patching.get_act_patch_mlp_out,
        "head": patching.get_act_patch_attn_head_out_all_pos,
    }

    def row(what: str, against: str, pairs: Sequence[Pair], sites: Sequence[Site], note: str = "") -> Row:
        def ours() -> list[torch.Tensor]:
            found = activation_patching_many(model, pairs, sites)
            return [torch.stack([one.values[site] for one in found], 2) for site in sites]

        def theirs() -> list[torch.Tensor]:
            return _maps(bridge, pairs, [helpers[site] for site in sites])

        return _once(what, f"transformer-lens {against}", ours, theirs, note)

    prompt = f"one fact of {LENGTH} tokens ({tokenizer.decode(first.clean)!r} / {tokenizer.decode(first.corrupt)!r})"
    yield row(f"exact patching, residual stream, {prompt}", "get_act_patch_resid_pre", [first], ["resid"])
    against = "get_act_patch_attn_out, get_act_patch_mlp_out"
    yield row("exact patching, attention and MLP outputs, the same fact", against, [first], ["attn", "mlp"])
    against = "get_act_patch_attn_head_out_all_pos"
    yield row("exact patching, heads at all positions, the same fact", against, [first], ["head"])
    yield row(
        f"exact patching, residual stream, {FACTS} facts of {LENGTH} tokens", "get_act_patch_resid_pre, one batch",
        some, ["resid"],
        f"The prompts of a pair differ from positions {', '.join(map(str, starts))} on; places before them carry "
        "nothing and are not run. Four pairs of 10 tokens that all differ from the first one on come to about 9 times "
        "(measured apart): the peer's batch shares its overhead, too, and three quarters of our time are matrix "
        "products at the processor's full speed, of which a patched copy needs a quarter of a whole run's.",
    )  # fmt: skip


def _first_order(bridge: Any, known: Sequence[Pair]) -> Row:
    from transformer_lens.tools.analysis.attribution_patching import AttributionResult, attribution_patch

    model = smollm2().model
    some = known[:: max(1, len(known) // PAIRS)][:PAIRS]

    def ours() -> list[PatchingMap]:
        return attribution_patching_many(model, some, ["mlp", "head"])

    def theirs() -> list[AttributionResult]:
        # The answers, and so the metrics, are other ones for each pair.
        return [
            attribution_patch(
                bridge, one.clean[None], one.corrupt[None],
                lambda logits, one=one: (logits[:, -1, one.answer] - logits[:, -1, one.wrong]).sum(),
            )
            for one in some
        ]  # fmt: skip

    equal = ""
    for mine, peer in zip(ours(), theirs(), strict=True):
        same = {site: torch.zeros_like(values) for site, values in mine.values.items()}
        for node, score in peer.node_scores.items():
            if node.kind == "mlp_out":
                same["mlp"][node.layer, node.position] += score
            elif node.kind == "attn_head_out":
                same["head"][node.layer, node.head] += score
        gain = mine.clean - mine.corrupt
        told = [close(values * gain, same[site], SAME) for site, values in mine.values.items()]
        equal = max([equal, *told], key=lambda one: float(one.split()[-1]) if one else 0.0)
    tokens = sorted(len(one.clean) for one in some)
    what = f"attribution patching, MLP outputs and heads, {PAIRS} pairs of {tokens[0]} to {tokens[-1]} tokens"
    against = "transformer-lens attribution_patch, pair by pair"
    return side_by_side(what, against, ours, theirs, equal, reach=4, rounds=2)


def rows() -> Iterator[Row]:
    """Time both.

    Yields:
        A row for each kind of patching.
    """
    known, bridge = pairs(), _bridge()
    yield _first_order(bridge, known)
    yield from _exact(bridge, known)
