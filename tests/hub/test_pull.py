"""Bundles from the Hub: checked file by file, pinned, offline from the cache, refused by name where they are off."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command, striped_image
from local_hub import LocalHub
from PIL import Image

import natix_hf
from natix_hf.bundle.contents import BUNDLE_MANIFEST, bundle_problems
from natix_hf.bundle.load import load_bundle
from natix_hf.bundle.push import Published, push_bundle
from natix_hf.errors import HubError, UsageError, VerificationError
from natix_hf.provenance.files import describe_files, list_files, write_json

REPO = "lab/roadwork"


@pytest.fixture
def bundle(finished_run: Path) -> Path:
    return finished_run / "phase6_export" / "bundle"


@pytest.fixture
def published(bundle: Path, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    done = push_bundle(bundle, REPO, tag="v1")
    hub.use_in_process(monkeypatch, tmp_path / "another_home", waits=False)  # nobody logged in, nothing in the cache
    return done


@pytest.fixture
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(5)
    return [striped_image(i % 2, rng, (40, 40)) for i in range(12)]


def test_a_bundle_from_the_hub_answers_as_the_one_that_was_sent(
    bundle: Path, published: Published, pictures: list[Image.Image]
) -> None:
    there, here = natix_hf.load_bundle(REPO), natix_hf.load_bundle(bundle)
    assert there.predict(pictures) == here.predict(pictures)
    assert there.folder.name == published.commit


@pytest.mark.parametrize("revision", ["v1", "main", None, "commit"])
def test_revisions(revision: str | None, published: Published, hub: LocalHub, tmp_path: Path) -> None:
    hub.commit(REPO, {"README.md": b"# later"})
    wanted = published.commit if revision == "commit" else revision
    if revision in ("main", None):  # what stands there now is not what the manifest says
        with pytest.raises(VerificationError, match=r"README\.md has 7 bytes"):
            load_bundle(REPO, wanted)
    else:
        assert load_bundle(REPO, wanted, expected=published.manifest_sha256).folder.name == published.commit


def test_the_expected_manifest(published: Published) -> None:
    with pytest.raises(VerificationError, match="not the one expected"):
        load_bundle(REPO, expected="0" * 64)
    load_bundle(REPO, expected=published.manifest_sha256)


def test_it_works_offline_from_the_cache(published: Published, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    load_bundle(REPO, "v1")
    asked = len(hub.requests)
    hub.stop()
    assert load_bundle(REPO, "v1").folder.name == published.commit  # the Hub cannot be reached
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_bundle(REPO, published.commit).folder.name == published.commit
    assert len(hub.requests) == asked
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set; nothing was loaded: unset it"):
        load_bundle("lab/other")


def test_pull(bundle: Path, published: Published, tmp_path: Path, command: Command) -> None:
    code, out, err = command("pull", REPO, "--revision", "v1", "--to", tmp_path / "here")
    assert (code, err) == (0, "") and published.commit in out and published.manifest_sha256 in out
    assert bundle_problems(tmp_path / "here", published.manifest_sha256) == []
    assert list_files(tmp_path / "here") == list_files(bundle)
    assert not any(path.is_symlink() for path in (tmp_path / "here").rglob("*"))


def test_pull_overwrites_nothing(published: Published, tmp_path: Path, command: Command) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.txt").write_text("mine", encoding="utf-8")
    code, _, err = command("pull", REPO, "--to", tmp_path / "here")
    assert code == 2 and "exists already: name another folder with --to" in err
    assert (tmp_path / "here" / "mine.txt").read_text(encoding="utf-8") == "mine"


def test_pull_names_the_folder_itself(published: Published, tmp_path: Path, command: Command,
                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert command("pull", REPO)[0] == 0 and bundle_problems(tmp_path / "roadwork") == []


def test_verify_and_predict_take_a_repository(
    published: Published, pictures: list[Image.Image], tmp_path: Path, command: Command
) -> None:
    pictures[0].save(tmp_path / "one.png")
    assert command("verify", REPO)[:2] == (0, f"{REPO}: intact\n")
    assert command("predict", REPO, tmp_path / "one.png", "--revision", "v1")[0] == 0


def test_no_such_repository_or_revision(published: Published, command: Command) -> None:
    for repo_id, revision in (("lab/nothing", None), (REPO, "v9")):
        with pytest.raises(UsageError, match="no such repository"):
            load_bundle(repo_id, revision)
    assert command("verify", "lab/nothing")[0] == 2


def test_a_private_one_needs_the_token(bundle: Path, hub: LocalHub, tmp_path: Path, monkeypatch: Any) -> None:
    push_bundle(bundle, REPO, private=True)
    hub.use_in_process(monkeypatch, tmp_path / "another_home", waits=False)
    with pytest.raises(UsageError, match="log in with"):
        load_bundle(REPO)


def test_a_repository_that_is_no_bundle(hub: LocalHub) -> None:
    hub.create("lab/model", {"config.json": b"{}", "pytorch_model.bin": b"\x80pickle"})
    with pytest.raises(UsageError, match=r"is not a bundle: it has no bundle_manifest\.json"):
        load_bundle("lab/model")
    assert not hub.asked("GET", "/resolve/")


# What somebody else might have put there, manifest and all.


def _weights_with_header(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


EMPTY = b'{"__metadata__":{}}'
EVIL: dict[str, tuple[dict[str, bytes | None], str]] = {
    "an extra file": ({"notes.txt": b"x"}, "notes.txt"),
    "a pickle": ({"pytorch_model.bin": b"\x80\x04."}, "pytorch_model.bin"),
    "code": ({"modeling.py": b"import os"}, "modeling.py"),
    "a plot that is a script": ({"plots/run.sh": b"#!/bin/sh"}, "plots/run.sh"),
    "a header longer than the file": ({"model.safetensors": _weights_with_header(EMPTY, 2**60)}, "model.safetensors"),
    "a header of no length": ({"model.safetensors": b"\0" * 8}, "model.safetensors"),
    "a header that is not JSON": ({"model.safetensors": _weights_with_header(b"\xff" * 64)}, "model.safetensors"),
    "a header of another shape": ({"model.safetensors": _weights_with_header(b"[[[[]]]]")}, "model.safetensors"),
    "tensors past the end": (
        {"model.safetensors": _weights_with_header(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}')},
        "model.safetensors",
    ),
    "no tensors": ({"model.safetensors": _weights_with_header(EMPTY)}, "model.safetensors"),
    "a file too short for a header": ({"model.safetensors": b"abc"}, "model.safetensors"),
    "remote code": ({"config.json": b'{"auto_map": {"AutoModel": "evil--repo.Model"}}'}, "config.json"),
    "remote code for images": ({"preprocessor_config.json": b'{"auto_map": {}}'}, "preprocessor_config.json"),
    "a config that is no object": ({"config.json": b"[1]"}, "config.json"),
    "a policy of another schema": ({"policy.json": b'{"schema": 99}'}, "policy.json"),
    "no config": ({"config.json": None}, "config.json"),
}


@pytest.mark.parametrize("described", [True, False], ids=["in the manifest", "not in the manifest"])
@pytest.mark.parametrize("what", EVIL)
def test_what_a_bundle_may_not_hold_is_refused_by_name(
    what: str, described: bool, bundle: Path, published: Published, hub: LocalHub, tmp_path: Path
) -> None:
    changes, name = EVIL[what]
    files: dict[str, bytes | None] = dict(changes)
    if described:
        for path, data in changes.items():
            (bundle / path).unlink(missing_ok=True)
            if data is not None:
                (bundle / path).parent.mkdir(parents=True, exist_ok=True)
                (bundle / path).write_bytes(data)
        rest = [each for each in list_files(bundle) if each != BUNDLE_MANIFEST]
        manifest = json.loads((bundle / BUNDLE_MANIFEST).read_text(encoding="utf-8"))
        write_json(bundle / BUNDLE_MANIFEST, manifest | {"files": describe_files(bundle, rest)})
        files |= {path: (bundle / path).read_bytes() for path in ("README.md", BUNDLE_MANIFEST)}
    hub.commit(REPO, files)
    with pytest.raises(VerificationError) as caught:
        load_bundle(REPO)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(VerificationError):
        natix_hf.load_bundle(REPO, verify=True)
    if what in ("an extra file", "a pickle", "code", "a plot that is a script"):
        assert not hub.asked("GET", f"/resolve/.*{re.escape(name)}")  # never downloaded


@pytest.mark.parametrize("path", ["../outside.json", "/etc/passwd", "plots/../../x.png", "C:\\x", "plots//a.png"])
def test_a_path_that_leaves_the_folder(path: str, bundle: Path, published: Published, hub: LocalHub) -> None:
    manifest = json.loads((bundle / BUNDLE_MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][path] = {"sha256": "0" * 64, "size": 1}
    hub.commit(REPO, {BUNDLE_MANIFEST: json.dumps(manifest).encode()})
    with pytest.raises(VerificationError) as caught:
        load_bundle(REPO)
    assert "which a bundle may not hold" in str(caught.value)


def test_a_listing_that_leaves_the_folder_is_not_followed(
    published: Published, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commit(REPO, {"../../escaped.json": b"x"})
    with pytest.raises(VerificationError, match=r"holds \.\./\.\./escaped\.json"):
        load_bundle(REPO)
    assert not list(tmp_path.rglob("escaped.json"))


@pytest.mark.parametrize("how", ["file", "folder", "manifest"])
def test_links_are_refused(how: str, bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    if how == "file":
        (bundle / "README.md").rename(outside)
        (bundle / "README.md").symlink_to(outside)
    elif how == "folder":
        (bundle / "plots").rename(outside)
        (bundle / "plots").symlink_to(outside)
    else:
        (bundle / BUNDLE_MANIFEST).rename(outside)
        (bundle / BUNDLE_MANIFEST).symlink_to(outside)
    with pytest.raises(VerificationError, match="is a link, not a file"):
        load_bundle(bundle)


def test_links_of_a_cache_may_lead_to_its_own_blobs_only(bundle: Path, published: Published, tmp_path: Path) -> None:
    folder = load_bundle(REPO).folder
    assert (folder / "README.md").is_symlink() and bundle_problems(folder) == []
    copy = tmp_path / "copy.md"
    copy.write_bytes((folder / "README.md").read_bytes())
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(copy)
    assert any("README.md is a link" in problem for problem in bundle_problems(folder))


def test_damage_takes_nothing_else_out_of_the_cache(
    bundle: Path, published: Published, hub: LocalHub, tmp_path: Path
) -> None:
    """Two revisions share most of their blobs; a link that leads out of the cache leads to what is not ours."""
    good = load_bundle(REPO, "v1").folder
    hub.commit(REPO, {"policy.json": b"{}"})
    with pytest.raises(VerificationError, match=r"policy\.json"):
        load_bundle(REPO)
    hub.stop()
    assert load_bundle(REPO, "v1").folder == good and bundle_problems(good) == []
    mine = tmp_path / "mine.md"
    mine.write_bytes((good / "README.md").read_bytes())
    (good / "README.md").unlink()
    (good / "README.md").symlink_to(mine)
    with pytest.raises(VerificationError, match=r"README\.md is a link"):
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
    with pytest.raises(HubError, match="moved meanwhile"):
        load_bundle(REPO)
    assert not hub.asked("GET", r"/resolve/.*evil\.py")


@pytest.mark.parametrize("length", [2**24 + 1, 2**31])
def test_a_header_of_absurd_length_is_not_read(length: int, bundle: Path) -> None:
    """Even where the file is long enough: it is sparse here."""
    with (bundle / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", length))
        file.truncate(8 + length)
    rest = [name for name in list_files(bundle) if name != BUNDLE_MANIFEST]
    manifest = json.loads((bundle / BUNDLE_MANIFEST).read_text(encoding="utf-8"))
    if length < 2**30:  # its checksum takes a while
        write_json(bundle / BUNDLE_MANIFEST, manifest | {"files": describe_files(bundle, rest)})
    with pytest.raises(VerificationError, match=r"model\.safetensors (says that its header|has \d+ bytes)"):
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


