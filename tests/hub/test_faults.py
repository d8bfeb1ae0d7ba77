"""What can go wrong on the way, for push, pull and load: never a corrupt load, never half a bundle, always one line
that says what to do, and the same command succeeds once the fault is gone.

Where a fault is planted: at one stage of the operation, by the method and path of its requests.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TOKEN
from local_hub import LocalHub

from natix_hf.bundle.contents import BUNDLE_MANIFEST, bundle_problems
from natix_hf.bundle.fetch import pull_bundle
from natix_hf.bundle.load import load_bundle
from natix_hf.bundle.push import push_bundle
from natix_hf.errors import HubError, NatixError, UsageError, VerificationError

REPO = "lab/roadwork"
STATUSES: tuple[int | str, ...] = (401, 403, 404, 409, 412, 429, 500, 503)
BROKEN: tuple[int | str, ...] = ("drop", "lost", "cut")
# Stage of the operation: method and path of its requests, and whether a commit is there when it fails.
PUSH = {
    "who am I": ("GET", "/whoami-v2", False),
    "create": ("POST", "/api/repos/create", False),
    "look at the head": ("GET", r"/api/models/lab/roadwork$", False),
    "preupload": ("POST", "/preupload/", False),
    "LFS batch": ("POST", "/info/lfs/objects/batch", False),
    "LFS upload": ("PUT", "", False),
    "commit": ("POST", "/commit/", False),
    "tag": ("POST", "/tag/", True),
    "read back, list": ("GET", "/revision/", True),
    "read back, files": ("GET", "/resolve/", True),
}
FETCH = {
    "list": ("GET", r"/api/models/lab/roadwork(/revision/.*)?$"),
    "file": ("GET", "/resolve/.*config.json"),
    "weights": ("GET", "/resolve/.*safetensors"),
}
ADVICE = ("run the same again", "wait some minutes", "log in with", "use one that has", "must not see it")
PUSHES = [(stage, kind) for stage in PUSH for kind in (*STATUSES, *BROKEN)]
PUSHES += [(stage, kind) for stage in ("LFS upload", "read back, files") for kind in ("wrong_bytes", "slow")]
FETCHES = [(what, stage, kind) for what in ("pull", "load") for stage in FETCH for kind in (*STATUSES, *BROKEN)]
FETCHES += [(w, stage, k) for w in ("pull", "load") for stage in ("file", "weights") for k in ("wrong_bytes", "slow")]


@pytest.fixture
def bundle(finished_run: Path) -> Path:
    return finished_run / "phase6_export" / "bundle"


def whole(hub: LocalHub, folder: Path) -> bool:
    """Whether the main branch holds a whole bundle; writes it to `folder`."""
    for name, data in hub.files(REPO).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return bundle_problems(folder) == []


def told(error: NatixError) -> str:
    line = str(error)
    assert REPO in line and "\n" not in line and TOKEN not in line and "Traceback" not in line
    assert len(line) < 700, line
    return line


def test_the_table_is_whole() -> None:
    print(f"{len(PUSHES)} faults of push, {len(FETCHES)} of pull and load")
    assert len(PUSHES) == len(set(PUSHES)) == 114 and len(FETCHES) == len(set(FETCHES)) == 74


@pytest.mark.parametrize(("stage", "kind"), PUSHES, ids=lambda value: str(value).replace(" ", "_"))
def test_push(stage: str, kind: int | str, bundle: Path, hub: LocalHub, tmp_path: Path) -> None:
    method, path, committed = PUSH[stage]
    hub.fail(kind, method, path, seconds=0.3)
    try:
        push_bundle(bundle, REPO, tag="v1")
        harmless = True
    except (HubError, UsageError, VerificationError) as error:
        harmless = False
        line = told(error)
        assert any(advice in line for advice in ADVICE), line
        published = (REPO in {repo_id for _, repo_id in hub.state.repos}) and BUNDLE_MANIFEST in hub.files(REPO)
        assert published or "is published" not in line
        if stage == "commit" and kind in (500, 503, *BROKEN):  # the answer never came: the client cannot know
            assert "whether it was published is not known" in line and "nothing was published" not in line
        else:
            assert ("nothing was published" in line) == (not published), line
            assert published == (committed or kind == "wrong_bytes")
        if published:
            assert kind == "wrong_bytes" or whole(hub, tmp_path / "there")
    assert harmless == (kind == "slow"), (stage, kind)
    hub.heal()
    if (stage, kind) == ("LFS upload", "wrong_bytes"):  # the Hub believes that it has the right ones: no way out there
        with pytest.raises(VerificationError, match="not what was sent"):
            push_bundle(bundle, REPO, tag="v1")
        return
    done = push_bundle(bundle, REPO, tag="v1")
    assert whole(hub, tmp_path / "after") and hub.tags(REPO) == {"v1": done.commit}
    assert len(hub.commits(REPO)) == 2  # the empty repository and the bundle, however often it was tried


@pytest.fixture
def published(bundle: Path, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    commit = push_bundle(bundle, REPO).commit
    hub.use_in_process(monkeypatch, tmp_path / "another_home", token=TOKEN, waits=False)  # nothing in the cache
    return commit


@pytest.mark.parametrize(("what", "stage", "kind"), FETCHES, ids=lambda value: str(value))
def test_pull_and_load(what: str, stage: str, kind: int | str, published: str, hub: LocalHub, tmp_path: Path) -> None:
    operation: Callable[[], Any] = {
        "pull": lambda: pull_bundle(REPO, to=tmp_path / "here")[0], "load": lambda: load_bundle(REPO).folder
    }[what]  # fmt: skip
    hub.fail(kind, *FETCH[stage], seconds=0.3)
    try:
        assert bundle_problems(operation()) == []
        harmless = True
    except (HubError, UsageError, VerificationError) as error:
        harmless = False
        line = told(error)
        assert any(advice in line for advice in ADVICE), line
        assert isinstance(error, VerificationError) == (kind == "wrong_bytes")
        assert not (tmp_path / "here").exists()
    assert harmless == (kind == "slow"), (stage, kind)
    hub.heal()
    if not (tmp_path / "here").exists():
        assert bundle_problems(operation()) == []
