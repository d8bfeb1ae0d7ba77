"""Bundles from the Hub: checked file by file, pinned, offline from the cache, refused by name where they are off."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import describe, read, sealed
from conftest import REPO, Command, refused, striped_image
from local_hub import LocalHub
from PIL import Image

import natix_hf
from natix_hf.bundle.contents import bundle_problems
from natix_hf.bundle.load import load_bundle
from natix_hf.bundle.names import BUNDLE_MANIFEST
from natix_hf.bundle.push import Published
from natix_hf.errors import HubError, UsageError, VerificationError
from natix_hf.provenance.files import list_files


@pytest.fixture
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(5)
    return [striped_image(i % 2, rng, (40, 40)) for i in range(12)]


def test_a_bundle_from_the_hub_answers_as_the_one_that_was_sent(
    bundle: Path, published: Published, pictures: list[Image.Image], tmp_path: Path, command: Command
) -> None:
    there, here = natix_hf.load_bundle(REPO), natix_hf.load_bundle(bundle)
    assert there.predict(pictures) == here.predict(pictures)
    assert there.folder.name == published.commit
    pictures[0].save(tmp_path / "one.png")
    assert command("verify", REPO)[0] == command("predict", REPO, tmp_path / "one.png", "--revision", "v1")[0] == 0


def test_revisions(published: Published, hub: LocalHub) -> None:
    hub.commit(REPO, {"README.md": b"# later"})
    for wanted in ("main", None):  # what stands there now is not what the manifest says
        with refused(VerificationError, REPO, "README.md", 7):
            load_bundle(REPO, wanted)
    for wanted in ("v1", published.commit):
        assert load_bundle(REPO, wanted, expected=published.manifest_sha256).folder.name == published.commit
        with refused(VerificationError, BUNDLE_MANIFEST, "0" * 64):
            load_bundle(REPO, wanted, expected="0" * 64)


def test_it_works_offline_from_the_cache(published: Published, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    load_bundle(REPO, "v1")
    asked = len(hub.requests)
    hub.stop()
    assert load_bundle(REPO, "v1").folder.name == published.commit  # the Hub cannot be reached
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_bundle(REPO, published.commit).folder.name == published.commit
    assert len(hub.requests) == asked
    with refused(HubError, "lab/other", "HF_HUB_OFFLINE", "unset") as caught:
        load_bundle("lab/other")
    assert "connection" not in str(caught.value)


def test_pull(bundle: Path, published: Published, tmp_path: Path, command: Command,
              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for number, (folder, options) in enumerate(
        (("here", ("--revision", "v1", "--to", tmp_path / "here")), ("roadwork", ()), ("empty", ("--to", "empty")))
    ):
        code, out, err = command("pull", REPO, *options)
        assert (code, err) == (0, ""), number
        assert published.commit in out and published.manifest_sha256 in out
        assert bundle_problems(tmp_path / folder, published.manifest_sha256) == []
        assert list_files(tmp_path / folder) == list_files(bundle)
        assert not any(path.is_symlink() for path in (tmp_path / folder).rglob("*"))


@pytest.mark.parametrize("taken", ["a folder", "a file", ".", "the folder one stands in"])
def test_pull_overwrites_nothing(
    taken: str, published: Published, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the folder one stands in it could only take its name by moving that away."""
    here = tmp_path / "here"
    mine = here if taken == "a file" else here / "mine.txt"
    mine.parent.mkdir(exist_ok=True)
    if taken.startswith("a "):
        mine.write_text("mine", encoding="utf-8")
    else:
        monkeypatch.chdir(here)
    code, _, err = command("pull", REPO, "--to", "." if taken == "." else here)
    assert code == 2 and "--to" in err and not list(tmp_path.glob(".tmp-*"))
    assert mine.read_text(encoding="utf-8") == "mine" if taken.startswith("a ") else here.samefile(".")


def test_what_is_not_there_or_not_for_everybody(
    bundle: Path, published: Published, hub: LocalHub, command: Command
) -> None:
    for repo_id, revision in (("lab/nothing", None), (REPO, "v9")):
        with refused(UsageError, repo_id):
            load_bundle(repo_id, revision)
    assert command("verify", "lab/nothing")[0] == 2
    hub.create("lab/secret", {"config.json": b"{}"}, private=True)
    with refused(UsageError, "lab/secret", "hf auth login"):
        load_bundle("lab/secret")
    hub.create("lab/model", {"config.json": b"{}", "pytorch_model.bin": b"\x80pickle"})
    with refused(UsageError, "lab/model", BUNDLE_MANIFEST):
        load_bundle("lab/model")
    assert not hub.asked("GET", "/lab/model/resolve/")


# What somebody else might have put there, manifest and all.


LONG = struct.pack("<Q", 2**60) + b"{}"
# Other damage is for tests/bundle; these are what a download must stop at. The first four are not even downloaded.
EVIL: dict[str, dict[str, bytes | None]] = {
    "an extra file": {"notes.txt": b"x"}, "a pickle": {"pytorch_model.bin": b"\x80\x04."},
    "code": {"modeling.py": b"import os"}, "a plot that is a script": {"plots/run.sh": b"#!/bin/sh"},
    "a header longer than the file": {"model.safetensors": LONG}, "no config": {"config.json": None},
    "remote code": {"config.json": b'{"auto_map": {"AutoModel": "evil--repo.Model"}}'},
    "a policy of another schema": {"policy.json": b'{"schema": 99}'},
}  # fmt: skip


@pytest.mark.parametrize("described", [True, False], ids=["in the manifest", "not in the manifest"])
@pytest.mark.parametrize("what", EVIL)
def test_what_a_bundle_may_not_hold_is_refused_by_name(
    what: str, described: bool, bundle: Path, published: Published, hub: LocalHub, tmp_path: Path
) -> None:
    files = dict(EVIL[what])
    ((name, data),) = files.items()
    if described:
        (bundle / name).write_bytes(data) if data is not None else (bundle / name).unlink()
        describe(bundle)
        files |= {path: (bundle / path).read_bytes() for path in ("README.md", BUNDLE_MANIFEST)}
    hub.commit(REPO, files)
    with refused(VerificationError, name):
        load_bundle(REPO)
    if what in list(EVIL)[:4]:
        assert not hub.asked("GET", f"/resolve/.*{re.escape(name)}")  # never downloaded


@pytest.mark.parametrize("path", ["../outside.json", "/etc/passwd", "plots/../../x.png", "C:\\x", "plots//a.png"])
def test_a_path_that_leaves_the_folder(path: str, bundle: Path, published: Published, hub: LocalHub) -> None:
    manifest = read(bundle / BUNDLE_MANIFEST)
    manifest["files"][path] = {"sha256": "0" * 64, "size": 1}
    hub.commit(REPO, {BUNDLE_MANIFEST: json.dumps(sealed(manifest)).encode()})
    with refused(VerificationError, path):
        load_bundle(REPO)


def test_a_listing_that_leaves_the_folder_is_not_followed(
    published: Published, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commit(REPO, {"../../escaped.json": b"x"})
    with refused(VerificationError, "../../escaped.json"):
        load_bundle(REPO)
    assert not list(tmp_path.rglob("escaped.json"))


@pytest.mark.parametrize("how", ["README.md", "plots", BUNDLE_MANIFEST])
def test_links_are_refused(how: str, bundle: Path, tmp_path: Path) -> None:
    linked = bundle / how
    linked.rename(tmp_path / "outside")
    linked.symlink_to(tmp_path / "outside")
    with refused(VerificationError, how, "link"):
        load_bundle(bundle)


def test_links_of_a_cache_may_lead_to_its_own_blobs_only(bundle: Path, published: Published, tmp_path: Path) -> None:
    folder = load_bundle(REPO).folder
    assert (folder / "README.md").is_symlink() and bundle_problems(folder) == []
    copy = tmp_path / "copy.md"
    copy.write_bytes((folder / "README.md").read_bytes())
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(copy)
    assert any("README.md" in problem and "link" in problem for problem in bundle_problems(folder))


def test_damage_takes_nothing_else_out_of_the_cache(
    bundle: Path, published: Published, hub: LocalHub, tmp_path: Path
) -> None:
    """Two revisions share most of their blobs; a link that leads out of the cache leads to what is not ours."""
    good = load_bundle(REPO, "v1").folder
    hub.commit(REPO, {"policy.json": b"{}"})
    with refused(VerificationError, "policy.json"):
        load_bundle(REPO)
    hub.stop()
    assert load_bundle(REPO, "v1").folder == good and bundle_problems(good) == []
    mine = tmp_path / "mine.md"
    mine.write_bytes((good / "README.md").read_bytes())
    (good / "README.md").unlink()
    (good / "README.md").symlink_to(mine)
    with refused(VerificationError, "README.md", "link"):
        load_bundle(REPO, "v1")
    assert mine.is_file() and not good.exists()


def test_a_repository_that_moves_while_it_is_downloaded(
    published: Published, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came meanwhile was not on the list that was looked at: it is not downloaded."""
    import huggingface_hub

    real = huggingface_hub.snapshot_download

    def late(*arguments: Any, **options: Any) -> Any:
        hub.commit(REPO, {"evil.py": b"import os"})
        return real(*arguments, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", late)
    with refused(HubError, REPO, "again"):
        load_bundle(REPO)
    assert not hub.asked("GET", r"/resolve/.*evil\.py")


@pytest.mark.parametrize("length", [2**24 + 1, 2**31])
def test_a_header_of_absurd_length_is_not_read(length: int, bundle: Path) -> None:
    """Even where the file is long enough: it is sparse here."""
    with (bundle / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", length))
        file.truncate(8 + length)
    if length < 2**30:  # its checksum takes a while
        describe(bundle)
    with refused(VerificationError, "model.safetensors", f"{length:,}"):
        load_bundle(bundle)


# Without this package.


def test_a_stock_pipeline_follows_the_policy(published: Published, pictures: list[Image.Image]) -> None:
    from transformers import pipeline

    classify = pipeline("image-classification", model=REPO)
    scores = [{row["label"]: row["score"] for row in answer}["Roadwork"] for answer in classify(pictures)]
    answers = load_bundle(REPO).predict(pictures)
    assert [score > 0.5 for score in scores] == [answer.label == "Roadwork" for answer in answers]
    assert len({answer.label for answer in answers}) == 2


def test_the_code_on_the_card_runs(
    published: Published, hub: LocalHub, pictures: list[Image.Image], tmp_path: Path, monkeypatch: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    blocks = re.findall(r"```python\n(.*?)```", hub.files(REPO)["README.md"].decode(), flags=re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    pictures[1].save("image.jpg")
    told: list[str] = []
    for block in blocks:
        capsys.readouterr()
        exec(block, {})
        told.append(capsys.readouterr().out)
    own, plain = told
    assert "Prediction(probability=" in own and "'score':" in plain
    best = max(eval(plain), key=lambda row: float(row["score"]))
    assert f"label='{best['label']}'" in own


def test_nobody_loads_by_accident_what_only_looks_like_a_repository(
    published: Published, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of that name comes first."""
    monkeypatch.chdir(tmp_path)
    Path("lab").mkdir()
    bundle.rename("lab/roadwork")
    assert load_bundle(REPO).folder == Path("lab/roadwork")


