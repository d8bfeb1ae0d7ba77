"""A Space and an endpoint: one commit that pins the bundle, nothing else touched, the answers of `predict`."""

from __future__ import annotations

import base64
import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import REPO, Command, png_bytes, refused, striped_image
from facts import tells
from local_hub import LocalHub
from PIL import Image

from natix_hf.bundle.load import load_bundle
from natix_hf.bundle.push import Published, push_bundle
from natix_hf.bundle.space import PINNED, Kind, check_space, files_of, push_space, read_pinned
from natix_hf.errors import HubError, UsageError, VerificationError
from natix_hf.serve.endpoint import EndpointHandler
from natix_hf.serve.space import answer_html, respond

KINDS: dict[Kind, str] = {"space": "space", "endpoint": "model"}
PICTURES = [png_bytes(striped_image(number % 2, np.random.default_rng(number))) for number in range(4)]


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_one_commit_that_pins_the_bundle(kind: Kind, bundle: Path, hub: LocalHub, tmp_path: Path) -> None:
    done, name = push_bundle(bundle, REPO), "lab/page"
    check_space(kind, name, REPO)
    commit = push_space(kind, done, name, private=True)
    assert push_space(kind, done, name) == commit  # a repetition makes no second commit
    assert hub.commits(name, KINDS[kind])[0] == commit and len(hub.commits(name, KINDS[kind])) == 2
    there = {n: data for n, data in hub.files(name, kind=KINDS[kind]).items() if n != ".gitattributes"}
    assert there == files_of(kind, done, name) and hub.repo(name, KINDS[kind]).private
    pinned = read_pinned(put(tmp_path / "clone", there) / PINNED)
    assert (pinned.repo_id, pinned.revision, pinned.expected) == (REPO, done.commit, done.manifest_sha256)
    text = b"".join(data for n, data in there.items() if not n.endswith(".py")).decode()
    assert not re.search(r"\b(REPO|COMMIT|VERSION|NAME)\b", text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["NAME-VERSION", "COMMIT", "1.5", "null"])
def test_any_name_of_a_repository_stays_as_it_is(kind: Kind, name: str) -> None:
    """A repository may be called like a word of the template, or like a number of YAML."""
    files = files_of(kind, Published(f"REPO/{name}", "0" * 40, "1" * 64, None), f"REPO/{name}")
    head = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert [head.get("base_model"), *head.get("models", [])][-1] == f"REPO/{name}"
    assert head.get("title", name) == name


@pytest.mark.parametrize("kind", KINDS)
def test_a_repository_of_something_else_is_left_alone(kind: Kind, bundle: Path, hub: LocalHub) -> None:
    done = push_bundle(bundle, REPO)
    for number, files in enumerate(
        ({"main.py": b"theirs"}, {"app.py": b"1", "README.md": b""}, {PINNED: b"{}", "x": b""})
    ):
        name = f"lab/theirs{number}"
        head = hub.create(name, files, KINDS[kind])
        for call in (lambda: check_space(kind, name, REPO), lambda: push_space(kind, done, name)):  # noqa: B023
            refused(UsageError, call, name)
        assert hub.commits(name, KINDS[kind])[0] == head
    with pytest.raises(UsageError):
        check_space("endpoint", REPO, REPO)  # no code beside the weights


def test_the_command_refuses_before_anything_is_published(
    bundle: Path, hub: LocalHub, command: Command, tmp_path: Path
) -> None:
    hub.create("lab/taken", {"main.py": b"theirs"}, "space")
    code, _, err = command("push", bundle, REPO, "--space-name", "lab/taken")
    assert code == 2 and tells(err.strip(), "lab/taken", "main.py") and ("model", REPO) not in hub.state.repos
    code, out, err = command("push", bundle, REPO, "--space", "--endpoint", "lab/endpoint")
    assert code == 0, err
    assert "space     lab/roadwork at " in out and "endpoint  lab/endpoint at " in out
    assert set(hub.files(REPO, kind="space")) == {".gitattributes", "README.md", "app.py", "requirements.txt", PINNED}
    assert load_bundle(REPO).folder.is_dir()  # the bundle's own repository stays free of code


def test_somebody_else_commits_meanwhile(bundle: Path, hub: LocalHub) -> None:
    done = push_bundle(bundle, REPO)
    push_space("space", done, "lab/page")
    hub.commit("lab/page", {PINNED: b"{}"}, "space")
    hub.fail(412, "POST", "/commit/")
    refused(HubError, lambda: push_space("space", done, "lab/page"), "lab/page")
    hub.heal()
    push_space("space", done, "lab/page")


def test_the_handler_answers_as_predict(bundle: Path, hub: LocalHub, tmp_path: Path) -> None:
    """By the calling convention of the toolkit: the file is run, its class made with the folder and called with data.
    Then without the Hub, from the cache."""
    done = push_bundle(bundle, REPO)
    folder = put(tmp_path / "repository", files_of("endpoint", done, "lab/endpoint"))
    exact = [answer.probability for answer in load_bundle(bundle).predict(PICTURES)]
    for _ in range(2):
        handler = runpy.run_path(str(folder / "handler.py"))["EndpointHandler"](str(folder))
        if not hub._stopped.is_set():
            hub.stop()
        text = base64.b64encode(PICTURES[1]).decode()
        mixed = (
            [
                PICTURES[0],
                text,
                "no base64 ",
                b"no picture",
                Image.open(tmp_path / "x.png"),
                f"data:image/png;base64,{text}",
            ]
            if (tmp_path / "x.png").write_bytes(PICTURES[2])
            else []
        )
        told = handler({"inputs": mixed})["answers"]
        assert [answer.get("probability") for answer in told] == [exact[0], exact[1], None, None, exact[2], exact[1]]
        assert [answer["image"] for answer in told] == [f"image {number}" for number in range(6)]
        assert tells(told[2]["error"], "image 2") and tells(told[3]["error"], "image 3")
        assert handler({"inputs": PICTURES[3]})["answers"][0]["probability"] == exact[3]
        json.dumps(told)
    for wrong in ({}, {"inputs": []}, {"inputs": 7}, {"inputs": [None]}, [], {"inputs": {"a": 1}}):
        with pytest.raises(UsageError):
            handler(wrong)
    assert EndpointHandler(bundle)({"inputs": text})["answers"][0]["probability"] == exact[1]


@pytest.mark.parametrize(
    "change", [{"schema": 2}, {"expected": "x"}, {"revision": "../x"}, {"repo_id": "/etc"}, {"more": 1}]
)
def test_a_damaged_pin_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    sound = {"schema": 1, "repo_id": REPO, "revision": "a" * 40, "expected": "b" * 64}
    path = tmp_path / PINNED
    path.write_text(json.dumps(sound), encoding="utf-8")
    assert read_pinned(path).revision == "a" * 40
    path.write_text(json.dumps(sound | change), encoding="utf-8")
    refused(VerificationError, lambda: read_pinned(path), PINNED)


def test_the_page_shows_what_the_bundle_says(bundle: Path, tmp_path: Path) -> None:
    loaded = load_bundle(bundle)
    path = tmp_path / "a <b>.png"
    path.write_bytes(PICTURES[0])
    [answer] = loaded.predict(PICTURES[0])
    html, _, line = respond(loaded, str(path))
    assert html == answer_html(answer, loaded.policy)
    for fact in (answer.decision, f"{answer.probability:.3f}", f"{answer.threshold:.3f}", "Promise"):
        assert fact in html
    assert line  # the heatmap's, or why there is none
    path.write_bytes(b"no <picture>")
    html, heat, _ = respond(loaded, str(path))
    assert "Not answered" in html and heat is None and str(tmp_path) not in html and "<picture>" not in html
    assert "Choose" in respond(loaded, None)[0]
