"""[`compute_metrics`] for users of HuggingFace evaluate. A call costs some 10 ms: not for loops."""

from __future__ import annotations

from typing import Any

from natix_hf.errors import UsageError
from natix_hf.metrics.compute import compute_metrics


def load_metric(name: str = "mcc") -> Any:
    """Wrap one metric, or all, as an `evaluate.Metric`; nothing is downloaded.

    ```py
    >>> load_metric("recall").compute(predictions=[0.9, 0.2], references=[1, 1], threshold=0.5)
    {'recall': 0.5}
    ```

    Args:
        name (`str`, defaults to `"mcc"`): A key of [`compute_metrics`], or `"all"`.

    Returns:
        `evaluate.Metric`: its `compute` takes probabilities as `predictions`, labels as `references`, and `threshold`
        and `sample_weight` of [`compute_metrics`], and returns `{name: value}`, or all metrics.

    Raises:
        [`UsageError`]: for a name that is no metric.
    """
    known = ["all", *compute_metrics([0, 1], [0, 1])]
    if name not in known:
        raise UsageError(f'no metric is named "{name}": known are {", ".join(known)}')

    import datasets
    import evaluate

    class RoadworkMetric(evaluate.Metric):  # type: ignore[misc]
        def _info(self) -> Any:
            return evaluate.MetricInfo(
                description="Metrics of a yes/no classifier, by natix_hf.metrics.compute_metrics.",
                citation="",
                inputs_description="predictions: P(positive); references: 0 or 1; threshold, sample_weight: optional.",
                features=datasets.Features(
                    {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
                ),
            )

        def _compute(
            self, predictions: Any, references: Any, threshold: float = 0.5, sample_weight: Any | None = None
        ) -> dict[str, float]:
            metrics = compute_metrics(predictions, references, threshold, sample_weight)
            return metrics if name == "all" else {name: metrics[name]}

    # In memory: no cache file that two runs could fight over.
    return RoadworkMetric(keep_in_memory=True)
