"""Publish what uses a bundle: the page of a Space, or the handler of an Inference Endpoint.

Neither holds weights. `pinned.json` names the bundle's repository, its commit and the sha256 of its manifest, and the
code beside it comes from this package. A bundle's own repository stays free of code.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import natix_hf
from natix_hf.bundle.asked import check_load
from natix_hf.bundle.contents import is_of_the_hub
from natix_hf.bundle.push import Published
from natix_hf.errors import HubError, UsageError, VerificationError
from natix_hf.provenance.hub import hub_errors, require_repo_id
from natix_hf.provenance.strict import read_strictly
from natix_hf.resources import resource_folder

PINNED = "pinned.json"
_SCHEMA = 1
_OUTCOME = "it was not published"
Kind = Literal["space", "endpoint"]
_FILES: dict[Kind, tuple[str, ...]] = {
    "space": ("README.md", "app.py", "requirements.txt"),
    "endpoint": ("README.md", "handler.py", "requirements.txt"),
}
_TYPE: dict[Kind, str] = {"space": "space", "endpoint": "model"}


@dataclass(frozen=True)
class Pinned:
    """The bundle that a Space or an endpoint answers with. `load_bundle(repo_id, revision, expected=expected)`."""

    repo_id: str
    revision: str
    expected: str


def read_pinned(path: Path) -> Pinned:
    """Read `pinned.json`.

    Raises:
        VerificationError: if it is missing, damaged or of another schema.
    """
    content = read_strictly(path)
    wanted = {"schema", "repo_id", "revision", "expected"}
    if not isinstance(content, dict) or set(content) != wanted or content["schema"] != _SCHEMA:
        raise VerificationError(f"{path} is not a {PINNED} of schema {_SCHEMA}: push it again")
    pinned = Pinned(content["repo_id"], content["revision"], content["expected"])
    try:
        require_repo_id(str(pinned.repo_id))
        check_load(pinned.repo_id, pinned.revision, True, pinned.expected)
    except UsageError as error:
        raise VerificationError(f"{path} is damaged: {error}") from None
    return pinned


def files_of(kind: Kind, done: Published, name: str) -> dict[str, bytes]:
    """The files of a Space or an endpoint for a published bundle, by name."""
    folder = resource_folder("model_cards") / kind
    put = {"REPO": done.repo_id, "COMMIT": done.commit, "VERSION": natix_hf.__version__}
    put["NAME"] = name.rsplit("/", 1)[-1]
    words = re.compile(rf"\b({'|'.join(put)})\b")
    found = {}
    for file in _FILES[kind]:
        text = (folder / file).read_text(encoding="utf-8")
        if not file.endswith(".py"):  # all words at once: the name of a repository may hold one
            text = words.sub(lambda at: put[at[0]], text)
        found[file] = text.encode()
    pinned = {"schema": _SCHEMA, "repo_id": done.repo_id, "revision": done.commit, "expected": done.manifest_sha256}
    return found | {PINNED: (json.dumps(pinned, indent=2) + "\n").encode()}


def check_space(kind: Kind, name: str, bundle_repo: str) -> None:
    """Check before any work that a Space or an endpoint can be published.

    Raises:
        UsageError: if the name is invalid or is that of the bundle, if the repository holds something else, or if the
            token may not read it.
        HubError: if the Hub or the connection fails.
    """
    require_repo_id(name)
    if kind == "endpoint" and name == bundle_repo:
        raise UsageError(f"push to {name}: a bundle's repository holds no code: give --endpoint another name")
    _there(kind, name)


def push_space(kind: Kind, done: Published, name: str, private: bool = False) -> str:
    """Publish a Space or an endpoint for a published bundle, as one commit that is read back. A missing repository is
    created. Repeating a push makes no second commit.

    Args:
        kind: `"space"`: a Gradio page; `"endpoint"`: a repository with a `handler.py`.
        done: What `push_bundle` returned.
        name: The repository of the Space or endpoint, as `org/name`.
        private: Make it private if it is created now.

    Returns:
        The commit.

    Raises:
        UsageError: if the token may not write, or if the repository holds something else.
        HubError: if the Hub or the connection fails, or the repository moved meanwhile.
        VerificationError: if the Hub does not return what was sent.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, files, repo_type = HfApi(), files_of(kind, done, name), _TYPE[kind]
    with hub_errors(name, "push to", _OUTCOME):
        sdk = {"space_sdk": "gradio"} if kind == "space" else {}
        api.create_repo(name, repo_type=repo_type, private=private or None, exist_ok=True, **sdk)  # type: ignore[arg-type]
    head, there = _there(kind, name)
    operations: list[Any] = [CommitOperationAdd(path, content) for path, content in files.items()]
    operations += [CommitOperationDelete(path) for path in there if path not in files]
    message = f"natix_hf {kind} for {done.repo_id} at {done.commit[:12]}"
    doubt = "whether it was published is not known"
    with hub_errors(name, "push to", _OUTCOME, in_doubt=doubt):
        made = api.create_commit(name, operations, commit_message=message, repo_type=repo_type, parent_commit=head)
    commit = str(made.oid)
    _read_back(name, repo_type, commit, files)
    return commit


def _there(kind: Kind, name: str) -> tuple[str | None, list[str]]:
    """The head of a repository and its files; (None, []) if there is none.

    Raises:
        UsageError: if it holds something else than what is published here.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with hub_errors(name, "push to", _OUTCOME):
        if not api.repo_exists(name, repo_type=_TYPE[kind]):
            return None, []
        info: Any = api.repo_info(name, repo_type=_TYPE[kind])
    there = [file.rfilename for file in info.siblings or [] if not is_of_the_hub(file.rfilename)]
    strangers = sorted(set(there) - {*_FILES[kind], PINNED})
    if strangers or (PINNED not in there and set(there) - {"README.md"}):
        other = strangers[0] if strangers else min(set(there) - {"README.md"})
        raise UsageError(f"push to {name}: it holds {other} and was not made by natix-hf push: name a new {kind}")
    return str(info.sha), there


def _read_back(name: str, repo_type: str, commit: str, files: dict[str, bytes]) -> None:
    from huggingface_hub import hf_hub_download

    told = f"commit {commit} of {name} is published"
    with tempfile.TemporaryDirectory() as cache:
        for path, content in files.items():
            try:
                with hub_errors(name, "read back", told):
                    got = Path(hf_hub_download(name, path, repo_type=repo_type, revision=commit, cache_dir=cache))
            except (HubError, UsageError) as error:
                raise HubError(f"{told}, but was not read back ({error})") from None
            if got.read_bytes() != content:
                raise VerificationError(f"{told}, but what the Hub gives back as {path} is not what was sent")
