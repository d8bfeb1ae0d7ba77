"""The wrapper for HuggingFace evaluate: the same numbers, no network, no files."""

from __future__ import annotations

import socket
from pathlib import Path

import evaluate
import numpy as np
import pytest
from refusals import refused

from natix_hf.errors import DataError, UsageError
from natix_hf.metrics import compute_metrics, load_metric

PROBABILITIES = [0.9, 0.8, 0.3, 0.6, 0.2, 0.5]
LABELS = [1, 1, 1, 0, 0, 0]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a metric opened a connection"))
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    return tmp_path


def test_one_and_all(offline: Path) -> None:
    metric = load_metric()
    assert isinstance(metric, evaluate.Metric)
    assert metric.compute(predictions=PROBABILITIES, references=LABELS) == {"mcc": pytest.approx(1 / 3)}
    everything = load_metric("all").compute(predictions=np.array(PROBABILITIES), references=np.array(LABELS))
    assert everything == compute_metrics(PROBABILITIES, LABELS)
    assert not [path for path in offline.rglob("*") if path.is_file()]


def test_arguments_reach_compute_metrics() -> None:
    given = {"predictions": PROBABILITIES, "references": LABELS, "threshold": 0.85}
    assert load_metric("recall").compute(**given, sample_weight=[1.0, 2, 1, 3, 1, 1]) == {"recall": 0.25}


def test_batches_accumulate_and_reset() -> None:
    metric = load_metric("all")
    for start in (0, 2, 4):
        metric.add_batch(predictions=PROBABILITIES[start : start + 2], references=LABELS[start : start + 2])
    assert metric.compute() == compute_metrics(PROBABILITIES, LABELS)
    assert metric.compute(predictions=[0.9], references=[1])["n"] == 1


def test_refused() -> None:
    refused(UsageError, lambda: load_metric("accurracy"), "accurracy", "all", "mcc")
    refused(DataError, lambda: load_metric().compute(predictions=[0.5], references=[2]), "labels", 2, "position 0")
