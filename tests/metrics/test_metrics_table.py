"""A metric is its formula and one row of the table: the row alone brings it to every place that tells metrics."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from facts import tells

from natix_hf.metrics import bootstrap_intervals, compute_metrics, load_metric
from natix_hf.metrics.table import METRICS, Rate, Score, interval_names, told_metrics
from natix_hf.pipeline import run_recipe
from natix_hf.report.page import render_report
from natix_hf.results.calibration import CalibrationReport
from natix_hf.results.evaluation import Evaluation

PACKAGE = Path(__file__).resolve().parents[2] / "natix_hf"
P = np.array([0.9, 0.7, 0.4, 0.2, 0.6, 0.1])
Y = np.array([1, 1, 1, 0, 0, 0])


@pytest.fixture
def two_more(monkeypatch: pytest.MonkeyPatch) -> None:
    rate = Rate(title="Youden J", function=lambda tp, fp, tn, fn: tp / (tp + fn) + tn / (tn + fp) - 1, page=1,
                card=True, hub=True)  # fmt: skip
    score = Score(title="Sharpness", function=lambda p, y, w: float(np.average(p * (1 - p), weights=w)), page=20,
                  card=True, calibration=True)  # fmt: skip
    monkeypatch.setitem(METRICS, "youden", rate)
    monkeypatch.setitem(METRICS, "sharpness", score)


@pytest.mark.usefixtures("two_more")
def test_a_row_reaches_numbers_and_intervals() -> None:
    found = compute_metrics(P, Y)
    assert found["youden"] == pytest.approx(2 * found["balanced_accuracy"] - 1)
    assert found["sharpness"] == pytest.approx((P * (1 - P)).mean())
    assert load_metric("youden").compute(predictions=P, references=Y) == {"youden": found["youden"]}
    intervals = bootstrap_intervals(P, Y, np.arange(6), n_resamples=50)
    assert tuple(intervals) == interval_names()
    for name in ("youden", "sharpness"):
        assert intervals[name][0] < found[name] < intervals[name][1]
    assert told_metrics()[:2] == ["mcc", "youden"] and told_metrics(card=True)[-1] == "sharpness"


@pytest.mark.usefixtures("two_more")
def test_a_row_reaches_evaluation_calibration_page_and_cards(finished_run: Path, tiny_recipe_file: Path) -> None:
    before = Evaluation.read(finished_run / "phase6_export")
    assert "youden" not in before.as_found.metrics
    assert "Youden J" not in render_report(finished_run)  # a run without the metric still has its page
    run_recipe(str(tiny_recipe_file), [5, 6], finished_run, overrides=["phase5.n_resamples=101"])
    export = finished_run / "phase6_export"
    column = Evaluation.read(export).as_found
    for name in ("youden", "sharpness"):
        assert column.metrics[name] and tells((column.no_interval or {})[name], "2 groups"), name
    old = {name: value for name, value in column.metrics.items() if name not in ("youden", "sharpness")}
    assert list(old.items())[:17] == list(before.as_found.metrics.items())[:17]  # decisions are not calibrated
    fitted = CalibrationReport.read(finished_run / "phase5_scrc")
    assert "sharpness" in fitted.before and "sharpness" in fitted.after and "youden" not in fitted.before
    page = (finished_run / "report.html").read_text(encoding="utf-8")
    assert page.count(">Youden J<") == 1 and page.count(">Sharpness<") == 2  # on test, and before and after
    card = (export / "bundle" / "README.md").read_text(encoding="utf-8")
    assert "| youden |" in card and "| sharpness |" in card
    assert "type: youden" in card and "type: sharpness" not in card


def test_a_score_is_what_each_of_its_ways_to_be_resampled_gives() -> None:
    weights = np.random.default_rng(0).random((4, Y.size))
    for name, metric in METRICS.items():
        if isinstance(metric, Score) and metric.row_losses is not None:
            means = [np.average(metric.row_losses(P, Y), weights=row) for row in weights]
            assert [metric.function(P, Y, row) for row in weights] == pytest.approx(means), name
        if isinstance(metric, Score) and metric.of_resamples is not None:
            assert [metric.function(P, Y, row) for row in weights] == pytest.approx(metric.of_resamples(P, Y)(weights))


def test_no_other_file_lists_metrics() -> None:
    """A second list of names would be a place that a new metric is forgotten in."""
    names = "|".join(name for name in METRICS if name not in ("mcc", "auroc", "nll", "fnr", "fpr", "f1"))
    several = re.compile(rf"""["']({names})["'][,:]\s.*["']({names})["']""", re.DOTALL)
    allowed = {"metrics/table.py", "metrics/threshold.py"}
    for path in PACKAGE.rglob("*.py"):
        for block in re.findall(r"[(\[{][^()\[\]{}]*[)\]}]", path.read_text(encoding="utf-8")):
            if path.relative_to(PACKAGE).as_posix() not in allowed:
                assert not several.search(block), f"{path}: {block}"
