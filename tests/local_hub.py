"""A small Hugging Face Hub on 127.0.0.1 for the tests: what huggingface_hub, datasets and transformers ask of one.

    with LocalHub() as hub:
        hub.add_user("hf_secret", "ann", orgs=["lab"])
        hub.create("lab/model", {"config.json": b"{}"})
        subprocess.run([...], env=hub.environment(tmp_path, token="hf_secret"))     # an unmodified client
        hub.use_in_process(monkeypatch, tmp_path, token="hf_secret")                # the one imported here
        hub.fail(503, "GET", "/resolve/", times=1)                                  # and hub.heal()

Uploads take plain LFS with one PUT a file (HF_HUB_DISABLE_XET); files come back from the Hub itself, not from a CDN.
What answers 401 for want of a token says `X-Error-Code: RepoNotFound`: behind https the client makes
RepositoryNotFoundError of the status alone. The client repeats preupload, the LFS steps, /tree and files up to five
times, with sleeps that `waits=False` skips in process; it repeats no commit, no create and no look-up.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from hub_routes import ROUTES, Answer, Call, refusal
from hub_state import MOVED, Blob, Refused, Repo, State, User, is_lfs

MESSAGES = {409: "Reference exists already", 412: MOVED, 429: "We had to rate limit you. Please retry in a while"}
KINDS = ("cut", "wrong_bytes", "slow", "drop", "lost")
OTHER = bytes(byte ^ 0x5A for byte in range(256))


class Request(NamedTuple):
    method: str
    path: str  # without the query, decoded
    status: int  # 0: the connection was closed without an answer


@dataclass
class Fault:
    kind: str | int
    method: str | None
    path: str
    times: int | None
    seconds: float

    def hits(self, method: str, path: str) -> bool:
        if self.times == 0 or self.method not in (None, method) or not re.search(self.path, path):
            return False
        if self.times is not None:
            self.times -= 1
        return True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: LocalHub

    def setup(self) -> None:
        super().setup()
        self.hub._open.add(self.connection)

    def finish(self) -> None:
        self.hub._open.discard(self.connection)
        super().finish()

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client went away, or the Hub was stopped
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def read_body(self) -> bytes:
        """Sized or chunked."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size + 2)[:-2])
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, path: str, body: bytes) -> Answer:
        """What an intact Hub answers."""
        hub, method = self.hub, "GET" if self.command == "HEAD" else self.command
        try:
            with hub.state.lock:
                user = hub.state.user(self.headers.get("Authorization"))
                call = Call(hub.state, hub.endpoint, urlsplit(self.path).query, self.headers, body, user)
                for wanted, pattern, function in ROUTES:
                    if wanted == method and (found := pattern.fullmatch(path)):
                        done = function(call, *(None if part is None else unquote(part) for part in found.groups()))
                        if isinstance(done, Answer):
                            return done
                        return Answer(json.dumps(done).encode(), 200, {"Content-Type": "application/json"})
            raise Refused(404, f"this Hub has no {method} {path}")
        except Refused as refused:
            return refusal(refused)

    def serve(self) -> None:
        raw = urlsplit(self.path).path
        path, body = unquote(raw), self.read_body()
        fault = self.hub._planted(self.command, path)
        kind = fault.kind if fault else None
        status, answer = 0, Answer()
        if isinstance(kind, int):
            answer = refusal(Refused(kind, MESSAGES.get(kind, f"planted {kind}")))
        elif kind == "wrong_bytes" and self.command == "PUT":
            answer = self.answer(raw, body.translate(OTHER))
        elif kind != "drop":
            answer = self.answer(raw, body)
        if kind == "wrong_bytes":
            answer.body = answer.body.translate(OTHER)
        status = 0 if kind in ("drop", "lost") else answer.status
        self.hub.requests.append(Request(self.command, path, status))
        if status == 0:
            self.close_connection = True
            return
        if fault and kind == "slow":
            self.hub._stopped.wait(fault.seconds)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("X-Request-Id", f"local-{len(self.hub.requests)}")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if kind == "cut" else answer.body)
        self.close_connection |= kind == "cut"

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # a client comes with 16 connections at once


class LocalHub:
    """The server, what it holds, and what is wrong with it."""

    def __init__(self) -> None:
        self.state = State()
        self.requests: list[Request] = []
        self._faults: list[Fault] = []
        self._open: set[socket.socket] = set()
        self._stopped = threading.Event()
        self._port = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listens, after `stop` on the same port as before."""
        self._stopped.clear()
        handler = type("LocalHandler", (Handler,), {"hub": self})
        self._server = Server(("127.0.0.1", self._port), handler)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Refuses connections and closes those that are open: the Hub cannot be reached."""
        self._stopped.set()
        self._server.shutdown()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> LocalHub:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._stopped.is_set():
            self.stop()

    # What it holds.

    def add_user(self, token: str, name: str, role: str = "write", orgs: Iterable[str] = ()) -> None:
        """A token of that user: with the role "read" it may write nothing."""
        self.state.users[token] = User(name, role, tuple(orgs))

    def create(self, repo_id: str, files: Mapping[str, bytes], kind: str = "model", private: bool = False) -> str:
        """A repository with these files and its `.gitattributes`, past every token: the sha of its head."""
        with self.state.lock:
            self.state.make(kind, repo_id, private)
        return self.commit(repo_id, files, kind)

    def commit(self, repo_id: str, files: Mapping[str, bytes | None], kind: str | None = None) -> str:
        """A commit past every client: someone else moved the repository. None deletes."""
        changes = {path: None if data is None else Blob(data, is_lfs(path, data)) for path, data in files.items()}
        with self.state.lock:
            return self.repo(repo_id, kind).add(changes).sha

    def repo(self, repo_id: str, kind: str | None = None) -> Repo:
        """The model of that id, or the dataset, or the Space."""
        found = [self.state.repos.get((one, repo_id)) for one in ([kind] if kind else ["model", "dataset", "space"])]
        return next(repo for repo in found if repo)

    def files(self, repo_id: str, revision: str = "main", kind: str | None = None) -> dict[str, bytes]:
        """What stands at a revision, `.gitattributes` included."""
        return {path: blob.data for path, blob in self.repo(repo_id, kind).at(revision).files.items()}

    def commits(self, repo_id: str, kind: str | None = None) -> list[str]:
        """The shas, newest first; the last is the commit that created it."""
        return [commit.sha for commit in self.repo(repo_id, kind).at("main").history()]

    def tags(self, repo_id: str) -> dict[str, str]:
        return dict(self.repo(repo_id).tags)

    def asked(self, method: str, path: str) -> list[Request]:
        """The requests of that method whose path matches."""
        return [request for request in self.requests if request.method == method and re.search(path, request.path)]

    # What is wrong with it.

    def fail(
        self, kind: str | int, method: str | None = None, path: str = "", times: int | None = None, seconds: float = 2
    ) -> None:
        """Plants a fault; of several that match, the one planted first.

        Args:
            kind: a status of 400 or more, which is answered instead; "cut" (half of the body, then the connection is
                closed), "wrong_bytes" (as many others; of a PUT, what is stored), "slow" (after `seconds`),
                "drop" (the connection is closed and nothing is done), "lost" (all is done, then the same).
            method: this one only. HEAD and GET are two.
            path: a regular expression, searched in the decoded path without the query.
            times: how often; None is until `heal`.
        """
        assert kind in KINDS or isinstance(kind, int), kind
        with self.state.lock:
            self._faults.append(Fault(kind, method, path, times, seconds))

    def heal(self) -> None:
        with self.state.lock:
            self._faults.clear()

    def _planted(self, method: str, path: str) -> Fault | None:
        with self.state.lock:
            return next((fault for fault in self._faults if fault.hits(method, path)), None)

    # How a client comes to it.

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The whole environment of a subprocess whose Hub is this one and whose caches are in `home`."""
        return {k: v for k, v in os.environ.items() if not _OURS.match(k)} | self._variables(home, token)

    def _variables(self, home: Path, token: str | None) -> dict[str, str]:
        switches = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS")
        own = dict.fromkeys((*switches, "HF_DATASETS_DISABLE_PROGRESS_BARS"), "1")
        own |= {"HF_HUB_OFFLINE": "0", "HF_UPDATE_DOWNLOAD_COUNTS": "0", "NO_PROXY": "127.0.0.1"}
        own |= {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home)}
        return own | ({"HF_TOKEN": token} if token else {})

    def use_in_process(self, monkeypatch: Any, home: Path, token: str | None = None, waits: bool = True) -> None:
        """Points the libraries of this process here, until the monkeypatch is undone, and the children they start.

        They read their constants at import and copy them: every module of theirs that holds one of these names gets
        the new value. `waits=False`: the client's retries do not sleep.
        """
        for name in ("datasets", "huggingface_hub.repocard", "transformers.dynamic_module_utils"):
            importlib.import_module(name)  # before the patches: what is first imported under them would keep them
        import transformers.utils.hub
        from huggingface_hub import HfApi, constants, file_download, hf_api, hf_file_system
        from huggingface_hub.utils import _http

        for name in [name for name in os.environ if _OURS.match(name)]:
            monkeypatch.delenv(name)
        for name, value in self._variables(home, token).items():
            monkeypatch.setenv(name, value)
        template = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        values: dict[str, Any] = {
            "ENDPOINT": self.endpoint, "HF_ENDPOINT": self.endpoint, "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HUB_DATASETS_URL": self.endpoint + "/datasets/{repo_id}/resolve/{revision}/{path}",
            "HF_URL_HOSTS": getattr(constants, "HF_URL_HOSTS", frozenset()) | {"127.0.0.1"},
            "HF_HUB_OFFLINE": False, "HF_DATASETS_OFFLINE": False, "HF_EVALUATE_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True, "HF_HUB_DISABLE_TELEMETRY": True, "HF_HUB_DISABLE_PROGRESS_BARS": True,
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": False, "HF_UPDATE_DOWNLOAD_COUNTS": False,
        }  # fmt: skip
        places = {
            "": "HF_HOME HF_CACHE_HOME", "hub": "HF_HUB_CACHE HUGGINGFACE_HUB_CACHE", "xet": "HF_XET_CACHE",
            "assets": "HF_ASSETS_CACHE HUGGINGFACE_ASSETS_CACHE", "token": "HF_TOKEN_PATH",
            "stored_tokens": "HF_STORED_TOKENS_PATH", ".agent_harnesses.json": "AGENT_HARNESSES_PATH",
            "modules": "HF_MODULES_CACHE", "datasets": "HF_DATASETS_CACHE",
            "datasets/downloads": "DOWNLOADED_DATASETS_PATH",
            "datasets/downloads/extracted": "EXTRACTED_DATASETS_PATH",
        }  # fmt: skip
        values |= {name: home / place for place, names in places.items() for name in names.split()}
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").split(".")[0] not in _LIBRARIES:
                continue
            for name in values.keys() & vars(module).keys():
                new = values[name]
                keeps_text = isinstance(new, Path) and not isinstance(vars(module)[name], Path)
                monkeypatch.setattr(module, name, str(new) if keeps_text else new)
        _http.close_session()
        monkeypatch.setattr(hf_api.api, "endpoint", self.endpoint)
        monkeypatch.setattr(hf_api.api, "_whoami_cache", {})
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        monkeypatch.setattr(hf_file_system.HfFileSystem, "_cache", {})
        fresh: dict[str, Any] = {"endpoint": self.endpoint, "_api": HfApi()}
        fresh |= {"dircache": {}, "_repo_and_revision_exists_cache": {}}
        for name, value in fresh.items():
            monkeypatch.setattr(hf_file_system.hffs, name, value)
        if not waits:
            awake = SimpleNamespace(sleep=lambda seconds: None)
            monkeypatch.setattr(_http, "time", awake)
            monkeypatch.setattr(file_download, "time", awake)


_LIBRARIES = ("huggingface_hub", "datasets", "transformers", "evaluate", "peft")
_OURS = re.compile(r"HF_|HUGGING_?FACE|TRANSFORMERS_OFFLINE|(?:https?|all|no)_proxy$", re.IGNORECASE)
