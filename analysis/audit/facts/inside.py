"""What the hidden states still hold: the logit lens, and a probe that tells true statements from false ones."""

import random
from collections.abc import Sequence

import torch

from analysis.attribution.anatomy import anatomy
from analysis.audit.facts.case import Case, FactReading, ids
from analysis.representations.probes import fit_probes, standardised
from analysis.subjects.language.bank import Fact
from analysis.subjects.language.encoding import encode_answers
from analysis.subjects.language.scoring import pack

WRONG = 3
FEWEST = 4
LAYERS = (0.5, 0.75, 1.0)


@torch.no_grad()
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
    facts = (*case.shown, *case.unseen)
    norm = case.model.get_submodule(anatomy(case.model).final_norm)
    weight = case.model.get_output_embeddings().weight  # type: ignore[operator]
    rows: list[torch.Tensor] = []
    kept: list[Fact] = []
    for fact in facts:
        options = pack(case.tokenizer, fact.heldout[0], [fact.answer, *fact.distractors])
        tails, at = [], options.prompt
        for length in options.lengths:
            tails.append(options.ids[at : at + length])
            at += length
        shared = 0
        while all(len(tail) > shared + 1 for tail in tails) and len({tail[shared] for tail in tails}) == 1:
            shared += 1
        tokens = [tail[shared] for tail in tails]
        tokens = [tokens[0], *dict.fromkeys(token for token in tokens[1:] if token != tokens[0])]
        if len(tokens) < 3:
            continue
        prompt = torch.tensor([[*options.ids[: options.prompt], *tails[0][:shared]]])
        states = case.model.base_model(input_ids=prompt, use_cache=False, output_hidden_states=True).hidden_states  # type: ignore[operator]
        # The last state has gone through the final norm already.
        last = torch.stack([*(norm(state[0, -1]) for state in states[:-1]), states[-1][0, -1]])
        rows.append((last @ weight[tokens].T).double().softmax(1)[:, 0])
        kept.append(fact)
    if not rows:
        return None
    table = torch.stack(rows)
    layer = int(table.mean(0).argmax())
    return FactReading(
        auditor="logit lens, best layer",
        group="lens",
        role="inner",
        unit="share",
        facts=ids(kept),
        values=tuple(table[:, layer].tolist()),
        curve_x=tuple(float(i) for i in range(table.shape[1])),
        curve=tuple(table.mean(0).tolist()),
    )


@torch.no_grad()
def _ends(case: Case, statements: Sequence[tuple[str, str]]) -> torch.Tensor:
    # Hidden states at the last token of statements, [n, layers, width].
    out = []
    for start in range(0, len(statements), 48):
        encoded = encode_answers(case.tokenizer, statements[start : start + 48])
        states = case.model.base_model(input_ids=encoded.ids, use_cache=False, output_hidden_states=True).hidden_states  # type: ignore[operator]
        last = torch.tensor([int((row >= 0).nonzero().max()) + 1 for row in encoded.labels])
        depth = len(states) - 1
        chosen = [states[round(share * depth)] for share in LAYERS]
        out.append(torch.stack([state[torch.arange(len(last)), last] for state in chosen], 1))
    return torch.cat(out)


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
    states = _ends(case, statements(taught) + statements(asked)).double()
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
            facts=ids(asked),
            values=tuple(best.tolist()),
        )
    ]
