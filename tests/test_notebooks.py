"""Every notebook is executed from its first cell to its last, as by a reader, and what is stored in it is looked at."""

import ast
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 600
# The one thing that a notebook may lack: the language model, where it isn't here yet and nothing can be fetched.
UNREACHABLE = "from the package index"
# Two names after a slash that follows neither a word nor a tag, or a drive letter; web addresses are none.
MACHINE_PATH = re.compile(r"(?<![\w./:<>-])/[\w.-]+/[\w.-]+|\b[A-Z]:\\")

LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: NotebookNode) -> list[str]:
    """What a cell shows, text that it printed, pictures or tables; what comes in pieces counts once.

    Warnings don't count: a library's next version may have others.
    """
    outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    found = [output.get("name") or "/".join(sorted(output.data)) for output in outputs]
    return [kind for place, kind in enumerate(found) if place == 0 or kind != found[place - 1]]


def texts(notebook: NotebookNode) -> list[str]:
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    shown = [value for output in outputs for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return [*shown, *(output.text for output in outputs if output.output_type == "stream")]


@every_notebook
def test_it_runs_and_its_claims_hold(path: Path, tmp_path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    for cell in code(fresh):
        cell.outputs, cell.execution_count = [], None
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    here = {"metadata": {"path": str(tmp_path)}}
    # A cell that raises, its claims at the end among them, raises here with the cell and its traceback.
    try:
        NotebookClient(fresh, timeout=SECONDS, kernel_name="python3", resources=here).execute(env=environment)
    except CellExecutionError as error:
        if UNREACHABLE in error.evalue:
            pytest.skip(error.evalue)
        raise
    assert [kinds(cell) for cell in code(stored)] == [kinds(cell) for cell in code(fresh)]


@every_notebook
def test_it_is_stored_as_it_ran_in_one_go(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not [text for text in texts(notebook) if MACHINE_PATH.search(text)]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert pictures
    assert all(output.metadata.get("image/png", {}).get("alt") for output in pictures), "a picture has no alt text"


@every_notebook
def test_what_it_links_to_is_there(path: Path) -> None:
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    assert not [link for link in LINK.findall(text) if not (path.parent / link).exists()]


@every_notebook
def test_it_ends_with_its_claims(path: Path) -> None:
    last = ast.parse(code(nbformat.read(path, as_version=4))[-1].source)
    assert any(isinstance(node, ast.Assert) for node in ast.walk(last))


@pytest.mark.parametrize("text", ["saved in /tmp/xyz/run", "'/home/me/notebook.py'", "C:\\Users\\me", "(/opt/a/b)"])
def test_machine_paths_are_seen(text: str) -> None:
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize(
    "text", ["before/after/gold", "</b></td>", "https://docs.python.org/3/library", "1/2", "a / b"]
)
def test_other_slashes_are_not(text: str) -> None:
    assert not MACHINE_PATH.search(text)
