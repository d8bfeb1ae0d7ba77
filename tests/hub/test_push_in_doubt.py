"""Pushes that end in doubt, are repeated, or go on to another repository."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, TOKEN, Command, refused
from local_hub import LocalHub

import natix_hf
from natix_hf.bundle import push
from natix_hf.bundle.fetch import pull_bundle
from natix_hf.bundle.push import push_bundle
from natix_hf.errors import HubError
from natix_hf.pipeline import run_recipe

NEXT = "lab/roadwork-next"
HOTKEY = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"


@pytest.mark.parametrize("kind", ["lost", 504])
def test_a_commit_without_an_answer_may_have_happened(kind: int | str, bundle: Path, hub: LocalHub) -> None:
    """Nobody says that nothing was published where something may have been. (test_faults has the other faults.)"""
    hub.fail(kind, "POST", "/commit/", times=1)
    with refused(HubError, REPO, "again") as caught:
        push_bundle(bundle, REPO)
    assert push._OUTCOME not in str(caught.value)
    done = push_bundle(bundle, REPO)
    assert len(hub.commits(REPO)) == 2 and hub.commits(REPO)[0] == done.commit


@pytest.mark.parametrize("kind", ["lost", 503])
def test_a_tag_without_an_answer(kind: int | str, bundle: Path, hub: LocalHub) -> None:
    """The tag may be there, or not: that is another line than that of a tag that was refused."""
    lines = []
    for repo_id, fault in ((REPO, kind), (NEXT, 409)):
        hub.fail(fault, "POST", f"{repo_id}/tag/", times=1)
        with pytest.raises(HubError) as caught:
            push_bundle(bundle, repo_id, tag="v1")
        lines.append(str(caught.value))
        commit = hub.commits(repo_id)[0]
        assert f"tag v1 on {repo_id}" in lines[-1] and commit in lines[-1]
    told, plainly = (line[line.index(hub.commits(r)[0]) + 40 :] for line, r in zip(lines, (REPO, NEXT), strict=True))
    assert told.split(":")[0].split("(")[0].strip() != plainly.split(":")[0].split("(")[0].split(";")[0].strip()
    done = push_bundle(bundle, REPO, tag="v1")
    assert hub.tags(REPO) == {"v1": done.commit} and len(hub.commits(REPO)) == 2


def test_a_full_disk_while_it_is_read_back(bundle: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit is there, and whoever pushed is told so."""

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/scratch")

    with monkeypatch.context() as patch:
        patch.setattr(push, "fetch_bundle", full)
        with refused(HubError, REPO, "No space left") as caught:
            push_bundle(bundle, REPO)
    assert hub.commits(REPO)[0] in str(caught.value)
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


@pytest.mark.parametrize("stage", [("POST", "/commit/"), ("GET", "/resolve/")])
def test_a_run_that_publishes_for_the_subnet_is_repeated(
    stage: tuple[str, str], finished_run: Path, hub: LocalHub, tiny_recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """model_card.json holds a time. Another one would be another bundle: a second commit, and a tag that is taken."""
    settings = [f"phase6.submitted_by={HOTKEY}", "phase6.push=true", f"phase6.repo_id={REPO}", "phase6.tag=v1"]
    hub.fail("lost" if stage[1] == "/commit/" else 503, *stage, times=1)
    with pytest.raises(HubError):
        run_recipe(str(tiny_recipe_file), [6], finished_run, overrides=settings)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 1000)
    run_recipe(str(tiny_recipe_file), [6], finished_run, overrides=settings)
    assert len(hub.commits(REPO)) == 2 and hub.tags(REPO) == {"v1": hub.commits(REPO)[0]}
    assert abs(json.loads(hub.files(REPO)["model_card.json"])["submission_time"] - real()) < 500
    # Another version is another bundle, with a time of its own.
    settings += ["phase6.version=0.2.0", "phase6.tag=v2"]
    run_recipe(str(tiny_recipe_file), [6], finished_run, overrides=settings)
    assert json.loads(hub.files(REPO)["model_card.json"])["submission_time"] > real() + 500


@pytest.mark.parametrize("token", [f"{TOKEN}\x01", f"{TOKEN}\u200b", "hf_\xfc"], ids=["bell", "space", "umlaut"])
def test_a_token_that_was_copied_wrongly(
    token: str, bundle: Path, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    """The client's own error would print it."""
    hub.use_in_process(monkeypatch, tmp_path / "other_home", token=token, waits=False)
    for arguments in (("push", bundle, REPO), ("pull", REPO, "--to", tmp_path / "here")):
        code, out, err = command(*arguments)
        assert code == 2 and "hf auth login" in err and REPO in err
        assert token[:4] not in out + err
    assert not hub.requests
