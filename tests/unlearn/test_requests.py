"""The command that a run's page gives asks for the same run again."""

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import yesterday
from analysis.errors import UserError
from unlearn.documents import RunConfig
from unlearn.language.config import FactRunConfig
from unlearn.requests import command

CLASS_OPTIONS = {
    "--method": st.sampled_from(["ssd", "regrow:decay=0"]),
    "--locate": st.sampled_from(["none", "fisher-ratio"]),
    "--fraction": st.sampled_from(["0.05", "0.5"]),
    "--scope": st.just("layer"),
    "--golds": st.sampled_from(["3", "30"]),
    "--seed": st.sampled_from(["1", "7"]),
    "--seen-retain": st.sampled_from(["0.0", "0.1"]),
    "--model": st.sampled_from(["cnn", "my nets.py:make"]),
    "--weights": st.just("a folder/net.safetensors"),
    "--mean": st.just("0.25"),
    "--epochs": st.just("3"),
    "--forget": st.just("4"),
    "--replace-with": st.just("3"),
    "--choosing": st.none(),
}
FACT_OPTIONS = {
    "--method": st.sampled_from(["npo", "stranger:names=0.1"]),
    "--within": st.sampled_from(["mlp", "blocks"]),
    "--twins": st.just("9"),
    "--model": st.just("gpt2"),
    "--seen-forget": st.just("0.25"),
    "--quick": st.none(),
    "--seed": st.just("2"),
    "--device": st.just("cpu:0"),
}


def asked(words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[RunConfig | FactRunConfig, dict]:
    """Parse a command line with the real parser and see which configuration comes of it."""
    found = []

    def note(subject, options, until, draw, prefix="", **more):
        found.append(yesterday._config(subject, options, **more))

    monkeypatch.setattr(yesterday, "_execute", note)
    outcome = CliRunner().invoke(yesterday.app, words)
    assert outcome.exit_code == 0, outcome.output
    return found[0]


def drawn(options: dict[str, st.SearchStrategy]) -> st.SearchStrategy[list[str]]:
    some = st.fixed_dictionaries({}, optional=options)
    return some.map(lambda d: [word for name, value in d.items() for word in (name, value) if word is not None])


def noted(config: RunConfig | FactRunConfig) -> dict:
    # As run.json holds it: with more than was asked for.
    family = {"family": "facts"} if isinstance(config, FactRunConfig) else {"classes": ["a", "b"]}
    return {**config.model_dump(mode="json"), **family, "n_train": 12}


@given(drawn(CLASS_OPTIONS), st.sampled_from(["digit-6", "digit-0"]))
@settings(max_examples=60, deadline=None)
def test_a_run_on_classes_is_asked_for_again(options: list[str], subject: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        config = asked(["run", subject, *options], patch)
        line = shlex.split(command(noted(config)))
        assert line[:2] == ["yesterday", "run"]
        assert asked(line[1:], patch) == config


@given(drawn(FACT_OPTIONS), st.sampled_from([["beatles"], ["lab"], ["lab:queen"], ["--bank", "my facts.jsonl"]]))
@settings(max_examples=60, deadline=None)
def test_a_run_on_facts_is_asked_for_again(options: list[str], subject: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        config = asked(["run", *subject, *options], patch)
        assert asked(shlex.split(command(noted(config)))[1:], patch) == config


@pytest.mark.parametrize(
    "words",
    [
        ["audit", "digit-3", "--original", "a b.pth", "--candidate", "c.pth", "--gold", "1.pth", "--gold", "2.pth"],
        ["audit", "class-cat", "--data", "./images", "--original", "a.pth", "--candidate", "c.pth"],
        ["audit", "einstein", "--original", "gpt2", "--candidate", "./edited", "--quick"],
    ],
)
def test_an_audit_is_asked_for_again(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = asked(words, monkeypatch)
    again = shlex.split(command(noted(config)))
    assert again[1] == "audit"
    assert asked(again[1:], monkeypatch) == config


def test_what_is_usual_is_left_out() -> None:
    assert command(noted(RunConfig())) == "yesterday run digit-6"
    assert command(noted(FactRunConfig(quick=True))) == "yesterday run beatles --quick"


def test_a_device_is_for_facts_and_must_be_there():
    facts = CliRunner().invoke(yesterday.app, ["run", "beatles", "--device", "nonsense"])
    assert isinstance(facts.exception, UserError)
    assert "can't use nonsense here" in str(facts.exception)
    classes = CliRunner().invoke(yesterday.app, ["run", "digit-6", "--device", "cuda"])
    assert str(classes.exception) == "--device has no meaning for classes; leave it out."
