"""What the Hub of `local_hub.py` answers: one function for each thing that a client asks."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from typing import Any
from urllib.parse import parse_qs

import hub_xet
from hub_state import Blob, Refused, Repo, State, User


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
    method: str
    query: dict[str, list[str]]
    headers: Message
    body: bytes
    user: User | None

    def repo(self, kind: str | None, repo_id: str, write: bool = False) -> Repo:
        return self.state.repo("dataset" if (kind or "").startswith("dataset") else "model", repo_id, self.user, write)

    def json(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.body or b"{}")
        return content

    def wants(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("true", "1")


Route = Callable[..., Any]
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []
API = "/api/(models|datasets)/([^/]+/[^/]+)"
GIT = "/(datasets/)?([^/]+/[^/]+)"


def route(method: str, pattern: str) -> Callable[[Route], Route]:
    def keep(function: Route) -> Route:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return keep


def url_of(call: Call, repo: Repo) -> str:
    return f"{call.endpoint}/{'datasets/' if repo.kind == 'dataset' else ''}{repo.id}"


@route("GET", "/api/whoami-v2")
def whoami(call: Call) -> dict[str, Any]:
    if call.user is None:
        raise Refused(401, "Invalid username or password.")
    orgs = [{"type": "org", "id": org, "name": org, "fullname": org, "roleInOrg": "write"} for org in call.user.orgs]
    auth = {"type": "access_token", "accessToken": {"displayName": "local", "role": call.user.role}}
    name = call.user.name
    return {"type": "user", "id": name, "name": name, "fullname": name, "isPro": False, "orgs": orgs, "auth": auth}


@route("GET", "/api/agent-harnesses")
def harnesses(call: Call) -> dict[str, Any]:
    return {"standardEnvVars": [], "harnesses": {}}


@route("POST", "/api/validate-yaml")
def validate_yaml(call: Call) -> dict[str, Any]:
    bare = not re.match(r"---\n.*?\n---", call.json()["content"].replace("\r\n", "\n"), re.DOTALL)
    return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}] if bare else []}


@route("POST", "/api/repos/create")
def create_repo(call: Call) -> dict[str, Any]:
    asked = call.json()
    kind = asked.get("type") or "model"
    namespace = asked.get("organization") or (call.user.name if call.user else "")
    repo_id = f"{namespace}/{asked['name']}"
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    try:
        repo = call.state.create(kind, repo_id, private, call.user)
    except Refused as refused:
        if refused.status == 409:
            refused.body["url"] = url_of(call, call.state.repos[kind, repo_id])
        raise
    return {"url": url_of(call, repo), "name": repo_id, "id": repo_id}


@route("GET", API + "(?:/revision/([^/]+))?")
def info(call: Call, kind: str, repo_id: str, revision: str | None) -> dict[str, Any]:
    repo = call.repo(kind, repo_id)
    return repo.info(repo.at(revision or "main"), call.wants("blobs"))


@route("GET", API + "/auth-check(/write)?")
def auth_check(call: Call, kind: str, repo_id: str, write: str | None) -> dict[str, Any]:
    call.repo(kind, repo_id, write=write is not None)
    return {}


@route("GET", API + "/refs")
def refs(call: Call, kind: str, repo_id: str) -> dict[str, Any]:
    repo = call.repo(kind, repo_id)
    listed = {"branches": ("heads", repo.branches), "tags": ("tags", repo.tags)}
    answer: dict[str, Any] = {"converts": [], "pullRequests": []}
    for name, (folder, of) in listed.items():
        answer[name] = [{"name": k, "ref": f"refs/{folder}/{k}", "targetCommit": v} for k, v in of.items()]
    return answer


@route("GET", API + "/commits/([^/]+)")
def commits(call: Call, kind: str, repo_id: str, revision: str) -> list[dict[str, Any]]:
    history, rest = call.repo(kind, repo_id).at(revision).history(), {"message": ""}
    return [rest | {"id": c.sha, "title": c.title, "date": c.date, "authors": [{"user": c.author}]} for c in history]


@route("POST", API + "/(tag|branch)/([^/]+)")
def create_ref(call: Call, kind: str, repo_id: str, sort: str, name: str) -> dict[str, Any]:
    repo, asked = call.repo(kind, repo_id, write=True), call.json()
    of, start = (repo.tags, name) if sort == "tag" else (repo.branches, asked.get("startingPoint", "main"))
    name = asked["tag"] if sort == "tag" else name
    sha = repo.at(start).sha
    if name in of:
        raise Refused(409, f"{sort.capitalize()} reference exists already")
    of[name] = sha
    return {}


@route("DELETE", API + "/(tag|branch)/([^/]+)")
def delete_ref(call: Call, kind: str, repo_id: str, sort: str, name: str) -> dict[str, Any]:
    repo = call.repo(kind, repo_id, write=True)
    if (repo.tags if sort == "tag" else repo.branches).pop(name, None) is None:
        raise Refused(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return {}


@route("GET", API + "/tree/([^/]+)(?:/(.+))?")
def tree(call: Call, kind: str, repo_id: str, revision: str, path: str | None) -> list[Any]:
    commit = call.repo(kind, repo_id).at(revision)
    return commit.tree((path or "").strip("/"), call.wants("recursive"), call.wants("expand"))


@route("POST", API + "/paths-info/([^/]+)")
def paths_info(call: Call, kind: str, repo_id: str, revision: str) -> list[Any]:
    commit = call.repo(kind, repo_id).at(revision)
    asked = call.json() if "json" in call.headers.get("Content-Type", "") else parse_qs(call.body.decode())
    expand = str(asked.get("expand", "")).lower().strip("[']") == "true"
    return [row for path in asked["paths"] if (row := commit.entry(path.strip("/"), expand))]


@route("POST", API + "/preupload/([^/]+)")
def preupload(call: Call, kind: str, repo_id: str, revision: str) -> dict[str, Any]:
    repo = call.repo(kind, repo_id, write=True)
    there, files = repo.at(revision).files, []
    for file in call.json()["files"]:
        lfs = repo.is_lfs(file["path"], file["size"], base64.b64decode(file["sample"]))
        old = there.get(file["path"])
        files.append({"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False})
        files[-1]["oid"] = old.etag if old else None
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
            verify = f"{url_of(call, repo)}.git/info/lfs/objects/verify"
            upload = {"href": f"{call.endpoint}/lfs-storage/{wanted['oid']}"}
            wanted["actions"] = {"upload": upload, "verify": {"href": verify}}
    return {"transfer": "basic", "objects": objects}


@route("PUT", "/lfs-storage/([0-9a-f]{64})")
def lfs_put(call: Call, oid: str) -> dict[str, Any]:
    call.state.store[oid] = call.body
    return {}


@route("GET", API + "/xet-(read|write)-token/([^/]+)")
def xet_token(call: Call, kind: str, repo_id: str, right: str, revision: str) -> dict[str, Any]:
    call.repo(kind, repo_id, write=right == "write")
    token = call.headers["Authorization"].removeprefix("Bearer ")
    return {"accessToken": token, "exp": int(time.time()) + 3600, "casUrl": call.endpoint}


@route("POST", "/v1/xorbs/default/([0-9a-f]{64})")
def xet_xorb(call: Call, name: str) -> dict[str, Any]:
    call.state.xorbs[name] = call.body
    return {"was_inserted": True}


@route("POST", "/v1/shards")
def xet_shard(call: Call) -> dict[str, Any]:
    for content in hub_xet.files_of(call.body, call.state.xorbs):
        call.state.store[hashlib.sha256(content).hexdigest()] = content
    return {"result": 1}


@route("POST", API + "/commit/([^/]+)")
def commit(call: Call, kind: str, repo_id: str, revision: str) -> dict[str, Any]:
    repo = call.repo(kind, repo_id, write=True)
    if call.wants("create_pr"):
        raise Refused(400, "This Hub knows no pull requests")
    changes: dict[str, Blob | None] = {}
    header: dict[str, Any] = {}
    for line in call.body.decode().splitlines():
        item = json.loads(line)
        value, path = item["value"], item["value"].get("path", "")
        if item["key"] == "header":
            header = value
        elif item["key"] == "file":
            changes[path] = Blob(base64.b64decode(value["content"]))
        elif item["key"] == "lfsFile":
            if value["oid"] not in call.state.store:
                raise Refused(400, f"LFS pointer pointed to a file that does not exist: {path}")
            changes[path] = Blob(call.state.store[value["oid"]], lfs=True)
        elif item["key"] == "deletedFile":
            changes[path] = None
        elif item["key"] == "deletedFolder":
            changes[path.rstrip("/") + "/"] = None
        else:
            raise Refused(400, f"unknown operation {item['key']}")
    assert call.user
    made = repo.add(changes, header["summary"], call.user.name, revision, header.get("parentCommit"))
    return {"success": True, "commitOid": made.sha, "commitUrl": f"{url_of(call, repo)}/commit/{made.sha}"}


@route("GET", GIT + "/resolve/([^/]+)/(.+)")
def resolve(call: Call, kind: str | None, repo_id: str, revision: str, path: str) -> Answer:
    commit = call.repo(kind, repo_id).at(revision)
    blob, headers = commit.files.get(path), {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    if blob is None:
        refused = refusal(Refused(404, "Entry not found", "EntryNotFound"))
        return Answer(refused.body, 404, headers | refused.headers)
    headers |= {"ETag": f'"{blob.etag}"', "Content-Type": "application/octet-stream"}
    if blob.lfs:
        headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
    size, asked = len(blob.data), re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("Range", ""))
    if not asked or asked[0] == "bytes=-":
        return Answer(blob.data, 200, headers)
    first = int(asked[1]) if asked[1] else max(size - int(asked[2]), 0)
    last = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
    if first > last:
        return Answer(b"", 416, headers | {"Content-Range": f"bytes */{size}"})
    return Answer(blob.data[first : last + 1], 206, headers | {"Content-Range": f"bytes {first}-{last}/{size}"})


def refusal(refused: Refused) -> Answer:
    headers = {"X-Error-Message": refused.body["error"], "Content-Type": "application/json"}
    headers |= {"X-Error-Code": refused.code} if refused.code else {}
    headers |= {"Retry-After": "0"} if refused.status == 429 else {}
    return Answer(json.dumps(refused.body).encode(), refused.status, headers)
