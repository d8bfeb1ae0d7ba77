"""The metrics by name: the one list that evaluation, bootstrap, calibration report, run page and model card read.

To add one: its formula (in `classification.py`, or a file of its own) and a row here. Light: imports numpy alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from natix_hf.labels import LabelNames
from natix_hf.metrics import calibration_error, classification
from natix_hf.metrics.arrays import Floats, Labels


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What is told of a metric, and where.

    Attributes:
        title (`str`): Its name on the page about a run. `{yes}` and `{no}` in it are the names of the answers.
        page (`int`, *optional*):
            Its place in the table of that page and of the model card; of equal places, the first row of this table
            comes first. `None` shows it on neither; it is in `evaluation.json` all the same.
        card (`bool`): The model card shows it as well.
        hub (`bool`): It is in the metadata of the card, from which the Hub makes its leaderboards.
        hub_id (`str`, *optional*): What the Hub calls it (https://huggingface.co/metrics). `None`: it knows none.
    """

    title: str
    page: int | None = None
    card: bool = False
    hub: bool = False
    hub_id: str | None = None

    def named(self, labels: LabelNames) -> str:
        """The title with the names of the answers."""
        return self.title.format(yes=labels.yes, no=labels.no)


@dataclass(frozen=True, kw_only=True)
class Rate(Metric):
    """A metric of the decisions. It gets a bootstrap interval for nothing.

    Attributes:
        function: `(tp, fp, tn, fn)`, float64 counts that broadcast, weighted or not -> float64 of that shape, NaN
            where undefined.
        share (`tuple[str, str]`, *optional*): The counts in the numerator and in the denominator of a share of rows,
            whose interval is exact where resampling gives none. `None`: the rate must only rise or only fall with TPR,
            and with TNR, because its bounds come from theirs.
    """

    function: Callable[[Any, Any, Any, Any], Any]
    share: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Score(Metric):
    """A metric of the probabilities.

    Attributes:
        function: `(probabilities [n], labels [n], weights [n] or None) -> float`, NaN where undefined. The arrays
            have been checked.
        row_losses: `(probabilities, labels) -> losses [n]`, where the score is their weighted mean: all such scores
            are resampled by one matrix product.
        of_resamples: `(probabilities, labels) ->` a function from weights [b, n] to scores [b]: a quicker way to
            resample. Without this and `row_losses`, the bootstrap calls `function` for each resample.
        interval (`bool`): It has a bootstrap interval where none is asked for by name. `False` for slow ones.
        measured (`bool`): [`compute_metrics`] returns it. `False`: only bootstrap and calibration report know it.
        calibration (`bool`): The calibration report of phase 5 shows it before and after.
    """

    function: Callable[[Floats, Labels, Floats | None], float]
    row_losses: Callable[[Floats, Labels], Floats] | None = None
    of_resamples: Callable[[Floats, Labels], Callable[[Floats], Floats]] | None = None
    interval: bool = True
    measured: bool = True
    calibration: bool = False


# In the order of `compute_metrics` and of calibration.json.
METRICS: dict[str, Rate | Score] = {
    "accuracy": Rate(title="accuracy", function=classification.accuracy, share=("tp tn", "tp fp tn fn"), page=7),
    "balanced_accuracy": Rate(
        title="balanced accuracy", function=classification.balanced_accuracy, page=2, card=True, hub=True
    ),
    "precision": Rate(
        title="precision",
        function=classification.precision,
        share=("tp", "tp fp"),
        page=5,
        card=True,
        hub_id="precision",
    ),
    "recall": Rate(
        title="TPR: share of {yes} found",
        function=classification.recall,
        share=("tp", "tp fn"),
        page=3,
        card=True,
        hub_id="recall",
    ),
    "specificity": Rate(
        title="TNR: share of {no} confirmed",
        function=classification.specificity,
        share=("tn", "tn fp"),
        page=4,
        card=True,
    ),
    "fnr": Rate(title="FNR", function=classification.fnr, share=("fn", "tp fn")),
    "fpr": Rate(title="FPR", function=classification.fpr, share=("fp", "tn fp")),
    "f1": Rate(title="F1", function=classification.f1, page=6),
    "mcc": Rate(
        title="MCC", function=classification.matthews, page=1, card=True, hub=True, hub_id="matthews_correlation"
    ),
    "auroc": Score(
        title="AUROC",
        function=classification.auroc,
        of_resamples=classification.auroc_of_resamples,
        page=8,
        card=True,
        hub=True,
        hub_id="roc_auc",
    ),
    "auprc": Score(title="AUPRC", function=classification.auprc, interval=False, page=9, card=True),
    "ece": Score(title="ECE", function=calibration_error.ece, page=10, card=True, calibration=True),
    "ece_equal_mass": Score(
        title="ECE equal mass",
        function=partial(calibration_error.ece, binning="equal_mass"),
        interval=False,
        measured=False,
        calibration=True,
    ),
    "smooth_ece": Score(
        title="smooth ECE", function=calibration_error.smooth_ece, interval=False, measured=False, calibration=True
    ),
    "mce": Score(title="MCE", function=calibration_error.mce, interval=False, measured=False, calibration=True),
    "brier": Score(
        title="Brier score",
        function=classification.brier,
        row_losses=classification.squared_errors,
        page=11,
        card=True,
        calibration=True,
        hub_id="brier_score",
    ),
    "nll": Score(
        title="NLL",
        function=classification.nll,
        row_losses=classification.log_losses,
        page=12,
        card=True,
        calibration=True,
    ),
}


# What is told of every slice and level, with a short title: misses and false alarms apart, and both in one figure.
BY_CLASS = {"mcc": "MCC", "recall": "TPR", "specificity": "TNR"}


def rates() -> dict[str, Rate]:
    """The metrics of the decisions."""
    return {name: metric for name, metric in METRICS.items() if isinstance(metric, Rate)}


def scores() -> dict[str, Score]:
    """The metrics of the probabilities."""
    return {name: metric for name, metric in METRICS.items() if isinstance(metric, Score)}


def measured_scores() -> dict[str, Score]:
    """The scores that [`compute_metrics`] returns."""
    return {name: score for name, score in scores().items() if score.measured}


def calibration_scores() -> dict[str, Score]:
    """The scores of the calibration report."""
    return {name: score for name, score in scores().items() if score.calibration}


def interval_names() -> tuple[str, ...]:
    """The metrics with an interval where none is asked for by name, the cheapest first."""
    with_interval = {name: score for name, score in scores().items() if score.interval}
    return (*rates(), *sorted(with_interval, key=lambda name: _cost(with_interval[name])))


def _cost(score: Score) -> int:
    """How dear a resample is: part of one matrix product, a pass over sorted rows, or a call of its own."""
    return 0 if score.row_losses else 1 if score.of_resamples else 2


def told_metrics(card: bool = False) -> list[str]:
    """The metrics on the page about a run, or those of them on the model card, in their order there."""
    shown = {name: metric.page for name, metric in METRICS.items() if metric.page and (metric.card or not card)}
    return sorted(shown, key=lambda name: shown[name] or 0)
