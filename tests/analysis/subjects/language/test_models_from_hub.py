"""Models by their name on a hub: a server here that answers as much as a download asks."""

import functools
import hashlib
import http.server
import json
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants
from small_models import same, saved, small_gpt2

from analysis.errors import UserError
from analysis.subjects.language.models import load_language_model


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as a download needs: two repositories, one without safetensors."""

    protocol_version = "HTTP/1.0"  # no connection outlives the server
    commit = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, root: Path, *given) -> None:
        self.root = root
        super().__init__(*given)

    def log_message(self, *_given) -> None:
        pass

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/")
        parts = path.removeprefix("api/models/").split("/")
        folder = self.root / parts[0]
        if not folder.is_dir():
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        names = sorted(file.name for file in folder.iterdir())
        if parts[1] == "tree":
            rows = [{"type": "file", "path": n, "size": (folder / n).stat().st_size, "oid": n} for n in names]
            return self.send(200, json.dumps(rows).encode(), {"Content-Type": "application/json"})
        if parts[1] == "revision":
            info = {"id": parts[0], "sha": self.commit, "siblings": [{"rfilename": name} for name in names]}
            return self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        body = (folder / parts[-1]).read_bytes()
        tag = hashlib.sha256(body).hexdigest()
        return self.send(200, body, {"ETag": f'"{tag}"', "X-Repo-Commit": self.commit})

    do_HEAD = do_GET


def test_models_from_a_hub(tmp_path, monkeypatch):
    model, hub = small_gpt2(), tmp_path / "hub"
    saved(model, hub / "gpt2")
    (hub / "gpt2" / "pytorch_model.bin").write_bytes(b"not to be fetched")
    saved(model, hub / "old")
    (hub / "old" / "model.safetensors").rename(hub / "old" / "pytorch_model.bin")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Hub, hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # What the environment would set, had the library not been imported yet.
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    said: list[tuple[str, float]] = []
    try:
        found = load_language_model("gpt2", lambda text, share: said.append((text, share)))
        with pytest.raises(UserError, match="old has no weights as safetensors on the hub"):
            load_language_model("old")
        with pytest.raises(UserError, match="The hub knows no model 'nobody-has-this'"):
            load_language_model("nobody-has-this")
    finally:
        server.shutdown()
        server.server_close()
    assert same(model, found.model)
    assert (found.name, found.longest) == ("gpt2", 128)
    assert found.source == f"huggingface.co/gpt2, revision {_Hub.commit}"
    assert said[-1] == ("Fetching gpt2 from the Hugging Face hub", 1.0)
    assert not list((tmp_path / "home").rglob("pytorch_model.bin"))
    # The server is gone: what was fetched still loads, and anything else is said in one sentence.
    assert same(model, load_language_model("gpt2").model)
    with pytest.raises(UserError, match="Can't fetch gpt2-medium from the Hugging Face hub") as caught:
        load_language_model("gpt2-medium")
    assert str(caught.value).endswith("put the model into a folder and give --model ./folder.")
