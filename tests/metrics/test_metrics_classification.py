"""compute_metrics, the rates and the prior weights, against hand-computed values and sums written out."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from refusals import refused

from natix_hf.errors import DataError, UsageError
from natix_hf.metrics import compute_metrics, prior_weights, rates_from_counts
from natix_hf.metrics.classification import matthews

PROBABILITIES = [0.9, 0.8, 0.3, 0.6, 0.2, 0.5]
LABELS = [1, 1, 1, 0, 0, 0]
BY_HAND = {
    "n": 6, "n_positive": 3, "n_negative": 3,
    "tp": 2, "fp": 1, "tn": 2, "fn": 1,  # the probability of .5 is not above .5
    "prevalence": 1 / 2, "accuracy": 4 / 6, "balanced_accuracy": 2 / 3, "precision": 2 / 3, "recall": 2 / 3,
    "specificity": 2 / 3, "fnr": 1 / 3, "fpr": 1 / 3, "f1": 2 / 3, "mcc": (2 * 2 - 1 * 1) / 9,
    "auroc": 7 / 9,
    "auprc": (1 + 1 + 3 / 5) / 3,
    "ece": (0.1 + 0.4 + 0.7 + 0.6 + 0.5) / 6,
    "brier": (0.01 + 0.04 + 0.49 + 0.36 + 0.04 + 0.25) / 6,
    "nll": -math.log(0.9 * 0.8 * 0.3 * 0.4 * 0.8 * 0.5) / 6,
}  # fmt: skip


def test_hand_computed() -> None:
    metrics = compute_metrics(PROBABILITIES, LABELS)
    assert list(metrics) == list(BY_HAND)
    assert metrics == pytest.approx(BY_HAND, abs=1e-14)
    assert all(type(value) is float for value in metrics.values())


def test_threshold_is_strict_and_moves_only_the_decisions() -> None:
    at, below = (compute_metrics(PROBABILITIES, LABELS, cut) for cut in (0.6, np.nextafter(0.6, 0)))
    cells = [[found[name] for name in ("tp", "fp", "tn", "fn")] for found in (at, below)]
    assert cells == [[2, 0, 3, 1], [2, 1, 2, 1]]
    for name in ("auroc", "auprc", "ece", "brier", "nll"):
        assert at[name] == below[name] == pytest.approx(BY_HAND[name])


def test_integer_weights_are_repeated_rows() -> None:
    generator = np.random.default_rng(0)
    p, y = generator.random(60).round(2), generator.integers(0, 2, 60)
    w = generator.integers(0, 4, 60)
    weighted = compute_metrics(p, y, 0.4, sample_weight=w)
    repeated = compute_metrics(np.repeat(p, w), np.repeat(y, w), 0.4)
    assert weighted["n"] == 60 and weighted["n_positive"] == y.sum()
    for name in set(weighted) - {"n", "n_positive", "n_negative"}:
        assert weighted[name] == pytest.approx(repeated[name], abs=1e-12), name
    scaled = compute_metrics(p, y, 0.4, sample_weight=w * 7.5)
    for name in set(weighted) - {"tp", "fp", "tn", "fn"}:
        assert weighted[name] == pytest.approx(scaled[name], abs=1e-12), name


@pytest.mark.filterwarnings("error")
def test_nan_where_undefined() -> None:
    def undefined(metrics: dict[str, float]) -> set[str]:
        return {name for name, value in metrics.items() if math.isnan(value)}

    only_negatives = compute_metrics([0.1, 0.9], [0, 0])
    assert undefined(only_negatives) == {"balanced_accuracy", "recall", "fnr", "auroc", "auprc"}
    assert (only_negatives["mcc"], only_negatives["f1"], only_negatives["precision"]) == (0, 0, 0)
    only_positives = compute_metrics([0.1, 0.9], [1, 1])
    assert undefined(only_positives) == {"balanced_accuracy", "specificity", "fpr", "auroc"}
    assert only_positives["mcc"] == 0 and only_positives["auprc"] == 1
    nothing_called = compute_metrics([0.1, 0.2], [0, 1])
    assert undefined(nothing_called) == {"precision"}
    assert (nothing_called["mcc"], nothing_called["f1"]) == (0, 0)
    assert "f1" in undefined(compute_metrics([0.1], [0]))
    # A class whose rows all weigh nothing is as good as absent.
    weightless = compute_metrics([0.1, 0.9, 0.4], [0, 1, 0], sample_weight=[1, 0, 1])
    assert {"recall", "auroc", "auprc"} <= undefined(weightless)


def test_certain_and_wrong_is_finite() -> None:
    metrics = compute_metrics([0.0, 1.0], [1, 0])
    assert metrics["nll"] == pytest.approx(-math.log(np.finfo(np.float64).eps))
    assert (metrics["mcc"], metrics["brier"], metrics["ece"], metrics["auroc"]) == (-1, 1, 1, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors(dtype: torch.dtype) -> None:
    p = torch.tensor([0.875, 0.75, 0.25, 0.625], dtype=dtype, requires_grad=True)
    expected = compute_metrics([0.875, 0.75, 0.25, 0.625], [1, 1, 1, 0])
    for labels in (torch.tensor([1, 1, 1, 0]), torch.tensor([True, True, True, False]), torch.tensor([1.0, 1, 1, 0])):
        assert compute_metrics(p, labels, sample_weight=torch.ones(4)) == expected
    assert compute_metrics(np.float32([0.875, 0.75, 0.25, 0.625]), np.array([1, 1, 1, 0], dtype=np.uint8)) == expected


@pytest.mark.parametrize(
    ("probabilities", "labels", "weight", "facts"),
    [
        ([0.5, 0.5], [0, 2], None, ["labels", 2, "position 1"]),
        ([0.5, 0.5], [0.5, 1], None, ["labels", 0.5, "position 0"]),
        ([0.5], ["yes"], None, ["labels", "yes", "position 0"]),
        ([0.5, 1.5], [0, 1], None, ["probabilities", "[0, 1]", 1.5, "position 1"]),
        ([-0.1, 0.5], [0, 1], None, ["probabilities", "[0, 1]", -0.1, "position 0"]),
        ([0.5, math.nan], [0, 1], None, ["probabilities", "nan", "position 1"]),
        ([0.5, None], [0, 1], None, ["probabilities"]),
        (["a"], [0], None, ["probabilities", "numbers"]),
        ([], [], None, ["probabilities", "empty"]),
        ([[0.5, 0.5]], [0], None, ["probabilities", "one-dimensional", "(1, 2)"]),
        ([[0.5], [0.5, 0.1]], [0], None, ["probabilities", "one-dimensional"]),
        (0.5, [0], None, ["probabilities", "one-dimensional"]),
        ([0.5, 0.5], [0], None, ["probabilities 2", "labels 1"]),
        ([0.5, 0.5], [0, 1], [1], ["sample_weight 1"]),
        ([0.5, 0.5], [0, 1], [1, -1], ["sample_weight", -1, "position 1"]),
        ([0.5, 0.5], [0, 1], [1, math.inf], ["sample_weight", "inf"]),
        ([0.5, 0.5], [0, 1], [0, 0], ["sample_weight", 0]),
    ],
)
def test_refused(probabilities: object, labels: object, weight: object, facts: list[object]) -> None:
    refused(DataError, lambda: compute_metrics(probabilities, labels, sample_weight=weight), *facts)


def test_threshold_refused() -> None:
    for threshold in (math.nan, math.inf):
        refused(UsageError, lambda cut=threshold: compute_metrics([0.5], [1], threshold=cut), "threshold", threshold)


def test_rates_of_many_counts_are_those_of_each() -> None:
    counts = np.random.default_rng(1).integers(0, 3, (4, 30))
    together = rates_from_counts(*counts)
    for column, (tp, fp, tn, fn) in enumerate(counts.T.tolist()):
        if tp + fp + tn + fn:
            one = compute_metrics([0.9] * (tp + fp) + [0.1] * (tn + fn), [1] * tp + [0] * (fp + tn) + [1] * fn)
            of_all = {name: values[column] for name, values in together.items()}
            assert {name: one[name] for name in together} == pytest.approx(of_all, nan_ok=True, abs=1e-15)


def test_no_overflow_in_large_integer_counts() -> None:
    tp, fp, tn, fn = 9_000_000, 3_000_000, 10_000_000, 2_000_000
    exact = (tp * tn - fp * fn) / math.sqrt(Fraction((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    assert rates_from_counts(*(np.int32(c) for c in (tp, fp, tn, fn)))["mcc"] == pytest.approx(exact, rel=1e-14)
    assert matthews(*(np.int32(c) for c in (tp, fp, tn, fn))) == pytest.approx(exact, rel=1e-14)
    for perfect in (1, 3, 12_345_677):
        assert rates_from_counts(perfect, 0, perfect + 10, 0)["mcc"] == 1
        assert rates_from_counts(0, perfect, 0, perfect + 10)["mcc"] == -1


@pytest.mark.parametrize("prior", [0.5, 0.2, 0.999])
def test_prior_weights(prior: float) -> None:
    labels = np.array([1] * 20 + [0] * 80)
    weights = prior_weights(labels, prior)
    assert weights.dtype == np.float64 and weights.mean() == pytest.approx(1)
    assert weights[labels == 1].sum() / weights.sum() == pytest.approx(prior)
    assert len(set(weights[:20])) == len(set(weights[20:])) == 1
    assert compute_metrics(labels * 0.5, labels, sample_weight=weights)["prevalence"] == pytest.approx(prior)


def test_prior_weights_without_prior_and_refused() -> None:
    assert prior_weights([1, 1, 1], None).tolist() == [1, 1, 1]
    for prior in (0, 1, -0.5, 2, math.nan):
        refused(UsageError, lambda prior=prior: prior_weights([0, 1], prior), "target_prior", prior)
    for label in (0, 1):
        refused(DataError, lambda label=label: prior_weights([label] * 2, 0.5), "one class", f"({label})")


def test_import_is_light() -> None:
    heavy = "{'torch', 'sklearn', 'scipy', 'evaluate', 'datasets', 'pandas'}"
    code = f"import sys, natix_hf.metrics; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
