"""What the pages name is there: files, sections of pages, commands, recipes and keys."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from transformers import TrainingArguments

from natix_hf.recipe import Recipe, packaged_recipes
from natix_hf.section import Section, key_types

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "RESULTS.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
PRESENT = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which may name what is gone
# Sections that take any field of TrainingArguments beside their own keys.
TRAINING = ("phase1", "phase3", "phase4", "phase4.supervised")
KEY = re.compile(r"(?:data|model|phase[1-6])(?:\.[a-z_0-9]+)+")


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    broken = []
    targets = re.findall(r"\]\(([^)\s]+)\)", text(page)) + re.findall(r'(?:src|href)="([^"]+)"', text(page))
    for target in targets:
        name, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    return broken


def quoted_keys(page: Path) -> set[str]:
    """Keys of recipes: `section.key` in backticks, and KEY=VALUE anywhere."""
    quoted = re.findall(r"`([^`\n]+)`", text(page))
    found = {match.group() for quote in quoted if (match := KEY.match(quote)) and not _is_file(quote)}
    return found | set(re.findall(rf"({KEY.pattern})=", text(page)))


def _is_file(quote: str) -> bool:
    return bool(re.fullmatch(r"\S+\.(py|json|md|yaml|html|safetensors|onnx|parquet|png)", quote))


def key_exists(key: str) -> bool:
    """Whether a recipe may hold this key, by the dataclasses of its sections."""
    kind: Any = Recipe
    names = key.split(".")
    for depth, name in enumerate(names):
        options = [kind, *get_args(kind)]
        section = next((one for one in options if isinstance(one, type) and issubclass(one, Section)), None)
        if section is None:  # a mapping takes any name, a plain value none
            return kind is dict or any(getattr(option, "__origin__", option) is dict for option in options)
        hints = key_types(section)
        if name not in hints.keys() - {"training"}:
            fields = {f.name for f in dataclasses.fields(TrainingArguments)}
            return ".".join(names[:depth]) in TRAINING and depth == len(names) - 1 and name in fields
        kind = hints[name]
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PRESENT, ids=lambda page: page.name)
def test_every_quoted_key_exists(page: Path) -> None:
    assert sorted(key for key in quoted_keys(page) if not key_exists(key)) == []


def test_every_command_exists() -> None:
    named = {name for page in PRESENT for name in re.findall(r"natix-hf ([a-z]+)\b", text(page))}
    assert {"run", "predict", "verify", "plan"} <= named
    known = subprocess.run(
        [sys.executable, "-m", "natix_hf", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert sorted(name for name in named if not re.search(rf"^\W*{name}\b", known, re.MULTILINE)) == []


def test_every_recipe_is_named_on_its_page() -> None:
    page = text(ROOT / "docs" / "recipes.md")
    assert [path.stem for path in packaged_recipes() if f"`{path.stem}`" not in page] == []


def test_every_page_is_in_the_index() -> None:
    index = text(ROOT / "docs" / "README.md")
    pages = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md"]
    assert [name for name in pages if f"({name})" not in index] == []


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n[a](gone.md) [b](#nowhere) [c](#a-page) ![d](gone.png) `phase1.lr` `phase1.learning_rate: 1`\n"
        "`phase4.mae.mask` `phase4.supervised.adapter` `phase6.onnx.x` `model.config.any` phase2.objektive=f1\n",
        encoding="utf-8",
    )
    assert broken_links(page) == ["gone.md", "#nowhere", "gone.png"]
    wrong = {key for key in quoted_keys(page) if not key_exists(key)}
    assert wrong == {"phase1.lr", "phase4.mae.mask", "phase6.onnx.x", "phase2.objektive"}
