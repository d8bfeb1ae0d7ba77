"""What the Hub of `local_hub.py` answers: one function for each thing that a client asks."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from typing import Any

from hub_state import Blob, Refused, Repo, State, User, is_lfs


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Call:
    """One request, as the routes see it."""

    state: State
    endpoint: str
    query: str
    headers: Message
    body: bytes
    user: User | None

    def repo(self, kind: str | None, repo_id: str, write: bool = False) -> Repo:
        return self.state.repo((kind or "model").strip("/").removesuffix("s"), repo_id, self.user, write)

    def json(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.body or b"{}")
        return content


Route = Callable[..., Any]
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []
API = "/api/(models|datasets|spaces)/([^/]+/[^/]+)"
GIT = "/((?:datasets|spaces)/)?([^/]+/[^/]+)"


def route(method: str, pattern: str) -> Callable[[Route], Route]:
    def keep(function: Route) -> Route:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return keep


def url_of(call: Call, repo: Repo) -> str:
    return f"{call.endpoint}/{'' if repo.kind == 'model' else f'{repo.kind}s/'}{repo.id}"


@route("GET", "/api/whoami-v2")
def whoami(call: Call) -> dict[str, Any]:
    if call.user is None:
        raise Refused(401, "Invalid username or password.")
    orgs = [{"type": "org", "id": org, "name": org, "fullname": org} for org in call.user.orgs]
    auth = {"type": "access_token", "accessToken": {"displayName": "local", "role": call.user.role}}
    return {"type": "user", "id": call.user.name, "name": call.user.name, "orgs": orgs, "auth": auth}


@route("POST", "/api/validate-yaml")
def validate_yaml(call: Call) -> dict[str, Any]:
    return {"errors": [], "warnings": []}


@route("POST", "/api/repos/create")
def create_repo(call: Call) -> dict[str, Any]:
    asked = call.json()
    kind = asked.get("type") or "model"
    namespace = asked.get("organization") or (call.user.name if call.user else "")
    repo_id = f"{namespace}/{asked['name']}"
    if call.user is None:
        raise Refused(401, "Invalid username or password.")
    if not call.user.may_write(repo_id):
        raise Refused(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
    try:
        repo = call.state.make(kind, repo_id, asked.get("visibility") == "private" or bool(asked.get("private")))
    except Refused as refused:
        refused.body["url"] = url_of(call, call.state.repos[kind, repo_id])
        raise
    return {"url": url_of(call, repo), "name": repo_id, "id": repo_id}


@route("GET", API + "(?:/revision/([^/]+))?")
def info(call: Call, kind: str, repo_id: str, revision: str | None) -> dict[str, Any]:
    repo = call.repo(kind, repo_id)
    return repo.info(repo.at(revision or "main"))


@route("GET", API + "/refs")
def refs(call: Call, kind: str, repo_id: str) -> dict[str, Any]:
    tags = call.repo(kind, repo_id).tags
    listed = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": sha} for name, sha in tags.items()]
    return {"converts": [], "pullRequests": [], "branches": [], "tags": listed}


@route("POST", API + "/tag/([^/]+)")
def create_tag(call: Call, kind: str, repo_id: str, revision: str) -> dict[str, Any]:
    repo, name = call.repo(kind, repo_id, write=True), call.json()["tag"]
    if name in repo.tags:
        raise Refused(409, "Tag reference exists already")
    repo.tags[name] = repo.at(revision).sha
    return {}


@route("GET", API + "/tree/([^/]+)(?:/(.+))?")
def tree(call: Call, kind: str, repo_id: str, revision: str, folder: str | None) -> list[Any]:
    """The files below a folder with the folders on the way to them, or what lies directly in it."""
    begin = f"{folder}/" if folder else ""
    files = {k: v for k, v in call.repo(kind, repo_id).at(revision).files.items() if k.startswith(begin)}
    if not files:
        raise Refused(404, f"{folder} does not exist", "EntryNotFound")
    inner = {begin + "/".join(k[len(begin) :].split("/")[:n]) for k in files for n in range(1, k.count("/") + 1)}
    rows = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": k} for k in inner - set(files)]
    rows += [blob.row(path) for path, blob in files.items()]
    deep = "recursive=true" in call.query.lower()
    return [row for row in sorted(rows, key=lambda row: row["path"]) if deep or "/" not in row["path"][len(begin) :]]


@route("POST", API + "/preupload/([^/]+)")
def preupload(call: Call, kind: str, repo_id: str, revision: str) -> dict[str, Any]:
    there, files = call.repo(kind, repo_id, write=True).at(revision).files, []
    for file in call.json()["files"]:
        path, old = file["path"], there.get(file["path"])
        mode = "lfs" if is_lfs(path, base64.b64decode(file["sample"])) else "regular"
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": old.etag if old else None})
    return {"files": files}


@route("POST", GIT + r"\.git/info/lfs/objects/(batch|verify)")
def lfs(call: Call, kind: str | None, repo_id: str, step: str) -> dict[str, Any]:
    repo, asked = call.repo(kind, repo_id, write=True), call.json()
    if step == "verify":
        if len(call.state.store.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, "The object was not uploaded, or has another size")
        return {}
    objects = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in asked["objects"]]
    for wanted in objects:
        if wanted["oid"] not in call.state.store:
            verify = {"href": f"{url_of(call, repo)}.git/info/lfs/objects/verify"}
            upload = {"href": f"{call.endpoint}/lfs-storage/{wanted['oid']}"}
            wanted["actions"] = {"upload": upload, "verify": verify}
    return {"transfer": "basic", "objects": objects}


@route("PUT", "/lfs-storage/([0-9a-f]{64})")
def lfs_put(call: Call, oid: str) -> dict[str, Any]:
    call.state.store[oid] = call.body
    return {}


@route("POST", API + "/commit/main")
def commit(call: Call, kind: str, repo_id: str) -> dict[str, Any]:
    repo = call.repo(kind, repo_id, write=True)
    changes: dict[str, Blob | None] = {}
    parent = None
    for item in map(json.loads, call.body.decode().splitlines()):
        value, key = item["value"], item["key"]
        if key == "header":
            parent = value.get("parentCommit")
        elif key == "file":
            changes[value["path"]] = Blob(base64.b64decode(value["content"]))
        elif key == "lfsFile" and value["oid"] in call.state.store:
            changes[value["path"]] = Blob(call.state.store[value["oid"]], lfs=True)
        elif key == "deletedFile":
            changes[value["path"]] = None
        else:
            raise Refused(400, f"unknown operation {key}, or a pointer to a file that does not exist")
    made = repo.add(changes, parent)
    return {"success": True, "commitOid": made.sha, "commitUrl": f"{url_of(call, repo)}/commit/{made.sha}"}


@route("GET", GIT + "/resolve/([^/]+)/(.+)")
def resolve(call: Call, kind: str | None, repo_id: str, revision: str, path: str) -> Answer:
    commit = call.repo(kind, repo_id).at(revision)
    blob, headers = commit.files.get(path), {"X-Repo-Commit": commit.sha}
    if blob is None:
        answer = refusal(Refused(404, "Entry not found", "EntryNotFound"))
        return Answer(answer.body, 404, headers | answer.headers)
    headers |= {"ETag": f'"{blob.etag}"', "Content-Type": "application/octet-stream"}
    if blob.lfs:
        headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
    return Answer(blob.data, 200, headers)


def refusal(refused: Refused) -> Answer:
    headers = {"X-Error-Message": refused.body["error"], "Content-Type": "application/json"}
    headers |= {"X-Error-Code": refused.code} if refused.code else {}
    headers |= {"Retry-After": "0"} if refused.status == 429 else {}
    return Answer(json.dumps(refused.body).encode(), refused.status, headers)
