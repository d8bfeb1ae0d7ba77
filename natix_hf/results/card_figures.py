"""The figures of a model card, as the evaluation has them: the card prints them, and `verify` looks for them there."""

from __future__ import annotations

from pathlib import Path

from natix_hf.bundle.names import EVALUATION, README
from natix_hf.errors import VerificationError, cut
from natix_hf.metrics.table import METRICS, told_metrics
from natix_hf.provenance.files import read_json
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
    value, (low, high) = column.metrics.get(name), column.intervals.get(name, (None, None))
    if value is None:
        return "undefined"
    return f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else "")


def card_problems(bundle: Path) -> list[str]:
    """One line for each figure of a card that is not the one in the bundle's evaluation, in its metadata or its table.

    A card without a figure states none: older versions showed fewer.
    """
    from huggingface_hub import ModelCard, ModelCardData

    path = bundle / README
    try:
        if read_json(bundle / EVALUATION).get("rows") == 0:  # nothing was measured
            return []
        evaluation = Evaluation.read(bundle)
        text = path.read_text(encoding="utf-8")
        data = ModelCard(text, ignore_metadata_errors=True).data
    except VerificationError as error:
        return [str(error)]
    except Exception as error:  # the YAML of a stranger raises what it likes
        return [f"{path} cannot be read ({type(error).__name__}): it was damaged after it was written"]
    results = (data.eval_results if isinstance(data, ModelCardData) else None) or []
    known = hub_figures(evaluation)
    problems = [
        f"{path} states {result.metric_type} {cut(result.metric_value)} in its metadata, but its evaluation has "
        f"{known.get(result.metric_type)}"
        for result in results
        if result.metric_value != known.get(result.metric_type)
    ]
    rows = {row.split("|")[1]: row for row in table_rows(evaluation)}
    for line in map(str.strip, text.splitlines()):
        expected = rows.get(line.split("|")[1]) if line.count("|") > 2 else None
        if expected not in (None, line):
            problems.append(f"{path} states {cut(line)}, but its evaluation has {expected}")
    return problems
