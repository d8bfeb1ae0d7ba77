"""Which rows are shown, and what their pictures give away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from document import read_page
from PIL import Image

from natix_hf.bundle.policy import Policy
from natix_hf.calibration import Promise
from natix_hf.data.asked import Asked
from natix_hf.errors import DataError
from natix_hf.pipeline import run_recipe
from natix_hf.results import examples
from natix_hf.results.evaluation import SliceFigures
from natix_hf.results.examples import Answered, Chosen, choose_examples, thumbnail, worst_slice, write_examples
from natix_hf.results.logits import LogitTable, read_logits


def _answered(
    logits: list[float], labels: list[int], groups: list[str], thresholds: dict[str, float] | None = None,
    weather: list[str] | None = None, cells: list[Any] | None = None,
) -> Answered:  # fmt: skip
    z, ids = np.asarray(logits), [f"test/{i}" for i in range(len(logits))]
    policy = Policy(1.0, "c", "m", promise=Promise(feasible=thresholds is not None, accept_above=thresholds))
    empty: list[Any] = [{"bytes": None, "path": None}] * len(z)
    asked = Asked(ids, np.asarray(groups), np.asarray(labels), cells=cells or empty)
    confidence = np.abs(z - 1.0)
    columns = {"weather": weather or ["dry"] * len(z)}
    return Answered(LogitTable(asked, z, "c"), policy, confidence, policy.accepts(z, confidence), columns)


def test_the_most_confident_mistakes_one_of_each_group() -> None:
    """By hand; the threshold is 1."""
    logits = [3.0, 5.0, 4.0, 0.0, -4.0, -2.0, 1.5, 6.0]
    labels = [0, 0, 0, 1, 1, 1, 0, 1]
    groups = ["a", "a", "b", "c", "d", "d", "e", "f"]
    missed, false_alarm = choose_examples(_answered(logits, labels, groups), {})
    assert missed == Chosen("missed", 3, [4, 3])
    assert false_alarm == Chosen("false_alarm", 4, [1, 2, 6])


def test_at_most_eight() -> None:
    n = 30
    missed, _ = choose_examples(_answered(list(-np.arange(n) / 10), [1] * n, [str(i) for i in range(n)]), {})
    assert missed.total == n and missed.at == list(range(n - 1, n - 9, -1))


def test_abstentions_by_what_each_answer_lacks() -> None:
    """Roadwork is accepted beyond a margin of 2, None beyond one of 1."""
    logits, labels = [2.0, 2.95, 0.5, 0.1, -3.0, 4.0], [1, 1, 0, 1, 0, 1]
    answered = _answered(logits, labels, list("abcdef"), {"Roadwork": 2.0, "None": 1.0})
    abstained = choose_examples(answered, {})[2]
    assert abstained == Chosen("abstained", 4, [1, 3, 2, 0])  # lacking .05, .1, .5 and 1


def test_without_a_promise_nothing_abstains() -> None:
    assert [kind.kind for kind in choose_examples(_answered([2.0], [0], ["a"]), {})] == ["missed", "false_alarm"]


def _figures(mcc: float | None) -> SliceFigures:
    return SliceFigures(20, 10, mcc, None, None, 1.0)


def test_the_weakest_slice() -> None:
    weather = ["dry", "wet", "wet", "wet", "dry"]
    answered = _answered([-1.0, -3.0, 4.0, -2.0, 5.0], [1, 1, 0, 0, 1], list("abcde"), weather=weather)
    slices = {
        "weather": {"dry": _figures(0.9), "wet": _figures(0.2)},
        "alone": {"x": _figures(-1.0)},  # one value is no slice
        "unknown": {"y": _figures(None), "z": _figures(0.1)},
    }
    assert worst_slice(slices) == ("weather", "wet")
    found = choose_examples(answered, slices)[-1]
    assert found == Chosen("slice", 2, [1, 2], "weather", "wet", 0.2)
    assert worst_slice({}) is None and worst_slice({"weather": {}}) is None


def test_the_rows_of_a_run_against_its_own_logits(_whole_run: Path) -> None:
    """From the stored files alone: labels, answers, probabilities, decisions, totals, and the order."""
    folder = _whole_run / "phase6_export"
    policy = json.loads((folder / "bundle" / "policy.json").read_text(encoding="utf-8"))
    table = read_logits(folder / "logits" / "test.parquet", policy["candidate_sha256"])
    kinds = json.loads((folder / "examples" / "examples.json").read_text(encoding="utf-8"))["kinds"]
    positive, margin = table.logits > policy["threshold_logit"], np.abs(table.logits - policy["threshold_logit"])
    wrong = {"missed": ~positive & (table.labels == 1), "false_alarm": positive & (table.labels == 0)}
    assert wrong["missed"].any() or wrong["false_alarm"].any()
    at = {row_id: i for i, row_id in enumerate(table.ids)}
    for kind in kinds:
        chosen = [at[row["row"]] for row in kind["rows"]]
        assert len(set(table.groups[chosen])) == len(chosen)
        if kind["kind"] in wrong:
            assert kind["total"] == wrong[kind["kind"]].sum() and wrong[kind["kind"]][chosen].all()
            of_kind = wrong[kind["kind"]]
            best = {group: margin[of_kind & (table.groups == group)].max() for group in table.groups[of_kind]}
            assert policy["gate"]["kind"] == "margin"
            assert margin[chosen].tolist() == sorted(best.values(), reverse=True)[:8]
        for i, row in zip(chosen, kind["rows"], strict=True):
            calibrated = policy["calibration"]["slope"] * table.logits[i] + policy["calibration"]["intercept"]
            assert row["probability"] == pytest.approx(1 / (1 + np.exp(-calibrated)), abs=1e-9)
            assert row["answer"] == ("Roadwork" if positive[i] else "None")
            assert row["label"] == ("Roadwork" if table.labels[i] else "None")
            assert row["decision"] in (row["answer"], "abstain") and set(row["slices"]) == {"scene_level_tags.weather"}
            assert (folder / "examples" / row["file"]).is_file()


# --- pictures ---


def _jpeg_with_facts(path: Path, size: tuple[int, int]) -> Path:
    image = Image.fromarray(np.full((size[1], size[0], 3), 200, dtype=np.uint8))
    exif = Image.Exif()
    exif[0x010E] = "taken at my house"
    exif[0x0112] = 6  # upright only after a quarter turn
    image.save(path, exif=exif, comment=b"my house", icc_profile=b"profile of my camera")
    return path


def test_a_thumbnail_is_small_and_gives_nothing_away(tmp_path: Path) -> None:
    path = _jpeg_with_facts(tmp_path / "a.jpg", (900, 1600))
    cell = {"bytes": path.read_bytes(), "path": None}
    write_examples(tmp_path, _answered([3.0], [0], ["a"], cells=[cell]), {})
    kept = tmp_path / "examples" / "00.jpg"
    assert kept.stat().st_size < 20_000
    for secret in (b"house", b"camera", b"Exif"):
        assert secret in path.read_bytes() and secret not in kept.read_bytes()
    with Image.open(kept) as image:
        assert image.size == (341, 192)  # turned upright, short side 192
        pixels = np.asarray(image.convert("L")).astype(float)
    left = (341 - 192) // 2
    assert np.abs(pixels[:, left + 8 : left + 184] - 200).max() < 6, "what the model sees is as it was"
    assert np.abs(pixels[:, : left - 8] - 70).max() < 6 and np.abs(pixels[:, left + 200 :] - 70).max() < 6


@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (1, 5000), (300, 40)])
def test_odd_shapes(size: tuple[int, int]) -> None:
    small = thumbnail(Image.new("RGB", size, (200, 100, 0)))
    assert max(small.size) <= 4 * 192 and min(small.size) >= 1


def test_a_picture_that_gives_no_thumbnail_kills_nothing(
    finished_run: Path, tiny_recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row is wrong here, and not one picture can be shown."""

    def broken(*_: Any) -> Image.Image:
        raise DataError("the disk is gone")

    monkeypatch.setattr(examples, "thumbnail", broken)
    monkeypatch.setattr(Answered, "wrong", property(lambda self: np.ones(len(self.table.ids), dtype=bool)))
    run_recipe(str(tiny_recipe_file), [6], finished_run, overrides=["phase6.version=9.9.9"])
    folder = finished_run / "phase6_export" / "examples"
    kinds = json.loads((folder / "examples.json").read_text(encoding="utf-8"))["kinds"]
    rows = [row for kind in kinds for row in kind["rows"]]
    assert rows and all(row["file"] is None for row in rows) and not list(folder.glob("*.jpg"))
    page = read_page(finished_run / "report.html")
    assert all(row["row"] in page.text for row in rows) and page.of("img")
