"""Exports on the hub: one of the test's own takes them, and what goes wrong is one clear error."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scpo_ray.models.hub import check_portable, push_folder
from scpo_ray.records import InputError


class Hub(ThreadingHTTPServer):
    """Takes one commit; `refuses`: the status that it answers instead."""

    refuses: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.made: dict[str, object] = {}
        self.files: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.refuses is not None:
            return self.answer({"error": "no leave to write"}, self.server.refuses)
        if self.path == "/api/repos/create":
            self.server.made = json.loads(body)
            return self.answer({"url": f"{self.server.url}/me/model", "name": "me/model"})
        if self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            told = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            return self.answer({"files": told})
        if self.path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.server.files = {f["path"]: base64.b64decode(f["content"]) for f in files}
            url = f"{self.server.url}/me/model/commit/{'0' * 40}"
            return self.answer({"commitUrl": url, "commitOid": "0" * 40})
        return self.answer({}, 200)

    def do_GET(self) -> None:
        self.answer({}, self.server.refuses or 200)

    def answer(self, document: object, status: int = 200) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_testing")
        yield server
        server.shutdown()


@pytest.fixture
def export(tmp_path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    for name in ("README.md", "config.json", "manifest.json"):
        (folder / name).write_text(f"{name} of the test")
    return folder


def test_a_folder_is_pushed_to_a_private_model_without_its_manifest(hub, export):
    address = push_folder(export, "me/model")

    assert address == f"{hub.url}/me/model"
    assert (hub.made["name"], hub.made["organization"]) == ("model", "me")
    assert hub.made.get("private") is True or hub.made.get("visibility") == "private"
    assert hub.files == {
        "README.md": b"README.md of the test",
        "config.json": b"config.json of the test",
    }


def test_a_hub_that_refuses_is_told_with_what_to_do(hub, export):
    hub.refuses = 403

    with pytest.raises(InputError, match="--push me/model: the model cannot be uploaded") as caught:
        push_folder(export, "me/model")

    assert "403" in caught.value.problems[0]
    assert "HF_TOKEN" in caught.value.problems[1]
    assert (export / "README.md").is_file()


@pytest.mark.parametrize("repository", ["me/model", "no name at all", "a/b/c"])
def test_no_hub_and_names_that_are_none_are_one_error(export, repository, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(InputError, match=f"--push {repository}: .* cannot be uploaded; it lies in"):
        push_folder(export, repository)


@pytest.mark.parametrize(("base", "is_portable"), [("/models/base", False), ("org/base", True)])
def test_adapters_go_to_others_only_with_a_base_that_others_have(tmp_path, base, is_portable):
    settings = json.dumps({"base_model_name_or_path": base})
    (tmp_path / "adapter_config.json").write_text(settings)

    if is_portable:
        check_portable(tmp_path)
    else:
        with pytest.raises(InputError, match="a folder of this machine") as caught:
            check_portable(tmp_path)
        assert caught.value.problems == ("nobody else could load them: export with --merge",)
