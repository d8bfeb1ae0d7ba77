"""What was read, on page and card: the figures of splits.json, in short, and nothing from this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from document import Document
from facts import tells
from huggingface_hub import ModelCard

from natix_hf.labels import LabelNames
from natix_hf.phases import phase6_export
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.files import write_json
from natix_hf.report.card import CardFacts, render_card
from natix_hf.report.page import render_report
from natix_hf.report.reading import in_code, in_markdown
from natix_hf.runs.lineage import public_text

EVIL = "<script>x</script> [a](http://b.com) |`*_@c"


def splits_of(run: Path) -> Path:
    return run / "phase0_data" / "splits.json"


def change(run: Path, edit: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Edit the block about what was read, and return it."""
    content = json.loads(splits_of(run).read_text(encoding="utf-8"))
    edit(content["read"])
    write_json(splits_of(run), content)
    return dict(content["read"])


def table_of(run: Path) -> dict[str, str]:
    """The rows of the page's section."""
    section = render_report(run).partition("What was read</h2>")[2].partition("</section>")[0]
    return {row[0]: " ".join(row[1].split()) for row in Document(section).rows}


def planted(read: dict[str, Any], home: Path) -> None:
    files = [{"file": f"a/{EVIL}{i}", "reason": f"unreadable image: row {i}"} for i in range(40)]
    files += [{"file": f"b{i}", "reason": "a hidden file"} for i in range(3)]
    files += [{"file": "IMG.HEIC", "reason": ".heic cannot be read here: pip install pillow-heif"}]
    files += [{"file": f"c{i}", "reason": f"reason {i}"} for i in range(9)]
    read["files"] = {"found": 1053, "used": 1000, "left_out": files}
    read["labels"] = {"0": {EVIL: 700}, "1": {"cracked": 300}, "left_out": {"unsure": 12}}
    read["near_duplicates_across_splits"] = 1234
    read["sources"] = {"own": 900, "cmu": 100}
    read["warnings"] = [f"{home / 'frames' / 'x.jpg'} looks like '{home}/My disk/y.jpg'", f"as {EVIL}"]


def test_the_page_says_it_in_short(whole_run: Path, tmp_path: Path) -> None:
    change(whole_run, lambda read: planted(read, tmp_path))
    page, rows = render_report(whole_run), table_of(whole_run)
    assert tells(rows["files"], "1,053", "1,000", "53 left out", "40 x unreadable image", "3 x a hidden file",
                 "1 x .heic cannot be read here: pip install pillow-heif", "others")  # fmt: skip
    assert "row 7" not in page and "IMG.HEIC" not in page and "b1" not in rows["files"]
    assert tells(rows["label 0"], EVIL, "700") and tells(rows["label 1"], "cracked", "300")
    assert tells(rows["classes left out"], "unsure", "12") and tells(rows["look-alikes"], "1,234")
    assert tells(rows["rows by source"], "own (900)", "cmu (100)")
    document = Document(page)
    assert document.of("script") == [] and tells(document.text, f"as {EVIL}", "x.jpg looks like 'y.jpg'")
    assert str(tmp_path) not in page


def test_the_figures_are_those_of_the_file(whole_run: Path) -> None:
    read, rows = change(whole_run, dict), table_of(whole_run)
    for label in ("0", "1"):
        [(name, count)] = read["labels"][label].items()
        assert rows[f"label {label}"] == f"{name} ({count})"
    assert tells(rows["groups"], read["groups"]["count"], "column")
    own = [role for role, counts in read["splits"].items() if counts["from"] == "the source"]
    assert own == ["test"] and tells(rows["splits"], "test: the source", "train, val_select, val_calib: ")


def test_an_older_run_has_no_such_section(whole_run: Path) -> None:
    content = json.loads(splits_of(whole_run).read_text(encoding="utf-8"))
    del content["read"]
    write_json(splits_of(whole_run), content)
    page = render_report(whole_run)
    assert "read" not in Document(page).headings and "#read" not in page and "numbers" in Document(page).headings


@pytest.mark.parametrize("edit", [lambda r: r.pop("labels"), lambda r: r.update(files=3), lambda r: r.pop("warnings")])
def test_a_damaged_block_is_named(edit: Callable[[dict[str, Any]], object], whole_run: Path) -> None:
    change(whole_run, edit)
    document = Document(render_report(whole_run))
    assert "read" not in document.headings and "phase0_data/splits.json" in document.text


def test_the_card_says_it_too(tiny_recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts_of = phase6_export.card_facts

    def with_planted_reading(recipe: Any, folder: Path, *rest: Any) -> Any:
        splits = folder.parent / "phase0_data" / "splits.json"
        recorded = splits.read_bytes()
        change(folder.parent, lambda read: planted(read, tmp_path))
        facts = facts_of(recipe, folder, *rest)
        splits.write_bytes(recorded)  # the phase would notice
        return facts

    monkeypatch.setattr(phase6_export, "card_facts", with_planted_reading)
    run = run_recipe(str(tiny_recipe_file), run_dir=tmp_path / "run")
    card = ModelCard.load(run / "phase6_export" / "bundle" / "README.md")
    data = card.text.partition("## Data")[2].partition("## Limits")[0]
    lines = dict(re.findall(r"^- \*\*(.*?)\*\*: (.*)$", data, re.MULTILINE))
    assert tells(lines["files"], "1,053", "40 x unreadable image") and tells(lines["label 1"], "cracked (300)")
    assert lines["label 0"] == f"{in_markdown(EVIL)} (700)"
    assert data.count("- **warning**: ") == 2 and f"as {in_markdown(EVIL)}" in data
    assert str(tmp_path) not in card.content
    assert "\n\nLicence of the data: " in data and "|\n\nWhat was read" in data


def test_markdown_shows_a_name_as_it_is() -> None:
    from markdown_it import MarkdownIt

    for name in (EVIL, "a\n# b\n\n- c", "www.evil.com", "![x](y)", "&amp; <b>", "~~a~~ $x$", "\\*", "\x1b[31m"):
        html = MarkdownIt("gfm-like", {"linkify": False}).render(f"- **x**: {in_markdown(name)}")
        shown = html.partition("</strong>: ")[2].partition("</li>")[0]
        assert not re.search(r"<[a-z]", shown), shown
        assert "\n" not in in_markdown(name)


@pytest.mark.parametrize(
    ("text", "source", "public"),
    [
        ("/home/me/My photos: no labels", "/home/me/My photos", "My photos: no labels"),
        ("such as '/mnt/a b/0.jpg', which is no/0.jpg", "x", "such as '0.jpg', which is no/0.jpg"),
        (r"C:\Users\me\x.jpg and ~/y.jpg, and/or 16/9", None, "x.jpg and y.jpg, and/or 16/9"),
        ("own:/data/a.jpg and https://a.org/b", ["z", {"source": "/d"}], "own:/data/a.jpg and https://a.org/b"),
        ("org/name: a split", "org/name", "org/name: a split"),
    ],
)
def test_of_a_path_the_last_part_remains(text: str, source: Any, public: str) -> None:
    assert public_text(text, source) == public


def test_names_from_the_data_are_text_on_the_card(
    tiny_recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Class names come from folders, slices from columns. The Hub renders what a card says."""
    from markdown_it import MarkdownIt

    kept: list[CardFacts] = []
    monkeypatch.setattr(phase6_export, "render_card", lambda facts: kept.append(facts) or render_card(facts))
    run_recipe(str(tiny_recipe_file), run_dir=tmp_path / "run")
    names = LabelNames(no="a `b` <img src=x>", yes="``[yes](https://evil.org)`` ![x](y)")
    evil = "<img src=y> [a](https://evil.org) *b*"
    evaluation = replace(kept[0].evaluation, slices={evil: {}}, slices_left_out={evil: {evil: 3}})
    policy = replace(kept[0].policy, labels=names)
    text = ModelCard(render_card(replace(kept[0], policy=policy, evaluation=evaluation))).text
    html = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert "evil.org" not in "".join(re.findall(r"<a [^>]*>", html)) and "<em>" not in html
    assert set(re.findall(r'<img src="?([^" >]*)', html)) == set(re.findall(r"!\[[A-Z][^]]*\]\((plots/[^)]*)\)", text))
    shown = unescape(re.sub(r"<[^>]*>", "", html))
    assert f"{names.yes} (yes) or {names.no} (no)" in shown and f"{evil} (3)" in shown
    assert f'labelled "{names.yes}"' in shown


@pytest.mark.parametrize("name", ["plain", "a`b", "`", "``a`", "a``"])
def test_a_name_is_code_whatever_backticks_it_holds(name: str) -> None:
    from markdown_it import MarkdownIt

    assert MarkdownIt().render(f"x{in_code(name)}y") == f"<p>x<code>{name}</code>y</p>\n"
