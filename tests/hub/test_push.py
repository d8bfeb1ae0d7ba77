"""Publishing a bundle: one commit with exactly its files, read back; refused or safe to repeat where it goes wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundles import bind, describe, edit, read
from conftest import REPO, TOKEN, Command, refused
from local_hub import LocalHub

import natix_hf
from natix_hf.bundle import push
from natix_hf.bundle.contents import bundle_problems, is_allowed
from natix_hf.bundle.names import BUNDLE_MANIFEST
from natix_hf.bundle.push import push_bundle
from natix_hf.errors import HubError, UsageError, VerificationError
from natix_hf.phases import phase6_evaluate
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.files import file_sha256, list_files
from natix_hf.results.logits import read_logits, write_logits

PUBLISH = ["phase6.push=true", f"phase6.repo_id={REPO}"]


def files_there(hub: LocalHub, revision: str = "main") -> dict[str, bytes]:
    return {name: data for name, data in hub.files(REPO, revision).items() if name != ".gitattributes"}


def test_one_commit_with_exactly_the_files_of_the_bundle(bundle: Path, hub: LocalHub, tmp_path: Path) -> None:
    done = push_bundle(bundle, REPO)
    there = files_there(hub)
    assert set(there) == set(list_files(bundle)) and all(is_allowed(n) or n == BUNDLE_MANIFEST for n in there)
    # The card alone differs: it names the repository; so the manifest does.
    same = {name for name, data in there.items() if data == (bundle / name).read_bytes()}
    assert set(there) - same == {"README.md", BUNDLE_MANIFEST}
    placed = (bundle / "README.md").read_text(encoding="utf-8").replace("PATH_OR_REPO_ID", REPO)
    assert there["README.md"].decode() == placed and placed.count(REPO) == 2
    assert len(hub.commits(REPO)) == 2 and hub.commits(REPO)[0] == done.commit  # the empty repository, and the bundle
    assert len(hub.asked("POST", "/commit/")) == 1
    assert hub.asked("GET", rf"/resolve/{done.commit}/")  # read back, from that very commit
    assert hub.repo(REPO).private is False
    for name, data in there.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(data)
    assert bundle_problems(tmp_path / "copy", done.manifest_sha256) == []
    assert file_sha256(tmp_path / "copy" / BUNDLE_MANIFEST) == done.manifest_sha256


def test_a_repetition_makes_no_second_commit(bundle: Path, hub: LocalHub) -> None:
    first, again = push_bundle(bundle, REPO, tag="v1.0.0"), push_bundle(bundle, REPO, tag="v1.0.0")
    assert first == again and len(hub.commits(REPO)) == 2
    assert hub.tags(REPO) == {"v1.0.0": first.commit}


def test_another_bundle_takes_the_place_of_the_first(bundle: Path, hub: LocalHub) -> None:
    old = push_bundle(bundle, REPO)
    stale = {"model_card.json": b"{}", "plots/stale.png": b"png"}
    between = hub.commit(REPO, stale)
    new = push_bundle(bundle, REPO)
    assert set(files_there(hub)) == set(list_files(bundle)) and old.commit != new.commit
    assert set(files_there(hub, between)) >= set(stale)  # nothing is lost: the history keeps it


@pytest.mark.parametrize("name", ["model.bin", "weights/model.safetensors", "config.json"])
def test_a_repository_of_something_else_is_left_alone(name: str, bundle: Path, hub: LocalHub) -> None:
    head = hub.create(REPO, {name: b"theirs", "README.md": b"# theirs"})
    with refused(UsageError, REPO, name):
        push_bundle(bundle, REPO)
    assert hub.commits(REPO)[0] == head
    hub.create("lab/card", {"README.md": b"# to come"})  # a card alone is as good as nothing
    push_bundle(bundle, "lab/card")


def test_private(bundle: Path, hub: LocalHub) -> None:
    for _ in range(2):
        push_bundle(bundle, REPO, private=True)
        assert hub.repo(REPO).private
    hub.create("lab/open", {})
    with refused(UsageError, "lab/open", "public", "--private"):
        push_bundle(bundle, "lab/open", private=True)


@pytest.mark.parametrize("after_it", [True, False])
def test_a_tag_of_another_bundle_is_taken(after_it: bool, bundle: Path, hub: LocalHub) -> None:
    """Whether something came after it or not; refused before anything is published."""
    done = push_bundle(bundle, REPO, tag="v1.0.0")
    if after_it:
        hub.commit(REPO, {"plots/other.png": b"x"})
    else:
        (bundle / "evaluation.json").write_text("{}", encoding="utf-8")
        describe(bundle)
    head = hub.commits(REPO)[0]
    with refused(UsageError, "v1.0.0", done.commit[:12]):
        push_bundle(bundle, REPO, tag="v1.0.0")
    assert hub.commits(REPO)[0] == head
    later = push_bundle(bundle, REPO, tag="v1.0.1")
    assert hub.tags(REPO) == {"v1.0.0": done.commit, "v1.0.1": later.commit}


def test_somebody_else_commits_meanwhile(bundle: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    real, theirs = push._require_ours, []

    def slow(*arguments: Any) -> None:
        real(*arguments)
        theirs.append(hub.commit(REPO, {"README.md": b"# theirs"}))

    with monkeypatch.context() as patch:
        patch.setattr(push, "_require_ours", slow)
        with refused(HubError, push._OUTCOME, "again"):
            push_bundle(bundle, REPO)
    assert hub.commits(REPO)[0] == theirs[0]
    push_bundle(bundle, REPO)
    assert set(files_there(hub)) == set(list_files(bundle))


# Who may.


@pytest.mark.parametrize(
    ("token", "repo_id", "way_out"),
    [(None, REPO, "hf auth login"), ("hf_unknown", REPO, "hf auth login"), ("hf_reader", REPO, "right"),
     (TOKEN, "foreign/roadwork", "right")],
)  # fmt: skip
def test_no_right(
    token: str | None, repo_id: str, way_out: str, bundle: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    hub.use_in_process(monkeypatch, tmp_path / "other_home", token=token, waits=False)
    with refused(UsageError, repo_id, way_out) as caught:
        push_bundle(bundle, repo_id)
    assert not hub.asked("POST", "/commit/") and (token is None or token not in str(caught.value))


@pytest.mark.parametrize("repo_id", ["roadwork", "a/b/c", "lab/..", "lab/a b", "", "lab/", "-lab/x", "lab/x.git"])
def test_names_that_cannot_be(repo_id: str, bundle: Path, hub: LocalHub) -> None:
    with refused(UsageError, repr(repo_id), "org/name"):
        push_bundle(bundle, repo_id)
    with refused(UsageError, repr(f"{repo_id} "), "tag"):
        push_bundle(bundle, REPO, tag=f"{repo_id} ")
    assert not hub.requests


# What may be published.


@pytest.mark.parametrize("damage", ["byte", "stranger", "missing", "another model's config"])
def test_a_damaged_bundle_never_reaches_the_hub(damage: str, bundle: Path, hub: LocalHub, command: Command) -> None:
    if damage == "byte":
        weights = bundle / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    elif damage == "stranger":
        (bundle / "training_args.bin").write_bytes(b"\x80pickle")
    elif damage == "missing":
        (bundle / "config.json").unlink()
    else:  # manifest and checksums are right, and it does not load
        edit(bundle / "config.json", hidden_size=64)
        bind(bundle)
        describe(bundle)
    with pytest.raises(VerificationError):
        push_bundle(bundle, REPO)
    code, _, err = command("push", bundle, REPO)
    assert code == 1 and err.count("\n") == 1
    assert not hub.requests


@pytest.mark.parametrize("name", ["policy.json", "evaluation.json"])
def test_a_bundle_that_changes_while_it_is_copied(
    name: str, bundle: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another evaluation nothing but a checksum would tell."""
    real = push.shutil.copyfile

    def late(source: Path, target: Path) -> Any:
        if source.name == name:
            source.write_text(source.read_text(encoding="utf-8").replace("e", "E", 1), encoding="utf-8")
        return real(source, target)

    monkeypatch.setattr(push.shutil, "copyfile", late)
    with refused(VerificationError, name):
        push_bundle(bundle, REPO)
    assert not hub.requests


def test_what_is_read_back_comes_from_the_hub_itself(
    bundle: Path, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = push_bundle(bundle, REPO)
    natix_hf.load_bundle(REPO, done.commit)  # now the cache has it
    before = len(hub.asked("GET", r"/resolve/.*model\.safetensors"))
    push_bundle(bundle, REPO)
    assert len(hub.asked("GET", r"/resolve/.*model\.safetensors")) == before + 1
    # A bundle that is intact in itself, but not this one: its card has not been told the repository.
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    monkeypatch.setattr(push, "fetch_bundle", lambda *_: other)
    with refused(VerificationError, done.commit, REPO):
        push_bundle(bundle, REPO)


def test_a_run_whose_parts_do_not_fit_is_not_published(finished_run: Path, hub: LocalHub, command: Command) -> None:
    threshold = finished_run / "phase2_threshold" / "threshold.json"
    threshold.write_text(threshold.read_text(encoding="utf-8").replace("0", "1", 1), encoding="utf-8")
    code, _, err = command("push", finished_run, REPO)
    assert code == 1 and "threshold.json" in err and not hub.requests


def test_the_command_prints_what_pins_it_and_no_token(
    finished_run: Path, hub: LocalHub, tmp_path: Path, command: Command
) -> None:
    hub.fail(500, "POST", "/commit/", times=1)
    told = command("push", finished_run, REPO, "--private", "--tag", "v0.1.0")
    assert told[0] == 1
    code, out, err = command("push", finished_run, REPO, "--private", "--tag", "v0.1.0")
    assert (code, err) == (0, "")
    commit = hub.tags(REPO)["v0.1.0"]
    digest = natix_hf.load_bundle(REPO, commit).folder / BUNDLE_MANIFEST
    assert commit in out and file_sha256(digest) in out and hub.repo(REPO).private
    load = next(line[line.index("natix_hf.load_bundle") :] for line in out.splitlines() if "load_bundle" in line)
    assert eval(load, {"natix_hf": natix_hf}).folder.name == commit and file_sha256(digest) in load
    assert TOKEN not in "".join((*told[1:], out, err))
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    assert all(TOKEN.encode() not in data for data in files_there(hub).values())


# A run that publishes itself.


def test_a_run_publishes_itself(
    finished_run: Path, hub: LocalHub, tiny_recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_recipe(str(tiny_recipe_file), [6], finished_run, overrides=[*PUBLISH, "phase6.private=true", "phase6.tag=v2"])
    facts = read(finished_run / "phase6_export/manifest.json")["metrics"]["published"]
    assert hub.tags(REPO) == {"v2": facts["commit"]} and hub.repo(REPO).private
    assert (facts["repo_id"], facts["tag"]) == (REPO, "v2") and facts["manifest_sha256"] in capsys.readouterr().out
    assert natix_hf.load_bundle(REPO, facts["commit"], expected=facts["manifest_sha256"]).policy is not None


def test_what_the_hub_would_refuse_is_refused_before_any_work(
    hub: LocalHub, tiny_recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.use_in_process(monkeypatch, tmp_path / "other_home", token=None)
    with refused(UsageError, REPO, "hf auth login"):
        run_recipe(str(tiny_recipe_file), [1, 2, 6], tmp_path / "new", overrides=PUBLISH)
    assert not (tmp_path / "new").exists()


def test_a_push_that_failed_is_repeated_without_looking_at_test_again(
    finished_run: Path, hub: LocalHub, tiny_recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    real, folder = phase6_evaluate.compute_answers, finished_run / "phase6_export"
    monkeypatch.setattr(phase6_evaluate, "compute_answers", lambda *args: looks.append(1) or real(*args))
    hub.fail(503, "POST", "/commit/", times=1)
    with refused(HubError, REPO, "again"):
        run_recipe(str(tiny_recipe_file), [6], finished_run, overrides=PUBLISH)
    assert not (folder / "manifest.json").exists()
    run_recipe(str(tiny_recipe_file), [6], finished_run, overrides=PUBLISH)
    assert looks == [] and len(hub.commits(REPO)) == 2
    # Another champion is another look.
    stored = folder / "logits" / "test.parquet"
    sha256 = json.loads((finished_run / "phase2_threshold/threshold.json").read_text(encoding="utf-8"))
    table = read_logits(stored, sha256["candidate_sha256"])
    (folder / "manifest.json").unlink()
    write_logits(stored, replace(table, logits=table.logits + 9, candidate_sha256="f" * 64))
    run_recipe(str(tiny_recipe_file), [6], finished_run, overrides=PUBLISH)
    assert looks == [1] and read_logits(stored, sha256["candidate_sha256"]).logits.tolist() == table.logits.tolist()


def test_a_run_that_does_not_verify_publishes_nothing(
    finished_run: Path, hub: LocalHub, tiny_recipe_file: Path
) -> None:
    """The damaged file is none that phase 6 reads."""
    damaged = finished_run / "phase1_baseline" / "history.json"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with refused(VerificationError, damaged, "nothing was published"):
        run_recipe(str(tiny_recipe_file), [6], finished_run, overrides=PUBLISH)
    assert not hub.asked("POST", "/commit/") and not (finished_run / "phase6_export" / "manifest.json").exists()
