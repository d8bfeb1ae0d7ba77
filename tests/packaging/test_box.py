"""What a rented machine is given: the Dockerfile and the script for `uv run`."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from conftest import TOKEN, Command
from facts import tells
from local_hub import LocalHub
from lowest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, each on one line."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def of(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def reaches_docker(name: str) -> bool:
    """Whether `.dockerignore` lets a file into the build. The last pattern that fits it, or a folder of it, counts."""
    kept = True
    parts = name.split("/")
    prefixes = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n"):
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            tried = parts if "**/" in line else prefixes
            if any(fnmatch(each, pattern) and (pattern != "*" or each == parts[0]) for each in tried):
                kept = line.startswith("!")
    return kept


def copied() -> list[str]:
    return [source for line in of("COPY") for source in line.split()[:-1]]


def test_the_base_and_the_user_of_the_image() -> None:
    names = [name for name, _ in instructions()]
    assert names[:2] == ["ARG", "FROM"] and of("FROM") == ["${BASE}"]
    assert re.fullmatch(r"BASE=python:3\.\d+-slim", of("ARG")[0])
    assert Requirement(f"x{PROJECT['requires-python']}").specifier.contains(of("ARG")[0].split(":")[1].split("-")[0])
    assert names.index("USER") > max(number for number, name in enumerate(names) if name == "RUN")
    assert of("ENTRYPOINT") == ['["natix-hf"]'] and of("VOLUME") == ['["/cache"]']
    assert not re.search(r"HF_TOKEN|hf_", " ".join(of("ENV") + of("ARG") + of("RUN"))), "no token goes into an image"


def test_what_is_copied_is_there_and_makes_the_wheel(tmp_path: Path) -> None:
    for source in copied():
        assert (ROOT / source).exists() and reaches_docker(source), source
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (tmp_path / source).parent.mkdir(exist_ok=True)
            shutil.copyfile(ROOT / source, tmp_path / source)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=tmp_path, check=True, capture_output=True
    )
    assert list((tmp_path / "dist").glob("*.whl"))
    for name in (".git/config", "outputs/run/run.log", ".env", "docs/data.md", "natix_hf/data/__pycache__/a.pyc"):
        assert not reaches_docker(name), name


@pytest.mark.skipif(shutil.which("sh") is None, reason="an image is built by sh")
@pytest.mark.parametrize("torch", ["2.8.0+cu128", None])
def test_the_torch_of_the_base_stays(torch: str | None, tmp_path: Path) -> None:
    """With a Python that answers as the base's would, and writes down what pip is asked for."""
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    python = tmp_path / "python3"
    answer = f"echo torch=={torch}" if torch else "exit 1"
    python.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then {answer}; else echo "$@" >> asked; fi\n', encoding="utf-8")
    python.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TORCH_INDEX": "https://cpu"}
    subprocess.run(["sh", "-euc", of("RUN")[0]], cwd=tmp_path, env=environment, check=True, capture_output=True)
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    kept = (tmp_path / "keep.txt").read_text(encoding="utf-8").splitlines()
    pinned = next(pin for pin in pins if pin.startswith("torch=="))
    assert kept == [f"torch=={torch}" if torch else pinned, *(pin for pin in pins if pin != pinned)]
    asked = (tmp_path / "asked").read_text(encoding="utf-8").split() if (tmp_path / "asked").exists() else []
    index = ["--extra-index-url", "https://cpu", "torch"]
    assert asked == ([] if torch else [*"-m pip install --constraint constraints.txt".split(), *index])
    assert "--constraint keep.txt" in of("RUN")[1]
    extras = re.search(r'"\.\[(.*)\]"', of("RUN")[1])
    assert extras and set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])


RENT = ROOT / "recipes" / "rent.py"


def test_the_metadata_of_the_script() -> None:
    """As PEP 723 has it, with the bounds of this package."""
    [block] = re.findall(r"(?m)^# /// script$\n((?:#(?: .*)?\n)+?)^# ///$", RENT.read_text(encoding="utf-8"))
    metadata = tomllib.loads("".join(line.removeprefix("#").removeprefix(" ") for line in block.splitlines(True)))
    assert metadata["requires-python"] == PROJECT["requires-python"]
    needed = {Requirement(line).name: Requirement(line) for line in metadata["dependencies"]}
    own = {Requirement(line).name: Requirement(line) for line in PROJECT["dependencies"]}
    assert set(needed) == {PROJECT["name"], "torch"}
    assert needed["natix_hf"].extras <= set(PROJECT["optional-dependencies"])
    assert needed["natix_hf"].url, "with a token at hand, no name that anybody could take on an index"
    assert [str(part) for part in own["torch"].specifier] == [
        str(part) for part in needed["torch"].specifier if part.operator == ">="
    ] and SpecifierSet(str(needed["torch"].specifier)).contains("2.10.0"), "a version of CUDA 12 is left"


def test_the_script_pushes_what_it_has_made(capsys: pytest.CaptureFixture[str]) -> None:
    command_of = runpy.run_path(str(RENT))["command_of"]
    assert command_of(["quickstart", "--repo", "lab/x", "phase1.learning_rate=1e-4"]) == [
        "run", "quickstart", "phase6.push=true", "phase6.repo_id=lab/x", "phase6.private=true",
        "phase1.learning_rate=1e-4",
    ]  # fmt: skip
    assert "phase6.private=false" in command_of(["--public", "--repo", "lab/x", "quickstart"])
    with pytest.raises(SystemExit):
        command_of(["quickstart"])
    assert "--repo" in capsys.readouterr().err


def test_without_a_token_nothing_is_trained(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = command(*runpy.run_path(str(RENT))["command_of"](["quickstart", "--repo", "lab/x"]))
    assert code == 2 and tells(err.strip(), "lab/x", "HF_TOKEN") and not (tmp_path / "outputs").exists()


def test_a_tiny_run_ends_on_the_hub(
    command: Command, hub: LocalHub, tiny_recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(tiny_recipe_file), "phase1.num_train_epochs=1", "--repo", "lab/tiny"]
    code, out, err = command(*runpy.run_path(str(RENT))["command_of"](given))
    assert code == 0 and TOKEN not in out + err
    assert {"model.safetensors", "policy.json"} <= set(hub.files("lab/tiny")) and hub.repo("lab/tiny").private
