"""What comes out of a run on facts and what people do with it: edits for whole models, chatting, checking a bank."""

from collections.abc import Callable
from pathlib import Path

import torch

from analysis.errors import UserError
from analysis.subjects.language.bank import load_bank
from analysis.subjects.language.models import load_language_model, save_language_model
from analysis.subjects.language.scoring import known_facts
from unlearn.documents import read_run
from unlearn.edit import Edit, state_of
from unlearn.language.continuations import spoken
from unlearn.stages import Report


def apply_to_model(edit: Path, to: str, out: Path, revert: bool = False) -> None:
    """Apply an edit to a language model, or undo it.

    Args:
        edit: An edit.safetensors.
        to: "smollm2", a hub name or a folder: the model that it was made for, or the edited one.
        out: Folder to write, loadable with `AutoModelForCausalLM.from_pretrained`.
        revert: Undo instead.

    Raises:
        UserError: The edit was made for another model, is damaged, `to` is no model, or `out` is there already.
    """
    found = Edit.load(edit)
    if (Path(to) / "run.json").is_file():
        raise UserError(f"{to} is the folder of a run; give the checkpoint or model folder that the edit was made for.")
    if out.exists():
        raise UserError(f"{out} is there already; give another --out.")
    loaded = load_language_model(to)
    state = state_of(loaded.model)
    changed = found.revert(state) if revert else found.apply(state)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            parameter.copy_(changed[name])
    done = "undone" if revert else "applied"
    card = f"# {loaded.name} with an edit {done}\n\nFrom {loaded.source}; {found.count:,} weights changed.\n"
    save_language_model(loaded.model, loaded.tokenizer, out, card)


def ask_both(run: Path) -> Callable[[str], tuple[str, str]]:
    """Load the original and the edited model of a run.

    Args:
        run: The run folder.

    Returns:
        A function that gives the greedy continuations of a prompt, the original's first.

    Raises:
        UserError: The folder holds no run on facts, or no edited model.
    """
    asked = read_run(run).config
    if asked.get("family") != "facts":
        raise UserError(f"{run} is no run on a language model; chat with one such as runs/beatles.")
    original = load_language_model(asked["model"])
    edited = load_language_model(str(run / "model"))

    def talk(prompt: str) -> tuple[str, str]:
        if not prompt.strip():
            raise UserError("There is nothing to say to an empty prompt; give some words.")
        mine, theirs = (spoken(m.model, original.tokenizer, [prompt], 0, 0)[0][0] for m in (original, edited))
        return mine, theirs

    return talk


def check_bank(bank: str, model: str, report: Report) -> list[dict[str, object]]:
    """Find out which facts of a bank a model knows.

    Args:
        bank: A file or a built-in name.
        model: See `load_language_model`.
        report: Called with what is running and the share done.

    Returns:
        For each fact its id, kind, relation and split, whether it is known, and the median probability of its answer.
    """
    facts = load_bank(bank).facts
    loaded = load_language_model(model, report)
    rows: list[dict[str, object]] = []
    for start in range(0, len(facts), 24):
        part = facts[start : start + 24]
        known, answers = known_facts(loaded.model, loaded.tokenizer, part)
        for fact, knows, mine in zip(part, known, answers, strict=True):
            middle = torch.tensor([one.options[0] for one in mine]).median().exp()
            rows.append(
                {"id": fact.id, "kind": fact.kind, "relation": fact.relation, "split": fact.split, "known": knows,
                 "probability": float(middle)}
            )  # fmt: skip
        report("asking", (start + len(part)) / len(facts))
    return rows
