"""The documentation: it builds strictly, every link leads somewhere, nothing is loaded from elsewhere, and what it says
to type can be typed."""

import html
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
import typer
from markdown_it import MarkdownIt
from markdown_it.token import Token

import yesterday

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path
    for path in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / name for name in ("notebooks/README.md", "figures/gallery/README.md")),
    )
    if path.is_file()
)
LOADS = {"script", "img", "iframe", "source", "audio", "video", "embed", "object", "input", "track"}
FETCHED = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "preconnect", "dns-prefetch", "manifest"}


def hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_hook_{name}", ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# The site.


class Seen(HTMLParser):
    """What a page names, leads to and loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.classes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attributes}
        self.ids |= {given[key] for key in ("id", "name") if key in given}
        self.classes |= set(given.get("class", "").split())
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADS:
            self.loaded += [given[key] for key in ("src", "data") if key in given]
            self.loaded += [part.split()[0] for part in given.get("srcset", "").split(",") if part.strip()]
        if tag == "link" and FETCHED & set(given.get("rel", "").split()):
            self.loaded.append(given["href"])
        self.loaded += re.findall(r"url\(['\"]?([^)'\"]+)", given.get("style", ""))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert [line for line in said.splitlines() if "WARNING" in line or "ERROR" in line] == []
    return folder


@pytest.fixture(scope="module")
def pages(built: Path) -> dict[Path, Seen]:
    return {path: Seen(path.read_text(encoding="utf-8")) for path in sorted(built.rglob("*.html"))}


def test_the_site_has_the_pages_that_people_come_for(built: Path) -> None:
    wanted = ["index", "tutorial", "glossary", "readme", "changelog", "contributing", "reference/command-line"]
    wanted += [f"concepts/{page}" for page in ("attribution", "localisation", "editing", "auditing")]
    assert [page for page in wanted if not (built / f"{page}.html").is_file()] == []


def test_all_links_inside_the_site_resolve(built: Path, pages: dict[Path, Seen]) -> None:
    lost = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are for the root of a server
            continue
        for link in page.links:
            target = urlsplit(html.unescape(link))
            if target.scheme or target.netloc:
                continue
            file = (path.parent / unquote(target.path)).resolve() if target.path else path
            file = file / "index.html" if file.is_dir() else file
            there = file.is_file() and file.is_relative_to(built.resolve())
            if not there or (target.fragment and file in pages and unquote(target.fragment) not in pages[file].ids):
                lost.append(f"{path.relative_to(built)}: {link}")
    assert sum(len(page.links) for page in pages.values()) > 1000
    assert lost == []


def test_nothing_is_loaded_from_another_host(built: Path, pages: dict[Path, Seen]) -> None:
    asked = [(path, each) for path, page in pages.items() for each in page.loaded]
    for path in built.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        asked += [(path, each) for each in re.findall(r"(?:url\(|@import\s+)['\"]?([^)'\";]+)", text)]
    assert len(asked) > 100
    assert [(path, each) for path, each in asked if re.match(r"(?:\w+:)?//", each)] == []
    # What would make the theme's own script fetch from another host.
    assert [path for path, page in pages.items() if page.classes & {"mermaid", "arithmatex"}] == []


def test_pictures_are_in_the_site(built: Path, pages: dict[Path, Seen]) -> None:
    shown = [path.parent / each for path, page in pages.items() for each in page.loaded if each.endswith(".png")]
    assert any("gallery" in path.parts for path in shown)
    assert [path for path in shown if not path.resolve().is_file()] == []


def test_the_search_needs_no_server(built: Path) -> None:
    assert (built / "search" / "search_index.js").read_text(encoding="utf-8").startswith("var __index = {")
    assert 'src="assets/iframe-worker.js"' in (built / "index.html").read_text(encoding="utf-8")
    assert (built / "assets" / "iframe-worker.js").is_file()


def test_every_module_is_in_the_reference(built: Path, pages: dict[Path, Seen]) -> None:
    entries = {each for path, page in pages.items() if path.parent.name == "reference" for each in page.ids}
    files = [path for room in ("analysis", "unlearn", "figures") for path in (ROOT / room).rglob("*.py")]
    modules = [name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in files]
    assert len(modules) > 100
    missing = [module for module in modules if module not in {"analysis", "unlearn"} and module not in entries]
    assert missing == [], "give each a line `::: module` on a page in docs/reference/"


def test_every_command_is_in_the_reference() -> None:
    text = hook("commands").reference()
    group = typer.main.get_command(yesterday.app)
    for each in group.commands:  # type: ignore[attr-defined]
        assert f"## yesterday {each}" in text
    assert "## yesterday bank check" in text
    assert "| `--locate` | text |" in text
    assert "| `--figures`, `--no-figures` |" in text
    assert "| `--original` | path | Checkpoint of the model that knows. **Needed.** |" in text


# The hooks.


def test_links_between_files_become_links_between_pages() -> None:
    def moved(text: str, origin: str) -> str:
        return hook("outside").relinked(text, origin, ROOT)

    assert moved("[a](../README.md#how-fast)", "docs/speed.md") == "[a](readme.md#how-fast)"
    assert moved("[a](../../CONTRIBUTING.md)", "docs/how-to/own-method.md") == "[a](../contributing.md)"
    assert moved("[a](docs/comparing.md)", "README.md") == "[a](comparing.md)"
    picture = "figures/gallery/digit-6/overview.png"
    assert moved(f"![a]({picture})", "README.md") == "![a](gallery/digit-6/overview.png)"
    assert (
        moved(f'<img src="{picture}" width="9">', "README.md") == '<img src="gallery/digit-6/overview.png" width="9">'
    )
    assert moved("[`x`](../unlearn/methods/regrow.py)", "docs/erasing.md") == "[`x`][unlearn.methods.regrow]"
    assert moved("[`x`](analysis/audit/__init__.py)", "README.md") == "[`x`][analysis.audit]"
    assert moved("[the list](pyproject.toml)", "README.md") == "the list"
    for same in ("[a](comparing.md)", "[a](#here)", "[a](https://example.org/README.md)", "[a](../nowhere.md)"):
        assert moved(same, "docs/erasing.md") == same


def test_formulas_become_mathml() -> None:
    drawn = hook("formulas").drawn
    inline = drawn(r'<p><span class="arithmatex">\(a_i &lt; \theta\)</span></p>')
    assert inline.startswith("<p><math")
    assert 'display="inline"' in inline
    assert "θ" in html.unescape(inline)
    assert 'display="block"' in drawn('<div class="arithmatex">\\[\\frac{1}{2}\\]</div>')
    assert drawn("<code>$a$</code>") == "<code>$a$</code>"


# The files, as a code host shows them.


@cache
def tokens(path: Path) -> tuple[Token, ...]:
    found: list[Token] = []
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8")):
        found += [token, *(token.children or ())]
    return tuple(found)


@cache
def anchors(path: Path) -> frozenset[str]:
    """Anchors of a Markdown file as code hosts make them of its headings."""
    found: dict[str, int] = {}
    names = []
    every = tokens(path)
    for opened, inside in pairwise(every):
        if opened.type == "heading_open":
            text = "".join(t.content for t in inside.children or () if t.type in {"text", "code_inline"})
            slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
            names.append(f"{slug}-{found[slug]}" if slug in found else slug)
            found[slug] = found.get(slug, 0) + 1
    names += re.findall(r"(?:id|name)=\"([^\"]+)\"", "".join(t.content for t in every if t.type.startswith("html")))
    return frozenset(names)


def targets(path: Path) -> Iterator[str]:
    for token in tokens(path):
        if token.type in {"link_open", "image"}:
            yield str(token.attrs.get("href") or token.attrs.get("src"))
        elif token.type.startswith("html"):
            yield from re.findall(r"(?:href|src|srcset)=\"([^\"\s]+)", token.content)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_between_files_resolve(document: Path) -> None:
    lost = []
    for target in targets(document):
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            continue
        file = (document.parent / unquote(parts.path)).resolve() if parts.path else document
        wrong = parts.fragment and file.suffix == ".md" and file.is_file() and parts.fragment not in anchors(file)
        if not file.exists() or not file.is_relative_to(ROOT) or wrong:
            lost.append(target)
    assert lost == []


# What is to be typed.


def typed(line: str) -> Iterator[list[str]]:
    """Calls of ours in a line of shell, without comments."""
    reader = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
    reader.whitespace_split = True
    call: list[str] = []
    for word in [*reader, ";"]:
        if set(word) <= set(";&|<>"):
            if call[:1] == ["yesterday"]:
                yield call[1:]
            call = []
        else:
            call.append(word)


def commands(document: Path) -> Iterator[list[str]]:
    """All calls of ours that a document writes out: blocks of shell, and code in a sentence that names a command."""
    for token in tokens(document):
        if token.type == "fence" and token.info.strip() in {"sh", "bash", "shell", "console"}:
            for line in token.content.replace("\\\n", " ").splitlines():
                yield from typed(line)
        elif token.type == "code_inline" and re.match(r"(S=\S+; )?yesterday [a-z]", token.content):
            yield from typed(token.content)


def parse(words: list[str]) -> None:
    """Parse a call as the command line does, without running it; raises what the command line would raise."""
    group, name = typer.main.get_command(yesterday.app), "yesterday"
    while hasattr(group, "commands"):
        if not words or words[0].startswith("-"):
            assert words in ([], ["--help"], ["--install-completion"]), words
            return
        name, words = words[0], words[1:]
        assert name in group.commands, f"no command {name}"
        group = group.commands[name]
    if words and "--help" not in words:  # a command's bare name only names it
        group.make_context(name, list(words))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_commands_in_the_documents_exist(document: Path) -> None:
    for words in commands(document):
        try:
            parse(words)
        except Exception as error:
            pytest.fail(f"yesterday {shlex.join(words)}: {error}")


def test_commands_are_found_and_wrong_ones_refused() -> None:
    assert sum(len(list(commands(document))) for document in DOCUMENTS) > 60
    line = "yesterday show runs/a; yesterday list  # yesterday no"
    assert list(typed(line)) == [["show", "runs/a"], ["list"]]
    for wrong in (["compare", "digit-6", "--sedes", "3"], ["forgett"], ["compare", "--seeds", "many"], ["apply", "a"]):
        with pytest.raises(Exception, match=r"."):
            parse(wrong)


SNIPPETS = ROOT / "docs" / "how-to" / "attribution.md"
PYTHON = [token.content for token in tokens(SNIPPETS) if token.type == "fence" and token.info == "python"]


@pytest.mark.parametrize("snippet", PYTHON, ids=["any module", "language model"])
def test_snippets_run(snippet: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(snippet, str(SNIPPETS), "exec"), {"__name__": "snippet"})
    assert capsys.readouterr().out
