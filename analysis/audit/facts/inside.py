"""What the hidden states still hold: the logit lens, and a probe that tells true statements from false ones."""

import random
from collections.abc import Sequence

import torch
from torch import nn

from analysis.attribution.anatomy import anatomy
from analysis.attribution.running import place
from analysis.audit.facts.case import Case, FactReading, ids
from analysis.representations.probes import fit_probes, standardised
from analysis.subjects.language.bank import Fact
from analysis.subjects.language.encoding import continuation, pad
from analysis.subjects.language.scoring import ROWS, pack

WRONG = 3
FEWEST = 4
FEWEST_STARTS = 3
LAYERS = (0.5, 0.75, 1.0)


@torch.no_grad()
def last_states(model: nn.Module, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Read the residual stream at the last token of each row.

    Args:
        model: A causal language model, run as it is.
        rows: Token ids.

    Returns:
        [n, blocks + 1, width]: before the first block, between blocks, and behind the last one and the final norm.
    """
    out = []
    for start in range(0, len(rows), ROWS):
        part = [list(row) for row in rows[start : start + ROWS]]
        ids = place(model, pad(part, 0))
        states = model.base_model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states  # type: ignore[operator]
        last = torch.tensor([len(row) - 1 for row in part])
        out.append(torch.stack([state[torch.arange(len(part)), last] for state in states], 1))
    return torch.cat(out)


def lens(case: Case) -> FactReading | None:
    """Read the answer off every layer where it is about to be said, by the model's own head (nostalgebraist 2020).

    Compared are the first tokens in which the right answer differs from a wrong one, through the final norm and the
    head's matrix without its bias, which an output filter may have been put into. The best single layer counts, chosen
    by the mean over facts, alike for all models.

    Args:
        case: The model and the facts.

    Returns:
        Shares of the right answer's token among the options' tokens; None where all options begin alike.
    """
    kept: list[Fact] = []
    tokens: list[list[int]] = []
    own: list[list[int]] = []
    strange: list[list[list[int]]] = [[] for _ in case.strangers]
    for fact in (*case.shown, *case.unseen):
        options, *others = (
            pack(case.tokenizer, one.heldout[0], [fact.answer, *fact.distractors]) for one in case.everybody(fact)
        )
        tails = options.tails
        alike = 0
        while all(len(tail) > alike + 1 for tail in tails) and len({tail[alike] for tail in tails}) == 1:
            alike += 1
        starts = list(dict.fromkeys(tail[alike] for tail in tails))
        if len(starts) < FEWEST_STARTS:
            continue
        kept.append(fact)
        tokens.append(starts)
        own.append([*options.prompt, *tails[0][:alike]])
        for rows, other in zip(strange, others, strict=True):
            rows.append([*other.prompt, *tails[0][:alike]])
    if not kept:
        return None
    norm = case.model.get_submodule(anatomy(case.model).final_norm)
    weight = case.model.get_output_embeddings().weight  # type: ignore[operator]

    def read(rows: list[list[int]]) -> list[torch.Tensor]:
        states = last_states(case.model, rows)
        # The last state has gone through the final norm already.
        with torch.no_grad():
            states = torch.cat([norm(states[:, :-1]), states[:, -1:]], 1)
            return [(state @ weight[mine].T).double() for state, mine in zip(states, tokens, strict=True)]

    mine = read(own)
    theirs = [torch.stack(each).mean(0) for each in zip(*map(read, strange), strict=True)]
    said = torch.stack([logits.softmax(1)[:, 0] for logits in mine])
    beside = torch.stack([(one - other).softmax(1)[:, 0] for one, other in zip(mine, theirs, strict=True)])
    best, best_beside = (int(table.mean(0).argmax()) for table in (said, beside))
    return FactReading(
        auditor="logit lens, best layer",
        group="lens",
        role="inner",
        unit="share",
        facts=ids(kept),
        values=tuple(said[:, best].tolist()),
        curve_x=tuple(float(i) for i in range(said.shape[1])),
        curve=tuple(said.mean(0).tolist()),
        beside=tuple(beside[:, best_beside].tolist()),
        beside_curve=tuple(beside.mean(0).tolist()),
    )


def own_wrong(case: Case, fact: Fact) -> tuple[str, ...]:
    """Choose wrong answers that a model which never knew finds as strange as the right one.

    Famous names that belong to others would give themselves away: to a model that never heard of the subject its names
    are the strange ones, and a probe that learns "strange is true" needs to know nothing (in the gold lab it puts golds
    as high as the original). So a name stands beside other names of the subject, of the same type.

    Args:
        case: Its subject's names and answers are used.
        fact: Whose answer is to be told from wrong ones.

    Returns:
        Three answers, or fewer when there are no more; for a twin mostly the same ones, retold.
    """
    about = case.subject.about
    kinds = [kind for kind, names in about.names.items() if fact.answer in names]
    if not kinds:
        return fact.distractors[:WRONG]
    every = (*case.subject.forget, *case.subject.forget_test)
    true = {one.answer for one in every if set(one.heldout) & set(fact.heldout)} | {fact.answer, *fact.aliases}
    near = {one.answer for one in every if one.relation == fact.relation}
    said = {one.answer for one in every}
    names = list(dict.fromkeys(name for kind in kinds for name in about.names[kind]))
    random.Random(f"{case.seed} {fact.id}").shuffle(names)
    # Answers to the like of it first: a husband stands out among wives, and one word among pairs.
    names.sort(key=lambda name: (name not in near, len(name.split()) != len(fact.answer.split()), name not in said))
    wrong: list[str] = []
    for name in names:
        # Parts of a name ("Lennon" of "John Lennon") are neither right nor wrong.
        alike = any(a.casefold() in b.casefold() for one in (*true, *wrong) for a, b in ((name, one), (one, name)))
        if not alike:
            wrong.append(name)
    return tuple(wrong[:WRONG])


def truth_probe(case: Case) -> list[FactReading]:
    """Train a probe to tell true statements from false ones on taught facts, and let it judge others.

    Logistic regressions on the hidden states at a statement's last token, centred within each fact so that only what
    answers differ in remains. The layer with the best result counts, alike for all models.

    Args:
        case: The model and the facts.

    Returns:
        For each fact the share of wrong answers (`own_wrong`) that the probe puts below the right one; nothing when
        fewer than four facts to train or to judge on have three wrong answers.
    """
    wrong = {fact.id: own_wrong(case, fact) for fact in (*case.taught, *case.asked)}

    def statements(facts: Sequence[Fact]) -> list[tuple[str, str]]:
        return [(f.heldout[0], answer) for f in facts for answer in (f.answer, *wrong[f.id])]

    taught = [f for f in case.taught if len(wrong[f.id]) == WRONG]
    asked = [f for f in case.asked if len(wrong[f.id]) == WRONG]
    if min(len(taught), len(asked)) < FEWEST:
        return []
    rows = [continuation(case.tokenizer, *told)[0] for told in statements(taught) + statements(asked)]
    every = last_states(case.model, rows)
    states = every[:, [round(depth * (every.shape[1] - 1)) for depth in LAYERS]].double().cpu()
    best = torch.zeros(len(asked), dtype=torch.double)
    for layer in range(states.shape[1]):
        grouped = states[:, layer].view(len(taught) + len(asked), 1 + WRONG, -1)
        rows = standardised((grouped - grouped.mean(1, keepdim=True)).flatten(0, 1)) / grouped.shape[-1] ** 0.5
        labels = (torch.arange(len(rows)) % (1 + WRONG)) == 0
        cut = len(taught) * (1 + WRONG)
        weights, _ = fit_probes(rows[None, :cut], labels[None, :cut])
        judged = (rows[cut:] @ weights[0]).view(len(asked), 1 + WRONG)
        right = (judged[:, :1] > judged[:, 1:]).double().mean(1)
        if right.mean() > best.mean():
            best = right
    return [
        FactReading(
            auditor="probe for true statements",
            group="probe",
            role="inner",
            unit="share",
            step=1 / WRONG,
            facts=ids(asked),
            values=tuple(best.tolist()),
        )
    ]
