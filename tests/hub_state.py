"""What the Hub of `local_hub.py` remembers, in memory: users, repositories with their commits and tags, the LFS store.

A fresh repository has one commit with a `.gitattributes`, as on the Hub.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import yaml

# What goes to LFS by its name; so does anything binary.
_LFS = tuple(".bin .h5 .msgpack .npy .npz .onnx .parquet .pickle .pkl .pt .pth .safetensors .tar .zip".split())
MOVED = "A commit has happened since. Please refresh and try again."


class Refused(Exception):
    """An answer that is an error: its status, its message, and the X-Error-Code that the client turns into a class."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **body}


@dataclass(frozen=True)
class User:
    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()

    def may_write(self, repo_id: str) -> bool:
        return self.role == "write" and self.owns(repo_id)

    def owns(self, repo_id: str) -> bool:
        return repo_id.split("/")[0] in (self.name, *self.orgs)


@dataclass(frozen=True)
class Blob:
    """The bytes of one file, and whether git holds them or a pointer to them."""

    data: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        head = "version https://git-lfs.github.com/spec/v1"
        return f"{head}\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @cached_property
    def git_oid(self) -> str:
        """The id of the blob in git: that of the pointer if the file is in LFS."""
        content = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid

    def row(self, path: str) -> dict[str, Any]:
        """The file's row of /tree."""
        row = {"type": "file", "oid": self.git_oid, "size": len(self.data), "path": path}
        lfs = {"oid": self.sha256, "size": len(self.data), "pointerSize": len(self.pointer)}
        return row | ({"lfs": lfs} if self.lfs else {})


def is_lfs(path: str, sample: bytes) -> bool:
    return bool(sample) and (path.endswith(_LFS) or b"\0" in sample)


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: Commit | None
    files: Mapping[str, Blob]
    date: str

    def history(self) -> Iterator[Commit]:
        at: Commit | None = self
        while at:
            yield at
            at = at.parent


@dataclass
class Repo:
    id: str
    kind: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    head: str | None = None

    def __post_init__(self) -> None:
        text = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in _LFS)
        self.add({".gitattributes": Blob(text.encode())})

    def at(self, revision: str) -> Commit:
        """The commit of the main branch, a tag or a sha."""
        sha = self.head if revision == "main" else self.tags.get(revision, revision)
        if sha not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def add(self, changes: Mapping[str, Blob | None], parent: str | None = None) -> Commit:
        """One commit on the main branch. None deletes a file."""
        before = self.commits[self.head] if self.head else None
        if parent and before and before.sha != parent:
            raise Refused(412, MOVED)
        if gone := [k for k, blob in changes.items() if blob is None and not (before and k in before.files)]:
            raise Refused(404, f"A file with this name doesn't exist: {gone[0]}", "EntryNotFound")
        files = {k: v for k, v in {**(before.files if before else {}), **changes}.items() if v is not None}
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        content = "".join(f"{k}{v.git_oid}" for k, v in sorted(files.items()))
        sha = hashlib.sha1(f"{self.kind} {self.id} {len(self.commits)} {date} {content}".encode()).hexdigest()
        self.commits[sha], self.head = Commit(sha, before, files, date), sha
        return self.commits[sha]

    def info(self, commit: Commit) -> dict[str, Any]:
        card = commit.files.get("README.md")
        head = re.match(r"---\n(.*?)\n---\n", card.data.decode(), flags=re.DOTALL) if card else None
        return {
            "_id": self.id, "id": self.id, "sha": commit.sha, "lastModified": commit.date, "private": self.private,
            "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0,
            "siblings": [{"rfilename": path, "size": len(blob.data)} for path, blob in sorted(commit.files.items())],
            "cardData": yaml.safe_load(head[1]) if head else None,
        }  # fmt: skip


class State:
    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.users: dict[str, User] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.store: dict[str, bytes] = {}  # LFS: sha256 -> bytes

    def user(self, authorization: str | None) -> User | None:
        if authorization is None:
            return None
        user = self.users.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        return user

    def repo(self, kind: str, repo_id: str, user: User | None, write: bool = False) -> Repo:
        """A repository that this user may read or write. Whoever may not read it is told that there is none."""
        repo = self.repos.get((kind, repo_id))
        hidden = repo is None or (repo.private and not (user and user.owns(repo_id)))
        if user is None and (hidden or write):
            raise Refused(401, "Invalid username or password.", "RepoNotFound")
        if repo is None or hidden:
            raise Refused(404, "Repository not found", "RepoNotFound")
        if write and not (user and user.may_write(repo_id)):
            raise Refused(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request.")
        return repo

    def make(self, kind: str, repo_id: str, private: bool = False) -> Repo:
        if (kind, repo_id) in self.repos:
            raise Refused(409, f"You already created this {kind} repo")
        return self.repos.setdefault((kind, repo_id), Repo(repo_id, kind, private))
