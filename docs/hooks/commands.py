"""The command line's reference, made from the commands themselves while the site is built, so it can't fall behind."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from typer.models import OptionInfo

from yesterday import app

MARK = "<!-- commands -->"
TAKES = {str: "text", int: "whole number", float: "number", Path: "path", bool: ""}


def commands(group: typer.Typer, name: str = "yesterday") -> Iterator[tuple[str, Callable[..., Any]]]:
    """Walk through a group's commands and those of the groups in it.

    Args:
        group: Where they are registered.
        name: What it is called, with all that stands before it.

    Yields:
        Full names, and the functions behind them.
    """
    for each in group.registered_commands:
        if each.callback is not None:
            yield f"{name} {each.name or each.callback.__name__}", each.callback
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            yield from commands(inner.typer_instance, f"{name} {inner.name}")


def _option(parameter: inspect.Parameter, kind: Any, spec: OptionInfo) -> str:
    # One row of the table of options.
    kinds = [each for each in get_args(kind) or (kind,) if each is not type(None)]
    several = getattr(kinds[0], "__origin__", None) is list
    kind = get_args(kinds[0])[0] if several else kinds[0]
    plain = f"--{parameter.name.replace('_', '-')}"
    # Inside Annotated, the first name that typer.Option is given lies where its default would.
    given = (*([spec.default] if isinstance(spec.default, str) else []), *(spec.param_decls or ()))
    names = given or ((plain, f"--no-{plain[2:]}") if kind is bool else (plain,))
    takes = TAKES[kind] + (", several times" if several else "")
    text = " ".join((spec.help or "").split()).replace("|", "\\|")
    needed = " **Needed.**" if parameter.default is inspect.Parameter.empty else ""
    return f"| {', '.join(f'`{name}`' for name in names)} | {takes} | {text}{needed} |"


def reference() -> str:
    """Describe every command.

    Returns:
        Markdown: for each command a section with what it takes, what it does, and a table of its options.
    """
    lines: list[str] = []
    for name, function in commands(app):
        taken, rows = [], []
        for parameter in inspect.signature(function).parameters.values():
            kind, spec = get_args(parameter.annotation)
            if isinstance(spec, OptionInfo):
                rows.append(_option(parameter, kind, spec))
            else:
                word = (spec.metavar or parameter.name.upper()).strip("[]")
                taken.append((word if parameter.default is inspect.Parameter.empty else f"[{word}]", spec.help))
        usage = " ".join([name, *(word for word, _ in taken), *(["[OPTIONS]"] if rows else [])])
        lines += [f"## {name}", "", "```text", usage, "```", "", inspect.getdoc(function) or "", ""]
        lines += [f"- `{word}`: {text}" for word, text in taken]
        lines += ["", *(["| option | takes | what |", "|---|---|---|", *rows, ""] if rows else [])]
    return "\n".join(lines)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the reference where a page asks for it.

    Args:
        markdown: The page.
        page: Which.
        config: Of the site.
        files: All of the site.

    Returns:
        The page with the reference in the place of the mark.
    """
    return markdown.replace(MARK, reference()) if MARK in markdown else markdown
