"""Pushes that end in doubt, are repeated, or go on to another repository."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_RECIPE, TOKEN, Command, write_recipe
from local_hub import LocalHub

import natix_hf
from natix_hf.bundle import push
from natix_hf.bundle.fetch import pull_bundle
from natix_hf.bundle.push import push_bundle
from natix_hf.errors import HubError
from natix_hf.pipeline import run_recipe

REPO, NEXT = "lab/roadwork", "lab/roadwork-next"
HOTKEY = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"


@pytest.fixture
def bundle(finished_run: Path) -> Path:
    return finished_run / "phase6_export" / "bundle"


@pytest.mark.parametrize("kind", ["drop", "lost", "cut", 500, 504])
def test_a_commit_without_an_answer_may_have_happened(kind: int | str, bundle: Path, hub: LocalHub) -> None:
    """Nobody says that nothing was published where something may have been."""
    hub.fail(kind, "POST", "/commit/", times=1)
    with pytest.raises(HubError, match="whether it was published is not known: run the same again"):
        push_bundle(bundle, REPO)
    done = push_bundle(bundle, REPO)
    assert len(hub.commits(REPO)) == 2 and hub.commits(REPO)[0] == done.commit


@pytest.mark.parametrize("kind", [401, 403, 409, 412, 429])
def test_a_commit_that_was_refused_did_not_happen(kind: int, bundle: Path, hub: LocalHub) -> None:
    hub.fail(kind, "POST", "/commit/")
    with pytest.raises(natix_hf.errors.NatixError, match="nothing was published"):
        push_bundle(bundle, REPO)


@pytest.mark.parametrize("kind", ["lost", 503])
def test_a_tag_without_an_answer(kind: int | str, bundle: Path, hub: LocalHub) -> None:
    hub.fail(kind, "POST", "/tag/", times=1)
    with pytest.raises(HubError, match="is published, perhaps without it: run the same again"):
        push_bundle(bundle, REPO, tag="v1")
    done = push_bundle(bundle, REPO, tag="v1")
    assert hub.tags(REPO) == {"v1": done.commit} and len(hub.commits(REPO)) == 2


def test_a_full_disk_while_it_is_read_back(bundle: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit is there, and whoever pushed is told so."""

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/scratch")

    with monkeypatch.context() as patch:
        patch.setattr(push, "fetch_bundle", full)
        with pytest.raises(HubError, match=r"commit \w{40} of .* is published, but was not read back .*No space left"):
            push_bundle(bundle, REPO)
    assert hub.commits(REPO)[0] == push_bundle(bundle, REPO).commit


def test_an_organization_decides_who_may_see_it(
    bundle: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --private nothing is asked for: an organization may want its repositories private."""
    from huggingface_hub import HfApi

    real, asked = HfApi.create_repo, []

    def note(self: HfApi, repo_id: str, **options: Any) -> Any:
        asked.append((options.get("private"), options.get("visibility")))
        return real(self, repo_id, **options)

    monkeypatch.setattr(HfApi, "create_repo", note)
    push_bundle(bundle, REPO)
    push_bundle(bundle, NEXT, private=True)
    assert asked == [(None, None), (True, None)]


def test_a_bundle_that_moves_on_takes_the_name_of_its_new_repository(
    bundle: Path, hub: LocalHub, tmp_path: Path
) -> None:
    push_bundle(bundle, REPO)
    folder, _ = pull_bundle(REPO, to=tmp_path / "here")
    push_bundle(folder, NEXT)
    first, second = (hub.files(repo_id)["README.md"].decode() for repo_id in (REPO, NEXT))
    assert first.count(f'"{REPO}"') == second.count(f'"{NEXT}"') == 2 and f'"{REPO}"' not in second
    assert second.replace(f'"{NEXT}"', f'"{REPO}"') == first
    assert natix_hf.load_bundle(NEXT).policy == natix_hf.load_bundle(bundle).policy


@pytest.mark.parametrize("stage", [("POST", "/commit/"), ("POST", "/tag/"), ("GET", "/resolve/")])
def test_a_run_that_publishes_for_the_subnet_is_repeated(
    stage: tuple[str, str], finished_run: Path, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """model_card.json holds a time. Another one would be another bundle: a second commit, and a tag that is taken."""
    section = json.loads((finished_run / "phase0_data" / "manifest.json").read_text(encoding="utf-8"))["section"]
    phase6 = {"n_resamples": 100, "submitted_by": HOTKEY, "push": True, "repo_id": REPO, "tag": "v1"}
    recipe = str(write_recipe(tmp_path / "tiny.yaml", {**TINY_RECIPE, "data": section["data"], "phase6": phase6}))
    hub.fail("lost" if stage[1] == "/commit/" else 503, *stage, times=1)
    with pytest.raises(HubError):
        run_recipe(recipe, [6], finished_run)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 1000)
    run_recipe(recipe, [6], finished_run)
    assert len(hub.commits(REPO)) == 2 and hub.tags(REPO) == {"v1": hub.commits(REPO)[0]}
    assert abs(json.loads(hub.files(REPO)["model_card.json"])["submission_time"] - real()) < 500
    # Another version is another bundle, with a time of its own.
    run_recipe(recipe, [6], finished_run, overrides=["phase6.version=0.2.0", "phase6.tag=v2"])
    assert json.loads(hub.files(REPO)["model_card.json"])["submission_time"] > real() + 500


@pytest.mark.parametrize("token", [f"{TOKEN}\x01", f"{TOKEN}\u200b", "hf_\xfc"], ids=["bell", "space", "umlaut"])
def test_a_token_that_was_copied_wrongly(
    token: str, bundle: Path, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    """The client's own error would print it."""
    hub.use_in_process(monkeypatch, tmp_path / "other_home", token=token, waits=False)
    for arguments in (("push", bundle, REPO), ("pull", REPO, "--to", tmp_path / "here")):
        code, out, err = command(*arguments)
        assert code == 2 and "the token holds a character that none has" in err and "log in with" in err
        assert token[:4] not in out + err
    assert not hub.requests
