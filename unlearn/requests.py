"""From what was typed to what is run: options of the command line become a configuration of one of the two families."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from analysis.devices import check_device
from analysis.errors import UserError
from analysis.subjects.build import DIGIT_SETS, SubjectConfig, build_subject, every_class
from analysis.subjects.language.bank import BUILTIN
from analysis.subjects.language.lab_bank import in_lab, open_bank
from unlearn.cells import LAYERS, NONE, RANDOM
from unlearn.comparison import Request
from unlearn.documents import RunConfig
from unlearn.language.config import FactRunConfig
from unlearn.methods import METHODS, Method
from unlearn.methods.language import LANGUAGE_METHODS, LOCATED

RUNS = Path("runs")
FOR_CLASSES = (
    "forget", "replace_with", "slot", "data", "data_root", "size", "mean", "std", "weights", "layers", "epochs",
    "batch", "lr",
)  # fmt: skip
FOR_CLASS_RUNS = ("golds", "scope")
FOR_FACTS = ("bank", "within", "twins", "quick", "device")
QUICK_METHODS = ("gradient-difference", "npo", "rmu", "stranger")
"""Of facts, where each takes minutes."""
EDITING = ("method", "measure", "fraction", "scope", "within", "seen_forget", "seen_retain")
FLAGS = {"measure": "locate", "gold_weights": "gold"}
"""Options that are not called what they set."""
SHARED = ("method", "measure", "fraction", "seed", "choosing", "seen_forget", "seen_retain")


def about_facts(subject: str, options: Mapping[str, Any]) -> bool:
    """Say which family is meant.

    Args:
        subject: As typed.
        options: As typed; None or False where not given.

    Returns:
        Whether it is facts that are to be forgotten.
    """
    return subject in BUILTIN or in_lab(subject) or bool(options.get("bank"))


def _given(options: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: options[name] for name in names if options.get(name) is not None and options[name] is not False}


def refuse(options: Mapping[str, Any], names: tuple[str, ...], family: str) -> None:
    """Refuse options that would be ignored.

    Args:
        options: As typed; None or False where not given.
        names: Which of them mean nothing here.
        family: What they mean nothing for.

    Raises:
        UserError: One of them was given.
    """
    wrong = next(iter(_given(options, names)), None)
    if wrong is not None:
        raise UserError(f"--{wrong.replace('_', '-')} has no meaning for {family}; leave it out.")


def _forgotten(subject: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    if options["forget"]:
        return tuple(options["forget"])
    kind, _, label = subject.partition("-")
    if kind not in {"digit", "class"} or not label:
        raise UserError(
            f"There is no subject {subject!r}; give digit-6, digit- with another digit, class-NAME with --data, "
            f"{', '.join(BUILTIN)}, or a fact bank with --bank."
        )
    return (label,)


def _option_name(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"--{'-'.join(map(str, first['loc'])).replace('_', '-')}: {first['msg']}; see --help."


def class_config(subject: str, options: Mapping[str, Any], **more: Any) -> RunConfig:
    """Read what is to be done to a classifier.

    Args:
        subject: "digit-6" and the like.
        options: Of the command line, by parameter name.
        more: Further fields of `RunConfig`.

    Returns:
        The configuration.

    Raises:
        UserError: An option makes no sense.
    """
    refuse(options, FOR_FACTS, "classes")
    asked = _given(options, (*FOR_CLASSES, "model"))
    asked |= {name: str(asked[name]) for name in ("data_root", "weights") if name in asked}
    asked |= {name: tuple(asked[name]) for name in ("mean", "std", "layers") if name in asked}
    asked["forget"] = _forgotten(subject, options)
    try:
        known = SubjectConfig.model_validate(asked)
        return RunConfig.model_validate({"subject": known, **_given(options, (*SHARED, *FOR_CLASS_RUNS)), **more})
    except ValidationError as error:
        raise UserError(_option_name(error)) from error


def fact_config(subject: str, options: Mapping[str, Any], **more: Any) -> FactRunConfig:
    """Read what is to be done to a language model.

    Args:
        subject: Name of a built-in bank; --bank goes before it.
        options: Of the command line, by parameter name.
        more: Further fields of `FactRunConfig`.

    Returns:
        The configuration.

    Raises:
        UserError: An option makes no sense.
    """
    refuse(options, (*FOR_CLASSES, *FOR_CLASS_RUNS), "facts")
    asked = _given(options, (*SHARED, *FOR_FACTS, "model"))
    asked["bank"] = str(asked.get("bank") or subject)
    check_device(asked.get("device", "cpu"))
    try:
        return FactRunConfig.model_validate({**asked, **more})
    except ValidationError as error:
        raise UserError(_option_name(error)) from error


def comparison_request(subject: str, options: Mapping[str, Any]) -> Request:
    """Read what is to be compared.

    Args:
        subject: As typed.
        options: Of the command line, by parameter name.

    Returns:
        The request; not yet checked.

    Raises:
        UserError: An option makes no sense.
    """
    facts = about_facts(subject, options)
    refuse(options, ("fresh", "all_digits", "scope") if facts else (), "facts")
    quick = bool(options["quick"])
    places = _split(options["measure"] or ("none,fisher" if facts else "none,damage-contrast"))
    measure = next((place for place in places if place not in {NONE, RANDOM, LAYERS}), None)
    fractions = _split(options["fractions"] or ("0.01" if facts else "0.2"))
    try:
        shares = tuple(float(text) for text in fractions)
    except ValueError:
        raise UserError(f"--fractions takes numbers with commas between, not {options['fractions']!r}.") from None
    one = {**options, "measure": measure, "fraction": shares[0] if shares else None}
    known: Mapping[str, Method] = LANGUAGE_METHODS
    configs: dict[str, RunConfig | FactRunConfig] = {subject: fact_config(subject, one)} if facts else {}
    if not facts:
        # Of classes one seed at one place is quick; attackers are as they are.
        places = places if options["measure"] or not quick else places[1:]
        configs = _class_configs(subject, {**one, "quick": False})
        task = "forget" if options["replace_with"] is None else "replace"
        known = {name: method for name, method in METHODS.items() if method.task in {"forget", "both", task}}
    # Of all, those that can do something at these places; a method that is named is refused instead.
    unfit = {*(() if NONE in places else ("retrain",)), *(LOCATED if {*places} == {NONE} else ())}
    few = QUICK_METHODS if facts and quick else tuple(name for name in known if name not in unfit)
    groups: dict[str, tuple[str, ...]] = {"all": few, "none": ()}
    methods = tuple(name for part in _split(options["methods"]) for name in groups.get(part, (part,)))
    seeds = (1 if quick else 3) if options["seeds"] is None else options["seeds"]
    return Request(
        configs=configs,
        seeds=tuple(range(options["seed"], options["seed"] + seeds)),
        methods=methods,
        places=places,
        fractions=shares,
        fresh=1 if options["fresh"] is None else options["fresh"],
        engine=options["engine"],
        threads=(2 if facts else 1) if options["threads"] is None else options["threads"],
    )


def _split(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _class_configs(subject: str, options: Mapping[str, Any]) -> dict[str, RunConfig | FactRunConfig]:
    if not options["all_digits"]:
        return {subject: class_config(subject, options)}
    if options["forget"] or options["replace_with"] is not None:
        raise UserError("--all-digits forgets every class in turn; leave out --forget and --replace-with.")
    shared = class_config(subject, options)
    return {name: shared.model_copy(update={"subject": one}) for name, one in every_class(shared.subject).items()}


def run_folder(config: RunConfig | FactRunConfig, out: Path | None, prefix: str = "") -> Path:
    """Decide where a run is kept.

    Args:
        config: Of the run.
        out: What the user chose, if anything.
        prefix: Of the name otherwise.

    Returns:
        The folder.
    """
    if out is not None:
        return out
    if isinstance(config, FactRunConfig):
        name = open_bank(config.bank).subject.slug
        if config.model != FactRunConfig().model:
            name += "-" + "".join(c if c.isalnum() else "-" for c in Path(config.model).name.lower())
        name += "-quick" if config.quick else ""
    else:
        name = build_subject(config.subject, config.seed).name
    name = prefix + name + ("-choosing" if config.choosing else "")
    return RUNS / (name if config.seed == 0 else f"{name}-seed{config.seed}")


def command(config: Mapping[str, Any]) -> str:
    """Write the command that asks for a run.

    Args:
        config: As `run.json` holds it.

    Returns:
        A line for a shell. Options with their usual value are left out, unless a run fills them in.
    """
    facts, audited = config.get("family") == "facts", config.get("candidate") is not None
    words = ["yesterday", "audit" if audited else "run"]
    if facts:
        bank = str(config["bank"])
        words += [bank] if bank in BUILTIN or in_lab(bank) else ["--bank", bank]
        asked = _unusual(config, FactRunConfig())
        original = asked.pop("model", config["model"]) if audited else ""
        asked.pop("bank", None)
    else:
        subject = config["subject"]
        asked = {"forget": subject["forget"], **_unusual(subject, SubjectConfig())}
        if subject["data"] in DIGIT_SETS and len(asked["forget"]) == 1:
            words.append(f"digit-{asked.pop('forget')[0]}")
        asked |= {name: value for name, value in _unusual(config, RunConfig()).items() if name != "subject"}
        original = asked.pop("weights", "") if audited else ""
    if audited:
        # What there is to locate and edit by has no part in it.
        asked = {name: value for name, value in asked.items() if name not in {*EDITING, "candidate"}}
        words += ["--original", str(original), "--candidate", str(config["candidate"])]
    for name, value in asked.items():
        flag = f"--{FLAGS.get(name, name).replace('_', '-')}"
        if value is True:
            words.append(flag)
        else:
            words += [word for one in (value if isinstance(value, list) else [value]) for word in (flag, str(one))]
    return shlex.join(words)


def _unusual(config: Mapping[str, Any], usual: BaseModel) -> dict[str, Any]:
    known = usual.model_dump(mode="json")
    return {name: config[name] for name in known if name in config and config[name] != known[name]}
