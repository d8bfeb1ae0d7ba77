"""Publishing a bundle: one commit with exactly its files, read back; refused or safe to repeat where it goes wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_RECIPE, TOKEN, Command, write_recipe
from local_hub import LocalHub

import natix_hf
from natix_hf.bundle import push
from natix_hf.bundle.contents import BUNDLE_MANIFEST, bundle_problems, is_allowed
from natix_hf.bundle.push import push_bundle
from natix_hf.errors import HubError, UsageError, VerificationError
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.files import describe_files, file_sha256, list_files, write_json

REPO = "lab/roadwork"


def files_there(hub: LocalHub, revision: str = "main") -> dict[str, bytes]:
    return {name: data for name, data in hub.files(REPO, revision).items() if name != ".gitattributes"}


@pytest.fixture
def bundle(finished_run: Path) -> Path:
    return finished_run / "phase6_export" / "bundle"


def test_one_commit_with_exactly_the_files_of_the_bundle(bundle: Path, hub: LocalHub) -> None:
    done = push_bundle(bundle, REPO)
    there = files_there(hub)
    assert set(there) == set(list_files(bundle)) and all(is_allowed(n) or n == BUNDLE_MANIFEST for n in there)
    # The card alone differs: it names the repository; so the manifest does.
    same = {name for name, data in there.items() if data == (bundle / name).read_bytes()}
    assert set(there) - same == {"README.md", BUNDLE_MANIFEST}
    placed = (bundle / "README.md").read_text(encoding="utf-8").replace("PATH_OR_REPO_ID", REPO)
    assert there["README.md"].decode() == placed and placed.count(REPO) == 2
    commits = hub.commits(REPO)
    assert len(commits) == 2 and commits[0] == done.commit  # the empty repository, and the bundle
    assert len(hub.asked("POST", "/commit/")) == 1
    assert [r.method for r in hub.asked("GET", rf"/resolve/{done.commit}/")]  # read back, from that very commit
    assert hub.repo(REPO).private is False


def test_what_is_published_is_whole_and_pinned(bundle: Path, hub: LocalHub, tmp_path: Path) -> None:
    done = push_bundle(bundle, REPO)
    for name, data in files_there(hub).items():
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
    hub.commit(REPO, stale)
    new = push_bundle(bundle, REPO)
    assert set(files_there(hub)) == set(list_files(bundle)) and old.commit != new.commit
    assert set(files_there(hub, hub.commits(REPO)[1])) >= set(stale)  # nothing is lost: the history keeps it


@pytest.mark.parametrize("name", ["model.bin", "weights/model.safetensors", "config.json"])
def test_a_repository_of_something_else_is_left_alone(name: str, bundle: Path, hub: LocalHub) -> None:
    head = hub.create(REPO, {name: b"theirs", "README.md": b"# theirs"})
    with pytest.raises(UsageError, match=f"holds {name} and is no bundle's"):
        push_bundle(bundle, REPO)
    assert hub.commits(REPO)[0] == head


def test_a_repository_with_a_card_alone_is_as_good_as_empty(bundle: Path, hub: LocalHub) -> None:
    hub.create(REPO, {"README.md": b"# to come"})
    push_bundle(bundle, REPO)
    assert set(files_there(hub)) == set(list_files(bundle))


def test_private(bundle: Path, hub: LocalHub) -> None:
    push_bundle(bundle, REPO, private=True)
    assert hub.repo(REPO).private
    push_bundle(bundle, REPO, private=True)
    hub.create("lab/open", {})
    with pytest.raises(UsageError, match="public already"):
        push_bundle(bundle, "lab/open", private=True)


def test_tags(bundle: Path, hub: LocalHub) -> None:
    done = push_bundle(bundle, REPO, tag="v1.0.0")
    assert hub.tags(REPO) == {"v1.0.0": done.commit}
    head = hub.commit(REPO, {"plots/other.png": b"x"})
    with pytest.raises(UsageError, match=rf"v1\.0\.0 is taken by commit {done.commit[:12]}: name another"):
        push_bundle(bundle, REPO, tag="v1.0.0")
    assert hub.commits(REPO)[0] == head  # refused before anything was published
    later = push_bundle(bundle, REPO, tag="v1.0.1")
    assert hub.tags(REPO) == {"v1.0.0": done.commit, "v1.0.1": later.commit}


def test_a_tag_of_another_bundle_is_taken_though_nothing_came_after_it(bundle: Path, hub: LocalHub) -> None:
    done = push_bundle(bundle, REPO, tag="v1.0.0")
    (bundle / "evaluation.json").write_text("{}", encoding="utf-8")
    rest = [name for name in list_files(bundle) if name != BUNDLE_MANIFEST]
    manifest = json.loads((bundle / BUNDLE_MANIFEST).read_text(encoding="utf-8"))
    write_json(bundle / BUNDLE_MANIFEST, manifest | {"files": describe_files(bundle, rest)})
    with pytest.raises(UsageError, match=rf"v1\.0\.0 is taken by commit {done.commit[:12]}: name another"):
        push_bundle(bundle, REPO, tag="v1.0.0")
    assert hub.commits(REPO)[0] == done.commit


def test_a_tag_that_is_taken_at_the_last_moment(bundle: Path, hub: LocalHub) -> None:
    hub.fail(409, "POST", "/tag/")
    with pytest.raises(HubError, match="tag v1 on lab/roadwork") as caught:
        push_bundle(bundle, REPO, tag="v1")
    assert f"commit {hub.commits(REPO)[0]} is published without it" in str(caught.value)


def test_somebody_else_commits_meanwhile(bundle: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    real, theirs = push._require_ours, []

    def slow(*arguments: Any) -> None:
        real(*arguments)
        theirs.append(hub.commit(REPO, {"README.md": b"# theirs"}))

    with monkeypatch.context() as patch:
        patch.setattr(push, "_require_ours", slow)
        with pytest.raises(HubError, match=r"moved meanwhile.*nothing was published: run the same again"):
            push_bundle(bundle, REPO)
    assert hub.commits(REPO)[0] == theirs[0]
    push_bundle(bundle, REPO)
    assert set(files_there(hub)) == set(list_files(bundle))


# Who may.


@pytest.mark.parametrize(
    ("token", "repo_id", "told"),
    [
        (None, REPO, "there is no token: log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_unknown", REPO, "the token is not accepted"),
        ("hf_reader", REPO, "no right to do that"),
        (TOKEN, "foreign/roadwork", "no right to do that"),
    ],
)
def test_no_right(
    token: str | None, repo_id: str, told: str, bundle: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path
) -> None:  # fmt: skip
    hub.use_in_process(monkeypatch, tmp_path / "other_home", token=token, waits=False)
    with pytest.raises(UsageError) as caught:
        push_bundle(bundle, repo_id)
    line = str(caught.value)
    assert told in line and repo_id in line and "\n" not in line
    assert not hub.asked("POST", "/commit/") and (token is None or token not in line)


@pytest.mark.parametrize("repo_id", ["roadwork", "a/b/c", "lab/..", "lab/a b", "", "lab/", "-lab/x", "lab/x.git"])
def test_names_that_cannot_be(repo_id: str, bundle: Path, hub: LocalHub) -> None:
    with pytest.raises(UsageError, match="name it as org/name"):
        push_bundle(bundle, repo_id)
    with pytest.raises(UsageError, match="cannot be a tag"):
        push_bundle(bundle, REPO, tag=f"{repo_id} ")
    assert not hub.requests


# What may be published.


@pytest.mark.parametrize("damage", ["byte", "stranger", "missing"])
def test_a_damaged_bundle_never_reaches_the_hub(damage: str, bundle: Path, hub: LocalHub, command: Command) -> None:
    if damage == "byte":
        weights = bundle / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    elif damage == "stranger":
        (bundle / "training_args.bin").write_bytes(b"\x80pickle")
    else:
        (bundle / "config.json").unlink()
    with pytest.raises(VerificationError):
        push_bundle(bundle, REPO)
    code, _, err = command("push", bundle, REPO)
    assert code == 1 and "nothing was published" in err and err.count("\n") == 1
    assert not hub.requests


def test_a_bundle_that_does_not_load_is_not_published(bundle: Path, hub: LocalHub) -> None:
    """Manifest and checksums are right; the config belongs to another model."""
    config = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    write_json(bundle / "config.json", config | {"hidden_size": 64})
    rest = [name for name in list_files(bundle) if name != BUNDLE_MANIFEST]
    manifest = json.loads((bundle / BUNDLE_MANIFEST).read_text(encoding="utf-8"))
    write_json(bundle / BUNDLE_MANIFEST, manifest | {"files": describe_files(bundle, rest)})
    assert bundle_problems(bundle) == []
    with pytest.raises(VerificationError):
        push_bundle(bundle, REPO)
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
    with pytest.raises(VerificationError, match=rf"{name} was changed"):
        push_bundle(bundle, REPO)
    assert not hub.requests


def test_what_is_read_back_comes_from_the_hub_itself(bundle: Path, hub: LocalHub) -> None:
    done = push_bundle(bundle, REPO)
    natix_hf.load_bundle(REPO, done.commit)  # now the cache has it
    before = len(hub.asked("GET", r"/resolve/.*model\.safetensors"))
    push_bundle(bundle, REPO)
    assert len(hub.asked("GET", r"/resolve/.*model\.safetensors")) == before + 1


def test_another_bundle_than_was_sent_is_noticed(
    bundle: Path, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Intact in itself, but not this one: its card has not been told the repository."""
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    monkeypatch.setattr(push, "fetch_bundle", lambda *_: other)
    with pytest.raises(VerificationError, match="what the Hub gives back is not what was sent"):
        push_bundle(bundle, REPO)


def test_a_run_whose_parts_do_not_fit_is_not_published(finished_run: Path, hub: LocalHub, command: Command) -> None:
    threshold = finished_run / "phase2_threshold" / "threshold.json"
    threshold.write_text(threshold.read_text(encoding="utf-8").replace("0", "1", 1), encoding="utf-8")
    code, _, err = command("push", finished_run, REPO)
    assert code == 1 and "threshold.json" in err and not hub.requests


def test_the_command_prints_what_pins_it(finished_run: Path, hub: LocalHub, command: Command) -> None:
    code, out, err = command("push", finished_run, REPO, "--private", "--tag", "v0.1.0")
    assert (code, err) == (0, "")
    commit = hub.tags(REPO)["v0.1.0"]
    digest = next(line.split()[-1] for line in out.splitlines() if line.startswith("manifest"))
    assert commit in out and hub.repo(REPO).private
    load = next(line.split(None, 1)[1] for line in out.splitlines() if line.startswith("load"))
    assert eval(load, {"natix_hf": natix_hf}).folder.name == commit and digest in load
    assert TOKEN not in out


def test_the_token_is_in_no_file(finished_run: Path, hub: LocalHub, tmp_path: Path, command: Command) -> None:
    hub.fail(500, "POST", "/commit/", times=1)
    told = command("push", finished_run, REPO)
    assert told[0] == 1
    again = command("push", finished_run, REPO)
    assert again[0] == 0
    assert TOKEN not in "".join((*told[1:], *again[1:]))
    for folder in (finished_run, tmp_path):
        for path in folder.rglob("*"):
            assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    assert all(TOKEN.encode() not in data for data in files_there(hub).values())


# A run that publishes itself.


@pytest.fixture
def recipe(finished_run: Path, tmp_path: Path) -> Callable[..., str]:
    section = json.loads((finished_run / "phase0_data" / "manifest.json").read_text(encoding="utf-8"))["section"]

    def write(**phase6: Any) -> str:
        content = {**TINY_RECIPE, "data": section["data"], "phase6": {"n_resamples": 100} | phase6}
        return str(write_recipe(tmp_path / "tiny.yaml", json.loads(json.dumps(content))))

    return write


def test_a_run_publishes_itself(
    finished_run: Path, hub: LocalHub, recipe: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    run_recipe(recipe(push=True, repo_id=REPO, private=True, tag="v2"), [6], finished_run)
    published = json.loads((finished_run / "phase6_export/manifest.json").read_text(encoding="utf-8"))["metrics"]
    facts = published["published"]
    assert hub.tags(REPO) == {"v2": facts["commit"]} and hub.repo(REPO).private
    assert (facts["repo_id"], facts["tag"]) == (REPO, "v2") and facts["manifest_sha256"] in capsys.readouterr().out
    assert natix_hf.load_bundle(REPO, facts["commit"], expected=facts["manifest_sha256"]).policy is not None


def test_what_the_hub_would_refuse_is_refused_before_any_work(
    hub: LocalHub, recipe: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.use_in_process(monkeypatch, tmp_path / "other_home", token=None)
    with pytest.raises(UsageError, match="there is no token"):
        run_recipe(recipe(push=True, repo_id=REPO), [1, 2, 6], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_push_that_failed_is_repeated_without_looking_at_test_again(
    finished_run: Path, hub: LocalHub, recipe: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from natix_hf.phases import phase6_evaluate

    looks: list[int] = []
    real = phase6_evaluate.compute_answers
    monkeypatch.setattr(phase6_evaluate, "compute_answers", lambda *args: looks.append(1) or real(*args))
    hub.fail(503, "POST", "/commit/", times=1)
    with pytest.raises(HubError, match="not known: run the same again later"):
        run_recipe(recipe(push=True, repo_id=REPO), [6], finished_run)
    assert not (finished_run / "phase6_export" / "manifest.json").exists()
    run_recipe(recipe(push=True, repo_id=REPO), [6], finished_run)
    assert looks == [] and len(hub.commits(REPO)) == 2
    # Another champion is another look.
    stored = finished_run / "phase6_export" / "logits" / "test.parquet"
    from natix_hf.data.asked import Asked
    from natix_hf.results.logits import LogitTable, read_logits, write_logits

    sha256 = json.loads((finished_run / "phase2_threshold/threshold.json").read_text(encoding="utf-8"))
    table = read_logits(stored, sha256["candidate_sha256"])
    (finished_run / "phase6_export" / "manifest.json").unlink()
    write_logits(stored, LogitTable(Asked(table.ids, table.groups, table.labels), table.logits + 9, "f" * 64))
    run_recipe(recipe(push=True, repo_id=REPO), [6], finished_run)
    assert looks == [1] and read_logits(stored, sha256["candidate_sha256"]).logits.tolist() == table.logits.tolist()
