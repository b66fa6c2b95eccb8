"""The explorer's shell: what its server gives out and to whom, and whom the style sheets reach."""

import json
import os
import re
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from classes_explored import explored

from analysis.errors import UserError
from figures import style
from figures.explorer.app import STYLES, newest_run, serving

OWN = {
    "class_page.css": (".classes", ".dark .classes", "#pad"),
    "facts_page.css": (".facts", ".dark .facts"),
    "shell.css": (".gradio-container", ".verdict", "svg.chart"),
}
"""What the selectors of each style sheet begin with."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explored(tmp_path_factory.mktemp("runs") / "digit-6", golds=0)


@pytest.fixture(scope="module")
def connection(folder: Path) -> Iterator[HTTPConnection]:
    with serving(folder) as address:
        opened = HTTPConnection(urlsplit(address).hostname or "", urlsplit(address).port)
        yield opened
        opened.close()


def answer(connection: HTTPConnection, path: str, method: str = "GET", **more: str) -> tuple[int, bytes]:
    host = more.pop("host", None)
    connection.request(method, path, headers={"Host": host} if host else {}, **more)
    found = connection.getresponse()
    return found.status, found.read()


@pytest.mark.parametrize("route", ["/gradio_api/file=", "/gradio_api/file/", "/static/", "/assets/"])
def test_no_file_of_the_run_or_of_the_user_is_given_out(connection: HTTPConnection, folder: Path, route: str) -> None:
    profile = Path.home() / ".profile"
    for path in (folder / "run.json", folder / "models" / "original.safetensors", Path(__file__), profile):
        for written in (path, os.path.relpath(path)):
            status, content = answer(connection, f"{route}{written}")
            assert status in {403, 404}
            assert len(content) < 500


def test_only_this_machine_by_its_own_names_is_answered(connection: HTTPConnection) -> None:
    for host in ("127.0.0.1", "localhost:7860"):
        assert answer(connection, "/", host=host)[0] == 200
    for host in ("evil.example", "127.0.0.1.evil.example"):
        assert answer(connection, "/config", host=host)[0] == 400


def test_nothing_can_be_left_on_the_server(connection: HTTPConnection) -> None:
    part = '--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\nsome text\r\n--x--\r\n'
    connection.request(
        "POST", "/gradio_api/upload", body=part, headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    found = connection.getresponse()
    assert (found.status, b"exceeded" in found.read()) == (413, True)


def test_nobody_but_the_page_is_told_how_to_call_it(connection: HTTPConnection) -> None:
    status, content = answer(connection, "/gradio_api/info")
    assert (status, json.loads(content)) == (200, {"named_endpoints": {}, "unnamed_endpoints": {}})


def test_a_style_sheet_reaches_its_own_page_alone() -> None:
    sheets = {path.name: path.read_text(encoding="utf-8") for path in STYLES.glob("*.css")}
    assert sheets.keys() == OWN.keys()
    for name, text in sheets.items():
        plain = re.sub(r"/\*.*?\*/|@media[^{]*\{", "", text, flags=re.DOTALL)
        selectors = [one.strip() for group in re.findall(r"([^{}]+)\{", plain) for one in group.split(",")]
        assert len(selectors) > 5
        assert [one for one in selectors if not one.startswith(OWN[name])] == []


def test_curves_have_the_figures_colours() -> None:
    text = (STYLES / "class_page.css").read_text(encoding="utf-8")
    named = dict(re.findall(r"--(forgotten|rest|new): (#\w+);", text))
    assert named == {"forgotten": style.FORGOTTEN, "rest": style.RETAINED, "new": style.GOLD}


def test_the_newest_run_is_taken(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make one with: yesterday run digit-6"):
        newest_run(tmp_path)
    for at, name in enumerate(("b", "c", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
        os.utime(tmp_path / name / "run.json", (at, at))
    assert newest_run(tmp_path) == tmp_path / "a"
