"""A model goes to the hub, here a server in this process; what is wrong is one sentence, and the token is in none."""

import base64
import json
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from biencoder.errors import BiencoderError
from launcher.export import main
from tests.models import export

TOKEN = "hf_" + "secret" * 6


@dataclass
class Hub:
    """What the hub holds, and how it answers."""

    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    refuses: int = 0
    """The status of every answer, if it is not 0."""
    tokens: set[str | None] = field(default_factory=set)

    def answer(self, method: str, path: str, body: bytes) -> Any:
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.private.setdefault(f"{asked['organization']}/{asked['name']}", asked.get("visibility") == "private")
            return {"url": f"{self.url}/{asked['organization']}/{asked['name']}"}
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            return {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}
        if path.endswith("/commit/main"):
            for value in (line["value"] for line in map(json.loads, body.splitlines()) if line["key"] == "file"):
                self.files[value["path"]] = base64.b64decode(value["content"])
            return {"commitUrl": f"{self.url}/owner/name/commit/0", "commitOid": "0" * 40, "success": True}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        name = "/".join(path.split("/")[3:5])
        if method != "GET" or name not in self.private:
            return {}
        return {"id": name, "private": self.private[name], "siblings": [], "tags": [], "sha": "0" * 40}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    held = Hub()

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            held.tokens.add(self.headers.get("Authorization"))
            path, status = self.path.split("?")[0], held.refuses or 200
            content = json.dumps(
                {"error": f"no, {TOKEN}"} if held.refuses else held.answer(self.command, path, body)
            ).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = respond

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    held.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", held.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield held
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def model(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "best"
    export(tiny_bert, folder, pooling="mean")
    return folder


def refusal(*arguments: str) -> str:
    with pytest.raises(BiencoderError) as error:
        main(arguments)
    said = str(error.value)
    assert "\n" not in said
    assert TOKEN not in said
    return said


def test_every_file_arrives_and_the_token_goes_nowhere_else(
    hub: Hub, model: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    main(["--model", str(model), "--push", "owner/name"])
    assert hub.files == {str(path.relative_to(model)): path.read_bytes() for path in model.rglob("*") if path.is_file()}
    assert hub.private == {"owner/name": False}
    assert hub.tokens - {None} == {f"Bearer {TOKEN}"}  # the library asks for some things without
    said = capsys.readouterr()
    assert f"The model is at {hub.url}/owner/name; the repository is public" in " ".join(said.out.split())
    assert TOKEN not in said.out + said.err + caplog.text
    assert not any(TOKEN.encode() in content for content in hub.files.values())


def test_a_repository_is_private_if_that_is_asked_and_stays_what_it_is(
    hub: Hub, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--model", str(model), "--push", "owner/secret", "--private"])
    main(["--model", str(model), "--push", "owner/secret"])
    assert hub.private == {"owner/secret": True}
    assert capsys.readouterr().out.count("the repository is private") == 2
    hub.private["owner/open"] = False
    hub.files.clear()
    assert "owner/open exists and is public" in refusal("--model", str(model), "--push", "owner/open", "--private")
    assert not hub.files


def test_what_hinders_a_push_is_one_sentence(
    hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("--model", str(model), "--push")
    for name in ("name", "owner/name/more", "owner/two words", "owner/", f"owner/{'n' * 97}"):
        assert f"--push is {name!r}, expected OWNER/NAME" in refusal(*command, name)
    assert "it has no biencoder.json" in refusal("--model", str(tmp_path), "--push", "owner/name")
    assert "give --out FOLDER for ONNX, or --push" in refusal("--model", str(model))
    assert "--private belongs to --push" in refusal("--model", str(model), "--out", "x", "--private")
    for status, sentence in {
        401: "the hub answers 401: it does not know the token",
        403: "the hub answers 403: the token may not write there",
        400: "the hub answers 400: ",
    }.items():
        hub.refuses = status
        assert sentence in refusal(*command, "owner/name")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the model cannot be pushed to owner/name: the hub cannot be reached (" in refusal(*command, "owner/name")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, so the hub is not asked; unset it" in refusal(*command, "owner/name")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "--push wants a token that may write to the hub: log in with `hf auth login`" in refusal(*command, "owner/name")
    assert not hub.files
    assert TOKEN not in os.environ.values()
