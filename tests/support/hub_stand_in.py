"""A hub of this machine: repositories whose branches can be moved, served as the client of the hub asks for them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest


@dataclass
class StandIn:
    """What is on the hub."""

    url: str = ""
    commits: dict[tuple[str, str], Path] = field(default_factory=dict)
    """Name of a repository and commit to the folder with its files."""
    branches: dict[tuple[str, str], str] = field(default_factory=dict)
    """Name of a repository and branch to its commit."""
    requested_paths: list[str] = field(default_factory=list)

    def push(self, name: str, folder: Path, commit: str) -> None:
        """Move the branch main of a repository to a new commit."""
        self.commits[name, commit] = folder
        self.branches[name, "main"] = commit

    def commit(self, name: str, revision: str) -> str | None:
        """The commit that a revision is at."""
        return revision if (name, revision) in self.commits else self.branches.get((name, revision))


def _oid(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _file(path: Path) -> dict[str, object]:
    """What the hub tells of a file in its root."""
    return {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": _oid(path)}


def _handler(hub: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_POST(self) -> None:
            """Which of the named paths are files."""
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            folder = self._folder_of_tree("paths-info")
            names = [name for name in asked["paths"] if folder is not None and (folder / name).is_file()]
            self._send_json([_file(folder / name) for name in names if folder is not None], with_body=True)

        def log_message(self, format: str, *args: object) -> None:
            hub.requested_paths.append(self.path)

        def _answer(self, with_body: bool) -> None:
            parts = unquote(self.path.partition("?")[0]).strip("/").split("/")
            if parts[0] == "api" and len(parts) == 6 and parts[4] == "revision":
                name, revision = "/".join(parts[2:4]), parts[5]
                commit = hub.commit(name, revision)
                known = any(name == one for one, _ in hub.commits)
                if commit is None:
                    self._send(404, b"", {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"}, with_body)
                else:
                    sizes = [(each, each.stat().st_size) for each in sorted(hub.commits[name, commit].iterdir())]
                    siblings = [{"rfilename": each.name, "size": size, "blobId": _oid(each)} for each, size in sizes]
                    found = {"id": name, "sha": commit, "siblings": siblings}
                    self._send_json(found, with_body)
            elif (folder := self._folder_of_tree("tree")) is not None:
                self._send_json([_file(path) for path in sorted(folder.iterdir())], with_body)
            elif len(parts := parts[parts[0] == "datasets" :]) == 5 and parts[2] == "resolve":
                name, commit = "/".join(parts[:2]), hub.commit("/".join(parts[:2]), parts[3])
                path = hub.commits[name, commit] / parts[4] if commit is not None else None
                if path is None or not path.is_file():
                    self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit or ""}, with_body)
                else:
                    body = path.read_bytes()
                    etag = hashlib.sha256(body).hexdigest()
                    self._send(200, body, {"ETag": f'"{etag}"', "X-Repo-Commit": str(commit)}, with_body)
            else:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)

        def _folder_of_tree(self, verb: str) -> Path | None:
            """The folder of ``/api/datasets/owner/name/VERB/revision``."""
            parts = unquote(self.path.partition("?")[0]).strip("/").split("/")
            if parts[0] != "api" or len(parts) != 6 or parts[4] != verb:
                return None
            name = "/".join(parts[2:4])
            commit = hub.commit(name, parts[5])
            return None if commit is None else hub.commits[name, commit]

        def _send_json(self, content: object, with_body: bool) -> None:
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"}, with_body)

        def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    return Handler


def point_at(hub: StandIn, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process, and those that it starts, ask this hub, with an empty cache."""
    from huggingface_hub import constants, hf_api
    from transformers.utils import hub as of_transformers

    # Functions of the package belong to one object, which has the endpoint of the time when it was imported.
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
    # transformers makes such an object when it first needs one, and keeps it.
    monkeypatch.setattr(of_transformers, "_hf_api", None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """A hub that listens until the end of the block."""
    hub = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
