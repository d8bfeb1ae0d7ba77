"""The local Hub against the real clients: unmodified in a subprocess, and in this process."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_backbone
from local_hub import LocalHub, Request

TOKEN, READ, OTHER = "hf_ann", "hf_reader", "hf_bob"
RANDOM = random.Random(0)
WEIGHTS = RANDOM.randbytes(1_000_000)
NUMBERS = struct.pack("<60001f", *(RANDOM.gauss(0, 1) for _ in range(60_001))) + b"+"
TEXT = b"to be or not to be, " * 9999  # Xet packs each of the three in another way
SMALL = {"README.md": b"---\nlicense: apache-2.0\n---\n# A model\n", "config.json": b"{}", "assets/plot.png": b"\0P"}


@pytest.fixture
def empty_hub() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        hub.add_user(TOKEN, "ann", orgs=["lab"])
        hub.add_user(READ, "ann", role="read", orgs=["lab"])
        hub.add_user(OTHER, "bob")
        yield hub


@pytest.fixture
def hub(empty_hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """With a model of two files, this process as its client, and retries that do not wait."""
    empty_hub.create("lab/model", {"config.json": b"{}", "model.safetensors": WEIGHTS})
    empty_hub.use_in_process(monkeypatch, tmp_path / "home", TOKEN, waits=False)
    return empty_hub


def parquet(*rows: int) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"x": list(rows)}), buffer)
    return buffer.getvalue()


def git_oid(content: bytes) -> str:
    done = subprocess.run(["git", "hash-object", "--stdin"], input=content, capture_output=True, check=True)
    return done.stdout.decode().strip()


def client(environment: dict[str, str], script: str, *arguments: str) -> Any:
    """What a script in a process of its own says as JSON on its last line."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


PUSH_AND_PULL = """
import json, sys
from pathlib import Path
from huggingface_hub import CommitOperationAdd as Add, CommitOperationDelete as Delete, HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

api, said = HfApi(), {}

def status(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except HfHubHTTPError as error:
        return [error.response.status_code, error.server_message]

said["whoami"] = api.whoami()["name"], [org["name"] for org in api.whoami()["orgs"]], api.whoami()["auth"]
said["urls"] = [api.create_repo("lab/new", private=True), api.create_repo("lab/new", exist_ok=True)]
said["taken"] = status(api.create_repo, "lab/new")
said["data"] = api.create_repo("lab/data", repo_type="dataset").repo_type, api.dataset_info("lab/data").id
first = api.model_info("lab/new").sha
add = [Add(path.relative_to("tree").as_posix(), path) for path in sorted(Path("tree").rglob("*")) if path.is_file()]
pushed = api.create_commit("lab/new", add, commit_message="push", parent_commit=first)
said["pushed"] = pushed.oid
said["moved"] = status(
    api.create_commit, "lab/new", [Add("late.txt", b"late")], commit_message="late", parent_commit=first
)
said["tag"] = [status(api.create_tag, "lab/new", tag=tag) for tag in ("v1", "v1")]
api.create_branch("lab/new", branch="side/line", revision="v1")
api.create_commit("lab/new", [Delete("assets/"), Add("new.txt", b"")], commit_message="after")
said["tree"] = {
    file.path: [file.size, file.blob_id, file.lfs and file.lfs.sha256]
    for file in api.list_repo_tree("lab/new", recursive=True, revision="v1") if hasattr(file, "size")
}
top = api.list_repo_tree("lab/new", revision="side/line")
said["folders"] = [entry.path for entry in top if hasattr(entry, "tree_id")]
said["paths"] = [row.path for row in api.get_paths_info("lab/new", ["assets", "none", "config.json"], revision="v1")]
said["titles"] = [
    row.last_commit.title for row in api.get_paths_info("lab/new", ["config.json", "new.txt", "weights"], expand=True)
]
said["info"] = {file.rfilename: file.size for file in api.model_info("lab/new", files_metadata=True).siblings}
refs = api.list_repo_refs("lab/new")
said["refs"] = {ref.name: ref.target_commit for ref in refs.branches + refs.tags}
said["commits"] = [commit.title for commit in api.list_repo_commits("lab/new")]
folder = snapshot_download("lab/new", revision="v1")
said["folder"] = folder
said["verified"] = vars(api.verify_repo_checksums("lab/new", revision="v1"))
print(json.dumps(said, default=str))
"""

FROM_THE_CACHE = """
import json
from huggingface_hub import snapshot_download

print(json.dumps(snapshot_download("lab/new", revision="v1")))
"""


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_an_unmodified_client_pushes_and_pulls(
    empty_hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, xet: bool
) -> None:
    hub, weights = empty_hub, "weights/model.safetensors"
    files = {**SMALL, weights: WEIGHTS, "weights/numbers.bin": NUMBERS, "weights/text.bin": TEXT}
    for name, data in files.items():
        file = tmp_path / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    monkeypatch.chdir(tmp_path)
    environment = hub.environment(tmp_path / "home", TOKEN, xet=xet)
    assert xet == ("HF_HUB_DISABLE_XET" not in environment)
    said = client(environment | {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1"}, PUSH_AND_PULL)

    assert said["whoami"][:2] == ["ann", ["lab"]] and said["whoami"][2]["accessToken"]["role"] == "write"
    assert said["urls"] == [f"{hub.endpoint}/lab/new"] * 2
    assert said["taken"] == [409, "You already created this model repo"]
    assert said["data"] == ["dataset", "lab/data"]
    assert said["moved"] == [412, "A commit has happened since. Please refresh and try again."]
    assert said["tag"] == [None, [409, "Tag reference exists already"]]
    assert hub.tags("lab/new") == {"v1": said["pushed"]}

    there = hub.files("lab/new", "v1")
    assert {name: data for name, data in there.items() if name != ".gitattributes"} == files
    assert b"assets/plot.png filter=lfs" in there[".gitattributes"]  # LFS for its bytes, not for its name
    assert "late.txt" not in hub.files("lab/new") and "assets/plot.png" not in hub.files("lab/new")
    assert said["commits"] == ["after", "push", "initial commit"] and len(hub.commits("lab/new")) == 3

    tree = said["tree"]
    assert tree.keys() == there.keys() == files.keys() | {".gitattributes"}
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(WEIGHTS)}\n".encode()
    assert tree[weights] == [len(WEIGHTS), git_oid(pointer), sha256]
    assert tree["config.json"] == [2, git_oid(b"{}"), None]
    assert said["titles"] == ["push", "after", "push"]
    assert said["folders"] == ["assets", "weights"] and said["paths"] == ["assets", "config.json"]
    assert said["info"] == {name: len(data) for name, data in hub.files("lab/new").items()}
    assert said["refs"] == {"main": hub.commits("lab/new")[0], "side/line": said["pushed"], "v1": said["pushed"]}
    assert said["verified"]["checked_count"] == len(there) and said["verified"]["revision"] == said["pushed"]
    assert not said["verified"]["mismatches"] + said["verified"]["missing_paths"] + said["verified"]["extra_paths"]

    assert bool(hub.asked("PUT", "^/lfs-storage/")) != xet and bool(hub.asked("POST", "^/v1/shards$")) == xet
    assert TOKEN not in repr(hub.requests)

    hub.requests.clear()
    assert client(environment | {"HF_HUB_OFFLINE": "1"}, FROM_THE_CACHE) == said["folder"]
    assert not hub.requests


LOAD = """
import json, sys
from datasets import load_dataset
from transformers import AutoModel

said = []
for data, model in (sys.argv[1], "v1"), ("main", None):
    rows = load_dataset("lab/data", revision=data)
    weights = AutoModel.from_pretrained("lab/vit", revision=model).embeddings.cls_token.flatten().tolist()
    said.append([rows["train"]["x"][:], rows["test"]["x"][:], weights])
print(json.dumps(said))
"""


def test_datasets_and_transformers_load_a_revision(
    empty_hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both of a private repository, unmodified in a subprocess, then in this process, then from the cache alone."""
    hub, train, test = empty_hub, "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"
    old = hub.create("lab/data", {train: parquet(0, 1, 2), test: parquet(0)}, "dataset", private=True)
    hub.commit("lab/data", {train: parquet(7, 8)})
    models = [tiny_backbone("vit", layers=1, seed=seed) for seed in (1, 2)]
    for model in models:
        model.save_pretrained(tmp_path / "vit")
        saved = {file.name: file.read_bytes() for file in (tmp_path / "vit").iterdir()}
        if model is models[0]:
            hub.repo("lab/vit").tags["v1"] = hub.create("lab/vit", saved, private=True)
        else:
            hub.commit("lab/vit", saved)
    weights = [model.embeddings.cls_token.flatten().tolist() for model in models]
    expected = [[[0, 1, 2], [0], weights[0]], [[7, 8], [0], weights[1]]]
    assert client(hub.environment(tmp_path / "home", TOKEN), LOAD, old) == expected

    from datasets import load_dataset
    from transformers import AutoModel

    with monkeypatch.context() as patch:
        hub.use_in_process(patch, tmp_path / "other", TOKEN)
        for data, model, rows, weight in ((old, "v1", [0, 1, 2], weights[0]), (None, "main", [7, 8], weights[1])):
            assert load_dataset("lab/data", revision=data)["train"]["x"][:] == rows
            loaded = AutoModel.from_pretrained("lab/vit", revision=model)
            assert loaded.embeddings.cls_token.flatten().tolist() == weight
    assert (tmp_path / "other" / "hub" / "models--lab--vit" / "refs" / "v1").read_text() == hub.tags("lab/vit")["v1"]
    hub.stop()
    with monkeypatch.context() as patch:
        hub.use_in_process(patch, tmp_path / "other", TOKEN, waits=False)
        loaded = AutoModel.from_pretrained("lab/vit", revision="v1")
        assert loaded.embeddings.cls_token.flatten().tolist() == weights[0]


def test_in_process_nothing_leads_elsewhere_and_all_is_undone(hub: LocalHub, tmp_path: Path) -> None:
    """What the fixture patched; no copy of the real address or of the developer's cache is left in a module."""

    def constants() -> dict[tuple[str, str], Any]:
        return {
            (module, name): value
            for module, loaded in sys.modules.items()
            if re.match("(huggingface_hub|datasets|transformers[.]utils)([.]|$)", module)
            for name, value in vars(loaded).items()
            if name.isupper() and isinstance(value, (str, bool, Path))
        }

    def elsewhere(name: str, value: Any) -> bool:
        if "DEFAULT" in name or name.startswith("CHECK_FOR"):  # not read again; of the command line
            return False
        return str(value).startswith(home) or ("ENDPOINT" in name and str(value) == "https://huggingface.co")

    from huggingface_hub import constants as hub_constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
        patch.setattr(hub_constants, "ENDPOINT", "https://huggingface.co")
        patch.setattr(hub_constants, "HF_HUB_CACHE", str(Path.home() / ".cache" / "huggingface" / "hub"))
        home, before = str(Path.home() / ".cache"), constants()
        with pytest.MonkeyPatch.context() as inner:
            hub.use_in_process(inner, tmp_path / "inner", TOKEN)
            assert [key for key, value in constants().items() if elsewhere(key[1], value)] == []
        assert constants() == before


def test_a_file_system_of_the_client_remembers_until_the_next_use(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfFileSystem, hffs

    assert not HfFileSystem().exists("lab/late/config.json") and not hffs.exists("lab/late/config.json")
    hub.create("lab/late", {"config.json": b"{}"})
    assert not HfFileSystem().exists("lab/late/config.json")  # it is one object, and it asks once
    hub.use_in_process(monkeypatch, tmp_path / "home", TOKEN)
    assert HfFileSystem().cat("lab/late/config.json") == hffs.cat("lab/late/config.json") == b"{}"


def test_who_may_do_what(hub: LocalHub) -> None:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    hub.create("lab/secret", {"config.json": b"{}"}, private=True)
    add = [CommitOperationAdd("new.txt", b"new")]

    def refused(call: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[type, int]:
        with pytest.raises(HfHubHTTPError) as caught:
            call(*arguments, **options)
        return type(caught.value), caught.value.response.status_code

    missing, forbidden, change = RepositoryNotFoundError, (HfHubHTTPError, 403), {"commit_message": "change"}

    nobody, bad, reader, bob = (HfApi(token=token) for token in (False, "hf_wrong", READ, OTHER))
    assert refused(bad.whoami) == refused(bad.model_info, "lab/model") == (HfHubHTTPError, 401)
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
    assert reader.model_info("lab/secret").private and nobody.model_info("lab/model").id == "lab/model"
    assert refused(nobody.model_info, "lab/secret") == (missing, 401)
    assert refused(bob.model_info, "lab/secret") == refused(bob.model_info, "lab/none") == (missing, 404)
    assert refused(bob.hf_hub_download, "lab/secret", "config.json") == (missing, 404)
    assert refused(nobody.create_commit, "lab/model", add, **change) == (missing, 401)
    for api in (reader, bob):
        assert refused(api.create_repo, "lab/other") == forbidden
        assert refused(api.create_commit, "lab/model", add, **change) == forbidden
        assert refused(api.create_tag, "lab/model", tag="v1") == forbidden
        assert refused(api.auth_check, "lab/model", write=True) == forbidden
        api.auth_check("lab/model")
        assert api.create_repo("lab/model", exist_ok=True) == f"{hub.endpoint}/lab/model"  # and no word of the 403
    assert len(hub.commits("lab/model")) == 2 and not hub.tags("lab/model")


def push(name: str = "pushed.safetensors", data: bytes = b"weights", parent: str | None = None) -> Any:
    from huggingface_hub import CommitOperationAdd, HfApi

    add = [CommitOperationAdd("README.md", SMALL["README.md"]), CommitOperationAdd(name, data)]
    return HfApi().create_commit("lab/model", add, commit_message="push", parent_commit=parent)


def pull(**options: Any) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download("lab/model", **options))


def tag() -> None:
    from huggingface_hub import create_tag

    create_tag("lab/model", tag="v1")


def tree() -> None:
    from huggingface_hub import HfApi

    HfApi().list_repo_files("lab/model")


LOCAL, HTTP, LOST, NESTED = "LocalEntryNotFoundError", "HfHubHTTPError", "RemoteProtocolError", "RuntimeError"
FAULTS: list[tuple[Any, str, str, Callable[[], Any], str, int]] = [
    # fault, method, path, what a client does, what it raises (and from what), how often it asked
    (401, "POST", "/commit/", push, HTTP, 1),
    (403, "POST", "/preupload/", push, HTTP, 1),
    (409, "POST", "/tag/", tag, HTTP, 1),
    (412, "POST", "/commit/", push, HTTP, 1),
    (429, "POST", "/commit/", push, HTTP, 1),
    (429, "POST", "/preupload/", push, HTTP, 6),
    (500, "POST", "/commit/", push, HTTP, 1),
    (500, "PUT", "/lfs-storage/", push, f"{NESTED} {HTTP}", 6),
    (503, "POST", "/objects/batch", push, HTTP, 6),
    ("drop", "POST", "/commit/", push, LOST, 1),
    ("drop", "PUT", "/lfs-storage/", push, f"{NESTED} {LOST}", 6),
    ("cut", "POST", "/commit/", push, LOST, 1),
    (401, "GET", "/revision/main", pull, HTTP, 1),
    (403, "GET", "/tree/", tree, HTTP, 1),
    (503, "GET", "/revision/main", pull, f"{LOCAL} {HTTP}", 1),
    (429, "HEAD", "/resolve/.*model", pull, f"{LOCAL} {HTTP}", 7),
    (500, "GET", "/resolve/.*model", pull, HTTP, 1),
    ("drop", "HEAD", "/resolve/.*model", pull, LOST, 1),
    ("drop", "GET", "/resolve/.*model", pull, LOST, 6),
    ("cut", "GET", "/resolve/.*model", pull, LOST, 6),
]


@pytest.mark.parametrize(("fault", "method", "path", "action", "raised", "asked"), FAULTS)
def test_what_the_client_makes_of_a_fault(
    hub: LocalHub, fault: Any, method: str, path: str, action: Callable[[], Any], raised: str, asked: int
) -> None:
    hub.fail(fault, method, path)
    before = len(hub.commits("lab/model"))
    with pytest.raises(Exception) as caught:
        action()
    chain: list[Any] = [caught.value, caught.value.__cause__][: len(raised.split())]
    assert [type(error).__name__ for error in chain] == raised.split()
    assert len(hub.asked(method, path)) == asked
    if isinstance(fault, int):
        assert chain[-1].response.status_code == fault == hub.asked(method, path)[0].status
    assert len(hub.commits("lab/model")) - before == (fault == "cut" and action is push)
    hub.heal()
    action()
    assert len(hub.commits("lab/model")) == before + (action is push)


def test_a_fault_can_be_rare(hub: LocalHub) -> None:
    hub.fail(503, "POST", "/preupload/", times=2, after=1)
    push("first.bin")
    push("second.bin")
    assert [request.status for request in hub.asked("POST", "/preupload/")] == [200, 503, 503, 200]
    assert hub.files("lab/model")["second.bin"] == b"weights"
    hub.fail("slow", "GET", "/config.json", seconds=0.5)
    start = time.monotonic()
    assert (pull() / "config.json").read_bytes() == b"{}"
    assert time.monotonic() - start > 0.5
    with pytest.raises(ValueError, match="no such fault"):
        hub.fail("flood")


def test_a_slow_answer_is_a_timeout(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import httpx

    hub.fail("slow", "GET", "/model.safetensors", seconds=10)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    with pytest.raises(httpx.ReadTimeout):
        pull()


def test_a_lost_answer_to_a_commit_hides_the_commit(hub: LocalHub) -> None:
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx

    parent = hub.commits("lab/model")[0]
    hub.fail("lost", "POST", "/commit/", times=1)
    with pytest.raises(httpx.RemoteProtocolError):
        push(parent=parent)
    assert hub.requests[-1] == Request("POST", "/api/models/lab/model/commit/main", 0)
    head = hub.commits("lab/model")[0]
    assert head != parent and hub.files("lab/model")["pushed.safetensors"] == b"weights"
    assert push(parent=parent).oid == head  # nothing to do: the client asks for no commit and sees no conflict
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        push(data=b"others", parent=parent)


def test_someone_else_moves_the_repository(hub: LocalHub) -> None:
    parent = hub.commits("lab/model")[0]
    moved = hub.commit("lab/model", {"config.json": None, "theirs.txt": b"theirs"})
    with pytest.raises(OSError, match="412"):
        push(parent=parent)
    assert push(parent=moved).oid == hub.commits("lab/model")[0]
    assert sorted(hub.files("lab/model")) == [
        ".gitattributes", "README.md", "model.safetensors", "pushed.safetensors", "theirs.txt",
    ]  # fmt: skip


def test_a_download_goes_on_where_it_was_cut(hub: LocalHub) -> None:
    """The client counts what arrived in pieces of 10 MiB; of this file it asks for the second half alone."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils import get_session

    large = random.Random(1).randbytes(2 * constants.DOWNLOAD_CHUNK_SIZE + 2)
    hub.commit("lab/model", {"large.bin": large})
    hub.fail("cut", "GET", "large.bin", times=1)
    assert Path(hf_hub_download("lab/model", "large.bin")).read_bytes() == large
    assert [request.status for request in hub.asked("GET", "large.bin")] == [200, 206]
    url = f"{hub.endpoint}/lab/model/resolve/main/large.bin"
    for asked, status, expected in (
        ("bytes=3-5", 206, large[3:6]), ("bytes=-4", 206, large[-4:]), ("bytes=99999999-", 416, b""),
    ):  # fmt: skip
        answer = get_session().get(url, headers={"Range": asked})
        assert (answer.status_code, answer.content) == (status, expected)


def test_the_client_does_not_notice_wrong_bytes(hub: LocalHub) -> None:
    """Neither when it gets them nor when the Hub keeps others than it sent; both show in the checksums."""
    from huggingface_hub import HfApi

    hub.fail("wrong_bytes", "GET", "/model.safetensors")
    found = (pull() / "model.safetensors").read_bytes()
    assert len(found) == len(WEIGHTS) and found != WEIGHTS
    assert [row["path"] for row in HfApi().verify_repo_checksums("lab/model").mismatches] == ["model.safetensors"]
    hub.heal()
    hub.fail("wrong_bytes", "PUT")
    push()
    (file,) = HfApi().get_paths_info("lab/model", ["pushed.safetensors"])
    assert file.size == 7 and file.lfs.sha256 != hashlib.sha256(b"weights").hexdigest()


def test_a_hub_that_cannot_be_reached_leaves_the_cache(hub: LocalHub) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import httpx

    folder, address = pull(), hub.endpoint
    hub.stop()
    assert pull() == folder
    with pytest.raises(LocalEntryNotFoundError) as caught:
        pull(revision="v1")
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
    with pytest.raises(httpx.ConnectError):
        push()
    hub.start()
    assert hub.endpoint == address
    push()
    assert pull() != folder
