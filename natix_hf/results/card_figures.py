"""The figures of a model card, as the evaluation has them: the card prints them, and `verify` looks for them there."""

from __future__ import annotations

from pathlib import Path

from natix_hf.bundle.names import README
from natix_hf.errors import VerificationError
from natix_hf.metrics.table import METRICS, told_metrics
from natix_hf.results.evaluation import Column, Evaluation


def hub_figures(evaluation: Evaluation) -> dict[str, float]:
    """The figures in the card's metadata, by metric."""
    metrics = evaluation.as_found.metrics
    wanted = (name for name in told_metrics(card=True) if METRICS[name].hub)
    return {name: round(value, 4) for name in wanted if (value := metrics.get(name)) is not None}


def table_rows(evaluation: Evaluation) -> list[str]:
    """The rows of the card's table of metrics, in Markdown."""
    told = [name for name in told_metrics(card=True) if name in evaluation.as_found.metrics]
    columns = evaluation.columns.values()
    return [f"| {name.replace('_', ' ')} | {' | '.join(_cell(column, name) for column in columns)} |" for name in told]


def _cell(column: Column, name: str) -> str:
    value, (low, high) = column.metrics[name], column.intervals.get(name, (None, None))
    if value is None:
        return "undefined"
    return f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else "")


def card_problems(bundle: Path) -> list[str]:
    """The problem of a card that states other figures than the bundle's evaluation, in its metadata or its table."""
    from huggingface_hub import ModelCard, ModelCardData

    path = bundle / README
    try:
        evaluation = Evaluation.read(bundle)
    except VerificationError as error:
        return [str(error)]
    try:
        text = path.read_text(encoding="utf-8")
        data = ModelCard(text, ignore_metadata_errors=True).data
        results = (data.eval_results if isinstance(data, ModelCardData) else None) or []
        stated = {result.metric_type: result.metric_value for result in results}
    except Exception as error:  # YAML of a stranger raises what it likes
        return [f"{path} cannot be read ({type(error).__name__}): it was damaged after it was written"]
    expected = hub_figures(evaluation)
    if stated != expected:
        name = next(key for key in [*expected, *stated] if stated.get(key) != expected.get(key))
        return [
            f"{path} states {name} {stated.get(name)} in its metadata, but its evaluation has {expected.get(name)}"
        ]
    lines = text.splitlines()
    return [f"{path} lacks the figures of its evaluation: {row}" for row in table_rows(evaluation) if row not in lines]
