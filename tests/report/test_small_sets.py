"""A very small source: no interval without width is printed anywhere, and nothing is called independent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY_RECIPE, write_parquet_source, write_recipe
from facts import tells

from natix_hf.bundle.policy import Policy
from natix_hf.cli.summary import summarise
from natix_hf.data.asked import Asked
from natix_hf.metrics import metric_intervals
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.stored import from_json, to_json
from natix_hf.results.decision import choose_champion
from natix_hf.results.evaluation import Evaluation, evaluate
from natix_hf.results.figures import Figure, Gain, GroupCounts, paired_bounds
from natix_hf.results.logits import LogitTable

NO_WIDTH = re.compile(r"\[([+-]?\d+\.\d+), \1\]")
# Where the word may stand: rows that nobody has grouped are not called independent.
ALLOWED = (
    "not known to be independent",
    "as if they were independent",
    "if rows are independent, which nobody has said",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 14 pictures without groups: one of each class in val_select, val_calib and test."""
    folder = tmp_path_factory.mktemp("small")
    source = write_parquet_source(folder / "source", groups=14, frames=1)
    data = {key: value for key, value in TINY_RECIPE["data"].items() if key != "group_by"} | {"source": str(source)}
    risk = {"n_resamples": 100, "risk": {"alpha": 0.4, "delta": 0.5}}
    recipe = write_recipe(folder / "tiny.yaml", TINY_RECIPE | {"data": data, "phase5": risk})
    return run_recipe(str(recipe), [1, 2, 5, 6], folder / "run")


def _texts(run: Path) -> dict[str, str]:
    export = run / "phase6_export"
    files = (export / "bundle" / "README.md", run / "report.html", run / "run.log")
    texts = {path.name: path.read_text(encoding="utf-8") for path in files if path.is_file()}
    return texts | {"summary": "\n".join(summarise(run))}


def _pairs(content: Any) -> Iterator[list[Any]]:
    if isinstance(content, dict):
        for value in content.values():
            yield from _pairs(value)
    elif isinstance(content, list):
        if len(content) == 2 and all(isinstance(value, float) for value in content):
            yield content
        for value in content:
            yield from _pairs(value)


def test_no_interval_has_equal_ends(tiny: Path) -> None:
    texts = _texts(tiny)
    assert {"README.md", "report.html", "summary"} <= set(texts)
    for name, text in texts.items():
        assert not NO_WIDTH.search(text), (name, NO_WIDTH.search(text))
    for path in (tiny / "phase6_export" / "evaluation.json", tiny / "phase5_scrc" / "calibration.json"):
        found = list(_pairs(json.loads(path.read_text(encoding="utf-8"))))
        assert all(low < high for low, high in found), path


def test_what_cannot_be_estimated_is_said(tiny: Path) -> None:
    texts, column = _texts(tiny), Evaluation.read(tiny / "phase6_export").as_found
    for text in (texts[name] for name in ("README.md", "report.html", "summary")):
        assert "cannot be estimated from 1 group with label" in text
    assert "Exact binomial bounds" in texts["README.md"] and "Exact binomial bounds" in texts["report.html"]
    assert column.exact is not None and column.no_interval is not None
    assert {"recall", "specificity"} <= set(column.exact) and {"mcc", "auroc", "ece", "nll"} <= set(column.no_interval)
    assert column.intervals["mcc"] == (None, None)


def test_nothing_is_called_independent_where_no_groups_are_given(tiny: Path, finished_run: Path) -> None:
    for name, text in _texts(tiny).items():
        assert "2 test rows, not known to be independent" in text or name == "run.log"
        rest = re.sub("|".join(ALLOWED), "", text)
        assert "independent" not in rest, name
    for name, text in _texts(finished_run).items():
        assert "12 test rows in 4 groups" in text or name == "run.log"
        assert "independent" not in text, name


def test_a_value_with_too_few_rows_is_named(tiny: Path) -> None:
    counts = Evaluation.read(tiny / "phase6_export").slices_left_out
    assert counts is not None and sum(counts["scene_level_tags.weather"].values()) == 2
    for name in ("README.md", "report.html"):
        text = _texts(tiny)[name].lower()
        assert all(f"{value} ({rows})" in text for value, rows in counts["scene_level_tags.weather"].items())
        assert "left out, too few rows" in text


def _table(counts: dict[str, int], right: bool = True) -> tuple[LogitTable, list[str]]:
    values = [value for value, rows in counts.items() for _ in range(rows)]
    labels = np.arange(len(values)) % 2
    names = [str(i) for i in range(len(values))]
    logits = np.where((labels == 1) == right, 1.0, -1.0)
    return LogitTable(Asked(names, np.array(names), labels), logits, "a" * 64), values


def test_many_small_values_are_counted() -> None:
    table, values = _table({"fog": 18, "clear": 40} | {f"v{i}": 1 for i in range(30)})
    found = evaluate(table, Policy(0.0, "", ""), np.ones(88, bool), {"weather": values}, None, 100, False)
    assert list(found.slices["weather"]) == ["clear"]
    assert tells(found.left_out_of("weather"), "fog (18)", "19 more values") and found.left_out_of("other") == ""
    assert found.sample == "88 test rows, not known to be independent"
    again = from_json(Evaluation, to_json(found))
    assert again == found


def test_slices_have_intervals_and_one_label_is_undefined() -> None:
    """Against the intervals of the slice's own rows; a slice of one label has no rate of the other and no MCC."""
    rng = np.random.default_rng(0)
    values = ["rain"] * 60 + ["fog"] * 25
    labels = np.array([0, 1] * 30 + [1] * 25)
    names = [str(i // 2) for i in range(85)]
    table = LogitTable(
        Asked([str(i) for i in range(85)], np.array(names), labels), labels + rng.normal(size=85) - 0.5, "a" * 64
    )
    found = evaluate(table, Policy(0.0, "", ""), np.ones(85, bool), {"weather": values}, None, 100, True)
    rain, fog = found.slices["weather"]["rain"], found.slices["weather"]["fog"]
    called = (table.logits[:60] > 0).astype(float)
    wanted = metric_intervals(called, labels[:60], np.array(names[:60]), n_resamples=100)
    for name in ("mcc", "recall", "specificity"):
        assert rain.figure(name).interval == (wanted[name].low, wanted[name].high)
    assert (fog.n, fog.n_positive, fog.specificity) == (25, 25, None)
    assert fog.figure("specificity").told == "undefined" and "[" in fog.figure("recall").told
    assert fog.mcc is None and fog.figure("mcc").interval == (None, None)
    assert from_json(Evaluation, to_json(found)) == found


def test_a_champion_needs_more_than_three_groups_of_a_class() -> None:
    """One challenger is right everywhere, the control nowhere: on three groups a class that is no proof."""
    for rows, wins in ((6, False), (40, True)):
        control, challenger = _table({"a": rows}, right=False)[0], _table({"a": rows})[0]
        control.logits[0] = -control.logits[0]  # not every resample alike
        tables = {"control": control, "new": challenger}
        champion, [compared] = choose_champion(tables, {"control": 0.0, "new": 0.0}, None, 200)
        assert (champion == "new") == wins == (compared.mcc_gain.no_interval is None)
        assert ("cannot be estimated from 3 groups" in compared.mcc_gain.told) != wins
        assert not NO_WIDTH.search(compared.mcc_gain.told)


def test_a_paired_difference_without_width_has_a_reason() -> None:
    labels, groups = [0, 1] * 20, range(40)
    low, high, reason = paired_bounds(0.0, 0.0, labels, groups)
    assert (low, high) == (None, None) and tells(reason, "every resample", "40 groups")
    assert paired_bounds(0.1, 0.2, labels, groups) == (0.1, 0.2, None)
    assert not NO_WIDTH.search(Gain(0.0, 0.0, 0.0).told)  # as an older version stored it


def test_a_file_of_an_older_version_is_read_and_its_intervals_without_width_are_not_shown(finished_run: Path) -> None:
    now = Evaluation.read(finished_run / "phase6_export")
    old = replace(
        now,
        groups=GroupCounts(now.groups.groups, now.groups.positive_groups, now.groups.negative_groups, True),
        as_found=replace(now.as_found, intervals={"mcc": (1.0, 1.0)}, exact=None, no_interval=None),
        slices_left_out=None,
    )
    content = to_json(old)
    assert "known" not in content["groups"] and not {"exact", "no_interval"} & set(content["as_found"])
    again = from_json(Evaluation, content)
    assert again.groups_known and again.as_found.figure("mcc").told == f"{now.as_found.metrics['mcc']:.3f}"
    assert tells(again.notes({"mcc": "MCC"})[0], "MCC", "cannot be estimated")
    assert not replace(again, rows=again.groups.groups).groups_known
    assert Figure(1.0, (1.0, 1.0)).told == "1.000"


def test_groups_of_some_rows_are_counted_as_groups(tiny: Path) -> None:
    """Two sources, one with groups: what is counted and resampled are groups, but independent they are not."""
    found = Evaluation.read(tiny / "phase6_export")
    assert found.unit == "rows" and tells(found.sample, "2 test rows, not known")
    partly = replace(found, rows=9, groups=GroupCounts(4, 2, 2, few=True, known=False))
    assert partly.unit == "groups" and partly.sample == "9 test rows in 4 groups, not known to be independent"
