"""The heatmaps of hard examples: on the page beside their pictures, and no run fails for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from document import read_page
from PIL import Image

from natix_hf.errors import UsageError
from natix_hf.pipeline import run_recipe
from natix_hf.results import examples
from natix_hf.results.examples import Answered, Chosen
from natix_hf.runs.verify import find_problems


def _again(run: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], dict[str, Any], Any]:
    """Phase 6 once more, with every answer shown as wrong: the rows, the file, and the page."""
    monkeypatch.setattr(Answered, "wrong", property(lambda self: np.ones(len(self.table.ids), dtype=bool)))
    run_recipe(str(recipe), [6], run, overrides=["phase6.version=9.9.9"])
    folder = run / "phase6_export"
    content = json.loads((folder / "examples" / "examples.json").read_text(encoding="utf-8"))
    assert find_problems(str(run)) == []
    return [row for kind in content["kinds"] for row in kind["rows"]], content, read_page(run / "report.html")


def test_each_hard_example_has_its_heat(
    finished_run: Path, tiny_recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, content, page = _again(finished_run, tiny_recipe_file, monkeypatch)
    assert rows and "no_heat" not in content
    folder = finished_run / "phase6_export" / "examples"
    assert all("heat" in row for kind in content["kinds"] for row in kind["rows"][:4])
    rows = [row for row in rows if "heat" in row]
    for row in rows:
        assert row["heat"] == row["file"].replace(".jpg", "_heat.jpg")
        with Image.open(folder / row["heat"]) as heat:
            assert heat.size == (224, 224)
        assert (folder / row["heat"]).stat().st_size < 20_000
    alt = [image["alt"] for image in page.of("img")]
    for row in rows:
        assert any(row["row"] in text and row["answer"] in text and "Heatmap" in text for text in alt)
    assert (finished_run / "report.html").stat().st_size < 2_000_000


@pytest.mark.parametrize("after", [0, 2])
def test_a_run_that_cannot_be_explained_has_a_page_that_says_so(
    after: int, finished_run: Path, tiny_recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = examples.explained_by

    def broken(model: Path, threshold: float, until: float) -> Any:
        draw, left = real(model, threshold, until), iter(range(after))
        if not after:
            raise UsageError("this model <b>cannot</b> be explained")

        def drawn(picture: Image.Image, yes: bool) -> Image.Image:
            if next(left, None) is None:
                raise RuntimeError("out of memory\nand a trace of it")
            return draw(picture, yes)

        return drawn

    monkeypatch.setattr(examples, "explained_by", broken)
    rows, content, page = _again(finished_run, tiny_recipe_file, monkeypatch)
    assert len({row["heat"] for row in rows if "heat" in row}) == after
    told = "out of memory" if after else "this model <b>cannot</b> be explained"
    assert content["no_heat"] == told and told in page.text
    assert all(row["file"] is not None for row in rows)


def test_a_run_whose_heatmaps_take_too_long_says_so(
    finished_run: Path, tiny_recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "_HEATS_S", 0)
    rows, content, page = _again(finished_run, tiny_recipe_file, monkeypatch)
    assert rows and not any("heat" in row for row in rows)
    assert "0 s" in content["no_heat"] and content["no_heat"] in page.text


def test_a_cut_leaves_every_kind_some() -> None:
    kinds = [Chosen("missed", 9, list(range(8))), Chosen("false_alarm", 1, [20]), Chosen("slice", 9, [3, 2, 9, 8, 7])]
    files = {i: f"{i}.jpg" if i != 1 else None for i in (*range(10), 20)}
    assert list(examples._to_explain(kinds, files)) == [0, 20, 3, 2, 9, 8]
