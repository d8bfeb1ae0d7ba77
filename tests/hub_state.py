"""What a Hub remembers, in memory: users, repositories, their commits, branches and tags, and the LFS store.

`local_hub.py` puts it behind HTTP. A fresh repository has one commit with a `.gitattributes`, as on the Hub, and an
LFS file that the patterns in it do not name gets a line of its own there, in the same commit.
"""

from __future__ import annotations

import fnmatch
import hashlib
import posixpath
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import yaml

LFS_FROM = 10_000_000  # bytes; what is larger or binary goes to LFS whatever its name
_LFS = "7z arrow bin bz2 ckpt ftz gz h5 joblib mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl pt pth rar"
_LFS += " safetensors tar tflite tgz wasm xz zip zst"
_LFS_PATTERNS = {"model": [f"*.{suffix}" for suffix in _LFS.split()]}
_LFS_PATTERNS["dataset"] = [*_LFS_PATTERNS["model"], "*.png", "*.jpg", "*.jpeg", "*.webp", "*.mp4"]
_ATTRIBUTE = " filter=lfs diff=lfs merge=lfs -text\n"
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
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        return text.encode()

    @cached_property
    def git_oid(self) -> str:
        """The id of the blob in git: of the pointer, where the file is in LFS."""
        content = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: Commit | None
    files: Mapping[str, Blob]
    title: str
    author: str
    date: str

    def history(self) -> Iterator[Commit]:
        at: Commit | None = self
        while at:
            yield at
            at = at.parent

    def below(self, path: str) -> dict[str, Blob]:
        """The file of that name, or the files of that folder."""
        return {k: v for k, v in self.files.items() if not path or k == path or k.startswith(path + "/")}

    def entry(self, path: str, expand: bool = False) -> dict[str, Any] | None:
        """A row of /tree and of /paths-info."""
        inside = self.below(path)
        if not inside:
            return None
        blob = self.files.get(path)
        if blob is None:
            tree = "".join(f"{k}{v.git_oid}" for k, v in sorted(inside.items()))
            row = {"type": "directory", "oid": hashlib.sha1(tree.encode()).hexdigest(), "size": 0, "path": path}
        else:
            row = {"type": "file", "oid": blob.git_oid, "size": len(blob.data), "path": path}
            if blob.lfs:
                row["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
        if expand:
            last = next(c for c in self.history() if not c.parent or c.parent.below(path) != inside)
            row["lastCommit"] = {"id": last.sha, "title": last.title, "date": last.date}
        return row

    def tree(self, folder: str, recursive: bool, expand: bool) -> list[dict[str, Any] | None]:
        if folder and (folder in self.files or not self.below(folder)):
            raise Refused(404, f"{folder} does not exist on {self.sha}", "EntryNotFound")
        names: set[str] = set()
        for path in self.below(folder):
            inner = path[len(folder) + 1 if folder else 0 :].split("/")
            depths = range(1, len(inner) + 1) if recursive else [1]
            names |= {posixpath.join(folder, *inner[:depth]) for depth in depths}
        return [self.entry(name, expand) for name in sorted(names)]


@dataclass
class Repo:
    id: str
    kind: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        text = "".join(pattern + _ATTRIBUTE for pattern in _LFS_PATTERNS[self.kind])
        self.add({".gitattributes": Blob(text.encode())}, "initial commit", self.id.split("/")[0])

    def at(self, revision: str) -> Commit:
        """The commit of a branch, a tag or a sha."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def is_lfs(self, path: str, size: int, sample: bytes) -> bool:
        named = any(fnmatch.fnmatch(posixpath.basename(path), pattern) for pattern in _LFS_PATTERNS[self.kind])
        return size > 0 and (named or size > LFS_FROM or b"\0" in sample)

    def blob(self, path: str, data: bytes) -> Blob:
        return Blob(data, self.is_lfs(path, len(data), data[:512]))

    def add(
        self,
        changes: Mapping[str, Blob | None],
        title: str,
        author: str,
        branch: str = "main",
        parent: str | None = None,
    ) -> Commit:
        """One commit: None deletes a file, or a folder whose name ends with a slash."""
        if self.commits and branch not in self.branches:
            raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head = self.at(branch) if self.commits else None
        if parent and head and not head.sha.startswith(parent):
            raise Refused(412, MOVED)
        files = dict(head.files) if head else {}
        for path, blob in changes.items():
            if blob is not None:
                files[path] = blob
                continue
            gone = [k for k in files if k == path or (path.endswith("/") and k.startswith(path))]
            if not gone:
                raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for k in gone:
                del files[k]
        attributes = files[".gitattributes"].data.decode() if ".gitattributes" in files else ""
        for path, blob in changes.items():
            if blob and blob.lfs and not self.is_lfs(path, 1, b"") and path + _ATTRIBUTE not in attributes:
                attributes += path + _ATTRIBUTE
                files[".gitattributes"] = Blob(attributes.encode())
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        told = [self.kind, self.id, str(len(self.commits)), title, date, head.sha if head else ""]
        told += [f"{k}{v.git_oid}" for k, v in sorted(files.items())]
        sha = hashlib.sha1("\n".join(told).encode()).hexdigest()
        self.commits[sha] = Commit(sha, head, files, title, author, date)
        self.branches[branch] = sha
        return self.commits[sha]

    def info(self, commit: Commit, blobs: bool) -> dict[str, Any]:
        siblings: list[dict[str, Any]] = []
        for path, blob in sorted(commit.files.items()):
            siblings.append({"rfilename": path})
            if blobs:
                siblings[-1] |= {"size": len(blob.data), "blobId": blob.git_oid}
            if blobs and blob.lfs:
                lfs = {"sha256": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
                siblings[-1]["lfs"] = lfs
        first = next(iter(self.commits.values()))
        card = commit.files.get("README.md")
        head = re.match(r"---\n(.*?)\n---\n", card.data.decode(), flags=re.DOTALL) if card else None
        return {
            "_id": first.sha[:24], "id": self.id, "author": self.id.split("/")[0], "sha": commit.sha,
            "lastModified": commit.date, "createdAt": first.date, "private": self.private, "gated": False,
            "disabled": False, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings,
            "cardData": yaml.safe_load(head[1]) if head else None,
        }  # fmt: skip


class State:
    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.users: dict[str, User] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.store: dict[str, bytes] = {}  # LFS: sha256 -> bytes
        self.xorbs: dict[str, bytes] = {}  # Xet: hash -> compressed chunks

    def user(self, authorization: str | None) -> User | None:
        if authorization is None:
            return None
        user = self.users.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        return user

    def repo(self, kind: str, repo_id: str, user: User | None, write: bool = False) -> Repo:
        """A repository that this user may read or write. Who may not read it is told that there is none."""
        repo = self.repos.get((kind, repo_id))
        if repo is None or (repo.private and not (user and user.owns(repo_id))):
            if user is None:
                raise Refused(401, "Invalid username or password.", "RepoNotFound")
            raise Refused(404, "Repository not found", "RepoNotFound")
        if write and user is None:
            raise Refused(401, "Invalid username or password.", "RepoNotFound")
        if write and not (user and user.owns(repo_id) and user.role == "write"):
            raise Refused(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request.")
        return repo

    def create(self, kind: str, repo_id: str, private: bool, user: User | None) -> Repo:
        if user is None:
            raise Refused(401, "Invalid username or password.")
        if not user.owns(repo_id) or user.role != "write":
            namespace = repo_id.split("/")[0]
            raise Refused(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
        return self.make(kind, repo_id, private)

    def make(self, kind: str, repo_id: str, private: bool = False) -> Repo:
        if (kind, repo_id) in self.repos:
            raise Refused(409, f"You already created this {kind} repo")
        return self.repos.setdefault((kind, repo_id), Repo(repo_id, kind, private))
