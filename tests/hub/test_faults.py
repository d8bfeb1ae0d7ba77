"""What can go wrong on the way, for push, pull and load: never a corrupt load, never half a bundle, always one line
that says what to do, and the same command succeeds once the fault is gone.

Where a fault is planted: at one stage of the operation, by the method and path of its requests. What a status means is
for test_hub_errors: here every stage meets every sort of fault, and a commit every fault.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, TOKEN
from local_hub import LocalHub

from natix_hf.bundle import push
from natix_hf.bundle.contents import bundle_problems
from natix_hf.bundle.fetch import pull_bundle
from natix_hf.bundle.load import load_bundle
from natix_hf.bundle.names import BUNDLE_MANIFEST
from natix_hf.bundle.push import push_bundle
from natix_hf.errors import HubError, NatixError, UsageError, VerificationError

Kind = int | str
REFUSED: tuple[Kind, ...] = (401, 403, 404, 409, 412)
LATER: tuple[Kind, ...] = (429, 500, 503)
BROKEN: tuple[Kind, ...] = ("drop", "lost", "cut")
# Stage of the operation: method and path of its requests, and whether a commit is there when it fails.
PUSH = {
    "who am I": ("GET", "/whoami-v2", False),
    "create": ("POST", "/api/repos/create", False),
    "look at the head": ("GET", r"/api/models/lab/roadwork$", False),
    "preupload": ("POST", "/preupload/", False),
    "LFS batch": ("POST", "/info/lfs/objects/batch", False),
    "LFS upload": ("PUT", "", False),
    "tag": ("POST", "/tag/", True),
    "read back, list": ("GET", "/revision/", True),
    "read back, files": ("GET", "/resolve/", True),
    "commit": ("POST", "/commit/", False),
}
FETCH = {
    "list": ("GET", r"/api/models/lab/roadwork(/revision/.*)?$"),
    "file": ("GET", "/resolve/.*config.json"),
    "weights": ("GET", "/resolve/.*safetensors"),
}
ODD: tuple[Kind, ...] = ("wrong_bytes", "slow")
PUSHES: list[tuple[str, Kind]] = [("commit", kind) for kind in (*REFUSED, *LATER, *BROKEN)]
PUSHES += [(stage, sort[i % len(sort)]) for i, stage in enumerate(PUSH) for sort in (REFUSED, LATER, BROKEN)
           if stage != "commit"]  # fmt: skip
PUSHES += [(stage, kind) for stage in ("LFS upload", "read back, files") for kind in ODD]
# Of operation, stage and fault every pair of two.
FETCHES = [(("pull", "load")[(i + j) % 2], stage, kind) for i, stage in enumerate(FETCH)
           for j, kind in enumerate((*REFUSED, *LATER, *BROKEN))]  # fmt: skip
FETCHES += [("pull", "file", "wrong_bytes"), ("load", "weights", "wrong_bytes")]
FETCHES += [("pull", "weights", "slow"), ("load", "file", "slow")]


def told(error: NatixError) -> str:
    line = str(error)
    assert REPO in line and "\n" not in line and TOKEN not in line and "Traceback" not in line
    assert len(line) < 700, line
    return line


def whole(hub: LocalHub, folder: Path) -> bool:
    """Whether the main branch holds a whole bundle; writes it to `folder`."""
    for name, data in hub.files(REPO).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return bundle_problems(folder) == []


@pytest.mark.parametrize(("stage", "kind"), PUSHES, ids=lambda value: str(value).replace(" ", "_"))
def test_push(stage: str, kind: Kind, bundle: Path, hub: LocalHub, tmp_path: Path) -> None:
    method, path, committed = PUSH[stage]
    hub.fail(kind, method, path, seconds=0.3)
    try:
        push_bundle(bundle, REPO, tag="v1")
        harmless = True
    except (HubError, UsageError, VerificationError) as error:
        harmless = False
        line = told(error)
        published = (REPO in {repo_id for _, repo_id in hub.state.repos}) and BUNDLE_MANIFEST in hub.files(REPO)
        if stage == "commit" and kind in (500, 503, *BROKEN):  # the answer never came: the client cannot know
            assert push._OUTCOME not in line and "again" in line
        else:
            assert (push._OUTCOME in line) == (not published), line
            assert published == (committed or kind == "wrong_bytes")
            assert not published or hub.commits(REPO)[0] in line
        if published:
            assert kind == "wrong_bytes" or whole(hub, tmp_path / "there")
    assert harmless == (kind == "slow"), (stage, kind)
    hub.heal()
    if (stage, kind) == ("LFS upload", "wrong_bytes"):  # the Hub believes that it has the right ones: no way out there
        with pytest.raises(VerificationError):
            push_bundle(bundle, REPO, tag="v1")
        return
    done = push_bundle(bundle, REPO, tag="v1")
    assert whole(hub, tmp_path / "after") and hub.tags(REPO) == {"v1": done.commit}
    assert len(hub.commits(REPO)) == 2  # the empty repository and the bundle, however often it was tried


@pytest.mark.parametrize(("what", "stage", "kind"), FETCHES, ids=str)
def test_pull_and_load(
    what: str, stage: str, kind: Kind, published: Any, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation: Callable[[], Path] = {
        "pull": lambda: pull_bundle(REPO, to=tmp_path / "here")[0], "load": lambda: load_bundle(REPO).folder
    }[what]  # fmt: skip
    hub.use_in_process(monkeypatch, tmp_path / "anns_home", TOKEN, waits=False)
    hub.fail(kind, *FETCH[stage], seconds=0.3)
    try:
        assert bundle_problems(operation()) == []
        harmless = True
    except (HubError, UsageError, VerificationError) as error:
        harmless = False
        told(error)
        assert isinstance(error, VerificationError) == (kind == "wrong_bytes")
        assert not (tmp_path / "here").exists()
    assert harmless == (kind == "slow"), (stage, kind)
    hub.heal()
    if not (tmp_path / "here").exists():
        assert bundle_problems(operation()) == []
